"""Discovery of the cases of a dataset, with the first layout that matches."""

from __future__ import annotations

import os
from pathlib import Path

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.case import case_id_problems, is_volume_name, stem_of
from dask_slicer.inputs.label_names import label_words, words_of
from dask_slicer.inputs.layouts import LAYOUTS, manifest
from dask_slicer.inputs.layouts.base import LayoutMatch
from dask_slicer.utils.formatting import first_few, plural

# Folders of BIDS that hold no anatomy.
_NO_ANATOMY = {"func", "fmap", "dwi", "perf"}


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


def check_labels(input_dir: Path, match: LayoutMatch, *, allow_missing: bool) -> None:
    """Add the problems of volumes that are named like labels, but images or not used at all.

    Where the cases have labels, a case without one fails, unless `allow_missing`.
    """
    has_labels = any(case.label is not None for case in match.cases)
    if match.layout == "manifest" or (has_labels and not allow_missing):
        return
    labels = _labels_among_images(input_dir, match)
    if labels:
        match.problems.append(
            f"{plural(len(labels), 'image')} without a label, but named like labels: "
            f"{first_few(labels)}; name images and labels in a manifest"
        )
    labels = [] if has_labels else _unused_labels(input_dir, match)
    left_out = f"{plural(len(labels), 'file')} named like labels: {first_few(labels)}"
    if labels and allow_missing:
        match.notes.append(f"left out {left_out}")
    elif labels:
        match.problems.append(
            f"no case has a label, which would leave out {left_out}; name images and labels in "
            "a manifest, or use --allow_missing_labels"
        )


def _labels_among_images(input_dir: Path, match: LayoutMatch) -> list[str]:
    """Return the images, relative to a folder, that have no label and are named like one."""
    common = _common_words(input_dir, match)
    return [
        path
        for case in match.cases
        if case.label is None
        for path in (os.path.relpath(image, input_dir) for image in case.images)
        if label_words(_path_words(path)) - common
    ]


def _unused_labels(input_dir: Path, match: LayoutMatch) -> list[str]:
    """Return the volumes in a folder that are no image and named like labels, relative to it.

    Raises DatasetError if a folder cannot be listed.
    """
    images = {image for case in match.cases for image in case.images}
    common = _common_words(input_dir, match)
    labels = []
    visited = set()
    for folder, folders, names in os.walk(input_dir, onerror=_raise, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in visited:  # a link to a folder above
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not (name.startswith(".") or name in _NO_ANATOMY)]
        paths = [os.path.join(folder, name) for name in names if is_volume_name(name)]
        relative = [os.path.relpath(path, input_dir) for path in paths if path not in images]
        labels += [path for path in relative if label_words(_path_words(path)) - common]
    return sorted(labels)


def _raise(error: OSError) -> None:
    raise DatasetError(f"cannot list {error.filename}: {error.strerror}")


def _common_words(input_dir: Path, match: LayoutMatch) -> set[str]:
    """Return the words in the paths of all images, which tell nothing."""
    images = [os.path.relpath(image, input_dir) for case in match.cases for image in case.images]
    return set.intersection(*map(_path_words, images)) if images else set()


def _path_words(path: str) -> set[str]:
    folder, name = os.path.split(path)
    return {*words_of(folder), *words_of(stem_of(name))}
