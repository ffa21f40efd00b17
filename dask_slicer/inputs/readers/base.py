"""The Reader protocol, and the header that every reader returns."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

_SELECTED = re.compile(r"(?P<path>.+)\[(?P<volume>\d+)\]")


def split_volume(path: str) -> tuple[str, int | None]:
    """Return a path and the volume of a 4D file that it selects, None for all.

    >>> split_volume("scan.nii.gz[2]"), split_volume("scan.nii.gz")
    (('scan.nii.gz', 2), ('scan.nii.gz', None))
    """
    selected = _SELECTED.fullmatch(path)
    return (selected["path"], int(selected["volume"])) if selected else (path, None)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VolumeHeader:
    """What a volume's header says, checked."""

    path: str
    shape: tuple[int, int, int]  # trailing axes of length 1 dropped
    dtype: np.dtype[Any]  # with its byte order
    affine: NDArray[np.float64]  # (4, 4), voxel → RAS+ mm; finite and not singular
    oriented: bool  # whether the file gives an orientation; if not, the affine is a guess
    slope: float  # intensity = stored × slope + intercept
    intercept: float
    file_bytes: int  # on disk

    @property
    def voxel_bytes(self) -> int:
        """Return the bytes that the voxels take, uncompressed."""
        return self.shape[0] * self.shape[1] * self.shape[2] * self.dtype.itemsize


class Reader(Protocol):
    """A module that reads one family of file formats.

    To add a reader, write such a module in this folder and add it to `READERS` in `__init__.py`.
    A reader may return a subclass of `VolumeHeader`, with what it needs to find the voxels.

    Attributes
    ----------
    SUFFIXES : tuple of str
        Of its files, in lower case, such as ``(".nii.gz", ".nii")``. Files with these suffixes
        count as volumes wherever a layout looks for them.
    """

    SUFFIXES: tuple[str, ...]

    def read_header(self, path: str | Path) -> VolumeHeader:
        """Return the header of a volume; reads a few kilobytes.

        Raise an error if the voxels could not be read later, as far as the header and the size of
        the file show it: planning then names the case before the run starts.

        Raises
        ------
        MissingFile, PermissionDenied
            `errors.as_case_error` makes them from an OSError.
        CorruptFile
            The file is not of this format, or too short for what its header promises.
        UnsupportedImage
            Not one 3D volume of real numbers of up to 64 bits.
        GeometryMismatch
            The affine is singular, or not finite; `core.geometry.check_affine` raises it.
        """
        ...

    def read_voxels(self, path: str | Path) -> tuple[VolumeHeader, NDArray[np.generic]]:
        """Return the header of a volume and its voxels as stored, not yet scaled.

        Returns
        -------
        header : VolumeHeader
            As `read_header` returns it.
        stored : ndarray of shape ``header.shape`` and dtype ``header.dtype``
            In the order of axes that the affine describes. It may be read-only, and a view of the
            mapped file.

        Raises
        ------
        CorruptFile
            As `read_header`, and if the voxels are cut or damaged: never return what a checksum
            or a length shows to be wrong.
        """
        ...
