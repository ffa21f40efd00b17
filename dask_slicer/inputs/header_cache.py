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
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import fields
from functools import cached_property
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from dask_slicer.inputs.cache_files import cache_file, read_cache, remove_old, write_cache
from dask_slicer.inputs.case import Case, relative_path
from dask_slicer.inputs.readers.base import VolumeHeader, split_volume
from dask_slicer.utils.packed import PackedList
from dask_slicer.utils.stamps import NO_FILE, Stamp, Stamps
from dask_slicer.utils.threads import iter_files

# A file that changes twice within this time may keep its mtime: FAT counts in steps of 2 s.
RACY_NS = 2_000_000_000

# Headers of fewer files are read in a second, and need no file in an output.
_LEAST_BESIDE = 1000

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
    beside : Path, optional
        A file for the headers in the output of a run, for other machines, and for users without a
        cache.
    """

    def __init__(
        self, input_dir: Path, root: Path, *, plane: str, beside: Path | None = None
    ) -> None:
        self._root = os.path.abspath(root)
        self._prefix = os.path.join(self._root, "")
        self._plane = plane
        self._started = time.time_ns()
        # What files were like when they were looked at first, by path relative to the root.
        self.stamps = Stamps()
        self._file, self._beside = cache_file(input_dir), beside
        self._read_from: Path | None = None

    @cached_property
    def _tables(self) -> dict[str, _Table]:
        """Return the tables of an earlier plan; a plan that is recalled as a whole needs none."""
        tables: dict[str, _Table] = {}
        for file in (self._file, self._beside):
            if file is not None and not tables:
                tables, self._read_from = _read_tables(file), file
        for name in ("headers", self._plane):
            tables.setdefault(name, _Table())
        return tables

    @property
    def _headers(self) -> _Table:
        return self._tables["headers"]

    @property
    def _facts(self) -> _Table:
        return self._tables[self._plane]

    def stat_all(self, paths: Iterable[str]) -> None:
        """Look at sizes and times of many files at once, since a network disk is slow to answer."""

        def stat(path: str) -> None:
            with suppress(OSError, ValueError):  # the reader shows it again, and names the file
                self._stamp(path)

        for _ in iter_files(stat, paths):
            pass

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
        # The text of a case holds all that it says of its files; elsewhere, they have another root.
        text = repr(case).replace(self._prefix, "")
        key = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:24]
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

    def save(self) -> None:
        """Keep what was read for the next plan of this user."""
        if self._headers.n_new or self._facts.n_new:
            self._write(self._file)

    def save_beside(self) -> None:
        """Keep what was read of many files beside the output, unless it is there already."""
        if self._beside is None or len(self.stamps) < _LEAST_BESIDE:
            return
        # A plan that was recalled as a whole has looked at no table.
        is_loaded = "_tables" in self.__dict__
        if not self._beside.exists() or (
            is_loaded
            and (self._headers.n_new or self._facts.n_new or self._read_from != self._beside)
        ):
            self._write(self._beside)
        self.forget()

    def forget(self) -> None:
        """Free the memory that tables and stamps take; a run needs them no more."""
        self.__dict__.pop("_tables", None)
        self.stamps = Stamps()

    def _write(self, file: Path | None) -> None:
        if file is None:
            return
        try:
            in_use = (self._headers, self._facts)
            texts = {
                name: table.texts(self.stamps if table in in_use and len(self.stamps) else None)
                for name, table in self._tables.items()
            }
            write_cache(file, texts, private=file != self._beside)
            if file != self._beside:
                remove_old(file.parent)
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
        if self._file is None and self._beside is None:
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
        relative = self.relative(path)
        file = split_volume(relative)[0]
        stamp = self.stamps.get(file)
        if stamp is None or stamp == NO_FILE:
            stamp = self.stamps[file] = Stamp.of(split_volume(path)[0])
        return [relative, *stamp]

    def relative(self, path: str) -> str:
        """Return a path relative to the dataset, with forward slashes."""
        if path.startswith(self._prefix) and os.path.normpath(path) == path:  # as nearly always
            return path[len(self._prefix) :].replace(os.sep, "/")
        return relative_path(path, self._root)

    def absolute(self, relative: str) -> str:
        """Return the path of a file by its path relative to the dataset."""
        return os.path.normpath(os.path.join(self._root, relative))

    def _recall(
        self, table: _Table, key: str, stamps: list[_Stamp] | None
    ) -> tuple[list[_Stamp], Any] | None:
        """Return stamps and value of an entry if its files are as before."""
        entry = table.get(key)
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
        if self._file is None and self._beside is None:
            return
        if any(max(stamp[2:]) > self._started - RACY_NS for stamp in files):
            return
        try:
            text = json.dumps([files, value])
        except TypeError as error:
            _LOG.debug("%s is not cached: %s", key, error)
        else:
            if is_plain or _with_tuples(json.loads(text)[1]) == value:
                table.add(key, text)


class _Table:
    """Entries by key: the stamps of the files that a value was read from, and the value, as JSON.

    Of a dataset of many cases, they are in memory packed.
    """

    def __init__(self) -> None:
        self._texts: PackedList[str] = PackedList()  # key, tab, entry
        self._n_old = 0  # of an earlier plan, which come first
        self._numbers: dict[int, int] | None = None  # of these, by hash of the key, made on use
        self._lock = Lock()

    @property
    def n_new(self) -> int:
        """Return how many entries were added."""
        return len(self._texts) - self._n_old

    def load(self, texts: Iterable[str]) -> None:
        """Add entries of an earlier plan, as `texts` returned them."""
        for text in texts:
            self._texts.append(text)
        self._n_old = len(self._texts)

    def get(self, key: str) -> tuple[list[_Stamp], Any] | None:
        """Return stamps and value of an entry of an earlier plan, None if there is none."""
        with self._lock:
            if self._numbers is None:
                keys = (text.partition("\t")[0] for text in self._texts)
                old = islice(keys, self._n_old)
                self._numbers = {hash(name): number for number, name in enumerate(old)}
        name = json.dumps(key)
        number = self._numbers.get(hash(name))
        if number is None:
            return None
        found_name, _, entry = self._texts[number].partition("\t")
        if found_name != name:
            return None
        files, value = json.loads(entry)
        return files, value

    def add(self, key: str, entry: str) -> None:
        """Add an entry of this plan, as JSON; it takes the place of an earlier one."""
        self._texts.append(f"{json.dumps(key)}\t{entry}")

    def texts(self, current: Stamps | None = None) -> Iterator[str]:
        """Yield the entries; with `current`, only those whose files are like that now."""
        new = range(self._n_old, len(self._texts))
        replaced = {self._texts[number].partition("\t")[0] for number in new}
        for number, text in enumerate(self._texts):
            if number < self._n_old:
                name, _, entry = text.partition("\t")
                if name in replaced:
                    continue
                if current is not None and not all(
                    current.get(split_volume(path)[0]) == tuple(stamp)
                    for path, *stamp in json.loads(entry)[0]
                ):
                    continue
            yield text


def _read_tables(file: Path) -> dict[str, _Table]:
    """Return the tables in a file, none if it cannot be used."""
    tables: dict[str, _Table] = {}
    try:
        for name, texts in read_cache(file):
            tables.setdefault(name, _Table()).load(texts)
    except FileNotFoundError:
        return {}
    except Exception as error:  # any error: a plan needs no cache
        _LOG.debug("Cached headers cannot be used: %s", error)
        return {}
    return tables


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
