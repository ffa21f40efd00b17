"""What is said of a case beside its slices, in both formats."""

from __future__ import annotations

from typing import Any

from dask_slicer.config import SliceSettings
from dask_slicer.geometry import spacing
from dask_slicer.plans import CasePlan
from dask_slicer.slices import SliceStack


def case_metadata(stack: SliceStack, case: CasePlan, settings: SliceSettings) -> dict[str, Any]:
    """Return what holds for all slices of a case; values are what JSON has."""
    n_slices, height, width = stack.shape
    channels = (2 * settings.window_size + 1) * len(stack.image)
    return {
        "source_file": _one_or_list(list(case.sources)),
        "total_slices": n_slices,
        "window_size": settings.window_size,
        "padding_mode": settings.padding_mode,
        "num_channels": channels,
        "spacing": list(spacing(stack.affine)),
        "normalized": settings.normalize != "none",
        "norm_stats": {
            name: _one_or_list([getattr(found, name) for found in stack.statistics])
            for name in ("mean", "std", "min", "max")
        },
        "shape": {
            "image": [channels, height, width],
            "label": None if stack.label is None else [height, width],
        },
        "case_id": case.case_id,
        "split": case.split,
        "plane": settings.plane,
        "affine": stack.affine.tolist(),
    }


def _one_or_list(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values
