"""Pictures of what was made: slices of an output, with their labels over them."""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dask_slicer.dataset import SliceDataset
from dask_slicer.opened import Output, open_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def show_slices(
    output: str | Path | Output | SliceDataset,
    *,
    cases: Collection[str] | None = None,
    split: str | None = None,
    slices: Collection[int] | None = None,
    n_slices: int = 16,
    labels: bool = True,
    dark: bool = False,
) -> Figure:
    """Return a figure of slices, with their labels over them."""
    from matplotlib.figure import Figure

    if not isinstance(output, SliceDataset):
        path = output.path if isinstance(output, Output) else output
        output = SliceDataset(path, split, cases=cases)
    rows = [n for n in range(len(output)) if slices is None or output[n]["slice_index"] in slices]
    rows = [rows[n] for n in np.linspace(0, len(rows) - 1, min(n_slices, len(rows))).astype(int)]
    figure = Figure(figsize=(12, 12), layout="constrained", facecolor="black" if dark else "white")
    side = int(np.ceil(np.sqrt(len(rows))))
    for place, row in enumerate(rows):
        sample = output[row]
        axes = figure.add_subplot(side, side, place + 1)
        axes.imshow(sample["image"][len(sample["image"]) // 2], cmap="gray")
        if labels and "label" in sample:
            covered = np.ma.masked_equal(sample["label"], 0)
            axes.imshow(covered, cmap="tab10", alpha=0.4, interpolation="nearest")
        axes.set_title(f"{sample['case_id']} {sample['slice_index']}", parse_math=False)
        axes.set_axis_off()
    return figure


def picture(output: Output, *, n_slices: int, width: int, dark: bool = False) -> bytes:
    """Return a PNG of slices of an output, about `width` pixels wide."""
    figure = show_slices(output, n_slices=n_slices, dark=dark)
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=width / figure.get_figwidth())
    return written.getvalue()
