"""Slices of a case in a Zarr store: windows, normalised or as stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.geometry import spacing
from dask_slicer.core.intensity import Normalization
from dask_slicer.core.labels import LABEL_DTYPES
from dask_slicer.core.windows import PADDING_MODES, ZERO_SLICE, window_indices
from dask_slicer.errors import CorruptFile
from dask_slicer.output.formats.base import Planes, Scaling, Slice, read_json, step_of
from dask_slicer.output.formats.zarr_planes import DAMAGE, PlaneReader, whole_number
from dask_slicer.output.layout import ZARR_METADATA

# Slices between neighbours of a window: more is damage.
_MOST_APART = 1e9
_FLOATS = ("float16", "float32")
# Of the file, where slices are normalised when they are read.
_SOURCE = (
    *_FLOATS,
    "float64",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)


class ZarrReader:
    """Reads a case from its Zarr group; raises CorruptFile or OSError, which name the file."""

    def __init__(self, folder: Path) -> None:
        path = folder / ZARR_METADATA
        self._attributes: dict[str, Any] = read_json(path).get("attributes", {})
        try:
            with np.errstate(all="ignore"):
                shape, has_label = self._parse(self._attributes)
        except DAMAGE as error:
            raise CorruptFile(f"{path} is damaged ({error!r})") from None
        self._image = PlaneReader(folder / "image", shape, _SOURCE)
        self._label, self._is_size_known = None, False
        self._scalings: dict[int, Scaling] = {}  # of windows without padding, by their planes
        if has_label:
            self._label = PlaneReader(folder / "label", (shape[0], *shape[2:]), LABEL_DTYPES)
        elif (folder / "label").exists():
            raise CorruptFile(f"{path} has no label, but its case has one")
        dtype = self._image.dtype
        final = (*_FLOATS, self._attributes.get("image_dtype"))
        if not self._normalization and dtype.name not in final:
            raise CorruptFile(f"{path} lacks the normalisation of {dtype} images")
        if self._stored_dtypes and np.result_type(*self._stored_dtypes) != dtype:
            raise CorruptFile(f"{self._image.path} has another dtype than its case: {dtype}")

    def _parse(self, attributes: dict[str, Any]) -> tuple[tuple[int, ...], bool]:
        """Return the shape of the image, and if there is a label; raise if attributes are wrong."""
        self._window_size = whole_number(attributes["window_size"], least=0)
        self._padding_mode: str = attributes["padding_mode"]
        self.affine = np.array(attributes["affine"], dtype=np.float64)
        self._step = step_of(attributes)
        self._normalization = [_normalization(n) for n in attributes.get("normalization", [])]
        own = attributes.get("stored_dtype", [])  # which stores of earlier versions lack
        self._stored_dtypes = [np.dtype(name) for name in own]
        channels, height, width = map(whole_number, attributes["shape"]["image"])
        label = attributes["shape"]["label"]
        n_modalities, rest = divmod(channels, 2 * self._window_size + 1)
        expected: dict[str, Any] = {"num_channels": channels}
        if self._normalization:
            expected |= source_attributes(self._normalization)
            del expected["normalization"]  # earlier versions wrote fewer keys
        if (
            rest
            or label not in (None, [height, width])
            or len(self._normalization) not in (0, n_modalities)
            or len(own) not in (0, n_modalities)
            or not set(own) <= set(_SOURCE)
            or any(attributes[name] != value for name, value in expected.items())
            or self._padding_mode not in PADDING_MODES
            or self.affine.shape != (4, 4)
            or not 0 < self._step < _MOST_APART
            or not np.allclose(spacing(self.affine), attributes["spacing"], rtol=1e-9, atol=0)
        ):
            raise ValueError("its attributes contradict each other")
        n_slices = whole_number(attributes["total_slices"])
        return (n_slices, n_modalities, height, width), label is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (n_slices, modality, row, column), including dropped slices."""
        return self._image.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the dtype of the stored numbers."""
        return self._image.dtype

    @property
    def label_dtype(self) -> np.dtype[Any] | None:
        """Return the dtype of label maps, None without them."""
        return None if self._label is None else self._label.dtype

    def metadata(self, slice_index: int) -> dict[str, Any]:
        """Return the metadata of a slice."""
        return self._attributes | {"slice_index": slice_index}

    def stored(self, slice_index: int) -> tuple[str, NDArray[np.integer] | None]:
        """Return dtype and shape of a window, and its label."""
        _, n_modalities, height, width = self.shape
        channels = (2 * self._window_size + 1) * n_modalities
        label = None if self._label is None else self._label.read(slice_index)
        dtype = "source" if self._normalization else self._image.dtype
        return f"{dtype} {(channels, height, width)}", label

    def window(self, slice_index: int, window_size: int | None) -> ZarrWindow:
        """Return a window that is yet to be decoded."""
        indices = window_indices(
            slice_index,
            n_slices=self.shape[0],
            window_size=self._window_size if window_size is None else window_size,
            padding_mode=self._padding_mode,
            step=self._step,
        )
        wanted: list[int] = indices.tolist()
        if not self._is_size_known:
            self._check_size(next(index for index in wanted if index != ZERO_SLICE))
        return ZarrWindow(self, wanted, slice_index)

    def read(self, slice_index: int, window_size: int | None) -> Slice:
        """Return a window and its label."""
        window, label = self.window(slice_index, window_size), None
        image = np.empty(window.shape, dtype=np.float32)
        window.read_image(image, {})
        if self._label is not None:
            label = self._label.read(slice_index)
        return image, label

    def planes(self, indices: list[int]) -> NDArray[np.float32]:
        """Return slices, (n, modality, row, column)."""
        for index in indices[:1]:
            self._check_size(index)
        planes = np.empty((len(indices), *self.shape[1:]), dtype=np.float32)
        for plane, index in zip(planes, indices, strict=True):
            self.read_plane(plane, index)
        return planes

    def _check_size(self, slice_index: int) -> None:
        """Raise CorruptFile if planes have another size than metadata say, which takes memory."""
        if not self._is_size_known:
            self._image.chunk(slice_index)
            self._is_size_known = True

    def read_plane(self, out: NDArray[np.float32], slice_index: int) -> None:
        """Read a slice into (modality, row, column)."""
        if not self._normalization:
            self._image.read_into(out, slice_index)
            return
        stored = self._image.read_scratch(slice_index)
        for modality, how in enumerate(self._normalization):
            how.apply(self._own_dtype(stored[modality], modality), out=out[modality])

    def read_stored_plane(self, out: NDArray[Any], slice_index: int) -> None:
        """Read the stored numbers of a slice into (modality, row, column)."""
        self._image.read_into(out, slice_index)

    def read_label(self, out: NDArray[Any], slice_index: int) -> None:
        """Read the label map of a slice into (row, column)."""
        if self._label is None:
            raise LookupError("the case has no label")
        self._label.read_into(out, slice_index)

    def scaling(self, indices: list[int]) -> Scaling:
        """Return what turns the stored numbers of a window into normalised ones."""
        n_planes, n_modalities = len(indices), self.shape[1]
        scaling = self._scalings.get(n_planes)
        if scaling is None:
            scaling = Scaling.of_intensities(n_planes * n_modalities)
            if self._normalization:
                each = _linear(self._normalization)
                tiled = {key: np.concatenate([values] * n_planes) for key, values in each.items()}
                scaling = replace(scaling, **tiled)
            self._scalings[n_planes] = scaling
        if ZERO_SLICE not in indices:
            return scaling
        is_plane = np.array(indices) != ZERO_SLICE
        return replace(scaling, plane_mask=is_plane.repeat(n_modalities))

    def _own_dtype(self, stored: NDArray[Any], modality: int) -> NDArray[Any]:
        """Return a plane in the dtype of its file, by which `apply` chooses its arithmetic."""
        own = self._stored_dtypes[modality] if self._stored_dtypes else stored.dtype
        return stored.astype(own) if own.itemsize < stored.dtype.itemsize else stored


@dataclass(frozen=True, slots=True)
class ZarrWindow:
    """A slice and its neighbours, see `base.Window`; `indices` are the slices of the window."""

    reader: ZarrReader
    indices: list[int]
    slice_index: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (channel, row, column)."""
        _, n_modalities, height, width = self.reader.shape
        return len(self.indices) * n_modalities, height, width

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the dtype of the stored numbers."""
        return self.reader.dtype

    @property
    def label_dtype(self) -> np.dtype[Any] | None:
        """Return the dtype of the label map, None without one."""
        return self.reader.label_dtype

    def read_image(self, out: NDArray[np.float32], planes: Planes) -> None:
        """Read the normalised window."""
        self._fill(out, planes, self.reader.read_plane)

    def read_stored(self, out: NDArray[Any], planes: Planes) -> None:
        """Read the stored numbers of the window."""
        self._fill(out, planes, self.reader.read_stored_plane)

    def whole_image(self) -> None:
        """Return None: planes are decoded into the memory that is given."""

    def _fill(
        self, out: NDArray[Any], planes: Planes, read: Callable[[NDArray[Any], int], None]
    ) -> None:
        for plane, index in zip(out.reshape(-1, *self.reader.shape[1:]), self.indices, strict=True):
            if index == ZERO_SLICE:
                plane[...] = 0
            elif index in planes:
                plane[...] = planes[index]
            else:
                read(plane, index)
                planes[index] = plane

    def read_label(self, out: NDArray[Any]) -> None:
        """Read the label map."""
        self.reader.read_label(out, self.slice_index)

    def scaling(self) -> Scaling:
        """Return what turns the stored numbers into normalised ones."""
        return self.reader.scaling(self.indices)


# -- attributes ------------------------------------------------------------------------------------


# Fields of a normalisation that numbers as stored never get.
_UNUSED = {"levels", "largest", "background"}


def source_attributes(each: Sequence[Normalization]) -> dict[str, Any]:
    """Return the attributes that normalise stored numbers when they are read, per modality.

    Our own readers use `normalization`, which is complete; others clip to `clip_range` (None is an
    open end), multiply by `scale`, and add `offset`.
    """
    fields = [{key: v for key, v in asdict(n).items() if key not in _UNUSED} for n in each]
    linear = {key: values.tolist() for key, values in _linear(each).items()}
    return {
        "normalization": [{key: _finite(value) for key, value in n.items()} for n in fields],
        **linear,
        "clip_range": [[_finite(end) for end in pair] for pair in linear["clip_range"]],
    }


def _linear(each: Sequence[Normalization]) -> dict[str, NDArray[np.float64]]:
    """Return scale and offset (modality,) and clip_range (modality, 2), for stored numbers."""
    ends = [sorted((end - n.intercept) / n.slope for end in (n.low, n.high)) for n in each]
    return {
        "scale": np.array([n.slope / n.scale for n in each]),
        "offset": np.array([(n.intercept - n.center) / n.scale for n in each]),
        "clip_range": np.array(ends),
    }


def _finite(value: Any) -> Any:
    """Return None for Inf, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _normalization(fields: dict[str, Any]) -> Normalization:
    low, high = fields["low"], fields["high"]
    return Normalization(
        **fields
        | {"low": -math.inf if low is None else low, "high": math.inf if high is None else high}
    )
