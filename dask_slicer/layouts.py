"""How folders of scans are laid out: one recogniser for each layout in use.

A recogniser returns the cases it found, or how near it came, and what it missed.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dask_slicer.cases import Case, is_nifti_name, split_channel, stem_of
from dask_slicer.errors import DatasetError
from dask_slicer.words import count, some

_LABEL_WORDS = {"label", "labels", "seg", "segmentation", "mask", "gt", "dseg"}
# BIDS entities that derivatives add to those of the scan.
_DERIVED = {"atlas", "den", "desc", "label", "res", "seg", "space"}


@dataclass(slots=True)
class Finding:
    """What one recogniser says: cases, or how near it was (volumes seen) and what it missed."""

    layout: str
    reason: str = ""
    cases: list[Case] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seen: int = 0
    miss: str = ""


# -- nnU-Net raw -----------------------------------------------------------------------------------


def nnunet_raw(root: Path, include_test: bool) -> Finding:
    """Recognise imagesTr/<case>_0000.nii.gz, one file a modality; labelsTr/<case>.nii.gz."""
    finding = Finding("nnU-Net raw")
    images = _volumes(root / "imagesTr")
    finding.seen = len(images)
    channels = _by_channel(images, finding)
    if not any(0 in found for found in channels.values()):
        finding.miss = (
            f"found {len(images)} NIfTI files in imagesTr, none ends in _0000.nii.gz"
            if images
            else "no NIfTI file in imagesTr"
        )
        return finding
    n_channels = _declared_channels(root) or 1 + max(max(found) for found in channels.values())
    labels = _by_stem(_volumes(root / "labelsTr"), finding)
    finding.reason = "imagesTr holds <case>_0000.nii.gz" + (
        f" to _{n_channels - 1:04d}" if n_channels > 1 else ""
    )
    finding.cases = _nnunet_cases(channels, labels, root / "imagesTr", n_channels)
    surplus = [
        path.name for found in channels.values() for n, path in found.items() if n >= n_channels
    ]
    if surplus:
        finding.notes.append(
            f"{count(len(surplus), 'file')} left out, dataset.json has {n_channels} channels: "
            f"{some(surplus)}"
        )
    _note_orphans(labels, channels, finding)
    test_images = _volumes(root / "imagesTs")
    test_channels = _by_channel(test_images, finding) if include_test else {}
    if test_channels:
        test_labels = _by_stem(_volumes(root / "labelsTs"), finding)
        finding.cases += _nnunet_cases(
            test_channels, test_labels, root / "imagesTs", n_channels, split="test"
        )
    elif test_images and not include_test:
        finding.notes.append(_left_out(len(test_images)))
    return finding


def _by_channel(images: list[Path], finding: Finding) -> dict[str, dict[int, Path]]:
    channels: defaultdict[str, dict[int, Path]] = defaultdict(dict)
    odd = []
    for path in images:
        found = split_channel(path.name)
        if found is None:
            odd.append(path.name)
            continue
        case_id, channel = found
        if channel in channels[case_id]:
            finding.problems.append(
                f"two files for one modality: {channels[case_id][channel].name} and {path.name}"
            )
        channels[case_id][channel] = path
    if odd and channels:
        finding.notes.append(
            f"{count(len(odd), 'file')} in {images[0].parent.name} left out, no _0000 in the name: "
            f"{some(odd)}"
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
    # A channel that is not there keeps its place: reading it will name the file that is missing.
    return [
        Case(
            case_id=case_id,
            images=tuple(
                str(found.get(channel, folder / f"{case_id}_{channel:04d}.nii.gz"))
                for channel in range(n_channels)
            ),
            label=_text(labels.get(case_id)),
            split=split,
        )
        for case_id, found in channels.items()
    ]


def _declared_channels(root: Path) -> int | None:
    description = _read_json(root / "dataset.json")
    if isinstance(description, dict):
        names = description.get("channel_names", description.get("modality"))
        if isinstance(names, dict) and names:
            return len(names)
    return None


# -- Medical Segmentation Decathlon ----------------------------------------------------------------


def decathlon(root: Path, include_test: bool) -> Finding:
    """Recognise dataset.json with `training` pairs of image and label."""
    finding = Finding("Medical Segmentation Decathlon")
    description = _read_json(root / "dataset.json")
    pairs = description.get("training") if isinstance(description, dict) else None
    if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        finding.miss = "no dataset.json with `training` pairs of image and label"
        return finding
    if not any((root / pair["image"]).exists() for pair in pairs):
        finding.miss = f"none of the {len(pairs)} images that dataset.json lists exists"
        return finding
    finding.reason = f"dataset.json lists {len(pairs)} training pairs"
    for pair in pairs:
        label = pair.get("label")
        finding.cases.append(
            Case(
                case_id=stem_of(Path(pair["image"]).name),
                images=(os.path.normpath(root / pair["image"]),),
                label=os.path.normpath(root / label) if label else None,
            )
        )
    unlabelled = [path for path in description.get("test") or () if isinstance(path, str)]
    if include_test:
        finding.cases += [
            Case(
                case_id=stem_of(Path(path).name),
                images=(os.path.normpath(root / path),),
                split="test",
            )
            for path in unlabelled
        ]
    elif unlabelled:
        finding.notes.append(_left_out(len(unlabelled)))
    listed = {case.images[0] for case in finding.cases}
    extra = [path.name for path in _volumes(root / "imagesTr") if str(path) not in listed]
    if extra:
        finding.notes.append(
            f"{count(len(extra), 'image')} in imagesTr not in dataset.json, left out: {some(extra)}"
        )
    return finding


def _is_pair(pair: object) -> bool:
    return (
        isinstance(pair, dict)
        and isinstance(pair.get("image"), str)
        and isinstance(pair.get("label"), str | None)
    )


# -- images/ and labels/ ---------------------------------------------------------------------------


def images_and_labels(root: Path) -> Finding:
    """Recognise images/<case>.nii.gz and labels/<case>.nii.gz."""
    finding = Finding("images/ and labels/")
    images = _by_stem(_volumes(root / "images"), finding)
    finding.seen = len(images)
    if not images:
        finding.miss = "no NIfTI file in images"
        return finding
    labels = _by_stem(_volumes(root / "labels"), finding)
    finding.reason = (
        f"images holds {count(len(images), 'volume')}, labels {len(labels)} of equal names"
    )
    finding.cases = [
        Case(case_id=case_id, images=(str(path),), label=_text(labels.get(case_id)))
        for case_id, path in images.items()
    ]
    _note_orphans(labels, images, finding)
    return finding


# -- BIDS ------------------------------------------------------------------------------------------


def bids(root: Path) -> Finding:
    """Recognise sub-*/[ses-*/]anat/*.nii.gz, labels in derivatives/."""
    finding = Finding("BIDS")
    images = [
        path
        for subject in sorted(root.glob("sub-*"))
        for anat in (subject / "anat", *sorted(subject.glob("ses-*/anat")))
        for path in _volumes(anat)
    ]
    finding.seen = len(images)
    if not images:
        finding.miss = "no NIfTI file in sub-*/anat or sub-*/ses-*/anat"
        return finding
    labels: defaultdict[str, list[Path]] = defaultdict(list)
    for path in sorted((root / "derivatives").glob("**/anat/sub-*")):
        words = re.split(r"[_-]", stem_of(path.name))
        if is_nifti_name(path.name) and words[0] == "sub" and _LABEL_WORDS & set(words[2:]):
            labels[words[1]].append(path)
    finding.reason = f"{count(len(images), 'image')} in sub-*/anat, each a case, grouped by subject"
    for path in images:
        case_id = stem_of(path.name)
        subject = re.split(r"[_-]", case_id)[1] if "-" in case_id else case_id
        # Labels repeat the image's entities, with or without its suffix: sub-01_T1w_label-x_mask
        # and sub-01_dseg both belong to sub-01_T1w.
        candidates = [
            label
            for label in labels[subject]
            if stem_of(label.name).startswith((f"{case_id}_", f"{case_id}-"))
        ] or [label for label in labels[subject] if _entities(label.name) == _entities(path.name)]
        if len(candidates) > 1:
            finding.problems.append(
                f"case {case_id} has {len(candidates)} labels: "
                f"{some([label.name for label in candidates])}; name one in a manifest"
            )
        finding.cases.append(
            Case(
                case_id=case_id,
                images=(str(path),),
                label=_text(candidates[0] if candidates else None),
                group=f"sub-{subject}",
            )
        )
    used = {case.label for case in finding.cases}
    orphans = [path.name for paths in labels.values() for path in paths if str(path) not in used]
    if orphans:
        finding.notes.append(f"{count(len(orphans), 'label')} without an image: {some(orphans)}")
    return finding


def _entities(name: str) -> frozenset[str]:
    """Return what a BIDS name says of the scan; what it says of the making of a label left out."""
    return frozenset(
        word
        for word in stem_of(name).split("_")
        if "-" in word and word.partition("-")[0] not in _DERIVED
    )


# -- a folder a case -------------------------------------------------------------------------------


def folder_a_case(root: Path) -> Finding:
    """Recognise <case>/*.nii.gz, as BraTS has it."""
    finding = Finding("a folder a case")
    folders = {
        folder.name: volumes
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".") and (volumes := _volumes(folder))
    }
    # A layout of which only half is there is named by its own recogniser.
    standing = {"imagesTr", "imagesTs", "labelsTr", "labelsTs", "images", "labels"}
    if not folders or standing & set(folders):
        finding.miss = "no folder with an image in it"
        loose = _volumes(root)
        if loose:
            finding.seen = len(loose)
            finding.miss = (
                f"found {count(len(loose), 'NIfTI file')} beside each other, not in folders"
            )
        return finding
    named = {case_id: _by_role(case_id, paths, finding) for case_id, paths in folders.items()}
    counts = Counter(name for images, _ in named.values() for name in images)
    # A name that few folders have is a stray; where no name is common, each has its own.
    modalities = sorted(name for name, count in counts.items() if 2 * count >= len(named))
    strays = [
        f"{case_id}/{path.name}"
        for case_id, (images, _) in named.items()
        for name, path in images.items()
        if modalities and name not in modalities
    ]
    if strays:
        finding.notes.append(f"{count(len(strays), 'stray file')} left out: {some(strays)}")
    finding.reason = f"{count(len(folders), 'folder')} with " + (
        f"the images {', '.join(modalities)}" if len(modalities) > 1 else "an image each"
    )
    finding.cases = [
        Case(
            case_id=case_id,
            images=tuple(
                str(images.get(name, root / case_id / f"{case_id}_{name}.nii.gz"))
                for name in modalities or images
            ),
            label=_text(label),
        )
        for case_id, (images, label) in named.items()
    ]
    return finding


def _by_role(
    case_id: str, paths: list[Path], finding: Finding
) -> tuple[dict[str, Path], Path | None]:
    images: dict[str, Path] = {}
    label: Path | None = None
    for path in paths:
        name = re.sub(rf"^{re.escape(case_id)}([_\- ]+|$)", "", stem_of(path.name)) or "image"
        is_label = bool(_LABEL_WORDS & set(re.split(r"[_\W]+", name.lower())))
        other = label if is_label else images.get(name)
        if other is not None:
            what = "labels" if is_label else "files for one modality"
            finding.problems.append(f"case {case_id} has two {what}: {other.name} and {path.name}")
        if is_label:
            label = path
        else:
            images[name] = path
    return images, label


# -- shared ----------------------------------------------------------------------------------------


def _left_out(n_images: int) -> str:
    return f"{n_images} images in imagesTs are left out; --include_test puts them into test"


def _volumes(folder: Path) -> list[Path]:
    """Return what is named like a NIfTI volume in a folder, directories too: they fail by name."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if is_nifti_name(path.name))


def _by_stem(paths: list[Path], finding: Finding) -> dict[str, Path]:
    by_stem: dict[str, Path] = {}
    for path in paths:
        other = by_stem.setdefault(stem_of(path.name), path)
        if other is not path:
            finding.problems.append(f"two files for one volume: {other.name} and {path.name}")
    return by_stem


def _note_orphans(labels: Iterable[str], images: Iterable[str], finding: Finding) -> None:
    orphans = sorted(set(labels) - set(images))
    if orphans:
        finding.notes.append(f"{count(len(orphans), 'label')} without an image: {some(orphans)}")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"cannot read {path}: {error}") from None


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
