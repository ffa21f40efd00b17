"""What lies where in an output directory, for each format: written aside, moved, found, removed.

npz     <split>/<case_id>_<slice_index>.npz             a file for every slice
zarr    slices.zarr/<split>/<case_id>/                  a directory for every case
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from dask_slicer.config import SliceSettings
from dask_slicer.journal import CommittedCase, WrittenFile, WrittenSlice
from dask_slicer.plans import CasePlan
from dask_slicer.shares import WHOLE
from dask_slicer.slices import SliceStack
from dask_slicer.splits import SPLITS
from dask_slicer.store_npz import slice_name, write_slices

# Holds what is being written; on the same file system as its place.
TEMPORARY = WHOLE.temporary
ZARR = "slices.zarr"

_SLICE = re.compile(r"(?P<case_id>.+)_\d{3,}\.npz", re.DOTALL)


def write_aside(
    stack: SliceStack, case: CasePlan, settings: SliceSettings, folder: Path, *, fsync: bool
) -> tuple[tuple[WrittenSlice, ...], tuple[WrittenFile, ...]]:
    """Write a case into an empty folder; return its slices, and the files that they share."""
    if settings.format == "npz":
        return write_slices(stack, case, settings, folder, fsync=fsync), ()
    from dask_slicer.store_zarr import write_case

    return write_case(stack, case, settings, folder / case.case_id, fsync=fsync)


def place_of(case: CasePlan, settings: SliceSettings) -> Path:
    """Return the directory, relative to the output, that what was written aside is moved to."""
    return Path(case.split) if settings.format == "npz" else Path(ZARR, case.split)


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


def remove_entries(output_dir: Path, entries: Iterable[str], *, temporary: str = TEMPORARY) -> None:
    """Remove what `find_entries` found, or `entries_of` names."""
    aside = output_dir / temporary
    for entry in entries:
        path = output_dir / entry
        if path.is_dir():
            aside.mkdir(exist_ok=True)
        remove_whole(path, aside)


def find_entries(output_dir: Path, of: Collection[str] | None = None) -> dict[str, dict[str, int]]:
    """Return what lies there of every case, journaled or not: path relative to the output → bytes.

    Of a directory the bytes are 0. Of some cases only, where they are given: shares of a run may be
    writing the others.
    """
    found: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for split in SPLITS:
        for entry in _entries(output_dir / split):
            match = _SLICE.fullmatch(entry.name)
            if match and (of is None or match["case_id"] in of):
                found[match["case_id"]][f"{split}/{entry.name}"] = entry.stat(
                    follow_symlinks=False
                ).st_size
        for entry in _entries(output_dir / ZARR / split):
            if (of is None or entry.name in of) and entry.is_dir():
                found[entry.name][f"{ZARR}/{split}/{entry.name}"] = 0
    return dict(found)


def look_afresh(output_dir: Path) -> None:
    """See to it that `find_entries` finds what other machines have just written.

    An NFS client lists a directory from memory, for up to a minute, unless it has changed the
    directory itself and learned thereby that others have, too.
    """
    for split in SPLITS:
        for folder in (output_dir / split, output_dir / ZARR / split):
            probe = folder / f"{TEMPORARY}.{uuid.uuid4().hex[:8]}"
            with suppress(OSError):  # most are not there
                probe.touch()
                probe.unlink()


def entries_of(case: CasePlan, settings: SliceSettings) -> list[str]:
    """Return what a case may have put into its place, relative to the output."""
    place = place_of(case, settings).as_posix()
    return [f"{place}/{name}" for name in entry_names(case, settings, range(case.shape[0]))]


def entry_names(case: CasePlan, settings: SliceSettings, kept: Iterable[int]) -> list[str]:
    """Return what the files of some slices are called, or the directory that holds them."""
    if settings.format == "zarr":
        return [case.case_id]
    return [slice_name(case.case_id, index, case.shape[0]) for index in kept]


def slice_paths(record: CommittedCase) -> dict[str, int]:
    """Return where each slice is, relative to the output → bytes of a file of its own, or 0."""
    if record.files:
        return {f"{ZARR}/{record.split}/{record.case_id}": 0}
    return {
        f"{record.split}/{slice_name(record.case_id, written.slice_index, record.shape[1])}": (
            written.size
        )
        for written in record.slices
    }


def is_whole(output_dir: Path, record: CommittedCase, entries: dict[str, int]) -> bool:
    """Return whether a case's entries are those recorded, each file of the recorded size."""
    if slice_paths(record) != entries:
        return False
    folder = output_dir / ZARR / record.split / record.case_id
    return all(_size(folder / file.path) == file.size for file in record.files)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
