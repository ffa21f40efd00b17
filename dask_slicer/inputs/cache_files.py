"""Files of the cache: one for the headers of a dataset, one for its plan."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from dask_slicer.utils.record_file import read_records, write_records

# The environment variable that names a folder for the cache, or switches it off.
CACHE_DIR, OFF = "DASK_SLICER_CACHE_DIR", "none"

_MOST_DAYS, _MOST_BYTES = 90, 500_000_000  # of all datasets
# Of a dataset, and of one that is being written.
_FILE_NAME = re.compile(r"[0-9a-f]{32}\.json|\.[0-9a-f]{32}\..*")


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


def read_cache(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield names of tables and some of their texts; nothing if another version wrote the file."""
    if file.stat().st_size > _MOST_BYTES:
        return
    os.utime(file)  # for remove_old
    yield from read_records(file, lambda about: about["program"] == _program())


def write_cache(file: Path, tables: Mapping[str, Iterable[str]], *, private: bool = True) -> None:
    """Replace a file of the cache; tables are JSON texts, by name."""
    write_records(file, {"program": _program()}, tables, private=private)


def remove_old(folder: Path) -> None:
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
