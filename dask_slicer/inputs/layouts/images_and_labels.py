"""Two folders, images/ and labels/, with files of equal names."""

from __future__ import annotations

from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch, by_stem
from dask_slicer.inputs.tree import FileTree
from dask_slicer.utils.formatting import plural


def match(tree: FileTree, options: InputOptions) -> LayoutMatch:
    """Match images/<case>.nii.gz and labels/<case>.nii.gz."""
    result = LayoutMatch("images/ and labels/")
    images = by_stem(tree.within("images"), result)
    if not images:
        result.miss = "no NIfTI file in images"
        return result
    labels = by_stem(tree.within("labels"), result)
    result.reason = (
        f"images/ has {plural(len(images), 'volume')}, labels/ has {len(labels)}, paired by name"
    )
    for case_id, path in images.items():
        label = labels.get(case_id)
        result.add_case(case_id, [tree.absolute(path)], label and tree.absolute(label))
    unpaired = [labels[case_id] for case_id in sorted(labels.keys() - images.keys())]
    result.leave_out(unpaired, "label", "without an image")
    return result
