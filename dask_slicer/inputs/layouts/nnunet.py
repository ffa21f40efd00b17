"""nnU-Net raw datasets: imagesTr, labelsTr and dataset.json."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from dask_slicer.inputs.case import Case, split_channel
from dask_slicer.inputs.layouts.base import (
    LayoutMatch,
    by_stem,
    held_out_note,
    note_orphans,
    optional_text,
    read_json,
    volume_files,
)
from dask_slicer.utils.formatting import first_few, plural


def match(root: Path, *, include_test: bool) -> LayoutMatch:
    """Match imagesTr/<case>_0000.nii.gz, one file for each modality, and labelsTr/<case>.nii.gz."""
    result = LayoutMatch("nnU-Net raw")
    images = volume_files(root / "imagesTr")
    result.seen = len(images)
    channels = _by_channel(images, result)
    if not any(0 in files for files in channels.values()):
        result.miss = (
            f"found {len(images)} NIfTI files in imagesTr, none ends in _0000.nii.gz"
            if images
            else "no NIfTI file in imagesTr"
        )
        return result
    n_channels = _declared_channels(root) or 1 + max(max(files) for files in channels.values())
    labels = by_stem(volume_files(root / "labelsTr"), result)
    result.reason = "imagesTr holds <case>_0000.nii.gz" + (
        f" to _{n_channels - 1:04d}" if n_channels > 1 else ""
    )
    result.cases = _nnunet_cases(channels, labels, root / "imagesTr", n_channels)
    surplus = [
        path.name for files in channels.values() for n, path in files.items() if n >= n_channels
    ]
    if surplus:
        result.notes.append(
            f"{plural(len(surplus), 'file')} left out, dataset.json has {n_channels} channels: "
            f"{first_few(surplus)}"
        )
    note_orphans(labels, channels, result)
    test_images = volume_files(root / "imagesTs")
    test_channels = _by_channel(test_images, result) if include_test else {}
    if test_channels:
        test_labels = by_stem(volume_files(root / "labelsTs"), result)
        result.cases += _nnunet_cases(
            test_channels, test_labels, root / "imagesTs", n_channels, split="test"
        )
    elif test_images and not include_test:
        result.notes.append(held_out_note(len(test_images)))
    return result


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
    if unnumbered and channels:
        result.notes.append(
            f"{plural(len(unnumbered), 'file')} in {images[0].parent.name} left out, no _0000 in "
            f"the name: {first_few(unnumbered)}"
        )
    return dict(channels)


def _nnunet_cases(
    channels: dict[str, dict[int, Path]],
    labels: dict[str, Path],
    folder: Path,
    n_channels: int,
    *,
    split: str | None = None,
) -> list[Case]:
    # A missing channel keeps its place: planning then names the missing file.
    return [
        Case(
            case_id=case_id,
            images=tuple(
                str(files.get(channel, folder / f"{case_id}_{channel:04d}.nii.gz"))
                for channel in range(n_channels)
            ),
            label=optional_text(labels.get(case_id)),
            split=split,
        )
        for case_id, files in channels.items()
    ]


def _declared_channels(root: Path) -> int | None:
    description = read_json(root / "dataset.json")
    if isinstance(description, dict):
        names = description.get("channel_names", description.get("modality"))
        if isinstance(names, dict) and names:
            return len(names)
    return None
