"""Reading of files that may hold anything: devices and deep nesting are refused."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

# Levels of objects and lists: our files have five.
_MOST_DEPTH = 50


def open_file(path: Path) -> BinaryIO:
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
