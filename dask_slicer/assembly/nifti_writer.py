"""NIfTI files with the header of a scan."""

from __future__ import annotations

from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip
from numpy.typing import NDArray

from dask_slicer.errors import CorruptFile
from dask_slicer.output.atomic import atomic_write
from dask_slicer.records import SourceGrid

SUFFIX = ".nii.gz"
_LEVEL = 1
_LABEL = 1002  # the intent code of label maps
# Fields of the scan's intensities.
_OF_VOXELS = (
    "scl_inter",
    "cal_max",
    "cal_min",
    "intent_code",
    "intent_p1",
    "intent_p2",
    "intent_p3",
)


def header_of(grid: SourceGrid) -> nib.Nifti1Header:
    """Return the header for volumes on the grid of a scan.

    That of a NIfTI file is kept with shape, forms and units as they are. Another format has none:
    then sform, and qform where it can hold the axes, are the affine of the file.
    """
    if not grid.header:
        return _new_header(grid)
    header: nib.Nifti1Header
    try:
        block = b64decode(grid.header)
        kind = nib.Nifti2Header if len(block) == nib.Nifti2Header.sizeof_hdr else nib.Nifti1Header
        header = kind.from_fileobj(BytesIO(block), check=False)
    except Exception as error:  # whatever a damaged journal leads to
        raise CorruptFile(f"the header of its scan in the journal is damaged ({error})") from None
    if header.get_data_shape()[:3] != grid.shape:
        raise CorruptFile("the header of its scan in the journal has another shape")
    header["magic"], header["vox_offset"] = kind.single_magic, kind.single_vox_offset
    header["dim"][0], header["dim"][4:] = 3, 1
    for name in _OF_VOXELS:
        header[name] = 0
    header["intent_name"], header["scl_slope"] = b"", 1
    return header


def _new_header(grid: SourceGrid) -> nib.Nifti1Header:
    header = nib.Nifti1Header()
    header.set_data_shape(grid.shape)
    affine = np.array(grid.affine)
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner", strip_shears=True)
    if not np.allclose(header.get_qform(), affine, atol=1e-3):
        header.set_qform(None, code=0)
    header.set_xyzt_units("mm")
    header["vox_offset"] = header.single_vox_offset
    return header


def write_nifti(
    path: Path, volume: NDArray[Any], grid: SourceGrid, *, temporary: Path | None = None
) -> int:
    """Write a label map, or probabilities with a last axis of classes; return the file's size."""
    header = header_of(grid)
    header.set_data_dtype(volume.dtype)
    if volume.ndim == 4:
        header["dim"][0], header["dim"][4] = 4, volume.shape[3]
    else:
        header["intent_code"] = _LABEL
    volume = volume.astype(header.get_data_dtype(), copy=False)  # in the byte order of the header
    with atomic_write(path, temporary=temporary) as file:
        # Without name and time, the same voxels are the same bytes.
        with igzip.IGzipFile("", "wb", compresslevel=_LEVEL, fileobj=file, mtime=0) as stream:
            stream.write(header.binaryblock)
            stream.write(bytes(int(header["vox_offset"]) - header.sizeof_hdr))  # no extension
            for number in range(volume.shape[-1]):
                stream.write(np.ascontiguousarray(volume[..., number].T).data)
        return file.tell()
