"""Archives of `.npz` files: written by hand, and read by any program."""

from __future__ import annotations

import os
import shutil
import subprocess
import tracemalloc
import zipfile
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isal import isal_zlib

from dask_slicer.output.formats import npz_archive
from dask_slicer.output.formats.npz_archive import archive, npy_header, npy_of_text, piece

PROGRAMS = (["unzip", "-tqq"], ["7z", "t"])
LEVELS = (0, 1, 2, 6, 9)


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
    monkeypatch.setattr(npz_archive, "_ZIP64_FROM", Mark(0xFFFFFFFF))
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
        crc32 = npz_archive.isal_zlib.crc32(zeros, crc32)
    with zipfile.ZipFile(BytesIO(data)) as found:
        (member,) = found.infolist()
        assert (member.file_size, member.CRC) == (65 << 26, crc32)
        assert found.open(member).read(9) == bytes(9)


@pytest.mark.parametrize("n_parts", [0, 1, 3, 1024, 1025, 3000])
def test_parts_are_written_whole_however_many(tmp_path, n_parts) -> None:
    parts = [bytes([number % 251]) * (number % 7) for number in range(n_parts)]
    size = npz_archive.write_parts(tmp_path / "file", parts, fsync=True)
    assert (tmp_path / "file").read_bytes() == b"".join(parts)
    assert size == len(b"".join(parts))


def test_many_parts_are_not_joined_in_memory(tmp_path) -> None:
    parts = [bytes([number % 256]) * 2000 for number in range(3000)]
    tracemalloc.start()
    try:
        npz_archive.write_parts(tmp_path / "file", parts, fsync=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1e6
    assert (tmp_path / "file").read_bytes() == b"".join(parts)


@pytest.mark.skipif(not hasattr(os, "writev"), reason="no writev on this system")
def test_parts_are_written_whole_after_short_writes(tmp_path, monkeypatch) -> None:
    def some(descriptor: int, parts: list[bytes]) -> int:
        return os.write(descriptor, b"".join(parts)[:5])

    monkeypatch.setattr(npz_archive.os, "writev", some)
    npz_archive.write_parts(tmp_path / "file", [b"one", b"two", b"three"], fsync=False)
    assert (tmp_path / "file").read_bytes() == b"onetwothree"


@pytest.mark.parametrize("most_parts", [0, 1024])
def test_all_of_a_file_is_with_the_system_when_it_is_synced(
    tmp_path, monkeypatch, most_parts
) -> None:
    monkeypatch.setattr(npz_archive, "_MOST_PARTS", most_parts)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    assert npz_archive.write_parts(tmp_path / "a", [b"one", b"two"], fsync=True) == 6
    assert synced == [6]
