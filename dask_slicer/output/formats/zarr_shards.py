"""Zarr shards: chunks one after another, then an index of their positions.

Source: the Zarr v3 codec `sharding_indexed`, version 1.0, with the index at the end, and the codec
`crc32c`, version 1.0. This module writes them chunk by chunk, so that a volume is
not in memory twice, as with zarr-python; and reads them without a thread (see `zarr_reader`).
"""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import google_crc32c
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from dask_slicer.errors import CorruptFile

# Offset and length of a missing chunk in the index.
_MISSING = 2**64 - 1
_ENTRY = np.dtype("<u8")
_CHECKSUM_BYTES = 4
# Copied at once from file to file, by the system and by this process.
_MOST_COPIED, _COPIED_AT_ONCE = 1 << 30, 1 << 20


def shard_path(array: Path, number: int, n_axes: int) -> Path:
    """Return the path of a shard, of an array that is sharded along its first axis.

    >>> shard_path(Path("image"), 0, 4).as_posix()
    'image/c/0/0/0/0'
    """
    return array.joinpath("c", str(number), *["0"] * (n_axes - 1))


class ShardPiece(NamedTuple):
    """Neighbouring chunks of a shard in a file of their own: bytes of each, CRC-32 of the file."""

    lengths: tuple[int, ...]
    crc32: int


class ShardWriter:
    """Writes one shard, chunk by chunk; the file is open with mode ``xb``, so it has one writer.

    The index has `n_chunks` entries; chunks that are not appended are missing.
    """

    def __init__(self, file: BinaryIO, n_chunks: int) -> None:
        self._file = file
        self._n_chunks = n_chunks
        self._lengths: list[int] = []
        self._crc32 = 0

    def append(self, chunk: bytes) -> None:
        """Write the next chunk, which is encoded except for its checksum."""
        data = chunk + checksum(chunk)
        self._lengths.append(len(data))
        self._file.write(data)
        self._crc32 = isal_zlib.crc32(data, self._crc32)

    def piece(self) -> ShardPiece:
        """Return what has been written, as a piece of a shard; no index follows."""
        return ShardPiece(tuple(self._lengths), self._crc32)

    def finish(self, *, fsync: bool) -> tuple[int, int]:
        """Write the index; return the size of the file in bytes, and its CRC-32."""
        index = _index(self._lengths, self._n_chunks)
        self._file.write(index)
        self._file.flush()
        if fsync:
            os.fsync(self._file.fileno())
        return sum(self._lengths) + len(index), isal_zlib.crc32(index, self._crc32)


def join_pieces(
    pieces: Sequence[tuple[Path, ShardPiece]], n_chunks: int, *, fsync: bool
) -> tuple[int, int]:
    """Append the others, and the index, to the file of the first piece; return size and CRC-32."""
    (first, _), *others = pieces
    lengths: list[int] = []
    crc32 = 0
    for _, piece in pieces:
        lengths += piece.lengths
        crc32 = isal_zlib.crc32_combine(crc32, piece.crc32, sum(piece.lengths))
    index = _index(lengths, n_chunks)
    with open(first, "rb+", buffering=0) as file:
        file.seek(0, os.SEEK_END)
        for path, _ in others:
            _append(file, path)
        _write(file, index)
        if fsync:
            os.fsync(file.fileno())
    return sum(lengths) + len(index), isal_zlib.crc32(index, crc32)


def _append(file: io.FileIO, path: Path) -> None:
    with open(path, "rb", buffering=0) as piece:
        if hasattr(os, "copy_file_range"):  # half the time; the bytes stay in the system
            with suppress(OSError):  # some disks cannot
                while os.copy_file_range(piece.fileno(), file.fileno(), _MOST_COPIED):
                    pass
        while data := piece.read(_COPIED_AT_ONCE):
            _write(file, data)


def _write(file: io.FileIO, data: bytes) -> None:
    written = 0
    while written < len(data):  # a disk that is nearly full takes a part
        written += file.write(data[written:])


def _index(lengths: Sequence[int], n_chunks: int) -> bytes:
    """Return the index of a shard whose first chunks have these lengths, and its checksum."""
    entries = np.full((n_chunks, 2), _MISSING, dtype=_ENTRY)
    written = entries[: len(lengths)]
    written[:, 1] = lengths
    written[:, 0] = np.cumsum(written[:, 1]) - written[:, 1]
    index = entries.tobytes()
    return index + checksum(index)


class ShardReader:
    """The chunks of a memory-mapped shard; raises CorruptFile if its index is damaged."""

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
