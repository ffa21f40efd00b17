"""Columns of slices.csv as numbers: an archive, uncompressed, of blocks of whole cases.

000000.cases    the first cells of a row of each case, as CSV
000000.rows     a `ROW` for each slice; cases are counted from 0 in each block
000000.labels   a `LABEL` for each label value in a slice, those of a slice together
table.json      bytes and CRC-32 of slices.csv
"""

from __future__ import annotations

import csv
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from dask_slicer.output.formats.base import DAMAGE
from dask_slicer.utils.files import open_file

ROW = np.dtype(
    [("case", "<i4"), ("slice_index", "<i4"), ("foreground", "<f4"), ("n_labels", "<i4")]
)
LABEL = np.dtype([("value", "<i8"), ("count", "<i8")])
# Takes the name of a member and its content.
Put = Callable[[str, bytes], None]
_Opened = AbstractContextManager[BinaryIO]
_TABLE = "table.json"
# What reading a damaged file raises.
UNREADABLE = (
    *(*DAMAGE, BadZipFile, EOFError, OSError, RuntimeError),
    *(csv.Error, struct.error, zlib.error),
)
_MEMBERS, _CELLS, _MOST_BYTES = 3, 6, 1000
_READ_AT_ONCE = 1 << 20


class Block(NamedTuple):
    """Some cases and all of their slices."""

    cases: Sequence[tuple[str, ...]]  # case_id, split, plane, slice_index, path, row
    rows: NDArray[Any]
    labels: NDArray[Any]


def put_block(put: Put, number: int, block: Block) -> None:
    """Hand on the members of a block."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(block.cases)
    put(f"{number:06d}.cases", text.getvalue().encode("utf-8", "backslashreplace"))
    put(f"{number:06d}.rows", block.rows.tobytes())
    put(f"{number:06d}.labels", block.labels.tobytes())


def put_table(put: Put, size: int, crc32: int) -> None:
    """Hand on the member that says which slices.csv the columns are of; it is the last."""
    put(_TABLE, _table_text(size, crc32))


@contextmanager
def writing(path: Path, create: Callable[[Path], _Opened]) -> Iterator[Put]:
    """Give what writes members into a file that `create` opens; without one, it is removed."""
    archive: ZipFile | None = None
    with ExitStack() as stack:

        def put(name: str, content: bytes) -> None:
            nonlocal archive
            if archive is None:
                file = stack.enter_context(create(path))
                archive = stack.enter_context(ZipFile(file, "w"))
            archive.writestr(ZipInfo(name), content)  # without a time, so that bytes are the same

        yield put
    if archive is None and path.is_file():  # of a run with more cases
        path.unlink()


class Expected(dict[str, tuple[int, int]]):
    """Size and CRC-32 of members, to compare a file with, instead of writing them."""

    def put(self, name: str, content: bytes) -> None:
        """Add a member."""
        self[name] = len(content), zlib.crc32(content)

    def differs(self, path: Path) -> bool:
        """Return whether a file does not hold these members, undamaged."""
        with suppress(*UNREADABLE), open_file(path) as file, ZipFile(file) as archive:
            members = {info.filename: (info.file_size, info.CRC) for info in archive.infolist()}
            return members != self or archive.testzip() is not None
        return True


def is_of_table(path: Path, table: Path) -> bool:
    """Return whether a file says that it has the columns of a table as it is now."""
    with open_file(path) as file, ZipFile(file) as archive:
        if archive.getinfo(_TABLE).file_size > _MOST_BYTES:
            return False
        return archive.read(_TABLE) == _table_text(*_size_and_crc32(table))


def blocks(path: Path) -> Iterator[Block]:
    """Yield the blocks of a file; raise one of `UNREADABLE` if it is damaged."""
    with open_file(path) as file, ZipFile(file) as archive:
        # A small file must not become a large one; ours are not compressed.
        if any(info.compress_type != ZIP_STORED for info in archive.infolist()):
            raise ValueError("it is compressed")
        for number in range(len(archive.infolist()) // _MEMBERS):
            text = archive.read(f"{number:06d}.cases").decode("utf-8")
            block = Block(
                [tuple(cells) for cells in csv.reader(io.StringIO(text, newline=""), strict=True)],
                np.frombuffer(archive.read(f"{number:06d}.rows"), ROW),
                np.frombuffer(archive.read(f"{number:06d}.labels"), LABEL),
            )
            _check(block)
            yield block


def _check(block: Block) -> None:
    """Raise ValueError if rows, cases and labels are not of each other."""
    cases, rows, labels = block
    n_of = np.bincount(rows["case"], minlength=len(cases))  # which refuses negative numbers
    if len(n_of) != len(cases) or not n_of.all() or any(len(cells) != _CELLS for cells in cases):
        raise ValueError("rows are of other cases")
    least = (rows["slice_index"].min(), rows["n_labels"].min(), labels["count"].min(initial=0))
    if min(least) < 0 or rows["n_labels"].sum(dtype=np.int64) != len(labels):
        raise ValueError("a number is negative, or labels are of other rows")


def _size_and_crc32(path: Path) -> tuple[int, int]:
    size = crc32 = 0
    with open_file(path) as file:
        while piece := file.read(_READ_AT_ONCE):
            size, crc32 = size + len(piece), zlib.crc32(piece, crc32)
    return size, crc32


def _table_text(size: int, crc32: int) -> bytes:
    return json.dumps({"bytes": size, "crc32": crc32}).encode()
