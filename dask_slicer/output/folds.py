"""Folds of an output, splits_final.json: what a run makes, and what earlier runs have made."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dask_slicer.config.dataset_settings import BY_LABEL
from dask_slicer.config.schema import RunConfig
from dask_slicer.errors import CorruptFile, OutputError, UsageError
from dask_slicer.output import directory, layout
from dask_slicer.output.formats.base import read_json
from dask_slicer.planning.case_table import CaseTable
from dask_slicer.planning.folds import FOLD_PARTS, Folds, FoldSettings, fold_of_cases, make_folds
from dask_slicer.planning.plan import RunPlan
from dask_slicer.utils.formatting import plural

if TYPE_CHECKING:
    from dask_slicer.output.output import Output


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenCases:
    """What decides folds beside the settings and the tables of the dataset.

    Attributes
    ----------
    groups : mapping of case id to str
    labels : mapping of case id to collection of str
        The label values in each case.
    unfinished : collection of str
        Planned cases that were not run yet.
    """

    groups: Mapping[str, str]
    labels: Mapping[str, Collection[str]]
    unfinished: Collection[str] = ()


def recorded_settings(output_dir: Path) -> FoldSettings | None:
    """Return the settings of the folds in an output, None if it has none."""
    if not (output_dir / layout.FOLDS).exists():  # the user may have removed it
        return None
    with suppress(FileNotFoundError, CorruptFile):
        return FoldSettings.parse(read_json(output_dir / layout.SUMMARY))
    return None


def used_columns(config: RunConfig, settings: FoldSettings | None = None) -> set[str]:
    """Return the columns that the run and the folds use; by default the folds of run or output."""
    settings = settings or FoldSettings.of_run(config) or recorded_settings(config.output_dir)
    used = {config.stratify, config.group_column}
    if settings is not None:
        used |= {settings.stratify, settings.group_column}
    return {name for name in used if name not in (None, BY_LABEL)}


def with_folds(plan: RunPlan) -> RunPlan:
    """Return a plan with the folds that its run will make, and notes on them.

    Raises UsageError if they cannot be made.
    """
    config, output_dir = plan.config, plan.config.output_dir
    settings = FoldSettings.of_run(config)
    if settings is None:
        return plan
    splits = {case: split for split, cases in plan.splits.items() for case in cases}
    table, earlier = plan.table, {}
    notes = []
    if not config.overwrite:
        table = directory.existing_table(output_dir).updated(table, keep=splits)
        earlier = _earlier_folds(output_dir, settings)
        if not earlier and (output_dir / layout.FOLDS).exists():
            notes.append(f"{layout.FOLDS} was made with other settings, and is made again")
    folds = make_folds(settings, splits, table, assigned=earlier)
    return replace(plan, folds=folds, notes=(*plan.notes, *notes, *folds.notes()))


def final_folds(config: RunConfig, written: WrittenCases) -> tuple[Folds | None, str]:
    """Return the folds to write after a run, None without any, and a note if labels decide them.

    Without the setting `folds`, cases that are new join the folds that the output has. Raises
    UsageError if that is not possible.
    """
    settings = FoldSettings.of_run(config) or recorded_settings(config.output_dir)
    if settings is None:
        return None, ""
    table = directory.existing_table(config.output_dir)
    return make_final(config.output_dir, settings, written, table)


def make_final(
    output_dir: Path, settings: FoldSettings, written: WrittenCases, table: CaseTable
) -> tuple[Folds | None, str]:
    """Return folds with these settings, as `final_folds`; cases keep those of equal settings."""
    splits = directory.existing_splits(output_dir)
    n_unfinished = sum(splits.get(case_id) != "test" for case_id in written.unfinished)
    folds = make_folds(
        settings,
        splits,
        replace(table, groups={**written.groups, **table.groups}),
        labels=None if n_unfinished else written.labels,
        assigned=_earlier_folds(output_dir, settings),
    )
    if settings.stratify != BY_LABEL:
        return folds, ""
    if folds.fold_of:
        return folds, "; ".join(folds.lines())
    cases = plural(n_unfinished, "case")
    return None, f"{layout.FOLDS} needs the labels of {cases} not run yet (--stratify label)"


def remove_other_folds(output_dir: Path, settings: FoldSettings) -> None:
    """Remove folds with other settings, before dataset_info.json gets these."""
    if recorded_settings(output_dir) != settings:
        (output_dir / layout.FOLDS).unlink(missing_ok=True)


def write_folds(output_dir: Path, folds: Folds) -> None:
    """Write splits_final.json, after dataset_info.json got its settings."""
    text = json.dumps(folds.content(), indent=2) + "\n"
    directory.write_lines(output_dir, layout.FOLDS, [text])


def _earlier_folds(output_dir: Path, settings: FoldSettings) -> dict[str, int]:
    """Return the fold of each case in splits_final.json, if it was made with the same settings."""
    folds = directory.existing_folds(output_dir)
    if folds is None:
        return {}
    recorded = recorded_settings(output_dir)
    if recorded is None:
        raise OutputError(
            f"{output_dir / layout.FOLDS} was not made for this output, by its {layout.SUMMARY}; "
            "move it elsewhere, and --splits FILE --fold N uses it"
        )
    return fold_of_cases(folds) if recorded == settings and len(folds) == settings.number else {}


def fold_cases(output: Output, fold: int, part: str) -> set[str]:
    """Return the case ids in "train" or "val" of a fold; raise UsageError if there is none."""
    if part not in FOLD_PARTS:
        raise UsageError(f"part must be one of {', '.join(FOLD_PARTS)}, got {part}")
    if not output.folds:
        raise UsageError(
            f"{output.path} has no {layout.FOLDS}: dask-slicer split {output.path} --folds 5 "
            "writes it"
        )
    if isinstance(fold, bool) or fold not in range(len(output.folds)):
        raise UsageError(
            f"fold must be one of 0 to {len(output.folds) - 1}, the folds in "
            f"{output.path / layout.FOLDS}, got {fold}"
        )
    return set(output.folds[fold][part])
