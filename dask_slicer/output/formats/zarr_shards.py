"""Zarr shards: chunks one after another, then an index of their positions.

Source: the Zarr v3 codec `sharding_indexed`, version 1.0, with the index at the end, and the codec
`crc32c`, version 1.0. This module writes them chunk by chunk, so that a volume is
not in memory twice, as with zarr-python; and reads them without a thread (see `zarr_reader`).
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from dask_slicer.errors import CorruptFile

# Offset and length of a missing chunk in the index.
_MISSING = 2**64 - 1
_ENTRY = np.dtype("<u8")
_CHECKSUM_BYTES = 4


def shard_path(array: Path, number: int, n_axes: int) -> Path:
    """Return the path of a shard, of an array that is sharded along its first axis.

    >>> shard_path(Path("image"), 0, 4).as_posix()
    'image/c/0/0/0/0'
    """
    return array.joinpath("c", str(number), *["0"] * (n_axes - 1))


class ShardWriter:
    """Writes one shard, chunk by chunk; the file is open with mode ``xb``, so it has one writer.

    The index has `n_chunks` entries; chunks that are not appended are missing.
    """

    def __init__(self, file: BinaryIO, n_chunks: int) -> None:
        self._file = file
        self._index = np.full((n_chunks, 2), _MISSING, dtype=_ENTRY)
        self._n_written = self._size = self._crc32 = 0

    def append(self, chunk: bytes) -> None:
        """Write the next chunk, which is encoded except for its checksum."""
        data = chunk + checksum(chunk)
        self._index[self._n_written] = self._size, len(data)
        self._n_written += 1
        self._write(data)

    def finish(self, *, fsync: bool) -> tuple[int, int]:
        """Write the index; return the size of the file in bytes, and its CRC-32."""
        index = self._index.tobytes()
        self._write(index + checksum(index))
        self._file.flush()
        if fsync:
            os.fsync(self._file.fileno())
        return self._size, self._crc32

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._size += len(data)
        self._crc32 = isal_zlib.crc32(data, self._crc32)


class ShardReader:
    """The chunks of one shard, from a memory-mapped file; its index has `n_chunks` entries.

    Raises CorruptFile if the index is cut off, or fails its checksum.
    """

    def __init__(self, path: Path, n_chunks: int) -> None:
        self._path = path
        length = n_chunks * 2 * _ENTRY.itemsize
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < length + _CHECKSUM_BYTES:
                raise CorruptFile(f"{path}: the shard is cut off, its index is missing")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._data = np.frombuffer(mapped, dtype=np.uint8)
        index, stored = np.split(self._data[-length - _CHECKSUM_BYTES :], [length])
        if checksum(index) != stored.tobytes():
            raise CorruptFile(f"{path}: the shard's index fails its checksum")
        self._index: Sequence[Sequence[int]] = index.view(_ENTRY).reshape(-1, 2).tolist()

    def chunk(self, position: int) -> NDArray[np.uint8]:
        """Return an encoded chunk; raise CorruptFile if it is missing or fails its checksum."""
        offset, length = self._index[position]
        data = self._data[offset : offset + length]
        content, stored = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        if len(data) != length or checksum(content) != stored.tobytes():
            raise CorruptFile(f"{self._path}: chunk {position} is damaged")
        return content


def checksum(data: bytes | NDArray[np.uint8]) -> bytes:
    """Return the CRC-32C of bytes, as stored.

    >>> checksum(b"123456789").hex()
    '839206e3'
    """
    return int(google_crc32c.value(data)).to_bytes(_CHECKSUM_BYTES, "little")
