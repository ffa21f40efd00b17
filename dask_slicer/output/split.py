"""Folds made after a run, by `dask-slicer split`: from the output, and columns of the dataset."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from dask_slicer.config.dataset_settings import BY_LABEL
from dask_slicer.config.schema import RunConfig
from dask_slicer.errors import OutputError, UsageError
from dask_slicer.output import directory, layout
from dask_slicer.output.folds import (
    WrittenCases,
    make_final,
    recorded_settings,
    remove_other_folds,
    used_columns,
    write_folds,
)
from dask_slicer.output.journal import last_records
from dask_slicer.output.lock import locked
from dask_slicer.output.output import open_output
from dask_slicer.output.summary import label_classes
from dask_slicer.planning.case_table import CaseTable
from dask_slicer.planning.folds import Folds, FoldSettings
from dask_slicer.planning.planner import make_plan
from dask_slicer.records import CommittedCase, RemovedCase


def split_output(
    output_dir: str | Path,
    *,
    folds: int,
    stratify: str | None = None,
    seed: int | None = None,
    group_column: str | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Folds:
    """Write splits_final.json for the cases of an output that are not for test; return the folds.

    `seed` is by default that of the run, and so are the groups. With the settings of the folds that
    are there, cases keep their fold, and new ones are added. Columns that the output does not have
    are read from the dataset of the run. `note` gets texts for the user. Raises UsageError.
    """
    output = open_output(output_dir)
    path = output.path
    if folds < 2:
        raise UsageError(f"folds must be 2 or more, got {folds}")
    settings = FoldSettings(
        number=folds,
        seed=output.config.seed if seed is None else seed,
        stratify=stratify,
        group_column=group_column,
    )
    with locked(path, note=note):
        if not output.summary:
            raise OutputError(f"{path} has no {layout.SUMMARY}: run the same run command again")
        written = _written_cases(path)
        before = directory.existing_table(path)
        table = _with_columns(before, output.config, settings, directory.existing_splits(path))
        made, problem = make_final(path, settings, written, table)
        if made is None:
            raise OutputError(problem)
        if table != before:
            directory.write_lines(path, layout.CASES_FILE, [table.text()])
        if directory.existing_folds(path) is not None and recorded_settings(path) != settings:
            note(f"{layout.FOLDS} was made with other settings, and is made again")
        remove_other_folds(path, settings)
        info = output.summary | {"folds": settings.summary()}
        text = json.dumps(info, indent=2, ensure_ascii=False) + "\n"
        directory.write_lines(path, layout.SUMMARY, [text])
        write_folds(path, made)
        directory.remove_temporary(path)
    return made


def _written_cases(path: Path) -> WrittenCases:
    """Return what the journal has for folds; records are not kept, as they have all slices."""
    groups: dict[str, str] = {}
    labels: dict[str, tuple[str, ...]] = {}
    unfinished = {*directory.existing_splits(path)}
    for record in last_records(path / layout.JOURNAL):
        if not isinstance(record, RemovedCase):
            unfinished.discard(record.case_id)
        if isinstance(record, CommittedCase):
            groups[record.case_id] = record.group or record.case_id
            labels[record.case_id] = label_classes(record)
    return WrittenCases(groups=groups, labels=labels, unfinished=unfinished)


def _with_columns(
    table: CaseTable, config: RunConfig, settings: FoldSettings, case_ids: Collection[str]
) -> CaseTable:
    """Return a table with the columns that the run and the folds use, and no others."""
    options = {"stratify": settings.stratify, "group_column": settings.group_column}
    missing = {
        option: name
        for option, name in options.items()
        if name is not None and name not in (BY_LABEL, *table.columns)
    }
    if missing:
        # These decide no column, and the file of splits may be gone.
        others = {"splits": None, "fold": None, "stratify": None, "group_column": None}
        try:
            dataset = make_plan(config.model_copy(update=others)).table
        except UsageError as error:
            option, name = next(iter(missing.items()))
            raise OutputError(
                f"--{option} {name}: {layout.CASES_FILE} has no such column, and the dataset of "
                f"the run cannot be read again: {error}"
            ) from None
        for option, name in missing.items():
            cells = dataset.column(name, option)
            found = {case: cell for case, cell in cells.items() if case in case_ids}
            table = replace(table, columns=table.columns | {name: found})
    return table.only(used_columns(config, settings))
