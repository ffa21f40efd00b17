"""Text headers, as NRRD and MetaImage have them: lines, numbers, paths of voxels, affines."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.geometry import check_affine
from dask_slicer.errors import CorruptFile, UnsupportedImage
from dask_slicer.inputs.readers.files import refuse_unknown

# Names of 100 segments take some 100 kB.
_MOST_TEXT = 1 << 22
_FIRST_READ = 4096
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|nan|inf)", re.IGNORECASE)
_INTEGER = re.compile(r"[-+]?\d{1,18}")


def read_text(
    path: str, *, first: re.Pattern[bytes], end: re.Pattern[bytes], format_name: str
) -> tuple[str, int | None]:
    """Return the header of a file, and the place of the byte after it, None if it has no end.

    `first` is what the file starts with, `end` what ends the header and belongs to it.
    """
    with open(path, "rb") as file:
        head = file.read(_FIRST_READ)
        if not first.match(head):
            refuse_unknown(head, format_name)
        while True:
            match = end.search(head)
            if match:
                return head[: match.end()].decode("utf-8", "replace"), match.end()
            more = file.read(len(head))
            if not more:
                return head.decode("utf-8", "replace"), None
            head += more
            if len(head) > _MOST_TEXT:
                raise CorruptFile(f"the header has no end in its first {_MOST_TEXT:,} bytes")


def add_field(fields: dict[str, str], name: str, value: str) -> None:
    """Add a field to those of a header, which names none twice."""
    if name in fields:
        raise CorruptFile(f"the header is damaged (it gives {name!r} twice)")
    fields[name] = value.strip()


def integers(text: str, *, name: str, count: int | None = None) -> list[int]:
    """Return the integers of a field, of which there are `count`."""
    words = text.split()
    if not all(map(_INTEGER.fullmatch, words)) or len(words) != (count or len(words)):
        raise _damaged(name, text)
    return [int(word) for word in words]


def numbers(text: str, *, name: str, count: int) -> NDArray[np.float64]:
    """Return the numbers of a field, of which there are `count`."""
    words = text.split()
    if not all(map(_NUMBER.fullmatch, words)) or len(words) != count:
        raise _damaged(name, text)
    return np.array(words, dtype=np.float64)


def required(fields: Mapping[str, str], name: str) -> str:
    """Return the text of a field that every header has."""
    if name not in fields:
        raise CorruptFile(f"the header is damaged (it has no field {name!r})")
    return fields[name]


def check_lengths(shape: Sequence[int]) -> None:
    """Raise an error unless all lengths are 1 or more."""
    if any(length < 1 for length in shape):
        raise CorruptFile(f"the header is damaged (it gives the shape {'×'.join(map(str, shape))})")


def affine_of(
    directions: NDArray[np.float64], origin: NDArray[np.float64], signs: Sequence[float]
) -> NDArray[np.float64]:
    """Return the checked affine of axes in mm.

    Columns of the (3, 3) `directions` are the steps along the array axes; `signs` turn the axes of
    the file's space into right, front and top.
    """
    affine = np.eye(4)
    affine[:3, :3] = directions
    affine[:3, 3] = origin
    affine[:3] *= np.array(signs, dtype=np.float64)[:, None]
    affine += 0.0  # turns -0.0 into 0.0
    check_affine(affine)
    return affine


def data_path_of(path: str, name: str) -> str:
    """Return the path of a file of voxels that a header names: in its own folder, or below."""
    if name.split()[:1] == ["LIST"] or "%" in name:
        raise UnsupportedImage("its voxels are in several files; save it as one .nrrd or .mha")
    parts = re.split(r"[/\\]", name)
    if not all(parts) or ".." in parts or re.match(r"[a-zA-Z]:", name):
        raise UnsupportedImage(
            f"its voxels are in {name!r}, outside of its folder; put them beside it, and name them "
            "in the header"
        )
    return os.fspath(Path(path).parent.joinpath(*parts))


def _damaged(name: str, text: str) -> CorruptFile:
    return CorruptFile(f"the header is damaged (it gives {name} as {text[:80]!r})")
