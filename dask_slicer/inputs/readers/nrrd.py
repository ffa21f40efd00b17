"""NRRD files: .nrrd, .nhdr with a file of voxels, and the segmentations of 3D Slicer.

They are read here and not by ITK, which gives wrong voxels for a damaged gzip stream.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dask_slicer.errors import CorruptFile, UnsupportedImage
from dask_slicer.inputs.readers.base import check_volume, unit_notes
from dask_slicer.inputs.readers.files import StoredHeader, check_backed, file_size, read_voxels
from dask_slicer.inputs.readers.text_header import (
    add_field,
    affine_of,
    check_lengths,
    data_path_of,
    integers,
    numbers,
    read_text,
    required,
)
from dask_slicer.utils.formatting import format_shape

__all__ = ["SUFFIXES", "read_header", "read_voxels"]

SUFFIXES: tuple[str, ...] = (".seg.nrrd", ".nrrd", ".nhdr")

_FIRST = re.compile(rb"NRRD000[1-6]\r?\n")
_END = re.compile(rb"\r?\n\r?\n")
_TYPE = re.compile(
    r"(?P<sign>unsigned |signed |u)?(?P<name>char|short|int|long ?long|int(8|16|32|64))( int|_t)?"
)
_SIZES = {"char": 1, "short": 2, "int": 4, "longlong": 8}
_FLOATS = {"float": "f4", "double": "f8"}
_ENCODINGS = {"raw": "raw", "gzip": "gzip", "gz": "gzip"}
# What turns axes of space into right, front and top. Axes that are not named are taken as ITK
# takes them: left, back and top.
_LPS = (-1, -1, 1)
_SPACES = {
    **dict.fromkeys(("right-anterior-superior", "ras"), (1, 1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1, 1, 1)),
    **dict.fromkeys(("left-posterior-superior", "lps"), _LPS),
}
_MM = {"m": 1e3, "cm": 10.0, "um": 1e-3, "µm": 1e-3, "micron": 1e-3, "microns": 1e-3}
_SPATIAL = ("domain", "space")
_SPACE = (*_SPATIAL, "none", "???")
# Kinds of an axis along which volumes are counted; others make vectors or colours of numbers.
_SERIES = (*_SPACE, "list", "time", "vector", "scalar", "point", "stub")
# All fields of the format; a name beside them is damaged. Those that are not used here say nothing
# about the place or the values of voxels.
_FIELDS = frozenset(
    (
        *("axismaxs", "axismins", "blocksize", "byteskip", "centerings", "centers", "content"),
        *("datafile", "dimension", "encoding", "endian", "kinds", "labels", "lineskip", "max"),
        *("measurementframe", "min", "number", "oldmax", "oldmin", "sampleunits", "sizes", "space"),
        *("spacedimension", "spacedirections", "spaceorigin", "spaceunits", "spacings"),
        *("thicknesses", "type", "units"),
    )
)
# Spaces whose axes have no names.
_SCANNERS = ("", "scanner-xyz", "3d-right-handed", "3d-left-handed")
_SEGMENT = re.compile(r"Segment(\d+)_(Name|LabelValue|Layer)")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axes:
    """The lengths of all axes, and which of them is not of space, if any."""

    sizes: list[int]
    series: int | None  # the first or the last

    @property
    def shape(self) -> tuple[int, int, int]:
        first, second, third = (n for axis, n in enumerate(self.sizes) if axis != self.series)
        return first, second, third

    @property
    def n_volumes(self) -> int:
        return 1 if self.series is None else self.sizes[self.series]


def read_header(
    path: str, *, volume: int | None = None, orientation_from: str = "sform"
) -> StoredHeader:
    """Return a volume's header; reads a few kilobytes. See `Reader.read_header`."""
    file_bytes = data_bytes = file_size(path)
    text, end = read_text(path, first=_FIRST, end=_END, format_name="an NRRD file")
    fields, pairs = _parse(text)
    data_path, start = path, end or 0
    if "datafile" in fields:
        data_path, start = data_path_of(path, fields["datafile"]), 0
        data_bytes = file_size(data_path)
        file_bytes += data_bytes
    elif end is None:
        raise CorruptFile("the file ends in its header; copy it again")
    axes = _axes(fields)
    volume = check_volume(volume, shape=axes.sizes, n_volumes=axes.n_volumes)
    dtype = _dtype(fields)
    encoding = _ENCODINGS.get(required(fields, "encoding").lower())
    if encoding is None or fields.get("lineskip", "0") != "0":
        raise UnsupportedImage(
            f"its voxels are stored as {fields['encoding'][:80]!r}, or after lines to skip; "
            "save it with the encoding raw or gzip"
        )
    affine, notes = _affine(fields, axes)
    header = StoredHeader(
        path=path,
        shape=axes.shape,
        dtype=dtype,
        affine=affine,
        oriented=_space(fields) in _SPACES,
        slope=1.0,
        intercept=0.0,
        file_bytes=file_bytes,
        n_volumes=axes.n_volumes,
        is_label=any(map(_SEGMENT.match, pairs)),
        label_names=_label_names(pairs, layer=volume),
        notes=notes,
        data_files=tuple(dict.fromkeys([path, data_path])),
        data_path=data_path,
        encoding=encoding,
        start=start,
        offset=_offset(fields, encoding, axes, dtype, n_bytes=data_bytes - start),
        volume=volume,
        interleaved=axes.series == 0,
    )
    check_backed(header, data_bytes)
    return header


def _parse(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the fields of a header, their names in lower case without blanks, and its pairs."""
    fields: dict[str, str] = {}
    pairs: dict[str, str] = {}
    for line in text.split("\n")[1:]:
        name, colon, value = line.partition(":")
        if line.startswith("#") or not line.strip():
            continue
        field = name.lower().replace(" ", "")
        if not colon or (not value.startswith("=") and (field not in _FIELDS or value[:1] != " ")):
            raise CorruptFile(f"the header is damaged (in the line {line[:80]!r})")
        if value.startswith("="):
            pairs[name] = value[1:].strip()
        else:
            add_field(fields, field, value)
    return fields, pairs


def _axes(fields: Mapping[str, str]) -> _Axes:
    sizes = integers(required(fields, "sizes"), name="sizes")
    check_lengths(sizes)
    if integers(required(fields, "dimension"), name="dimension") != [len(sizes)]:
        raise CorruptFile("the header is damaged (its dimension and sizes disagree)")
    kinds = fields.get("kinds", "").lower().split()
    if kinds and len(kinds) != len(sizes):
        raise CorruptFile("the header is damaged (its dimension and kinds disagree)")
    if "spacedirections" in fields:
        vectors = _vectors(fields, len(sizes))
        others = [axis for axis, vector in enumerate(vectors) if vector is None]
    else:
        others = [axis for axis, kind in enumerate(kinds) if kind not in _SPATIAL]
        if len(sizes) == 3:
            others = [axis for axis in others if kinds[axis] not in _SPACE]
    found = f"{len(sizes)}D {format_shape(sizes)}"
    if len(sizes) - len(others) != 3 or len(others) > 1:
        raise UnsupportedImage(
            f"expected 3 axes of space, found {len(sizes) - len(others)} in {found}"
        )
    series = others[0] if others else None
    is_sound = series in (None, 0, 3) and all(
        kind in (_SERIES if axis == series else _SPACE) for axis, kind in enumerate(kinds)
    )
    if not is_sound:
        raise UnsupportedImage(
            f"expected a volume of real numbers, found {found} with axes {fields.get('kinds')}"
        )
    return _Axes(sizes=sizes, series=series)


def _space(fields: Mapping[str, str]) -> str:
    return fields.get("space", "").lower().removesuffix("-time")


def _vectors(fields: Mapping[str, str], dimension: int) -> list[NDArray[np.float64] | None]:
    """Return the step along each axis, None for an axis that is not of space."""
    texts = re.findall(r"none|\([^()]*\)", fields["spacedirections"])
    others = re.sub(r"none|\([^()]*\)", "", fields["spacedirections"])
    if len(texts) != dimension or others.strip():
        raise CorruptFile("the header is damaged (its dimension and space directions disagree)")
    n_numbers = 4 if dimension == 4 and "none" not in texts else 3  # with time as an axis of space
    vectors = [
        None if text == "none" else _vector(text, name="space directions", count=n_numbers)
        for text in texts
    ]
    if n_numbers == 3:
        return vectors
    matrix = np.array(vectors)
    if matrix[3, :3].any() or matrix[:3, 3].any():
        raise UnsupportedImage("its fourth axis is one of space")
    return [*matrix[:3, :3], None]


def _vector(text: str, *, name: str, count: int) -> NDArray[np.float64]:
    inner = text.removeprefix("(").removesuffix(")")
    if len(inner) != len(text) - 2:
        raise CorruptFile(f"the header is damaged (it gives {name} as {text[:80]!r})")
    return numbers(inner.replace(",", " "), name=name, count=count)


def _affine(fields: Mapping[str, str], axes: _Axes) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    space = _space(fields)
    if space not in _SPACES and space not in _SCANNERS:
        raise CorruptFile(f"the header is damaged (it gives space as {fields['space'][:80]!r})")
    if "spacedirections" in fields:
        if ("space" in fields) == ("spacedimension" in fields) or "spacings" in fields:
            raise CorruptFile("the header is damaged (its space directions are of no space)")
        vectors = _vectors(fields, len(axes.sizes))
        directions = np.array([vector for vector in vectors if vector is not None]).T
    elif "space" in fields or "spacedimension" in fields:
        raise CorruptFile("the header is damaged (it has a space, but no space directions)")
    else:
        spacings = np.ones(len(axes.sizes))
        if "spacings" in fields:
            spacings = numbers(fields["spacings"], name="spacings", count=len(axes.sizes))
        steps = [step for axis, step in enumerate(spacings) if axis != axes.series]
        directions = np.diag(np.nan_to_num(steps, nan=1.0))
    origin = np.zeros(3)
    if "spaceorigin" in fields:
        text = fields["spaceorigin"]
        origin = _vector(text, name="space origin", count=3 + (text.count(",") == 3))[:3]
    notes: tuple[str, ...] = ()
    units = re.findall(r'"([^"]*)"', fields.get("spaceunits", ""))
    if units and units[0] in _MM and len(set(units)) == 1:
        notes = unit_notes(units[0], _MM[units[0]])
        directions, origin = directions * _MM[units[0]], origin * _MM[units[0]]
    signs = _SPACES.get(space, _LPS)
    return affine_of(directions, origin, signs), notes


def _dtype(fields: Mapping[str, str]) -> np.dtype[np.generic]:
    name = required(fields, "type").lower()
    match = _TYPE.fullmatch(name)
    if name in _FLOATS:
        dtype = np.dtype(_FLOATS[name])
    elif match:
        word = match["name"].replace(" ", "")
        size = _SIZES.get(word) or int(word.removeprefix("int")) // 8
        dtype = np.dtype(f"{'u' if (match['sign'] or '').startswith('u') else 'i'}{size}")
    else:
        raise UnsupportedImage(f"expected integers or floats up to 64 bits, found {name[:80]!r}")
    if dtype.itemsize == 1:
        return dtype
    order = required(fields, "endian").lower()
    if order not in ("little", "big"):
        raise CorruptFile(f"the header is damaged (it gives endian as {fields['endian'][:80]!r})")
    return dtype.newbyteorder("<" if order == "little" else ">")


def _offset(
    fields: Mapping[str, str],
    encoding: str,
    axes: _Axes,
    dtype: np.dtype[np.generic],
    *,
    n_bytes: int,
) -> int:
    """Return the number of bytes to skip, where -1 means all bytes before the voxels."""
    (skip,) = integers(fields.get("byteskip", "0"), name="byte skip", count=1)
    if skip == -1 and encoding == "raw":
        skip = n_bytes - int(np.prod(axes.sizes, dtype=object)) * dtype.itemsize
        return max(skip, 0)  # check_backed refuses a file that is too short
    if skip < 0:
        raise CorruptFile(f"the header is damaged (it gives byte skip as {skip})")
    return skip


def _label_names(pairs: Mapping[str, str], *, layer: int) -> dict[int, str]:
    """Return the names of the segments in a layer of a segmentation, by label value."""
    segments: dict[str, dict[str, str]] = {}
    for key, value in pairs.items():
        match = _SEGMENT.fullmatch(key)
        if match:
            segments.setdefault(match[1], {})[match[2]] = value
    return {
        int(segment["LabelValue"]): segment["Name"]
        for segment in segments.values()
        if "Name" in segment
        and segment.get("LabelValue", "").isdecimal()
        and segment.get("Layer", "0") == str(layer)
    }
