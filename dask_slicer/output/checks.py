"""Problems of an output: files against the journal, and files that describe the whole."""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from dask_slicer.config.schema import RunConfig, SliceSettings
from dask_slicer.core.splits import SPLITS
from dask_slicer.errors import CaseError, as_case_error
from dask_slicer.output.formats.base import CaseReader
from dask_slicer.output.formats.npz import NpzReader
from dask_slicer.output.formats.zarr_reader import ZarrReader
from dask_slicer.output.index import index_lines, index_rows
from dask_slicer.output.layout import (
    COLUMNS,
    INDEX,
    SPLITS_FILE,
    SUMMARY,
    ZARR,
    case_folder,
    slice_name,
    temporary_folders,
)
from dask_slicer.output.summary import DatasetTotals, dataset_info
from dask_slicer.records import CommittedCase

_GROUP_METADATA = {"zarr.json", *(f"{split}/zarr.json" for split in SPLITS)}
# What dataset_info.json says that the journal does not.
_OF_ONE_RUN = {
    "elapsed_seconds", "slices_per_second", "versions", "config", "failures", "num_failed",
}  # fmt: skip
_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """Something that is not as it should be.

    Attributes
    ----------
    path : str
        Relative to the output.
    message : str
    case_id : str
        Whose it is; empty for what belongs to none.
    is_damage : bool
        Whether what was written is known to be bad; else it could not be held against its scan.
    is_stray : bool
        Whether it is a file too many.
    """

    path: str
    message: str
    case_id: str = ""
    is_damage: bool = True
    is_stray: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


# -- a case ----------------------------------------------------------------------------------------


def check_case(output_dir: Path, record: CommittedCase, settings: SliceSettings) -> list[Issue]:
    """Return what is wrong with the files of a case: size, CRC-32, shapes, dtypes, labels."""
    folder = case_folder(output_dir, record)
    n_slices = record.shape[1]
    names = {file.path: (file.size, file.crc32) for file in record.files} or {
        slice_name(record.case_id, one.slice_index, n_slices): (one.size, one.crc32)
        for one in record.slices
    }
    where = f"{_relative(folder, output_dir)}/{'' if record.files else record.case_id}".rstrip("/")
    try:
        found = [
            Issue(
                case_id=record.case_id, path=_relative(folder / name, output_dir), message=message
            )
            for name, (size, crc32) in names.items()
            if (message := _check_bytes(folder / name, size, crc32))
        ]
        if found:
            return found
        wrong = list(_check_content(reader_of(folder, record), record, settings))
    except CaseError as error:
        wrong = [error.one_line]
    except OSError as error:  # it may be there, and sound, the next time
        return [not_checked(record.case_id, as_case_error(error, step="load"))]
    return [Issue(case_id=record.case_id, path=where, message=message) for message in wrong]


def not_checked(case_id: str, error: CaseError) -> Issue:
    """Return that a case could not be checked."""
    said = f"could not be checked: {error.kind}: {error.one_line}"
    return Issue(case_id=case_id, path=case_id, message=said, is_damage=False)


def reader_of(folder: Path, record: CommittedCase) -> NpzReader | ZarrReader:
    """Return what reads the slices of a case from the directory that holds its files."""
    if record.files:
        return ZarrReader(folder)
    return NpzReader(lambda index: folder / slice_name(record.case_id, index, record.shape[1]))


def compare_slices(
    stored: CaseReader, derived: CaseReader, slice_indices: Iterable[int]
) -> Iterator[tuple[int, str]]:
    """Yield slices that are not what was derived from the scans again, with what is wrong."""
    # Of .npz all that a file holds; in Zarr, a neighbour's plane is the neighbour's.
    window_size = 0 if isinstance(stored, ZarrReader) else None
    for slice_index in slice_indices:
        image, label = stored.read(slice_index, window_size)
        expected, expected_label = derived.read(slice_index, window_size)
        if image.shape != expected.shape:
            yield slice_index, f"has shape {image.shape}, its scan gives {expected.shape}"
        elif not np.allclose(image, expected, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
            difference = np.abs(image - expected).max()
            yield slice_index, f"is up to {difference:.3g} from what its scan gives"
        if (label is None) != (expected_label is None):
            yield slice_index, "has a label, or lacks one, unlike its scan"
        elif label is not None and (label != expected_label).any():
            yield slice_index, "has another label than its scan"


def _check_bytes(path: Path, size: int, crc32: int) -> str:
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return "is missing"
    if len(data) != size:
        return f"holds {len(data)} bytes, {size} were written"
    return "" if zlib.crc32(data) == crc32 else "is not what was written (its checksum differs)"


def _check_content(
    reader: NpzReader | ZarrReader, record: CommittedCase, settings: SliceSettings
) -> Iterator[str]:
    n_modalities, n_slices, height, width = record.shape
    if isinstance(reader, ZarrReader) and reader.shape != (n_slices, n_modalities, height, width):
        yield f"its image has shape {reader.shape}, not {(n_slices, n_modalities, height, width)}"
        return
    channels = (2 * settings.window_size + 1) * n_modalities
    expected = {"image": f"{settings.dtype} {(channels, height, width)}"}
    for one in record.slices:
        arrays, label = reader.arrays(one.slice_index)
        if one.labels is not None:
            expected["label"] = f"{settings.label_dtype} {(height, width)}"
        if arrays != expected:
            yield f"slice {one.slice_index} holds {arrays}, not {expected}"
        elif label is not None and _counts(label) != one.labels:
            yield f"slice {one.slice_index} has {_counts(label)} label pixels, not {one.labels}"


def _counts(label: Any) -> dict[int, int]:
    values, counts = np.unique(label, return_counts=True)
    return {int(v): int(n) for v, n in zip(values, counts, strict=True) if v != 0}


def _relative(path: Path, output_dir: Path) -> str:
    return path.relative_to(output_dir).as_posix()


# -- the whole -------------------------------------------------------------------------------------


def check_whole(
    output_dir: Path, config: RunConfig, written: Sequence[CommittedCase], failed: Iterable[str]
) -> Iterator[Issue]:
    """Yield what is wrong with splits, index, summary and store, and files that nobody wrote.

    Parameters
    ----------
    output_dir : Path
    config : RunConfig
    written : sequence of CommittedCase
        By case id, as the journal has them.
    failed : iterable of str
        Cases that the journal has as failed.
    """
    yield from _check_splits(output_dir, written, failed)
    yield from _check_index(output_dir, written)
    yield from _check_summary(output_dir, config, written)
    if config.format == "zarr":
        yield from _check_store(output_dir, written)
    yield from _strays(output_dir, written)


def _check_splits(
    output_dir: Path, written: Iterable[CommittedCase], failed: Iterable[str]
) -> Iterator[Issue]:
    def finding(message: str, case_id: str = "") -> Issue:
        return Issue(path=SPLITS_FILE, message=message, case_id=case_id)

    try:
        text = (output_dir / SPLITS_FILE).read_text(encoding="utf-8")
        splits: dict[str, list[str]] = json.loads(text)
        said = [(case_id, split) for split in SPLITS for case_id in splits[split]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield finding(f"is damaged ({error})")
        return
    if text != json.dumps(splits, indent=2) + "\n":
        yield finding("is not as it was written")
    split_of = dict(said)
    if len(split_of) < len(said):
        yield finding("puts cases into several splits")
    used: defaultdict[str, set[str]] = defaultdict(set)
    for record in written:
        used[record.group or record.case_id].add(record.split)
        known = split_of.get(record.case_id)
        if known != record.split:
            yield finding(f"{record.case_id} is in {known}, it was written to {record.split}")
    for case_id in failed:
        if case_id not in split_of:
            yield finding(f"{case_id} is missing")
    for group, names in used.items():
        if len(names) > 1:
            yield finding(f"the cases of {group} are in {' and '.join(sorted(names))}")


def _check_index(output_dir: Path, written: Iterable[CommittedCase]) -> Iterator[Issue]:
    try:
        lines = (output_dir / INDEX).open(encoding="utf-8", newline="")
    except OSError:
        yield Issue(path=INDEX, message="is missing; the same run command writes it")
        return
    rows = chain.from_iterable(map(index_rows, written))
    with lines:
        try:
            both = zip_longest(lines, index_lines(chain([COLUMNS], rows)))
            for number, (line, expected) in enumerate(both, start=1):
                if line != expected:
                    said = (line or "nothing").strip()
                    yield Issue(
                        path=INDEX,
                        message=f"line {number} is not what the journal has, but {said!r}",
                    )
                    return
        except UnicodeDecodeError as error:
            yield Issue(path=INDEX, message=f"is damaged ({error})")


def _check_summary(
    output_dir: Path, config: RunConfig, written: Iterable[CommittedCase]
) -> Iterator[Issue]:
    tally = DatasetTotals()
    n_modalities = 1
    for record in written:
        tally.add(record)
        n_modalities = record.shape[0]
    expected = dataset_info(
        tally,
        config,
        n_modalities=n_modalities,
        failures=(),
        elapsed_seconds=0,
        slices_this_run=0,
    )
    if not tally.case_names:
        del expected["total_channels"]  # of how many modalities is not known
    try:
        found = json.loads((output_dir / SUMMARY).read_text(encoding="utf-8"))
        wrong = [
            name
            for name in expected
            if name not in _OF_ONE_RUN and found.get(name) != json.loads(json.dumps(expected[name]))
        ]
    except (OSError, ValueError, AttributeError) as error:
        yield Issue(path=SUMMARY, message=f"is damaged ({error})")
        return
    if wrong:
        yield Issue(path=SUMMARY, message=f"{', '.join(wrong)} are not what the journal has")


def _check_store(output_dir: Path, written: Iterable[CommittedCase]) -> Iterator[Issue]:
    from dask_slicer.output.formats.zarr_writer import consolidated, group_files

    places = [(record.split, record.case_id) for record in written]
    expected = dict(group_files(Path(ZARR)))
    expected[Path(ZARR, "zarr.json")] = consolidated(output_dir / ZARR, places)
    used = {split for split, _ in places}
    for path, content in expected.items():
        if path.parent.name in SPLITS and path.parent.name not in used:
            continue
        try:
            is_right = (output_dir / path).read_bytes() == content.encode()
        except OSError:
            is_right = False
        if not is_right:
            yield Issue(path=path.as_posix(), message="is not as it was written")


def _strays(output_dir: Path, written: Iterable[CommittedCase]) -> Iterator[Issue]:
    """Yield files among the slices that the journal does not have."""
    known = {f"{ZARR}/{name}" for name in _GROUP_METADATA}
    cases = set()
    for record in written:
        cases.add(record.case_id)
        folder = _relative(case_folder(output_dir, record), output_dir)
        names: Sequence[str] = [file.path for file in record.files] or [
            slice_name(record.case_id, one.slice_index, record.shape[1]) for one in record.slices
        ]
        known.update(f"{folder}/{name}" for name in names)
    places = [*(output_dir / top for top in (*SPLITS, ZARR)), *temporary_folders(output_dir)]
    for top in places:
        for path in sorted(top.rglob("*")):
            name = _relative(path, output_dir)
            if not path.is_dir() and name not in known:
                _, _, case_id, *_ = (*Path(name).parts, "", "", "")
                yield Issue(
                    path=name,
                    message="is nothing that the journal has; remove it",
                    case_id=case_id if top.name == ZARR and case_id in cases else "",
                    is_damage=False,
                    is_stray=True,
                )
