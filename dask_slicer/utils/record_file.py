"""Files of many short texts in tables, compressed, checked, and read a few at a time.

The first line is JSON: what the file is, as its writer says. Then come blocks, each after a line of
JSON with the name of its table, its length and its CRC-32; the last line says that nothing is cut.
"""

from __future__ import annotations

import json
import os
import tempfile
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

_BLOCK = 128  # texts
# Of a block, inflated: a file may come from elsewhere, and a small block must not fill the memory.
_MOST_INFLATED = 1 << 26
_END = b'"end"\n'
_LONGEST_LINE = 10_000


def write_records(
    file: Path,
    about: Mapping[str, str],
    tables: Mapping[str, Iterable[str]],
    *,
    private: bool = True,
) -> None:
    """Replace a file by one with these tables; texts hold no line breaks, as JSON does not.

    A `private` file, and its folder, is for no other user.
    """
    if private:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(prefix=f".{file.stem}.", dir=file.parent)  # mode 600
    else:
        unfinished = f"{file}.{uuid.uuid4().hex[:8]}"
        handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with open(handle, "wb") as stream:
            stream.write(json.dumps(about).encode() + b"\n")
            for name, texts in tables.items():
                _write_table(stream, name, iter(texts))
            stream.write(_END)
        os.replace(unfinished, file)
    except BaseException:
        with suppress(OSError):
            Path(unfinished).unlink()
        raise


def _write_table(stream: BinaryIO, name: str, texts: Iterator[str]) -> None:
    while True:
        lines = list(islice(texts, _BLOCK))
        block = zlib.compress("\n".join(lines).encode(errors="surrogatepass"), 1) if lines else b""
        head = [name, len(lines), len(block), _checksum(name, block)]
        stream.write(json.dumps(head).encode() + b"\n" + block)
        if not lines:  # a table may be empty, and is there all the same
            return


def read_records(
    file: Path, is_usable: Callable[[Mapping[str, str]], bool]
) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of a table and some of its texts; an empty list ends a table.

    Nothing is yielded unless the file `is_usable`, as its first line says.

    Raises
    ------
    OSError
    ValueError
        If the file is damaged, or a block inflates to more than any of ours.
    """
    with file.open("rb") as stream:
        if not is_usable(_line(stream)):
            return
        while (head := _line(stream)) != "end":
            name, n_texts, size, crc32 = head
            block = stream.read(size)
            if len(block) != size or _checksum(name, block) != crc32:
                raise ValueError("a block is damaged")
            texts = _inflated(block).split("\n") if n_texts else []
            if len(texts) != n_texts:
                raise ValueError("a text is missing")
            yield name, texts


def _inflated(block: bytes) -> str:
    inflater = zlib.decompressobj()
    content = inflater.decompress(block, _MOST_INFLATED)
    if not inflater.eof:
        raise ValueError("a block is cut, or too large")
    return content.decode(errors="surrogatepass")


def _checksum(name: str, block: bytes) -> int:
    return zlib.crc32(block, zlib.crc32(name.encode()))


def _line(stream: BinaryIO) -> Any:
    return json.loads(stream.readline(_LONGEST_LINE))
