"""FreeSurfer's MGH files, plain or gzipped; headers are nibabel's."""

from __future__ import annotations

import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader

from dask_slicer.core.geometry import check_affine
from dask_slicer.errors import CorruptFile
from dask_slicer.inputs.readers.base import check_line, check_volume
from dask_slicer.inputs.readers.files import (
    StoredHeader,
    check_backed,
    file_size,
    read_head,
    read_voxels,
    refuse_unknown,
)
from dask_slicer.inputs.readers.text_header import check_lengths

__all__ = ["SUFFIXES", "read_header", "read_voxels"]

SUFFIXES: tuple[str, ...] = (".mgz", ".mgh.gz", ".mgh")

_OFFSET = 284
# Texts that follow the voxels, such as the commands that made them.
_MOST_TAGS = 1 << 24
# The first four bytes: an intent, which nibabel does not know, and the version.
_VERSION = 1
_LABEL = 1


def read_header(
    path: str, *, volume: int | None = None, orientation_from: str = "sform"
) -> StoredHeader:
    """Return a volume's header; reads a few kilobytes. See `Reader.read_header`."""
    file_bytes = file_size(path)
    head, gzipped = read_head(path, _OFFSET)
    if head[:2] != b"\0\0" or head[3:4] != bytes([_VERSION]):
        refuse_unknown(head, "an MGH file")
    if len(head) < _OFFSET:
        raise CorruptFile("the file ends in its header; copy it again")
    header = MGHHeader(b"\0\0\0\1" + head[4:_OFFSET], check=False)
    shape = tuple(int(length) for length in header["dims"])
    check_lengths(shape)
    check_line(shape)
    n_volumes = shape[3]
    volume = check_volume(volume, shape=shape, n_volumes=n_volumes)
    try:
        dtype = np.dtype(header.get_data_dtype()).newbyteorder(">")
    except KeyError as error:
        raise CorruptFile(f"the header is damaged (unknown data type: {error})") from None
    with np.errstate(all="ignore"):  # the result is checked
        affine = np.asarray(header.get_affine(), dtype=np.float64)
    check_affine(affine)
    stored = StoredHeader(
        path=path,
        shape=(shape[0], shape[1], shape[2]),
        dtype=dtype,
        affine=affine,
        # goodRASFlag: nibabel takes coronal axes where it is 0.
        oriented=head[28:30] != b"\0\0",
        slope=1.0,
        intercept=0.0,
        file_bytes=file_bytes,
        n_volumes=n_volumes,
        is_label=head[2] == _LABEL,
        data_files=(path,),
        data_path=path,
        encoding="gzip" if gzipped else "raw",
        offset=_OFFSET,
        volume=volume,
        most_trailing=_MOST_TAGS,
    )
    check_backed(stored, file_bytes)
    return stored
