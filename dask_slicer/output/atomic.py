"""Files and directories that are written, moved or removed whole."""

from __future__ import annotations

import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_IS_WINDOWS = os.name == "nt"
# Seconds: 2 in all.
_PAUSES = (0.01, 0.04, 0.15, 0.3, 0.5, 1.0)
# From disks, such as some network mounts, that sync files but no folders.
_NO_SYNC = {errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}


@contextmanager
def atomic_write(
    path: Path, *, temporary: Path | None = None, exclusive: bool = False, fsync: bool = False
) -> Iterator[BinaryIO]:
    """Open a file in the folder `temporary` that becomes `path` if the block raises no error.

    `exclusive`: raise FileExistsError if `path` exists, so that the first of several writers wins.
    """
    # By default in the folder of `path`: some network disks have no hard links between folders.
    if temporary is not None:
        temporary.mkdir(exist_ok=True)
    unfinished = temporary_name(path, temporary)
    try:
        with unfinished.open("xb") as file:
            yield file
            if fsync:
                file.flush()
                os.fsync(file.fileno())
        if exclusive:
            link(unfinished, path)
        else:
            replace(unfinished, path)
        if fsync:
            fsync_folder(path.parent)  # else its name could be lost
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def replace(source: Path | str, target: Path) -> None:
    """Move a file or folder over another one, or to a free name.

    Windows refuses while a process has either open, such as a virus scanner: wait for it then. It
    never replaces a folder.
    """
    for pause in _PAUSES if _IS_WINDOWS and not target.is_dir() else ():
        with suppress(PermissionError):
            os.replace(source, target)
            return
        time.sleep(pause)
    os.replace(source, target)


def fsync_folder(folder: Path) -> None:
    """Force the names in a folder to disk."""
    if os.name == "nt":  # Windows cannot open a directory, and needs no sync
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def temporary_name(path: Path, folder: Path | None = None) -> Path:
    """Return a new hidden name beside a file, or in another folder."""
    return (folder or path.parent) / f".{path.name.lstrip('.')}.{uuid.uuid4().hex[:8]}"


def link(source: Path, target: Path) -> None:
    """Give a file a second name, by a hard link or a copy; raise FileExistsError if it exists."""
    try:
        os.link(source, target)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # exFAT and some network disks have no hard links
        with target.open("xb") as file:
            file.write(source.read_bytes())


def move(source: Path, target: Path) -> None:
    """Move a file or folder to its place, replacing an earlier one."""
    try:
        replace(source, target)
    except OSError:
        if not (source.is_dir() and target.is_dir()):
            raise
        # A folder can replace an empty folder only.
        remove_whole(target, source.parent)
        try:
            replace(source, target)
        except OSError:
            if not target.is_dir():
                raise
            shutil.rmtree(source)  # another writer of the same case was faster


def remove_whole(path: Path, temporary: Path) -> None:
    """Remove a file, or a folder so that no reader sees half of it; either may be missing."""
    if path.is_dir() and not path.is_symlink():
        removed = temporary / f"removed.{uuid.uuid4().hex[:8]}"
        with suppress(FileNotFoundError):
            replace(path, removed)
        shutil.rmtree(removed, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
