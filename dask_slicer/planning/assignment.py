"""Patients and splits of cases, from a manifest, a file, or ratios."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path

from dask_slicer.config.dataset_settings import BY_LABEL
from dask_slicer.config.schema import RunConfig
from dask_slicer.core.splits import SPLITS, assign_splits, check_groups_whole
from dask_slicer.errors import DatasetError, OutputError
from dask_slicer.inputs.case import Case
from dask_slicer.inputs.layouts.base import LayoutMatch, read_json
from dask_slicer.planning.case_table import CaseTable, column_classes
from dask_slicer.utils.formatting import did_you_mean, first_few, plural
from dask_slicer.utils.packed import PackedList


def case_groups(dataset: LayoutMatch, config: RunConfig, notes: list[str]) -> dict[str, str]:
    """Return the group of every case: the patient, or what `group_column` says.

    Raises
    ------
    DatasetError
        If no case has a value in a column that `group_column` or `stratify` names.
    """
    table = CaseTable.of(dataset.cases)
    if config.stratify not in (None, BY_LABEL):
        table.column(config.stratify, "stratify")
    if config.group_column is not None:
        return _column_groups(table, config.group_column, notes)
    groups = {}
    unmatched = []
    for case in dataset.cases:
        group = case.group
        # A regex replaces the groups of a layout, but not those of a manifest.
        if config.group_regex is not None and (group is None or dataset.layout != "manifest"):
            match = re.search(config.group_regex, case.case_id)
            group = match and match[1]
            if group is None:
                unmatched.append(case.case_id)
        groups[case.case_id] = case.case_id if group is None else group
    if unmatched:
        notes.append(
            f"group_regex does not match {len(unmatched)} case ids; each is a separate group: "
            f"{first_few(unmatched)}"
        )
    return groups


def _column_groups(table: CaseTable, name: str, notes: list[str]) -> dict[str, str]:
    groups = table.grouped_by(name)
    without = [case for case in groups if case not in table.columns[name]]
    if without:
        notes.append(
            f"{plural(len(without), 'case')} without a value in the column {name}, each in the "
            f"group of its own patient: {first_few(without)}"
        )
    apart: dict[str, set[str]] = {}
    for case, patient in table.groups.items():
        apart.setdefault(patient, set()).add(groups[case])
    if several := [patient for patient, names in apart.items() if len(names) > 1]:
        notes.append(
            f"group_column {name} puts cases of one patient into different groups, so perhaps "
            f"into different splits: {first_few(several)}"
        )
    return groups


def case_splits(
    cases: Sequence[Case],
    groups: Mapping[str, str],
    config: RunConfig,
    assigned: Mapping[str, str],
    assigned_groups: Callable[[], Mapping[str, str]],
    notes: list[str],
    *,
    frames: Mapping[str, Sequence[str]],
) -> tuple[Sequence[Case], dict[str, str]]:
    """Return the cases of the run, and the split of each of them and of earlier cases.

    A file of splits may name all `frames` of a case by its id.
    """
    given = {case.case_id: case.split for case in cases if case.split is not None}
    # Whatever the dataset states; but outputs of earlier versions keep what it stated.
    if config.for_inference and {*assigned.values()} <= {"test"}:
        given = dict.fromkeys(given, "test")
    if config.splits is not None and len(given) < len(cases):
        known = {case.case_id for case in cases}
        given |= _read_splits(config.splits, config.fold, known, frames)
        left_out = [case.case_id for case in cases if case.case_id not in given]
        if left_out:
            notes.append(
                f"{len(left_out)} cases that {config.splits.name} does not name are left out: "
                f"{first_few(left_out, most=20)}"
            )
        cases = PackedList(case for case in cases if case.case_id in given)
        if not cases:
            raise DatasetError(f"{config.splits} names none of the cases")
    check_groups_whole(given, groups)
    moved = [name for name, split in given.items() if assigned.get(name, split) != split]
    if moved:
        name = moved[0]
        raise OutputError(
            f"{config.output_dir} was made with other splits: {name} was {assigned[name]}, is now "
            f"{given[name]} ({len(moved)} in all); use another --output_dir, or --overwrite"
        )
    # Cases that left the dataset still keep their patient in their split.
    all_groups = {name: name for name in assigned}
    if assigned.keys() - groups.keys():
        written = assigned_groups()
        all_groups |= {name: group for name, group in written.items() if name in assigned}
    all_groups |= groups
    splits = {**assigned, **given}
    check_groups_whole(splits, all_groups)
    if config.splits is None and len(given) < len(cases):
        classes = None
        if config.stratify not in (None, BY_LABEL):
            classes = column_classes(CaseTable.of(cases).column(config.stratify, "stratify"))
        splits = assign_splits(
            all_groups, ratios=config.ratios(), seed=config.seed, assigned=splits, classes=classes
        )
    elif config.folds is None and config.stratify is not None:
        notes.append("--stratify has no effect: the splits are given, and there are no folds")
    return cases, splits


def _read_splits(
    path: Path, fold: int | None, known: set[str], frames: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    content = read_json(path)
    if isinstance(content, list):
        if not content:
            raise DatasetError(f"{path} holds no folds")
        if fold is None and len(content) > 1:
            raise DatasetError(f"{path} holds {len(content)} folds; choose one with --fold")
        if not (fold or 0) < len(content):
            raise DatasetError(f"{path} holds {len(content)} folds, there is no --fold {fold}")
        content = content[fold or 0]
    elif fold is not None:
        raise DatasetError(f"--fold {fold} was given, but {path} holds no list of folds")
    if not isinstance(content, dict) or not set(content) <= set(SPLITS):
        raise DatasetError(f"{path} must hold lists of case ids under train, val and test")
    assigned: dict[str, str] = {}
    for split in SPLITS:
        names = content.get(split, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DatasetError(f"{path} must hold a list of case ids under {split}")
        for name in chain.from_iterable(frames.get(name, [name]) for name in names):
            if assigned.setdefault(name, split) != split:
                raise DatasetError(f"{path} puts {name} into {assigned[name]} and {split}")
    unknown = sorted(set(assigned) - known)
    if unknown:
        raise DatasetError(
            f"{path} names {len(unknown)} cases that do not exist: {first_few(unknown)}"
            f"{did_you_mean(unknown[0], known)}"
        )
    return assigned
