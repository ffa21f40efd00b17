"""Metadata of a case, and the reader protocol that both formats share.

Of a Zarr store, planes are read without zarr-python: its event loop, and the thread pools of
compiled readers, do not live on in a process that was forked, as torch's DataLoader forks its
workers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dask_slicer.config.schema import SliceSettings
from dask_slicer.core.geometry import spacing
from dask_slicer.core.slices import SliceStack
from dask_slicer.errors import CorruptFile
from dask_slicer.planning.plan import CasePlan

if TYPE_CHECKING:
    pass

# What to do about damage.
_MEND = "`dask-slicer verify --repair` and the run command of this output write it anew"


Slice = tuple[NDArray[np.float32], NDArray[np.integer] | None]


class CaseReader(Protocol):
    """Reads slices of one case."""

    def read(self, slice_index: int, window_size: int | None) -> Slice:
        """Return a window, normalised, (channel, row, column), and its label, (row, column).

        None as the window_size is that the case was written with; as the label, that it has none.
        """
        ...

    def metadata(self, slice_index: int) -> dict[str, Any]:
        """Return what is said of a slice."""
        ...


def _described(
    shape: tuple[int, ...], dtype: np.dtype[Any] | str, label: NDArray[np.integer] | None
) -> dict[str, str]:
    described = {"image": f"{dtype} {shape}"}
    return described if label is None else described | {"label": f"{label.dtype} {label.shape}"}


def damage(case_id: str, slice_index: int | None, error: Exception) -> CorruptFile:
    """Return what is said of a case that cannot be read: case, slice, file, and what to do."""
    where = f"case {case_id}" + ("" if slice_index is None else f", slice {slice_index}")
    if isinstance(error, OSError) and error.filename:
        return CorruptFile(f"{where}: {error.filename}: {(error.strerror or '').lower()}; {_MEND}")
    return CorruptFile(f"{where}: {error}; {_MEND}")


def read_json(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds, an object.

    Raises
    ------
    CorruptFile
        Naming the file.
    OSError
    """
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptFile(f"{path} is damaged ({error})") from None
    if not isinstance(described, dict):
        raise CorruptFile(f"{path} is damaged: it holds no object")
    return described


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
