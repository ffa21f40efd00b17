"""NIfTI headers that contradict themselves, and files that are no volumes: each is named."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner

from dask_slicer.cli.main import main
from dask_slicer.core.geometry import align
from dask_slicer.errors import (
    CaseError,
    CorruptFile,
    GeometryMismatch,
    LabelValues,
    MissingFile,
    UnsupportedImage,
)
from dask_slicer.inputs.case import Case
from dask_slicer.inputs.load import grids_of, load_volume
from dask_slicer.inputs.readers import read_header

pytestmark = pytest.mark.versions

STORED = np.arange(10 * 12 * 14, dtype=np.int16).reshape(10, 12, 14)
AFFINE = np.array([[-0.5, 0, 0, 30], [0, 0.6, 0, -40], [0, 0, 2.5, 5], [0, 0, 0, 1]])
MIRRORED = AFFINE @ np.diag([-1.0, 1, 1, 1])


def nifti(
    array: np.ndarray = STORED,
    *,
    sform: np.ndarray | None = AFFINE,
    qform: np.ndarray | None = None,
    kind: type = nib.Nifti1Header,
    **fields: object,
) -> bytes:
    """Return the bytes of a NIfTI file; `fields` go into its header as they are."""
    header = kind()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header["pixdim"][1:4] = np.linalg.norm(AFFINE[:3, :3], axis=0)
    if qform is not None:
        header.set_qform(qform, 1)
    header.set_sform(sform, 0 if sform is None else 1)
    header["vox_offset"] = header.sizeof_hdr + 4
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + bytes(4) + array.tobytes(order="F")


def saved(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# -- units -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "factor"), [(1, 1e3), (2, 1.0), (3, 1e-3), (0, 1.0), (8 + 3, 1e-3)]
)
@pytest.mark.parametrize("form", ["sform", "qform"])
def test_metre_and_micron_become_mm(tmp_path, code, factor, form) -> None:
    forms = {"sform": None, "qform": None, form: AFFINE}
    header = read_header(saved(tmp_path / "a.nii", nifti(**forms, xyzt_units=code)))
    expected = AFFINE.copy()
    expected[:3] *= factor
    np.testing.assert_allclose(header.affine, expected, rtol=1e-6)
    unit = {1e3: "metre", 1e-3: "micron"}.get(factor)
    notes = (f"the header is in units of {unit}, and is converted to mm",) if unit else ()
    assert header.notes == notes


def test_a_spacing_in_microns_is_that_of_simpleitk(tmp_path) -> None:
    path = saved(tmp_path / "a.nii", nifti(qform=AFFINE, xyzt_units=3))
    affine = read_header(path).affine
    spacing = sitk.ReadImage(str(path)).GetSpacing()
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), spacing, rtol=1e-5)


# -- quaternions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("excess", [1e-7, 1e-6, 1e-4, 5e-3])
@pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header])
def test_a_qform_slightly_longer_than_one_is_normalised(tmp_path, excess, kind) -> None:
    quaternion = np.array([0.6, 0.8, 0.0])
    fields = dict(
        zip(("quatern_b", "quatern_c", "quatern_d"), quaternion * (1 + excess), strict=True)
    )
    data = nifti(
        sform=None, qform=np.eye(4), kind=kind, pixdim=[1, 0.5, 0.6, 2.5, 1, 1, 1, 1], **fields
    )
    path = saved(tmp_path / "a.nii", data)
    header = read_header(path)
    assert header.notes == ()
    exact = nib.quaternions.quat2mat([0, *quaternion]) @ np.diag([0.5, 0.6, 2.5])
    np.testing.assert_allclose(header.affine[:3, :3], exact, atol=1e-6)
    if kind is nib.Nifti2Header:
        return  # SimpleITK reads none without an extension
    directions = np.diag([-1, -1, 1]) @ np.reshape(sitk.ReadImage(str(path)).GetDirection(), (3, 3))
    np.testing.assert_allclose(exact / [0.5, 0.6, 2.5], directions, atol=1e-5)


@pytest.mark.parametrize("length", [1.011, 1.5, 30.0])
def test_a_qform_that_is_far_longer_than_one_is_refused_with_the_reason(tmp_path, length) -> None:
    path = saved(tmp_path / "a.nii", nifti(sform=None, qform=np.eye(4), quatern_b=length))
    with pytest.raises(GeometryMismatch, match=f"quaternion of the qform is {length:.4g} long"):
        read_header(path)


def test_the_quaternion_of_a_qform_that_is_not_used_may_be_anything(tmp_path) -> None:
    header = read_header(saved(tmp_path / "a.nii", nifti(qform=AFFINE, quatern_b=3.0)))
    np.testing.assert_allclose(header.affine, AFFINE, rtol=1e-6)


# -- contradictions --------------------------------------------------------------------------------


def test_a_qform_that_contradicts_the_sform_is_noted_and_can_be_taken(tmp_path) -> None:
    path = saved(tmp_path / "a.nii", nifti(qform=MIRRORED))
    header = read_header(path)
    np.testing.assert_allclose(header.affine, AFFINE, rtol=1e-6)
    assert header.notes == (
        "sform and qform disagree (by 9 mm at a corner); the sform is used, --orientation_from "
        "qform takes the other",
    )
    header = read_header(path, orientation_from="qform")
    np.testing.assert_allclose(header.affine, MIRRORED, rtol=1e-6)
    assert "the qform is used, --orientation_from sform takes the other" in header.notes[0]


def test_the_sform_is_taken_where_there_is_no_qform(tmp_path) -> None:
    path = saved(tmp_path / "a.nii", nifti())
    header = read_header(path, orientation_from="qform")
    assert np.array_equal(header.affine, read_header(path).affine)


def test_a_spacing_that_contradicts_the_affine_is_noted(tmp_path) -> None:
    pixdim = [1, 0.5, 0.6, 10, 0, 0, 0, 0]
    header = read_header(saved(tmp_path / "a.nii", nifti(pixdim=pixdim)))
    assert header.notes == (
        "pixdim 0.5 × 0.6 × 10 mm and the spacing of the affine 0.5 × 0.6 × 2.5 mm disagree",
    )


@pytest.mark.parametrize(
    "pixdim",
    [[1, 0.5, 0.6, 2.51, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0], [-1, -0.5, 0.6, 2.5] + [0] * 4],
)
def test_a_rounded_or_missing_spacing_is_not_noted(tmp_path, pixdim) -> None:
    assert read_header(saved(tmp_path / "a.nii", nifti(pixdim=pixdim))).notes == ()


@pytest.mark.parametrize("digits", [3, 4, 7])
def test_rounding_of_sform_and_qform_is_not_noted(tmp_path, digits) -> None:
    angle = np.deg2rad(17.3)
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = turned @ AFFINE
    data = nifti(sform=affine.round(digits), qform=affine)
    assert read_header(saved(tmp_path / "a.nii", data)).notes == ()


def test_the_intent_of_a_label_is_known(tmp_path) -> None:
    assert read_header(saved(tmp_path / "a.nii", nifti(intent_code=1002))).is_label
    assert not read_header(saved(tmp_path / "b.nii", nifti())).is_label


# -- pairs that do not fit -------------------------------------------------------------------------


def message_of(tmp_path: Path, image: bytes, label: bytes) -> str:
    """Return the message of a pair that does not fit."""
    files = [saved(tmp_path / "image.nii", image), saved(tmp_path / "label.nii", label)]
    with pytest.raises(GeometryMismatch) as caught:
        align(grids_of([read_header(path) for path in files], n_images=1), "axial")
    return str(caught.value)


LABEL = (STORED % 3).astype(np.uint8)
GRID_OPTION = "--label_grid image takes the image's affine"


def test_a_label_off_the_grid_is_told_of_the_option_that_takes_the_images(tmp_path) -> None:
    shifted = AFFINE.copy()
    shifted[0, 3] += 40
    message = message_of(tmp_path, nifti(), nifti(LABEL, sform=shifted))
    assert "label.nii lies up to 40 mm (80 voxels) off the image" in message
    assert GRID_OPTION in message
    assert "orientation" not in message


def test_a_label_of_another_shape_is_not_told_of_it(tmp_path) -> None:
    message = message_of(tmp_path, nifti(), nifti(LABEL[:-1]))
    assert "has shape 14×12×9" in message
    assert GRID_OPTION not in message


def test_a_file_without_orientation_is_told_as_that(tmp_path) -> None:
    message = message_of(tmp_path, nifti(), nifti(LABEL, sform=None))
    assert "label.nii has no orientation, so its place is a guess" in message
    assert GRID_OPTION in message
    message = message_of(tmp_path, nifti(sform=None), nifti(LABEL))
    assert "image.nii has no orientation, so its place is a guess" in message


def test_a_mismatch_by_a_contradicting_header_is_told_as_that(tmp_path) -> None:
    words = "a second orientation, sform or qform, in which they fit; --orientation_from qform (or"
    assert words in message_of(tmp_path, nifti(qform=MIRRORED), nifti(LABEL, sform=MIRRORED))
    assert words in message_of(tmp_path, nifti(), nifti(LABEL, sform=MIRRORED, qform=AFFINE))
    shifted = AFFINE.copy()
    shifted[0, 3] += 40
    assert words not in message_of(tmp_path, nifti(qform=MIRRORED), nifti(LABEL, sform=shifted))


def test_a_label_takes_the_affine_of_the_image_where_it_shall(tmp_path) -> None:
    image = str(saved(tmp_path / "image.nii", nifti()))
    label = str(saved(tmp_path / "label.nii", nifti(LABEL, sform=MIRRORED)))
    case = Case(case_id="a", images=(image,), label=label, label_grid="image")
    volume = load_volume(case, "k")
    np.testing.assert_array_equal(volume.label.stored, LABEL.transpose(2, 0, 1))
    short = str(saved(tmp_path / "short.nii", nifti(LABEL[:-1])))
    case = Case(case_id="a", images=(image,), label=short, label_grid="image")
    with pytest.raises(GeometryMismatch, match="has shape"):
        load_volume(case, "k")


def test_a_case_is_oriented_by_the_qform_where_it_shall(tmp_path) -> None:
    path = str(saved(tmp_path / "a.nii", nifti(qform=MIRRORED)))
    stacks = [
        load_volume(Case(case_id="a", images=(path,), orientation_from=form), "axial")
        .image[0]
        .stored
        for form in ("sform", "qform")
    ]
    np.testing.assert_array_equal(stacks[0], stacks[1][:, :, ::-1])


# -- labels that are images ------------------------------------------------------------------------


def test_a_label_that_is_the_image_is_told_as_that(tmp_path) -> None:
    image = str(saved(tmp_path / "image.nii", nifti(LABEL)))
    with pytest.raises(LabelValues, match="is the same file as the image"):
        load_volume(Case(case_id="a", images=(image,), label=image), "axial")
    copy = str(saved(tmp_path / "copy.nii.gz", gzip.compress(nifti(LABEL))))
    with pytest.raises(LabelValues, match=r"copy\.nii\.gz has the same voxels as image"):
        load_volume(Case(case_id="a", images=(image,), label=copy), "axial")


def test_an_empty_label_of_an_empty_image_is_no_copy(tmp_path) -> None:
    paths = [str(saved(tmp_path / name, nifti(LABEL * 0))) for name in ("a.nii", "b.nii")]
    assert load_volume(Case(case_id="a", images=(paths[0],), label=paths[1]), "axial").label


# -- files that are no volumes ---------------------------------------------------------------------

SURFACE = np.zeros((1200, 1, 1), np.float32)
OTHERS: dict[str, tuple[bytes, type[CaseError], str]] = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid", CorruptFile, "git lfs pull"),
    "annex": (b"/annex/objects/MD5E-s1--0.nii.gz\n", CorruptFile, "datalad get"),
    "html": (b"\n<!DOCTYPE html>\n<html>", CorruptFile, "a web page"),
    "gzipped_html": (gzip.compress(b"<HTML><head>"), CorruptFile, "a web page"),
    "gifti": (b'<?xml version="1.0"?><!DOCTYPE GIFTI>', CorruptFile, "GIFTI"),
    "dicom": (bytes(128) + b"DICM" + bytes(300), CorruptFile, "dcm2niix"),
    "nrrd": (b"NRRD0004\n", CorruptFile, "end in .nrrd"),
    "zip": (b"PK\x03\x04", CorruptFile, "ZIP"),
    "cifti_by_intent": (
        nifti(np.zeros((1, 1, 1, 1, 5, 9), np.float32), kind=nib.Nifti2Header, intent_code=3002),
        *(UnsupportedImage, "CIFTI: values of surfaces and grey matter"),
    ),
    "cifti_by_shape": (nifti(np.zeros((1, 1, 1, 1, 5, 9), "f4")), UnsupportedImage, "CIFTI"),
    "vectors": (
        nifti(np.zeros((3, 4, 5, 1, 3), np.float32), intent_code=1007),
        *(UnsupportedImage, "5D 3×4×5×1×3: a vector at each voxel, such as a deformation field"),
    ),
    "tensors": (
        nifti(np.zeros((3, 4, 5, 1, 6), np.float32), intent_code=1005),
        *(UnsupportedImage, "a symmetric matrix at each voxel"),
    ),
    "5d": (nifti(np.zeros((3, 4, 5, 2, 6), np.float32)), UnsupportedImage, "5D 3×4×5×2×6"),
    "surface": (nifti(SURFACE), UnsupportedImage, "a line of 1,200 voxels, as values of a surface"),
}


@pytest.mark.parametrize(("data", "kind", "words"), OTHERS.values(), ids=OTHERS)
def test_a_file_that_is_no_volume_is_told_what_it_is(tmp_path, data, kind, words) -> None:
    path = saved(tmp_path / "a.nii.gz", data)
    with pytest.raises(CaseError) as caught:
        read_header(path)
    assert caught.type is kind
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_link_of_git_annex_is_told_as_that(tmp_path) -> None:
    link = tmp_path / "a.nii.gz"
    link.symlink_to(".git/annex/objects/1F/2x/MD5E-s1--0.nii.gz/MD5E-s1--0.nii.gz")
    with pytest.raises(MissingFile, match="datalad get"):
        read_header(link)


# -- through the command line ----------------------------------------------------------------------

SITUATIONS: dict[str, tuple[bytes, bytes, str]] = {
    "lfs_pointer": (OTHERS["lfs"][0], nifti(LABEL), "git lfs pull"),
    "cifti": (OTHERS["cifti_by_intent"][0], nifti(LABEL), "CIFTI"),
    "long_qform": (nifti(sform=None, qform=np.eye(4), quatern_b=2), nifti(LABEL), "quaternion"),
    "off_the_grid": (nifti(), nifti(LABEL, sform=MIRRORED), "--label_grid image"),
    "no_orientation": (nifti(), nifti(LABEL, sform=None), "has no orientation"),
    "contradiction": (nifti(qform=MIRRORED), nifti(LABEL, sform=MIRRORED), "--orientation_from"),
    "label_of_nan": (
        *(nifti(), nifti(np.where(LABEL == 2, np.nan, LABEL).astype("f4"))),
        "the label holds NaN",
    ),
    "copy_of_the_image": (nifti(LABEL), nifti(LABEL), "has the same voxels as image"),
}


@pytest.mark.parametrize(("image", "label", "words"), SITUATIONS.values(), ids=SITUATIONS)
def test_a_run_names_the_case_and_what_to_do(tmp_path, image, label, words) -> None:
    saved(tmp_path / "image.nii", image)
    saved(tmp_path / "label.nii", label)
    with open(tmp_path / "cases.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [["case_id", "image", "label"], ["scan_1", "image.nii", "label.nii"]]
        )
    arguments = ["--input_dir", str(tmp_path / "cases.csv"), "--output_dir", str(tmp_path / "out")]
    result = CliRunner().invoke(main, ["run", *arguments, "--num_workers", "0"])
    assert result.exit_code == 1, result.output
    with open(tmp_path / "out" / "failures.csv", encoding="utf-8", newline="") as file:
        (failure,) = csv.DictReader(file)
    assert failure["case_id"] == "scan_1"
    assert words in failure["message"]
