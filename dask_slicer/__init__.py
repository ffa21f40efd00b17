"""Turn datasets of 3D medical volumes into 2D and 2.5D training slices, with Dask."""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dask_slicer.config import RunConfig
    from dask_slicer.dataset import SliceDataset
    from dask_slicer.errors import DaskSlicerError
    from dask_slicer.events import RunReport
    from dask_slicer.graph import build_graphs
    from dask_slicer.opened import Output, open_output
    from dask_slicer.pipeline import run
    from dask_slicer.planning import make_plan as plan
    from dask_slicer.plans import RunPlan
    from dask_slicer.preview import show_slices

__all__ = [
    "DaskSlicerError",
    "Output",
    "RunConfig",
    "RunPlan",
    "RunReport",
    "SliceDataset",
    "__version__",
    "build_graphs",
    "open_output",
    "plan",
    "run",
    "show_slices",
]

# Imported on first use: `dask-slicer --help` must not wait for numpy and Dask.
_HOMES = {
    "DaskSlicerError": ("dask_slicer.errors", "DaskSlicerError"),
    "Output": ("dask_slicer.opened", "Output"),
    "RunConfig": ("dask_slicer.config", "RunConfig"),
    "RunPlan": ("dask_slicer.plans", "RunPlan"),
    "RunReport": ("dask_slicer.events", "RunReport"),
    "SliceDataset": ("dask_slicer.dataset", "SliceDataset"),
    "build_graphs": ("dask_slicer.graph", "build_graphs"),
    "open_output": ("dask_slicer.opened", "open_output"),
    "plan": ("dask_slicer.planning", "make_plan"),
    "run": ("dask_slicer.pipeline", "run"),
    "show_slices": ("dask_slicer.preview", "show_slices"),
}


# What is logged goes where the program that uses us sends it, and nowhere if it does not.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("dask_slicer")
    if name not in _HOMES:
        raise AttributeError(f"module 'dask_slicer' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__
