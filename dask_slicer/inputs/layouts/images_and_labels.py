"""Two folders, images/ and labels/, with files of equal names."""

from __future__ import annotations

from pathlib import Path

from dask_slicer.inputs.layouts.base import LayoutMatch, by_stem, volume_files
from dask_slicer.utils.formatting import plural


def match(root: Path, *, include_test: bool) -> LayoutMatch:
    """Match images/<case>.nii.gz and labels/<case>.nii.gz."""
    result = LayoutMatch("images/ and labels/")
    images = by_stem(volume_files(root / "images"), result)
    if not images:
        result.miss = "no NIfTI file in images"
        return result
    labels = by_stem(volume_files(root / "labels"), result)
    result.reason = (
        f"images/ has {plural(len(images), 'volume')}, labels/ has {len(labels)}, paired by name"
    )
    for case_id, path in images.items():
        result.add_case(case_id, [path], labels.get(case_id))
    result.note_files(sorted(labels.keys() - images.keys()), "label", "without an image")
    return result
