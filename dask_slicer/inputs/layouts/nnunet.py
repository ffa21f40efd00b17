"""nnU-Net raw datasets: imagesTr, labelsTr and dataset.json."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.case import is_volume_name, name_of, relative_path, split_channel, stem_of
from dask_slicer.inputs.layouts.base import (
    FOR_TESTING,
    InputOptions,
    LayoutMatch,
    by_stem,
    held_out_note,
    read_description,
)
from dask_slicer.inputs.layouts.description import channel_names, entries_of, label_names
from dask_slicer.inputs.listed_paths import ListedPaths
from dask_slicer.inputs.tree import FileTree
from dask_slicer.utils.formatting import first_few, plural

# More files of one case without a label may be those of patients with numbers.
_USUAL_CHANNELS = 4
_Pair = tuple[str, str | None]  # image and label


def match(tree: FileTree, options: InputOptions) -> LayoutMatch:
    """Match imagesTr/<case>_0000.nii.gz, one file for each modality, and labelsTr/<case>.nii.gz.

    A number at the end is that of a case, not of a channel, where each image has a label of its own
    full name: imagesTr/amos_0004.nii.gz and labelsTr/amos_0004.nii.gz.
    """
    result = LayoutMatch("nnU-Net raw")
    description = read_description(tree.root)
    listed = _listed(tree, description)
    folder = _folder_of(tree, listed)
    ending = _file_ending(description)
    images = _with_ending(tree.within(folder), ending, result)
    labels_tr = _with_ending(tree.within("labelsTr"), ending, result)
    names = description.get("channel_names", description.get("modality"))
    n_declared = len(names) if isinstance(names, dict) else 0
    is_paired = _is_paired(images, labels_tr, n_declared, result)
    cases_in = _by_name if is_paired else _by_channel
    channels = cases_in(images, result)
    if not any(0 in files for files in channels.values()):
        _refuse_named_modalities(images, labels_tr)
        _explain_miss(tree, images, ending, result)
        return result
    n_channels = n_declared or 1 + max(max(files) for files in channels.values())
    result.reason = f"{folder} holds <case>_0000.nii.gz" + (
        f" to _{n_channels - 1:04d}" if n_channels > 1 else ""
    )
    if is_paired:
        result.reason = "imagesTr and labelsTr hold files of equal names"
    surplus = [path for files in channels.values() for n, path in files.items() if n >= n_channels]
    result.leave_out(surplus, "file", f"left out, dataset.json has {plural(n_channels, 'channel')}")
    if listed:
        _keep_listed(channels, listed, result)
    if not channels:
        result.miss = f"no image in {folder} is one of those that dataset.json lists"
        return result
    label_of = {case_id: label for case_id, (_, label) in listed.items() if label}
    label_of = label_of or _by_case(labels_tr, channels, tree, result)
    # As AMOS calls its images for validation.
    split = "train" if tree.within("imagesVa") and options.splits is None else None
    add_cases = partial(_add_cases, n_channels, ending or ".nii.gz", tree, result)
    add_cases(folder, channels, label_of, split=split)
    parts = {"Va": split and "val"} | ({"Ts": "test"} if options.include_test else {})
    for part, part_split in parts.items():
        folder = f"images{part}"
        channels = cases_in(_with_ending(tree.within(folder), ending, result), result)
        labels = _with_ending(tree.within(f"labels{part}"), ending, result)
        label_of = _by_case(labels, channels, tree, result)
        add_cases(folder, channels, label_of, split=part_split)
    if n_channels > n_declared and options.layout is None:
        _doubt_one_case(result)
    _leave_out_rest(tree, labels_tr, options, result, is_listed=bool(listed))
    _set_names(description, n_channels, result)
    return result


def _leave_out_rest(
    tree: FileTree,
    labels: list[str],
    options: InputOptions,
    result: LayoutMatch,
    *,
    is_listed: bool,
) -> None:
    """Leave out images for testing, and labels for training that dataset.json does not list."""
    if not options.include_test and (held_out := tree.within("imagesTs")):
        result.left_out.update(dict.fromkeys([*held_out, *tree.within("labelsTs")], FOR_TESTING))
        result.notes.append(held_out_note(len(held_out)))
    if is_listed:
        unlisted = set(labels).intersection(result.unused(tree))
        result.leave_out(sorted(unlisted), "label", "left out, not in dataset.json")


def _set_names(description: Mapping[str, Any], n_channels: int, result: LayoutMatch) -> None:
    names = channel_names(description)
    result.channel_names = names if len(names) == n_channels else ()
    result.label_names = label_names(description, "dataset.json", result.notes)


def _listed(tree: FileTree, description: Mapping[str, Any]) -> dict[str, _Pair]:
    """Return the training pairs of version 1 of nnU-Net, with absolute paths, by case id."""
    paths = ListedPaths(tree.root / "dataset.json")
    pairs = {}
    for entry in entries_of(description, "training", "dataset.json"):
        image = paths.find(entry.images[0])
        if is_volume_name(Path(image).name):  # else a list of case ids
            label = paths.find(entry.label) if entry.label else None
            pairs[stem_of(Path(image).name)] = (image, label)
    return pairs


def _folder_of(tree: FileTree, listed: Mapping[str, _Pair]) -> str:
    """Return the folder of the images for training, relative to the dataset."""
    folders = sorted({relative_path(Path(image).parent, tree.root) for image, _ in listed.values()})
    if len(folders) > 1 or any(name.startswith("..") or Path(name).anchor for name in folders):
        raise DatasetError(
            "dataset.json lists images without their channels (_0000) in several folders, or "
            f"outside of {tree.root}: {first_few(folders)}; name the files in a manifest"
        )
    return folders[0] if folders else "imagesTr"


def _file_ending(description: Mapping[str, Any]) -> str | None:
    """Return the suffix that dataset.json gives, with its dot; None if it gives none."""
    ending = description.get("file_ending")
    return f".{ending.lower().lstrip('.')}" if isinstance(ending, str) and ending else None


def _with_ending(paths: list[str], ending: str | None, result: LayoutMatch) -> list[str]:
    """Return the paths with the suffix that dataset.json gives, and note the others."""
    if ending is None or not paths:
        return paths
    others = [path for path in paths if not path.lower().endswith(ending)]
    if len(others) == len(paths):
        folder = paths[0].rpartition("/")[0]
        result.notes.append(
            f"file_ending in dataset.json is {ending}, but no file in {folder} ends so; all are "
            "used"
        )
        return paths
    result.leave_out(others, "file", f"left out, file_ending in dataset.json is {ending}")
    return [path for path in paths if path.lower().endswith(ending)]


def _explain_miss(
    tree: FileTree, images: list[str], ending: str | None, result: LayoutMatch
) -> None:
    """Say what imagesTr lacks."""
    result.seen = len(images)
    result.miss = "no NIfTI file in imagesTr"
    if images:
        result.miss = f"found {len(images)} NIfTI files in imagesTr, none ends in _0000.nii.gz"
    elif ending and not is_volume_name(f"x{ending}"):
        paths = [path.lower() for path in tree.paths if path.startswith("imagesTr/")]
        result.seen = sum(path.endswith(ending) for path in paths)
        result.miss = f"file_ending in dataset.json is {ending}, a suffix that no reader reads"


def _refuse_named_modalities(images: list[str], labels: list[str]) -> None:
    """Raise DatasetError if each label has several images whose names begin with its own."""
    stems = [stem_of(name_of(path)) for path in images]
    endings: Counter[str] = Counter()
    n_labels = 0
    for label in (stem_of(name_of(path)) for path in labels):
        own = [stem[len(label) :] for stem in stems if stem.startswith((f"{label}_", f"{label}-"))]
        n_labels += len(own) > 1
        endings.update(own)
    usual = sorted(ending for ending, count in endings.items() if 2 * count >= n_labels)
    if n_labels and len(usual) > 1:
        suffix = name_of(images[0])[len(stems[0]) :]
        patterns = " ".join(f"--images 'imagesTr/*{ending}{suffix}'" for ending in usual)
        label_suffix = name_of(labels[0])[len(stem_of(name_of(labels[0]))) :]
        raise DatasetError(
            f"imagesTr holds several images for a label, such as {first_few(images)}, and their "
            f"names do not number the modalities (_0000); name them: {patterns} "
            f"--labels 'labelsTr/*{label_suffix}'"
        )


def _doubt_one_case(result: LayoutMatch) -> None:
    """Note a single case without a label, whose channels may be patients; many are a problem."""
    case = result.cases[0]
    if len(case.images) > 1 and not (len(result.cases) > 1 or case.has_label):
        (result.problems if len(case.images) > _USUAL_CHANNELS else result.notes).append(
            f"{first_few([Path(path).name for path in case.images])}: channels of one case "
            "(--layout nnunet), or a case each (--images 'imagesTr/*')?"
        )


def _keep_listed(
    channels: dict[str, dict[int, str]], listed: Mapping[str, _Pair], result: LayoutMatch
) -> None:
    """Take out cases that dataset.json does not list, and note those that it lists in vain."""
    unlisted = sorted(channels.keys() - listed.keys())
    paths = [path for case_id in unlisted for path in channels.pop(case_id).values()]
    result.leave_out(paths, "image", "left out, not in dataset.json")
    if missing := sorted(listed.keys() - channels.keys()):
        result.notes.append(
            f"{plural(len(missing), 'case')} in dataset.json without an image: {first_few(missing)}"
        )


def _by_case(
    labels: list[str],
    channels: Mapping[str, Mapping[int, str]],
    tree: FileTree,
    result: LayoutMatch,
) -> dict[str, str]:
    """Return the labels of cases by their ids, and note those that belong to none."""
    if not channels:
        result.leave_out(labels, "label", "without an image")
        return {}
    label_of = by_stem(labels, result)
    if not label_of.keys() & channels.keys():  # perhaps named like the first channel
        label_of = {_first_channel_id(stem) or stem: path for stem, path in label_of.items()}
    unpaired = {name: path for name, path in label_of.items() if name not in channels}
    result.leave_out_labels(unpaired, channels)
    return {name: tree.absolute(path) for name, path in label_of.items() if name in channels}


def _first_channel_id(stem: str) -> str | None:
    """Return the case id if a name ends in _0000."""
    parts = split_channel(stem)
    return parts[0] if parts and parts[1] == 0 else None


def _is_paired(images: list[str], labels: list[str], n_declared: int, result: LayoutMatch) -> bool:
    """Return whether images have labels of their own full names; a problem if only some do."""
    label_stems = {stem_of(name_of(path)) for path in labels}
    unlike = [name_of(path) for path in images if stem_of(name_of(path)) not in label_stems]
    parts = [split_channel(name_of(path)) for path in images]
    ids = Counter(part[0] for part in parts if part)
    by_channel = sorted(ids.keys() & label_stems)
    if len(images) - len(unlike) <= len(by_channel):
        return False
    several = [name for name, n_images in ids.items() if n_images > 1]
    # Channels, where labels are named like the first one of their case.
    named_first = all(_first_channel_id(stem) in ids for stem in label_stems)
    if named_first and not by_channel and several and (len(several) > 1 or n_declared > 1):
        return False
    first_channels = sorted(part[0] for part in parts if part and part[1] == 0 and ids[part[0]] > 1)
    why = None
    if unlike and any(part is None or part[1] > 0 for part in parts):
        why = f"{plural(len(unlike), 'image')} without one: {first_few(unlike)}"
    elif by_channel:
        why = f"labels that fit names without the number, too: {first_few(by_channel)}"
    elif first_channels:
        why = f"names with _0000 and other numbers: {first_few(first_channels)}"
    elif n_declared > 1:
        why = f"{n_declared} channels in dataset.json"
    if why:
        result.problems.append(
            "images in imagesTr have labels of their own full names, as if the number at the end "
            f"of a name were not a channel, but the dataset has {why}; name the files in a manifest"
        )
    return True


def _by_name(images: list[str], result: LayoutMatch) -> dict[str, dict[int, str]]:
    return {stem: {0: path} for stem, path in by_stem(images, result).items()}


def _by_channel(images: list[str], result: LayoutMatch) -> dict[str, dict[int, str]]:
    channels: defaultdict[str, dict[int, str]] = defaultdict(dict)
    unnumbered = []
    for path in images:
        parts = split_channel(name_of(path))
        if parts is None:
            unnumbered.append(path)
            continue
        case_id, channel = parts
        if channel in channels[case_id]:
            other = channels[case_id][channel]
            result.problems.append(
                f"two files for one modality: {name_of(other)} and {name_of(path)}"
            )
        channels[case_id][channel] = path
    if unnumbered:
        result.leave_out(unnumbered, "file", "left out, no _0000 in the name")
    return dict(channels)


def _add_cases(
    n_channels: int,
    ending: str,
    tree: FileTree,
    result: LayoutMatch,
    folder: str,
    channels: Mapping[str, Mapping[int, str]],
    label_of: Mapping[str, str],
    *,
    split: str | None = None,
) -> None:
    """Add the cases of a folder; a missing channel keeps its place: planning names the file."""
    for case_id, files in channels.items():
        paths = [
            tree.absolute(files.get(channel, f"{folder}/{case_id}_{channel:04d}{ending}"))
            for channel in range(n_channels)
        ]
        result.add_case(case_id, paths, label_of.get(case_id), split=split)
