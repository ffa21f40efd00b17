"""Two folders, one with images and one with labels, such as images/ and labels/."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from dask_slicer.inputs.case import name_of, stem_of
from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch, by_stem, unknown_name
from dask_slicer.inputs.layouts.split_folders import match_splits
from dask_slicer.inputs.pairing import choose_name, pair
from dask_slicer.inputs.role_words import (
    all_label_words,
    folder_role,
    held_out_split,
    label_words,
    may_be_case,
    says_only_its_role,
    words_of,
)
from dask_slicer.inputs.tree import FileTree
from dask_slicer.utils.formatting import first_few, plural


def match(tree: FileTree, options: InputOptions) -> LayoutMatch:
    """Match a folder of images, and one of labels if there is one; also in folders of splits.

    Files pair by `inputs.pairing`. Folders that differ in numbers only, such as ImagePart1 and
    ImagePart2, count as one.
    """
    return match_splits(tree, options, _match_folder) or _match_folder(tree, options)


def _match_folder(tree: FileTree, options: InputOptions) -> LayoutMatch:
    result = LayoutMatch("images/ and labels/")
    tops = [folder for folder in sorted(tree.by_folder) if folder and "/" not in folder]
    used = [folder for folder in tops if not held_out_split(folder)]
    # A folder is held out only beside others of its kind: test/ alone may be anything.
    held_out = sorted(filter(folder_role, set(tops) - set(used))) if used else []
    used = used or tops
    roles = {folder: folder_role(folder) for folder in used}
    labels = [folder for folder in used if roles[folder] == "label"]
    if labels and "image" in roles.values():  # a word such as manual counts beside both
        ends = {folder: "".join(words_of(folder)[-1:]) for folder in used if not roles[folder]}
        labels = sorted([*labels, *(folder for folder in ends if all_label_words(ends[folder]))])
    if any(may_be_case(folder, tree.within(folder)) for folder in labels):
        result.miss = f"{first_few(labels)} may be named for a case, not for labels"
        return result
    images = _image_folders(used, labels, tree)
    result.seen = sum(len(tree.within(folder)) for folder in images)
    if not images or (not labels and not says_only_its_role(images[0])):
        result.miss = "no folder that is named for images, such as images/, with a NIfTI file in it"
        return result
    if not labels and images == ["imagesTr"]:
        result.miss = "imagesTr has no folder of labels beside it"
        return result
    if options.label_name and labels:
        labels = _chosen_label(labels, options.label_name, tree, result)
    _refuse_other_folders(images, labels, sorted({*used} - {*images, *labels}), result)
    shown = ", ".join(f"{folder}/" for folder in images)
    _add_cases(images, labels[:1], tree, result)  # several are refused
    n_labels = sum(len(tree.within(folder)) for folder in labels)
    result.reason = f"{shown} has {plural(len(result.cases), 'volume')}" + (
        f", {', '.join(f'{folder}/' for folder in labels)} has {n_labels}, paired {result.reason}"
        if labels
        else ", and there is no folder of labels"
    )
    _heed_held_out(held_out, tree, options, result)
    return result


def _image_folders(folders: Sequence[str], labels: Sequence[str], tree: FileTree) -> list[str]:
    """Return the folders of images: by their names, else those of modalities or the only other.

    Only a folder with a name such as images/ may hold files that are named like labels.
    """
    images = [folder for folder in folders if folder_role(folder) == "image"]
    if not labels:
        return images if len(images) == 1 else []
    others = [folder for folder in folders if folder not in labels]
    modalities = [folder for folder in others if folder_role(folder) == "modality"]
    if not images and not modalities and all(map(says_only_its_role, labels)):
        images = others if len(others) == 1 else []  # else seg9/ may be a case
    images = images + modalities
    doubtful = [
        path for folder in images if not says_only_its_role(folder) for path in tree.within(folder)
    ]
    stems = (stem_of(name_of(path)) for path in doubtful)
    return [] if any(label_words(words_of(stem)) for stem in stems) else images


def _chosen_label(labels: list[str], name: str, tree: FileTree, result: LayoutMatch) -> list[str]:
    """Return the folder of labels that --label_name names; the others are left out."""
    chosen = choose_name(name, labels)
    if chosen is None:
        result.problems.append(unknown_name("label_name", name, labels))
        return labels
    for folder in labels:
        if folder != chosen:
            result.leave_out(tree.within(folder), "label", f"not in {chosen}/, the --label_name")
    return [chosen]


def _refuse_other_folders(
    images: Sequence[str], labels: Sequence[str], others: Sequence[str], result: LayoutMatch
) -> None:
    """Add the problem of several folders for one thing."""
    if len(labels) > 1:
        result.problems.append(
            f"{len(labels)} folders of labels: {', '.join(labels)}; choose one with "
            f"--label_name {labels[0]}"
        )
    kinds = {
        re.sub(r"\d+", "", folder) if folder_role(folder) == "image" else folder: folder
        for folder in images
    }
    if len(kinds) > 1:
        globs = " ".join(f"--images '{folder}/*'" for folder in kinds.values())
        result.problems.append(
            f"{len(kinds)} folders of images: {', '.join(kinds.values())}; are they modalities of "
            f"the same cases? say so with {globs} --labels '{labels[0]}/*', or name one of them"
        )
    if others and not labels:
        result.problems.append(
            f"{images[0]}/ has images; what is in {first_few(others)}? if labels, use --images "
            f"'{images[0]}/*' --labels '{others[0]}/*', else --images '{images[0]}/*'"
        )
    elif others:
        result.notes.append(f"left out the folders {first_few(others)}: no word for images, labels")


def _add_cases(
    images: Sequence[str],
    labels: Sequence[str],
    tree: FileTree,
    result: LayoutMatch,
    *,
    split: str | None = None,
) -> None:
    """Add a case for each image, with the label that pairs; the reason is the rule."""
    image_of_stem = by_stem([path for folder in images for path in tree.within(folder)], result)
    label_of_stem = by_stem([path for folder in labels for path in tree.within(folder)], result)
    pairing = pair(image_of_stem, label_of_stem)
    label_of = {image: label for label, image in pairing.image_of.items()}
    # Labels of nnU-Net lack the number of the first channel, so it is no part of the case id.
    first = "_0000" if any(image == f"{label}_0000" for image, label in label_of.items()) else ""
    for stem, path in image_of_stem.items():
        label = label_of.get(stem)
        result.add_case(
            stem.strip().removesuffix(first),
            [tree.absolute(path)],
            None if label is None else tree.absolute(label_of_stem[label]),
            split=split,
        )
    result.reason = pairing.rule
    unlike = [f"{image} and {label}" for image, label in sorted(label_of.items()) if image != label]
    if unlike:
        result.reason += f", such as {unlike[0]}"
    unpaired = sorted(label_of_stem.keys() - pairing.image_of.keys())
    if label_of_stem and not pairing.image_of:
        result.problems.append(
            f"no name in {labels[0]}/ ({first_few(unpaired)}) pairs with one in {images[0]}/ "
            f"({first_few(list(image_of_stem))}); say what varies with --images "
            f"'{images[0]}/…*.nii.gz' --labels '{labels[0]}/…*.nii.gz', or use a manifest"
        )
    result.leave_out_labels({stem: label_of_stem[stem] for stem in unpaired}, image_of_stem)


def _heed_held_out(
    folders: Sequence[str], tree: FileTree, options: InputOptions, result: LayoutMatch
) -> None:
    """Leave out the folders for testing and validation, or add the former to the test split."""
    by_split: defaultdict[str, list[str]] = defaultdict(list)
    for folder in folders:
        by_split[held_out_split(folder)].append(folder)
    for split, members in by_split.items():
        images = [folder for folder in members if folder_role(folder) != "label"]
        if split == "test" and options.include_test and images:
            labels = [folder for folder in members if folder_role(folder) == "label"]
            reason = result.reason
            _add_cases(images, labels, tree, result, split="test")
            result.reason = reason
            continue
        for folder in members:
            way = (
                "--include_test uses them for test"
                if split == "test"
                else "a manifest with a split may use them"
            )
            paths = tree.within(folder)
            noun = "label" if folder_role(folder) == "label" else "image"
            result.left_out.update(dict.fromkeys(paths, f"in {folder}; {way}"))
            result.notes.append(f"{plural(len(paths), noun)} in {folder} left out; {way}")
