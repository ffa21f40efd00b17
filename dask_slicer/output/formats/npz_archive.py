"""npz archives that share deflated planes between slices.

A raw deflate stream can be cut after each full flush, and the pieces can be joined in another
order, because no piece refers to bytes before it. So each plane is deflated once, and all windows
with this plane use the same piece; their CRCs are combined, not computed again. The result is a
plain zip archive, for `numpy.load`, `zipfile` and `unzip`. Sources: RFC 1951 (deflate), APPNOTE 6.3
(zip).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from isal import isal_zlib
from numpy.typing import DTypeLike, NDArray

# The greatest ratio by which deflate can compress.
MOST_DEFLATED = 1032
# The end of a deflate stream: an empty last block.
LAST_BLOCK = b"\x03\x00"
_RAW = -15
_STORED, _DEFLATED = 0, 8
# The highest level of ISA-L; higher levels are zlib's.
_MOST_ISAL = 2
# The bytes that ISA-L deflates first, separately; fewer would not start its history.
_ISAL_BEGINNING = 4
# 1980-01-01 00:00, the earliest time in a zip: equal input gives equal bytes.
_DOS_TIME, _DOS_DATE = 0, (1 << 5) | 1
_UNIX = 3 << 8
_REGULAR_FILE = 0o100644 << 16
# Most parts of one `writev` call: IOV_MAX of Linux and macOS.
_MOST_PARTS = 1024
# Sizes and offsets from this one on need the zip64 fields.
_ZIP64_FROM = 0xFFFFFFFF
# Local header, entry of the directory, and end of the directory, before names and extra fields.
_LOCAL, _ENTRY = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
END_BYTES = _END.size


class Part(NamedTuple):
    """Bytes of an archive, and their CRC-32."""

    data: bytes
    crc32: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of an archive member: stored bytes; length and CRC-32 of the content itself."""

    stored: Part
    length: int
    crc32: int


def piece(content: bytes | NDArray[np.generic], *, level: int) -> Piece:
    """Return content, deflated so that it fits at any position of a member.

    Arrays are C-contiguous. Level 0 stores, 1 and 2 are ISA-L's, 3 to 9 zlib's.
    """
    if isinstance(content, np.ndarray):
        view = content.reshape(-1).view(np.uint8).data
    else:
        view = memoryview(content)
    crc32 = isal_zlib.crc32(view)
    if level == 0:
        return Piece(Part(bytes(view), crc32), len(view), crc32)
    data = _isal_deflated(view, level) if level <= _MOST_ISAL else _zlib_deflated(view, level)
    return Piece(_part(data), len(view), crc32)


def _zlib_deflated(view: memoryview, level: int) -> bytes:
    compressor = zlib.compressobj(level, zlib.DEFLATED, _RAW)
    return compressor.compress(view) + compressor.flush(zlib.Z_FULL_FLUSH)


def _isal_deflated(view: memoryview, level: int) -> bytes:
    """Return equal bytes for equal content, which ISA-L alone does not.

    At the start of a long stream (`.write_first_byte` of igzip_icf_body_h1_gr_bt.asm, 2.32), it
    stores the third byte's position under a hash of the stream's address, not of its bytes. Whether
    later matches are found then depends on the address in memory. The code for the last bytes
    before a flush has no such fault, so it deflates the first few bytes; this takes 7 bytes more,
    40 for a plane with one value.
    """
    compressor = isal_zlib.compressobj(level, isal_zlib.DEFLATED, _RAW)
    start = compressor.compress(view[:_ISAL_BEGINNING]) + compressor.flush(isal_zlib.Z_SYNC_FLUSH)
    return (
        start
        + compressor.compress(view[_ISAL_BEGINNING:])
        + compressor.flush(isal_zlib.Z_FULL_FLUSH)
    )


@cache
def npy_header(shape: tuple[int, ...], dtype: DTypeLike) -> bytes:
    """Return the header of a C-ordered array in an .npy file."""
    buffer = BytesIO()
    fields = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def npy_of_text(text: str) -> bytes:
    """Return an .npy file of a text, as a 0-d string array."""
    array = np.array(text)
    return npy_header((), array.dtype) + array.tobytes()


def archive(
    members: Iterable[tuple[str, Sequence[Piece]]], *, level: int
) -> tuple[list[bytes], int]:
    """Return a zip archive, in parts to be joined, and its CRC-32.

    A member's pieces are its content, in order, all from `piece` with the same `level`.
    """
    parts: list[Part] = []
    directory: list[bytes] = []
    offset = 0
    for name, pieces in members:
        member = _Member(name, pieces, offset, deflated=level > 0)
        parts += member.parts
        directory.append(member.directory_entry)
        offset += sum(len(part.data) for part in member.parts)
    parts.append(
        _part(b"".join(directory) + _end(len(directory), sum(map(len, directory)), offset))
    )
    return [part.data for part in parts], _combine((p.crc32, len(p.data)) for p in parts)


def write_parts(path: Path, parts: list[bytes], *, fsync: bool) -> int:
    """Write parts to a new file, in one call without joining them if possible; return its size."""
    size = sum(map(len, parts))
    with open(path, "xb") as file:
        written = 0
        if hasattr(os, "writev") and (first := parts[:_MOST_PARTS]):
            written = os.writev(file.fileno(), first)
        # More parts, over 2 GiB, or a disk that is nearly full.
        for part in parts if written < size else ():
            file.write(part[written:])
            written = max(written - len(part), 0)
        if fsync:
            file.flush()
            os.fsync(file.fileno())
    return size


class _Member:
    """A file in an archive: local header, content, and directory entry."""

    def __init__(self, name: str, pieces: Sequence[Piece], offset: int, *, deflated: bool) -> None:
        content = [piece.stored for piece in pieces]
        if deflated:
            content.append(_part(LAST_BLOCK))
        facts = _Facts(
            name=name.encode("ascii"),
            method=_DEFLATED if deflated else _STORED,
            crc32=_combine((piece.crc32, piece.length) for piece in pieces),
            stored=sum(len(part.data) for part in content),
            size=sum(piece.length for piece in pieces),
        )
        header, self.directory_entry = _headers(facts, offset)
        self.parts = [_part(header), *content]


class _Facts(NamedTuple):
    """What the headers of a member say: name, method, CRC-32, and bytes stored and inflated."""

    name: bytes
    method: int
    crc32: int
    stored: int
    size: int


def _headers(facts: _Facts, offset: int) -> tuple[bytes, bytes]:
    """Return the local header and the directory entry of a member, both with its name."""
    name, method, crc32, stored, size = facts
    large = max(size, stored) >= _ZIP64_FROM
    far = offset >= _ZIP64_FROM
    version = 45 if large or far else 20
    sizes = struct.pack("<QQ", size, stored) if large else b""
    shown = (_ZIP64_FROM, _ZIP64_FROM) if large else (stored, size)
    common = (0, method, _DOS_TIME, _DOS_DATE, crc32, *shown, len(name))
    extra = _zip64_extra(sizes)
    local = _LOCAL.pack(b"PK\x03\x04", version, *common, len(extra))
    directory_extra = _zip64_extra(sizes + (struct.pack("<Q", offset) if far else b""))
    entry = _ENTRY.pack(
        b"PK\x01\x02",
        _UNIX | version,
        version,
        *common,
        len(directory_extra),
        0,
        0,
        0,
        _REGULAR_FILE,
        _ZIP64_FROM if far else offset,
    )
    return local + name + extra, entry + name + directory_extra


def _zip64_extra(fields: bytes) -> bytes:
    return struct.pack("<2H", 1, len(fields)) + fields if fields else b""


def _end(n_members: int, directory_size: int, offset: int) -> bytes:
    zip64 = b""
    if offset >= _ZIP64_FROM:
        zip64 = struct.pack(
            "<4sQ2H2L4Q", b"PK\x06\x06", 44, _UNIX | 45, 45, 0, 0, n_members, n_members,
            directory_size, offset,
        ) + struct.pack("<4sLQL", b"PK\x06\x07", 0, offset + directory_size, 1)  # fmt: skip
    shown = min(offset, _ZIP64_FROM)
    return zip64 + _END.pack(b"PK\x05\x06", 0, 0, n_members, n_members, directory_size, shown, 0)


class StoredMember(NamedTuple):
    """A member as it lies in an archive; `size` and `crc32` are of its content."""

    data: memoryview
    deflated: bool
    size: int
    crc32: int


def ends_archive(end: bytes, n_bytes: int) -> bool:
    """Return whether the last `END_BYTES` of a file of n bytes could be those of `archive`."""
    *_, n_members, directory_size, offset, _ = _END.unpack(end)
    return n_bytes == offset + directory_size + END_BYTES and end == _end(
        n_members, directory_size, offset
    )


def stored_members(data: memoryview) -> dict[str, StoredMember]:
    """Return the members of an archive by name, without `.npy`.

    Raise ValueError or struct.error unless `archive` could have written every byte outside of
    members: no other header, order, gap, comment or zip64 field.
    """
    n_members, _, directory, _ = _END.unpack_from(data, len(data) - END_BYTES)[4:]
    members: dict[str, StoredMember] = {}
    offset, at = 0, directory
    for _ in range(n_members):
        fields = _ENTRY.unpack_from(data, at)
        name_at = at + _ENTRY.size
        facts = _Facts(bytes(data[name_at : name_at + fields[10]]), fields[4], *fields[7:10])
        header, entry = _headers(facts, offset)
        start = offset + len(header)
        if data[offset:start] != header or data[at : at + len(entry)] != entry:
            raise ValueError("a header is not as it is written")
        offset, at = start + facts.stored, at + len(entry)
        name, ending = facts.name[:-4].decode("ascii"), facts.name[-4:]
        if name in members or not name.isidentifier() or ending != b".npy":
            raise ValueError(f"no array is called {facts.name!r}")
        if facts.method not in (_STORED, _DEFLATED):
            raise ValueError(f"{name} is neither stored nor deflated")
        deflated = facts.method == _DEFLATED
        members[name] = StoredMember(data[start:offset], deflated, facts.size, facts.crc32)
    if offset != directory or data[at:] != _end(n_members, at - directory, directory):
        raise ValueError("there are bytes between or after members")
    return members


def _part(data: bytes) -> Part:
    return Part(data, isal_zlib.crc32(data))


def _combine(parts: Iterable[tuple[int, int]]) -> int:
    """Return the CRC-32 of joined parts, from (CRC-32, length) of each."""
    crc32 = 0
    for part_crc32, length in parts:
        crc32 = isal_zlib.crc32_combine(crc32, part_crc32, length)
    return crc32
