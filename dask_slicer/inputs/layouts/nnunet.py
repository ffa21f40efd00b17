"""nnU-Net raw datasets: imagesTr, labelsTr and dataset.json."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from dask_slicer.inputs.case import split_channel, stem_of
from dask_slicer.inputs.layouts.base import (
    LayoutMatch,
    by_stem,
    held_out_note,
    read_description,
    volume_files,
)
from dask_slicer.utils.formatting import first_few, plural


def match(root: Path, *, include_test: bool) -> LayoutMatch:
    """Match imagesTr/<case>_0000.nii.gz, one file for each modality, and labelsTr/<case>.nii.gz.

    A number at the end is that of a case, not of a channel, where each image has a label of its own
    full name: imagesTr/amos_0004.nii.gz and labelsTr/amos_0004.nii.gz.
    """
    result = LayoutMatch("nnU-Net raw")
    images = volume_files(root / "imagesTr")
    result.seen = len(images)
    description = read_description(root)
    names = description.get("channel_names", description.get("modality"))
    n_declared = len(names) if isinstance(names, dict) else 0
    is_paired = _is_paired(images, volume_files(root / "labelsTr"), n_declared, result)
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
    surplus = [
        path.name for files in channels.values() for n, path in files.items() if n >= n_channels
    ]
    result.note_files(surplus, "file", f"left out, dataset.json has {n_channels} channels")
    _add_cases(channels, n_channels, root / "imagesTr", root / "labelsTr", result)
    test_images = volume_files(root / "imagesTs")
    if include_test:
        channels = cases_in(test_images, result)
        labels = root / "labelsTs"
        if channels:
            _add_cases(channels, n_channels, root / "imagesTs", labels, result, split="test")
        unpaired = [] if channels else [path.name for path in volume_files(labels)]
        result.note_files(unpaired, "label", "without an image")
    elif test_images:
        result.notes.append(held_out_note(len(test_images)))
    return result


def _is_paired(
    images: list[Path], labels: list[Path], n_declared: int, result: LayoutMatch
) -> bool:
    """Return whether images have labels of their own full names; a problem if only some do."""
    label_stems = {stem_of(path.name) for path in labels}
    unlike = [path.name for path in images if stem_of(path.name) not in label_stems]
    parts = [split_channel(path.name) for path in images]
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


def _by_name(images: list[Path], result: LayoutMatch) -> dict[str, dict[int, Path]]:
    return {stem: {0: path} for stem, path in by_stem(images, result).items()}


def _by_channel(images: list[Path], result: LayoutMatch) -> dict[str, dict[int, Path]]:
    channels: defaultdict[str, dict[int, Path]] = defaultdict(dict)
    unnumbered = []
    for path in images:
        parts = split_channel(path.name)
        if parts is None:
            unnumbered.append(path.name)
            continue
        case_id, channel = parts
        if channel in channels[case_id]:
            result.problems.append(
                f"two files for one modality: {channels[case_id][channel].name} and {path.name}"
            )
        channels[case_id][channel] = path
    if channels:
        why = f"in {images[0].parent.name} left out, no _0000 in the name"
        result.note_files(unnumbered, "file", why)
    return dict(channels)


def _add_cases(
    channels: dict[str, dict[int, Path]],
    n_channels: int,
    images: Path,
    labels: Path,
    result: LayoutMatch,
    *,
    split: str | None = None,
) -> None:
    """Add the cases of a folder of images, and note the labels that belong to none."""
    label_of = by_stem(volume_files(labels), result)
    for case_id, files in channels.items():
        # A missing channel keeps its place: planning then names the missing file.
        paths = [
            files.get(channel, images / f"{case_id}_{channel:04d}.nii.gz")
            for channel in range(n_channels)
        ]
        result.add_case(case_id, paths, label_of.get(case_id), split=split)
    result.note_files(sorted(label_of.keys() - channels.keys()), "label", "without an image")
