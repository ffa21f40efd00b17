"""Bytes of volume files: sizes, first bytes, and voxels that are raw or compressed.

A header may promise anything: memory is reserved only after the size of the file shows that it can
be true. A compressed stream is read to its end, so that its checksum is compared.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

import numpy as np
from isal import igzip, igzip_lib, isal_zlib
from numpy.typing import NDArray

from dask_slicer.errors import CorruptFile, MissingFile, UnsupportedImage
from dask_slicer.inputs.readers.base import VolumeHeader
from dask_slicer.utils.formatting import format_shape
from dask_slicer.utils.mapped import map_file, release, scratch_file

GZIP = b"\x1f\x8b"
# Holds the header, also in most gzipped files.
_FIRST_READ = 4096
# zlib's code for a deflate stream with gzip's header and trailer.
_GZIP_WINDOW = 31
# The greatest ratio by which deflate can compress.
_MOST_DEFLATED = 1032
# Bytes that may follow the voxels, since some writers pad.
TRAILER = 1 << 16
# Read at once for a checksum: larger pieces take longer, since they do not stay in the CPU's cache.
_CHECKED_AT_ONCE = 1 << 20
# Inflated at once where it is not kept.
_PIECE = 1 << 18
# Written at once to a scratch file.
_TO_SCRATCH = 1 << 22
# Other files that are found under the name of a volume, by their first bytes.
_NOT_FETCHED = "the volume itself was not downloaded"
_OTHERS = (
    (b"version https://git-lfs", f"a pointer of Git LFS, {_NOT_FETCHED}; run git lfs pull"),
    (b"/annex/objects/", f"a pointer of git-annex, {_NOT_FETCHED}; run datalad get"),
    (b"<!doctype html", "a web page, as a failed download leaves it; download the file again"),
    (b"<html", "a web page, as a failed download leaves it; download the file again"),
    (b"<?xml", "an XML file, such as a GIFTI surface, which is no volume"),
    (b"nrrd000", "an NRRD file; let its name end in .nrrd"),
    (b"objecttype", "a MetaImage file; let its name end in .mha"),
    (b"pk\x03\x04", "a ZIP archive; unpack it"),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredHeader(VolumeHeader):
    """A header, and where its voxels are."""

    data_path: str
    encoding: str  # raw, gzip or zlib
    start: int = 0  # byte of the data file at which the stream starts
    offset: int = 0  # bytes of the stream, inflated, before the first voxel
    volume: int = 0  # which of the file's
    interleaved: bool = False  # the numbers of all volumes at one voxel lie side by side
    most_trailing: int = TRAILER  # bytes that may follow the voxels


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


def file_size(path: str) -> int:
    """Return the size of a file in bytes; refuse folders, devices and empty files by name."""
    try:
        status = os.stat(path)  # noqa: PTH116, a Path takes longer than the system's call
    except ValueError:  # NUL, or half a character
        raise MissingFile("no file can have this name") from None
    except FileNotFoundError:
        if Path(path).is_symlink() and "/annex/objects/" in Path(path).readlink().as_posix():
            raise MissingFile(f"a link of git-annex, {_NOT_FETCHED}; run datalad get") from None
        raise
    if stat.S_ISDIR(status.st_mode):
        raise UnsupportedImage("expected a file, found a directory")
    if not stat.S_ISREG(status.st_mode):
        raise UnsupportedImage("expected a file, found a device or pipe")
    if status.st_size == 0:
        raise CorruptFile("the file has zero bytes; copy it again")
    return status.st_size


def checksum(path: str) -> int:
    """Return the CRC-32 of a file as it is on disk; raise OSError if it cannot be read."""
    crc32 = 0
    buffer = memoryview(bytearray(_CHECKED_AT_ONCE))
    with open(path, "rb", buffering=0) as file:
        while n_bytes := file.readinto(buffer):
            crc32 = isal_zlib.crc32(buffer[:n_bytes], crc32)
    return crc32


def read_head(path: str, length: int) -> tuple[bytes, bool]:
    """Return the first bytes of a file, inflated, and whether it is gzipped."""
    with open(path, "rb") as file:
        head = file.read(max(length, _FIRST_READ))
    if not head.startswith(GZIP):
        return head, False
    # Damage is reported below. The stubs of isal do not type its error as a class.
    with suppress(isal_zlib.error):  # type: ignore[arg-type]
        inflated: bytes = isal_zlib.decompressobj(_GZIP_WINDOW).decompress(head, length)
        if len(inflated) == length:
            return inflated, True
    with _inflating(path, encoding="gzip") as stream:
        return stream.read(length), True


def refuse_unknown(head: bytes, format_name: str) -> NoReturn:
    """Raise CorruptFile for a file of another format, saying what it is if its bytes tell."""
    start = head[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for first, what in _OTHERS:
        if start.startswith(first):
            raise CorruptFile(f"the file is {what}")
    if head[128:132] == b"DICM":
        raise CorruptFile("the file is DICOM, which is not read; dcm2niix makes NIfTI of it")
    raise CorruptFile(
        f"the bytes are not those of {format_name}: it is damaged or in another format; copy it "
        "again, or convert it"
    )


def check_backed(header: StoredHeader, data_bytes: int) -> None:
    """Raise CorruptFile if the data file is too short for what the header promises."""
    promised = header.offset + header.n_volumes * header.voxel_bytes
    n_bytes = data_bytes - header.start
    if promised > n_bytes * (1 if header.encoding == "raw" else _MOST_DEFLATED):
        times = f" × {header.n_volumes}" if header.n_volumes > 1 else ""
        raise CorruptFile(
            f"the header gives {promised:,} bytes ({format_shape(header.shape)}{times} "
            f"{header.dtype}), but the file of {max(n_bytes, 0):,} bytes cannot hold them; it is "
            "cut off or damaged, copy it again"
        )


def read_voxels(
    headers: Sequence[StoredHeader], *, scratch_dir: str = ""
) -> list[NDArray[np.generic]]:
    """Return the stored numbers of volumes of one file, in Fortran order and read-only.

    They are views of the inflated bytes, or of the mapped file if it is not compressed. The stream
    is inflated once, must hold what the header promises, and match its checksum; what lies before,
    between and after the volumes is not kept. See `Reader.read_voxels`.
    """
    first = headers[0]
    n_bytes = first.voxel_bytes
    if first.encoding != "raw" or first.interleaved:
        volumes: dict[int, bytes | NDArray[np.uint8]] = _read_stream(headers, scratch_dir)
    else:
        mapped = map_file(first.data_path, scratch_dir=scratch_dir)[first.start + first.offset :]
        if mapped.size < first.n_volumes * n_bytes:  # it was cut since
            raise _too_short(first)
        volumes = {h.volume: mapped[h.volume * n_bytes :][:n_bytes] for h in headers}
    return [
        np.frombuffer(volumes[header.volume], dtype=header.dtype).reshape(header.shape, order="F")
        for header in headers
    ]


class _ZlibFile(io.RawIOBase):
    """A zlib stream, inflated as it is read."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_ZLIB)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._inflater.eof:
            data = self._file.read(_PIECE) if self._inflater.needs_input else b""
            if self._inflater.needs_input and not data:
                raise EOFError
            inflated = self._inflater.decompress(data, len(buffer))
            if inflated:
                buffer[: len(inflated)] = inflated
                return len(inflated)
        return 0


@contextmanager
def _inflating(path: str, *, encoding: str, start: int = 0) -> Iterator[_Stream]:
    """Open a raw or zlib stream, or gzip members; damage is a CorruptFile."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            if encoding == "raw":
                yield file
            elif encoding == "zlib":
                yield io.BufferedReader(_ZlibFile(file), _PIECE)
            else:
                with igzip.GzipFile(fileobj=file) as stream:
                    yield stream
    except EOFError:
        raise CorruptFile(f"the {encoding} stream ends early; copy it again") from None
    # The stubs of isal do not type its error as an exception.
    except (igzip.BadGzipFile, igzip_lib.IsalError) as error:  # type: ignore[misc]
        raise CorruptFile(f"the {encoding} stream is damaged ({error}); copy it again") from None


def _read_stream(
    headers: Sequence[StoredHeader], scratch_dir: str
) -> dict[int, bytes | NDArray[np.uint8]]:
    """Return the bytes of volumes, by their numbers; reads to the end for the checksum."""
    first = headers[0]
    trailing = 0
    with _inflating(first.data_path, encoding=first.encoding, start=first.start) as stream:
        if first.interleaved:
            volumes = _read_interleaved(stream, headers, scratch_dir)
        else:
            volumes = _read_apart(stream, headers, scratch_dir)
        if first.encoding == "raw":
            return volumes
        while trailing <= first.most_trailing and (piece := stream.read(_PIECE)):
            trailing += len(piece)
    if trailing > first.most_trailing:
        raise CorruptFile(
            f"the {first.encoding} stream holds more than the "
            f"{first.offset + first.n_volumes * first.voxel_bytes:,} bytes that the header gives"
        )
    return volumes


def _read_apart(
    stream: _Stream, headers: Sequence[StoredHeader], scratch_dir: str
) -> dict[int, bytes | NDArray[np.uint8]]:
    first = headers[0]
    n_bytes = first.voxel_bytes
    volumes: dict[int, bytes | NDArray[np.uint8]] = {}
    _skip(stream, first.offset, header=first)
    position = 0
    for volume in sorted({header.volume for header in headers}):
        _skip(stream, (volume - position) * n_bytes, header=first)
        if scratch_dir:
            volumes[volume] = _read_into_scratch(stream, n_bytes, scratch_dir)
        else:
            volumes[volume] = stream.read(n_bytes)
        if len(volumes[volume]) < n_bytes:
            raise _too_short(first)
        position = volume + 1
    _skip(stream, (first.n_volumes - position) * n_bytes, header=first)
    return volumes


def _read_into_scratch(stream: _Stream, n_bytes: int, scratch_dir: str) -> NDArray[np.uint8]:
    """Return the next bytes of a stream, in a scratch file; fewer if it ends before."""
    voxels = scratch_file(n_bytes, scratch_dir)
    position = 0
    while position < n_bytes and (piece := stream.read(min(_TO_SCRATCH, n_bytes - position))):
        part = voxels[position : position + len(piece)]
        part[:] = np.frombuffer(piece, np.uint8)
        release(part)
        position += len(piece)
    voxels.flags.writeable = False
    return voxels[:position]


def _read_interleaved(
    stream: _Stream, headers: Sequence[StoredHeader], scratch_dir: str
) -> dict[int, bytes | NDArray[np.uint8]]:
    """Return the bytes of volumes whose numbers lie side by side, voxel after voxel."""
    first = headers[0]
    size = first.dtype.itemsize
    kept = {
        header.volume: scratch_file(first.voxel_bytes, scratch_dir)
        if scratch_dir
        else np.empty(first.voxel_bytes, dtype=np.uint8)
        for header in headers
    }
    _skip(stream, first.offset, header=first)
    step = max(1, _PIECE // (first.n_volumes * size)) * size
    for begin in range(0, first.voxel_bytes, step):
        end = min(begin + step, first.voxel_bytes)
        piece = stream.read((end - begin) * first.n_volumes)
        if len(piece) < (end - begin) * first.n_volumes:
            raise _too_short(first)
        numbers = np.frombuffer(piece, dtype=np.uint8).reshape(-1, first.n_volumes, size)
        for volume, voxels in kept.items():
            voxels[begin:end] = numbers[:, volume].reshape(-1)
            release(voxels[begin:end])
    for voxels in kept.values():
        voxels.flags.writeable = False
    return dict(kept)


def _skip(stream: _Stream, n_bytes: int, *, header: StoredHeader) -> None:
    while n_bytes > 0:
        piece = stream.read(min(n_bytes, _PIECE))
        if not piece:
            raise _too_short(header)
        n_bytes -= len(piece)


def _too_short(header: StoredHeader) -> CorruptFile:
    promised = header.offset + header.n_volumes * header.voxel_bytes
    return CorruptFile(
        f"the header gives {promised:,} bytes, but the {header.encoding} stream ends before; copy "
        "the file again"
    )
