"""PNG files of slices and masks: lossless greyscale or RGB, 8 or 16 bit.

Source: Portable Network Graphics (PNG) Specification, third edition, W3C.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from isal import igzip_lib, isal_zlib
from numpy.typing import NDArray

from dask_slicer.output.formats.npz_archive import MOST_DEFLATED

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">2L5B")
_CHANNELS_OF_COLOUR_TYPE = {0: 1, 2: 3}
# Filters of a row.
_NONE, _SUB, _UP, _AVERAGE, _PAETH = range(5)
# A row of a mask is runs of one value: fewer pixels than this share differ from the one before
# them (at most 7 % in label maps of 62 structures, at least 15 % in windowed scans).
_CHANGES_OF_MASKS = 1 / 8
# Masks of at most so many bytes are deflated by zlib, which needs less for the beginning (if a
# pixel is one byte: zlib's runs are of one). In larger images, one row of so many is looked at to
# tell a mask from an image.
_SMALL = 1 << 16
_SAMPLED = 4
_MOST_ISAL = 2  # of the levels of the product; higher ones are zlib's
# Over slices of 12 scans (CT, MR, PET), files of level 1 are 0.97 to 1.04 times as large as
# Pillow's, and those of masks 0.72 to 1.03 times. ISA-L's shortest history leaves repeated pixels
# and Huffman codes. With the whole history, it takes any match of 4 bytes in noise, and files are
# up to a tenth larger.
_HISTORY_BITS = 1
# ISA-L's own levels. The higher one makes files of 16 bit 1 % smaller, others larger, and takes a
# quarter more time, which counts for images of more bytes than these.
_FAST, _THOROUGH = 1, 3
_LARGE = 1 << 18
_RAW = -15
_ZLIB_HEADER = b"\x78\x01"
# Rows of which one is to have a filter that differs from the pixels around it.
_ROWS_SEARCHED, _BEFORE_FILTER = 16, 3
# Rows that are unfiltered together: bounds memory for images of few columns.
_ROWS_AT_ONCE = 512
# Modes of Pillow by the number of bytes of a pixel.
_PILLOW_MODES = {1: "L", 2: "I;16B", 3: "RGB"}

_Bytes = NDArray[np.uint8]


def encode(pixels: NDArray[np.uint8 | np.uint16], *, level: int) -> bytes:
    """Return a PNG file; equal pixels and levels give equal bytes.

    Parameters
    ----------
    pixels : (height, width) or (height, width, 3) ndarray of uint8 or uint16
        Greyscale or RGB, at least one pixel, of any byte order and memory layout.
    level : int
        0 stores, 1 and 2 are ISA-L's, 3 to 9 zlib's.
    """
    height, width = pixels.shape[:2]
    depth = 8 * pixels.dtype.itemsize
    header = _HEADER.pack(width, height, depth, 0 if pixels.ndim == 2 else 2, 0, 0, 0)
    stored = pixels.astype(pixels.dtype.newbyteorder(">"), order="C", copy=False)
    rows = stored.reshape(height, -1).view(np.uint8)
    step = stored[0, 0].nbytes
    sampled = pixels[:: _SAMPLED if rows.size > _SMALL else 1]
    n_changes = np.count_nonzero(sampled[:, 1:] != sampled[:, :-1])
    is_mask = n_changes < _CHANGES_OF_MASKS * sampled.size
    filtered = _unchanged(rows) if level == 0 or is_mask else _filtered(rows, step)
    has_runs = is_mask and step == 1
    if 0 < level <= _MOST_ISAL and not (has_runs and rows.size <= _SMALL):
        is_fast = depth == 8 or is_mask or rows.size > _LARGE
        deflated = _isal_deflated(filtered, _FAST if is_fast else _THOROUGH)
    else:
        runs = zlib.Z_RLE if level <= _MOST_ISAL else zlib.Z_DEFAULT_STRATEGY
        compressor = zlib.compressobj(level, strategy=runs if is_mask else zlib.Z_FILTERED)
        deflated = compressor.compress(filtered.data) + compressor.flush()
    chunks = ((b"IHDR", header), (b"IDAT", deflated), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, content) for kind, content in chunks)


def decode(data: bytes) -> NDArray[Any]:
    """Return the pixels of a PNG file.

    Memory is reserved only as far as the file can hold it.

    Returns
    -------
    (height, width) or (height, width, 3) ndarray of uint8 or uint16
        In the byte order of the machine.

    Raises
    ------
    ValueError
        The file is damaged, or neither greyscale nor RGB of 8 or 16 bit without interlace.
    """
    shape, dtype, deflated = _parsed(data)
    n_bytes = shape[0] * (1 + shape[1] * shape[2] * dtype.itemsize)
    if n_bytes > MOST_DEFLATED * len(deflated):
        raise ValueError(f"the file is too small for {shape[1]} × {shape[0]} pixels")
    inflater = isal_zlib.decompressobj()
    try:
        inflated = inflater.decompress(deflated, n_bytes + 1)
    except igzip_lib.IsalError as error:  # type: ignore[misc]
        raise ValueError(f"its pixels cannot be inflated ({error})") from None
    # Not all versions of ISA-L say that the checksum at the end is cut, or that bytes follow it.
    is_whole = deflated.endswith(struct.pack(">L", isal_zlib.adler32(inflated)))
    if len(inflated) != n_bytes or not (inflater.eof and is_whole) or inflater.unused_data:
        raise ValueError(f"it holds less or more than {shape[1]} × {shape[0]} pixels")
    content = np.frombuffer(inflated, np.uint8).reshape(shape[0], -1)
    rows = _unfiltered(content, shape[2] * dtype.itemsize)
    pixels = rows.view(dtype).astype(dtype.newbyteorder("="), copy=not rows.flags.writeable)
    return pixels.reshape(shape if shape[2] > 1 else shape[:2])


def _chunk(kind: bytes, content: bytes) -> bytes:
    crc32 = isal_zlib.crc32(content, isal_zlib.crc32(kind))
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", crc32)


def _parsed(data: bytes) -> tuple[tuple[int, int, int], np.dtype[Any], bytes]:
    """Return shape (rows, columns, channels), dtype in the file, and the deflated rows."""
    chunks = list(_chunks(data))
    kinds = [kind for kind, _ in chunks]
    # Chunks with a small first letter (text, resolution) do not change the pixels.
    critical = [kind for kind in kinds if kind[:1].isupper()]
    n_parts = kinds.count(b"IDAT")
    if critical != [b"IHDR", *[b"IDAT"] * n_parts, b"IEND"] or kinds[0] != b"IHDR" or not n_parts:
        raise ValueError(f"its chunks are {b' '.join(kinds[:9]).decode('latin-1')}")
    header = chunks[0][1]
    if len(header) != _HEADER.size or chunks[-1] != (b"IEND", b""):
        raise ValueError("its first or last chunk has another length")
    width, height, depth, colour_type, *methods = _HEADER.unpack(header)
    if depth not in (8, 16) or colour_type not in _CHANNELS_OF_COLOUR_TYPE or any(methods):
        raise ValueError("it is not greyscale or RGB of 8 or 16 bit without interlace")
    if not width or not height:
        raise ValueError(f"it has {width} × {height} pixels")
    shape = height, width, _CHANNELS_OF_COLOUR_TYPE[colour_type]
    deflated = b"".join(content for kind, content in chunks if kind == b"IDAT")
    return shape, np.dtype(f">u{depth // 8}"), deflated


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Give kind and content of each chunk; raise if the file is not a sequence of whole chunks."""
    if not data.startswith(_SIGNATURE):
        raise ValueError("it is no PNG file")
    start = len(_SIGNATURE)
    while start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4])
        kind, content = data[start + 4 : start + 8], data[start + 8 : end - 4]
        if end > len(data) or _chunk(kind, content) != data[start:end]:
            raise ValueError(f"its chunk at byte {start} is damaged")
        yield kind, content
        start = end


def _unchanged(rows: _Bytes) -> _Bytes:
    """Return rows with the filter before each: Up in the second, as `_start` needs, else None."""
    filtered = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = _NONE
    filtered[:, 1:] = rows
    filtered[1:2, 0] = _UP
    filtered[1:2, 1:] -= rows[:1]
    return filtered


def _filtered(rows: _Bytes, step: int) -> _Bytes:
    """Return rows with Paeth's filter before each; `step` is the number of bytes of a pixel."""
    n_rows, n_bytes = rows.shape
    padded = np.zeros((n_rows + 1, step + n_bytes), np.uint8)  # outside, values are 0
    padded[1:, step:] = rows
    filtered = np.empty((n_rows, 1 + n_bytes), np.uint8)
    filtered[:, 0] = _PAETH
    predicted = _paeth(padded[1:, :-step], padded[:-1, step:], padded[:-1, :-step])
    np.subtract(rows, predicted, out=filtered[:, 1:])
    return filtered


def _isal_deflated(filtered: _Bytes, level: int) -> bytes:
    """Return a zlib stream; equal rows give equal bytes, which ISA-L's level 1 alone does not.

    It searches the third byte of a stream, and that alone, under a hash of an address in memory
    (`npz_archive._isal_deflated`). With the shortest history, it may so find a match there one byte
    or two bytes back, or miss it. So the stream begins where there is no such match. Level 3 does
    not have the fault.
    """
    flat, start = filtered.reshape(-1), 0
    beginning = b""
    if level == _FAST:
        found = _start(filtered)
        start, level = (0, _THOROUGH) if found is None else (found, level)
    if start:
        compressor = zlib.compressobj(level, zlib.DEFLATED, _RAW)
        beginning = compressor.compress(flat[:start].data) + compressor.flush(zlib.Z_SYNC_FLUSH)
    rest = igzip_lib.compress(
        flat[start:].data,
        level,
        igzip_lib.COMP_DEFLATE,
        igzip_lib.MEM_LEVEL_DEFAULT,
        _HISTORY_BITS,
    )
    return _ZLIB_HEADER + beginning + rest + isal_zlib.adler32(flat.data).to_bytes(4)


def _start(filtered: _Bytes) -> int | None:
    """Return a position whose third byte begins no match of 4 bytes with those 1 or 2 before it.

    The first, or else one shortly before the filter of an early row, which mostly differs from the
    pixels around it. None if there is no such position.
    """
    flat, n_bytes = filtered.reshape(-1), filtered.shape[1]
    rows = range(n_bytes, min(_ROWS_SEARCHED * n_bytes, flat.size), n_bytes)
    for start in (0, *(max(row - _BEFORE_FILTER, 0) for row in rows)):
        first = flat[start : start + 6].tobytes()
        if first[2:] not in (first[1:-1], first[:-2]):
            return start
    return None


def _paeth(left: _Bytes, above: _Bytes, corner: _Bytes) -> _Bytes:
    """Return which of three neighbours is nearest to left + above - corner.

    The corner, unless it is more than twice as far from one of the others as from the other; then
    that one. Bytes alone, because numpy is several times faster with them.

    >>> of = (np.array([number], np.uint8) for number in (10, 200, 12))
    >>> _paeth(*of)
    array([200], dtype=uint8)
    """
    low, high = np.minimum(left, above), np.maximum(left, above)
    below = np.maximum(corner, low)
    below -= low
    over = high - np.minimum(corner, high)
    # All bits set where the prediction is the lower or the higher one; both only if all are equal.
    is_low = -(over <= below >> 1).view(np.uint8)
    is_high = -(below <= over >> 1).view(np.uint8)
    low ^= corner
    low &= is_low
    high ^= corner
    high &= is_high
    low |= high
    low ^= corner
    return low


def _unfiltered(content: _Bytes, step: int) -> _Bytes:
    """Return rows without their filters; `content` holds rows with the filter before each."""
    filters, rows = content[:, 0], content[:, 1:].copy()
    if filters.max() > _PAETH:
        raise ValueError("a row has an unknown filter")
    if np.isin(filters, (_NONE, _UP)).all():
        for row in np.flatnonzero(filters[1:]) + 1:
            rows[row] += rows[row - 1]
        return rows
    with suppress(ImportError):
        return _unfiltered_by_pillow(content, step)
    above = np.zeros_like(rows[0])
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        above[:] = _unfiltered_part(rows[part], filters[part], above, step)[-1]
    return rows


def _unfiltered_by_pillow(content: _Bytes, step: int) -> _Bytes:
    """Return what `_unfiltered` does, in a tenth of the time; raise ImportError if it cannot."""
    from PIL import Image

    if step not in _PILLOW_MODES:
        raise ImportError("Pillow has no mode with pixels of so many bytes")
    height, width = len(content), (content.shape[1] - 1) // step
    mode = _PILLOW_MODES[step]
    stream = zlib.compress(content.data, 0)  # the decoder of a PNG's rows inflates
    image = Image.frombytes(mode, (width, height), stream, "zip", mode)
    return np.asarray(image).reshape(height, -1).view(np.uint8)


def _unfiltered_part(rows: _Bytes, filters: _Bytes, above: _Bytes, step: int) -> _Bytes:
    """Unfilter rows in place, below the row `above`, and return them.

    A pixel needs the one to its left and those above, so all pixels of a diagonal are known at
    once. Diagonals from the top right to the bottom left lie in one row each of `known`, under two
    rows and behind one column of what is outside::

        0 1 2        0 .           known[i + j + 2, j + 1] is the pixel in row j and column i
        3 4 5   →    1 3
                     2 4
                     . 5
    """
    height, width = len(rows), rows.shape[1] // step
    padded = np.zeros((height, width + height, step), np.uint8)
    padded[:, :width] = rows.reshape(height, width, step)
    # The same bytes in rows one pixel shorter: each row begins one pixel further to the right.
    skewed = padded.reshape(-1, step)[:-height].reshape(height, -1, step).transpose(1, 0, 2)
    known = np.zeros((width + height + 1, height + 1, step), np.uint8)
    known[2:, 1:] = skewed
    known[1 : width + 1, 0] = above.reshape(width, step)
    diagonals = known.reshape(len(known), -1)
    of_byte = filters.repeat(step)
    is_average = of_byte == _AVERAGE
    # Sub and Up predict what Paeth's filter would, were the other neighbours 0.
    uses_left = -np.isin(of_byte, (_SUB, _AVERAGE, _PAETH)).view(np.uint8)
    uses_above = -np.isin(of_byte, (_UP, _AVERAGE, _PAETH)).view(np.uint8)
    uses_corner = -(of_byte == _PAETH).view(np.uint8)
    only_paeth, some_average = uses_corner.all(), is_average.any()
    for index in range(2, len(known)):
        left, over = diagonals[index - 1, step:], diagonals[index - 1, :-step]
        corner = diagonals[index - 2, :-step]
        if not only_paeth:
            left, over, corner = left & uses_left, over & uses_above, corner & uses_corner
        predicted = _paeth(left, over, corner)
        if some_average:
            predicted = np.where(is_average, (left & over) + ((left ^ over) >> 1), predicted)
        diagonals[index, step:] += predicted
    skewed[:] = known[2:, 1:]
    rows[:] = padded[:, :width].reshape(height, -1)
    return rows
