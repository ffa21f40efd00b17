"""Files that may be anything: reading, without devices and deep nesting; links of folders."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

# Levels of objects and lists: our files have five.
_MOST_DEPTH = 50


def open_file(path: Path) -> BufferedReader:
    """Open a regular file for reading; raise OSError for others, which could block or never end."""
    mode = os.stat(path).st_mode  # noqa: PTH116, a Path takes longer than the system's call
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return path.open("rb")


def read_bytes(path: Path) -> bytes:
    """Return the content of a regular file."""
    with open_file(path) as file:
        return file.read()


def read_text(path: Path) -> str:
    """Return the content of a regular file; raise ValueError if it is not UTF-8."""
    return read_bytes(path).decode("utf-8")


def parse_json(text: str) -> Any:
    """Return the value of a JSON text; raise ValueError if it is none or nests too deep."""
    try:
        value = json.loads(text)
    except RecursionError:
        level: list[Any] = [None]
    else:
        level = [value]
        for _ in range(_MOST_DEPTH):
            level = [
                child
                for item in level
                if isinstance(item, dict | list)
                for child in (item.values() if isinstance(item, dict) else item)
            ]
    if level:
        raise ValueError("it nests too deep")
    return value


def drop_from_cache(paths: Iterable[str | Path]) -> None:
    """Ask the system, where it can be asked, to read files from the disk the next time."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def is_same_folder(path: Path, other: Path) -> bool:
    """Return whether two paths lead to one folder, also by links or in other cases of letters.

    Raise OSError if links form a loop.
    """
    path, other = _resolved(path), _resolved(other)
    with suppress(OSError):  # one is missing
        return path.samefile(other)
    return path == other


def _resolved(path: Path) -> Path:
    target = path.resolve()
    if target.is_symlink():  # from Python 3.13 on, resolve() does not raise
        raise OSError(f"Symlink loop from {str(path)!r}")
    return target
