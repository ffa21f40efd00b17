"""Medical Segmentation Decathlon: dataset.json with pairs of image and label."""

from __future__ import annotations

import os
from pathlib import Path

from dask_slicer.inputs.case import Case, stem_of
from dask_slicer.inputs.layouts.base import LayoutMatch, held_out_note, read_json, volume_files
from dask_slicer.utils.formatting import first_few, plural


def match(root: Path, *, include_test: bool) -> LayoutMatch:
    """Match a dataset.json with `training` pairs of image and label."""
    result = LayoutMatch("Medical Segmentation Decathlon")
    description = read_json(root / "dataset.json")
    pairs = description.get("training") if isinstance(description, dict) else None
    if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        result.miss = "no dataset.json with `training` pairs of image and label"
        return result
    if not any((root / pair["image"]).exists() for pair in pairs):
        result.miss = f"none of the {len(pairs)} images that dataset.json lists exists"
        return result
    result.reason = f"dataset.json lists {len(pairs)} training pairs"
    for pair in pairs:
        label = pair.get("label")
        result.cases.append(
            Case(
                case_id=stem_of(Path(pair["image"]).name),
                images=(os.path.normpath(root / pair["image"]),),
                label=os.path.normpath(root / label) if label else None,
            )
        )
    unlabelled = [path for path in description.get("test") or () if isinstance(path, str)]
    if include_test:
        result.cases += [
            Case(
                case_id=stem_of(Path(path).name),
                images=(os.path.normpath(root / path),),
                split="test",
            )
            for path in unlabelled
        ]
    elif unlabelled:
        result.notes.append(held_out_note(len(unlabelled)))
    listed = {case.images[0] for case in result.cases}
    extra = [path.name for path in volume_files(root / "imagesTr") if str(path) not in listed]
    if extra:
        result.notes.append(
            f"{plural(len(extra), 'image')} in imagesTr not in dataset.json, left out: "
            f"{first_few(extra)}"
        )
    return result


def _is_pair(pair: object) -> bool:
    return (
        isinstance(pair, dict)
        and isinstance(pair.get("image"), str)
        and isinstance(pair.get("label"), str | None)
    )
