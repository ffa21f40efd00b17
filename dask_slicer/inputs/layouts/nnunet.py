"""nnU-Net raw datasets: imagesTr, labelsTr and dataset.json."""

from __future__ import annotations

from collections import Counter, defaultdict

from dask_slicer.inputs.case import split_channel, stem_of
from dask_slicer.inputs.layouts.base import (
    InputOptions,
    LayoutMatch,
    by_stem,
    held_out_note,
    read_description,
)
from dask_slicer.inputs.tree import FileTree
from dask_slicer.utils.formatting import first_few, plural


def match(tree: FileTree, options: InputOptions) -> LayoutMatch:
    """Match imagesTr/<case>_0000.nii.gz, one file for each modality, and labelsTr/<case>.nii.gz.

    A number at the end is that of a case, not of a channel, where each image has a label of its own
    full name: imagesTr/amos_0004.nii.gz and labelsTr/amos_0004.nii.gz.
    """
    result = LayoutMatch("nnU-Net raw")
    images = tree.within("imagesTr")
    result.seen = len(images)
    description = read_description(tree.root)
    names = description.get("channel_names", description.get("modality"))
    n_declared = len(names) if isinstance(names, dict) else 0
    is_paired = _is_paired(images, tree.within("labelsTr"), n_declared, result)
    cases_in = _by_name if is_paired else _by_channel
    channels = cases_in(images, result)
    if not any(0 in files for files in channels.values()):
        result.miss = (
            f"found {len(images)} NIfTI files in imagesTr, none ends in _0000.nii.gz"
            if images
            else "no NIfTI file in imagesTr"
        )
        return result
    n_channels = n_declared or 1 + max(max(files) for files in channels.values())
    result.reason = "imagesTr holds <case>_0000.nii.gz" + (
        f" to _{n_channels - 1:04d}" if n_channels > 1 else ""
    )
    if is_paired:
        result.reason = "imagesTr and labelsTr hold files of equal names"
    surplus = [path for files in channels.values() for n, path in files.items() if n >= n_channels]
    result.leave_out(surplus, "file", f"left out, dataset.json has {n_channels} channels")
    _add_cases(channels, n_channels, tree, "Tr", result)
    test_images = tree.within("imagesTs")
    if options.include_test:
        channels = cases_in(test_images, result)
        if channels:
            _add_cases(channels, n_channels, tree, "Ts", result, split="test")
        else:
            result.leave_out(tree.within("labelsTs"), "label", "without an image")
    elif test_images:
        result.notes.append(held_out_note(len(test_images)))
    return result


def _is_paired(images: list[str], labels: list[str], n_declared: int, result: LayoutMatch) -> bool:
    """Return whether images have labels of their own full names; a problem if only some do."""
    label_stems = {stem_of(_name(path)) for path in labels}
    unlike = [_name(path) for path in images if stem_of(_name(path)) not in label_stems]
    parts = [split_channel(_name(path)) for path in images]
    ids = Counter(part[0] for part in parts if part)
    by_channel = sorted(ids.keys() & label_stems)
    if len(images) - len(unlike) <= len(by_channel):
        return False
    first_channels = sorted(part[0] for part in parts if part and part[1] == 0 and ids[part[0]] > 1)
    why = None
    if unlike:
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
            f"of a name were not a channel, but there are {why}; name the files in a manifest"
        )
    return True


def _by_name(images: list[str], result: LayoutMatch) -> dict[str, dict[int, str]]:
    return {stem: {0: path} for stem, path in by_stem(images, result).items()}


def _by_channel(images: list[str], result: LayoutMatch) -> dict[str, dict[int, str]]:
    channels: defaultdict[str, dict[int, str]] = defaultdict(dict)
    unnumbered = []
    for path in images:
        parts = split_channel(_name(path))
        if parts is None:
            unnumbered.append(path)
            continue
        case_id, channel = parts
        if channel in channels[case_id]:
            result.problems.append(
                f"two files for one modality: {_name(channels[case_id][channel])} and {_name(path)}"
            )
        channels[case_id][channel] = path
    if channels:
        why = f"in {images[0].partition('/')[0]} left out, no _0000 in the name"
        result.leave_out(unnumbered, "file", why)
    return dict(channels)


def _add_cases(
    channels: dict[str, dict[int, str]],
    n_channels: int,
    tree: FileTree,
    part: str,
    result: LayoutMatch,
    *,
    split: str | None = None,
) -> None:
    """Add the cases of imagesTr or imagesTs, and note the labels that belong to none."""
    label_of = by_stem(tree.within(f"labels{part}"), result)
    for case_id, files in channels.items():
        # A missing channel keeps its place: planning then names the missing file.
        paths = [
            tree.absolute(files.get(channel, f"images{part}/{case_id}_{channel:04d}.nii.gz"))
            for channel in range(n_channels)
        ]
        label = label_of.get(case_id)
        label = None if label is None else tree.absolute(label)
        result.add_case(case_id, paths, label, split=split)
    unpaired = [label_of[case_id] for case_id in sorted(label_of.keys() - channels.keys())]
    result.leave_out(unpaired, "label", "without an image")


def _name(path: str) -> str:
    return path.rpartition("/")[2]
