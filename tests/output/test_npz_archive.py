"""Slices are written as .npz files that any reader opens, each plane deflated once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isal import isal_zlib

from dask_slicer import npz, store_npz
from dask_slicer.cases import Case
from dask_slicer.config import SliceSettings
from dask_slicer.npz import archive, npy_header, npy_of_text, piece
from dask_slicer.plans import CasePlan
from dask_slicer.slices import SliceStack, slice_volume
from dask_slicer.store_npz import write_slices
from dask_slicer.volume import Volume, Voxels

PROGRAMS = (["unzip", "-tqq"], ["7z", "t"])
LEVELS = (0, 1, 2, 6, 9)
NUMPY_PADDING = {"zero": "constant", "replicate": "edge", "mirror": "reflect"}
AFFINE = np.array([[0.0, 0, -2, 9], [0, -1.5, 0, 7], [3, 0, 0, 5], [0, 0, 0, 1]])


def stack_of(
    shape: tuple[int, int, int] = (5, 4, 3),
    *,
    n_modalities: int = 1,
    stored: str = "int16",
    label_dtype: str | None = "uint8",
    kept: tuple[int, ...] | None = None,
) -> SliceStack:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, shape).astype(label_dtype or "uint8")
    if kept is not None:
        label[:] = 0
        label[list(kept)] = 1
    images = [rng.integers(0, 100, shape).astype(stored) for _ in range(n_modalities)]
    volume = Volume(
        image=tuple(Voxels(stored=image) for image in images),
        label=Voxels(stored=label) if label_dtype else None,
        affine=AFFINE,
    )
    return slice_volume(volume, label_dtype=label_dtype or "uint8", min_foreground=0.5 * bool(kept))


def plan_of(stack: SliceStack) -> CasePlan:
    sources = tuple(f"imagesTr/liver_{channel:04d}.nii.gz" for channel in range(len(stack.image)))
    return CasePlan(case=Case(case_id="liver", images=sources), split="val", sources=sources)


def written(stack: SliceStack, folder: Path, **chosen: object) -> list[Path]:
    """Write a stack; return its files, after holding them against what was said of them."""
    said = write_slices(stack, plan_of(stack), SliceSettings(**chosen), folder, fsync=False)
    files = [folder / f"liver_{index:03d}.npz" for index in stack.kept]
    assert sorted(folder.iterdir()) == files
    assert [slice_.slice_index for slice_ in said] == list(stack.kept)
    assert [slice_.size for slice_ in said] == [path.stat().st_size for path in files]
    assert [slice_.crc32 for slice_ in said] == [zlib.crc32(path.read_bytes()) for path in files]
    return files


def naive_windows(stack: SliceStack, window_size: int, padding_mode: str) -> np.ndarray:
    """Return (n_slices, channels, height, width): all planes, padded by numpy, cut apart."""
    images = [
        np.stack([how.apply(plane) for plane in voxels.stored])
        for how, voxels in zip(stack.how, stack.image, strict=True)
    ]
    outside = [(window_size, window_size), (0, 0), (0, 0), (0, 0)]
    padded = np.pad(np.stack(images, axis=1), outside, mode=NUMPY_PADDING[padding_mode])
    n_slices, *plane = stack.shape
    windows = [padded[index : index + 2 * window_size + 1] for index in range(n_slices)]
    return np.stack([window.reshape(-1, *plane) for window in windows])


@settings(deadline=None, max_examples=150)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5)),
    n_modalities=st.integers(1, 3),
    stored=st.sampled_from(["uint8", ">i2", "int32", "float32", "float64"]),
    label_dtype=st.sampled_from(["uint8", "uint16", "int32", None]),
    chosen=st.fixed_dictionaries(
        {
            "window_size": st.integers(0, 8),
            "padding_mode": st.sampled_from(sorted(NUMPY_PADDING)),
            "compression_level": st.sampled_from(LEVELS),
            "dtype": st.sampled_from(["float32", "float16"]),
        }
    ),
)
def test_slices_are_the_windows_of_a_volume_padded_by_numpy(
    shape, n_modalities, stored, label_dtype, chosen
) -> None:
    stack = stack_of(shape, n_modalities=n_modalities, stored=stored, label_dtype=label_dtype)
    windows = naive_windows(stack, chosen["window_size"], chosen["padding_mode"])
    arrays = ["image", "label", "metadata"] if label_dtype else ["image", "metadata"]
    with tempfile.TemporaryDirectory() as folder:
        files = written(stack, Path(folder), label_dtype=label_dtype or "uint8", **chosen)
        for index, path in enumerate(files):
            with zipfile.ZipFile(path) as members:
                assert members.testzip() is None
            with np.load(path, allow_pickle=False) as found:
                assert found.files == arrays
                assert found["image"].dtype == chosen["dtype"]
                np.testing.assert_array_equal(
                    found["image"], windows[index].astype(chosen["dtype"])
                )
                if label_dtype is not None:
                    assert found["label"].dtype == label_dtype
                    np.testing.assert_array_equal(found["label"], stack.label[index])


@pytest.mark.parametrize("n_modalities", [1, 2])
@pytest.mark.parametrize("label_dtype", ["uint8", None])
def test_the_metadata_are_those_that_readers_rely_on(tmp_path, n_modalities, label_dtype) -> None:
    stack = stack_of(n_modalities=n_modalities, label_dtype=label_dtype)
    for index, path in enumerate(written(stack, tmp_path, window_size=1, plane="coronal")):
        with np.load(path, allow_pickle=False) as found:
            assert (found["metadata"].shape, found["metadata"].dtype.kind) == ((), "U")
            described = json.loads(str(found["metadata"]))
        one = n_modalities == 1
        statistics = {
            name: [getattr(found, name) for found in stack.statistics]
            for name in ("mean", "std", "min", "max")
        }
        assert described == {
            "source_file": "imagesTr/liver_0000.nii.gz" if one else list(plan_of(stack).sources),
            "slice_index": index,
            "total_slices": 5,
            "window_size": 1,
            "padding_mode": "replicate",
            "num_channels": 3 * n_modalities,
            "spacing": [3.0, 1.5, 2.0],
            "normalized": True,
            "norm_stats": {k: v[0] if one else v for k, v in statistics.items()},
            "shape": {"image": [3 * n_modalities, 4, 3], "label": [4, 3] if label_dtype else None},
            "case_id": "liver",
            "split": "val",
            "plane": "coronal",
            "affine": AFFINE.tolist(),
        }


def test_metadata_may_hold_any_text(tmp_path) -> None:
    for text in ("", "Läsion ✓ 肝臓 🩻", 'quo"te\\n', "\udce9 of a name that is not UTF-8"):
        content = piece(npy_of_text(text), level=1)
        data = b"".join(archive([("metadata.npy", [content])], level=1)[0])
        with np.load(BytesIO(data), allow_pickle=False) as found:
            assert str(found["metadata"]) == text


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "uint16", "int32"])
@pytest.mark.parametrize("shape", [(), (3,), (5, 4, 3), (1, 100_000, 2)])
def test_an_npy_header_says_shape_dtype_and_c_order(shape, dtype) -> None:
    file = BytesIO(npy_header(shape, dtype))
    assert np.lib.format.read_magic(file) == (1, 0)
    assert np.lib.format.read_array_header_1_0(file) == (shape, False, np.dtype(dtype))
    assert not file.read()


# -- archives ------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("command", PROGRAMS, ids=lambda command: command[0])
def test_other_programs_find_no_fault(tmp_path, command, level) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    for path in written(stack_of((3, 40, 30)), tmp_path, compression_level=level):
        subprocess.run([*command, path], check=True, capture_output=True)


def test_the_same_input_gives_the_same_bytes(tmp_path) -> None:
    found = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        found.append([path.read_bytes() for path in written(stack_of(), folder)])
    assert found[0] == found[1]


@pytest.mark.parametrize("level", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_same_input_gives_the_same_bytes_wherever_in_memory_it_is_deflated(level) -> None:
    """By itself, ISA-L makes some 25 (level 1) or 4 (level 2) of these otherwise."""
    rng = np.random.default_rng(0)
    between, after = rng.bytes(60), rng.bytes(400)
    held = []
    for _ in range(30_000):
        start = rng.bytes(8)
        content = start + between + start[2:] + between[:20] + start + after
        made = {piece(content, level=level).stored.data}
        for _ in range(2):
            held = [*held[-10:], isal_zlib.compressobj()]  # takes the place of the one before
            made.add(piece(content, level=level).stored.data)
        assert len(made) == 1


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("length", [*range(9), 15, 16, 17, 20, 287, 288, 289, 70_000])
def test_a_piece_of_any_length_inflates_to_its_content(length, level) -> None:
    for content in (bytes(length), np.random.default_rng(0).bytes(length)):
        made = piece(content, level=level)
        inflated = zlib.decompress(made.stored.data + b"\x03\x00", -15) if level else content
        assert inflated == content
        assert (made.length, made.crc32) == (length, zlib.crc32(content))


@given(contents=st.lists(st.lists(st.binary(max_size=300), max_size=5), max_size=4))
@settings(deadline=None)
def test_a_member_is_its_pieces_one_after_another(contents: list[list[bytes]]) -> None:
    for level in LEVELS:
        members = [
            (str(number), [piece(part, level=level) for part in parts])
            for number, parts in enumerate(contents)
        ]
        parts, crc32 = archive(members, level=level)
        data = b"".join(parts)
        assert crc32 == zlib.crc32(data)
        with zipfile.ZipFile(BytesIO(data)) as found:
            assert found.testzip() is None
            assert [found.read(name) for name in found.namelist()] == [
                b"".join(c) for c in contents
            ]


class Mark(int):
    """What the zip64 fields are marked with, but compared as if it were 200."""

    def __le__(self, other: int) -> bool:
        return other >= 200

    def __lt__(self, other: int) -> bool:
        return other > 200


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([1000], id="large"),
        pytest.param([10] * 7, id="far"),
        pytest.param([199, 10, 200, 1000, 3], id="large_far_and_both"),
    ],
)
def test_archives_over_4_gib_are_read_as_any_other(monkeypatch, tmp_path, sizes, level) -> None:
    monkeypatch.setattr(npz, "_ZIP64_FROM", Mark(0xFFFFFFFF))
    contents = [np.random.default_rng(size).bytes(size) for size in sizes]
    members = [(f"{n}.npy", [piece(c, level=level)]) for n, c in enumerate(contents)]
    parts, crc32 = archive(members, level=level)
    data = b"".join(parts)
    assert b"PK\x06\x06" in data
    assert crc32 == zlib.crc32(data)
    with zipfile.ZipFile(BytesIO(data)) as found:
        assert found.testzip() is None
        assert [found.read(name) for name in found.namelist()] == contents
    (tmp_path / "large.zip").write_bytes(data)
    for command in PROGRAMS:
        if shutil.which(command[0]):
            subprocess.run([*command, tmp_path / "large.zip"], check=True, capture_output=True)


def test_a_member_of_more_than_4_gib_has_its_true_size_and_crc() -> None:
    zeros = np.zeros(1 << 26, dtype=np.uint8)
    data = b"".join(archive([("zeros.npy", [piece(zeros, level=1)] * 65)], level=1)[0])
    crc32 = 0
    for _ in range(65):
        crc32 = npz.isal_zlib.crc32(zeros, crc32)
    with zipfile.ZipFile(BytesIO(data)) as found:
        (member,) = found.infolist()
        assert (member.file_size, member.CRC) == (65 << 26, crc32)
        assert found.open(member).read(9) == bytes(9)


@pytest.mark.parametrize("n_parts", [0, 1, 3, 1024, 1025, 3000])
def test_parts_are_written_whole_however_many(tmp_path, n_parts) -> None:
    parts = [bytes([number % 251]) * (number % 7) for number in range(n_parts)]
    size = npz.write_parts(tmp_path / "file", parts, fsync=True)
    assert (tmp_path / "file").read_bytes() == b"".join(parts)
    assert size == len(b"".join(parts))


@pytest.mark.skipif(not hasattr(os, "writev"), reason="no writev on this system")
def test_parts_are_written_whole_when_the_system_takes_some_only(tmp_path, monkeypatch) -> None:
    def some(descriptor: int, parts: list[bytes]) -> int:
        return os.write(descriptor, b"".join(parts)[:5])

    monkeypatch.setattr(npz.os, "writev", some)
    npz.write_parts(tmp_path / "file", [b"one", b"two", b"three"], fsync=False)
    assert (tmp_path / "file").read_bytes() == b"onetwothree"


# -- how little is done and held -----------------------------------------------------------------


class Held(dict):
    """Planes by index, and the most that there were at any time."""

    most = 0

    def __setitem__(self, index: int, pieces: object) -> None:
        super().__setitem__(index, pieces)
        self.most = max(self.most, len(self))


@pytest.mark.parametrize("padding_mode", sorted(NUMPY_PADDING))
@pytest.mark.parametrize("window_size", [0, 1, 3, 30])
@pytest.mark.parametrize("kept", [None, (0, 1, 12, 19), (7,)], ids=["all", "some", "one"])
def test_only_planes_that_a_window_still_needs_are_held(kept, window_size, padding_mode) -> None:
    stack = stack_of((20, 4, 3), kept=kept)
    chosen = SliceSettings(window_size=window_size, padding_mode=padding_mode)
    writer = store_npz._Writer(stack, plan_of(stack), chosen)
    writer._pieces = Held()
    for slice_index in stack.kept:
        writer.archive(slice_index)
    assert writer._pieces.most <= 2 * window_size + 1


def test_every_plane_is_deflated_once(tmp_path, monkeypatch) -> None:
    planes = []

    def counted(content: object, *, level: int) -> npz.Piece:
        planes.extend([content.dtype] if isinstance(content, np.ndarray) else [])
        return piece(content, level=level)

    monkeypatch.setattr(store_npz, "piece", counted)
    written(stack_of((20, 4, 3), n_modalities=2), tmp_path, window_size=4)
    assert planes.count(np.dtype("float32")) <= 20 * 2 + 1  # and one of zeros
    assert planes.count(np.dtype("uint8")) == 20


def test_every_file_is_forced_to_disk_where_asked(tmp_path, monkeypatch) -> None:
    forced = []
    monkeypatch.setattr(os, "fsync", forced.append)
    stack = stack_of()
    write_slices(stack, plan_of(stack), SliceSettings(), tmp_path, fsync=True)
    assert len(forced) == 5
