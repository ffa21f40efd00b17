"""Arrays in .npz files: of those that `npz_archive` wrote, some planes alone; and of any others.

An archive that `npz_archive` wrote needs neither zipfile nor zlib: its headers are compared whole,
and libdeflate inflates it in about half the time. Its planes are pieces that end with a full flush,
so that some of them can be inflated without the others. All other archives, and damaged ones, are
left to zipfile and numpy, which say what is wrong with them.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import deflate
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from dask_slicer.output.formats.npz_archive import (
    END_BYTES,
    LAST_BLOCK,
    MOST_DEFLATED,
    StoredMember,
    ends_archive,
    stored_members,
)
from dask_slicer.utils.array_pool import ArrayPool
from dask_slicer.utils.files import open_file

_PIECE_BYTES = 1 << 18
# Number of axes and kinds of dtype of each array.
_ARRAYS = {"image": (3, "fiu"), "label": (2, "iu"), "metadata": (0, "U")}
# Of files; new memory takes as long to fill as inflating a tenth of a window.
_memory = ArrayPool(16)
# Bytes, inflated and deflated, that hold the header of any image of ours.
_BEGINNING = 256


class Arrays(Protocol):
    """The arrays of an .npz file; whatever is wrong with it raises an error of any kind."""

    def __contains__(self, name: str) -> bool:
        """Return whether there is such an array."""
        ...

    def array(self, name: str) -> NDArray[Any]:
        """Return an array."""
        ...

    def planes(self, wanted: Callable[[int], slice]) -> NDArray[Any]:
        """Return the planes of the image that are wanted of so many."""
        ...


class Header(NamedTuple):
    """The header of an array: shape, order, dtype, and its own length in bytes."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]
    n_bytes: int

    @property
    def array_bytes(self) -> int:
        """Return the length of the array that follows."""
        return math.prod(self.shape) * self.dtype.itemsize


class WrittenArrays:
    """The arrays of a file that `npz_archive` wrote; ValueError is raised for any other.

    Arrays are checked by their CRC-32, for which all of an array has to be inflated. Some planes of
    an image are inflated alone from a file that is, by its own CRC-32, the one that was written.

    Parameters
    ----------
    path : Path
    crc32 : callable
        Returns the CRC-32 of the file that was written; None if it is not known.
    """

    def __init__(self, path: Path, crc32: Callable[[], int | None]) -> None:
        with open_file(path) as file:
            n_bytes = file.seek(0, os.SEEK_END)
            file.seek(n_bytes - END_BYTES)
            if not ends_archive(file.read(), n_bytes):
                raise ValueError("it does not end as an archive of ours")
            file.seek(0)
            self._data = _memory.empty((n_bytes,), np.uint8)
            if file.readinto(self._data.data) != n_bytes:
                raise ValueError("it is shorter than it was")
        self._members = stored_members(self._data.data)
        self._crc32 = crc32

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def array(self, name: str) -> NDArray[Any]:
        """Return an array."""
        member = self._members[name]
        return _array(_content(member), name)

    def planes(self, wanted: Callable[[int], slice]) -> NDArray[Any]:
        """Return the planes of the image that are wanted of so many."""
        image = self.array("image")
        return image[wanted(len(image))]

    def image_header(self) -> Header:
        """Return the header of the image, of which no more is inflated."""
        member = self._members["image"]
        data: bytes | memoryview = member.data[:_BEGINNING]
        if member.deflated:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, _BEGINNING)
        header = _written_header(data, "image")
        if member.size != header.n_bytes + header.array_bytes:
            raise ValueError("the image holds less or more than its header says")
        return header

    def read_planes(self, planes: slice, out: NDArray[Any]) -> None:
        """Read planes of the image; no others are inflated if the file is the one written."""
        member, header = self._members["image"], self.image_header()
        n_planes, *shape = header.shape
        bounds = None
        some = len(out) < n_planes  # all at once are faster than one by one
        if some and member.deflated and self._crc32() == isal_zlib.crc32(self._data):
            bounds = _plane_bounds(member.data, n_planes)
        if bounds is None:
            out[...] = self.array("image")[planes]
            return
        for place, start, end in zip(
            out, bounds[planes], bounds[planes.start + 1 : planes.stop + 1], strict=True
        ):
            piece = b"".join((member.data[start:end], LAST_BLOCK))
            content = _inflated(piece, header.array_bytes // n_planes)
            place[...] = np.frombuffer(content, header.dtype).reshape(shape)


def _content(member: StoredMember) -> bytearray:
    content = _inflated(member.data, member.size) if member.deflated else bytearray(member.data)
    if len(content) != member.size or isal_zlib.crc32(content) != member.crc32:
        raise ValueError("it is damaged")
    return content


def _inflated(data: bytes | memoryview, n_bytes: int) -> bytearray:
    """Return what a deflate stream holds; raise an error if that is not n bytes."""
    if n_bytes > MOST_DEFLATED * (len(data) + 1):
        raise ValueError(f"{len(data)} bytes cannot hold {n_bytes}")
    content: bytearray = deflate.deflate_decompress(data, n_bytes)
    if len(content) != n_bytes:
        raise ValueError(f"{len(content)} bytes were inflated, not {n_bytes}")
    return content


def _array(content: bytearray, name: str) -> NDArray[Any]:
    """Return the array in an .npy file, which has its memory."""
    header = _written_header(content, name)
    if len(content) != header.n_bytes + header.array_bytes:
        raise ValueError(f"{name} holds less or more than its header says")
    return np.frombuffer(content, header.dtype, offset=header.n_bytes).reshape(header.shape)


def _written_header(content: bytes | bytearray | memoryview, name: str) -> Header:
    """Return the header of a C-ordered array of version 1.0, whose numbers are aligned."""
    n_bytes = 10 + int.from_bytes(content[8:10], "little")
    if content[:8] != b"\x93NUMPY\x01\x00" or n_bytes % 64:
        raise ValueError("its header is not as it is written")
    header = _parsed_header(bytes(content[:n_bytes]), name)
    if header.is_fortran:
        raise ValueError("its array is not in C order")
    return header


@lru_cache(maxsize=256)
def _parsed_header(content: bytes, name: str) -> Header:
    return _header(BytesIO(content), name)


def _plane_bounds(data: memoryview, n_planes: int) -> list[int] | None:
    """Return where each plane of a deflated image begins and ends; None if that is not clear.

    Header and planes are pieces of `npz_archive.piece`, each with one flush or two. What a flush
    leaves, 00 00 FF FF, may also be in a piece by chance. So all of it is searched, and there must
    be no more than those of the flushes.

    >>> # flushes:   ↓         ↓         ↓
    >>> #     header | plane 0 | plane 1 | last block
    """
    ends = _flush_ends(data)
    flushes, others = divmod(len(ends), 1 + n_planes)
    if others or flushes not in (1, 2) or data[ends[-1] :] != LAST_BLOCK:
        return None
    return ends[flushes - 1 :: flushes]


def _flush_ends(data: memoryview) -> list[int]:
    """Return the position after each empty stored block, 00 00 FF FF."""
    candidates = []
    for start in (0, 1):  # faster, by far, than a search in bytes, and without the GIL
        pairs = np.frombuffer(data, np.uint16, count=(len(data) - start) // 2, offset=start)
        candidates.append(2 * np.flatnonzero(pairs == 0xFFFF) + start)
    at = np.sort(np.concatenate(candidates))
    at = at[at >= 2]
    octets = np.frombuffer(data, np.uint8)
    ends: list[int] = (at[(octets[at - 2] == 0) & (octets[at - 1] == 0)] + 2).tolist()
    return ends


class ZipArrays:
    """The arrays of any .npz file; memory is reserved only as far as the file can hold it."""

    def __init__(self, archive: ZipFile) -> None:
        self._archive = archive

    def __contains__(self, name: str) -> bool:
        return f"{name}.npy" in self._archive.namelist()

    def header(self, name: str) -> Header:
        """Return what the header of an array says."""
        with self._archive.open(f"{name}.npy") as member:
            return _header(member, name)

    def array(self, name: str) -> NDArray[Any]:
        """Return an array."""
        info = self._archive.getinfo(f"{name}.npy")
        # Other compressions are not ours, and could pack any number of bytes into a few.
        if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
            raise ValueError(f"its {name} is neither stored nor deflated")
        with self._archive.open(info) as member:
            shape, is_fortran, dtype, _ = header = _header(member, name)
            n_bytes = header.array_bytes
            if n_bytes != info.file_size - member.tell():
                raise ValueError(f"its {name} holds less or more than {dtype} {shape}")
            if info.file_size > MOST_DEFLATED * (self._archive.start_dir + 1):
                raise ValueError(f"the file is too small for {n_bytes} bytes of {name}")
            content = np.empty(n_bytes, np.uint8)
            for start in range(0, n_bytes, _PIECE_BYTES):  # faster than at once
                content.data[start : start + _PIECE_BYTES] = member.read(_PIECE_BYTES)
        return content.view(dtype).reshape(shape, order="F" if is_fortran else "C")

    def planes(self, wanted: Callable[[int], slice]) -> NDArray[Any]:
        """Return the planes of the image that are wanted of so many."""
        image = self.array("image")
        return image[wanted(len(image))]


def _header(member: IO[bytes], name: str) -> Header:
    """Return the header of an array; raise ValueError if it is no such array."""
    n_axes, kinds = _ARRAYS[name]
    read = np.lib.format.read_array_header_2_0
    if np.lib.format.read_magic(member) == (1, 0):
        read = np.lib.format.read_array_header_1_0
    shape, is_fortran, dtype = read(member)
    if len(shape) != n_axes or dtype.kind not in kinds:
        raise ValueError(f"its {name} holds {dtype} {shape}")
    return Header(shape, is_fortran, dtype, member.tell())
