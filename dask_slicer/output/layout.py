"""Names and places of files in an output directory.

npz     <split>/<case_id>_<slice_index>.npz             a file for every slice
zarr    slices.zarr/<split>/<case_id>/                  a directory for every case
png     images/<split>/<case_id>_<slice_index>.png      files by the templates of the format, see
        masks/…, metadata/<split>/<case_id>.json        `config.file_settings`; so with files

An entry is such a file or such a directory. With several planes, the split is followed by
the plane, <split>/<plane>/, which is called a section here.
"""

from __future__ import annotations

import os
import re
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from dask_slicer.config.fields import PLANES
from dask_slicer.config.file_settings import NPZ, FileTemplate, stem_digits
from dask_slicer.config.partition import Partition
from dask_slicer.config.schema import SliceSettings
from dask_slicer.core.splits import SPLITS
from dask_slicer.output.atomic import remove_whole
from dask_slicer.planning.plan import CasePlan
from dask_slicer.records import CommittedCase, WrittenPlane
from dask_slicer.utils.files import parse_json, read_text


class PartitionFiles(NamedTuple):
    """Names at the top of the output that belong to one run, or to one partition of it."""

    journal: str
    lock: str
    temporary: str


WHOLE = PartitionFiles("journal.jsonl", ".dask_slicer.lock", ".dask_slicer.tmp")

CONFIG = "config.yaml"
SPLITS_FILE = "splits.json"
STRUCTURES_FILE = "structures.json"
STATISTICS_FILE = "statistics.json"
# Groups of cases, and their columns in the tables of the dataset; where it has any.
CASES_FILE = "cases.json"
# Folds, in the format of nnU-Net.
FOLDS = "splits_final.json"
JOURNAL = WHOLE.journal
INDEX = "slices.csv"
# The same as numbers.
INDEX_COLUMNS = "slices.columns"
COLUMNS = ("case_id", "split", "slice_index", "path", "row", "foreground", "labels")
COLUMNS_OF_PLANES = ("case_id", "split", "plane", *COLUMNS[2:])
SUMMARY = "dataset_info.json"
FAILURES = "failures.csv"
FAILURE_COLUMNS = ("case_id", "step", "kind", "message")
ZARR = "slices.zarr"
ZARR_METADATA = "zarr.json"
ZARR_ROOT = f"{ZARR}/{ZARR_METADATA}"
# Written by `dask-slicer preview`.
PREVIEW = "preview.png"
# The headers of the dataset, for continued runs elsewhere, see `inputs.header_cache`.
HEADERS = ".dask_slicer.headers"
# The plan that all partitions of a run share.
PARTITION_PLAN = ".dask_slicer.shares.json"
# Without index and journals; CONFIG last, because it marks the directory as an output.
TOP_FILES = (
    *(SUMMARY, FAILURES, PREVIEW, PARTITION_PLAN, FOLDS, SPLITS_FILE, STRUCTURES_FILE, CASES_FILE),
    *(STATISTICS_FILE, INDEX_COLUMNS, HEADERS),
    CONFIG,
)
# Digests of entries are below this.
_DIGESTS = 2**64
# Holds unfinished files; on the same file system as their places.
TEMPORARY = WHOLE.temporary

_JOURNAL = re.compile(r"journal\.([1-9][0-9]*)of([1-9][0-9]*)\.jsonl")
_LOCK = re.compile(r"\.dask_slicer\.([1-9][0-9]*)of([1-9][0-9]*)\.lock")
_TEMPORARY = re.compile(r"\.dask_slicer\.([0-9]+of[0-9]+\.)?tmp")
_UNFINISHED = re.compile(r"\.dask_slicer\.(.+\.)?(lock|json)(\.[0-9a-f]{8}){1,2}")


# -- the top of the output -------------------------------------------------------------------------


def partition_files(partition: Partition | None) -> PartitionFiles:
    """Return the files of a partition, or of a run without partitions.

    >>> partition_files(Partition(2, 3)).journal
    'journal.2of3.jsonl'
    """
    if partition is None:
        return WHOLE
    name = f"{partition.number}of{partition.of}"
    return PartitionFiles(
        f"journal.{name}.jsonl", f".dask_slicer.{name}.lock", f".dask_slicer.{name}.tmp"
    )


def partition_journals(output_dir: Path) -> list[Path]:
    """Return the journals of partitions that are not merged yet."""
    return [output_dir / partition_files(p).journal for p in _partitions(output_dir, _JOURNAL)]


def journals(output_dir: Path) -> list[Path]:
    """Return the output's own journal, then those of partitions."""
    return [output_dir / JOURNAL, *partition_journals(output_dir)]


def locked_partitions(output_dir: Path) -> list[Partition]:
    """Return the partitions that have a lock; their processes may be dead."""
    return _partitions(output_dir, _LOCK)


def unfinished_locks(output_dir: Path) -> list[Path]:
    """Return temporary files of locks and partition plans; their writers may be dead."""
    return [output_dir / name for name in names_in(output_dir) if _UNFINISHED.fullmatch(name)]


def temporary_folders(output_dir: Path) -> list[Path]:
    """Return the folders of unfinished files, of a run or its partitions."""
    return [output_dir / name for name in names_in(output_dir) if _TEMPORARY.fullmatch(name)]


def _partitions(output_dir: Path, pattern: re.Pattern[str]) -> list[Partition]:
    matches = filter(None, map(pattern.fullmatch, names_in(output_dir)))
    return sorted(Partition(int(match[1]), int(match[2])) for match in matches)


def names_in(output_dir: Path) -> list[str]:
    """Return the names at the top of an output, sorted; none if it does not exist."""
    try:
        return sorted(os.listdir(output_dir))
    except FileNotFoundError:
        return []


# -- names of slices -------------------------------------------------------------------------------


def slice_name(case_id: str, slice_index: int, n_slices: int) -> str:
    """Return the file name of a slice; names of a case sort by slice index.

    >>> slice_name("liver_007", 12, 100), slice_name("liver_007", 12, 1200)
    ('liver_007_012.npz', 'liver_007_0012.npz')
    """
    return f"{case_id}_{slice_index:0{stem_digits(n_slices)}d}.npz"


def section(split: str, plane: str = "") -> str:
    """Return the folder of a split, or of a plane in it, relative to the output or the store.

    >>> section("train"), section("train", "axial")
    ('train', 'train/axial')
    """
    return f"{split}/{plane}" if plane else split


def sections(planes: Iterable[str] = ()) -> list[str]:
    """Return the section of each split, and of each plane in it."""
    return [section(split, plane) for split in SPLITS for plane in ("", *planes)]


def zarr_groups(planes: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the metadata files of all groups above cases; `planes` are those with a folder."""
    folders = sections(planes)
    return (ZARR_ROOT, *(f"{ZARR}/{folder}/{ZARR_METADATA}" for folder in folders))


def case_entries(
    case: CasePlan, settings: SliceSettings, written: WrittenPlane, *, plane: str = ""
) -> list[tuple[str, str]]:
    """Return the entries of a case in a plane: path below its temporary folder, and the output.

    `plane` is the name of its folder, if there is one.
    """
    folder = section(case.split, plane)
    if settings.format == "zarr":
        return [(case.case_id, f"{ZARR}/{folder}/{case.case_id}")]
    if settings.format == "npz":
        n_slices = written.shape[1]
        names = [slice_name(case.case_id, each.slice_index, n_slices) for each in written.slices]
        return [(name, f"{folder}/{name}") for name in names]
    return [(file.path, file.path) for file in written.output_files]


def possible_entries(case: CasePlan, settings: SliceSettings, n_slices: int) -> list[str]:
    """Return all entries that a case of n slices may have, with one plane."""
    if settings.format == "zarr":
        return [f"{ZARR}/{case.split}/{case.case_id}"]
    digits = stem_digits(n_slices)
    return [
        template.file(case.case_id, case.split, slice_index, digits=digits)
        for template in settings.templates_of(case.split)
        for slice_index in (range(n_slices) if template.is_per_slice else (0,))
    ]


def case_path(part: CommittedCase) -> str:
    """Return the directory of a Zarr case, its first file, or what its .npz files begin with."""
    if part.output_files:
        return part.output_files[0].path
    path = f"{section(part.split, part.plane)}/{part.case_id}"
    return f"{ZARR}/{path}" if part.files else path


def case_folder(output_dir: Path, part: CommittedCase) -> Path:
    """Return the directory of a Zarr case or of .npz files; the output for other files."""
    if part.output_files:
        return output_dir
    path = output_dir / case_path(part)
    return path if part.files else path.parent


def case_files(part: CommittedCase) -> dict[str, tuple[int, int]]:
    """Return size in bytes and CRC-32 of each file of a case in a plane, by path in the output."""
    path = case_path(part)
    if part.output_files:
        return {path: (size, crc32) for path, size, crc32 in part.output_files}
    if part.files:
        return {f"{path}/{name}": (size, crc32) for name, size, crc32 in part.files}
    folder = path.removesuffix(part.case_id)
    return {
        f"{folder}{slice_name(part.case_id, index, part.shape[1])}": (size, crc32)
        for index, size, crc32, _ in part.slices
    }


def entries_of(record: CommittedCase) -> dict[str, int]:
    """Return a case's entries by its record, as `find_entries`: path → bytes, 0 for a directory."""
    entries: dict[str, int] = {}
    for part in record.parts:
        files = {path: size for path, (size, _) in case_files(part).items()}
        entries |= {case_path(part): 0} if part.files else files
    return entries


# -- entries on disk -------------------------------------------------------------------------------


def find_entries(
    output_dir: Path,
    settings: SliceSettings | None = None,
    *,
    of: Collection[str] | None = None,
    known: Iterable[str] = (),
) -> dict[str, dict[str, int]]:
    """Return the entries of each case on disk, journaled or not: path → bytes, 0 for a directory.

    `settings` are those of the output: they have the names of files. In a store, folders are cases,
    whatever their name, if they are of no plane. At the top of the output, where other files may
    be, entries are of cases in splits.json, and of `known` ones, alone. `of` selects cases, because
    other partitions of the run may be writing the rest.
    """
    entries: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for case_id, path, size in _entries(output_dir, settings, of=of, known=known):
        entries[case_id][path] = size
    return dict(entries)


def digests_of_entries(
    output_dir: Path,
    settings: SliceSettings | None = None,
    *,
    of: Collection[str] | None = None,
    known: Iterable[str] = (),
) -> dict[str, int]:
    """Return a digest of the entries of each case on disk, as `find_entries` has them.

    A case may have hundreds of files, and a dataset 100,000 cases.
    """
    digests: defaultdict[str, int] = defaultdict(int)
    for case_id, path, size in _entries(output_dir, settings, of=of, known=known):
        digests[case_id] = (digests[case_id] + hash((path, size))) % _DIGESTS
    return dict(digests)


def _digest(entries: Mapping[str, int]) -> int:
    """Return the digest of a case's entries in this process, in whatever order; 0 for none."""
    return sum(map(hash, entries.items())) % _DIGESTS


def _entries(
    output_dir: Path,
    settings: SliceSettings | None,
    *,
    of: Collection[str] | None,
    known: Iterable[str],
) -> Iterator[tuple[str, str, int]]:
    """Yield case id, path and size of the entries that `find_entries` returns."""
    planes = () if settings is None else settings.plane_folders
    for template in _templates(settings):
        for folder in template_folders(template):
            names = of if of is not None or folder else _planned(output_dir).union(known)
            for entry in _scan(output_dir / folder):
                parsed = template.parse(entry.name)
                if parsed and (names is None or parsed.case_id in names) and not entry.is_dir():
                    size = entry.stat(follow_symlinks=False).st_size
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    yield parsed.case_id, path, size
    for split in SPLITS:
        for plane in ("", *planes):
            folder = f"{ZARR}/{section(split, plane)}"
            for entry in _scan(output_dir / folder):
                is_plane = not plane and entry.name in planes
                if not is_plane and (of is None or entry.name in of) and entry.is_dir():
                    yield entry.name, f"{folder}/{entry.name}", 0


def _planned(output_dir: Path) -> set[str]:
    """Return the cases in splits.json; none if it is missing or damaged."""
    with suppress(OSError, ValueError, TypeError, AttributeError):
        splits = parse_json(read_text(output_dir / SPLITS_FILE))
        return {str(case_id) for case_ids in splits.values() for case_id in case_ids}
    return set()


def _templates(settings: SliceSettings | None) -> list[FileTemplate]:
    """Return the templates of an output, and those of .npz files, which an earlier one may have.

    Templates of a configuration may have files of other names in the same folders.
    """
    if settings is not None and settings.format == "files":
        return list(settings.templates)
    return list(dict.fromkeys((NPZ, *(() if settings is None else settings.templates))))


def top_folders(settings: SliceSettings) -> list[str]:
    """Return the names at the top of the output of the folders that hold slices."""
    names = [name for each in _templates(settings) for name in template_folders(each)]
    return [*dict.fromkeys((*SPLITS, ZARR, *(top for n in names if (top := n.partition("/")[0]))))]


def template_folders(template: FileTemplate) -> list[str]:
    """Return the folders, below the output, that may hold files of a template, each once."""
    return list(dict.fromkeys(map(template.folder, sections(PLANES))))


def remove_entries(output_dir: Path, entries: Iterable[str], *, temporary: str = TEMPORARY) -> None:
    """Remove files and directories that `find_entries` returned."""
    folder = output_dir / temporary
    for entry in entries:
        path = output_dir / entry
        if path.is_dir():
            folder.mkdir(exist_ok=True)
        remove_whole(path, folder)


def remove_empty_folders(output_dir: Path, settings: SliceSettings) -> None:
    """Remove the folders of files by templates, and of lists, that are empty."""
    folders = [name for each in settings.templates for name in template_folders(each)]
    folders += [template.path.rpartition("/")[0] for template in settings.lists]
    names = {parent for name in folders if name for parent in (name, *map(str, Path(name).parents))}
    for name in sorted(names - {"."}, reverse=True):  # contents before their folder
        with suppress(OSError):  # missing, or not empty
            (output_dir / name).rmdir()


def is_whole(output_dir: Path, record: CommittedCase, digest: int) -> bool:
    """Return whether a case's entries are those recorded, each file with the recorded size.

    `digest` is that of its entries on disk, see `digests_of_entries`.
    """
    if _digest(entries_of(record)) != digest:
        return False
    try:
        return all(
            (output_dir / case_path(part) / file.path).stat().st_size == file.size
            for part in record.parts
            for file in part.files
        )
    except OSError:
        return False


def refresh_listing(output_dir: Path, settings: SliceSettings) -> None:
    """Make `find_entries` see what other machines have just written.

    An NFS client caches a directory for up to a minute, unless it changes the directory itself.
    """
    names = [name for each in _templates(settings) for name in template_folders(each)]
    names += [f"{ZARR}/{name}" for name in sections(PLANES)]
    for name in dict.fromkeys(names):
        probe = output_dir / name / f"{TEMPORARY}.{uuid.uuid4().hex[:8]}"
        with suppress(OSError):  # most folders do not exist
            probe.touch()
            probe.unlink()


def _scan(folder: Path) -> Iterator[os.DirEntry[str]]:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        yield from entries
