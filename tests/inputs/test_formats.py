"""NRRD, MetaImage, MGH and pairs, read as SimpleITK and nibabel read them."""

from __future__ import annotations

import gzip
import itertools
import os
import re
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from affines import oblique
from click.testing import CliRunner
from repository import ROOT

from dask_slicer import SliceDataset
from dask_slicer.cli.main import main
from dask_slicer.errors import CaseError, CorruptFile, MissingFile, UnsupportedImage
from dask_slicer.inputs.case import Case, is_volume_name, stem_of
from dask_slicer.inputs.load import load_volume
from dask_slicer.inputs.readers import read_header, read_volumes, read_voxels
from dask_slicer.inputs.readers.base import split_volume

pytestmark = pytest.mark.versions

SHARED = Path(os.environ.get("DASK_SLICER_SCANS", ROOT.parent / "shared" / "data"))
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
STORED = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)
ORDERS = [
    np.eye(3)[list(axes)].T * signs
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
TURNED = oblique()[:3, :3] / np.linalg.norm(oblique()[:3, :3], axis=0)
DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


def image_of(stored: np.ndarray, directions: np.ndarray, *, vector: bool = False) -> sitk.Image:
    """Return an image of SimpleITK; `stored` is in the order of its axes, as files have it."""
    image = sitk.GetImageFromArray(stored.transpose(*range(2, -1, -1), *[3] * vector), vector)
    image.SetDirection(directions.ravel().tolist())
    image.SetSpacing((2.0, 1.5, 3.25))
    image.SetOrigin((-7.0, 11.0, 5.5))
    return image


def affine_of(image: sitk.Image) -> np.ndarray:
    """Return the affine of an image of SimpleITK in RAS+."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return LPS @ affine


def assert_read_as_simpleitk_reads_it(path: Path, **tolerance: float) -> None:
    image = sitk.ReadImage(str(path))
    header, voxels = read_voxels(path)
    expected = sitk.GetArrayFromImage(image).T
    assert voxels.dtype.newbyteorder("=") == expected.dtype
    np.testing.assert_array_equal(voxels, expected)
    np.testing.assert_allclose(header.affine, affine_of(image), **tolerance)
    assert header.oriented
    assert header.notes == ()
    assert header.file_bytes == sum(Path(file).stat().st_size for file in header.data_files)


def planes(image: sitk.Image) -> dict[str, np.ndarray]:
    """Return the stacks that a run makes of an image of SimpleITK."""
    z_y_x = sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS"))
    return {
        "axial": z_y_x,
        "coronal": z_y_x.transpose(1, 0, 2)[:, ::-1, :],
        "sagittal": z_y_x.transpose(2, 0, 1)[:, ::-1, :],
    }


NAMES = ("a.nrrd", "b.nhdr", "c.mha", "d.mhd", "e.hdr", "f.nii.gz")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("turned", [np.eye(3), TURNED], ids=["straight", "oblique"])
@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "compressed"])
@pytest.mark.slow
def test_every_order_of_axes_is_sliced_as_simpleitk_reads_it(
    tmp_path, name, turned, compressed
) -> None:
    for directions in ORDERS:
        path = tmp_path / name
        sitk.WriteImage(image_of(STORED, turned @ directions), str(path), compressed)
        assert_read_as_simpleitk_reads_it(path, rtol=1e-5, atol=1e-5)
        for plane, expected in planes(sitk.ReadImage(str(path))).items():
            volume = load_volume(Case(case_id="a", images=(str(path),)), plane)
            np.testing.assert_array_equal(volume.image[0].stored, expected)


@pytest.mark.parametrize("name", ["a.mgz", "a.mgh", "a.hdr", "A.HDR", "a.hdr.gz"])
@pytest.mark.parametrize("turned", [np.eye(3), TURNED], ids=["straight", "oblique"])
def test_every_order_of_axes_is_read_as_nibabel_reads_it(tmp_path, name, turned) -> None:
    kind = nib.MGHImage if ".mg" in name else nib.Nifti1Pair
    for directions in ORDERS:
        affine = np.eye(4)
        affine[:3, :3] = (turned @ directions) * (2.0, 1.5, 3.25)
        affine[:3, 3] = (-7.0, 11.0, 5.5)
        path = tmp_path / name
        nib.save(kind(STORED.astype(np.int16), affine), path)
        header, voxels = read_voxels(path)
        np.testing.assert_array_equal(voxels, STORED)
        np.testing.assert_allclose(header.affine, nib.load(path).affine, atol=1e-12)
        np.testing.assert_allclose(header.affine, affine, atol=1e-5)
        reference = nib.as_closest_canonical(nib.load(path)).get_fdata()
        volume = load_volume(Case(case_id="a", images=(str(path),)), "axial")
        expected = reference.transpose(2, 1, 0)[:, ::-1, ::-1]
        np.testing.assert_array_equal(volume.image[0].stored, expected)


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd", "a.hdr"])
@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "compressed"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_read(tmp_path, name, compressed, dtype) -> None:
    random = np.random.default_rng(0).bytes(3 * 4 * 5 * int(dtype[1]))
    stored = np.nan_to_num(np.frombuffer(random, dtype).reshape(3, 4, 5))
    path = tmp_path / name
    sitk.WriteImage(image_of(stored, TURNED), str(path), compressed)
    assert_read_as_simpleitk_reads_it(path, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4"])
def test_every_dtype_of_mgh_is_read(tmp_path, dtype) -> None:
    nib.save(nib.MGHImage(STORED.astype(dtype), np.diag([1.0, 2, 3, 1])), tmp_path / "a.mgz")
    _, voxels = read_voxels(tmp_path / "a.mgz")
    np.testing.assert_array_equal(voxels, STORED)
    assert voxels.dtype == np.dtype(dtype).newbyteorder(">")


NRRD = """NRRD0005
# a comment
type: {type}
dimension: 3
space: {space}
sizes: 3 4 5
space directions: (2,0,0) (0,1.5,0.1) (0, 0, 3)
kinds: domain domain domain
endian: big
encoding: raw
space origin: (1,2,3)
key:=a value: of any kind

"""
MHA = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = True
TransformMatrix = 0 1 0 -1 0 0 0 0 1
Offset = 1 2 3
ElementSpacing = 2 1.5 3
DimSize = 3 4 5
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""
BIG_ENDIAN = STORED.astype(">i2").tobytes(order="F")


def saved(path: Path, text: str, data: bytes = BIG_ENDIAN) -> Path:
    path.write_bytes(text.encode() + data)
    return path


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("RAS", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
        ("left-posterior-superior", (-1, -1, 1)),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_spaces_of_nrrd_are_turned_into_right_front_top(tmp_path, space, signs, end) -> None:
    text = NRRD.format(type="short", space=space).replace("\n", end)
    path = saved(tmp_path / "a.nrrd", text)
    # SimpleITK 2.3 takes left-anterior-superior for RAS.
    if end == "\n" and space != "left-anterior-superior":
        assert_read_as_simpleitk_reads_it(path)
    header, voxels = read_voxels(path)
    np.testing.assert_array_equal(voxels, STORED)
    stored = [[2, 0, 0, 1], [0, 1.5, 0, 2], [0, 0.1, 3, 3], [0, 0, 0, 1]]
    np.testing.assert_allclose(header.affine, np.diag([*signs, 1]) @ stored)


@pytest.mark.parametrize(
    "name", ["int16", "int16_t", "signed short", "short int", "signed short int", "SHORT"]
)
def test_types_of_nrrd_have_many_names(tmp_path, name) -> None:
    assert_read_as_simpleitk_reads_it(
        saved(tmp_path / "a.nrrd", NRRD.format(type=name, space="LPS"))
    )


SOUND = {
    "nrrd_axes_of_no_space": ("a.nrrd", NRRD, "space: {space}", "space dimension: 3"),
    "nrrd_space_of_a_scanner": ("a.nrrd", NRRD, "{space}", "scanner-xyz"),
    "nrrd_spacings_alone": (
        *("a.nrrd", NRRD),
        *("space: {space}\nsizes: 3 4 5\nspace directions: (2,0,0) (0,1.5,0.1) (0, 0, 3)",),
        "sizes: 3 4 5\nspacings: 2 1.5 nan",
    ),
    "mha_without_directions": ("a.mha", MHA, "TransformMatrix = 0 1 0 -1 0 0 0 0 1\n", ""),
}


@pytest.mark.parametrize(("name", "text", "old", "new"), SOUND.values(), ids=SOUND)
def test_a_header_without_orientation_is_read_as_simpleitk_reads_it(
    tmp_path, name, text, old, new
) -> None:
    text = text.replace(old, new).replace("{type}", "short").replace("{space}", "LPS")
    if "spacings" in new:
        text = text.replace("space origin: (1,2,3)\n", "")
    path = saved(tmp_path / name, text)
    image = sitk.ReadImage(str(path))
    header, voxels = read_voxels(path)
    np.testing.assert_array_equal(voxels, sitk.GetArrayFromImage(image).T)
    np.testing.assert_allclose(header.affine, affine_of(image))
    assert not header.oriented


MORE_SOUND = {
    "other_names": ("a.mha", [("TransformMatrix", "Rotation"), ("Offset", "Position")]),
    "a_comment": ("a.mha", [("NDims", "Comment = a = b\nNDims")]),
    "no_object_type": ("a.mha", [("ObjectType = Image\n", "")]),
    "no_binary_data": ("a.mha", [("BinaryData = True\n", "")]),
    "byte_order_of_elements": ("a.mha", [("BinaryDataByteOrderMSB", "ElementByteOrderMSB")]),
    "size_of_elements": ("a.mha", [("ElementSpacing", "ElementSize")]),
    "an_array_of_one": ("a.mha", [("MET_SHORT", "MET_SHORT_ARRAY")]),
    "detached": ("a.mhd", [("LOCAL", "voxels.raw")]),
    "in_a_folder_below": ("a.mhd", [("LOCAL", "below/voxels.raw")]),
    "after_a_header": ("a.mhd", [("LOCAL", "headed.raw"), ("NDims", "HeaderSize = 4\nNDims")]),
    "at_the_end": ("a.mhd", [("LOCAL", "headed.raw"), ("NDims", "HeaderSize = -1\nNDims")]),
    "nrrd_after_bytes": ("a.nhdr", [("\n\n", "\nbyte skip: 4\ndata file: headed.raw\n")]),
    "nrrd_at_the_end": ("a.nhdr", [("\n\n", "\nbyteskip: -1\ndatafile: headed.raw\n\n")]),
    "nrrd_detached": ("a.nhdr", [("\n\n", "\ndata file: ./voxels.raw\n\n")]),
    "nrrd_gzip_after_bytes": (
        "a.nhdr",
        [("raw\n", "gzip\nbyte skip: 4\n"), ("\n\n", "\ndata file: headed.raw.gz\n\n")],
    ),
}


@pytest.mark.parametrize(("name", "changes"), MORE_SOUND.values(), ids=MORE_SOUND)
def test_headers_mean_what_they_mean_to_simpleitk(tmp_path, name, changes) -> None:
    (tmp_path / "below").mkdir()
    for file in ("voxels.raw", "below/voxels.raw"):
        (tmp_path / file).write_bytes(BIG_ENDIAN)
    (tmp_path / "headed.raw").write_bytes(b"head" + BIG_ENDIAN)
    (tmp_path / "headed.raw.gz").write_bytes(gzip.compress(b"head" + BIG_ENDIAN))
    text = MHA if name.startswith("a.m") else NRRD.format(type="short", space="RAS")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    data = b"" if name.endswith("hd") or name.endswith("hdr") else BIG_ENDIAN
    assert_read_as_simpleitk_reads_it(saved(tmp_path / name, text, data))


def test_units_of_nrrd_and_metaimage_become_mm(tmp_path) -> None:
    mha = saved(tmp_path / "a.mha", MHA.replace("NDims", "DistanceUnits = um\nNDims"))
    nrrd = NRRD.format(type="short", space='RAS\nspace units: "cm" "cm" "cm"')
    for path, factor in ((mha, 1e-3), (saved(tmp_path / "a.nrrd", nrrd), 10)):
        header = read_header(path)
        expected = affine_of(sitk.ReadImage(str(path)))
        expected[:3] *= factor
        np.testing.assert_allclose(header.affine, expected)
        assert "converted to mm" in header.notes[0]


def test_names_of_segments_are_names_of_labels(tmp_path) -> None:
    segments = (
        "Segment0_Name:=liver\nSegment0_LabelValue:=3\nSegment0_Layer:=0\n"
        "Segment1_LabelValue:=1\nSegment1_Name:=left kidney\nSegment1_Extent:=0 1 0 1 0 1\n"
    )
    text = NRRD.format(type="short", space="LPS").replace("key:=", segments + "key:=")
    header = read_header(saved(tmp_path / "a.seg.nrrd", text))
    assert header.label_names == {3: "liver", 1: "left kidney"}
    assert header.is_label
    assert not read_header(
        saved(tmp_path / "b.nrrd", NRRD.format(type="short", space="LPS"))
    ).is_label


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        *(("a.seg.nrrd", "a"), ("a.nrrd", "a"), ("A.NHDR", "A"), ("a.mha", "a"), ("a.mhd", "a")),
        *(("a.b.mgz", "a.b"), ("a.mgh", "a"), ("a.hdr", "a"), ("a.hdr.gz", "a")),
    ],
)
def test_each_format_has_names_of_volumes(name, stem) -> None:
    assert is_volume_name(name)
    assert stem_of(name) == stem


@pytest.mark.parametrize("name", ["a.img", "a.img.gz", "a.raw", "a.zraw", "a.raw.gz"])
def test_the_voxels_of_a_header_are_no_volume_of_their_own(name) -> None:
    assert not is_volume_name(name)


# -- several volumes in one file -------------------------------------------------------------------

FOUR = np.random.default_rng(1).integers(-500, 500, (3, 4, 5, 6)).astype(np.int16)


def write_four(path: Path, *, compressed: bool) -> None:
    if ".mg" in path.name or ".nii" in path.name or ".hdr" in path.name:
        kind = {".m": nib.MGHImage, ".n": nib.Nifti1Image}.get(path.suffixes[0][:2], nib.Nifti1Pair)
        nib.save(kind(FOUR, np.diag([1.0, 2, 3, 1])), path)
    else:
        sitk.WriteImage(image_of(FOUR, np.eye(3), vector=True), str(path), compressed)


@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "compressed"])
@pytest.mark.parametrize(
    "name", ["a.nii", "a.nii.gz", "a.hdr", "a.mgz", "a.mgh", "a.nrrd", "a.nhdr", "a.mha", "a.mhd"]
)
def test_one_volume_of_several_is_read(tmp_path, name, compressed) -> None:
    path = tmp_path / name
    write_four(path, compressed=compressed)
    for number in range(6):
        header, voxels = read_voxels(f"{path}[{number}]")
        np.testing.assert_array_equal(voxels, FOUR[..., number])
        assert (header.path, header.n_volumes) == (f"{path}[{number}]", 6)
        assert header.shape == (3, 4, 5)
        assert header.voxel_bytes == 3 * 4 * 5 * 2
        assert not voxels.flags.writeable
    paths = [f"{path}[{number}]" for number in (4, 0, 4, 5)]
    for (_, voxels), number in zip(read_volumes(paths), (4, 0, 4, 5), strict=True):
        np.testing.assert_array_equal(voxels, FOUR[..., number])
    with pytest.raises(UnsupportedImage, match=r"no volume \[6\]: it has 6"):
        read_header(f"{path}[6]")
    with pytest.raises(UnsupportedImage, match=r"--volumes channels .* --volumes frames .* INDEX"):
        read_header(path)


@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "compressed"])
@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_four_axes_are_read_as_simpleitk_reads_them(tmp_path, name, compressed) -> None:
    image = sitk.GetImageFromArray(FOUR.T, isVector=False)
    path = tmp_path / name
    sitk.WriteImage(image, str(path), compressed)
    if name == "a.nrrd":  # as tools write it whose fourth axis is not one of space
        text, _, data = path.read_bytes().partition(b"\n\n")
        text = re.sub(rb"space.*\n", b"", text)
        text = re.sub(rb"kinds: .*", b"kinds: space space space time", text)
        path.write_bytes(text + b"\n\n" + data)
    for number in range(6):
        _, voxels = read_voxels(f"{path}[{number}]")
        np.testing.assert_array_equal(voxels, sitk.GetArrayFromImage(image)[number].T)


def test_a_file_of_one_volume_has_a_first_one(tmp_path) -> None:
    path = saved(tmp_path / "a.mha", MHA)
    header, voxels = read_voxels(f"{path}[0]")
    assert header.n_volumes == read_header(path).n_volumes == 1
    np.testing.assert_array_equal(voxels, STORED)


def test_a_gzipped_file_of_several_volumes_is_inflated_once(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.nii.gz"
    write_four(path, compressed=True)
    from dask_slicer.inputs.readers import files

    opened = []
    inflating = files._inflating
    monkeypatch.setattr(
        files, "_inflating", lambda *args, **names: opened.append(args) or inflating(*args, **names)
    )
    images = tuple(f"{path}[{number}]" for number in range(6))
    volume = load_volume(Case(case_id="a", images=images), "k")
    assert len(opened) == 1
    for number, voxels in enumerate(volume.image):
        np.testing.assert_array_equal(voxels.stored, FOUR[..., number].transpose(2, 0, 1))
        assert voxels.source == images[number]


def test_only_the_volume_that_is_read_is_kept(tmp_path) -> None:
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((64, 64, 40, 30), np.int16), np.eye(4)), path)
    header = read_header(f"{path}[17]")
    tracemalloc.start()
    try:
        read_voxels(f"{path}[17]")
        assert tracemalloc.get_traced_memory()[1] < 2 * header.voxel_bytes + 1_000_000
    finally:
        tracemalloc.stop()


def test_only_a_number_after_a_suffix_selects_a_volume() -> None:
    assert split_volume("/a/b.seg.nrrd[12]") == ("/a/b.seg.nrrd", 12)
    for path in ("a[2].nii", "a.nii[]", "a.nii[-1]", "a.nii[1:2]", "a[2]", "a.nii[2]x"):
        assert split_volume(path) == (path, None)


# -- what is refused -------------------------------------------------------------------------------

SHORT_NRRD = NRRD.format(type="short", space="LPS")
REFUSED: dict[str, tuple[str, str, str, str, type[CaseError], str]] = {
    "nrrd_bzip2": ("a.nrrd", SHORT_NRRD, "raw", "bzip2", UnsupportedImage, "gzip"),
    "nrrd_text": ("a.nrrd", SHORT_NRRD, "raw", "ascii", UnsupportedImage, "ascii"),
    "nrrd_line_skip": ("a.nrrd", SHORT_NRRD, "key", "line skip: 3\nkey", UnsupportedImage, "lines"),
    "nrrd_block": ("a.nrrd", SHORT_NRRD, "type: short", "type: block", UnsupportedImage, "block"),
    "nrrd_no_endian": ("a.nrrd", SHORT_NRRD, "endian: big\n", "", CorruptFile, "endian"),
    "nrrd_middle": ("a.nrrd", SHORT_NRRD, "endian: big", "endian: middle", CorruptFile, "endian"),
    "nrrd_no_type": ("a.nrrd", SHORT_NRRD, "type: short\n", "", CorruptFile, "'type'"),
    "nrrd_twice": ("a.nrrd", SHORT_NRRD, "key", "sizes: 3 4 5\nkey", CorruptFile, "twice"),
    "nrrd_2d": ("a.nrrd", SHORT_NRRD, "(0, 0, 3)", "none", UnsupportedImage, "3 axes of space"),
    "nrrd_dimension": ("a.nrrd", SHORT_NRRD, "n: 3", "n: 4", CorruptFile, "disagree"),
    "nrrd_kinds": ("a.nrrd", SHORT_NRRD, "kinds: domain", "kinds:", CorruptFile, "kinds"),
    "nrrd_directions": ("a.nrrd", SHORT_NRRD, "(2,0,0)", "(2,0)", CorruptFile, "space dir"),
    "nrrd_junk": ("a.nrrd", SHORT_NRRD, "key:=", "key\nkey:=", CorruptFile, "in the line 'key'"),
    "nrrd_negative": ("a.nrrd", SHORT_NRRD, "3 4 5", "3 -4 5", CorruptFile, "3×-4×5"),
    "nrrd_skip": ("a.nrrd", SHORT_NRRD, "key", "byte skip: -7\nkey", CorruptFile, "byte skip"),
    "nrrd_too_much": ("a.nrrd", SHORT_NRRD, "3 4 5", "30000 30000 30000", CorruptFile, "hold them"),
    "nrrd_gzip_too_much": (
        *("a.nrrd", SHORT_NRRD.replace("raw", "gzip"), "3 4 5", "30000 30000 30000"),
        *(CorruptFile, "hold them"),
    ),
    "nrrd_no_end": ("a.nrrd", SHORT_NRRD, "\n\n", "\n", CorruptFile, ""),
    "nrrd_list": ("a.nhdr", SHORT_NRRD, "key", "data file: LIST\nkey", UnsupportedImage, "several"),
    "nrrd_pattern": (
        *("a.nhdr", SHORT_NRRD, "key", "data file: a%03d.raw 1 9 1\nkey"),
        *(UnsupportedImage, "several"),
    ),
    "nrrd_above": (
        *("a.nhdr", SHORT_NRRD, "key", "data file: ../a.raw\nkey"),
        *(UnsupportedImage, "outside of its folder"),
    ),
    "nrrd_missing": ("a.nhdr", SHORT_NRRD, "key", "data file: b.raw\nkey", MissingFile, "b.raw"),
    "mha_absolute": ("a.mhd", MHA, "LOCAL", "/etc/passwd", UnsupportedImage, "outside"),
    "mha_drive": ("a.mhd", MHA, "LOCAL", "c:\\a.raw", UnsupportedImage, "outside"),
    "mha_above": ("a.mhd", MHA, "LOCAL", "b\\..\\..\\a.raw", UnsupportedImage, "outside"),
    "mha_folder": ("a.mhd", MHA, "LOCAL", ".", UnsupportedImage, "directory"),
    "mha_list": ("a.mhd", MHA, "LOCAL", "LIST", UnsupportedImage, "several"),
    "mha_text": ("a.mha", MHA, "BinaryData = True", "BinaryData = False", UnsupportedImage, "text"),
    "mha_long": ("a.mha", MHA, "MET_SHORT", "MET_LONG", UnsupportedImage, "4 or 8"),
    "mha_string": ("a.mha", MHA, "MET_SHORT", "MET_STRING", UnsupportedImage, "MET_STRING"),
    "mha_2d": ("a.mha", MHA, "DimSize = 3 4 5", "DimSize = 3 4", CorruptFile, "NDims"),
    "mha_tube": ("a.mha", MHA, "= Image", "= Tube", UnsupportedImage, "Tube"),
    "mha_scaled": (
        *("a.mha", MHA, "NDims", "ElementToIntensityFunctionSlope = 2\nNDims"),
        *(UnsupportedImage, "scales"),
    ),
    "mha_spacing": ("a.mha", MHA, "2 1.5 3\n", "2 1.5 -3\n", CorruptFile, "ElementSpacing"),
    "mha_spacing_infinite": ("a.mha", MHA, "2 1.5 3\n", "2 inf 3\n", CorruptFile, "ElementSpacing"),
    "mha_spacing_text": ("a.mha", MHA, "2 1.5 3\n", "2 1_5 3\n", CorruptFile, "ElementSpacing"),
    "mha_skip": ("a.mha", MHA, "NDims", "HeaderSize = 5\nNDims", CorruptFile, "HeaderSize"),
    "mha_too_much": ("a.mha", MHA, "3 4 5", "30000 30000 30000", CorruptFile, "hold them"),
    "mha_no_size": ("a.mha", MHA, "DimSize = 3 4 5\n", "", CorruptFile, "DimSize"),
    "mha_no_end": ("a.mha", MHA, "ElementDataFile = LOCAL\n", "", CorruptFile, ""),
    "mha_no_image": ("a.mha", MHA, "ObjectType", "Something", CorruptFile, "not those of"),
}


@pytest.mark.parametrize(
    ("name", "text", "old", "new", "kind", "words"), REFUSED.values(), ids=REFUSED
)
def test_headers_that_are_not_followed_are_refused_by_name(
    tmp_path, name, text, old, new, kind, words
) -> None:
    assert old in text
    path = saved(tmp_path / name, text.replace(old, new), BIG_ENDIAN)
    with pytest.raises(CaseError) as caught:
        read_voxels(path)
    assert caught.type is kind, caught.value
    assert words in str(caught.value)
    assert str(path) in str(caught.value) or kind is MissingFile


def wholes(folder: Path) -> dict[str, bytes]:
    """Return the bytes of a sound file in each format."""
    folder.mkdir()
    noise = np.random.default_rng(2).integers(0, 9, (7, 8, 9)).astype(np.int16)
    for suffix in (".nrrd", ".mha"):
        for compressed in (False, True):
            name = folder / f"{'packed' if compressed else 'raw'}{suffix}"
            sitk.WriteImage(image_of(noise, TURNED), str(name), compressed)
    for suffix in (".mgh", ".mgz"):
        nib.save(nib.MGHImage(noise, np.eye(4)), folder / f"a{suffix}")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_file_that_was_cut_anywhere_is_corrupt(tmp_path) -> None:
    for name, whole in wholes(tmp_path / "sound").items():
        tags = 20 if name == "a.mgh" else 0  # what follows its voxels
        for end in range(0, len(whole) - tags, 3):
            path = tmp_path / name
            path.write_bytes(whole[:end])
            with pytest.raises(CorruptFile):
                read_voxels(path)


@pytest.mark.parametrize("name", ["packed.nrrd", "packed.mha", "a.mgz"])
def test_a_wrong_checksum_is_corrupt_where_simpleitk_gives_voxels(tmp_path, name) -> None:
    whole = bytearray(wholes(tmp_path / "sound")[name])
    path = tmp_path / name
    end = -8 if name != "packed.mha" else -4
    whole[end] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(CorruptFile, match="damaged"):
        read_voxels(path)


def test_a_pair_needs_its_voxels_and_only_one_file_of_them(tmp_path) -> None:
    nib.save(nib.Nifti1Pair(STORED, np.eye(4)), tmp_path / "a.hdr")
    (tmp_path / "a.img.gz").write_bytes(gzip.compress((tmp_path / "a.img").read_bytes()))
    with pytest.raises(UnsupportedImage, match=r"both a\.img and a\.img\.gz are beside it"):
        read_header(tmp_path / "a.hdr")
    (tmp_path / "a.img").unlink()
    header, voxels = read_voxels(tmp_path / "a.hdr")
    np.testing.assert_array_equal(voxels, STORED)
    assert header.data_files == (str(tmp_path / "a.hdr"), str(tmp_path / "a.img.gz"))
    (tmp_path / "a.img.gz").unlink()
    with pytest.raises(MissingFile, match=r"a\.img is not beside it"):
        read_header(tmp_path / "a.hdr")
    nib.save(nib.Nifti1Image(STORED, np.eye(4)), tmp_path / "b.nii")
    (tmp_path / "b.nii").rename(tmp_path / "b.hdr")
    with pytest.raises(UnsupportedImage, match=r"end in \.nii"):
        read_header(tmp_path / "b.hdr")


def test_values_of_a_surface_are_no_volume(tmp_path) -> None:
    nib.save(nib.MGHImage(np.zeros((1200, 1, 1), np.float32), np.eye(4)), tmp_path / "lh.mgh")
    with pytest.raises(UnsupportedImage, match="as values of a surface"):
        read_header(tmp_path / "lh.mgh")


@pytest.mark.parametrize("order", ["<", ">"])
def test_analyze_is_read_as_nibabel_reads_it(tmp_path, order) -> None:
    header = nib.AnalyzeHeader(endianness=order)
    header.set_data_dtype(np.int16)
    header.set_data_shape((3, 4, 5, 1))
    header.set_zooms((1.0, 1.25, 2.0, 1.0))
    header["orient"] = b"\x02"
    (tmp_path / "a.hdr").write_bytes(header.binaryblock)
    (tmp_path / "a.img").write_bytes(STORED.astype(f"{order}i2").tobytes(order="F"))
    read, voxels = read_voxels(tmp_path / "a.hdr")
    np.testing.assert_array_equal(voxels, STORED)
    np.testing.assert_array_equal(read.affine, nib.load(tmp_path / "a.hdr").affine)
    assert not read.oriented
    assert read.notes == (
        "the field orient is 2 (sagittal slices) and is not followed; the axes are taken as left, "
        "front, top",
    )
    (tmp_path / "a.mat").touch()
    assert read_header(tmp_path / "a.hdr").notes[1:] == (
        "the affine in a.mat beside it is not read",
    )


# -- through the command line ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image_suffix", "label_suffix"),
    [
        (".nrrd", ".seg.nrrd"),
        (".mha", ".mha"),
        (".mhd", ".nii.gz"),
        (".mgz", ".mgz"),
        (".hdr", ".nhdr"),
    ],
)
def test_a_dataset_in_another_format_becomes_the_slices_that_simpleitk_reads(
    tmp_path, image_suffix, label_suffix
) -> None:
    directions = TURNED @ ORDERS[21]
    image, label = image_of(STORED, directions), image_of((STORED % 3).astype(np.uint8), directions)
    for folder, each, suffix in (("images", image, image_suffix), ("labels", label, label_suffix)):
        (tmp_path / "data" / folder).mkdir(parents=True)
        path = tmp_path / "data" / folder / f"scan_1{suffix}"
        if suffix == ".mgz":
            stored = sitk.GetArrayFromImage(each).T
            nib.save(nib.MGHImage(stored, affine_of(each)), path)
        else:
            sitk.WriteImage(each, str(path), True)
    output = tmp_path / "slices"
    options = ["--input_dir", tmp_path / "data", "--output_dir", output, "--num_workers", 0]
    result = CliRunner().invoke(
        main, ["run", *map(str, options), "--normalize", "none", "--window_size", "0"]
    )
    assert result.exit_code == 0, result.output
    samples = list(SliceDataset(output, split=None))
    for name, each in (("image", image), ("label", label)):
        slices = np.stack([sample[name].reshape(sample["label"].shape) for sample in samples])
        np.testing.assert_array_equal(slices, planes(each)["axial"])


# -- real scans ------------------------------------------------------------------------------------

SCANS = sorted(path.parent.name for path in SHARED.glob("*/image.nii.gz"))
if not SCANS:
    SCANS = [pytest.param("none", marks=pytest.mark.skip(reason="real scans are not here"))]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mgz", ".hdr"])
@pytest.mark.parametrize("scan", SCANS)
def test_a_real_scan_in_another_format_gives_the_same_slices(tmp_path, scan, suffix) -> None:
    source = SHARED / scan / "image.nii.gz"
    image = nib.load(source)
    number = "[1]" if image.ndim > 3 else ""
    voxels = np.asanyarray(image.dataobj)[..., 1] if number else np.asanyarray(image.dataobj)
    path = tmp_path / f"a{suffix}"
    if suffix == ".mgz":
        nib.save(nib.MGHImage(voxels.astype(np.float32), image.affine), path)
    else:
        nib.save(nib.Nifti1Image(voxels, image.affine), tmp_path / "a.nii")
        sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nii")), str(path), True)
    for plane in ("axial", "coronal", "sagittal"):
        expected, volume = (
            load_volume(Case(case_id="a", images=(file,)), plane)
            for file in (f"{source}{number}", str(path))
        )
        np.testing.assert_array_equal(volume.image[0].stored, expected.image[0].stored)
        np.testing.assert_allclose(volume.affine, expected.affine, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("scan", [scan for scan in SCANS if "dce4d" in str(scan)])
def test_volumes_of_a_real_4d_scan_equal_simpleitks(scan) -> None:
    path = SHARED / scan / "image.nii.gz"
    image = sitk.ReadImage(str(path))
    for number in range(image.GetSize()[3]):
        one = image[:, :, :, number]
        volume = load_volume(Case(case_id="a", images=(f"{path}[{number}]",)), "axial")
        np.testing.assert_array_equal(volume.image[0].stored, planes(one)["axial"])
        np.testing.assert_allclose(
            read_header(f"{path}[{number}]").affine, affine_of(one), atol=1e-4
        )
