"""Sizes and times of many files, in little memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

_NUMBERS = Struct("<qqq")


class Stamp(NamedTuple):
    """What a file is like: size in bytes, and mtime and ctime in ns; -1, 0, 0 if it is missing."""

    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: str) -> Stamp:
        """Return what a file is like now; raise OSError or ValueError if it cannot be reached."""
        status = os.stat(path)  # noqa: PTH116, a Path takes longer than the system's call
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


NO_FILE = Stamp(-1, 0, 0)


class Stamps:
    """What files were like when they were looked at first, by path.

    >>> stamps = Stamps()
    >>> stamps["a.nii"] = Stamp(352, 1, 2)
    >>> stamps.get("a.nii"), stamps.get("b.nii")
    (Stamp(size=352, mtime_ns=1, ctime_ns=2), None)
    """

    def __init__(self) -> None:
        self._packed: dict[str, bytes] = {}

    def __len__(self) -> int:
        return len(self._packed)

    def __setitem__(self, path: str, stamp: Stamp) -> None:
        self._packed[path] = _NUMBERS.pack(*stamp)

    def get(self, path: str) -> Stamp | None:
        """Return the stamp of a file, None if it was not looked at."""
        packed = self._packed.get(path)
        return None if packed is None else Stamp(*_NUMBERS.unpack(packed))

    def items(self) -> Iterator[tuple[str, Stamp]]:
        """Yield paths and stamps, in the order in which the files were looked at."""
        for path, packed in self._packed.items():
            yield path, Stamp(*_NUMBERS.unpack(packed))

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __contains__(self, path: object) -> bool:
        return path in self._packed
