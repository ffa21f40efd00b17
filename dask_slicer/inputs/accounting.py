"""Roles of all volumes of a dataset: image, label, or left out with a reason."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from dask_slicer.inputs.case import stem_of
from dask_slicer.inputs.layouts.base import FileRole, LayoutMatch
from dask_slicer.inputs.readers.base import split_volume
from dask_slicer.inputs.role_words import NO_LABELS, label_words, words_of
from dask_slicer.inputs.tree import FileTree
from dask_slicer.utils.formatting import first_few, plural

# Folders of BIDS that hold no anatomy.
_NO_ANATOMY = {"func", "fmap", "dwi", "perf"}


def account(tree: FileTree, match: LayoutMatch) -> tuple[FileRole, ...]:
    """Return the role of every volume of a dataset, by path; a file of two cases is there twice."""
    roles = list(_used(tree.root, match))
    used = {role.path for role in roles}
    why = f"not part of the layout {match.layout}"
    roles += [
        FileRole(path=path, role="left out", detail=match.left_out.get(path, why))
        for path in tree.volumes
        if path not in used
    ]
    return tuple(sorted(roles, key=lambda role: (role.path, role.case_id)))


def _used(root: Path, match: LayoutMatch) -> Iterable[FileRole]:
    channels = match.channel_names
    for case in match.cases:
        for number, path in enumerate(case.images):
            name = channels[number] if number < len(channels) else f"channel {number}"
            relative = relative_to(root, path)
            yield FileRole(path=relative, role="image", detail=name, case_id=case.case_id)
        for mask in case.masks:
            relative = relative_to(root, mask.path)
            yield FileRole(path=relative, role="label", detail=mask.structure, case_id=case.case_id)
        if case.label is not None:
            yield FileRole(path=relative_to(root, case.label), role="label", case_id=case.case_id)


def relative_to(root: Path, path: str) -> str:
    """Return a path relative to a dataset, POSIX, without the selector of a volume."""
    path, _ = split_volume(path)
    prefix = os.path.join(root, "")
    if path.startswith(prefix):
        return path[len(prefix) :].replace(os.sep, "/")
    try:
        return os.path.relpath(path, root).replace(os.sep, "/")
    except ValueError:  # on another drive of Windows
        return path


def check_labels(tree: FileTree, match: LayoutMatch, *, allow_missing: bool) -> None:
    """Add the problems of volumes that are named like labels, but images or not used at all.

    Where the cases have labels, a case without one fails, unless `allow_missing`.
    """
    has_labels = any(case.has_label for case in match.cases)
    if has_labels and not allow_missing:
        return
    roles = match.files
    images = {role.path for role in roles if role.role == "image"}
    # A word that the paths of all images have tells nothing.
    common = set.intersection(*map(_path_words, images)) if images else set()
    unlabelled = {case.case_id for case in match.cases if not (case.has_label or case.stated)}
    mistaken = [
        role.path
        for role in roles
        if role.role == "image"
        and role.case_id in unlabelled
        and label_words(_path_words(role.path) - common)
    ]
    if mistaken:
        match.problems.append(
            f"{plural(len(mistaken), 'image')} without a label, but named like labels: "
            f"{first_few(mistaken)}; name images and labels in a manifest"
        )
    if has_labels:
        return
    left_out = [role.path for role in roles if role.role == "left out"]
    unused = _named_like_labels(tree.root, left_out, match, images, common)
    if not unused:
        return
    names = f"{plural(len(unused), 'file')} named like labels: {first_few(unused)}"
    if allow_missing:
        match.notes.append(f"left out {names}")
    else:
        match.problems.append(
            f"no case has a label, which would leave out {names}; name images and labels in "
            "a manifest, or use --allow_missing_labels"
        )


def _named_like_labels(
    root: Path, paths: Iterable[str], match: LayoutMatch, images: set[str], common: set[str]
) -> list[str]:
    """Return those of the volumes that are left out that are named like labels."""
    without_anatomy = _NO_ANATOMY if match.layout == "BIDS" else set()
    labels = [
        path
        for path in paths
        if label_words(_path_words(path) - common) - NO_LABELS
        and not without_anatomy.intersection(path.split("/")[:-1])
    ]
    if labels:  # images may be seen through a link
        used = {os.path.realpath(root / image) for image in images}
        labels = [path for path in labels if os.path.realpath(root / path) not in used]
    return labels


def _path_words(path: str) -> set[str]:
    """Return the words of a path, without those of subjects and sessions in BIDS."""
    folder, name = os.path.split(path)
    named = re.sub(r"\b(sub|ses)-[^_/\\]+", "", os.path.join(folder, stem_of(name)))
    return set(words_of(named))
