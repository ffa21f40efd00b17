"""Shortcuts of the NIfTI reader and of orientations: each gives what the long way gives."""

from __future__ import annotations

import nibabel as nib
import nibabel.orientations as nio
import numpy as np
import pytest
from nibabel.quaternions import quat2mat

from dask_slicer.core import geometry
from dask_slicer.inputs.readers import nifti, nifti_orientation


def _affine(rng: np.random.Generator) -> np.ndarray:
    """Return an affine that is oblique, or nearly along the axes; half of them flipped."""
    quaternion = rng.normal(size=4)
    if rng.random() < 0.5:
        quaternion = rng.choice([-1, 0, 1, 1e-4], 4) + np.array([0, 0, 0, 1e-9])
    affine = np.eye(4)
    zooms = rng.uniform(0.01, 20, 3) * [1, 1, rng.choice([-1, 1])]
    affine[:3] = np.c_[quat2mat(quaternion) * zooms, rng.normal(0, 100, 3)]
    return affine


@pytest.mark.parametrize("seed", range(10))
def test_a_quick_look_takes_no_other_sform_for_the_qform(seed) -> None:
    rng = np.random.default_rng(seed)
    n_same = 0
    for _ in range(100):
        affine = _affine(rng)
        header = nib.Nifti1Header()
        header.set_data_shape(rng.integers(1, 400, 3))
        header.set_qform(affine, 1)
        affine[:3] += rng.normal(0, 10.0 ** rng.uniform(-9, 0), (3, 4))
        header.set_sform(affine, 1)
        other, _ = nifti_orientation._other_form(
            header, header.get_sform(), scale=np.eye(4), takes_qform=True
        )
        if nifti_orientation._is_qform(header):
            n_same += 1
            assert other is None
    assert n_same > 20


@pytest.mark.parametrize("field", ["quatern_b", "pixdim", "srow_x", "qoffset_z"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_a_quick_look_leaves_odd_numbers_to_the_long_way(field, value) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((4, 5, 6))
    header.set_qform(np.eye(4), 1)
    header.set_sform(np.eye(4), 1)
    assert nifti_orientation._is_qform(header)
    header[field] = value
    assert not nifti_orientation._is_qform(header)


@pytest.mark.parametrize("seed", range(10))
def test_an_orientation_that_is_plain_to_see_is_that_of_nibabel(seed) -> None:
    rng = np.random.default_rng(seed)
    n_plain = 0
    for _ in range(200):
        affine = _affine(rng)
        affine[:3, :3] += rng.normal(0, 10.0 ** rng.uniform(-9, 0), (3, 3))
        orientation = geometry._clear_orientation(affine[:3, :3].T.tolist())
        if orientation is not None:
            n_plain += 1
            np.testing.assert_array_equal(orientation, nio.io_orientation(affine))
    assert n_plain > 20


@pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header, nib.nifti1.Nifti1PairHeader])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vox_offset", 352),
        ("vox_offset", 353),
        ("vox_offset", 100),
        ("datatype", 4),
        ("datatype", 7777),
        ("bitpix", 7),
        ("magic", b"xxx"),
        ("qform_code", 99),
        ("sform_code", 1),
        ("sizeof_hdr", 3),
        ("pixdim", [0, 1, 1, 1, 1, 1, 1, 1]),
        ("pixdim", [-1, 1, 1, 1, 1, 1, 1, 1]),
        ("pixdim", [1, -1, 1, 1, 1, 1, 1, 1]),
        ("pixdim", [1, np.nan, 1, 1, 1, 1, 1, 1]),
    ],
    ids=str,
)
def test_checks_that_are_left_out_would_change_nothing(kind, field, value) -> None:
    header = kind()
    header[field] = value
    before = header.binaryblock
    if nifti._is_sound(header):
        header.check_fix(logger=nifti._SILENT)
        assert header.binaryblock == before
    elif kind is not nib.Nifti2Header and field == "sform_code":
        pytest.fail("a sound header is checked, which takes long")


def test_a_usual_header_needs_no_check() -> None:
    header = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([-2.0, 3, 4, 1])).header
    assert nifti._is_sound(header)
