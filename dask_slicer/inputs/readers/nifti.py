"""NIfTI-1 and NIfTI-2, and pairs of .hdr and .img, also of Analyze 7.5.

Plain or gzipped (recognised by the bytes, not the name), in both byte orders, with nibabel.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any, cast

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from dask_slicer.errors import CorruptFile, MissingFile, UnsupportedImage
from dask_slicer.inputs.readers.base import check_line, check_volume
from dask_slicer.inputs.readers.files import (
    StoredHeader,
    check_backed,
    file_size,
    read_head,
    read_voxels,
    refuse_unknown,
)
from dask_slicer.inputs.readers.nifti_orientation import Orientation, analyze_orientation, orient
from dask_slicer.utils.formatting import format_shape

__all__ = ["SUFFIXES", "read_header", "read_voxels", "stored_header"]

# Of a pair, the header is the volume.
SUFFIXES: tuple[str, ...] = (".nii.gz", ".nii", ".hdr.gz", ".hdr")

# The longest header, in bytes.
_HEAD = nib.Nifti2Header.sizeof_hdr
# nibabel logs its repairs of odd headers, which are of no use to users.
_SILENT = logging.getLogger(f"{__name__}.silent")
_SILENT.disabled = True
# Data types of NIfTI that are too wide to compute with: float128, complex256.
_WIDE = (1536, 2048)
# Fields that nibabel's checks look at, beside pixdim.
_CHECKED = ("sizeof_hdr", "datatype", "bitpix", "vox_offset", "magic", "qform_code", "sform_code")
_NIFTI_1 = (nib.Nifti1Header, nib.nifti1.Nifti1PairHeader)
_LABEL = 1002
# Values that are no intensities of a grid, by intent code.
_INTENTS = {
    1004: "a matrix at each voxel, such as a tensor",
    1005: "a symmetric matrix at each voxel, such as a tensor",
    1006: "a displacement field",
    1007: "a vector at each voxel, such as a deformation field",
    1008: "points of a surface",
    1009: "triangles of a surface",
    **dict.fromkeys(range(3000, 3100), "CIFTI: values of surfaces and grey matter"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Format:
    """One of the formats that share the layout of their first bytes."""

    kind: type[nib.analyze.AnalyzeHeader]
    is_pair: bool
    is_analyze: bool = False


def read_header(
    path: str, *, volume: int | None = None, orientation_from: str = "sform"
) -> StoredHeader:
    """Return a volume's header; reads a few kilobytes. See `Reader.read_header`."""
    file_bytes = data_bytes = file_size(path)
    head, gzipped = read_head(path, _HEAD)
    format_ = _format(head, is_header_file=path.lower().endswith((".hdr", ".hdr.gz")))
    header, pixdim = _nibabel_header(head, format_)
    data_path = path
    if format_.is_pair:
        data_path = _data_path(path)
        data_bytes = file_size(data_path)
        file_bytes += data_bytes
        gzipped = data_path.lower().endswith(".gz")  # raw voxels may begin with any bytes
    shape = _lengths(header)
    n_volumes = shape[3] if len(shape) == 4 else 1
    volume = check_volume(volume, shape=shape, n_volumes=n_volumes)
    dtype = _dtype(header)
    analyze_path = path if format_.is_analyze else None
    orientation = _orientation(
        header, pixdim, analyze_path=analyze_path, orientation_from=orientation_from
    )
    slope, intercept = _scaling(header)
    stored = StoredHeader(
        path=path,
        shape=(shape[0], shape[1], shape[2]),
        dtype=dtype,
        affine=orientation.affine.copy(),
        oriented=orientation.oriented,
        slope=slope,
        intercept=intercept,
        file_bytes=file_bytes,
        n_volumes=n_volumes,
        is_label=not format_.is_analyze and int(header["intent_code"]) == _LABEL,
        notes=orientation.notes,
        data_files=(path, data_path) if format_.is_pair else (path,),
        other_affine=orientation.other,
        data_path=data_path,
        encoding="gzip" if gzipped else "raw",
        offset=int(header.get_data_offset()),
        volume=volume,
    )
    check_backed(stored, data_bytes)
    return stored


def stored_header(path: str) -> bytes:
    """Return the bytes of a header as they are stored; empty for Analyze, which has no forms."""
    head, _ = read_head(path, _HEAD)
    format_ = _format(head, is_header_file=path.lower().endswith((".hdr", ".hdr.gz")))
    return b"" if format_.is_analyze else head[: format_.kind.sizeof_hdr]


def _format(head: bytes, *, is_header_file: bool) -> _Format:
    sizes = {int.from_bytes(head[:4], order) for order in ("little", "big")}
    if nib.Nifti1Header.sizeof_hdr in sizes:
        kind, magic = nib.Nifti1Header, head[344:348]
    elif nib.Nifti2Header.sizeof_hdr in sizes:
        kind, magic = nib.Nifti2Header, head[4:8]
    else:
        refuse_unknown(head, "a NIfTI file")
    if not is_header_file:
        return _Format(kind=kind, is_pair=False)
    if magic[:3] in (b"n+1", b"n+2"):
        raise UnsupportedImage("the header is that of a single file; let its name end in .nii")
    if magic[:3] in (b"ni1", b"ni2"):
        return _Format(
            kind=nib.nifti1.Nifti1PairHeader
            if kind is nib.Nifti1Header
            else nib.nifti2.Nifti2PairHeader,
            is_pair=True,
        )
    if kind is nib.Nifti2Header:
        refuse_unknown(head, "a NIfTI file")
    return _Format(kind=nib.Spm2AnalyzeHeader, is_pair=True, is_analyze=True)


def _data_path(path: str) -> str:
    """Return the path of the voxels of a pair."""
    stem = path[: path.lower().rindex(".hdr")]
    suffix = ".IMG" if path[len(stem) :].startswith(".HDR") else ".img"
    paths = [stem + suffix, stem + suffix + (".GZ" if suffix == ".IMG" else ".gz")]
    existing = [data_path for data_path in paths if os.path.lexists(data_path)]
    if not existing:
        raise MissingFile(f"{paths[0]} is not beside it, which holds the voxels of the pair")
    if len(existing) > 1:
        names = " and ".join(map(os.path.basename, existing))
        raise UnsupportedImage(f"both {names} are beside it; remove the wrong one")
    return existing[0]


def _nibabel_header(head: bytes, format_: _Format) -> tuple[nib.Nifti1Header, NDArray[np.float64]]:
    """Return a header, and its spacing before nibabel repaired it."""
    kind = format_.kind
    try:
        header = kind.from_fileobj(BytesIO(head[: kind.sizeof_hdr]), check=False)
        with np.errstate(invalid="ignore"):  # a signalling NaN
            pixdim = header["pixdim"][1:4].astype(np.float64)
        is_wide = header["datatype"] in _WIDE  # which nibabel supports on some machines
        # Repairs and refuses the same headers as nibabel does on loading.
        if not is_wide and not _is_sound(header):
            header.check_fix(logger=_SILENT)
        offset = int(header.get_data_offset())
    except (HeaderDataError, WrapStructError, ValueError, OverflowError) as error:
        raise CorruptFile(f"the header is damaged ({error})") from None
    if is_wide:
        raise UnsupportedImage("expected real numbers of up to 64 bits")
    if not format_.is_pair and header["magic"].item()[:3] not in (b"n+1", b"n+2"):
        raise UnsupportedImage("this is the header of a pair; let its name end in .hdr")
    if offset < (0 if format_.is_pair else kind.sizeof_hdr):
        raise CorruptFile(f"the header is damaged (it puts the voxels at its own byte {offset})")
    return cast("nib.Nifti1Header", header), pixdim


def _is_sound(header: nib.analyze.AnalyzeHeader) -> bool:
    """Return whether nibabel has nothing to repair: its checks take as long as all the rest."""
    qfac, *lengths = header["pixdim"][:4].tolist()
    if type(header) not in _NIFTI_1 or qfac not in (-1, 1) or not all(n > 0 for n in lengths):
        return False
    return _passes_checks(type(header), *(header[name].item() for name in _CHECKED))


@lru_cache(maxsize=256)
def _passes_checks(kind: type[nib.Nifti1Header], *fields: Any) -> bool:
    """Return whether a header with these fields passes nibabel's checks without a repair."""
    header = kind()
    for name, value in zip(_CHECKED, fields, strict=True):
        header[name] = value
    before = header.binaryblock
    try:
        header.check_fix(logger=_SILENT)
    except HeaderDataError:
        return False
    return bool(header.binaryblock == before)


def _lengths(header: nib.Nifti1Header) -> tuple[int, ...]:
    """Return the three or four lengths of the axes."""
    try:
        shape = tuple(int(length) for length in header.get_data_shape())
    except HeaderDataError as error:  # a length is missing where Freesurfer would put it
        raise CorruptFile(f"the header is damaged ({error})") from None
    if any(length < 1 for length in shape):
        raise CorruptFile(f"the header is damaged (it gives the shape {'×'.join(map(str, shape))})")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) < 3:
        raise UnsupportedImage(f"expected a 3D volume, found {len(shape)}D {format_shape(shape)}")
    intent = int(header["intent_code"]) if "intent_code" in header else 0
    what = _INTENTS.get(intent, "")
    if len(shape) > 4 and shape[:4] == (1, 1, 1, 1) and not what:
        what = _INTENTS[3000]
    if len(shape) > 4 or what.startswith("CIFTI"):
        raise UnsupportedImage(
            f"expected a 3D volume, found {len(shape)}D {format_shape(shape)}"
            + (f": {what}; it cannot be sliced" if what else "; save its volumes apart")
        )
    check_line(shape)
    return shape


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


def _scaling(header: nib.Nifti1Header) -> tuple[float, float]:
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise CorruptFile(f"the header is damaged ({error})") from None
    return (1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept))


def _orientation(
    header: nib.Nifti1Header,
    pixdim: NDArray[np.float64],
    *,
    analyze_path: str | None,
    orientation_from: str,
) -> Orientation:
    try:
        if analyze_path:
            return analyze_orientation(header, analyze_path)
        return orient(header, pixdim=pixdim, orientation_from=orientation_from)
    except HeaderDataError as error:
        raise CorruptFile(f"the header is damaged ({error})") from None
