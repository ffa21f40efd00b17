"""Slices of a Zarr store, read without zarr-python.

The event loop of zarr-python, and the thread pools of compiled readers, do not survive a fork, and
torch's DataLoader forks its workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from dask_slicer.core.geometry import spacing
from dask_slicer.core.intensity import Normalization
from dask_slicer.core.labels import LABEL_DTYPES
from dask_slicer.core.windows import PADDING_MODES, ZERO_SLICE, window_indices
from dask_slicer.errors import CorruptFile
from dask_slicer.output.formats.base import Slice, read_json, step_of
from dask_slicer.output.formats.zarr_shards import ShardReader, shard_path
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
# What the use of damaged metadata raises.
_DAMAGE = (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError)


class ZarrReader:
    """Reads a case from its Zarr group; raises CorruptFile or OSError, which name the file."""

    def __init__(self, folder: Path) -> None:
        path = folder / ZARR_METADATA
        self._attributes: dict[str, Any] = read_json(path).get("attributes", {})
        try:
            with np.errstate(all="ignore"):
                shape, has_label = self._parse(self._attributes)
        except _DAMAGE as error:
            raise CorruptFile(f"{path} is damaged ({error!r})") from None
        self._image = _Planes(folder / "image", shape, _SOURCE)
        self._label = None
        if has_label:
            self._label = _Planes(folder / "label", (shape[0], *shape[2:]), LABEL_DTYPES)
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
        self._window_size = _whole(attributes["window_size"], least=0)
        self._padding_mode: str = attributes["padding_mode"]
        self.affine = np.array(attributes["affine"], dtype=np.float64)
        self._step = step_of(attributes)
        self._normalization = [_normalization(n) for n in attributes.get("normalization", [])]
        own = attributes.get("stored_dtype", [])  # which stores of earlier versions lack
        self._stored_dtypes = [np.dtype(name) for name in own]
        channels, height, width = map(_whole, attributes["shape"]["image"])
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
        n_slices = _whole(attributes["total_slices"])
        return (n_slices, n_modalities, height, width), label is not None

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
            step=self._step,
        )
        image = self.planes(indices.tolist()).reshape(-1, *self.shape[2:])
        return image, None if self._label is None else self._label.read(slice_index)

    def planes(self, indices: list[int]) -> NDArray[np.float32]:
        """Return slices, (n, modality, row, column); zeros for `ZERO_SLICE`."""
        for index in indices:
            if index != ZERO_SLICE:
                self._image.chunk(index)  # confirms the size of a plane before memory is taken
                break
        planes = np.empty((len(indices), *self.shape[1:]), dtype=np.float32)
        for place, index in enumerate(indices):
            if index == ZERO_SLICE:
                planes[place] = 0
            elif index in indices[:place]:  # repeated at an edge
                planes[place] = planes[indices.index(index)]
            elif self._normalization:
                for modality, stored in enumerate(self._image.read(index)):
                    own = self._own_dtype(stored, modality)
                    planes[place, modality] = self._normalization[modality].apply(own)
            else:
                self._image.read_into(planes[place], index)
        return planes

    def _own_dtype(self, stored: NDArray[Any], modality: int) -> NDArray[Any]:
        """Return a plane in the dtype of its file, by which `apply` chooses its arithmetic."""
        own = self._stored_dtypes[modality] if self._stored_dtypes else stored.dtype
        return stored.astype(own) if own.itemsize < stored.dtype.itemsize else stored


class _Planes:
    """An array of a store, read plane by plane; its shape is that of its case."""

    def __init__(self, folder: Path, shape: tuple[int, ...], dtypes: Collection[str]) -> None:
        self._folder, self.shape = folder, shape
        self.path = folder / ZARR_METADATA
        metadata = read_json(self.path)
        try:
            dtype, found = metadata["data_type"], metadata["shape"]
            per_shard, *shard = metadata["chunk_grid"]["configuration"]["chunk_shape"]
            sharding = metadata["codecs"][0]["configuration"]
            codecs = " ".join(codec["name"] for codec in sharding["codecs"])
            self._per_shard = _whole(per_shard)
            is_known, is_chunked = dtype in dtypes, sharding["chunk_shape"] == [1, *shape[1:]]
        except _DAMAGE as error:
            raise CorruptFile(f"{self.path} is damaged ({error!r})") from None
        if found != list(shape) or shard != list(shape[1:]) or not is_chunked:
            raise CorruptFile(f"{self.path} has another shape than its case")
        if not is_known or codecs not in _CODECS:
            raise CorruptFile(
                f"{self.path} has a dtype or codecs that dask-slicer does not write: "
                f"{dtype}, {codecs}"
            )
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._plane_bytes = math.prod(shape[1:]) * self.dtype.itemsize
        self._size, self._decode = _CODECS[codecs]
        self._shards: dict[int, ShardReader] = {}

    def read(self, index: int) -> NDArray[Any]:
        """Return one plane."""
        chunk = self.chunk(index)  # which fills the whole plane
        plane = np.empty(self.shape[1:], dtype=self.dtype)
        self._decode_into(plane, chunk, index)
        return plane

    def read_into(self, out: NDArray[np.float32], index: int) -> None:
        """Read one plane of floats into an array."""
        if self.dtype == out.dtype:
            self._decode_into(out, self.chunk(index), index)
        else:
            out[...] = self.read(index)

    def chunk(self, index: int) -> NDArray[np.uint8]:
        """Return the encoded bytes of a plane; raise CorruptFile if they do not make one."""
        number, position = divmod(index, self._per_shard)
        if number not in self._shards:
            path = shard_path(self._folder, number, len(self.shape))
            self._shards[number] = ShardReader(path, self._per_shard)
        chunk = self._shards[number].chunk(position)
        n_bytes = self._size(chunk)
        if n_bytes != self._plane_bytes:
            raise self._damaged(
                index, f"it holds {n_bytes} bytes, a plane takes {self._plane_bytes}"
            )
        return chunk

    def _decode_into(self, out: NDArray[Any], chunk: NDArray[np.uint8], index: int) -> None:
        try:
            with one_thread():
                self._decode(chunk, out)
        except (RuntimeError, ValueError) as error:
            raise self._damaged(index, str(error)) from None

    def _damaged(self, index: int, reason: str) -> CorruptFile:
        return CorruptFile(f"{self._folder}: slice {index} is damaged ({reason})")


@contextmanager
def one_thread() -> Iterator[None]:
    """Make Blosc use one thread: several write blocks in any order, and do not survive a fork."""
    before, blosc.use_threads = blosc.use_threads, False
    try:
        yield
    finally:
        blosc.use_threads = before


# -- chunks ----------------------------------------------------------------------------------------


def _copy(chunk: NDArray[np.uint8], out: NDArray[Any]) -> None:
    out[...] = chunk.view(out.dtype).reshape(out.shape)


def _blosc_size(chunk: NDArray[np.uint8]) -> int:
    # Header of a Blosc 1 buffer: version, codec, flags, typesize, then three sizes of 32 bits.
    n_bytes, _, n_encoded = np.frombuffer(chunk[4:16].tobytes().ljust(12, b"\0"), "<u4").tolist()
    return int(n_bytes) if n_encoded == len(chunk) else 0


def _zstd_size(chunk: NDArray[np.uint8]) -> int:
    # Header of a frame: magic, descriptor, window if it is no single segment, dictionary, size.
    head = chunk[:18].tobytes().ljust(18, b"\0")
    size_flag, is_single, dictionary_flag = head[4] >> 6, head[4] >> 5 & 1, head[4] & 3
    start = 6 - is_single + (0, 1, 2, 4)[dictionary_flag]
    length = (is_single, 2, 4, 8)[size_flag]
    size = int.from_bytes(head[start : start + length], "little")
    return size + 256 if length == 2 else size


# Size of the decoded bytes as a chunk declares it, and decoding, by the names of its codecs.
_CODECS: dict[
    str,
    tuple[Callable[[NDArray[np.uint8]], int], Callable[[NDArray[np.uint8], NDArray[Any]], object]],
] = {
    "bytes zstd crc32c": (_zstd_size, numcodecs.zstd.decompress),
    "bytes blosc crc32c": (_blosc_size, blosc.decompress),
    "bytes crc32c": (len, _copy),
}


# -- attributes ------------------------------------------------------------------------------------


# Fields of a normalisation that numbers as stored never get.
_UNUSED = {"levels", "largest", "background"}


def source_attributes(each: Sequence[Normalization]) -> dict[str, Any]:
    """Return the attributes that normalise stored numbers when they are read, per modality.

    Our own readers use `normalization`, which is complete; others clip to `clip_range` (None is an
    open end), multiply by `scale`, and add `offset`.
    """
    ends = [sorted((end - n.intercept) / n.slope for end in (n.low, n.high)) for n in each]
    fields = [{key: v for key, v in asdict(n).items() if key not in _UNUSED} for n in each]
    return {
        "normalization": [{key: _finite(value) for key, value in n.items()} for n in fields],
        "scale": [n.slope / n.scale for n in each],
        "offset": [(n.intercept - n.center) / n.scale for n in each],
        "clip_range": [[_finite(end) for end in pair] for pair in ends],
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


def _whole(number: Any, *, least: int = 1) -> int:
    """Return a number of metadata; raise ValueError unless it is an integer, `least` or more."""
    if type(number) is not int or number < least:
        raise ValueError(f"{number!r} is no number of slices, rows or columns")
    return number
