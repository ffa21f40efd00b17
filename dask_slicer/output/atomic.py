"""Writing and moving files whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from dask_slicer.errors import UsageError


def move(source: Path, target: Path) -> None:
    """Move a file or directory into its place, in that of an earlier one."""
    try:
        os.replace(source, target)
    except OSError:
        if not (source.is_dir() and target.is_dir()):
            raise
        # A directory takes the place of an empty one only.
        remove_whole(target, source.parent)
        try:
            os.replace(source, target)
        except OSError:
            if not target.is_dir():
                raise
            shutil.rmtree(source)  # another writer of the same case was quicker


def remove_whole(path: Path, aside: Path) -> None:
    """Remove a file, or a directory so that no one sees half of it; it may be gone already."""
    if path.is_dir() and not path.is_symlink():
        doomed = aside / f"removed.{uuid.uuid4().hex[:8]}"
        with suppress(FileNotFoundError):
            os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_first(path: Path, text: str) -> None:
    """Write a file, whole, unless there is one: one of several writers comes first.

    Raises
    ------
    FileExistsError
        In the others.
    """
    # In the same directory: some network disks have no hard links between directories.
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with aside.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        _link(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # exFAT and some network disks have no hard links
        with target.open("x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))


def write_whole(
    output_dir: Path,
    name: str | Path,
    content: str | bytes,
    *,
    temporary: str,
    fsync: bool = False,
) -> None:
    """Write a file aside and move it into its place, so that no one ever sees half of it.

    Parameters
    ----------
    output_dir : Path
    name : str or Path
        Of the file, relative to the output.
    content : str or bytes
    temporary : str
        Directory in the output that the file is written in first; made where it is missing.
    fsync : bool
        Wait until the disk has it, before it is moved.
    """
    path = output_dir / name
    aside = output_dir / temporary / f"{path.name}.{uuid.uuid4().hex[:8]}"
    aside.parent.mkdir(exist_ok=True)
    # Names of files may be in any encoding, or none; what is written is UTF-8.
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with aside.open("xb") as file:
        file.write(data)
        if fsync:
            file.flush()
            os.fsync(file.fileno())
    os.replace(aside, path)


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
        raise not_written(file, error) from None


def not_written(file: Path, error: OSError) -> UsageError:
    """Return the error for a file that could not be written."""
    why = (error.strerror or str(error)).lower()
    return UsageError(f"cannot write {file}: {why}; name another place with --file")
