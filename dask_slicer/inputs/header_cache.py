"""Cache of headers: what an earlier plan read from the files of a dataset.

The second plan of an unchanged dataset opens no scan. An entry counts as long as path, size, mtime
and ctime of its files are as before; a run reads every header again when it loads the voxels. An
error of the cache is logged, and has no other effect.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from dask_slicer.inputs.case import Case, relative_path
from dask_slicer.inputs.readers.base import VolumeHeader, split_volume
from dask_slicer.utils.threads import map_files

# The environment variable that names a folder for the cache, or switches it off.
CACHE_DIR, OFF = "DASK_SLICER_CACHE_DIR", "none"

# A file that changes twice within this time may keep its mtime: FAT counts in steps of 2 s.
RACY_NS = 2_000_000_000
_MOST_DAYS, _MOST_BYTES = 90, 500_000_000  # of all datasets
# Of a dataset, and of one that is being written.
_FILE_NAME = re.compile(r"[0-9a-f]{32}\.json|\.[0-9a-f]{32}\..*")

_LOG = logging.getLogger(__name__)

_PATHS = ("path", "data_files")
_FIELDS = [field.name for field in fields(VolumeHeader) if field.name not in _PATHS]

# Path relative to the dataset, size, mtime and ctime in ns; a list, as JSON returns it.
_Stamp = list[Any]


class HeaderCache:
    """What is known of the files of a dataset, and what a plan adds to it.

    Parameters
    ----------
    input_dir : Path
        A folder or a manifest; each has its own file in the cache.
    root : Path
        The folder that paths are relative to.
    plane : str
        For which `facts` are computed.
    """

    def __init__(self, input_dir: Path, root: Path, *, plane: str) -> None:
        self._root = os.path.abspath(root)
        self._prefix = os.path.join(self._root, "")
        self._started = time.time_ns()
        self._stamps: dict[str, _Stamp] = {}
        self._file = cache_file(input_dir)
        self._tables = {name: _Table(text) for name, text in read_tables(self._file)}
        self._headers = self._tables.setdefault("headers", _Table())
        self._facts = self._tables.setdefault(plane, _Table())

    def stat_all(self, paths: Iterable[str]) -> None:
        """Look at sizes and times of many files at once, since a network disk is slow to answer."""

        def stat(path: str) -> None:
            with suppress(OSError, ValueError):  # the reader shows it again, and names the file
                self._stamp(path)

        map_files(stat, list(paths))

    def facts(
        self,
        case: Case,
        read: Callable[..., VolumeHeader],
        compute: Callable[[list[VolumeHeader]], dict[str, Any]],
        **keywords: Any,
    ) -> tuple[list[tuple[str, int, int]], dict[str, Any]]:
        """Return path, size and mtime of the files of a case, and the facts in its headers.

        Facts are what `compute` returns of the headers: texts, numbers, and tuples of them, which
        depend on nothing but the headers, the plane, and what the case says of its files. Headers
        are what `read` returns of a path and the keywords.
        """
        # The text of a case holds all that it says of its files.
        key = hashlib.sha256(repr(case).encode(errors="surrogatepass")).hexdigest()[:24]
        stamps = self._stamps_before(case.files)
        entry = self._recall(self._facts, key, stamps)
        if entry is None:
            headers = [self.header(path, read, **keywords) for path in case.files]
            facts = compute(headers)
            more = [path for header in headers for path in _data_files(header)]
            files = [*map(self._stamp, case.files), *map(self._stamp, more)]
            if stamps is not None:
                self._store(self._facts, key, files, facts)
        else:
            files, facts = entry
        return [(path, size, mtime) for path, size, mtime, _ in files], facts

    @property
    def seen(self) -> dict[str, tuple[int, int, int]]:
        """Return size, mtime and ctime of the files of the plan, as they were before it."""
        return {
            split_volume(path)[0]: (size, mtime, ctime)
            for path, (_, size, mtime, ctime) in self._stamps.items()
        }

    def save(self) -> None:
        """Keep what was read for the next plan."""
        if self._file is None or not (self._headers.new or self._facts.new):
            return
        try:
            current = {stamp[0]: stamp for stamp in self._stamps.values()}
            in_use = (self._headers, self._facts)
            texts = {
                name: table.text(current if table in in_use else None)
                for name, table in self._tables.items()
            }
            write_tables(self._file, texts)
            _remove_old(self._file.parent)
        except Exception as error:  # any error: a plan needs no cache
            _LOG.debug("Headers are not cached: %s", error)

    def header(self, path: str, read: Callable[..., VolumeHeader], **keywords: Any) -> VolumeHeader:
        """Return what `read` returns of a path and the keywords, unless it is cached."""
        stamps = self._stamps_before([path])
        key = f"{self.relative(path)} {keywords or ''}"
        if (entry := self._recall(self._headers, key, stamps)) is not None:
            others = (os.path.join(self._root, stamp[0]) for stamp in entry[0][1:])
            return _header_of(entry[1], path, others)
        header = read(path, **keywords)
        if self._file is None:
            return header
        more = self._stamps_before(_data_files(header))
        if stamps is not None and more is not None:
            self._store(self._headers, key, stamps + more, _content_of(header), is_plain=True)
        return header

    def _stamps_before(self, paths: Iterable[str]) -> list[_Stamp] | None:
        """Return the stamps of files that are about to be read; None if one is out of reach."""
        with suppress(OSError, ValueError):
            return [*map(self._stamp, paths)]
        return None

    def _stamp(self, path: str) -> _Stamp:
        """Return what a file was like when the plan saw it first, before it was read."""
        stamp = self._stamps.get(path)
        if stamp is None:
            status = os.stat(split_volume(path)[0])  # noqa: PTH116, a Path takes longer than the system's call
            times = (status.st_mtime_ns, status.st_ctime_ns)
            stamp = self._stamps[path] = [self.relative(path), status.st_size, *times]
        return stamp

    def relative(self, path: str) -> str:
        """Return a path relative to the dataset, with forward slashes."""
        if path.startswith(self._prefix) and os.path.normpath(path) == path:  # as nearly always
            return path[len(self._prefix) :].replace(os.sep, "/")
        return relative_path(path, self._root)

    def _recall(
        self, table: _Table, key: str, stamps: list[_Stamp] | None
    ) -> tuple[list[_Stamp], Any] | None:
        """Return stamps and value of an entry if its files are as before."""
        entry = table.old.get(key)
        if entry is None or stamps is None:
            return None
        files, value = entry
        if files[: len(stamps)] != stamps:
            return None
        others = [os.path.join(self._root, stamp[0]) for stamp in files[len(stamps) :]]
        if others and self._stamps_before(others) != files[len(stamps) :]:
            return None
        return files, _with_tuples(value)

    def _store(
        self, table: _Table, key: str, files: list[_Stamp], value: Any, *, is_plain: bool = False
    ) -> None:
        """Add an entry, unless a file changed just now or JSON does not hold the value."""
        if self._file is None or any(max(stamp[2:]) > self._started - RACY_NS for stamp in files):
            return
        try:
            text = json.dumps([files, value])
        except TypeError as error:
            _LOG.debug("%s is not cached: %s", key, error)
        else:
            if is_plain or _with_tuples(json.loads(text)[1]) == value:
                table.new[key] = text


class _Table:
    """Entries by key: the stamps of the files that a value was read from, and the value."""

    def __init__(self, text: str = "{}") -> None:
        self._text = text
        self._old: dict[str, Any] | None = None
        self._lock = Lock()
        self.new: dict[str, str] = {}  # as JSON

    @property
    def old(self) -> dict[str, Any]:
        """Return the entries of an earlier plan; parsed on first use, which often never comes."""
        with self._lock:
            if self._old is None:
                self._old = json.loads(self._text)
            return self._old

    def text(self, current: Mapping[str, _Stamp] | None = None) -> str:
        """Return the table as JSON; with `current`, only entries whose files are like that now."""
        if current is None:
            return self._text
        kept = {
            key: json.dumps(entry)
            for key, entry in self.old.items()
            if all(current.get(stamp[0]) == stamp for stamp in entry[0])
        }
        entries = (f"{json.dumps(key)}: {entry}" for key, entry in (kept | self.new).items())
        return f"{{{', '.join(entries)}}}"


def _content_of(header: VolumeHeader) -> dict[str, Any]:
    """Return the fields of a header, without paths, as JSON can hold them; lists are tuples."""
    return {name: _encoded(getattr(header, name)) for name in _FIELDS}


def _header_of(content: dict[str, Any], path: str, others: Iterable[str]) -> VolumeHeader:
    """Return the header that has this content, as `VolumeHeader`, not as a subclass of it."""
    values = {name: _decoded(value) for name, value in content.items()}
    return VolumeHeader(path=path, data_files=(split_volume(path)[0], *others), **values)


def _encoded(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        # Hexadecimal digits are exact, and faster than decimal ones.
        array = value.tobytes().hex()
        return {"array": array, "dtype": value.dtype.str, "shape": value.shape}
    if isinstance(value, np.dtype):
        return {"dtype": value.str}
    return {"items": tuple(value.items())} if isinstance(value, dict) else value


def _decoded(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "items" in value:
        return dict(value["items"])
    dtype = np.dtype(value["dtype"])
    if "array" not in value:
        return dtype
    return np.frombuffer(bytes.fromhex(value["array"]), dtype).reshape(value["shape"]).copy()


def _with_tuples(value: Any) -> Any:
    """Return a value that JSON returned, with tuples for lists."""
    if isinstance(value, list):
        return tuple([_with_tuples(item) for item in value])
    if isinstance(value, dict):
        return {
            key: _with_tuples(item) if isinstance(item, list | dict) else item
            for key, item in value.items()
        }
    return value


def _data_files(header: VolumeHeader) -> tuple[str, ...]:
    """Return the files beside the header's own that it was read from, or that hold the voxels."""
    own = split_volume(header.path)[0]
    return tuple(path for path in header.data_files if path != own)


def cache_file(input_dir: Path, kind: str = "headers") -> Path | None:
    """Return the file for the headers or the plan of a dataset, None if nothing is cached."""
    folder = os.environ.get(CACHE_DIR, "")
    if not folder:
        from platformdirs import user_cache_dir

        folder = user_cache_dir("dask_slicer", appauthor=False)
    # A home folder that is not known is left as "~".
    if folder == OFF or folder.startswith("~"):
        return None
    text = f"{kind} {os.path.abspath(input_dir)}"
    name = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]
    return Path(folder, "headers", f"{name}.json")


def _program() -> str:
    """Return a digest of the code that the cached values depend on."""
    import nibabel as nib

    digest = hashlib.sha256(f"{nib.__version__} {np.__version__}".encode())
    package = Path(__file__).parents[1]
    for folder in ("config", "core", "inputs", "planning", "utils"):
        for path in sorted((package / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    for path in sorted(package.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_tables(file: Path | None) -> list[tuple[str, str]]:
    """Return names and JSON texts of the tables in a file, nothing if it cannot be used."""
    if file is None:
        return []
    try:
        if file.stat().st_size > _MOST_BYTES:
            return []
        content = file.read_bytes()
        os.utime(file)  # for _remove_old
        first, _, rest = content.partition(b"\n")
        about = json.loads(first)
        if about["program"] != _program() or about["crc32"] != zlib.crc32(rest):
            return []
        return list(zip(about["tables"], rest.decode().split("\n"), strict=True))
    except FileNotFoundError:
        return []
    except Exception as error:  # any error: a plan needs no cache
        _LOG.debug("Cached headers cannot be used: %s", error)
        return []


def write_tables(file: Path, tables: Mapping[str, str]) -> None:
    """Replace a file of the cache; tables are JSON texts of one line, by name."""
    rest = "\n".join(tables.values()).encode()
    about = {"program": _program(), "crc32": zlib.crc32(rest), "tables": list(tables)}
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(prefix=f".{file.stem}.", dir=file.parent)  # mode 600
    try:
        with open(handle, "wb") as stream:
            stream.write(json.dumps(about).encode() + b"\n" + rest)
        os.replace(unfinished, file)
    except BaseException:
        with suppress(OSError):
            Path(unfinished).unlink()
        raise


def _remove_old(folder: Path) -> None:
    """Remove the files of datasets that were not planned for long, and the oldest of too many."""
    now = time.time()
    left = _MOST_BYTES
    files = [
        (entry.stat(), entry.path)
        for entry in os.scandir(folder)
        if _FILE_NAME.fullmatch(entry.name)
    ]
    for status, path in sorted(files, key=lambda file: -file[0].st_mtime):
        left -= status.st_size
        if left < 0 or now - status.st_mtime > _MOST_DAYS * 86_400:
            with suppress(OSError):
                Path(path).unlink()
