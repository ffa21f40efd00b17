"""Hostile files: each becomes the slices that nibabel reads of it, or a failure with a name.

How many are made of each kind, in the slow tests: DASK_SLICER_FUZZ.
"""

from __future__ import annotations

import csv
import gzip
import os
import random
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest

import dask_slicer
from dask_slicer import SliceDataset, open_output
from dask_slicer.inputs.readers import read_voxels

N = int(os.environ.get("DASK_SLICER_FUZZ", "300"))
SHAPE = (12, 10, 8)
# Oblique, left-handed, no two spacings alike.
AFFINE = np.array([[-1.4, 0.2, 0.1, 60], [0.2, 1.9, 0.3, -70], [0.1, -0.3, 3.1, 9], [0, 0, 0, 1]])
NAN, INF = float("nan"), float("inf")
RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
INTEGERS = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")


class Files(NamedTuple):
    """The bytes of a case's files, compressed where they begin so."""

    image: bytes
    label: bytes | None = None


def nifti(
    array: np.ndarray,
    affine: np.ndarray = AFFINE,
    *,
    version: int = 1,
    order: str = "<",
    **fields: object,
) -> bytes:
    """Return the bytes of a NIfTI file; `fields` go into its header as they are."""
    kind = {1: nib.Nifti1Header, 2: nib.Nifti2Header}[version]
    header = kind(endianness=order)
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_sform(affine, 1)
    header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    header["vox_offset"] = header.sizeof_hdr + 4
    for name, value in fields.items():
        header[name] = value
    voxels = array.astype(array.dtype.newbyteorder(order)).tobytes(order="F")
    return header.binaryblock + bytes(4) + voxels


def noise(shape: tuple[int, ...] = SHAPE, dtype: str = "i2", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)


IMAGE = nifti(noise() * 20 - 1000)
LABEL = nifti(noise(dtype="u1", seed=1) % 3)
SOUND = Files(gzip.compress(IMAGE, mtime=0), gzip.compress(LABEL, mtime=0))


# -- what a run makes of them ----------------------------------------------------------------------


class Made(NamedTuple):
    """Slices by case, and the kind and message of every failure."""

    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    failures: dict[str, tuple[str, str]]


def make_slices(folder: Path, cases: dict[str, Files], format_: str) -> Made:
    """Run on a dataset of these cases and a sound one."""
    rows = []
    for case_id, files in {"sound": SOUND, **cases}.items():
        row = [case_id]
        for name, data in files._asdict().items():
            if data is None:
                row.append("")
                continue
            suffix = ".nii.gz" if data[:2] == b"\x1f\x8b" else ".nii"
            path = folder / f"{case_id}_{name}{suffix}"
            path.write_bytes(data)
            row.append(path.name)
        rows.append(row)
    manifest = folder / "cases.csv"
    with manifest.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["case_id", "image", "label"], *rows])
    output = folder / "slices"
    dask_slicer.run(
        dask_slicer.RunConfig(
            input_dir=manifest, output_dir=output, num_workers=0, format=format_,
            normalize="none", window_size=0, allow_missing_labels=True,
        )
    )  # fmt: skip
    found = open_output(output)
    failures = {row["case_id"]: (row["kind"], row["message"]) for row in found.failures}
    assert sorted([*found.cases, *failures]) == sorted(["sound", *cases])
    images: dict[str, list[np.ndarray]] = {}
    labels: dict[str, list[np.ndarray]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that some failed
        for sample in SliceDataset(output, split=None):
            images.setdefault(sample["case_id"], []).append(sample["image"][0])
            if "label" in sample:
                labels.setdefault(sample["case_id"], []).append(sample["label"])
    return Made(
        {name: np.stack(slices) for name, slices in images.items()},
        {name: np.stack(slices) for name, slices in labels.items()},
        failures,
    )


def read_by_nibabel(path: Path) -> np.ndarray:
    """Return (slice, row, column) in the order of the axial plane: I→S, A→P, R→L."""
    data = path.read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    is_first = 348 in (int.from_bytes(data[:4], order) for order in ("little", "big"))
    kind, size = (nib.Nifti1Image, 348) if is_first else (nib.Nifti2Image, 540)
    with np.errstate(all="ignore"):
        # Without extensions, which hold no voxel, and which nibabel may refuse.
        image = kind.from_bytes(data[:size] + bytes(4) + data[size + 4 :])
        volume = image.get_fdata().reshape(image.shape[:3])
        ras = nib.as_closest_canonical(nib.Nifti1Image(volume, image.affine)).get_fdata()
    return ras.transpose(2, 1, 0)[:, ::-1, ::-1]


def check(folder: Path, cases: dict[str, Files], format_: str) -> Counter[str]:
    """Run on these cases, and hold what was made against nibabel; return what came of them."""
    made = make_slices(folder, cases, format_)
    assert "sound" in made.images
    for case_id, (kind, message) in made.failures.items():
        assert kind != "Unexpected", (case_id, message)
        assert message.isprintable(), (case_id, message)
    for case_id, image in made.images.items():
        (path,) = folder.glob(f"{case_id}_image.nii*")
        with np.errstate(over="ignore"):
            expected = read_by_nibabel(path).astype(np.float32)
        np.testing.assert_allclose(image, expected, rtol=1e-6, atol=1e-37, err_msg=case_id)
    for case_id, label in made.labels.items():
        (path,) = folder.glob(f"{case_id}_label.nii*")
        expected = np.rint(read_by_nibabel(path))
        np.testing.assert_array_equal(label, expected, err_msg=case_id)
    return Counter(
        made.failures[case_id][0] if case_id in made.failures else "slices" for case_id in cases
    )


# -- what there is in the world --------------------------------------------------------------------

SINGULAR = AFFINE @ np.diag([1, 0, 1, 1])
SPECKLED = noise(dtype="f4")
SPECKLED[1, 2, 3] = NAN
ODDITIES: dict[str, tuple[Files, str]] = {
    "big_endian": (Files(nifti(noise(), order=">")), ""),
    "nifti_2": (Files(nifti(noise(), version=2)), ""),
    "nifti_2_big_endian": (Files(nifti(noise(), version=2, order=">")), ""),
    "half_a_pair": (Files(nifti(noise(), magic=b"ni1")), "UnsupportedImage"),
    "pixdim_negative": (Files(nifti(noise(), pixdim=[-1, -1, 2, -3, 0, 0, 0, 0])), ""),
    "pixdim_zero": (Files(nifti(noise(), pixdim=[1, 0, 0, 0, 0, 0, 0, 0])), ""),
    "pixdim_zero_without_sform": (
        Files(nifti(noise(), pixdim=[1, 1, 0, 1, 0, 0, 0, 0], sform_code=0)),
        "",
    ),
    "pixdim_nan": (Files(nifti(noise(), pixdim=[1, NAN, NAN, NAN, 0, 0, 0, 0])), ""),
    "qform_against_sform": (Files(nifti(noise(), qform_code=1, quatern_d=0.7)), ""),
    "qform_alone": (Files(nifti(noise(), qform_code=1, sform_code=0, quatern_c=1.0)), ""),
    "qfac_minus_1": (
        Files(nifti(noise(), qform_code=1, sform_code=0, pixdim=[-1, 2, 3, 4, 0, 0, 0, 0])),
        "",
    ),
    "no_orientation": (Files(nifti(noise(), sform_code=0)), ""),
    "singular": (Files(nifti(noise(), SINGULAR)), "GeometryMismatch"),
    "affine_nan": (Files(nifti(noise(), srow_x=[NAN] * 4)), "GeometryMismatch"),
    "a_voxel_is_nan": (Files(nifti(SPECKLED)), "NonFinite"),
    "all_nan": (Files(nifti(np.full(SHAPE, NAN, np.float32))), "NonFinite"),
    "scaled_beyond_float32": (Files(nifti(noise(dtype="f8") + 1, scl_slope=3e38)), "NonFinite"),
    "constant": (Files(nifti(np.full(SHAPE, 7, np.int16))), ""),
    "one_slice": (Files(nifti(noise((12, 10, 1)))), ""),
    "one_column": (Files(nifti(noise((1, 10, 8)))), ""),
    "one_voxel": (Files(nifti(noise((1, 1, 1)))), ""),
    "fourth_axis_of_1": (Files(nifti(noise((*SHAPE, 1)))), ""),
    "4d": (Files(nifti(noise((*SHAPE, 2)))), "UnsupportedImage"),
    "5d": (Files(nifti(noise((*SHAPE, 1, 3)))), "UnsupportedImage"),
    "2d": (Files(nifti(noise((12, 10)))), "UnsupportedImage"),
    "rgb": (Files(nifti(np.zeros(SHAPE, RGB))), "UnsupportedImage"),
    "complex": (Files(nifti(noise(dtype="c8"))), "UnsupportedImage"),
    "long_double": (Files(nifti(noise(), datatype=1536, bitpix=128)), "UnsupportedImage"),
    "slope_0": (Files(nifti(noise(), scl_slope=0, scl_inter=9)), ""),
    "slope_negative": (Files(nifti(noise(), scl_slope=-0.1, scl_inter=-1024)), ""),
    "slope_nan": (Files(nifti(noise(), scl_slope=NAN, scl_inter=NAN)), ""),
    "text_in_latin_1": (Files(nifti(noise(), descrip=b"Universit\xe4t", aux_file=b"\xff")), ""),
    "int64_label": (Files(IMAGE, nifti(noise(dtype="i8") % 3)), ""),
    "label_of_floats": (Files(IMAGE, nifti(noise(dtype="f8") % 3 + 5e-4)), ""),
    "soft_mask": (Files(IMAGE, nifti(noise(dtype="f4") / 100)), "LabelValues"),
    "label_of_300": (Files(IMAGE, nifti(noise() + 250)), "LabelValues"),
    "label_below_0": (Files(IMAGE, nifti(noise() - 1)), "LabelValues"),
    "label_of_nan": (Files(IMAGE, nifti(SPECKLED)), "LabelValues"),
    "label_stored_otherwise": (
        Files(
            nifti(noise(), np.diag([2.0, 2, 2, 1])),
            nifti(
                noise(dtype="u1")[::-1].transpose(1, 0, 2) % 3,
                np.array([[0, -2.0, 0, 22], [2, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]),
            ),
        ),
        "",
    ),
    "label_one_slice_short": (Files(IMAGE, nifti(noise((12, 10, 7)))), "GeometryMismatch"),
}


@pytest.mark.parametrize("format_", ["npz", "zarr"])
def test_every_unusual_file_becomes_slices_or_a_named_failure(tmp_path, format_) -> None:
    cases = {name: files for name, (files, _) in ODDITIES.items()}
    cases |= {
        f"{name}_gzipped": Files(*(data and gzip.compress(data) for data in files))
        for name, files in cases.items()
    }
    made = make_slices(tmp_path, cases, format_)
    kinds = {name: kind for name, (_, kind) in ODDITIES.items()}
    assert {name: made.failures.get(name, [""])[0] for name in kinds} == kinds
    assert {name: made.failures.get(f"{name}_gzipped", [""])[0] for name in kinds} == kinds


# -- what there could be ---------------------------------------------------------------------------


def seed_of(rng: random.Random) -> bytes:
    """Return a volume to damage: any that can be sliced."""
    return rng.choice([IMAGE, *(files.image for files, kind in ODDITIES.values() if not kind)])


def wrapped(data: bytes, rng: random.Random) -> bytes:
    return gzip.compress(data, rng.randint(0, 9)) if rng.random() < 0.5 else data


def with_label(image: bytes, rng: random.Random) -> Files:
    return Files(image, LABEL if rng.random() < 0.3 else None)


def hit(data: bytes, rng: random.Random, end: int | None = None) -> bytes:
    """Return bytes of which one to four were changed."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(end or len(data), len(data)))
        flipped = changed[at] ^ 1 << rng.randrange(8)
        changed[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, flipped, rng.randrange(256)])
    return bytes(changed)


def header_bytes(rng: random.Random, _: int) -> Files:
    return with_label(wrapped(hit(seed_of(rng), rng, 352), rng), rng)


def header_fields(rng: random.Random, _: int) -> Files:
    version = rng.choice([1, 2])
    header = {1: nib.Nifti1Header, 2: nib.Nifti2Header}[version]()
    fields: dict[str, object] = {}
    for name in rng.sample(header.keys(), rng.randint(1, 3)):
        dtype, shape = header[name].dtype, header[name].shape
        if dtype.kind == "S":
            fields[name] = rng.randbytes(dtype.itemsize)
            continue
        value = header[name].copy()
        nasty: Sequence[float] = [0.0, -0.0, -1.0, 1e-30, 1e30, NAN, INF, -INF, rng.gauss(0, 100)]
        if dtype.kind in "iu":
            ends = np.iinfo(dtype)
            nasty = [0, 1, 2, 3, 4, 7, 8, 16, 64, 255, ends.max, ends.min, ends.max // 2]
        value.flat[rng.randrange(value.size)] = rng.choice(nasty)
        fields[name] = value if shape else value.item()
    return with_label(
        wrapped(nifti(noise(), version=version, order=rng.choice("<>"), **fields), rng), rng
    )


def extensions(rng: random.Random, _: int) -> Files:
    body = rng.randbytes(rng.choice([0, 8, 24, 1000]))
    size = rng.choice([len(body) + 8, 0, -16, 16, 2**31 - 1, 7])
    extension = struct.pack("<2i", size, rng.choice([0, 6, 4, -1])) + body
    flag = bytes([rng.choice([0, 1, 255]), 0, 0, 0])
    at = 352 + len(extension) + rng.choice([0, 0, 0, 1, 8, -8])
    head = nifti(noise(), vox_offset=at)[:348]
    return with_label(wrapped((head + flag + extension).ljust(at) + IMAGE[352:], rng), rng)


def gzip_streams(rng: random.Random, _: int) -> Files:
    level = rng.randint(0, 9)
    cut = rng.randrange(len(IMAGE))
    whole = gzip.compress(IMAGE, level)
    members = gzip.compress(IMAGE[:cut], level) + gzip.compress(IMAGE[cut:], 9 - level)
    begins, ends = sorted(rng.choices(range(len(whole)), k=2))
    made: list[Callable[[], bytes]] = [
        lambda: members,
        lambda: hit(members, rng),
        lambda: hit(whole, rng),
        lambda: hit(whole, rng, 20),
        lambda: whole + bytes(rng.randrange(1, 600)),
        lambda: whole + rng.randbytes(rng.randrange(1, 600)),
        lambda: whole + hit(whole, rng),
        lambda: whole + gzip.compress(b""),
        lambda: whole + gzip.compress(bytes(1 << rng.randrange(20, 26))),
        lambda: gzip.compress(IMAGE + bytes(1 << rng.randrange(8, 26))),
        lambda: gzip.compress(whole),
        lambda: whole[:begins] + whole[ends:],
        lambda: whole[:ends] + whole[begins:],
    ]
    return with_label(rng.choice(made)(), rng)


LARGE = nifti(noise((64, 48, 50)) * 300, dim=[3, 64, 48, 50, 1, 1, 1, 1])
LARGE_GZIPPED = gzip.compress(LARGE, 1)


def cuts(_: random.Random, number: int) -> Files:
    """Return a file that ends at a multiple of 1,000 bytes: each, if there are many."""
    data = [LARGE, LARGE_GZIPPED][number % 2]
    return Files(data[: (1 + number // 2) * 1000 % len(data)])


def shapes(rng: random.Random, _: int) -> Files:
    lengths = [rng.choice([1, 2, 3, 8, 10, 12, 0, -1, 32767, 1000]) for _ in range(7)]
    dim = [rng.choice([3, 3, 3, 4, 5, 7, 2, 1, 0, -1, 8, 300]), *lengths]
    dim[1:4] = rng.sample([*dim[1:4], *SHAPE], 3)
    return with_label(wrapped(nifti(noise(), dim=dim), rng), rng)


def intensities(rng: random.Random, _: int) -> Files:
    dtype = np.dtype(rng.choice([*INTEGERS, "f4", "f8"]))
    array = np.frombuffer(rng.randbytes(960 * dtype.itemsize), dtype).reshape(SHAPE)
    if dtype.kind == "f":
        array = rng.choice([array, np.nan_to_num(array), noise(dtype=dtype.str) / 7])
    slopes = [1.0, 0.0, -1.0, 2.0, 1 / 3, 1e-20, 1e20, NAN, INF]
    scale = {"scl_slope": rng.choice(slopes), "scl_inter": rng.choice([0.0, -1024.0, *slopes])}
    data = nifti(array, order=rng.choice("<>"), **scale if rng.random() < 0.6 else {})
    return with_label(wrapped(data, rng), rng)


def labels(rng: random.Random, _: int) -> Files:
    dtype = rng.choice([*INTEGERS, "f4", "f8", "c8"])
    values = noise(rng.choice([SHAPE, SHAPE, SHAPE, SHAPE[::-1], (*SHAPE, 2)]), "f8") % 4
    values += rng.choice([0, 0, 1e-4, 0.3, -1, 252, 253, 70_000, NAN, INF])
    with np.errstate(invalid="ignore"):
        array = values.astype(dtype)
    scale = {"scl_slope": rng.choice([1, 2, -1, 0.5]), "scl_inter": rng.choice([0, 3, 0.5])}
    data = nifti(array, **scale if rng.random() < 0.3 else {})
    return Files(IMAGE, wrapped(hit(data, rng, 352) if rng.random() < 0.3 else data, rng))


def affines(rng: random.Random, _: int) -> Files:
    affine = np.eye(4)
    spread = rng.choice([1.0, 1e-3, 1e3])
    affine[:3] = np.array([rng.gauss(0, spread) for _ in range(12)]).reshape(3, 4)
    if rng.random() < 0.5:  # no voxel is a cube, none lies straight
        turned, _ = np.linalg.qr(affine[:3, :3])
        affine[:3, :3] = turned * [rng.uniform(0.3, 5) for _ in range(3)]
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ [rng.choice([0, 0, 0.05, 0.3]) for _ in range(3)]
    return Files(nifti(noise(), affine), nifti(noise(dtype="u1") % 3, moved))


KINDS: list[Callable[[random.Random, int], Files]] = [
    *(header_bytes, header_fields, extensions, gzip_streams, cuts, shapes, intensities),
    *(labels, affines),
]
BATCH = 50


@pytest.mark.parametrize(
    "n", [20, pytest.param(N, marks=[pytest.mark.slow, pytest.mark.fuzz])], ids=["few", "many"]
)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_file_gives_a_wrong_slice_or_an_error_without_a_name(tmp_path, kind, n) -> None:
    rng = random.Random(f"{kind.__name__} {n}")
    fates: Counter[str] = Counter()
    for first in range(0, n, BATCH):
        folder = tmp_path / str(first)
        folder.mkdir()
        numbers = range(first, min(first + BATCH, n))
        cases = {f"{kind.__name__}_{number}": kind(rng, number) for number in numbers}
        fates += check(folder, cases, rng.choice(["npz", "zarr"]))
    print(f"{kind.__name__}: {n} inputs, {dict(fates.most_common())}")  # noqa: T201  # pytest -rP


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_file_takes_more_than_twice_the_memory_of_a_sound_one(tmp_path, kind) -> None:
    rng = random.Random(kind.__name__)
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(LARGE_GZIPPED)
    most, sound = peak_of(path) * 2, seconds_of(path)
    longest = 0.0
    for number in range(50):
        path.write_bytes(kind(rng, number).image)
        assert peak_of(path) <= most
        longest = max(longest, seconds_of(path))
    print(f"{kind.__name__}: at most {longest / sound:.2f} of a sound file's time")  # noqa: T201


def seconds_of(path: Path) -> float:
    """Return how long it takes to read a file, or to refuse it: the shortest of three times."""
    found = []
    for _ in range(3):
        started = time.perf_counter()
        with suppress(dask_slicer.errors.CaseError):
            read_voxels(path)
        found.append(time.perf_counter() - started)
    return min(found)


def peak_of(path: Path) -> int:
    """Return the most bytes that are taken while a file is read, or refused."""
    tracemalloc.start()
    try:
        read_voxels(path)
    except dask_slicer.errors.CaseError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak


# -- what leads further ----------------------------------------------------------------------------


OTHER_FORMATS = (
    b"NRRD0005\ntype: short\ndimension: 3\nspace: RAS\nsizes: 12 10 8\nendian: little\n"
    b"space directions: (1,0,0) (0,2,0) (0,0,3)\nencoding: raw\nspace origin: (1,2,3)\n\n",
    b"ObjectType = Image\nNDims = 3\nBinaryData = True\nOffset = 1 2 3\nElementSpacing = 1 2 3\n"
    b"TransformMatrix = 1 0 0 0 1 0 0 0 1\nDimSize = 12 10 8\nElementType = MET_SHORT\n"
    b"ElementDataFile = LOCAL\n",
    struct.pack(">7ih", 1, 12, 10, 8, 1, 4, 0, 1) + struct.pack(">15f", *[1.0] * 15) + bytes(194),
)


@pytest.mark.slow
@pytest.mark.fuzz
@pytest.mark.timeout(1200)
@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed")
def test_atheris_finds_no_file_that_nibabel_reads_differently(tmp_path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name, (files, kind) in ODDITIES.items():
        if kind == "":
            (corpus / name).write_bytes(files.image)
            (corpus / f"{name}.gz").write_bytes(gzip.compress(files.image, mtime=0))
    for number, head in enumerate(OTHER_FORMATS):
        (corpus / str(number)).write_bytes(head + noise().tobytes())
    found = subprocess.run(
        [
            *(sys.executable, Path(__file__).with_name("fuzz_volume.py"), corpus),
            # Of memory libFuzzer counts what the parent process took.
            *(f"-runs={N * 100}", "-max_len=4096", "-seed=1", "-timeout=20", "-rss_limit_mb=0"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr[-5000:]
    print(*(line for line in found.stderr.splitlines() if "DONE" in line))  # noqa: T201
