"""Arrays in mapped files: of inputs, and of scratch files that hold what memory does not.

The system reads pages of a mapped file when they are used, and drops them when it needs memory.
Until then they count as memory of the process, unless it gives them back (`release`).
"""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

# Written at once where room cannot be reserved.
_PIECE = 1 << 20
# File systems that cannot reserve room say one of these.
_CANNOT_RESERVE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
_PREFIX = "volume_"


class MappedFile(mmap.mmap):
    """A file in memory, which the base of every array on it leads to.

    Attributes
    ----------
    path : str
        Empty if the file has no name.
    scratch_dir : str
        Where arrays that are made of it have their files, since memory does not hold them all; its
        pages are given back after they were read. Empty if memory does.
    """

    path: str
    scratch_dir: str

    @classmethod
    def of(cls, descriptor: int, path: str, *, access: int, scratch_dir: str) -> Self:
        """Return the whole of an open file that is not empty."""
        mapped = cls(descriptor, 0, access=access)
        mapped.path, mapped.scratch_dir = path, scratch_dir
        return mapped


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """An array in a mapped file, for other processes: it takes no memory when it is sent.

    Attributes
    ----------
    path : str
    dtype : dtype
    offset : int
        Byte of the file at which the first element is.
    shape, strides : tuple of int
        Strides are in bytes, and may be negative.
    scratch_dir : str
        As in `MappedFile`.
    """

    path: str
    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    scratch_dir: str

    def open(self) -> NDArray[Any]:
        """Return the array, read-only; raise ValueError if the file has become too short."""
        data = map_file(self.path, scratch_dir=self.scratch_dir)
        try:
            array: NDArray[Any] = np.ndarray(
                self.shape, self.dtype, buffer=data, offset=self.offset, strides=self.strides
            )
        except (TypeError, ValueError):  # numpy's ways to say so
            raise ValueError(f"{self.path} is shorter than when it was first read") from None
        return array


def map_file(path: str, *, scratch_dir: str = "") -> NDArray[np.uint8]:
    """Return the bytes of a file, read-only; empty for an empty file.

    With `scratch_dir`, pages are given back, and other arrays are in files, too: see `MappedFile`.
    """
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:  # which cannot be mapped
            return np.empty(0, np.uint8)
        mapped = MappedFile.of(
            file.fileno(), path, access=mmap.ACCESS_READ, scratch_dir=scratch_dir
        )
    return np.frombuffer(mapped, np.uint8)


def scratch_file(n_bytes: int, folder: str, *, named: bool = False) -> NDArray[np.uint8]:
    """Return writable bytes, all zero, in a new file of a folder.

    The file has no name: it is gone when the last array on it is, also if the process is killed.

    Parameters
    ----------
    n_bytes : int
    folder : str
    named : bool
        Give it a name, so that other processes can open it; the caller removes it.

    Raises
    ------
    OSError
        With ENOSPC if the disk has no room for it: it is reserved now, since a process that writes
        to pages without room is killed.
    """
    if n_bytes == 0:
        return np.empty(0, np.uint8)
    if not named:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            return _reserved(file.fileno(), n_bytes, "", folder)
    descriptor, path = tempfile.mkstemp(prefix=_PREFIX, dir=folder)
    try:
        return _reserved(descriptor, n_bytes, path, folder)
    except BaseException:
        Path(path).unlink()
        raise
    finally:
        os.close(descriptor)


def mapping_of(array: NDArray[Any]) -> MappedFile | None:
    """Return the mapped file that an array is a view of; None for other arrays."""
    owner: object = array
    while not isinstance(owner, MappedFile):
        if isinstance(owner, np.ndarray):
            owner = owner.base
        elif isinstance(owner, memoryview):
            owner = owner.obj
        else:
            return None
    return owner


def scratch_dir_of(array: NDArray[Any]) -> str:
    """Return the folder for what is made of an array that memory does not hold; else empty."""
    mapped = mapping_of(array)
    return "" if mapped is None else mapped.scratch_dir


def empty_beside(array: NDArray[Any], shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array to be filled: in memory, or in a scratch file if `array` is too large.

    Too large is what was opened with a `scratch_dir`, and all that was made of it.
    """
    folder = scratch_dir_of(array)
    if not folder:
        return np.empty(tuple(shape), dtype)
    n_bytes = prod(shape) * np.dtype(dtype).itemsize
    return scratch_file(n_bytes, folder).view(dtype).reshape(tuple(shape))


def release(array: NDArray[Any]) -> None:
    """Give back the pages of an array that memory does not hold; its content stays the same.

    They are read again when they are used. For other arrays, nothing is done, nor where the system
    cannot do it.
    """
    mapped = mapping_of(array)
    if mapped is None or not mapped.scratch_dir or array.size == 0:
        return
    if hasattr(mmap, "MADV_DONTNEED"):
        first, last = _ends(array, mapped)
        first -= first % mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def reference(array: NDArray[Any]) -> Reference | None:
    """Return where an array is in a file that has a name; None for other arrays."""
    mapped = mapping_of(array)
    if mapped is None or not mapped.path:
        return None
    return Reference(
        path=mapped.path,
        dtype=array.dtype,
        offset=_address(array) - _address(np.frombuffer(mapped, np.uint8)),
        shape=array.shape,
        strides=array.strides,
        scratch_dir=mapped.scratch_dir,
    )


def _reserved(descriptor: int, n_bytes: int, path: str, folder: str) -> NDArray[np.uint8]:
    """Return the bytes of an empty file, after room for them is reserved."""
    try:
        _reserve(descriptor, n_bytes)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), folder) from None
    mapped = MappedFile.of(descriptor, path, access=mmap.ACCESS_WRITE, scratch_dir=folder)
    return np.frombuffer(mapped, np.uint8)


def _reserve(descriptor: int, n_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, n_bytes)
            return
        except OSError as error:
            if error.errno not in _CANNOT_RESERVE:
                raise
    zeros = bytes(_PIECE)
    written = 0
    while written < n_bytes:
        written += os.write(descriptor, zeros[: n_bytes - written])


def _ends(array: NDArray[Any], mapped: MappedFile) -> tuple[int, int]:
    """Return the first byte of a mapped file that an array has, and the one after the last."""
    steps = [(n - 1) * step for n, step in zip(array.shape, array.strides, strict=True)]
    first = _address(array) - _address(np.frombuffer(mapped, np.uint8))
    below, above = (sum(f(step, 0) for step in steps) for f in (min, max))
    return first + below, first + above + array.itemsize


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
