"""Files that are added to an output, or made of it elsewhere: a picture, a page; no part of it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from dask_slicer.errors import UsageError


def place_for(output_dir: Path, file: Path | None, *, name: str, suffixes: Collection[str]) -> Path:
    """Return where a file is to be, with the directories that symlinks lead to.

    Parameters
    ----------
    output_dir : Path
    file : Path or None
        Where the user wants it.
    name : str
        In the output, where nothing else is wanted.
    suffixes : collection of str
        That a file at the top of the output may end with; none of its own does.

    Raises
    ------
    UsageError
        If it is a directory, or would be among the output's own files.
    """
    if file is None:
        return output_dir / name
    try:
        file, home = file.resolve(), output_dir.resolve()
        is_directory = file.is_dir()
    except OSError as error:
        raise _not_written(file, error) from None
    if is_directory:
        raise UsageError(f"--file {file} is a directory; name a file in it")
    if file.is_relative_to(home) and (file.parent != home or file.suffix.lower() not in suffixes):
        raise UsageError(
            f"--file {file} is among files of the output; name one at its top that ends in "
            f"{' or '.join(suffixes)}"
        )
    return file


def write_aside(file: Path, content: bytes) -> None:
    """Write a file whole, or not at all.

    Raises
    ------
    UsageError
    """
    aside = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    try:
        aside.write_bytes(content)
        os.replace(aside, file)
    except OSError as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise _not_written(file, error) from None


def _not_written(file: Path, error: OSError) -> UsageError:
    why = (error.strerror or str(error)).lower()
    return UsageError(f"cannot write {file}: {why}; name another place with --file")
