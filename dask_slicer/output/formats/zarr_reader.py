"""Slices of a Zarr store, read without zarr-python.

The event loop of zarr-python, and the thread pools of compiled readers, do not survive a fork, and
torch's DataLoader forks its workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from dask_slicer.core.intensity import Normalization
from dask_slicer.core.windows import ZERO_SLICE, window_indices
from dask_slicer.errors import CorruptFile
from dask_slicer.output.formats.base import Slice, read_json
from dask_slicer.output.formats.zarr_shards import ShardReader, shard_path
from dask_slicer.output.layout import ZARR_METADATA

_AXES = 4


class ZarrReader:
    """Reads a case from its group in a Zarr store.

    Creating it, and its methods, raise CorruptFile or OSError, which name the file.
    """

    def __init__(self, folder: Path) -> None:
        attributes: dict[str, Any] = read_json(folder / ZARR_METADATA).get("attributes", {})
        self._attributes = attributes
        try:
            self._window_size: int = attributes["window_size"]
            self._padding_mode: str = attributes["padding_mode"]
            has_label = attributes["shape"]["label"] is not None
            self.affine = np.array(attributes["affine"], dtype=np.float64)
            normalization = attributes.get("normalization", [])
            self._normalization = [_normalization(fields) for fields in normalization]
        except (KeyError, TypeError) as error:
            raise CorruptFile(f"{folder / ZARR_METADATA} is damaged ({error!r})") from None
        self._image = _Planes(folder / "image")
        self._label = _Planes(folder / "label") if has_label else None
        if len(self.shape) != _AXES or self.shape[0] != attributes.get("total_slices"):
            raise CorruptFile(f"{folder / 'image' / ZARR_METADATA} has another shape than its case")
        is_normalized = self._image.dtype.kind == "f" and not self._normalization
        if len(self._normalization) != (0 if is_normalized else self.shape[1]):
            raise CorruptFile(
                f"{folder / ZARR_METADATA} lacks the normalisation of {self._image.dtype} images"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (n_slices, modality, row, column), including dropped slices."""
        return self._image.shape

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

    def read(self, slice_index: int, window_size: int | None) -> Slice:
        """Return a window and its label."""
        indices = window_indices(
            slice_index,
            n_slices=self.shape[0],
            window_size=self._window_size if window_size is None else window_size,
            padding_mode=self._padding_mode,
        )
        image = self.planes(indices.tolist()).reshape(-1, *self.shape[2:])
        return image, None if self._label is None else self._label.read(slice_index)

    def planes(self, indices: list[int]) -> NDArray[np.float32]:
        """Return slices, (n, modality, row, column); zeros for `ZERO_SLICE`."""
        planes = np.empty((len(indices), *self.shape[1:]), dtype=np.float32)
        for place, index in enumerate(indices):
            if index == ZERO_SLICE:
                planes[place] = 0
            elif index in indices[:place]:  # repeated at an edge
                planes[place] = planes[indices.index(index)]
            elif self._normalization:
                for modality, stored in enumerate(self._image.read(index)):
                    planes[place, modality] = self._normalization[modality].apply(stored)
            else:
                self._image.read_into(planes[place], index)
        return planes


class _Planes:
    """An array of a store, read plane by plane."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        metadata = read_json(folder / ZARR_METADATA)
        try:
            self.shape: tuple[int, ...] = tuple(metadata["shape"])
            self.dtype = np.dtype(metadata["data_type"]).newbyteorder("<")
            self._per_shard: int = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
            inner = metadata["codecs"][0]["configuration"]["codecs"]
            codecs = " ".join(codec["name"] for codec in inner)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise CorruptFile(f"{folder / ZARR_METADATA} is damaged ({error!r})") from None
        if codecs not in _DECODERS:
            raise CorruptFile(
                f"{folder / ZARR_METADATA} has codecs that dask-slicer does not write: {codecs}"
            )
        self._decode = _DECODERS[codecs]
        self._shards: dict[int, ShardReader] = {}

    def read(self, index: int) -> NDArray[Any]:
        """Return one plane."""
        plane = np.empty(self.shape[1:], dtype=self.dtype)
        self._decode_into(plane, index)
        return plane

    def read_into(self, out: NDArray[np.float32], index: int) -> None:
        """Read one plane of floats into an array."""
        if self.dtype == out.dtype:
            self._decode_into(out, index)
        else:
            out[...] = self.read(index)

    def _decode_into(self, out: NDArray[Any], index: int) -> None:
        number, position = divmod(index, self._per_shard)
        if number not in self._shards:
            path = shard_path(self._folder, number, len(self.shape))
            self._shards[number] = ShardReader(path, self._per_shard)
        chunk = self._shards[number].chunk(position)
        try:
            with one_thread():
                self._decode(chunk, out)
        except (RuntimeError, ValueError) as error:
            raise CorruptFile(f"{self._folder}: slice {index} is damaged ({error})") from None


@contextmanager
def one_thread() -> Iterator[None]:
    """Make Blosc use this thread only.

    Several threads write compressed blocks in any order, and do not survive a fork.
    """
    before, blosc.use_threads = blosc.use_threads, False
    try:
        yield
    finally:
        blosc.use_threads = before


def _copy(chunk: NDArray[np.uint8], out: NDArray[Any]) -> None:
    out[...] = chunk.view(out.dtype).reshape(out.shape)


def _unblosc(chunk: NDArray[np.uint8], out: NDArray[Any]) -> None:
    # Header of a Blosc 1 buffer: version, codec, flags, typesize, then the raw size.
    n_bytes = int.from_bytes(chunk[4:8].tobytes(), "little")
    if n_bytes != out.nbytes:
        raise ValueError(f"it holds {n_bytes} bytes, a plane takes {out.nbytes}")
    blosc.decompress(chunk, out)


# By the names of a chunk's codecs in the array's metadata.
_DECODERS: dict[str, Callable[[NDArray[np.uint8], NDArray[Any]], object]] = {
    "bytes zstd crc32c": numcodecs.zstd.decompress,
    "bytes blosc crc32c": _unblosc,
    "bytes crc32c": _copy,
}


def _normalization(fields: dict[str, Any]) -> Normalization:
    low, high = fields["low"], fields["high"]
    return Normalization(
        **fields
        | {"low": -math.inf if low is None else low, "high": math.inf if high is None else high}
    )
