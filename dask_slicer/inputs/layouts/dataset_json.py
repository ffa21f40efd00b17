"""Images that JSON lists: Decathlon, MONAI datalists, and the key `dataset` of nnU-Net."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import compress, takewhile
from pathlib import Path
from typing import Any

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.case import is_volume_name, stem_of
from dask_slicer.inputs.layouts.base import (
    FOR_TESTING,
    InputOptions,
    LayoutMatch,
    held_out_note,
    read_description,
    read_json,
)
from dask_slicer.inputs.layouts.description import (
    Entry,
    channel_names,
    entries_of,
    is_datalist,
    label_names,
    names_cases,
    unread_keys,
)
from dask_slicer.inputs.listed_paths import ListedPaths, exists
from dask_slicer.inputs.tree import FileTree
from dask_slicer.utils.formatting import plural

# Names of the layouts that this module recognises.
NAMES = ("Medical Segmentation Decathlon", "MONAI datalist", "nnU-Net dataset.json")
# So many JSON files in a folder are looked at to name a datalist that is not called dataset.json.
_MOST_JSON_FILES = 8


def match(tree: FileTree, options: InputOptions) -> LayoutMatch:
    """Match a dataset.json that lists images."""
    content = read_description(tree.root)
    if is_datalist(content):
        return read_datalist(tree, "dataset.json", content, options)
    result = LayoutMatch(NAMES[0])
    result.miss = "no dataset.json with `training` pairs of image and label"
    if datalists := _other_datalists(tree):
        result.seen = max(len(tree.volumes), 1)
        result.layout, result.miss = (
            "a datalist",
            f"--input_dir {tree.absolute(datalists[0])} reads it",
        )
    return result


def datalist_in(path: Path) -> Mapping[str, Any] | None:
    """Return the content of a JSON file that lists images, None if it is another file."""
    try:
        content = read_json(path)
    except DatasetError:
        return None
    return content if is_datalist(content) else None


def read_datalist(
    tree: FileTree, name: str, content: Mapping[str, Any], options: InputOptions
) -> LayoutMatch:
    """Return the cases that a file in the root of a tree lists; paths are relative to the root."""
    result = LayoutMatch(_layout(name, content))
    training = entries_of(content, "training", name)
    validation = entries_of(content, "validation", name)
    paths = ListedPaths(tree.root / name)
    listed = [*training, *validation]
    if not any(exists(paths.find(image)) for entry in listed for image in entry.images):
        images = [paths.find(image) for entry in listed for image in entry.images]
        _explain_miss(tree, name, images, result)
        return result
    result.reason = f"{name} lists {plural(len(training), 'training pair')}" + (
        f" and {len(validation)} for validation" if validation else ""
    )
    _check_keys(name, content, listed, result)
    splits = _splits(name, training, validation, options, result)
    _add_cases(listed, splits, paths, result)
    _set_names(name, content, result)
    _add_test(name, content, options, paths, result, tree)
    extra = result.unused(tree)
    result.leave_out(extra, "volume", f"left out, not in {name}")
    return result


def _layout(name: str, content: Mapping[str, Any]) -> str:
    decathlon, monai, nnunet = NAMES
    if names_cases(content):
        return nnunet
    return decathlon if name == "dataset.json" else monai


def _other_datalists(tree: FileTree) -> list[str]:
    names = [path for path in tree.paths if path.endswith(".json") and "/" not in path]
    if len(names) > _MOST_JSON_FILES:
        return []
    return [name for name in names if datalist_in(tree.root / name) is not None]


def _explain_miss(tree: FileTree, name: str, images: list[str], result: LayoutMatch) -> None:
    """Say why no listed image is there; raise DatasetError unless another layout may fit."""
    if not images:
        result.miss = f"{name} lists no image for training"
        return
    result.seen = len(images)
    result.miss = f"none of the {len(images)} images that {name} lists exists"
    # Version 1 of nnU-Net lists images without their channels.
    by_channel = any(exists(first_channel(path)) for path in images)
    if tree.volumes and not by_channel and any(is_volume_name(Path(path).name) for path in images):
        raise DatasetError(
            f"{result.miss}, such as {images[0]}; correct {name}, or choose another layout with "
            "--layout"
        )


def first_channel(path: str) -> str:
    """Return the file of the first channel of an image that nnU-Net lists.

    >>> first_channel("imagesTr/liver_7.nii.gz")
    'imagesTr/liver_7_0000.nii.gz'
    """
    folder, file = os.path.split(path)
    stem = stem_of(file)
    return os.path.join(folder, f"{stem}_0000{file[len(stem) :]}")


def _check_keys(
    name: str, content: Mapping[str, Any], listed: Sequence[Entry], result: LayoutMatch
) -> None:
    """Report what lists images or labels under a key that is not read."""
    if unread := unread_keys(content):
        result.problems.append(
            f"{name} lists images under {', '.join(unread)}, which is not read; remove it, or "
            "call it training, validation or test"
        )
    others = dict.fromkeys(key for entry in listed for key in entry.others)
    if not others:
        return
    text = f"entries of {name} name files under {', '.join(others)}, which is not read"
    if all(entry.label for entry in listed if entry.others):
        result.notes.append(text)
    else:
        result.problems.append(f"{text}; call it label or image, or name the files in a manifest")


def _splits(
    name: str,
    training: Sequence[Entry],
    validation: Sequence[Entry],
    options: InputOptions,
    result: LayoutMatch,
) -> list[str | None]:
    """Return the splits that a datalist gives to its training and validation entries."""
    folds = sorted({entry.fold for entry in training if entry.fold})
    fold = options.datalist_fold
    if fold is not None:
        if options.splits is not None or validation:
            other = "--splits" if options.splits is not None else f"the validation list of {name}"
            result.problems.append(f"--datalist_fold and {other} both choose cases for validation")
        if str(fold) not in folds:
            known = f"it has {', '.join(folds)}" if folds else "it has none"
            raise DatasetError(f"{name} has no entry with fold {fold}; {known}")
        return [
            *("val" if entry.fold == str(fold) else "train" for entry in training),
            *("val" for _ in validation),
        ]
    if folds:
        result.notes.append(
            f"{name} gives folds ({', '.join(folds)}), which are not used; "
            "--datalist_fold N takes fold N for validation"
        )
    if validation and options.splits is None:
        return [*("train" for _ in training), *("val" for _ in validation)]
    return [None] * (len(training) + len(validation))


def _add_cases(
    entries: Sequence[Entry],
    splits: Sequence[str | None],
    paths: ListedPaths,
    result: LayoutMatch,
) -> None:
    for entry, case_id, split in zip(entries, case_ids(entries), splits, strict=True):
        images = [paths.find(image) for image in entry.images]
        label = paths.find(entry.label) if entry.label else None
        columns = entry.columns
        result.add_case(case_id, images, label, split=split, stated=True, columns=columns)


def case_ids(entries: Sequence[Entry]) -> list[str]:
    """Return the ids of cases: names of images, or what differs in their paths.

    >>> case_ids([Entry(images=("a/x.nii.gz",)), Entry(images=("a/y.nii.gz",))])
    ['x', 'y']
    >>> case_ids([Entry(images=("data/a/ct.nii",)), Entry(images=("data/b/ct.nii",))])
    ['a', 'b']
    """
    ids = [
        entry.case_id or _common_name(entry) or (_folders(entry) or [""])[-1] for entry in entries
    ]
    if len(set(map(str.casefold, ids))) == len(ids):
        return ids
    names = [[*_folders(entry), *filter(None, [_common_name(entry)])] for entry in entries]
    if len({len(parts) for parts in names}) == 1:
        varying = [len(set(parts)) > 1 for parts in zip(*names, strict=True)]
        names = [list(compress(parts, varying)) or parts for parts in names]
    return ["_".join(parts) for parts in names]


def _common_name(entry: Entry) -> str:
    """Return the name of an image, or what the names of several begin with."""
    stems = [stem_of(image.replace("\\", "/").rpartition("/")[2]).strip() for image in entry.images]
    if len(set(stems)) == 1:
        return stems[0]
    # Up to the last punctuation: x_t of x_t1 and x_t2 is x.
    letters = takewhile(lambda column: len(set(column)) == 1, zip(*stems, strict=False))
    prefix = "".join(letter for letter, *_ in letters)
    return re.sub(r"[^_\-. ]*$", "", prefix).strip("_-. ")


def _folders(entry: Entry) -> list[str]:
    """Return the names of the folders that an image is in."""
    *folders, _ = entry.images[0].replace("\\", "/").split("/")
    return [folder.strip() for folder in folders if folder.strip(". ")]


def _set_names(name: str, content: Mapping[str, Any], result: LayoutMatch) -> None:
    """Set the names of channels and labels, and what the volumes of 4D images are."""
    names = channel_names(content)
    (n_images, _), *_ = Counter(len(case.images) for case in result.cases).most_common(1)
    if n_images == 1 < len(names):
        result.volumes = "channels"
    if len(names) == n_images or result.volumes:
        result.channel_names = names
    result.label_names = label_names(content, name, result.notes)


def _add_test(
    name: str,
    content: Mapping[str, Any],
    options: InputOptions,
    paths: ListedPaths,
    result: LayoutMatch,
    tree: FileTree,
) -> None:
    """Add the images for testing, or leave them out with a note."""
    try:
        entries = entries_of(content, "test", name)
    except DatasetError as error:
        if options.include_test:
            raise
        result.notes.append(f"images for testing left out: {error}")
        return
    if options.include_test:
        _add_cases(entries, ["test"] * len(entries), paths, result)
    elif entries:
        held_out = {file for entry in entries for file in (*entry.images, entry.label or "")}
        absolute = set(map(paths.find, held_out))
        unused = [path for path in result.unused(tree) if tree.absolute(path) in absolute]
        result.left_out.update(dict.fromkeys(unused, FOR_TESTING))
        where = f"that {name} lists for testing"
        result.notes.append(held_out_note(len(entries), where))
