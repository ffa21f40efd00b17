"""Convert 3D medical volumes into 2D and 2.5D training slices, in parallel with Dask."""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dask_slicer.api import plan, run, submit
    from dask_slicer.assembly.assemble import AssemblyReport, assemble
    from dask_slicer.assembly.volume_writer import VolumeWriter
    from dask_slicer.config.schema import RunConfig
    from dask_slicer.errors import DaskSlicerError
    from dask_slicer.execution.background import RunHandle
    from dask_slicer.execution.graph import build_graphs
    from dask_slicer.monitoring.observer import RunReport
    from dask_slicer.output.output import Output, open_output
    from dask_slicer.planning.plan import RunPlan
    from dask_slicer.report.preview import show_slices
    from dask_slicer.training.dataset import SliceDataset
    from dask_slicer.training.loader import SliceLoader
    from dask_slicer.training.normalization import normalize_batch

__all__ = [
    "AssemblyReport",
    "DaskSlicerError",
    "Output",
    "RunConfig",
    "RunHandle",
    "RunPlan",
    "RunReport",
    "SliceDataset",
    "SliceLoader",
    "VolumeWriter",
    "__version__",
    "assemble",
    "build_graphs",
    "normalize_batch",
    "open_output",
    "plan",
    "run",
    "show_slices",
    "submit",
]

# Imported on first use: `dask-slicer --help` must not wait for numpy and Dask.
_MODULES = {
    "AssemblyReport": "dask_slicer.assembly.assemble",
    "DaskSlicerError": "dask_slicer.errors",
    "Output": "dask_slicer.output.output",
    "RunConfig": "dask_slicer.config.schema",
    "RunHandle": "dask_slicer.execution.background",
    "RunPlan": "dask_slicer.planning.plan",
    "RunReport": "dask_slicer.monitoring.observer",
    "SliceDataset": "dask_slicer.training.dataset",
    "SliceLoader": "dask_slicer.training.loader",
    "VolumeWriter": "dask_slicer.assembly.volume_writer",
    "assemble": "dask_slicer.assembly.assemble",
    "build_graphs": "dask_slicer.execution.graph",
    "normalize_batch": "dask_slicer.training.normalization",
    "open_output": "dask_slicer.output.output",
    "plan": "dask_slicer.api",
    "run": "dask_slicer.api",
    "show_slices": "dask_slicer.report.preview",
    "submit": "dask_slicer.api",
}

# Log records go nowhere, unless the program that imports this package handles them.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("dask_slicer")
    if name not in _MODULES:
        raise AttributeError(f"module 'dask_slicer' has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value  # the next access finds it without this function
    return value


def __dir__() -> list[str]:
    return __all__
