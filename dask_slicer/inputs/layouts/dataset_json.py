"""Medical Segmentation Decathlon: dataset.json with pairs of image and label."""

from __future__ import annotations

from pathlib import Path

from dask_slicer.inputs.case import stem_of
from dask_slicer.inputs.layouts.base import (
    InputOptions,
    LayoutMatch,
    held_out_note,
    read_description,
)
from dask_slicer.inputs.tree import FileTree


def match(tree: FileTree, options: InputOptions) -> LayoutMatch:
    """Match a dataset.json with `training` pairs of image and label."""
    result = LayoutMatch("Medical Segmentation Decathlon")
    description = read_description(tree.root)
    pairs = description.get("training")
    if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        result.miss = "no dataset.json with `training` pairs of image and label"
        return result
    if not any(tree.has(pair["image"]) for pair in pairs):
        result.seen = len(pairs)
        result.miss = f"none of the {len(pairs)} images that dataset.json lists exists"
        return result
    result.reason = f"dataset.json lists {len(pairs)} training pairs"
    for pair in pairs:
        image, label = pair["image"], pair.get("label")
        result.add_case(
            stem_of(Path(image).name),
            [tree.absolute(image)],
            tree.absolute(label) if label else None,
            stated=True,
        )
    unlabelled = [path for path in description.get("test") or () if isinstance(path, str)]
    if options.include_test:
        for image in unlabelled:
            paths = [tree.absolute(image)]
            result.add_case(stem_of(Path(image).name), paths, split="test", stated=True)
    elif unlabelled:
        result.notes.append(held_out_note(len(unlabelled)))
    listed = {case.images[0] for case in result.cases}
    extra = [path for path in tree.within("imagesTr") if tree.absolute(path) not in listed]
    result.leave_out(extra, "image", "in imagesTr not in dataset.json, left out")
    return result


def _is_pair(pair: object) -> bool:
    return (
        isinstance(pair, dict)
        and isinstance(pair.get("image"), str)
        and isinstance(pair.get("label"), str | None)
    )
