"""Medical Segmentation Decathlon: dataset.json with pairs of image and label."""

from __future__ import annotations

import os
from pathlib import Path

from dask_slicer.inputs.case import stem_of
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
    for pair in pairs:
        image, label = pair["image"], pair.get("label")
        result.add_case(
            stem_of(Path(image).name),
            [os.path.normpath(root / image)],
            os.path.normpath(root / label) if label else None,
        )
    unlabelled = [path for path in description.get("test") or () if isinstance(path, str)]
    if include_test:
        for image in unlabelled:
            paths = [os.path.normpath(root / image)]
            result.add_case(stem_of(Path(image).name), paths, split="test")
    elif unlabelled:
        result.notes.append(held_out_note(len(unlabelled)))
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
