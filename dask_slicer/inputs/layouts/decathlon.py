"""Medical Segmentation Decathlon: dataset.json with pairs of image and label."""

from __future__ import annotations

import os
from pathlib import Path

from dask_slicer.inputs.case import Case, stem_of
from dask_slicer.inputs.layouts.base import (
    LayoutMatch,
    held_out_note,
    read_description,
    volume_files,
)


def match(root: Path, *, include_test: bool) -> LayoutMatch:
    """Match a dataset.json with `training` pairs of image and label."""
    result = LayoutMatch("Medical Segmentation Decathlon")
    description = read_description(root)
    pairs = description.get("training")
    if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        result.miss = "no dataset.json with `training` pairs of image and label"
        return result
    if not any((root / pair["image"]).exists() for pair in pairs):
        result.miss = f"none of the {len(pairs)} images that dataset.json lists exists"
        return result
    result.reason = f"dataset.json lists {len(pairs)} training pairs"
    # Of each case: image, label, split.
    files: list[tuple[str, str | None, str | None]] = [
        (pair["image"], pair.get("label"), None) for pair in pairs
    ]
    unlabelled = [path for path in description.get("test") or () if isinstance(path, str)]
    if include_test:
        files += [(path, None, "test") for path in unlabelled]
    elif unlabelled:
        result.notes.append(held_out_note(len(unlabelled)))
    result.cases = [
        Case(
            case_id=stem_of(Path(image).name),
            images=(os.path.normpath(root / image),),
            label=os.path.normpath(root / label) if label else None,
            split=split,
        )
        for image, label, split in files
    ]
    listed = {case.images[0] for case in result.cases}
    extra = [path.name for path in volume_files(root / "imagesTr") if str(path) not in listed]
    result.note_files(extra, "image", "in imagesTr not in dataset.json, left out")
    return result


def _is_pair(pair: object) -> bool:
    return (
        isinstance(pair, dict)
        and isinstance(pair.get("image"), str)
        and isinstance(pair.get("label"), str | None)
    )
