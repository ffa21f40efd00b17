"""Affines of NIfTI headers in mm, and what contradicts them in the same header."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.geometry import check_affine, grid_distance, spacing
from dask_slicer.errors import GeometryMismatch
from dask_slicer.inputs.readers.base import unit_notes

# mm in a unit of space, by the code in xyzt_units; the rest are mm.
_UNITS = {1: ("metre", 1e3), 3: ("micron", 1e-3)}
# A qform's quaternion may be this much longer than 1: then it is made as long, as others do.
_MOST_LENGTH = 1.01
# In voxels and as a share: sform and qform, spacing and affine differ by less where one of them
# was rounded.
_SAME_PLACE = 0.1
_SAME_SPACING = 0.01
# Planes of slices in Analyze's field orient.
_ANALYZE_PLANES = ("axial", "coronal", "sagittal") * 2
# Fields of a header that its orientation, and the notes on it, depend on.
_FIELDS = (
    *("sizeof_hdr", "dim", "pixdim", "xyzt_units", "qform_code", "quatern_b", "quatern_c"),
    *("quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Orientation:
    """The affine of a header, in mm, and what contradicts it."""

    affine: NDArray[np.float64]
    oriented: bool
    notes: tuple[str, ...] = ()
    other: NDArray[np.float64] | None = None


def orient(
    header: nib.Nifti1Header, *, pixdim: NDArray[np.float64], orientation_from: str
) -> Orientation:
    """Return the affine of the form that is chosen, of the other if its code is 0.

    `pixdim` is the spacing along the array axes as stored, before any repair.
    """
    # Files of one case often have the same orientation.
    key = (orientation_from, pixdim.tobytes(), *(header[name].tobytes() for name in _FIELDS))
    orientation = _recent.get(key)
    if orientation is None:
        orientation = _orient(header, pixdim=pixdim, orientation_from=orientation_from)
        if len(_recent) >= _MOST_RECENT:
            _recent.clear()
        _recent[key] = orientation
    return orientation


def _orient(
    header: nib.Nifti1Header, *, pixdim: NDArray[np.float64], orientation_from: str
) -> Orientation:
    has_sform, has_qform = header["sform_code"] > 0, header["qform_code"] > 0
    unit, mm = _UNITS.get(int(header["xyzt_units"]) & 7, ("mm", 1.0))
    uses_sform = has_sform and (orientation_from == "sform" or not has_qform)
    with np.errstate(all="ignore"):  # the result is checked
        if uses_sform:
            affine = np.asarray(header.get_sform(), dtype=np.float64)
        elif has_qform:
            affine = _qform(header)
        else:
            affine = np.asarray(header.get_base_affine(), dtype=np.float64)
        scale = np.diag([mm, mm, mm, 1.0])
        affine = scale @ affine if mm != 1 else affine
    check_affine(affine)
    notes = [*unit_notes(unit, mm)]
    other = None
    if has_sform and has_qform and not _is_qform(header):
        other, mm_apart = _other_form(header, affine, scale=scale, takes_qform=uses_sform)
    if other is not None:
        used, unused = ("sform", "qform") if uses_sform else ("qform", "sform")
        notes.append(
            f"sform and qform disagree (by {mm_apart:.3g} mm at a corner); the {used} is used, "
            f"--orientation_from {unused} takes the other"
        )
    notes += _spacing_notes(pixdim * mm, affine)
    return Orientation(
        affine=affine, oriented=bool(has_sform or has_qform), notes=tuple(notes), other=other
    )


# Orientations of the last headers.
_recent: dict[tuple[object, ...], Orientation] = {}
_MOST_RECENT = 100


def analyze_orientation(header: nib.analyze.AnalyzeHeader, path: str) -> Orientation:
    """Return the affine that nibabel takes: Analyze has none, only the place of an origin."""
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    check_affine(affine)
    code = int.from_bytes(header["orient"].item() or b"\0", "little")
    notes: list[str] = []
    if 0 < code < len(_ANALYZE_PLANES):
        notes.append(
            f"the field orient is {code} ({_ANALYZE_PLANES[code]} slices) and is not followed; "
            "the axes are taken as left, front, top"
        )
    matrix = Path(path).with_suffix(".mat")
    if matrix.exists():  # of SPM 99
        notes.append(f"the affine in {matrix.name} beside it is not read")
    return Orientation(affine=affine, oriented=False, notes=tuple(notes))


def _qform(header: nib.Nifti1Header) -> NDArray[np.float64]:
    quaternion = np.array([header[f"quatern_{axis}"] for axis in "bcd"], dtype=np.float64)
    length = float(np.linalg.norm(quaternion))
    if length > _MOST_LENGTH:
        raise GeometryMismatch(
            f"the quaternion of the qform is {length:.4g} long, not 1 or less; repair the header"
        )
    if not np.isfinite(quaternion).all():
        raise GeometryMismatch("the qform holds NaN or Inf; repair the header")
    if length**2 - 1 >= abs(float(cast(float, header.quaternion_threshold))):
        header = header.copy()
        for axis, value in zip("bcd", quaternion / length, strict=True):
            header[f"quatern_{axis}"] = value
    try:
        return np.asarray(header.get_qform(), dtype=np.float64)
    except ValueError as error:
        raise GeometryMismatch(f"the qform is damaged ({error}); repair the header") from None


def _is_qform(header: nib.Nifti1Header) -> bool:
    """Return whether the sform is surely the qform, but for rounding: a quick look, in floats.

    Surely: the corners of the grid lie apart by less than half of `_SAME_PLACE`, in voxels.
    """
    b, c, d = (header[f"quatern_{axis}"].item() for axis in "bcd")
    qfac, *zooms = header["pixdim"][:4].tolist()
    rest = 1.0 - (b * b + c * c + d * d)
    if abs(rest) < abs(float(cast(float, header.quaternion_threshold))):
        rest = 0.0  # as in nibabel
    if not rest >= 0.0:
        return False
    a = sqrt(rest)
    rotation = (
        (a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)),
        (2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)),
        (2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c),
    )
    steps = (zooms[0], zooms[1], zooms[2] * (-1.0 if qfac < 0 else 1.0))
    far = [max(n - 1, 1) for n in header.get_data_shape()[:3]]
    squared = 0.0
    for row, axis in zip(rotation, "xyz", strict=True):
        *of_sform, offset = header[f"srow_{axis}"].tolist()
        apart = abs(offset - header[f"qoffset_{axis}"].item())
        for r, step, number, n in zip(row, steps, of_sform, far, strict=True):
            apart += abs(number - r * step) * n
        squared += apart * apart
    return bool(sqrt(squared) <= 0.5 * _SAME_PLACE * min(map(abs, zooms)))


def _other_form(
    header: nib.Nifti1Header,
    affine: NDArray[np.float64],
    *,
    scale: NDArray[np.float64],
    takes_qform: bool,
) -> tuple[NDArray[np.float64] | None, float]:
    """Return the form that is not used, None if it fits or is none, and the distance in mm."""
    try:
        with np.errstate(all="ignore"):
            other = scale @ (_qform(header) if takes_qform else np.asarray(header.get_sform()))
            voxels, mm_apart = grid_distance(affine, other, header.get_data_shape()[:3])
            if voxels <= _SAME_PLACE:
                return None, mm_apart
            check_affine(other)
    except (GeometryMismatch, nib.spatialimages.HeaderDataError):
        return None, 0.0
    return other, mm_apart


def _spacing_notes(pixdim: NDArray[np.float64], affine: NDArray[np.float64]) -> list[str]:
    """Return a note if the spacing of the header is not that of the affine; 0 means none."""
    of_affine = np.array(spacing(affine))
    with np.errstate(invalid="ignore"):
        differs = np.abs(np.abs(pixdim) - of_affine) > _SAME_SPACING * of_affine
    if not (differs & np.isfinite(pixdim) & (pixdim != 0)).any():
        return []
    return [f"pixdim {_mm(np.abs(pixdim))} and the spacing of the affine {_mm(of_affine)} disagree"]


def _mm(lengths: NDArray[np.float64]) -> str:
    return " × ".join(f"{length:.3g}" for length in lengths) + " mm"
