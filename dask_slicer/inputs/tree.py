"""Files of a dataset, listed once for all layouts."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.case import is_volume_name, name_of, relative_path

# Folders of file systems that no user can list.
_OF_THE_SYSTEM = {"lost+found", "System Volume Information"}


Item = TypeVar("Item")

# What is being done, how many items are done, and of how many; None if that is not known yet.
Progress = Callable[[str, int, int | None], None]


def no_progress(doing: str, n_done: int, total: int | None) -> None:
    """Show nothing."""


def counted(
    items: Iterable[Item], doing: str, total: int | None, progress: Progress
) -> Iterator[Item]:
    """Yield items, and count them for the progress."""
    for number, item in enumerate(items, start=1):
        progress(doing, number, total)
        yield item


class FileTree:
    """The files under a folder: relative paths with forward slashes, sorted, none hidden.

    Parameters
    ----------
    root : Path
        A folder.
    paths : iterable of str
        As `scan` lists them; a test may make them up.
    """

    def __init__(self, root: Path, paths: Iterator[str] | list[str]) -> None:
        self.root = root
        self.paths = tuple(sorted(paths))

    @classmethod
    def scan(
        cls, root: Path, *, skip: Path | None = None, progress: Progress = no_progress
    ) -> FileTree:
        """List a folder and its folders, links followed, without `skip`, an output in it.

        Raises
        ------
        DatasetError
            If a folder cannot be listed: it may hold cases, or labels.
        """
        return cls(root, counted(_walk(root, skip), "searching", None, progress))

    @cached_property
    def volumes(self) -> tuple[str, ...]:
        """Return the paths that are named like volumes, also of folders (they fail)."""
        return tuple(path for path in self.paths if is_volume_name(name_of(path)))

    @cached_property
    def by_folder(self) -> dict[str, list[str]]:
        """Return the volumes of each folder that holds any, by its path; the root is ``""``."""
        folders: defaultdict[str, list[str]] = defaultdict(list)
        for path in self.volumes:
            folders[path.rpartition("/")[0]].append(path)
        return dict(folders)

    def within(self, folder: str) -> list[str]:
        """Return the volumes in a folder, without those of folders in it."""
        return self.by_folder.get(folder, [])

    def has(self, path: str) -> bool:
        """Return whether there is a file, of any kind, hidden ones too."""
        return (self.root / path).exists()

    def absolute(self, path: str) -> str:
        """Return the absolute path of a file, if the root is absolute; it need not exist."""
        return os.path.normpath(os.path.join(self.root, path))


def relative_to(root: Path, path: str) -> str:
    """Return a path relative to a dataset, POSIX, without the selector of a volume."""
    # Imported on use, as nibabel with it.
    from dask_slicer.inputs.readers.base import split_volume

    path, _ = split_volume(path)
    prefix = os.path.join(root, "")
    if path.startswith(prefix):
        return path[len(prefix) :].replace(os.sep, "/")
    return relative_path(path, root)


def _walk(root: Path, skip: Path | None) -> Iterator[str]:
    """Yield the files under a folder; a link to a folder above is not followed."""
    skipped = None
    if skip is not None:
        with suppress(OSError):  # it may still be missing
            skipped = _identity(os.fspath(skip))
    todo: list[tuple[str, str, tuple[tuple[int, int], ...]]] = [(os.fspath(root), "", ())]
    while todo:
        folder, prefix, above = todo.pop()
        try:
            identity = _identity(folder)
            if identity in above or (prefix and identity == skipped):
                continue
            with os.scandir(folder) as listing:
                entries = [entry for entry in listing if not entry.name.startswith(".")]
        except OSError as error:
            if Path(folder).name in _OF_THE_SYSTEM:
                continue
            raise DatasetError(f"cannot list {folder}: {error.strerror}") from None
        for entry in entries:
            path = prefix + entry.name
            if not _is_dir(entry) or is_volume_name(entry.name):
                yield path
            else:
                todo.append((entry.path, f"{path}/", (*above, identity)))


def _identity(folder: str) -> tuple[int, int]:
    """Return what a folder has in common with all its names: links, and other cases of letters."""
    status = os.stat(folder)  # noqa: PTH116, a Path takes longer than the system's call
    return status.st_dev, status.st_ino or hash(folder)  # some shares have no numbers


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
