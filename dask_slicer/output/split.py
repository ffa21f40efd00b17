"""Folds made after a run, by `dask-slicer split`: from the journal and the tables of the cases."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from dask_slicer.errors import DatasetError, OutputError, UsageError
from dask_slicer.output import directory, layout
from dask_slicer.output.folds import WrittenCases, make_final, remove_other_folds, write_folds
from dask_slicer.output.journal import last_records
from dask_slicer.output.lock import locked
from dask_slicer.output.output import open_output
from dask_slicer.output.summary import label_classes
from dask_slicer.planning.folds import Folds, FoldSettings
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
    are there, cases keep their fold, and new ones are added. `note` gets texts for the user. Raises
    UsageError.
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
        records = list(last_records(path / layout.JOURNAL))
        committed = [record for record in records if isinstance(record, CommittedCase)]
        written = WrittenCases(
            groups={record.case_id: record.group or record.case_id for record in committed},
            labels={record.case_id: label_classes(record) for record in committed},
            unfinished=directory.existing_splits(path).keys()
            - {record.case_id for record in records if not isinstance(record, RemovedCase)},
        )
        try:
            made, problem = make_final(path, settings, written)
        except DatasetError as error:
            if (path / layout.CASES_FILE).exists() or not (stratify or group_column):
                raise
            hint = f"the same run command writes {layout.CASES_FILE} if the dataset has columns"
            raise OutputError(f"{error}; {hint}") from None
        if made is None:
            raise OutputError(problem)
        remove_other_folds(path, settings)
        info = output.summary | {"folds": settings.summary()}
        text = json.dumps(info, indent=2, ensure_ascii=False) + "\n"
        directory.write_lines(path, layout.SUMMARY, [text])
        write_folds(path, made)
        directory.remove_temporary(path)
    return made
