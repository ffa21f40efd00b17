"""Paths in manifests and datalists, also of files whose names are spelled a little differently."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.role_words import plain

_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")


class ListedPaths:
    """Paths that a text file lists, relative to its folder; a folder on the disk is read once."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._folder = os.fspath(source.parent)
        self._names: dict[str, frozenset[str]] = {}
        self._alike: dict[str, defaultdict[str, list[str]]] = {}

    def find(self, text: str) -> str:
        r"""Return the absolute path of a file, which need not exist, with its selector of a volume.

        If there is no such file, names are tried that differ only in the direction of slashes, in
        Unicode form, in upper and lower case, or in blanks at their ends.

        Raises
        ------
        DatasetError
            If the path begins with a drive, such as ``C:\scans``, and this system has none.
        """
        from dask_slicer.inputs.readers.base import split_volume

        relative, volume = split_volume(text) if text.endswith("]") else (text, None)
        path = os.path.normpath(os.path.join(self._folder, relative))
        spelled = self._spelled(path)
        if spelled is None and os.sep == "/" and ("\\" in relative or _DRIVE.match(relative)):
            if _DRIVE.match(relative):
                raise DatasetError(
                    f"{text} in {self._source} is on a drive of Windows, which this system does "
                    "not have; write paths relative to the file that lists them"
                )
            path = os.path.normpath(os.path.join(self._folder, relative.replace("\\", "/")))
            spelled = self._spelled(path)
        return (spelled or path) + ("" if volume is None else f"[{volume}]")

    def _spelled(self, path: str) -> str | None:
        """Return a path as the disk spells it, None if no file or several files are meant."""
        parent, name = os.path.split(path)
        if not name or name in self._names_in(parent) or exists(path):
            return path
        names = self._alike_in(parent)[plain(name)]
        if len(names) == 1:
            return os.path.join(parent, names[0])
        folder = None if names or exists(parent) else self._spelled(parent)
        return self._spelled(os.path.join(folder, name)) if folder not in (None, parent) else None

    def _names_in(self, folder: str) -> frozenset[str]:
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(os.listdir(folder))
            except (OSError, ValueError):
                self._names[folder] = frozenset()  # it may still be allowed to open a file in it
        return self._names[folder]

    def _alike_in(self, folder: str) -> defaultdict[str, list[str]]:
        """Return the names in a folder by what names that look alike have in common."""
        if folder not in self._alike:
            self._alike[folder] = defaultdict(list)
            for name in self._names_in(folder):
                self._alike[folder][plain(name)].append(name)
        return self._alike[folder]


def exists(path: str) -> bool:
    """Return whether there is a file or a folder, also for texts that cannot be a path."""
    return os.path.exists(path)  # noqa: PTH110  # Path.exists raises if a name is too long
