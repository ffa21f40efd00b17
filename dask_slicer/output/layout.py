"""Names and places of files in an output directory.

npz     <split>/<case_id>_<slice_index>.npz             a file for every slice
zarr    slices.zarr/<split>/<case_id>/                  a directory for every case
"""

from __future__ import annotations

import os
import re
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from dask_slicer.config.schema import SliceSettings
from dask_slicer.core.splits import SPLITS
from dask_slicer.output.atomic import remove_whole
from dask_slicer.planning.plan import CasePlan, Partition
from dask_slicer.records import CommittedCase

_JOURNAL = re.compile(r"journal\.(\d+)of(\d+)\.jsonl")
_ASIDE = re.compile(r"\.dask_slicer\.(.+\.)?(lock|json)\.[0-9a-f]{8}")
_LOCK = re.compile(r"\.dask_slicer\.(\d+)of(\d+)\.lock")
_TEMPORARY = re.compile(r"\.dask_slicer\.(\d+of\d+\.)?tmp")


class OwnFiles(NamedTuple):
    """What a run, or a share of one, writes alone, at the top of the output."""

    journal: str
    lock: str
    temporary: str


WHOLE = OwnFiles("journal.jsonl", ".dask_slicer.lock", ".dask_slicer.tmp")


def partition_files(share: Partition | None) -> OwnFiles:
    """Return what a share writes alone, or a run of the whole.

    Examples
    --------
    >>> partition_files(Partition(2, 3)).journal
    'journal.2of3.jsonl'
    """
    if share is None:
        return WHOLE
    name = f"{share.number}of{share.of}"
    return OwnFiles(
        f"journal.{name}.jsonl", f".dask_slicer.{name}.lock", f".dask_slicer.{name}.tmp"
    )


def partition_journals(output_dir: Path) -> list[Path]:
    """Return the journals that shares left, by share: what they did is not merged yet."""
    return [output_dir / partition_files(share).journal for share in _found(output_dir, _JOURNAL)]


def journals(output_dir: Path) -> list[Path]:
    """Return where records of cases are: the output's own journal, then those of shares."""
    return [output_dir / WHOLE.journal, *partition_journals(output_dir)]


def locked_partitions(output_dir: Path) -> list[Partition]:
    """Return the shares that hold the output, or did when they died."""
    return _found(output_dir, _LOCK)


def unfinished_locks(output_dir: Path) -> list[Path]:
    """Return locks and agreements that are being written, or were when their writer died."""
    return [output_dir / name for name in _names(output_dir) if _ASIDE.fullmatch(name)]


def temporary_folders(output_dir: Path) -> list[Path]:
    """Return what holds, or held, unfinished writing of a run or its shares."""
    return [output_dir / name for name in _names(output_dir) if _TEMPORARY.fullmatch(name)]


def _found(output_dir: Path, pattern: re.Pattern[str]) -> list[Partition]:
    matches = filter(None, map(pattern.fullmatch, _names(output_dir)))
    return sorted(Partition(int(match[1]), int(match[2])) for match in matches)


def _names(output_dir: Path) -> list[str]:
    try:
        return sorted(os.listdir(output_dir))
    except FileNotFoundError:
        return []


# Holds what is being written; on the same file system as its place.
TEMPORARY = WHOLE.temporary
ZARR = "slices.zarr"

_SLICE = re.compile(r"(?P<case_id>.+)_\d{3,}\.npz", re.DOTALL)


def split_folder(case: CasePlan, settings: SliceSettings) -> Path:
    """Return the directory, relative to the output, that what was written aside is moved to."""
    return Path(case.split) if settings.format == "npz" else Path(ZARR, case.split)


def remove_entries(output_dir: Path, entries: Iterable[str], *, temporary: str = TEMPORARY) -> None:
    """Remove what `find_entries` found, or `case_entries` names."""
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


def refresh_listing(output_dir: Path) -> None:
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


def case_entries(case: CasePlan, settings: SliceSettings) -> list[str]:
    """Return what a case may have put into its place, relative to the output."""
    place = split_folder(case, settings).as_posix()
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


CONFIG = "config.yaml"
SPLITS_FILE = "splits.json"
JOURNAL = WHOLE.journal
SUMMARY = "dataset_info.json"
FAILURES = "failures.csv"
# A picture of the slices, where one was asked for.
PREVIEW = "preview.png"
# What shares of one run agreed on.
PARTITION_PLAN = ".dask_slicer.shares.json"

INDEX = "slices.csv"
COLUMNS = ("case_id", "split", "slice_index", "path", "row", "foreground", "labels")


def slice_name(case_id: str, slice_index: int, n_slices: int) -> str:
    """Return the file name of a slice; all slices of a case sort in their order.

    Examples
    --------
    >>> slice_name("liver_007", 12, 100), slice_name("liver_007", 12, 1200)
    ('liver_007_012.npz', 'liver_007_0012.npz')
    """
    width = max(3, len(str(n_slices - 1)))
    return f"{case_id}_{slice_index:0{width}d}.npz"


def case_folder(output_dir: Path, record: CommittedCase) -> Path:
    """Return the directory that holds the files of a case, with others in .npz."""
    if record.files:
        return output_dir / ZARR / record.split / record.case_id
    return output_dir / record.split
