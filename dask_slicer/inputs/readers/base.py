"""The Reader protocol, and the header that every reader returns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dask_slicer.errors import UnsupportedImage
from dask_slicer.utils.formatting import format_shape

# A file with a suffix, and the number of a volume in it.
_SELECTOR = re.compile(r"(?P<file>.+\.[a-z]+)\[(?P<volume>\d{1,9})\]", re.IGNORECASE | re.DOTALL)

# The end of the note of a header in other units than mm.
CONVERTED = "converted to mm"
# A line of more voxels is no volume: FreeSurfer stores values of surfaces so.
_LONGEST_LINE = 1000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VolumeHeader:
    """What a volume's header says, checked."""

    path: str  # with the selector of the volume, if there is one
    shape: tuple[int, int, int]  # trailing axes of length 1 dropped
    dtype: np.dtype[Any]  # with its byte order
    affine: NDArray[np.float64]  # (4, 4), voxel → RAS+ mm; finite and not singular
    oriented: bool  # whether the file gives an orientation; if not, the affine is a guess
    slope: float  # intensity = stored × slope + intercept
    intercept: float
    file_bytes: int  # on disk, of all its files
    n_volumes: int = 1  # in the file, of which this header describes one
    is_label: bool = False  # whether the header says that it is a label map
    label_names: dict[int, str] = field(default_factory=dict)  # by label value, if it has them
    notes: tuple[str, ...] = ()  # contradictions in the header, a clause each
    data_files: tuple[str, ...] = ()  # every file that it is read from
    # The other orientation that the header gives, if it contradicts the affine.
    other_affine: NDArray[np.float64] | None = None

    @property
    def voxel_bytes(self) -> int:
        """Return the bytes that the voxels of the volume take, uncompressed."""
        return self.shape[0] * self.shape[1] * self.shape[2] * self.dtype.itemsize


class Reader(Protocol):
    """A module that reads one family of file formats.

    To add a reader, write such a module in this folder and add it to `READERS` in `__init__.py`,
    which also puts the path before the messages of its errors. A reader may return a subclass of
    `VolumeHeader`, with what it needs to find the voxels.

    Attributes
    ----------
    SUFFIXES : tuple of str
        Of its files, in lower case, such as ``(".nii.gz", ".nii")``. Files with these suffixes
        count as volumes wherever a layout looks for them.
    """

    SUFFIXES: tuple[str, ...]

    def read_header(
        self, path: str, *, volume: int | None = None, orientation_from: str = "sform"
    ) -> VolumeHeader:
        """Return the header of a volume; reads a few kilobytes.

        Raise an error if the voxels could not be read later, as far as the header and the size of
        the file show it: planning then names the case before the run starts.

        Parameters
        ----------
        path : str
        volume : int, optional
            Which volume of a 4D file, from 0; `check_volume` tells users of a wrong one.
        orientation_from : {"sform", "qform"}
            The form that is used where a NIfTI file has both; other formats ignore it.

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

    def read_voxels(
        self, headers: Sequence[Any], *, scratch_dir: str = ""
    ) -> list[NDArray[np.generic]]:
        """Return the voxels of some volumes of one file as stored, not yet scaled.

        Parameters
        ----------
        headers : sequence of VolumeHeader
            As `read_header` returned them, one for each volume.
        scratch_dir : str
            Where the voxels are inflated if memory does not hold them; empty if it does. They are
            then in a file of `utils.mapped` in any case.

        Returns
        -------
        list of ndarray of shape ``header.shape`` and dtype ``header.dtype``
            In the order of axes that the affine describes. They may be read-only, and views of the
            mapped file.

        Raises
        ------
        CorruptFile
            As `read_header`, and if the voxels are cut or damaged: never return what a checksum
            or a length shows to be wrong.
        """
        ...


def split_volume(path: str) -> tuple[str, int | None]:
    """Return the file that a path names, and which of its volumes, None if it names none.

    >>> split_volume("scan.nii.gz[2]"), split_volume("scan.nii.gz"), split_volume("scan[2].nii")
    (('scan.nii.gz', 2), ('scan.nii.gz', None), ('scan[2].nii', None))
    """
    match = _SELECTOR.fullmatch(path) if path.endswith("]") else None
    return (match["file"], int(match["volume"])) if match else (path, None)


def unit_notes(unit: str, mm: float) -> tuple[str, ...]:
    """Return the note of a header whose lengths are in another unit than mm, if they are."""
    return () if mm == 1 else (f"the header is in units of {unit}, and is {CONVERTED}",)


def check_volume(volume: int | None, *, shape: Sequence[int], n_volumes: int) -> int:
    """Return the number of the volume to read, of a file of this shape."""
    if volume is None and n_volumes > 1:
        raise UnsupportedImage(
            f"expected one 3D volume, found {n_volumes} ({len(shape)}D {format_shape(shape)}); "
            "--volumes channels takes them as channels of one image, --volumes frames makes each "
            "a case, --volumes INDEX takes one"
        )
    if volume is not None and volume >= n_volumes:
        raise UnsupportedImage(
            f"the file has no volume [{volume}]: it has {n_volumes}, counted from [0]"
        )
    return volume or 0


def check_line(shape: Sequence[int]) -> None:
    """Raise UnsupportedImage for values of a surface, stored as one long line of voxels."""
    if shape[1] == shape[2] == 1 and shape[0] > _LONGEST_LINE:
        raise UnsupportedImage(
            f"expected a 3D volume, found a line of {shape[0]:,} voxels, as values of a surface "
            "are stored"
        )
