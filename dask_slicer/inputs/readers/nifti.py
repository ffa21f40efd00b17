"""NIfTI-1 and NIfTI-2: headers without voxels, voxels without copies.

In one file, plain or gzipped (recognised by its bytes, not its name), in both byte orders. A header
may promise anything: memory is reserved only after the size of the file shows that it can be true.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
from isal import igzip, igzip_lib, isal_zlib
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from dask_slicer.core.geometry import SINGULAR, check_affine
from dask_slicer.errors import (
    CaseError,
    CorruptFile,
    GeometryMismatch,
    MissingFile,
    UnsupportedImage,
    as_case_error,
)
from dask_slicer.inputs.readers.base import VolumeHeader
from dask_slicer.utils.formatting import format_shape

SUFFIXES: tuple[str, ...] = (".nii.gz", ".nii")

_GZIP = b"\x1f\x8b"
# The longest header, in bytes.
_HEAD = nib.Nifti2Header.sizeof_hdr
# Holds the header, also in most gzipped files.
_FIRST_READ = 4096
# zlib's code for a deflate stream with gzip's header and trailer.
_GZIP_WINDOW = 31
# nibabel logs its repairs of odd headers, which are of no use to users.
_SILENT = logging.getLogger(f"{__name__}.silent")
_SILENT.disabled = True
# The greatest ratio by which deflate can compress.
_MOST_DEFLATED = 1032
# Data types of NIfTI that are too wide to compute with: float128, complex256.
_WIDE = (1536, 2048)
# Bytes that may follow the voxels, since some writers pad.
_TRAILER = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NiftiHeader(VolumeHeader):
    """A NIfTI header, checked; its affine is the sform if its code is over 0, else the qform."""

    offset: int  # of the first voxel, in bytes
    gzipped: bool


def read_header(path: str | Path) -> NiftiHeader:
    """Return a volume's header; reads a few kilobytes. See `Reader.read_header`."""
    path = os.fspath(path)
    try:
        file_bytes = _size_of_file(path)
        with open(path, "rb") as file:
            head = file.read(_FIRST_READ)
        gzipped = head.startswith(_GZIP)
        if gzipped:
            head = _inflated_head(head, path)
        header = _parse(head, path, file_bytes=file_bytes, gzipped=gzipped)
        _check_backed(header)
    except (OSError, MemoryError) as error:
        raise as_case_error(error, step="load") from error
    except CaseError as error:
        raise type(error)(f"{path}: {error}") from None
    return header


def read_voxels(path: str | Path) -> tuple[NiftiHeader, NDArray[np.generic]]:
    """Return a volume's header and its stored numbers, in Fortran order and read-only.

    They are a view of the inflated bytes, or of the mapped file if it is not compressed. The gzip
    stream must hold what the header promises, and match its checksum. See `Reader.read_voxels`.
    """
    header = read_header(path)
    count = header.voxel_bytes // header.dtype.itemsize
    try:
        buffer = _inflate(header) if header.gzipped else np.memmap(header.path, mode="r")
        flat = np.frombuffer(buffer, dtype=header.dtype, count=count, offset=header.offset)
    except (OSError, MemoryError) as error:
        raise as_case_error(error, step="load") from error
    except CaseError as error:
        raise type(error)(f"{header.path}: {error}") from None
    return header, flat.reshape(header.shape, order="F")


def _size_of_file(path: str) -> int:
    try:
        status = Path(path).stat()
    except ValueError:  # NUL, or half a character
        raise MissingFile("no file can have this name") from None
    if stat.S_ISDIR(status.st_mode):
        raise UnsupportedImage("expected a NIfTI file, found a directory")
    if not stat.S_ISREG(status.st_mode):
        raise UnsupportedImage("expected a NIfTI file, found a device or pipe")
    if status.st_size == 0:
        raise CorruptFile("the file has zero bytes; copy it again")
    return status.st_size


def _inflated_head(head: bytes, path: str) -> bytes:
    """Return the first bytes of a gzip file, from those already read if they suffice."""
    # Damage is reported below. The stubs of isal do not type its error as a class.
    with suppress(isal_zlib.error):  # type: ignore[arg-type]
        inflated: bytes = isal_zlib.decompressobj(_GZIP_WINDOW).decompress(head, _HEAD)
        if len(inflated) == _HEAD:
            return inflated
    with _inflating(path) as file:
        return file.read(_HEAD)


@contextmanager
def _inflating(path: str) -> Iterator[igzip.GzipFile]:
    """Open a gzip file of one or more members; its damage is a CorruptFile."""
    try:
        with igzip.GzipFile(path) as file:
            yield file
    except EOFError:
        raise CorruptFile("the gzip stream ends early; copy it again") from None
    # The stubs of isal do not type its error as an exception.
    except (igzip.BadGzipFile, igzip_lib.IsalError) as error:  # type: ignore[misc]
        raise CorruptFile(f"the gzip stream is damaged ({error}); copy it again") from None


def _parse(head: bytes, path: str, *, file_bytes: int, gzipped: bool) -> NiftiHeader:
    header = _nibabel_header(head)
    try:
        lengths = tuple(int(length) for length in header.get_data_shape())
    except HeaderDataError as error:  # a length is missing where Freesurfer would put it
        raise CorruptFile(f"the header is damaged ({error})") from None
    shape = _shape(lengths)
    dtype = _dtype(header)
    try:
        slope, intercept = header.get_slope_inter()
        with np.errstate(all="ignore"):  # the result is checked
            affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except HeaderDataError as error:
        raise CorruptFile(f"the header is damaged ({error})") from None
    except (ValueError, np.linalg.LinAlgError):
        raise GeometryMismatch(SINGULAR) from None
    check_affine(affine)
    return NiftiHeader(
        path=path,
        shape=shape,
        dtype=dtype,
        affine=affine,
        oriented=bool(header["sform_code"] > 0 or header["qform_code"] > 0),
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        offset=int(header.get_data_offset()),
        file_bytes=file_bytes,
        gzipped=gzipped,
    )


def _nibabel_header(head: bytes) -> nib.Nifti1Header:
    sizes = {int.from_bytes(head[:4], order) for order in ("little", "big")}
    kind: type[nib.Nifti1Header] | None = None
    if nib.Nifti1Header.sizeof_hdr in sizes:
        kind = nib.Nifti1Header
    elif nib.Nifti2Header.sizeof_hdr in sizes:
        kind = nib.Nifti2Header
    if kind is None:
        raise CorruptFile("the bytes are not those of a NIfTI file")
    try:
        header = kind.from_fileobj(BytesIO(head[: kind.sizeof_hdr]), check=False)
        is_wide = header["datatype"] in _WIDE  # which nibabel supports on some machines
        # Repairs and refuses the same headers as nibabel does on loading.
        if not is_wide:
            header.check_fix(logger=_SILENT)
        offset = int(header.get_data_offset())
    except (HeaderDataError, WrapStructError, ValueError, OverflowError) as error:
        raise CorruptFile(f"the header is damaged ({error})") from None
    if is_wide:
        raise UnsupportedImage("expected real numbers of up to 64 bits")
    if header["magic"].item()[:3] not in (b"n+1", b"n+2"):
        raise UnsupportedImage("expected a NIfTI file, found half of an .hdr/.img pair; convert it")
    if offset < kind.sizeof_hdr:
        raise CorruptFile(f"the header is damaged (it puts the voxels at its own byte {offset})")
    return cast(nib.Nifti1Header, header)


def _shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    if any(length < 1 for length in shape):
        raise CorruptFile(f"the header is damaged (it gives the shape {'×'.join(map(str, shape))})")
    volume, more = shape[:3], shape[3:]
    if len(volume) < 3:
        raise UnsupportedImage(f"expected a 3D volume, found {len(volume)}D {format_shape(shape)}")
    if any(length > 1 for length in more):
        raise UnsupportedImage(
            f"expected one volume, found {len(shape)}D {format_shape(shape)}; split it into volumes"
        )
    return volume[0], volume[1], volume[2]


def _dtype(header: nib.Nifti1Header) -> np.dtype[Any]:
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise CorruptFile(f"the header is damaged (unknown data type: {error})") from None
    if dtype.kind == "V" and not dtype.fields:
        raise UnsupportedImage("expected integers or floats up to 64 bits")
    if dtype.kind not in "iuf" or dtype.itemsize == 0:
        what = "RGB" if dtype.fields else {"c": "complex"}.get(dtype.kind, str(dtype))
        raise UnsupportedImage(f"expected real numbers, found {what} voxels")
    return cast("np.dtype[Any]", dtype)


def _check_backed(header: NiftiHeader) -> None:
    """Raise if the file is too short for the voxels that its header promises."""
    promised = header.offset + header.voxel_bytes
    most = header.file_bytes * (_MOST_DEFLATED if header.gzipped else 1)
    if promised > most:
        raise CorruptFile(
            f"the header gives {promised:,} bytes ({format_shape(header.shape)} "
            f"{header.dtype}), but the file of {header.file_bytes:,} bytes cannot hold them; it is "
            "cut off or damaged, copy it again"
        )


def _inflate(header: NiftiHeader) -> bytes:
    """Return the uncompressed bytes that the header promises; reads to the end for the checksum."""
    promised = header.offset + header.voxel_bytes
    with _inflating(header.path) as file:
        inflated = file.read(promised)  # readinto would make another copy
        trailer = file.read(_TRAILER + 1)
    if len(inflated) < promised:
        raise CorruptFile(
            f"the header gives {promised:,} bytes, but the gzip stream holds {len(inflated):,}; "
            "copy the file again"
        )
    if len(trailer) > _TRAILER:
        raise CorruptFile(
            f"the gzip stream holds more than the {promised:,} bytes that the header gives"
        )
    return inflated
