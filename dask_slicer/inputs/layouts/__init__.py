"""Dataset layouts: one module for each way in which datasets lie on disk."""

from __future__ import annotations

from dask_slicer.inputs.layouts import bids, decathlon, folder_per_case, images_and_labels, nnunet
from dask_slicer.inputs.layouts.base import Layout

# In the order in which they are tried: the first that finds a case is used, so a layout that asks
# for much comes before one that asks for little. A manifest is tried before all of them.
LAYOUTS: tuple[Layout, ...] = (decathlon, nnunet, images_and_labels, bids, folder_per_case)
