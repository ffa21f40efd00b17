"""Protocol of case readers, and metadata of a case, for both formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from dask_slicer.config.schema import SliceSettings
from dask_slicer.core.geometry import itk_grid, spacing
from dask_slicer.core.slices import SliceStack
from dask_slicer.core.statistics import Statistics
from dask_slicer.core.windows import ZERO_SLICE, context_step
from dask_slicer.errors import CaseError, CorruptFile, UsageError
from dask_slicer.planning.names import Names
from dask_slicer.planning.plan import CasePlan
from dask_slicer.records import WrittenSlice
from dask_slicer.utils.files import parse_json, read_text
from dask_slicer.utils.modalities import for_each_modality

# The way to repair a damaged case.
_REPAIR = "to repair the output, run `dask-slicer verify --repair`, then the same run command again"

# What metadata of the wrong type or size can raise where it is used.
DAMAGE = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError)

T = TypeVar("T")
Slice = tuple[NDArray[np.float32], NDArray[np.integer] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """What turns the stored numbers of a window into those that `CaseReader.read` returns.

    ``clip(stored, *clip_range) * scale + offset`` for each channel, and 0 where `plane_mask` is
    False: such a plane is padding.

    Parameters
    ----------
    scale, offset : (channel,) ndarray of float64
    clip_range : (channel, 2) ndarray of float64
        Least and greatest stored number that count; an open end is infinite.
    plane_mask : (channel,) ndarray of bool
    """

    scale: NDArray[np.float64]
    offset: NDArray[np.float64]
    clip_range: NDArray[np.float64]
    plane_mask: NDArray[np.bool_]

    @classmethod
    def of_intensities(cls, n_channels: int, *, offset: float = 0.0) -> Self:
        """Return that of numbers which are intensities, but for an offset."""
        return cls(
            scale=np.ones(n_channels),
            offset=np.full(n_channels, offset),
            clip_range=np.tile((-np.inf, np.inf), (n_channels, 1)),
            plane_mask=np.ones(n_channels, dtype=bool),
        )


class Planes(Protocol):
    """Planes of a case that windows share, (modality, row, column), by slice; a dict is one."""

    def __contains__(self, slice_index: object, /) -> bool: ...

    def __getitem__(self, slice_index: int, /) -> NDArray[Any]: ...

    def __setitem__(self, slice_index: int, plane: NDArray[Any], /) -> None: ...


class Window(Protocol):
    """A slice with its neighbours and its label, before they are decoded.

    Methods raise CorruptFile or OSError, which name the file.
    """

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (channel, row, column)."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the dtype of the stored numbers."""
        ...

    @property
    def label_dtype(self) -> np.dtype[Any] | None:
        """Return the dtype of the label map, None without one."""
        ...

    def read_image(self, out: NDArray[np.float32], planes: Planes) -> None:
        """Read what `CaseReader.read` returns into (channel, row, column)."""
        ...

    def read_stored(self, out: NDArray[Any], planes: Planes) -> None:
        """Read the stored numbers into (channel, row, column); padding is 0."""
        ...

    def whole_image(self) -> NDArray[np.float32] | None:
        """Return what `read_image` reads if it is decoded into memory of its own anyway."""
        ...

    def read_label(self, out: NDArray[Any]) -> None:
        """Read the label map into (row, column)."""
        ...

    def scaling(self) -> Scaling:
        """Return what turns the stored numbers into those of `read_image`."""
        ...


class CaseReader(Protocol):
    """Reads slices of one case."""

    def window(self, slice_index: int, window_size: int | None) -> Window:
        """Return a window that is yet to be decoded; a window_size of None is that of `read`."""
        ...

    def read(self, slice_index: int, window_size: int | None) -> Slice:
        """Return a normalised window, (channel, row, column), and its label, (row, column).

        A window_size of None is the one that the case was written with. A label may be None.
        """
        ...

    def metadata(self, slice_index: int) -> dict[str, Any]:
        """Return the metadata of a slice."""
        ...


@contextmanager
def damage_named(case_id: str, slice_index: int | None) -> Iterator[None]:
    """Turn an error in reading a case into a CorruptFile: case, slice, file, and what to do."""
    try:
        yield
    except UsageError:
        raise
    except (CaseError, OSError, *DAMAGE) as error:
        reason = str(error)
        if isinstance(error, KeyError):
            reason = f"its metadata lacks {error}"
        elif not isinstance(error, CaseError | OSError):
            reason = f"its metadata is damaged ({error})"
        elif isinstance(error, OSError) and error.filename:
            reason = f"{error.filename}: {(error.strerror or '').lower()}"
        where = f"case {case_id}" + ("" if slice_index is None else f", slice {slice_index}")
        raise CorruptFile(f"{where}: {reason}; {_REPAIR}") from None


def check_finite(image: NDArray[np.floating]) -> None:
    """Raise CorruptFile if an image, of which pictures or histograms are made, has NaN or Inf."""
    if not (image.size and np.isfinite(image).all()):
        raise CorruptFile("its image has no pixel, or NaN or Inf")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raise CorruptFile if it holds none."""
    try:
        content = parse_json(read_text(path))
    except ValueError as error:
        raise CorruptFile(f"{path} is damaged ({error})") from None
    if not isinstance(content, dict):
        raise CorruptFile(f"{path} is damaged: it holds no object")
    return content


def case_metadata(
    stack: SliceStack, case: CasePlan, settings: SliceSettings, names: Names
) -> dict[str, Any]:
    """Return the metadata that all slices of a case share, as JSON values."""
    n_slices, height, width = stack.shape
    channels = (2 * settings.window_size + 1) * len(stack.image)
    changes = stack.changes()
    return {
        "source_file": _one_or_list([source or None for source in case.sources]),
        "total_slices": n_slices,
        "window_size": settings.window_size,
        "padding_mode": settings.padding_mode,
        "num_channels": channels,
        "spacing": list(spacing(stack.affine)),
        **_requested(settings),
        "normalized": is_normalized(settings),
        **_pixels(settings),
        # The std that was divided by, so that it undoes the normalisation.
        "norm_stats": statistics_by_name(
            [replace(stats, std=stats.divisor) for stats in stack.statistics]
        ),
        "shape": {
            "image": [channels, height, width],
            "label": None if stack.label is None else [height, width],
        },
        "case_id": case.case_id,
        "split": case.split,
        "plane": settings.plane,
        "affine": stack.affine.tolist(),
        **({"steps": changes} if changes else {}),
        **_notes(case),
        **({"overlapping_voxels": stack.n_overlapping} if stack.n_overlapping else {}),
    } | names.metadata()


def unsized_slices(stack: SliceStack) -> tuple[WrittenSlice, ...]:
    """Return the kept slices of a format in which slices are not one file each."""
    labels = stack.label_counts
    return tuple(WrittenSlice(i, 0, 0, labels[i] if labels else None) for i in stack.kept)


def grid_array(stack: SliceStack, content: str, *, transpose: bool) -> NDArray[np.float64]:
    """Return spacing (3,), direction (9,) or origin (3,) of a case, as SimpleITK has them."""
    affine = stack.affine[:, [0, 2, 1, 3]] if transpose else stack.affine
    return np.array(getattr(itk_grid(affine), content), dtype=np.float64).ravel()


def _requested(settings: SliceSettings) -> dict[str, Any]:
    """Return the settings that say where neighbours are, and what spacing was wanted."""
    content: dict[str, Any] = {}
    if settings.spacing is not None:
        content["spacing_requested"] = list(settings.spacing)
    if settings.context_step > 1:
        content["context_step"] = settings.context_step
    if settings.context_mm is not None:
        content["context_mm"] = settings.context_mm
    return content


def _pixels(settings: SliceSettings) -> dict[str, Any]:
    """Return the bits of a pixel of a PNG file, and the offset of its intensity if it is exact."""
    if settings.format != "png":
        return {}
    return {"bits": settings.bits} | ({"offset": settings.offset} if settings.is_exact else {})


def step_of(metadata: Mapping[str, Any]) -> float:
    """Return how many slices lie between neighbours, from the metadata of a case."""
    return context_step(
        spacing=metadata["spacing"][0],
        step=metadata.get("context_step", 1),
        mm=metadata.get("context_mm"),
    )


class Windows(Generic[T]):
    """Planes of windows, made into a `T` once each; slices are asked for in ascending order.

    Only what later windows need stays in memory.

    Parameters
    ----------
    step : float
        Slices between neighbours, see `step_of`.
    make : callable
        Turns a normalised plane into a `T`.
    zeros : T
        For a plane outside the volume.
    """

    def __init__(
        self,
        stack: SliceStack,
        settings: SliceSettings,
        *,
        step: float,
        make: Callable[[NDArray[np.float32]], T],
        zeros: T,
    ) -> None:
        self._windows = stack.windows(
            window_size=settings.window_size, padding_mode=settings.padding_mode, step=step
        )
        self._reach = ceil(settings.window_size * step)
        self._planes = stack.planes(set(chain.from_iterable(self._windows.values())))
        self._make, self._zeros = make, [zeros] * len(stack.image)
        self._made: dict[int, list[T]] = {}

    def of(self, slice_index: int) -> list[T]:
        """Return the planes of a window, by offset and then image."""
        # No later window needs planes before this one's first.
        for index in [i for i in self._made if i < slice_index - self._reach]:
            del self._made[index]
        return [plane for index in self._windows[slice_index] for plane in self._at(index)]

    def _at(self, index: int) -> list[T]:
        if index == ZERO_SLICE:
            return self._zeros
        while index not in self._made:
            next_index, planes = next(self._planes)
            self._made[next_index] = list(map(self._make, planes))
        return self._made[index]


def is_normalized(settings: SliceSettings) -> bool | list[bool]:
    """Return whether images are normalised: a list for each modality only where they differ."""
    if settings.maps_limits:
        return True
    flags = [method != "none" for method in for_each_modality(settings.normalize, 1)]
    return flags[0] if len(set(flags)) == 1 else flags


def _notes(case: CasePlan) -> dict[str, list[str]]:
    """Return what is odd in the headers of a case, under its key; empty if nothing is."""
    notes = [f"{path}: {note}" for path, note in case.header_notes]
    return {"header_notes": notes} if notes else {}


def statistics_by_name(statistics: Sequence[Statistics]) -> dict[str, Any]:
    """Return mean, std, min and max: a number each, a list for several modalities, or None."""
    return {
        name: _one_or_list([getattr(stats, name) for stats in statistics])
        for name in ("mean", "std", "min", "max")
    }


def _one_or_list(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values or None
