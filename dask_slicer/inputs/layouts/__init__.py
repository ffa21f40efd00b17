"""Dataset layouts: one module for each way in which datasets lie on disk."""

from __future__ import annotations

from dask_slicer.inputs.layouts import (
    bids,
    dataset_json,
    folder_per_case,
    images_and_labels,
    manifest,
    nnunet,
    one_folder,
)
from dask_slicer.inputs.layouts.base import Layout

# By the name for `--layout`, in the order in which they are tried: the first that finds a case is
# used, so a layout that asks for much comes before one that asks for little.
LAYOUTS: dict[str, Layout] = {
    "manifest": manifest,
    "dataset_json": dataset_json,
    "nnunet": nnunet,
    "images_and_labels": images_and_labels,
    "bids": bids,
    "folder_per_case": folder_per_case,
    "one_folder": one_folder,
}
