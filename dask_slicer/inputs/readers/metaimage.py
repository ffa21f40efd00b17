"""MetaImage files: .mha, and .mhd with a file of voxels.

They are read here and not by ITK, which gives wrong voxels for a damaged zlib stream.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

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

SUFFIXES: tuple[str, ...] = (".mha", ".mhd")

_FIRST = re.compile(rb"\s*(ObjectType|NDims|Comment|ObjectSubType)\s*=")
_END = re.compile(rb"^[ \t]*ElementDataFile[ \t]*=[^\r\n]*\r?\n", re.MULTILINE)
_DTYPES = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2"},
    **{"MET_INT": "i4", "MET_UINT": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8"},
    **{"MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
# Names of fields that mean the same.
_MATRIX = ("TransformMatrix", "Orientation", "Rotation")
_ORIGIN = ("Offset", "Position", "Origin")
_SPACING = ("ElementSpacing", "ElementSize")
_MSB = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
_LPS = (-1, -1, 1)
_MM = {"um": 1e-3, "cm": 10.0}


def read_header(
    path: str, *, volume: int | None = None, orientation_from: str = "sform"
) -> StoredHeader:
    """Return a volume's header; reads a few kilobytes. See `Reader.read_header`."""
    file_bytes = data_bytes = file_size(path)
    text, end = read_text(path, first=_FIRST, end=_END, format_name="a MetaImage file")
    fields = _parse(text)
    name = fields["ElementDataFile"]
    is_local = name.upper() == "LOCAL"
    if end is None and (is_local or path.lower().endswith(".mha")):
        raise CorruptFile("the file ends in its header; copy it again")
    data_path, start = path, end or 0
    if not is_local:
        data_path, start = data_path_of(path, name), 0
        data_bytes = file_size(data_path)
        file_bytes += data_bytes
    shape, n_channels = _shape(fields)
    n_volumes = shape[3] if len(shape) > 3 else n_channels
    seen = shape if n_channels == 1 else (*shape, n_channels)
    volume = check_volume(volume, shape=seen, n_volumes=n_volumes)
    dtype = _dtype(fields)
    n_bytes = n_volumes * shape[0] * shape[1] * shape[2] * dtype.itemsize
    start += _header_size(fields, trailing=data_bytes - start - n_bytes)
    affine, notes = _affine(fields, len(shape))
    header = StoredHeader(
        path=path,
        shape=(shape[0], shape[1], shape[2]),
        dtype=dtype,
        affine=affine,
        oriented=any(name in fields for name in _MATRIX),
        slope=1.0,
        intercept=0.0,
        file_bytes=file_bytes,
        n_volumes=n_volumes,
        notes=notes,
        data_files=tuple(dict.fromkeys([path, data_path])),
        data_path=data_path,
        encoding="zlib" if _is_true(fields, ("CompressedData",)) else "raw",
        start=start,
        volume=volume,
        interleaved=n_channels > 1,
    )
    check_backed(header, data_bytes)
    packed = fields.get("CompressedDataSize", "0")
    if integers(packed, name="CompressedDataSize", count=1)[0] > data_bytes - start:
        raise CorruptFile("the file is shorter than its CompressedDataSize; copy it again")
    return header


def _parse(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in text.split("\n"):
        name, sign, value = line.partition("=")
        if not line.strip() or name.strip() == "Comment":
            continue
        if not sign:
            raise CorruptFile(f"the header is damaged (in the line {line[:80]!r})")
        add_field(fields, name.strip(), value)
    required(fields, "ElementDataFile")  # the last, where the file was not cut
    if fields.get("ObjectType", "Image") != "Image":
        raise UnsupportedImage(f"expected an image, found {fields['ObjectType'][:80]!r}")
    if "BinaryData" in fields and not _is_true(fields, ("BinaryData",)):
        raise UnsupportedImage("its voxels are stored as text; save it as binary")
    scaling = [fields.get(f"ElementToIntensityFunction{name}") for name in ("Slope", "Offset")]
    if scaling[0] not in (None, "1") or scaling[1] not in (None, "0"):
        raise UnsupportedImage("it scales its voxels, which readers do differently; save it scaled")
    return fields


def _shape(fields: dict[str, str]) -> tuple[list[int], int]:
    """Return three or four lengths, and the number of channels."""
    (dimension,) = integers(required(fields, "NDims"), name="NDims", count=1)
    shape = integers(required(fields, "DimSize"), name="DimSize")
    channels = fields.get("ElementNumberOfChannels", "1")
    (n_channels,) = integers(channels, name="ElementNumberOfChannels", count=1)
    check_lengths([*shape, n_channels])
    if len(shape) != dimension:
        raise CorruptFile("the header is damaged (its NDims and DimSize disagree)")
    if dimension not in (3, 4) or (dimension == 4 and n_channels > 1):
        more = f" with {n_channels} channels" if n_channels > 1 else ""
        raise UnsupportedImage(
            f"expected a 3D volume, found {dimension}D {format_shape(shape)}{more}"
        )
    return shape, n_channels


def _dtype(fields: dict[str, str]) -> np.dtype[np.generic]:
    name = required(fields, "ElementType").removesuffix("_ARRAY")
    if name in ("MET_LONG", "MET_ULONG"):
        raise UnsupportedImage(
            f"{name} has 4 or 8 bytes, depending on the writer; save it as MET_INT"
        )
    if name not in _DTYPES:
        raise UnsupportedImage(f"expected integers or floats up to 64 bits, found {name[:80]!r}")
    return np.dtype(_DTYPES[name]).newbyteorder(">" if _is_true(fields, _MSB) else "<")


def _is_true(fields: dict[str, str], names: Sequence[str]) -> bool:
    value = _only(fields, names, "False").lower()
    if value not in ("true", "false", "1", "0"):
        raise CorruptFile(f"the header is damaged (it gives {names[0]} as {value[:80]!r})")
    return value in ("true", "1")


def _only(fields: dict[str, str], names: Sequence[str], default: str) -> str:
    """Return the value of the first of some fields that mean the same, which must agree."""
    values = [fields[name] for name in names if name in fields]
    if len(set(values)) > 1:
        raise CorruptFile(f"the header is damaged (it gives {names[0]} twice)")
    return values[0] if values else default


def _header_size(fields: dict[str, str], *, trailing: int) -> int:
    """Return the number of bytes to skip, where -1 means all bytes before the voxels."""
    (skip,) = integers(fields.get("HeaderSize", "0"), name="HeaderSize", count=1)
    if skip == -1 and not _is_true(fields, ("CompressedData",)):
        return max(trailing, 0)  # check_backed refuses a file that is too short
    if skip < 0 or (skip and fields["ElementDataFile"].upper() == "LOCAL"):
        raise CorruptFile(f"the header is damaged (it gives HeaderSize as {skip})")
    return skip


def _affine(fields: dict[str, str], dimension: int) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    identity = " ".join(map(str, np.eye(dimension, dtype=int).ravel()))
    matrix = numbers(_only(fields, _MATRIX, identity), name=_MATRIX[0], count=dimension**2)
    # A row for each axis of the array.
    matrix = matrix.reshape(dimension, dimension)
    if dimension > 3 and (matrix[3, :3].any() or matrix[:3, 3].any()):
        raise UnsupportedImage("its fourth axis is one of space")
    spacing_text = fields.get(_SPACING[0], fields.get(_SPACING[1], "1 " * dimension))
    spacing = numbers(spacing_text, name=_SPACING[0], count=dimension)[:3]
    if not (np.isfinite(spacing) & (spacing > 0)).all():
        raise CorruptFile(f"the header is damaged (it gives ElementSpacing as {spacing_text!r})")
    origin = numbers(_only(fields, _ORIGIN, "0 " * dimension), name=_ORIGIN[0], count=dimension)
    unit = fields.get("DistanceUnits", "mm")
    mm = _MM.get(unit, 1.0)
    affine = affine_of(matrix[:3, :3].T * spacing * mm, origin[:3] * mm, _LPS)
    return affine, unit_notes(unit, mm)
