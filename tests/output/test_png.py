"""PNG files: what other programs read in them, and which files are refused."""

from __future__ import annotations

import struct
import sys
import threading
import tracemalloc
import zlib
from io import BytesIO

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from dask_slicer.output.formats import png
from dask_slicer.output.formats.png import decode, encode

pytestmark = pytest.mark.versions

LEVELS = (0, 1, 2, 3, 6, 9)
SHAPES = [(1, 1), (1, 9), (9, 1), (5, 3), (33, 40), (3, 700), (700, 3), (1, 1, 3), (4, 7, 3)]
DTYPES = ["uint8", "<u2", ">u2"]


def scan(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    """Return a smooth image with noise, over the whole range of the dtype."""
    steps = np.random.default_rng(seed).integers(-9, 10, shape).cumsum(0).cumsum(1)
    return (steps * (1 if dtype == "uint8" else 57) + 100).astype(dtype)


def noise(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    info = np.iinfo(dtype)
    return np.random.default_rng(1).integers(info.min, info.max + 1, shape).astype(dtype)


def mask(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    label = np.zeros(shape, dtype)
    label[shape[0] // 3 : shape[0] // 2 + 1, : shape[1] // 2 + 1] = np.iinfo(dtype).max
    return label


def zeros(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.zeros(shape, dtype)


every_kind = pytest.mark.parametrize("kind", [scan, noise, mask, zeros])
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))


def png_of(rows: bytes, header: tuple[int, ...], *, kinds: bytes = b"IHDR IDAT IEND") -> bytes:
    """Return a file by hand: inflated rows, the fields of the header, and names of the chunks."""
    contents = iter((struct.pack(">2L5B", *header), zlib.compress(rows), b""))
    return png._SIGNATURE + b"".join(png._chunk(kind, next(contents)) for kind in kinds.split())


@every_kind
@every_dtype
@every_shape
def test_pixels_come_back_in_the_byte_order_of_the_machine(shape, dtype, kind) -> None:
    pixels = kind(shape, dtype)
    for level in LEVELS:
        decoded = decode(encode(pixels, level=level))
        assert decoded.dtype == pixels.dtype.newbyteorder("=")
        np.testing.assert_array_equal(decoded, pixels)


@given(
    st_numpy.arrays(
        st.sampled_from(DTYPES),
        st.tuples(st.integers(1, 12), st.integers(1, 12))
        | st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3)),
    ),
    st.sampled_from(LEVELS),
)
def test_any_pixels_come_back(pixels: np.ndarray, level: int) -> None:
    decoded = decode(encode(pixels, level=level))
    np.testing.assert_array_equal(decoded, pixels)
    assert decoded.shape == pixels.shape


@every_kind
@every_dtype
@every_shape
def test_pillow_reads_the_same_pixels(shape, dtype, kind) -> None:
    if len(shape) == 3 and dtype != "uint8":
        pytest.skip("Pillow reads RGB of 16 bit as 8 bit")
    image = pytest.importorskip("PIL.Image")
    pixels = kind(shape, dtype)
    for level in LEVELS:
        with image.open(BytesIO(encode(pixels, level=level))) as opened:
            assert opened.mode == {"uint8": "L"}.get(dtype, "I;16") if len(shape) == 2 else "RGB"
            np.testing.assert_array_equal(np.asarray(opened), pixels)


@every_kind
@every_dtype
@every_shape
def test_opencv_reads_the_same_pixels(shape, dtype, kind) -> None:
    cv2 = pytest.importorskip("cv2")
    pixels = kind(shape, dtype)
    for level in LEVELS:
        data = np.frombuffer(encode(pixels, level=level), np.uint8)
        read = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        if len(shape) == 3:
            read = cv2.cvtColor(read, cv2.COLOR_BGR2RGB)
        assert read.dtype == pixels.dtype.newbyteorder("=")
        np.testing.assert_array_equal(read, pixels)


@every_kind
@every_shape
def test_files_of_pillow_are_read(shape, kind) -> None:
    """It chooses the filter of each row."""
    image = pytest.importorskip("PIL.Image")
    for dtype in ("uint8", "uint16") if len(shape) == 2 else ("uint8",):
        pixels, buffer = kind(shape, dtype), BytesIO()
        image.fromarray(pixels).save(buffer, "png", dpi=(72, 72))
        np.testing.assert_array_equal(decode(buffer.getvalue()), pixels)


def pillow_size(pixels: np.ndarray) -> int:
    buffer = BytesIO()
    pytest.importorskip("PIL.Image").fromarray(pixels).save(buffer, "png")
    return len(buffer.getvalue())


def test_files_of_real_scans_are_at_most_5_per_cent_larger_than_pillows(real_scans) -> None:
    for folder in sorted(path.parent for path in real_scans.glob("*/image.nii.gz")):
        image, label = (
            np.moveaxis(np.asanyarray(nib.load(folder / f"{name}.nii.gz").dataobj), 2, 0)
            for name in ("image", "label")
        )
        planes = [plane.reshape(*plane.shape[:2], -1)[..., 0] for plane in image[2:-2:9]]
        low, high = np.percentile(image[image > image.min()], (0.5, 99.5))
        of_kind = {
            "8 bit": [
                ((p.clip(low, high) - low) / (high - low) * 255).astype("u1") for p in planes
            ],
            "16 bit": [(plane + 32768.0).clip(0, 65535).astype("u2") for plane in planes],
            "mask": list(label[2:-2:9].astype("u1")),
        }
        for kind, images in of_kind.items():
            ours = sum(len(encode(pixels, level=1)) for pixels in images)
            assert ours <= 1.05 * sum(map(pillow_size, images)), (folder.name, kind)


@every_kind
@every_dtype
@every_shape
def test_every_filter_is_undone(shape, dtype, kind, monkeypatch) -> None:
    pixels = kind(shape, dtype)
    each = [(0,), (1,), (2,), (3,), (4,), (0, 1, 2, 3, 4), (4, 4, 1, 2)]
    files = [filtered_file(pixels, filters) for filters in each]
    for has_pillow in (True, False):
        if not has_pillow:
            monkeypatch.setitem(sys.modules, "PIL", None)
        for filters, file in zip(each, files, strict=True):
            np.testing.assert_array_equal(decode(file), pixels, err_msg=str(filters))


def filtered_file(pixels: np.ndarray, filters: tuple[int, ...]) -> bytes:
    """Return a PNG file whose rows have these filters, in turn, as the specification has them."""
    big = pixels.astype(pixels.dtype.newbyteorder(">"))
    rows = [list(row.tobytes()) for row in big]
    step = big[0, 0].nbytes
    made, above = b"", [0] * len(rows[0])
    for number, row in enumerate(rows):
        filter_ = filters[number % len(filters)]
        neighbours = zip([0] * step + row, above, [0] * step + above, strict=False)
        predicted = [naive_prediction(filter_, *three) for three in neighbours]
        differences = (value - by for value, by in zip(row, predicted, strict=True))
        made += bytes([filter_, *(difference % 256 for difference in differences)])
        above = row
    height, width = pixels.shape[:2]
    header = (width, height, 8 * pixels.dtype.itemsize, pixels.ndim * 2 - 4, 0, 0, 0)
    return png_of(made, header)


def naive_prediction(filter_: int, left: int, above: int, corner: int) -> int:
    """Return what the specification says, word by word."""
    estimate = left + above - corner
    nearest = min((left, above, corner), key=lambda value: abs(estimate - value))
    return (0, left, above, (left + above) // 2, nearest)[filter_]


def test_the_prediction_of_paeth_is_that_of_the_specification_for_all_neighbours() -> None:
    left, above = (side.ravel().astype(np.uint8) for side in np.mgrid[:256, :256])
    a, b = left.astype(int), above.astype(int)
    for corner in range(256):
        c = np.full_like(a, corner)
        distances = np.abs(a + b - c - np.stack((a, b, c)))
        nearest = np.stack((a, b, c))[distances.argmin(0), np.arange(len(a))]
        np.testing.assert_array_equal(png._paeth(left, above, c.astype(np.uint8)), nearest)


@every_dtype
@pytest.mark.parametrize("level", LEVELS)
def test_memory_layout_does_not_change_the_bytes(dtype, level) -> None:
    pixels = scan((40, 30, 3), dtype)
    data = encode(pixels, level=level)
    native = pixels.astype(pixels.dtype.newbyteorder("="))
    spread = np.repeat(native, 2, axis=1)[:, ::2]
    upside_down = np.ascontiguousarray(native[::-1])[::-1]
    for other in (native, np.asfortranarray(native), spread, upside_down):
        assert encode(other, level=level) == data
    data = encode(pixels[..., 1], level=level)
    assert encode(np.ascontiguousarray(native[..., 1]), level=level) == data


@pytest.mark.parametrize("level", [png._FAST, png._THOROUGH])
def test_the_same_rows_give_the_same_bytes_wherever_in_memory_they_are_deflated(level) -> None:
    """By itself, ISA-L's fast level makes 1 of 8192 otherwise: each thread's stack is elsewhere."""
    rng = np.random.default_rng(0)
    after = rng.bytes(300)
    rows = []
    for first in range(0, 256, 4):  # runs and alternating bytes after the first filter
        rows += [bytes((first, second)) * 20 + after for second in range(256)]
        rows.append(bytes((first + 1,)) + bytes((first,)) * 39 + after)
        rows.append(rng.bytes(4) * 10 + after)
    contents = [np.frombuffer(row, np.uint8).reshape(4, 85) for row in rows]
    made: list[list[int]] = []

    def deflate() -> None:
        made.append([zlib.crc32(png._isal_deflated(content, level)) for content in contents])

    threads = [threading.Thread(target=deflate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    deflate()
    assert [len(set(crcs)) for crcs in zip(*made, strict=True)] == [1] * len(contents)
    assert all(
        zlib.decompress(png._isal_deflated(content, level)) == content.tobytes()
        for content in contents[:600]
    )


@pytest.mark.parametrize("kind", [scan, mask, zeros])
def test_equal_images_at_other_addresses_give_equal_bytes(kind) -> None:
    pixels = kind((300, 230), "uint8")
    held = [bytes(number) for number in range(1000)]
    for number in range(200):
        held[number * 5] = bytes(4000 + number)
        assert encode(pixels.copy(), level=1) == encode(pixels, level=1)


@pytest.mark.parametrize(
    "pixels",
    [scan((3, 4), "uint8"), scan((2, 3), "uint16"), scan((2, 2, 3), "uint8"), mask((9, 9), "u1")],
    ids=["8", "16", "rgb", "mask"],
)
@pytest.mark.parametrize("level", [0, 1, 6])
def test_a_changed_or_cut_file_is_refused(pixels, level) -> None:
    data = encode(pixels, level=level)
    for cut in range(len(data)):
        with pytest.raises(ValueError, match=r"damaged|no PNG|its chunks"):
            decode(data[:cut])
    for position in range(len(data)):
        for value in range(256):
            changed = bytearray(data)
            changed[position] = value
            if changed != data:
                with pytest.raises(ValueError, match=r"damaged|no PNG|its chunks"):
                    decode(bytes(changed))


HEADER = (4, 3, 8, 0, 0, 0, 0)
ROWS = bytes(5 * 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no PNG"),
        (b"\xff\xd8\xff\xe0 a photograph", "no PNG"),
        (png._SIGNATURE, "its chunks are"),
        (png_of(ROWS, HEADER) + b"\n", "damaged"),
        (png_of(ROWS, HEADER) + png._chunk(b"IEND", b""), "its chunks are"),
        (png_of(ROWS, HEADER, kinds=b"IHDR IDAT"), "its chunks are"),
        (png_of(ROWS, HEADER, kinds=b"IHDR tEXt IEND"), "its chunks are"),
        (png_of(ROWS, HEADER, kinds=b"IHDR PLTE IEND"), "its chunks are IHDR PLTE IEND"),
        (png_of(ROWS, HEADER, kinds=b"tEXt IDAT IEND"), "its chunks are"),
        (png_of(ROWS, (4, 3, 8, 3, 0, 0, 0)), "not greyscale or RGB"),
        (png_of(ROWS, (4, 3, 8, 4, 0, 0, 0)), "not greyscale or RGB"),
        (png_of(ROWS, (4, 3, 8, 6, 0, 0, 0)), "not greyscale or RGB"),
        (png_of(ROWS, (4, 3, 4, 0, 0, 0, 0)), "not greyscale or RGB"),
        (png_of(ROWS, (4, 3, 8, 0, 1, 0, 0)), "not greyscale or RGB"),
        (png_of(ROWS, (4, 3, 8, 0, 0, 1, 0)), "not greyscale or RGB"),
        (png_of(ROWS, (4, 3, 8, 0, 0, 0, 1)), "interlace"),
        (png_of(ROWS, (0, 3, 8, 0, 0, 0, 0)), "0 × 3 pixels"),
        (png_of(ROWS, (4, 0, 8, 0, 0, 0, 0)), "4 × 0 pixels"),
        (png_of(ROWS + b"0", HEADER), "less or more"),
        (png_of(ROWS[1:], HEADER), "less or more"),
        (png_of(b"\5" + ROWS[1:], HEADER), "unknown filter"),
    ],
)
def test_a_file_that_is_no_such_png_is_refused_with_a_reason(data, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        decode(data)


def test_bytes_after_the_deflated_rows_are_refused() -> None:
    content = {b"IHDR": struct.pack(">2L5B", *HEADER), b"IEND": b""}
    for rows in (zlib.compress(ROWS) + b"\0", zlib.compress(ROWS)[:-1], zlib.compress(ROWS)[:-4]):
        chunks = content | {b"IDAT": rows}
        made = (png._chunk(kind, chunks[kind]) for kind in (b"IHDR", b"IDAT", b"IEND"))
        with pytest.raises(ValueError, match="less or more"):
            decode(png._SIGNATURE + b"".join(made))


def test_text_is_skipped_and_rows_may_be_in_several_chunks() -> None:
    pixels = scan((30, 20), "uint16")
    header, data, end = (content for _, content in png._chunks(encode(pixels, level=1)))
    chunks = (
        *((b"IHDR", header), (b"pHYs", bytes(9)), (b"IDAT", data[:7]), (b"IDAT", b"")),
        *((b"IDAT", data[7:]), (b"tEXt", b"Comment\0of a viewer"), (b"IEND", end)),
    )
    made = png._SIGNATURE + b"".join(png._chunk(*chunk) for chunk in chunks)
    np.testing.assert_array_equal(decode(made), pixels)


@pytest.mark.parametrize("size", [100_000, 2**31 - 1, 2**32 - 1])
@pytest.mark.parametrize("depth", [8, 16])
def test_a_header_that_promises_too_many_pixels_takes_no_memory(size, depth) -> None:
    data = png_of(bytes(1_000_000), (size, size, depth, 2, 0, 0, 0))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"too small for {size} × {size} pixels"):
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_more_rows_than_the_header_promises_are_not_inflated() -> None:
    data = png_of(bytes(50_000_000), HEADER)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="less or more"):
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", [(1, 20_000), (60_000, 1), (1500, 40)])
def test_memory_to_read_stays_near_that_of_the_pixels(shape, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    data = encode(scan(shape, "uint16"), level=1)
    tracemalloc.start()
    try:
        decode(data)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
