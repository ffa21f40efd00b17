"""Hostile NRRD, MetaImage and MGH files and pairs: what other readers read, or a named failure.

How many are made of each kind, in the slow tests: DASK_SLICER_FUZZ.
"""

from __future__ import annotations

import gzip
import os
import random
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from dask_slicer.errors import CaseError
from dask_slicer.inputs.readers import read_voxels

N = int(os.environ.get("DASK_SLICER_FUZZ", "300"))
STORED = np.random.default_rng(0).integers(-1000, 1000, (12, 10, 8)).astype(np.int16)
VOXELS = STORED.tobytes(order="F")
NRRD = b"""NRRD0005
type: short
dimension: 3
space: left-posterior-superior
sizes: 12 10 8
space directions: (1.4,0.2,0.1) (0.2,1.9,0.3) (0.1,-0.3,3.1)
kinds: domain domain domain
endian: little
encoding: ENCODING
space origin: (60,-70,9)
"""
MHA = b"""ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = COMPRESSED
CompressedDataSize = PACKED
TransformMatrix = 0 1 0 -1 0 0 0 0 1
Offset = 60 -70 9
ElementSpacing = 1.4 1.9 3.1
DimSize = 12 10 8
ElementType = MET_SHORT
ElementDataFile = NAME
""".replace(b"PACKED", b"%d" % len(zlib.compress(VOXELS)))


GZIP_BOMB = gzip.compress(bytes(1 << 26))


class Files(NamedTuple):
    """A file's suffix and bytes, and those of a file beside it, if there is one."""

    suffix: str
    head: bytes  # the header, where it is text
    data: bytes = b""  # what follows it
    beside: str = ""
    beside_data: bytes = b""


def mgh() -> bytes:
    image = nib.MGHImage(
        STORED, np.array([[-1.4, 0, 0, 9], [0, 0, 3.1, 8], [0, -1.9, 0, 7], [0] * 3 + [1]])
    )
    return (
        image.header.binaryblock[:90].ljust(284, b"\0")
        + STORED.astype(">i2").tobytes("F")
        + bytes(20)
    )


def pair(kind: type) -> bytes:
    header = kind()
    header.set_data_dtype(np.int16)
    header.set_data_shape(STORED.shape)
    if kind is not nib.AnalyzeHeader:
        header.set_sform(np.diag([-1.4, 1.9, 3.1, 1]), 1)
    header["pixdim"][1:4] = (1.4, 1.9, 3.1)
    return header.binaryblock


SOUND = (
    Files(".nrrd", NRRD.replace(b"ENCODING", b"raw") + b"\n", VOXELS),
    Files(".nrrd", NRRD.replace(b"ENCODING", b"gzip") + b"\n", gzip.compress(VOXELS, mtime=0)),
    Files(".nhdr", NRRD.replace(b"ENCODING", b"raw") + b"data file: a.raw\n", b"", "a.raw", VOXELS),
    Files(".mha", MHA.replace(b"COMPRESSED", b"False").replace(b"NAME", b"LOCAL"), VOXELS),
    Files(
        ".mha",
        MHA.replace(b"COMPRESSED", b"True").replace(b"NAME", b"LOCAL"),
        zlib.compress(VOXELS),
    ),
    Files(
        *(".mhd", MHA.replace(b"COMPRESSED", b"True").replace(b"NAME", b"a.zraw"), b""),
        *("a.zraw", zlib.compress(VOXELS)),
    ),
    Files(".mgh", mgh()[:284], mgh()[284:]),
    Files(".mgz", b"", gzip.compress(mgh(), mtime=0)),
    Files(".hdr", pair(nib.nifti1.Nifti1PairHeader), b"", "a.img", VOXELS),
    Files(".hdr", pair(nib.nifti2.Nifti2PairHeader), b"", "a.img.gz", gzip.compress(VOXELS)),
    Files(".hdr", pair(nib.AnalyzeHeader), b"", "a.img", VOXELS),
)


def write(folder: Path, files: Files) -> Path:
    folder.mkdir()
    path = folder / f"a{files.suffix}"
    path.write_bytes(files.head + files.data)
    if files.beside:
        (folder / files.beside).write_bytes(files.beside_data)
    return path


def read_by_others(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return voxels and affine as nibabel or SimpleITK reads them, None if it does not."""
    packed = path.with_name("a.img.gz")
    if packed.exists():  # nibabel wants both of a pair to be packed, or none
        packed.with_name("a.img").write_bytes(gzip.decompress(packed.read_bytes()))
    if path.suffix in (".mgz", ".mgh", ".hdr"):
        try:
            image = nib.load(path)
        except nib.spatialimages.HeaderDataError:
            return None  # an MGH file with an intent
        stored = np.asanyarray(image.dataobj.get_unscaled())
        return stored.reshape(stored.shape[:3]), image.affine
    capfd.readouterr()
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError:
        return None
    if "CompressedDataSize = PACKED".replace("PACKED", str(len(zlib.compress(VOXELS)))) not in (
        path.read_bytes().decode("latin-1")
    ) and path.suffix.startswith(".m"):
        return None
    if "Uncompress failed" in capfd.readouterr().err:
        return None  # what SimpleITK returns then is no part of the file
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, np.diag([-1, -1, 1, 1]) @ affine


def fate_of(path: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """Read a file, hold it against other readers, and return what came of it."""
    try:
        header, voxels = read_voxels(path)
    except CaseError as error:
        failure = error
    else:
        failure = None
    if failure:
        assert failure.kind != "Unexpected", failure
        assert failure.one_line.isprintable()
        return failure.kind
    with np.errstate(all="ignore"):
        expected = read_by_others(path, capfd)
    if expected is None:
        return "read here alone"
    np.testing.assert_array_equal(voxels, expected[0])
    if not any("converted" in note for note in header.notes):
        np.testing.assert_allclose(header.affine, expected[1], rtol=1e-4, atol=1e-4)
    return "read alike"


def hit(data: bytes, rng: random.Random) -> bytes:
    """Return bytes of which one to four were changed."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4) if data else 0):
        at = rng.randrange(len(data))
        flipped = changed[at] ^ 1 << rng.randrange(8)
        changed[at] = rng.choice([0, 10, 32, 0x30, 0x39, 0x80, 0xFF, flipped, rng.randrange(256)])
    return bytes(changed)


def header_bytes(rng: random.Random) -> Files:
    files = rng.choice(SOUND)
    return files._replace(head=hit(files.head, rng))


VALUES = (
    *(b"", b"0", b"-1", b"3", b"4", b"1e400", b"nan", b"inf", b"-0.0", b"99999999999999999999"),
    *(
        b"30000 30000 30000",
        b"12 10 8 1",
        b"1 12 10 8",
        b"12 10 8 2",
        b"10 12 8",
        b"12 10",
        b"960 1 1",
    ),
    *(b"raw", b"gzip", b"GZ", b"bz2", b"hex", b"little", b"big", b"True", b"False", b"LOCAL"),
    *(b"/dev/zero", b"../a.raw", b"a.raw", b".", b"LIST", b"%d 1 2 1", b"\xff\xfe", b"MET_LONG"),
    *(b"MET_UCHAR", b"MET_DOUBLE", b"double", b"uchar", b"int32", b"block", b"1 0 0 1 0 0 0 0 1"),
    *(b"none (1,0,0) (0,1,0)", b"(1,0,0) (1,0,0) (0,0,1)", b"(1,0,0,0) (0,1,0,0) (0,0,1,0)"),
    *(b"RAS", b"LAS", b"3D-right-handed", b"list domain domain", b"RGB-color domain domain"),
)
MORE = (
    *(b"byte skip: 2", b"byte skip: -1", b"line skip: 1", b"spacings: 1 2 3", b"sizes: 12 10 8"),
    *(b'space units: "um" "um" "um"', b"key:=value", b"# comment", b"data file: a.raw"),
    *(
        b"HeaderSize = -1",
        b"HeaderSize = 7",
        b"ElementNumberOfChannels = 2",
        b"ElementSize = 1 1 1",
    ),
    *(b"DistanceUnits = um", b"Comment = x = y", b"Position = 1 2 3", b"junk", b""),
)


def text_fields(rng: random.Random) -> Files:
    files = rng.choice(SOUND[:6])
    lines = files.head.split(b"\n")
    for _ in range(rng.randint(1, 2)):
        number = rng.randrange(1, len(lines) - 1)
        sign = b" = " if files.suffix.startswith(".m") else b": "
        name, _, _ = lines[number].partition(sign)
        lines[number] = rng.choice([name + sign + rng.choice(VALUES), rng.choice(MORE)])
    return files._replace(head=b"\n".join(lines))


def streams(rng: random.Random) -> Files:
    files = rng.choice(
        [
            files
            for files in SOUND
            if b"\x1f\x8b" in files.data + files.beside_data
            or b"True" in files.head.split(b"Transform")[0][-20:]
        ]
    )
    data = files.data or files.beside_data
    begin, end = sorted(rng.choices(range(len(data)), k=2))
    changed = rng.choice([
        lambda: hit(data, rng),
        lambda: data[:begin] + data[end:],
        lambda: data + data,
        lambda: data + rng.randbytes(100),
        lambda: data + GZIP_BOMB,
        lambda: GZIP_BOMB,
        lambda: zlib.compress(bytes(1 << 22)),
        lambda: b"",
    ])()  # fmt: skip
    return files._replace(data=changed) if files.data else files._replace(beside_data=changed)


def cuts(rng: random.Random) -> Files:
    files = rng.choice(SOUND)
    if files.beside and rng.random() < 0.7:
        return files._replace(
            beside_data=files.beside_data[: rng.randrange(len(files.beside_data))]
        )
    whole = files.head + files.data
    return files._replace(head=whole[: rng.randrange(len(whole))], data=b"")


KINDS: list[Callable[[random.Random], Files]] = [header_bytes, text_fields, streams, cuts]


@pytest.mark.parametrize(
    "n", [60, pytest.param(N, marks=[pytest.mark.slow, pytest.mark.fuzz])], ids=["few", "many"]
)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_file_gives_a_wrong_volume_or_an_error_without_a_name(tmp_path, capfd, kind, n) -> None:
    rng = random.Random(f"{kind.__name__} {n}")
    fates: Counter[str] = Counter()
    for number in range(n):
        fates[fate_of(write(tmp_path / str(number), kind(rng)), capfd)] += 1
    with capfd.disabled():
        print(f"{kind.__name__}: {n} inputs, {dict(fates.most_common())}")  # noqa: T201


@pytest.mark.parametrize("files", SOUND, ids=lambda files: files.suffix)
def test_the_files_that_are_damaged_are_sound(tmp_path, capfd, files) -> None:
    assert fate_of(write(tmp_path / "sound", files), capfd) == "read alike"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_file_takes_memory_that_it_does_not_back(tmp_path, kind) -> None:
    rng = random.Random(kind.__name__)
    for number in range(60):
        path = write(tmp_path / str(number), kind(rng))
        tracemalloc.start()
        try:
            read_voxels(path)
        except CaseError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 2_000_000
