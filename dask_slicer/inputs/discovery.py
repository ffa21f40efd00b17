"""Discovery of the cases of a dataset, with the first layout that matches."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.case import case_id_problems, is_volume_name, stem_of
from dask_slicer.inputs.label_names import LABEL_WORDS, labels_beside_images, words_of
from dask_slicer.inputs.layouts import LAYOUTS, manifest
from dask_slicer.inputs.layouts.base import LayoutMatch


def find_cases(input_dir: Path, *, include_test: bool = False) -> LayoutMatch:
    """Return the cases of a folder in a known layout, or of a CSV or JSON manifest."""
    if not input_dir.exists():
        raise DatasetError(f"input_dir {input_dir} does not exist")
    layouts = (manifest, *LAYOUTS) if input_dir.is_dir() else (manifest,)
    misses = []
    try:
        for layout in layouts:
            match = layout.match(input_dir, include_test=include_test)
            if match.cases:
                problems = case_id_problems(case.case_id for case in match.cases)
                if layout is not manifest:
                    problems += _labels_among_images(match)
                match.problems = list(dict.fromkeys(match.problems + problems))
                match.cases.sort(key=lambda case: case.case_id)
                return match
            misses.append(match)
    except PermissionError as error:
        raise DatasetError(f"cannot list {error.filename}: {error.strerror}") from None
    if not input_dir.is_dir():
        raise DatasetError(
            f"input_dir {input_dir} is neither a folder nor a .csv or .json manifest"
        )
    # Stable: the usual layouts first, the manifest last.
    nearest, *others = sorted((*misses[1:], misses[0]), key=lambda match: -match.seen)
    tried = "; ".join(f"{match.layout}: {match.miss}" for match in others)
    raise DatasetError(
        f"no case found in {input_dir}; nearest is {nearest.layout}: {nearest.miss} "
        f"(also tried: {tried})"
    )


def _labels_among_images(match: LayoutMatch) -> list[str]:
    """Return the problems of images that are named like the label of another image.

    An image that has a label itself is none.
    """
    stems: defaultdict[str, list[str]] = defaultdict(list)
    has_label = set()
    for case in match.cases:
        for image in case.images:
            folder, name = os.path.split(image)
            stems[folder].append(stem_of(name))
            if case.label is not None:
                has_label.add((folder, stem_of(name)))
    return [
        f"{label} in {folder} is named like the label of {image}, but would be an image; "
        "name images and labels in a manifest"
        for folder, names in stems.items()
        for image, label in labels_beside_images(names)
        if (folder, label) not in has_label
    ]


def unused_labels(input_dir: Path, match: LayoutMatch) -> list[str]:
    """Return the volumes in a folder that are no image and named like labels, relative to it.

    A word that is in the paths of all images, such as `tumor`, tells nothing.
    """
    images = {os.path.relpath(image, input_dir) for case in match.cases for image in case.images}
    common = set.intersection(*(_path_words(image) for image in images)) if images else set()
    found = []
    for folder, folders, names in os.walk(input_dir):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = os.path.relpath(folder, input_dir)
        paths = [os.path.normpath(os.path.join(relative, n)) for n in names if is_volume_name(n)]
        found += [
            path
            for path in paths
            if path not in images and LABEL_WORDS & (_path_words(path) - common)
        ]
    return sorted(found)


def _path_words(path: str) -> set[str]:
    folder, name = os.path.split(path)
    return {*words_of(folder), *words_of(stem_of(name))}
