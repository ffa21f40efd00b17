"""Discovery of the cases of a dataset, with the first layout that matches."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.case import case_id_problems, is_volume_name, stem_of
from dask_slicer.inputs.label_names import NO_LABELS, label_words, words_of
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
    images = {_relative(path, input_dir) for case in match.cases for path in case.images}
    # A word that the paths of all images have tells nothing.
    common = set.intersection(*map(_path_words, images)) if images else set()
    unlabelled = [case for case in match.cases if case.label is None]
    mistaken = [
        path
        for path in (_relative(image, input_dir) for case in unlabelled for image in case.images)
        if label_words(_path_words(path) - common)
    ]
    if mistaken:
        match.problems.append(
            f"{plural(len(mistaken), 'image')} without a label, but named like labels: "
            f"{first_few(mistaken)}; name images and labels in a manifest"
        )
    unused = [] if has_labels else _unused_labels(input_dir, match, images, common)
    if not unused:
        return
    left_out = f"{plural(len(unused), 'file')} named like labels: {first_few(unused)}"
    if allow_missing:
        match.notes.append(f"left out {left_out}")
    else:
        match.problems.append(
            f"no case has a label, which would leave out {left_out}; name images and labels in "
            "a manifest, or use --allow_missing_labels"
        )


def _unused_labels(
    input_dir: Path, match: LayoutMatch, images: set[str], common: set[str]
) -> list[str]:
    """Return the volumes in a folder that are no image and named like labels, relative to it.

    Folders that cannot be listed are noted.
    """
    without_anatomy = _NO_ANATOMY if match.layout == "BIDS" else ()
    labels = []
    visited = set()

    def note(error: OSError) -> None:
        match.notes.append(f"cannot list {error.filename}: {error.strerror}")

    for folder, folders, names in os.walk(input_dir, onerror=note, followlinks=True):
        if (target := os.path.realpath(folder)) in visited:  # a link to a folder above
            folders.clear()
            continue
        visited.add(target)
        folders[:] = [
            name for name in folders if not (name.startswith(".") or name in without_anatomy)
        ]
        for name in filter(is_volume_name, names):
            path = _relative(os.path.join(folder, name), input_dir)
            if path not in images and label_words(_path_words(path) - common) - NO_LABELS:
                labels.append(path)
    if labels:  # images may be seen through a link
        used = {os.path.realpath(input_dir / image) for image in images}
        labels = [path for path in labels if os.path.realpath(input_dir / path) not in used]
    return sorted(labels)


def _relative(path: str, folder: Path) -> str:
    try:
        return os.path.relpath(path, folder)
    except ValueError:  # on another drive of Windows
        return path


def _path_words(path: str) -> set[str]:
    """Return the words of a path, without those of subjects and sessions in BIDS."""
    folder, name = os.path.split(path)
    named = re.sub(r"\b(sub|ses)-[^_/\\]+", "", os.path.join(folder, stem_of(name)))
    return set(words_of(named))
