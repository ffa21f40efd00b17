"""Volumes are read as nibabel reads them; what is not a sound volume is refused by name."""

from __future__ import annotations

import gzip
import itertools
import logging
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_slicer.errors import (
    CaseError,
    CorruptFile,
    GeometryMismatch,
    MissingFile,
    PermissionDenied,
    UnsupportedImage,
)
from dask_slicer.inputs.readers import read_header, read_voxels

pytestmark = pytest.mark.versions

HEADERS = {1: nib.Nifti1Header, 2: nib.Nifti2Header}
DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
SFORM = np.array([[0.0, -2.0, 0.1, 9.0], [1.5, 0.0, 0.0, -7.0], [0.0, 0.0, 3.0, 5.0], [0, 0, 0, 1]])
QFORM = np.diag([-1.0, -2.0, 4.0, 1.0])
SMALL = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)
NAN, INF = float("nan"), float("inf")


def nifti(
    array: np.ndarray = SMALL,
    *,
    version: int = 1,
    order: str = "<",
    codes: tuple[int, int] = (2, 1),
    extension: bytes = b"",
    offset: int | None = None,
    **fields: object,
) -> bytes:
    """Return the bytes of a NIfTI file; `fields` go into its header as they are."""
    header = HEADERS[version](endianness=order)
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_sform(SFORM, codes[0])
    header.set_qform(QFORM, codes[1])
    at = offset or header.sizeof_hdr + 4 + len(extension)
    header["vox_offset"] = at
    for name, value in fields.items():
        header[name] = value
    head = header.binaryblock + bytes([bool(extension), 0, 0, 0]) + extension
    voxels = array.astype(array.dtype.newbyteorder(order))
    return head.ljust(at, b"\0") + voxels.tobytes(order="F")


def saved(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def assert_read_as_nibabel_reads_it(path: Path) -> None:
    header, voxels = read_voxels(path)
    expected = nib.load(path)
    stored = expected.dataobj.get_unscaled().reshape(expected.shape[:3])
    assert header.shape == stored.shape
    assert voxels.dtype.newbyteorder("=") == stored.dtype.newbyteorder("=")
    np.testing.assert_array_equal(voxels, stored)
    np.testing.assert_array_equal(header.affine, expected.affine)
    assert header.oriented == any(expected.header[f"{form}form_code"] for form in "sq")
    intensities = voxels.astype(np.float64) * header.slope + header.intercept
    np.testing.assert_allclose(intensities.ravel(), expected.get_fdata().ravel(), rtol=1e-12)


@pytest.mark.parametrize("compressed", [False, True], ids=["nii", "nii_gz"])
@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_version_and_byte_order_is_read(
    tmp_path, dtype: str, version: int, order: str, compressed: bool
) -> None:
    rng = np.random.default_rng(0)
    array = np.frombuffer(rng.bytes(3 * 4 * 5 * int(dtype[1])), dtype=dtype).reshape(3, 4, 5)
    data = nifti(np.nan_to_num(array), version=version, order=order)
    name, data = ("a.nii.gz", gzip.compress(data)) if compressed else ("a.nii", data)
    path = saved(tmp_path / name, data)
    with np.errstate(over="ignore"):  # random bits are float64s of any size
        assert_read_as_nibabel_reads_it(path)
    assert read_header(path).dtype == np.dtype(order + dtype)
    assert (read_header(path).encoding == "gzip") == compressed
    assert read_header(path).file_bytes == path.stat().st_size


def sized(*dim: int, **fields: object) -> bytes:
    """Return a small volume whose header promises another shape."""
    return nifti(dim=[len(dim), *dim, *[1] * (7 - len(dim))], **fields)


SOUND = {
    "scaled": nifti(scl_slope=2.0, scl_inter=-1024.0),
    "negative_slope": nifti(scl_slope=-0.5),
    "slope_0_means_none": nifti(scl_slope=0.0, scl_inter=5.0),
    "slope_nan_means_none": nifti(scl_slope=NAN, scl_inter=NAN),
    "extension": nifti(extension=struct.pack("<2i", 32, 6) + b"a comment".ljust(24)),
    "voxels_further_down": nifti(offset=400),
    "voxels_beyond_the_first_read": nifti(offset=40_000),
    "zeros_after_the_voxels": nifti() + bytes(1000),
    "qform_alone": nifti(codes=(0, 1)),
    "sform_before_qform": nifti(codes=(1, 4)),
    "no_orientation": nifti(codes=(0, 0)),
    "7_axes": nifti(SMALL[..., None, None, None, None]),
    "one_slice": nifti(SMALL[:, :, :1]),
    "length_where_freesurfer_puts_it": sized(-1, 1, 1, glmin=60),
}


@pytest.mark.parametrize("data", SOUND.values(), ids=SOUND)
def test_headers_mean_what_they_mean_to_nibabel(tmp_path, data: bytes) -> None:
    assert_read_as_nibabel_reads_it(saved(tmp_path / "a.nii", data))
    assert_read_as_nibabel_reads_it(saved(tmp_path / "a.nii.gz", gzip.compress(data)))


def test_compression_is_recognised_by_its_bytes_and_voxels_are_a_read_only_view(tmp_path) -> None:
    for path, data in (("a.nii", gzip.compress(nifti())), ("b.nii.gz", nifti())):
        _, voxels = read_voxels(saved(tmp_path / path, data))
        np.testing.assert_array_equal(voxels, SMALL)
        assert voxels.flags.f_contiguous
        assert not voxels.flags.writeable
        assert not voxels.flags.owndata


def named_member(data: bytes, comment: bytes = b"comment") -> bytes:
    """Return a gzip member with extra field, name, comment and header CRC."""
    head = b"\x1f\x8b\x08\x1e" + bytes(6) + b"\x04\0abcd" + b"name.nii\0" + comment + b"\0"
    body = zlib.compressobj(wbits=-15)
    sums = struct.pack("<2L", zlib.crc32(data), len(data))
    crc16 = struct.pack("<H", zlib.crc32(head) & 0xFFFF)
    return head + crc16 + body.compress(data) + body.flush() + sums


GZIP_FILES = {
    "name_comment_and_extra_field": named_member(nifti()),
    "comment_longer_than_the_first_read": named_member(nifti(), b"x" * 60_000),
    "zero_padding": gzip.compress(nifti()) + bytes(700),
    "empty_member_before": gzip.compress(b"") + gzip.compress(nifti()),
    "empty_member_after": gzip.compress(nifti()) + gzip.compress(b""),
}


@pytest.mark.parametrize("data", GZIP_FILES.values(), ids=GZIP_FILES)
def test_any_gzip_file_is_read(tmp_path, data: bytes) -> None:
    _, voxels = read_voxels(saved(tmp_path / "a.nii.gz", data))
    np.testing.assert_array_equal(voxels, SMALL)


@given(cuts=st.lists(st.integers(0, len(nifti())), max_size=4), level=st.integers(0, 9))
def test_gzip_members_may_meet_anywhere(tmp_path_factory, cuts, level) -> None:
    ends = sorted([0, *cuts, len(nifti())])
    data = b"".join(gzip.compress(nifti()[a:b], level) for a, b in itertools.pairwise(ends))
    _, voxels = read_voxels(saved(tmp_path_factory.getbasetemp() / "members.nii.gz", data))
    np.testing.assert_array_equal(voxels, SMALL)


def test_a_header_that_nibabel_would_comment_on_is_read_in_silence(tmp_path, caplog) -> None:
    handlers = list(logging.getLogger("nibabel.global").handlers)
    read_header(saved(tmp_path / "a.nii", nifti(pixdim=[1, 0, 2, 3, 1, 1, 1, 1])))
    assert not caplog.records
    assert logging.getLogger("nibabel.global").handlers == handlers


# -- what is refused -----------------------------------------------------------------------------


def refuse(path: Path, kind: type[CaseError]) -> None:
    """Expect that reading fails so, naming the file, on one line."""
    with pytest.raises(CaseError) as caught:
        read_voxels(path)
    assert caught.type is kind, caught.value
    assert str(path) in caught.value.one_line
    assert "\n" not in str(caught.value)


def damaged(data: bytes, at: int, replacement: bytes) -> bytes:
    return data[:at] + replacement + data[at:][len(replacement) :]


GZIPPED = gzip.compress(nifti(), mtime=0)
SKY = (30_000, 30_000, 30_000)
RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
REFUSED: dict[type[CaseError], dict[str, bytes]] = {
    CorruptFile: {
        "zero_bytes": b"",
        "text": b"<html>404</html>" * 90,
        "gzipped_text": gzip.compress(b"<html>404</html>" * 90),
        "wrong_crc": damaged(GZIPPED, -8, b"\0\0\0\0"),
        "wrong_isize": damaged(GZIPPED, -4, b"\0\0\0\0"),
        "wrong_deflate": damaged(GZIPPED, 15, b"\xff" * 9),
        "second_member_cut": GZIPPED + GZIPPED[:-9],
        "promises_30000_cubed": sized(*SKY),
        "promises_30000_cubed_gzipped": gzip.compress(sized(*SKY)),
        "promises_2_to_the_120": sized(2**40, 2**40, 2**40, version=2),
        "a_slice_too_many": sized(3, 4, 6),
        "a_slice_too_many_gzipped": gzip.compress(sized(3, 4, 6)),
        "length_0": sized(3, 0, 5),
        "length_negative": sized(3, -4, 5),
        "length_that_freesurfer_puts_elsewhere": sized(-1, 1, 1, glmin=0),
        "unknown_datatype": nifti(datatype=999),
        "voxels_inside_the_header": nifti(vox_offset=100),
        "offset_beyond_the_file": nifti(vox_offset=1e30),
        "offset_nan": nifti(vox_offset=NAN),
        "offset_inf": nifti(vox_offset=INF),
        "intercept_nan": nifti(scl_slope=2.0, scl_inter=NAN),
    },
    UnsupportedImage: {
        "2d": nifti(SMALL[0]),
        "4d": nifti(np.stack([SMALL] * 2, -1)),
        "5d": nifti(np.stack([SMALL] * 3, -1)[..., None, :]),
        "rgb": nifti(np.zeros((3, 4, 5), RGB)),
        "complex64": nifti(SMALL.astype("c8")),
        "half_a_pair": nifti(magic=b"ni1"),
    },
    GeometryMismatch: {
        "singular": nifti(srow_x=[1, 0, 0, 0], srow_y=[2, 0, 0, 0]),
        "affine_nan": nifti(srow_x=[1, 0, NAN, 0]),
        "affine_inf": nifti(srow_y=[1, 0, 0, INF]),
        "affine_overflows": nifti(version=2, srow_x=[1e300, 0, 0, 0]),
        "qform_without_rotation": nifti(codes=(0, 1), quatern_b=2.0),
        "qform_nan": nifti(codes=(0, 1), qoffset_x=NAN),
    },
}


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        pytest.param(kind, data, id=f"{kind.__name__}-{name}")
        for kind, files in REFUSED.items()
        for name, data in files.items()
    ],
)
def test_damaged_volumes_are_refused_by_name(tmp_path, kind, data) -> None:
    refuse(saved(tmp_path / "scan.nii.gz", data), kind)


@pytest.mark.parametrize("whole", [nifti(), GZIPPED], ids=["nii", "nii_gz"])
def test_a_file_that_was_cut_anywhere_is_corrupt(tmp_path, whole: bytes) -> None:
    for end in range(len(whole)):
        refuse(saved(tmp_path / "scan.nii.gz", whole[:end]), CorruptFile)


BACKED_BY_NOTHING = {
    "header_promises_too_much": sized(*SKY),
    "gzipped_header_promises_too_much": gzip.compress(sized(*SKY)),
    "bomb": gzip.compress(nifti() + bytes(1 << 26)),
    "bomb_in_a_later_member": gzip.compress(nifti()) + gzip.compress(bytes(1 << 26)),
    "promise_that_zeros_could_keep": gzip.compress(sized(3, 4, 3000)),
}


@pytest.mark.parametrize("data", BACKED_BY_NOTHING.values(), ids=BACKED_BY_NOTHING)
def test_no_memory_is_allocated_that_the_file_does_not_back(tmp_path, data: bytes) -> None:
    path = saved(tmp_path / "scan.nii.gz", data)
    tracemalloc.start()
    try:
        refuse(path, CorruptFile)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_special_files_are_refused_without_blocking(tmp_path) -> None:
    (tmp_path / "folder.nii.gz").mkdir()
    refuse(tmp_path / "folder.nii.gz", UnsupportedImage)
    (tmp_path / "link.nii.gz").symlink_to("nowhere.nii.gz")
    refuse(tmp_path / "link.nii.gz", MissingFile)
    refuse(tmp_path / "nothing.nii.gz", MissingFile)
    os.mkfifo(tmp_path / "pipe.nii.gz")
    refuse(tmp_path / "pipe.nii.gz", UnsupportedImage)


def test_an_unreadable_file_is_permission_denied(tmp_path) -> None:
    saved(tmp_path / "scan.nii.gz", GZIPPED).chmod(0)
    tmp_path.chmod(0o755)
    program = (
        "import os, dask_slicer.inputs.readers as nifti\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try: nifti.read_header('scan.nii.gz')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    command = [sys.executable, "-c", program]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert said.startswith(PermissionDenied.__name__)
    assert "scan.nii.gz" in said
