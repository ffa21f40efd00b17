"""Medical Segmentation Decathlon: dataset.json with pairs of image and label."""

from __future__ import annotations

import os
from pathlib import Path

from dask_slicer.inputs.case import Case, stem_of
from dask_slicer.inputs.layouts.base import LayoutMatch, read_json, test_images_note, volume_files
from dask_slicer.utils.formatting import first_few, plural


def decathlon(root: Path, include_test: bool) -> LayoutMatch:
    """Recognise dataset.json with `training` pairs of image and label."""
    finding = LayoutMatch("Medical Segmentation Decathlon")
    description = read_json(root / "dataset.json")
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
        finding.notes.append(test_images_note(len(unlabelled)))
    listed = {case.images[0] for case in finding.cases}
    extra = [path.name for path in volume_files(root / "imagesTr") if str(path) not in listed]
    if extra:
        finding.notes.append(
            f"{plural(len(extra), 'image')} in imagesTr not in dataset.json, left out: "
            f"{first_few(extra)}"
        )
    return finding


def _is_pair(pair: object) -> bool:
    return (
        isinstance(pair, dict)
        and isinstance(pair.get("image"), str)
        and isinstance(pair.get("label"), str | None)
    )
