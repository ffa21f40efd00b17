"""The guard on names: no image is named like a label, and no label is left out unseen."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from dask_slicer.errors import CaseError
from dask_slicer.inputs.case import stem_of
from dask_slicer.inputs.layouts.base import NAME_THEM, FileRole, LayoutMatch
from dask_slicer.inputs.role_words import NO_LABELS, all_label_words, label_words, words_of
from dask_slicer.inputs.tree import FileTree
from dask_slicer.inputs.unread import is_picture
from dask_slicer.utils.formatting import first_few, plural

# So many files that are left out are looked at where no case has a label.
_MOST_LOOKS = 8
# Names of subjects and sessions in BIDS, and of a dataset, hold no word.
_NO_WORDS = re.compile(r"\b(sub|ses)-[^_/]+|iSeg", re.IGNORECASE)


def check_labels(
    tree: FileTree, match: LayoutMatch, *, allow_missing: bool, label_name: str | None = None
) -> None:
    """Add the problems of files that are named like labels, but images or not used at all.

    Where some cases have labels, the others fail by themselves, unless `allow_missing`. The user
    has chosen labels by their `label_name`.
    """
    has_labels = any(case.has_label for case in match.cases)
    unused = [r for r in match.files if r.role in ("left out", "not read")]
    unused = [r for r in unused if r.path not in match.not_labels]
    if has_labels:
        # The layout has noted the others.
        unused = [r for r in unused if r.role == "left out" and r.path not in match.left_out]
    if has_labels and not (allow_missing or unused):
        return
    images = {role.path: _components(role.path) for role in match.files if role.role == "image"}
    words = [{word for part in parts for word in words_of(part)} for parts in images.values()]
    # A word that the paths of all images have tells nothing.
    common = set.intersection(*words) if words else set()
    every_word = set().union(*words)
    if label_words(every_word) and (allow_missing or not has_labels):
        _check_images(match, images, common, has_labels=has_labels)
    if allow_missing and label_name is None:
        _check_few_labels(match)
    named = [r for r in unused if _is_named_like_label(r.path, common, every_word)]
    named = _not_linked(tree, named, images)
    if has_labels and named:
        paths = first_few([role.path for role in named])
        match.notes.append(
            f"left out {plural(len(named), 'file')} named like labels: {paths}; --images GLOB "
            "--labels GLOB chooses files"
        )
    elif named and not match.problems:
        _check_unused(match, named, allow_missing=allow_missing)
    elif not (has_labels or allow_missing or match.problems):
        _look_at_unused(tree, match, _not_linked(tree, unused, images))


def _check_unused(match: LayoutMatch, unused: Sequence[FileRole], *, allow_missing: bool) -> None:
    """Add the problem, or a note, that no case has a label, but files are named like labels."""
    n_pictures = sum(is_picture(role.detail) for role in unused)
    if n_pictures < len(match.cases):  # some snapshots
        unused = [role for role in unused if not is_picture(role.detail)]
    if not unused:
        return
    names = [f"{r.path} ({r.detail})" if r.role == "not read" else r.path for r in unused]
    text = f"{plural(len(unused), 'file')} named like labels: {first_few(names)}"
    if allow_missing:
        match.notes.append(f"left out {text}")
    else:
        match.problems.append(
            f"no case has a label, which would leave out {text}; {NAME_THEM}, or use "
            "--allow_missing_labels"
        )


def _look_at_unused(tree: FileTree, match: LayoutMatch, unused: Sequence[FileRole]) -> None:
    """Add the problem that no case has a label, but a file that is left out is a label map.

    Of the files with one reason, the smallest is looked at.
    """
    from dask_slicer.core.labels import looks_like_labels
    from dask_slicer.inputs.readers import read_voxels

    paths = [tree.root / role.path for role in unused if role.role == "left out"]
    why = {tree.root / role.path: role.detail for role in unused}
    smallest: dict[str, Path] = {}
    for path in sorted(filter(Path.is_file, paths), key=lambda path: path.stat().st_size):
        smallest.setdefault(why[path], path)
    for path in list(smallest.values())[:_MOST_LOOKS]:
        with suppress(CaseError):
            if looks_like_labels(read_voxels(os.fspath(path))[1]):
                match.problems.append(
                    f"no case has a label, which would leave out {path.relative_to(tree.root)}, a "
                    f"label map by its voxels ({why[path]}); {NAME_THEM}, or use "
                    "--allow_missing_labels"
                )
                return


def _check_few_labels(match: LayoutMatch) -> None:
    """Add the problem of labels of few cases whose names images have, too, such as ct_roi."""
    labels = [r.path for r in match.files if r.role == "label"]
    few = 0 < 2 * len(labels) < len(match.cases) and match.layout == "a folder a case"
    if few and not any(label_words(words_of(path)) for path in labels):
        match.problems.append(
            f"{len(labels)} of {plural(len(match.cases), 'case')} have a label, by a word that "
            f"images have, too: {first_few(labels)}; choose the label with --label_name, or name "
            "the images with --images GLOB"
        )


def _check_images(
    match: LayoutMatch,
    images: dict[str, tuple[str, ...]],
    common: set[str],
    *,
    has_labels: bool,
) -> None:
    """Add the problem of images that are named like labels."""
    unsure = {case.case_id for case in match.cases if not (case.has_label or case.stated)}
    paths = [r.path for r in match.files if r.role == "image" and r.case_id in unsure]
    mistaken = _mistaken(paths, images, common)
    if not (mistaken or has_labels):
        mistaken = _labels_alone(paths, images, common)
    if mistaken:
        match.problems.append(
            f"{plural(len(mistaken), 'image')} without a label, but named like labels: "
            f"{first_few(mistaken)}; {NAME_THEM}"
        )


def _mistaken(
    paths: Sequence[str], images: dict[str, tuple[str, ...]], common: set[str]
) -> list[str]:
    """Return the images that a word for labels tells from other images."""
    # Numbers in names without such a word: volume-1 beside segmentation-1.
    numbers = {
        (depth, _numbers(part))
        for parts in images.values()
        for depth, part in enumerate(parts)
        if not label_words(words_of(part))
    }

    def counts(depth: int, part: str) -> bool:
        words = set(words_of(part))
        own = label_words(words) - common
        # A word and a number alone may be an id, such as msk_012.
        is_id = bool(_numbers(part)) and words == own and (depth, _numbers(part)) not in numbers
        return bool(own) and not is_id

    return [path for path in paths if any(counts(*part) for part in enumerate(images[path]))]


def _labels_alone(
    paths: Sequence[str], images: dict[str, tuple[str, ...]], common: set[str]
) -> list[str]:
    """Return images that all have a word for labels first or last in a name: labels alone."""
    if not label_words(common):
        return []

    def is_role(part: str) -> bool:
        words = words_of(part)
        # msk is the name of a hospital, too.
        return bool(label_words({*words[:1], *words[-1:]} & common - {"msk"}))

    return [path for path in paths if any(map(is_role, images[path]))]


def _is_named_like_label(path: str, common: Collection[str], of_images: Collection[str]) -> bool:
    """Return whether a file that is not used is named like a label, or its folder is."""
    for part in _components(path):
        words = words_of(part)
        if label_words(words) - NO_LABELS - set(common):
            return True
        # Words such as `tumor` count at the end, if no image has them.
        if words and words[-1] not in of_images and all_label_words(words[-1]) - NO_LABELS:
            return True
    return False


def _not_linked(
    tree: FileTree, roles: Sequence[FileRole], images: Collection[str]
) -> list[FileRole]:
    """Return the files that are no other name of an image, such as the target of a link."""
    if not roles:
        return []
    used = {os.path.realpath(tree.root / image) for image in images}
    return [role for role in roles if os.path.realpath(tree.root / role.path) not in used]


def _components(path: str) -> tuple[str, ...]:
    """Return the names of folders and file in a path, without names of BIDS subjects."""
    *folders, name = path.split("/")
    return tuple(_NO_WORDS.sub("", part) for part in (*folders, stem_of(name)))


def _numbers(name: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\d+", name))
