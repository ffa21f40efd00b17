"""Problems of an output: files that differ from the journal, or do not belong to it."""

from __future__ import annotations

import io
import json
import os
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from dask_slicer.config.schema import RunConfig, SliceSettings
from dask_slicer.core.foreground import IntensityProperties
from dask_slicer.core.labels import count_labels
from dask_slicer.core.splits import SPLITS
from dask_slicer.errors import CaseError, OutputError, UsageError, as_case_error
from dask_slicer.output import layout
from dask_slicer.output.comparison import is_readable, reader_of
from dask_slicer.output.directory import (
    existing_folds,
    existing_properties,
    existing_splits,
    existing_structures,
    existing_table,
    holds,
    splits_text,
    structures_text,
    summary_properties,
)
from dask_slicer.output.folds import recorded_settings
from dask_slicer.output.formats.base import DAMAGE
from dask_slicer.output.formats.columns import Expected
from dask_slicer.output.formats.npz_reader import NpzReader
from dask_slicer.output.formats.zarr_reader import ZarrReader
from dask_slicer.output.index_table import index_text, list_lines
from dask_slicer.output.inventory import Inventory
from dask_slicer.output.properties import properties_text
from dask_slicer.output.summary import DatasetTotals, dataset_info
from dask_slicer.planning.folds import FOLD_PARTS
from dask_slicer.planning.names import Names
from dask_slicer.records import CaseRecord, CommittedCase
from dask_slicer.utils.files import open_file, parse_json, read_bytes, read_text
from dask_slicer.utils.formatting import escape_line, first_few

# Keys of dataset_info.json that the journal does not determine.
_OF_ONE_RUN = {
    "elapsed_seconds", "slices_per_second", "versions", "config", "failures", "num_failed",
}  # fmt: skip
_REWRITES = "the same run command writes it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """A problem of one file, or of one case."""

    path: str  # relative to the output
    message: str
    case_id: str = ""  # empty for a file of no single case
    is_damage: bool = True  # False if the file could not be compared with its scan
    is_stray: bool = False  # it does not belong to the output

    def __str__(self) -> str:
        return escape_line(f"{self.path}: {self.message}")  # with names in files of others


# -- a case ----------------------------------------------------------------------------------------


def check_case(output_dir: Path, record: CommittedCase, settings: SliceSettings) -> list[Issue]:
    """Return problems of a case's files: size, CRC-32, shapes, dtypes, labels."""
    return [issue for part in record.parts for issue in _check_part(output_dir, part, settings)]


def _check_part(output_dir: Path, record: CommittedCase, settings: SliceSettings) -> list[Issue]:
    """Return problems of a case's files in one plane."""
    case_id = record.case_id
    try:
        issues = [
            Issue(case_id=case_id, path=path, message=message)
            for path, (size, crc32) in layout.case_files(record).items()
            if (message := _check_bytes(output_dir / path, size, crc32))
        ]
        if issues:
            return issues
        messages: list[str] = []
        if is_readable(record, settings):
            reader = reader_of(layout.case_folder(output_dir, record), record, settings)
            messages += _check_content(reader, record, settings)
    except CaseError as error:
        messages = [error.one_line]
    except OSError as error:  # the file may be readable, and correct, the next time
        return [not_checked(case_id, as_case_error(error, step="load"))]
    except DAMAGE as error:
        messages = [f"is damaged ({error})"]
    path = layout.case_path(record)
    return [Issue(case_id=case_id, path=path, message=message) for message in messages]


def not_checked(case_id: str, error: CaseError) -> Issue:
    """Return the issue of a case that could not be checked."""
    message = f"could not be checked: {error.kind}: {error.one_line}"
    return Issue(case_id=case_id, path=case_id, message=message, is_damage=False)


def _check_bytes(path: Path, size: int, crc32: int) -> str:
    try:
        if (n_bytes := path.stat().st_size) != size and path.is_file():
            return f"holds {n_bytes} bytes, {size} were written"
        data = read_bytes(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return "is missing"
    return "" if zlib.crc32(data) == crc32 else "has changed since it was written (by its checksum)"


def _check_content(
    reader: NpzReader | ZarrReader, record: CommittedCase, settings: SliceSettings
) -> Iterator[str]:
    n_modalities, n_slices, height, width = record.shape
    if isinstance(reader, ZarrReader) and reader.shape != (n_slices, n_modalities, height, width):
        yield f"its image has shape {reader.shape}, not {(n_slices, n_modalities, height, width)}"
        return
    channels = (2 * settings.window_size + 1) * n_modalities
    expected = {"image": f"{settings.dtype} {(channels, height, width)}"}
    for written in record.slices:
        image, label = reader.stored(written.slice_index)
        arrays = {"image": image}
        if label is not None:
            arrays["label"] = f"{label.dtype} {label.shape}"
        if written.labels is not None:
            expected["label"] = f"{settings.label_dtype} {(height, width)}"
        if arrays != expected:
            yield f"slice {written.slice_index} holds {arrays}, not {expected}"
        elif label is not None and (counts := count_labels(label)) != written.labels:
            yield f"slice {written.slice_index} has {counts} label pixels, not {written.labels}"


# -- the whole output ------------------------------------------------------------------------------


def check_whole(
    output_dir: Path, config: RunConfig, records: Iterable[CaseRecord]
) -> tuple[Inventory, list[Issue]]:
    """Return what the journal lists; problems of the files that `finalize` writes; stray files.

    `records` are those of the journal, sorted by case id.
    """
    planes = config.plane_folders
    inventory = Inventory(config)
    columns = Expected()
    pieces = index_text(inventory.committed(records), config, columns.put)
    lines = (f"{line}\n" for piece in pieces for line in piece.split("\n")[:-1])
    checks = {layout.INDEX: list(_check_lines(output_dir, layout.INDEX, lines))}
    for _ in lines:  # of the index, only lines up to the first difference were compared
        pass
    # Earlier versions wrote none.
    path = output_dir / layout.INDEX_COLUMNS
    if path.exists() and columns.differs(path):
        checks[layout.INDEX_COLUMNS] = [f"differs from the journal; {_REWRITES}"]
    for template in config.lists:
        expected = list_lines(records, template)
        checks[template.path] = list(_check_lines(output_dir, template.path, expected))
    checks[layout.SPLITS_FILE] = list(_check_splits(output_dir, inventory))
    checks[layout.SUMMARY] = list(_check_summary(output_dir, config, inventory.totals))
    if (output_dir / layout.CASES_FILE).exists():
        checks[layout.CASES_FILE] = list(_check_table(output_dir))
    if (output_dir / layout.FOLDS).exists():
        checks[layout.FOLDS] = list(_check_folds(output_dir, inventory))
    if inventory.structures or (output_dir / layout.STRUCTURES_FILE).exists():
        checks[layout.STRUCTURES_FILE] = list(_check_structures(output_dir, inventory.structures))
    if config.uses_statistics:
        checks[layout.STATISTICS_FILE] = list(_check_properties(output_dir))
    issues = [
        Issue(path=path, message=message)
        for path, messages in checks.items()
        for message in messages
    ]
    if config.format == "zarr":
        for name, text in _zarr_groups(output_dir, inventory.totals, planes).items():
            if not holds(output_dir / name, text):
                issues.append(Issue(path=name, message="has changed since it was written"))
    return inventory, [*issues, *_strays(output_dir, inventory)]


def _zarr_groups(output_dir: Path, totals: DatasetTotals, planes: Sequence[str]) -> dict[str, str]:
    """Return the content of the metadata of all groups above cases."""
    from dask_slicer.output.formats import zarr_writer

    texts = dict.fromkeys(layout.zarr_groups(planes), zarr_writer.GROUP_TEXT)
    is_large = len(totals.split_of) > zarr_writer.MOST_CONSOLIDATED
    # Earlier versions consolidated the metadata of any number of cases.
    if not (is_large and holds(output_dir / layout.ZARR_ROOT, zarr_writer.GROUP_TEXT)):
        text = zarr_writer.consolidated(output_dir / layout.ZARR, totals.split_of, planes)
        texts[layout.ZARR_ROOT] = text
    return texts


def _check_splits(output_dir: Path, inventory: Inventory) -> Iterator[str]:
    try:
        text = read_text(output_dir / layout.SPLITS_FILE)
        splits: dict[str, list[str]] = parse_json(text)
        pairs = [(str(case_id), split) for split in SPLITS for case_id in splits[split]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"is damaged ({error})"
        return
    if text != splits_text(splits):
        yield "has changed since it was written"
    split_of = dict(pairs)
    if len(split_of) < len(pairs):
        yield "has a case in more than one split"
    for case_id, written_split in inventory.totals.split_of.items():
        split = split_of.get(case_id)
        if split != written_split:
            where = split or "no split"
            yield f"has {case_id} in {where}, but its slices are in {written_split}"
    for case_id in inventory.failed:
        if case_id not in split_of:
            yield f"does not have the failed case {case_id}"
    splits_of_group: defaultdict[str, set[str]] = defaultdict(set)
    group_of = _groups(output_dir, inventory)
    for case_id, split in pairs:
        splits_of_group[group_of.get(case_id, case_id)].add(split)
    for group, names in splits_of_group.items():
        if len(names) > 1:
            yield f"has the cases of group {group} in {' and '.join(sorted(names))}"


def _groups(output_dir: Path, inventory: Inventory) -> dict[str, str]:
    """Return the group of each case, as the journal has it and then the last run."""
    groups = dict(inventory.totals.group_of)
    with suppress(OutputError):  # reported for the file itself
        groups |= existing_table(output_dir).groups
    return groups


def _check_folds(output_dir: Path, inventory: Inventory) -> Iterator[str]:
    """Yield leaks between the parts of a fold, and cases that it must not name."""
    try:
        folds, split_of = existing_folds(output_dir) or [], existing_splits(output_dir)
        group_of = _groups(output_dir, inventory)
        settings = recorded_settings(output_dir)
        if settings is not None and settings.group_column is not None:
            group_of |= existing_table(output_dir).grouped_by(settings.group_column)
    except UsageError as error:
        yield str(error)
        return
    for number, fold in enumerate(folds):
        named = {*fold["train"], *fold["val"]}
        groups = [{group_of.get(case, case) for case in fold[part]} for part in FOLD_PARTS]
        leaks = {
            "cases that are not in splits.json": named - split_of.keys(),
            "cases that are for test": {case for case in named if split_of.get(case) == "test"},
            "cases in train and in val": set(fold["train"]) & set(fold["val"]),
            "groups in train and in val": set.intersection(*groups),
        }
        for what, names in leaks.items():
            if names:
                yield f"fold {number} has {what}: {first_few(sorted(names))}"


def _check_table(output_dir: Path) -> Iterator[str]:
    try:
        table = existing_table(output_dir)
    except OutputError as error:
        yield str(error)
        return
    if not holds(output_dir / layout.CASES_FILE, table.text()):
        yield "has changed since it was written"


def _check_structures(output_dir: Path, written: Mapping[str, int]) -> Iterator[str]:
    if not (output_dir / layout.STRUCTURES_FILE).exists():
        yield "is missing; --repair writes it again"
        return
    try:
        structures = existing_structures(output_dir)
    except OutputError as error:
        yield str(error)
        return
    if not holds(output_dir / layout.STRUCTURES_FILE, structures_text(structures)):
        yield "has changed since it was written"
    for name, value in written.items():
        if structures.get(name) != value:
            yield f"has {name} as {structures.get(name, 'no value')}, but slices have it as {value}"


def _check_properties(output_dir: Path) -> Iterator[str]:
    path = output_dir / layout.STATISTICS_FILE
    try:
        properties = existing_properties(output_dir)
    except OutputError as error:
        yield str(error).removeprefix(f"{path} ")
        return
    if properties and not holds(path, properties_text(properties)):
        yield "has changed since it was written"


def _check_lines(output_dir: Path, name: str, expected_lines: Iterable[str]) -> Iterator[str]:
    """Compare slices.csv, or a list, line by line: it may have millions."""
    try:
        table = open_file(output_dir / name)
    except OSError:
        yield f"is missing; {_REWRITES}"
        return
    with io.TextIOWrapper(table, encoding="utf-8", newline="") as lines:
        try:
            pairs = zip_longest(lines, expected_lines)
            for number, (line, expected) in enumerate(pairs, start=1):
                if line != expected:
                    shown = "is missing" if line is None else f"holds {line.strip()!r}"
                    yield f"line {number} differs from the journal: it {shown}"
                    return
        except UnicodeDecodeError as error:
            yield f"is damaged ({error})"


def _check_summary(output_dir: Path, config: RunConfig, totals: DatasetTotals) -> Iterator[str]:
    # Without a case, the number of channels is not known.
    ignored = _OF_ONE_RUN if totals.split_of else {*_OF_ONE_RUN, "total_channels"}
    try:
        properties: tuple[IntensityProperties, ...] = ()
        if config.uses_statistics:
            properties = summary_properties(output_dir) or existing_properties(output_dir)
        expected = json.loads(json.dumps(dataset_info(config, totals, properties=properties)))
        info = parse_json(read_text(output_dir / layout.SUMMARY))
        Names.parse(info)  # which the journal does not have
        wrong = [
            name
            for name, value in expected.items()
            if name not in ignored and info.get(name) != value
        ]
    except (OSError, ValueError, AttributeError) as error:
        yield f"is damaged ({error})"
        return
    if wrong:
        verb = "differs" if len(wrong) == 1 else "differ"
        yield f"{', '.join(wrong)} {verb} from the journal"


def _strays(output_dir: Path, inventory: Inventory) -> Iterator[Issue]:
    """Yield files among the slices that are not in the journal."""
    if any("/" not in template.path for template in inventory.settings.templates):
        entries = layout.find_entries(output_dir, inventory.settings).values()
        for name in (path for paths in entries for path in paths if "/" not in path):
            if name not in inventory:
                message = "is not in the journal; remove it"
                yield Issue(path=name, message=message, is_damage=False, is_stray=True)
    folders = [
        *(output_dir / top for top in layout.top_folders(inventory.settings)),
        *layout.temporary_folders(output_dir),
    ]
    for top in folders:
        for path in _files_below(top):
            name = path.relative_to(output_dir).as_posix()
            if name in inventory:
                continue
            _, _, *below = (*Path(name).parts, "", "", "")
            case_id = below[below[0] in inventory.settings.plane_folders]
            is_of_case = top.name == layout.ZARR and case_id in inventory.totals.split_of
            yield Issue(
                path=name,
                message="is not in the journal; remove it",
                case_id=case_id if is_of_case else "",
                is_damage=False,
                is_stray=True,
            )


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and those below it; a folder may have millions."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir():
                yield folder / entry.name
            elif not entry.is_symlink():
                yield from _files_below(folder / entry.name)
