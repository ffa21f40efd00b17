"""Reading of .npz files: of ours without zipfile, also in part; of others; and of damaged ones."""

from __future__ import annotations

import json
import multiprocessing
import struct
import tracemalloc
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import deflate
import numpy as np
import pytest

from dask_slicer.errors import CorruptFile
from dask_slicer.output.formats import npz_reader
from dask_slicer.output.formats.npz_archive import (
    Piece,
    archive,
    npy_header,
    npy_of_text,
    piece,
    stored_members,
)
from dask_slicer.output.formats.npz_reader import NpzReader

pytestmark = pytest.mark.versions

LEVELS = (0, 1, 2, 6, 9)
FLUSH = b"\0\0\xff\xff"


def planes_of(n_planes: int, shape: tuple[int, int], dtype: str, *, seed: int = 0) -> np.ndarray:
    """Return planes of which each differs from the others; floats have steps, as CT has."""
    values = np.random.default_rng(seed).integers(-200, 200, (n_planes, *shape))
    return (values / 8).astype(dtype) if dtype.startswith("float") else values.astype(dtype)


def described(image: np.ndarray, window_size: int, label: np.ndarray | None) -> dict[str, object]:
    shape = {"image": list(image.shape), "label": None if label is None else list(label.shape)}
    return {"slice_index": 0, "window_size": window_size, "shape": shape, "case_id": "肝臓"}


def written_bytes(
    image: np.ndarray, *, window_size: int, label: np.ndarray | None = None, level: int = 1
) -> bytes:
    """Return a file as `NpzWriter` writes it, of planes of any dtype."""
    members = [("image.npy", [npy_header(image.shape, image.dtype), *image])]
    if label is not None:
        members.append(("label.npy", [npy_header(label.shape, label.dtype), label]))
    text = json.dumps(described(image, window_size, label), ensure_ascii=False)
    members.append(("metadata.npy", [npy_of_text(text)]))
    pieces = [(name, [piece(each, level=level) for each in contents]) for name, contents in members]
    return b"".join(archive(pieces, level=level)[0])


def reader_of(path: Path, *, crc32: int | None = None) -> NpzReader:
    return NpzReader(lambda _: path, lambda _: crc32)


def saved(path: Path, data: bytes) -> NpzReader:
    """Write a file; return its reader, which knows its CRC-32."""
    path.write_bytes(data)
    return reader_of(path, crc32=zlib.crc32(data))


def same(pixels: np.ndarray | None, expected: np.ndarray | None) -> bool:
    """Return whether arrays are the same to the bit."""
    if pixels is None or expected is None:
        return pixels is expected
    return (pixels.dtype, pixels.shape) == (expected.dtype, expected.shape) and (
        pixels.tobytes() == expected.tobytes()
    )


def stored_image(reader: NpzReader, window_size: int | None) -> np.ndarray:
    window = reader.window(0, window_size)
    image = np.empty(window.shape, window.dtype)
    window.read_stored(image, {})
    return image


@pytest.fixture
def no_zipfile(monkeypatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("zipfile was asked")

    monkeypatch.setattr(npz_reader, "ZipFile", refused)


@pytest.fixture
def inflated(monkeypatch) -> list[int]:
    """Return a list that gets the number of bytes of each stream that is inflated."""
    lengths: list[int] = []

    def counted(data: bytes, n_bytes: int) -> bytearray:
        lengths.append(n_bytes)
        return deflate_decompress(data, n_bytes)

    deflate_decompress = deflate.deflate_decompress
    monkeypatch.setattr(deflate, "deflate_decompress", counted)
    return lengths


# -- files of ours ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_zipfile")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int16", "uint16", "int32"])
@pytest.mark.parametrize("label_dtype", ["uint8", "uint16", "int32", None])
def test_every_window_is_that_of_numpy_to_the_bit(tmp_path, level, dtype, label_dtype) -> None:
    path = tmp_path / "a.npz"
    for window_size, n_modalities, shape in product(
        range(4), (1, 3), ((1, 1), (3, 1), (17, 23), (64, 96))
    ):
        image = planes_of((2 * window_size + 1) * n_modalities, shape, dtype)
        label = None if label_dtype is None else planes_of(1, shape, label_dtype)[0]
        data = written_bytes(image, window_size=window_size, label=label, level=level)
        known = saved(path, data)
        with np.load(path, allow_pickle=False) as members:
            assert same(members["image"], image)
            metadata = json.loads(members["metadata"].item())
        for wanted, reader in product((None, *range(5)), (known, reader_of(path))):
            inside = slice(None)
            if wanted is not None and wanted < window_size:
                outside = (window_size - wanted) * n_modalities
                inside = slice(outside, -outside)
            assert same(stored_image(reader, wanted), image[inside])
            pixels, label_read = reader.read(0, wanted)
            assert same(pixels, image[inside].astype(np.float32))
            assert same(label_read, label)
            assert label_read is None or label_read.flags.writeable
            window = reader.window(0, wanted)
            assert window.label_dtype == (None if label is None else label.dtype)
            assert window.scaling().plane_mask.tolist() == [True] * len(pixels)
        assert known.metadata(0) == metadata


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("known", [True, False])
def test_only_planes_that_are_wanted_are_inflated_if_the_file_is_known(
    tmp_path, inflated, level, known
) -> None:
    image = planes_of(10, (64, 64), "float32")
    data = written_bytes(image, window_size=2, level=level)
    reader = saved(tmp_path / "a.npz", data)
    if not known:
        reader = reader_of(tmp_path / "a.npz")
    metadata_bytes = 128 + 4 * len(json.dumps(described(image, 2, None), ensure_ascii=False))
    for window_size, n_planes in ((0, 2), (1, 6), (2, 10), (None, 10)):
        inflated.clear()
        expected = image[5 - n_planes // 2 :][:n_planes]
        assert same(stored_image(reader, window_size), expected)
        some = known and n_planes < 10
        of_image = [64 * 64 * 4] * n_planes if some else [128 + image.nbytes]
        assert inflated == ([metadata_bytes, *of_image] if level else [])


@pytest.mark.parametrize("level", LEVELS)
def test_what_looks_like_a_flush_within_a_plane_does_not_shift_planes(tmp_path, level) -> None:
    rng = np.random.default_rng(0)
    for n_marks in range(1, 13):
        noise = rng.integers(0, 256, (5, 100, 100), dtype=np.uint8)  # which is stored in deflate
        for number in range(n_marks):
            noise[number % 5, 50 + number, 7:11] = np.frombuffer(FLUSH, np.uint8)
        data = written_bytes(noise, window_size=2, level=level)
        n_flushes = {0: 0, 1: 2, 2: 2}.get(level, 1) * (2 + 5)  # of headers and planes
        assert data.count(FLUSH) == n_flushes + n_marks
        reader = saved(tmp_path / "a.npz", data)
        for window_size, planes in ((0, noise[2:3]), (1, noise[1:4]), (None, noise)):
            assert same(stored_image(reader, window_size), planes)


def test_threads_read_the_same(tmp_path) -> None:
    readers, images = [], []
    for number in range(8):
        images.append(planes_of(5, (128, 128), "float32", seed=number))
        data = written_bytes(images[-1], window_size=2)
        readers.append(saved(tmp_path / f"{number}.npz", data))

    def check(number: int) -> bool:
        image, _ = readers[number % 8].read(0, None)
        center, _ = readers[number % 8].read(0, 0)
        expected = images[number % 8]
        return same(image, expected) and same(center, expected[2:3])

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(check, range(400)))


def _sum(reader: NpzReader, queue: multiprocessing.Queue) -> None:
    queue.put([float(reader.read(0, size)[0].sum()) for size in (None, 0)])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_reads_the_same_after_this_one_has_read(tmp_path) -> None:
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork on this system")
    image = planes_of(5, (64, 64), "float32")
    reader = saved(tmp_path / "a.npz", written_bytes(image, window_size=2))
    here = [float(reader.read(0, size)[0].sum()) for size in (None, 0)]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_sum, args=(reader, queue))
    process.start()
    assert queue.get(timeout=60) == here == [float(image.sum()), float(image[2].sum())]
    process.join()


# -- other files -----------------------------------------------------------------------------------


def _compressed(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez_compressed(path, **arrays)


def _stored(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(path, **arrays)


def _fortran(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez_compressed(path, **(arrays | {"image": np.asfortranarray(arrays["image"])}))


def _by_zipfile(path: Path, arrays: dict[str, np.ndarray]) -> None:
    _compressed(path, arrays)
    with zipfile.ZipFile(path) as source:
        members = {name: source.read(name) for name in reversed(source.namelist())}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in members.items():
            target.writestr(name, content)


def _with_comment(path: Path, arrays: dict[str, np.ndarray]) -> None:
    _ours(path, arrays)
    with zipfile.ZipFile(path, "a") as target:
        target.comment = b"of another program"


def _behind_others(path: Path, arrays: dict[str, np.ndarray]) -> None:
    _ours(path, arrays)
    path.write_bytes(b"a program that unpacks itself" + path.read_bytes())


def _with_another_member(path: Path, arrays: dict[str, np.ndarray]) -> None:
    _ours(path, arrays)
    with zipfile.ZipFile(path, "a") as target:
        target.writestr("notes.txt", "of another program")


def _ours(path: Path, arrays: dict[str, np.ndarray]) -> None:
    path.write_bytes(written_bytes(arrays["image"], window_size=1, label=arrays["label"]))


@pytest.mark.parametrize(
    "write",
    [
        _compressed,
        _stored,
        _fortran,
        _by_zipfile,
        _with_comment,
        _behind_others,
        _with_another_member,
        _ours,
    ],
    ids=lambda write: write.__name__.strip("_"),
)
@pytest.mark.parametrize("dtype", ["float32", ">i2", "float64"])
def test_files_of_other_programs_are_read(tmp_path, write, dtype) -> None:
    image, label = planes_of(3, (6, 7), "int16").astype(dtype), planes_of(1, (6, 7), "uint8")[0]
    metadata = np.array(json.dumps(described(image, 1, label)))
    path = tmp_path / "a.npz"
    write(path, {"image": image, "label": label, "metadata": metadata})
    reader = reader_of(path, crc32=zlib.crc32(path.read_bytes()))
    for window_size, expected in ((None, image), (1, image), (0, image[1:2])):
        pixels, label_read = reader.read(0, window_size)
        np.testing.assert_array_equal(pixels, expected.astype(np.float32))
        assert same(label_read, label)
    assert reader.metadata(0)["case_id"] == "肝臓"
    assert reader.stored(0)[0] == f"{image.dtype} {image.shape}"


# -- damage ----------------------------------------------------------------------------------------


def damaged_at_each_byte(data: bytes) -> list[bytes]:
    """Return files of which one byte is another, by one bit or by all, in turn."""
    return [
        data[:at] + bytes([data[at] ^ (0xFF if at % 2 else 1 << at // 2 % 8)]) + data[at + 1 :]
        for at in range(len(data))
    ]


@pytest.mark.parametrize("level", [0, 1, 6])
@pytest.mark.parametrize(("window_size", "known"), [(None, False), (0, True), (0, False)])
def test_a_damaged_byte_never_gives_other_values(tmp_path, level, window_size, known) -> None:
    image, label = planes_of(3, (4, 5), "float32"), planes_of(1, (4, 5), "uint8")[0]
    data = written_bytes(image, window_size=1, label=label, level=level)
    expected = image if window_size is None else image[1:2]
    path, crc32 = tmp_path / "a.npz", zlib.crc32(data) if known else None
    n_refused = 0
    for damaged in damaged_at_each_byte(data):
        path.write_bytes(damaged)
        try:
            window = reader_of(path, crc32=crc32).window(0, window_size)
            pixels = np.full(window.shape, np.nan, np.float32)  # not what was read before
            window.read_image(pixels, {})
        except CorruptFile:
            n_refused += 1
        else:
            assert same(pixels, expected)
            assert same(window.label, label)
    assert n_refused > len(data) // 2  # the rest are dates, versions and the like


def test_damage_that_inflates_to_the_right_length_is_noticed_in_part_too(tmp_path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 50, 50), dtype=np.uint8)
    data = written_bytes(noise, window_size=2, level=6)
    reader = saved(tmp_path / "a.npz", data)
    for plane in range(5):
        at = data.find(noise[plane, 20].tobytes())
        assert at > 0  # noise is stored, within deflate
        (tmp_path / "a.npz").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        for window_size in (None, 1, 0):
            with pytest.raises(CorruptFile, match=r"a\.npz is damaged \(Bad CRC-32"):
                reader.read(0, window_size)


@pytest.mark.parametrize("end", [0, 10, 21, 22, 200, -1])
def test_a_cut_file_is_damaged(tmp_path, end) -> None:
    data = written_bytes(planes_of(3, (9, 9), "float32"), window_size=1)
    (tmp_path / "a.npz").write_bytes(data[:end])
    with pytest.raises(CorruptFile, match=r"a\.npz is damaged \(File is not a zip file\)"):
        reader_of(tmp_path / "a.npz").read(0, None)


def test_a_file_that_was_written_since_is_read_as_it_is(tmp_path) -> None:
    image, later = (planes_of(3, (9, 9), "float32", seed=seed) for seed in (0, 1))
    reader = saved(tmp_path / "a.npz", written_bytes(image, window_size=1))
    (tmp_path / "a.npz").write_bytes(written_bytes(later, window_size=1))
    assert same(reader.read(0, 0)[0], later[1:2])


@pytest.mark.parametrize("missing", [True, False])
def test_a_file_that_cannot_be_opened_is_named(tmp_path, missing) -> None:
    path = tmp_path / "a.npz"
    if not missing:
        path.mkdir()
    with pytest.raises(OSError, match=r"a\.npz"):
        reader_of(path).read(0, None)


def test_a_window_that_lost_its_label_is_damaged(tmp_path) -> None:
    image, label = planes_of(1, (9, 9), "float32"), planes_of(1, (9, 9), "uint8")[0]
    np.savez(tmp_path / "a.npz", image=image, metadata=json.dumps(described(image, 0, label)))
    with pytest.raises(CorruptFile, match=r"a\.npz is damaged \(its label is missing\)"):
        reader_of(tmp_path / "a.npz").read(0, None)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("side", "claimed"), [(10, 10**9), (10**5, 128 + 5 * 4 * 10**10), (10**5, 128 + 5 * 400)]
)
def test_memory_is_reserved_as_far_as_the_file_can_hold_it(tmp_path, side, claimed, known) -> None:
    header = piece(npy_header((5, side, side), "float32"), level=1)
    small = [piece(bytes(400), level=1) for _ in range(5)]
    small[-1] = Piece(small[-1].stored, claimed - 128 - 4 * 400, small[-1].crc32)
    text = piece(npy_of_text(json.dumps({"window_size": 2})), level=1)
    parts, _ = archive([("image.npy", [header, *small]), ("metadata.npy", [text])], level=1)
    reader = saved(tmp_path / "a.npz", b"".join(parts))
    if not known:
        reader = reader_of(tmp_path / "a.npz")
    for window_size in (None, 0):
        tracemalloc.start()
        with pytest.raises(CorruptFile, match=r"a\.npz is damaged"):
            reader.read(0, window_size)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 3e6


def test_a_byte_outside_of_members_that_is_another_is_noticed() -> None:
    data = written_bytes(planes_of(1, (4, 5), "float32"), window_size=0)
    outside = set(range(len(data)))
    for member in stored_members(data).values():
        start = data.index(bytes(member.data))
        outside -= set(range(start, start + len(member.data)))
    assert len(outside) == 2 * (30 + 46) + 2 * len("image.npymetadata.npy") + 22
    for at in outside:
        with pytest.raises((ValueError, struct.error)):
            stored_members(data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :])
