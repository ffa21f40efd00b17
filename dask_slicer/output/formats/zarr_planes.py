"""Planes of an array in a Zarr store, read without zarr-python.

The event loop of zarr-python, and the thread pools of compiled readers, do not survive a fork, and
torch's DataLoader forks its workers.
"""

from __future__ import annotations

import math
import os
import struct
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from dask_slicer.errors import CorruptFile
from dask_slicer.output.formats.base import read_json
from dask_slicer.output.formats.zarr_shards import ShardReader, shard_path
from dask_slicer.output.layout import ZARR_METADATA

# What the use of damaged metadata raises.
DAMAGE = (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError)
# Header of a Blosc 1 buffer: version, codec, flags, typesize, then sizes of the decoded bytes, of a
# block and of the buffer.
_BLOSC_SIZES = struct.Struct("<4xI4xI")
# Memory of each thread for a plane before it is converted.
_thread = threading.local()


class PlaneReader:
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
            self._per_shard = whole_number(per_shard)
            is_known, is_chunked = dtype in dtypes, sharding["chunk_shape"] == [1, *shape[1:]]
        except DAMAGE as error:
            raise CorruptFile(f"{self.path} is damaged ({error!r})") from None
        if found != list(shape) or shard != list(shape[1:]) or not is_chunked:
            raise CorruptFile(f"{self.path} has another shape than its case")
        if not is_known or codecs not in _CODECS:
            raise CorruptFile(
                f"{self.path} has a dtype or codecs that dask-slicer does not write: "
                f"{dtype}, {codecs}"
            )
        self.dtype: np.dtype[Any] = np.dtype(dtype).newbyteorder("<")
        self._plane_bytes = math.prod(shape[1:]) * self.dtype.itemsize
        self._size, self._decode = _CODECS[codecs]
        self._shards: dict[int, ShardReader] = {}

    def read(self, index: int) -> NDArray[Any]:
        """Return one plane."""
        chunk = self.chunk(index)  # which fills the whole plane
        plane = np.empty(self.shape[1:], dtype=self.dtype)
        self._decode_into(plane, chunk, index)
        return plane

    def read_scratch(self, index: int) -> NDArray[Any]:
        """Return one plane in memory of this thread that its next call overwrites."""
        chunk = self.chunk(index)
        memory = getattr(_thread, "memory", None)
        if memory is None or memory.size < self._plane_bytes:
            memory = _thread.memory = np.empty(self._plane_bytes, np.uint8)
        plane: NDArray[Any] = memory[: self._plane_bytes].view(self.dtype).reshape(self.shape[1:])
        self._decode_into(plane, chunk, index)
        return plane

    def read_into(self, out: NDArray[Any], index: int) -> None:
        """Read one plane into an array of any dtype that holds its numbers."""
        if self.dtype == out.dtype and out.flags.c_contiguous:
            self._decode_into(out, self.chunk(index), index)
        else:
            out[...] = self.read_scratch(index)

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
            with one_thread:
                self._decode(chunk, out)
        except (RuntimeError, ValueError) as error:
            raise self._damaged(index, str(error)) from None

    def _damaged(self, index: int, reason: str) -> CorruptFile:
        return CorruptFile(f"{self._folder}: slice {index} is damaged ({reason})")


class _BloscUsers:
    """Counts those for whom Blosc uses one thread, so that the last restores the setting."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_users = 0
        self._before: Any = None

    def __enter__(self) -> None:
        """Make Blosc use one thread: several write in any order, and do not survive a fork."""
        with self._lock:
            if not self._n_users:
                self._before, blosc.use_threads = blosc.use_threads, False
            self._n_users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._n_users = max(self._n_users - 1, 0)  # 0 in a child that was forked here
            if not self._n_users:
                blosc.use_threads = self._before

    def after_fork(self) -> None:
        """Forget the threads of the parent, which are not in its child, and their lock."""
        if self._n_users:
            blosc.use_threads = self._before
        self._lock, self._n_users = threading.Lock(), 0


one_thread = _BloscUsers()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=one_thread.after_fork)


# -- chunks ----------------------------------------------------------------------------------------


def _copy(chunk: NDArray[np.uint8], out: NDArray[Any]) -> None:
    out[...] = chunk.view(out.dtype).reshape(out.shape)


def _blosc_size(chunk: NDArray[np.uint8]) -> int:
    if len(chunk) < _BLOSC_SIZES.size:
        return 0
    n_bytes, n_encoded = _BLOSC_SIZES.unpack_from(chunk.data)
    return n_bytes if n_encoded == len(chunk) else 0


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


def whole_number(number: Any, *, least: int = 1) -> int:
    """Return a number of metadata; raise ValueError unless it is an integer, `least` or more."""
    if type(number) is not int or number < least:
        raise ValueError(f"{number!r} is no number of slices, rows or columns")
    return number
