"""Convert 3D medical volumes into 2D and 2.5D training slices, in parallel with Dask."""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dask_slicer.api import plan, run, submit
    from dask_slicer.config.schema import RunConfig
    from dask_slicer.errors import DaskSlicerError
    from dask_slicer.execution.background import RunHandle
    from dask_slicer.execution.graph import build_graphs
    from dask_slicer.monitoring.events import RunReport
    from dask_slicer.output.output import Output, open_output
    from dask_slicer.planning.plan import RunPlan
    from dask_slicer.report.preview import show_slices
    from dask_slicer.training.dataset import SliceDataset


__all__ = [
    "DaskSlicerError",
    "Output",
    "RunConfig",
    "RunHandle",
    "RunPlan",
    "RunReport",
    "SliceDataset",
    "__version__",
    "build_graphs",
    "open_output",
    "plan",
    "run",
    "show_slices",
    "submit",
]

# Imported on first use: `dask-slicer --help` must not wait for numpy and Dask.
_HOMES = {
    "DaskSlicerError": ("dask_slicer.errors", "DaskSlicerError"),
    "Output": ("dask_slicer.output.output", "Output"),
    "RunConfig": ("dask_slicer.config.schema", "RunConfig"),
    "RunHandle": ("dask_slicer.execution.background", "RunHandle"),
    "RunPlan": ("dask_slicer.planning.plan", "RunPlan"),
    "RunReport": ("dask_slicer.monitoring.events", "RunReport"),
    "SliceDataset": ("dask_slicer.training.dataset", "SliceDataset"),
    "build_graphs": ("dask_slicer.execution.graph", "build_graphs"),
    "open_output": ("dask_slicer.output.output", "open_output"),
    "plan": ("dask_slicer.api", "plan"),
    "run": ("dask_slicer.api", "run"),
    "show_slices": ("dask_slicer.report.preview", "show_slices"),
    "submit": ("dask_slicer.api", "submit"),
}


# Log records go nowhere, unless the program that imports this package handles them.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("dask_slicer")
    if name not in _HOMES:
        raise AttributeError(f"module 'dask_slicer' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value  # the next access finds it without this function
    return value


def __dir__() -> list[str]:
    return __all__
