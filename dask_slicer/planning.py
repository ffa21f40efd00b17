"""How a plan is made: find the cases, read their headers, assign splits; no voxel is read."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from dask_slicer.cases import Case
from dask_slicer.config import OF_ANOTHER_FORMAT, RunConfig
from dask_slicer.datasets import Dataset, find_cases
from dask_slicer.errors import (
    DatasetError,
    MissingFile,
    MissingLabel,
    OutputError,
    as_case_error,
)
from dask_slicer.geometry import Grid, align, axis_codes, spacing
from dask_slicer.journal import FailedCase
from dask_slicer.nifti import NiftiHeader, read_header
from dask_slicer.plans import CasePlan, RunPlan, by_split, case_digest
from dask_slicer.splits import SPLITS, assign_splits, check_groups_whole
from dask_slicer.words import nearest, some

# Reading a header is waiting for the disk.
_HEADER_THREADS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierSplits:
    """What earlier runs into the same output have settled.

    Attributes
    ----------
    splits : mapping of case id to split
        A case stays in its split.
    groups : callable
        Returns the patient of each case that was written. It is called only if some of these cases
        are no longer in the dataset, because reading every record of an output takes time.
    """

    splits: Mapping[str, str] = field(default_factory=dict)
    groups: Callable[[], Mapping[str, str]] = dict


def make_plan(config: RunConfig, earlier: EarlierSplits | None = None) -> RunPlan:
    """Return what a run with this configuration would do; reads headers, writes nothing.

    The output is not looked at: `prepare.prepare_plan` does that.

    Parameters
    ----------
    config : RunConfig
    earlier : EarlierSplits, optional
        Without, as if there had been no earlier run.

    Returns
    -------
    RunPlan
        What is wrong with single cases stands in `failures`, with the dataset in `problems`.

    Raises
    ------
    DatasetError
        If there is no case, or splits or `only` do not fit the cases.
    OutputError
        If earlier runs put cases into other splits than those now given.
    """
    earlier = earlier or EarlierSplits()
    dataset = find_cases(config.input_dir, include_test=config.include_test)
    notes = list(dataset.notes)
    if config.prune:
        here = {case.case_id for case in dataset.cases}
        kept = {case_id: split for case_id, split in earlier.splits.items() if case_id in here}
        earlier = replace(earlier, splits=kept)
    has_labels = any(case.label is not None for case in dataset.cases)
    if config.min_foreground > 0 and not has_labels:
        raise DatasetError("min_foreground needs labels, and no case of this dataset has one")
    groups = _groups(dataset, config, notes)
    cases, splits = _splits(dataset.cases, groups, config, earlier, notes)
    _check_only(config.only, cases)
    n_modalities = Counter(len(case.images) for case in cases).most_common(1)[0][0]

    def planned(case: Case) -> CasePlan:
        plan = CasePlan(case=case, split=splits[case.case_id], group=groups[case.case_id])
        for _ in range(config.retries + 1):
            try:
                if case.label is None and has_labels and not config.allow_missing_labels:
                    raise MissingLabel(
                        "no label for this case, though others have one; add it, "
                        "or use --allow_missing_labels"
                    )
                if len(case.images) != n_modalities:
                    raise MissingFile(f"found {len(case.images)} of {n_modalities} images")
                return _described(plan, config, dataset.root)
            except Exception as error:  # whatever it is, the other cases go on
                found = as_case_error(error, step="plan")
                if not found.retriable:
                    break
        problem = FailedCase(
            case_id=case.case_id, step="plan", kind=found.kind, message=found.one_line
        )
        return replace(plan, problem=problem)

    with ThreadPoolExecutor(_HEADER_THREADS) as threads:
        described = tuple(threads.map(planned, cases))
    _note_unoriented(described, notes)
    if not has_labels:
        notes.append("no case has a label; slices will hold images only")
    _note_empty_splits(described, config, notes)
    unused = OF_ANOTHER_FORMAT[config.format]
    if getattr(config, unused) != RunConfig.model_fields[unused].default:
        notes.append(f"--{unused} has no effect with --format {config.format}")
    return RunPlan(
        config=config,
        layout=dataset.layout,
        reason=dataset.reason,
        cases=described,
        splits=by_split(splits),
        notes=tuple(notes),
        problems=dataset.problems,
    )


def grids_of(headers: Sequence[NiftiHeader], *, has_label: bool) -> list[Grid]:
    """Return where a case's files lie, images first, the label last."""
    grids = []
    for number, header in enumerate(headers):
        is_label = has_label and number == len(headers) - 1
        name = f"{'label' if is_label else 'image'} {header.path}"
        grids.append(Grid(shape=header.shape, affine=header.affine, name=name))
    return grids


def _described(plan: CasePlan, config: RunConfig, root: Path) -> CasePlan:
    """Return a case's plan with what its headers say."""
    case = plan.case
    headers = [read_header(path) for path in case.files]
    _, grid = align(grids_of(headers, has_label=plan.has_label), config.plane)
    images = headers[: len(case.images)]
    sources = [(_relative(path, root), *_size_and_mtime(path)) for path in case.files]
    return replace(
        plan,
        digest=case_digest(
            config.slice_settings,
            split=plan.split,
            sources=sources,
            allow_missing_labels=config.allow_missing_labels,
            has_label=plan.has_label,
        ),
        sources=tuple(path for path, _, _ in sources[: len(images)]),
        shape=grid.shape,
        spacing=spacing(grid.affine),
        orientation=axis_codes(images[0].affine),
        dtypes=tuple(str(header.dtype.newbyteorder("=")) for header in images),
        file_bytes=sum(header.file_bytes for header in headers),
        voxel_bytes=sum(header.voxel_bytes for header in headers),
        oriented=images[0].oriented,
    )


def _relative(path: str, root: Path) -> str:
    return PurePath(os.path.relpath(path, root)).as_posix()


def _size_and_mtime(path: str) -> tuple[int, int]:
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns


def _note_unoriented(cases: Iterable[CasePlan], notes: list[str]) -> None:
    unknown = [case.case_id for case in cases if not case.oriented]
    if unknown:
        notes.append(
            f"{len(unknown)} images say nothing of their orientation (sform and qform code 0), "
            f"taken as LAS as nibabel does: {some(unknown)}"
        )


def _note_empty_splits(cases: Iterable[CasePlan], config: RunConfig, notes: list[str]) -> None:
    filled = {case.split for case in cases if case.problem is None}
    wanted = {case.split for case in cases}
    if config.splits is None:
        wanted |= {split for split, ratio in config.ratios().items() if ratio > 0}
    empty = [split for split in SPLITS if split in wanted - filled]
    if empty:
        notes.append(f"no case that can be run is in {' or '.join(empty)}")


# -- splits ----------------------------------------------------------------------------------------


def _groups(dataset: Dataset, config: RunConfig, notes: list[str]) -> dict[str, str]:
    groups = {}
    unmatched = []
    for case in dataset.cases:
        # What a manifest says stands; what a layout suggests gives way to a regex.
        suggested = config.group_regex is not None and dataset.layout != "manifest"
        group = None if suggested else case.group
        if group is None and config.group_regex is not None:
            group = _group_by_regex(case.case_id, config.group_regex)
            if group is None:
                unmatched.append(case.case_id)
        groups[case.case_id] = case.case_id if group is None else group
    if unmatched:
        notes.append(
            f"group_regex does not match {len(unmatched)} case ids, each is a group of its own: "
            f"{some(unmatched)}"
        )
    return groups


def _group_by_regex(case_id: str, regex: str) -> str | None:
    match = re.search(regex, case_id)
    return match.group(1) if match else None


def _splits(
    cases: Sequence[Case],
    groups: Mapping[str, str],
    config: RunConfig,
    earlier: EarlierSplits,
    notes: list[str],
) -> tuple[list[Case], dict[str, str]]:
    """Return the cases that take part, and the split of each, and of those assigned before."""
    assigned = earlier.splits
    given = {case.case_id: case.split for case in cases if case.split is not None}
    if config.splits is not None and len(given) < len(cases):
        given |= _read_splits(config.splits, config.fold, {case.case_id for case in cases})
        left_out = [case.case_id for case in cases if case.case_id not in given]
        if left_out:
            notes.append(f"{len(left_out)} cases that {config.splits.name} does not name are "
                         f"left out: {some(left_out, most=20)}")  # fmt: skip
        cases = [case for case in cases if case.case_id in given]
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
    # Cases of earlier runs that are gone from the dataset still hold their patient's split.
    everyone = {name: name for name in assigned}
    if assigned.keys() - groups.keys():
        written = earlier.groups()
        everyone |= {name: group for name, group in written.items() if name in assigned}
    everyone |= groups
    check_groups_whole({**assigned, **given}, everyone)
    if config.splits is not None or len(given) == len(cases):
        return list(cases), {**assigned, **given}
    splits = assign_splits(
        everyone, ratios=config.ratios(), seed=config.seed, assigned={**assigned, **given}
    )
    return list(cases), splits


def _read_splits(path: Path, fold: int | None, known: set[str]) -> dict[str, str]:
    described = _read_json(path)
    if isinstance(described, list):
        if not described:
            raise DatasetError(f"{path} holds no folds")
        if fold is None and len(described) > 1:
            raise DatasetError(f"{path} holds {len(described)} folds; choose one with --fold")
        if not (fold or 0) < len(described):
            raise DatasetError(f"{path} holds {len(described)} folds, there is no --fold {fold}")
        described = described[fold or 0]
    elif fold is not None:
        raise DatasetError(f"--fold {fold} was given, but {path} holds no list of folds")
    if not isinstance(described, dict) or not set(described) <= set(SPLITS):
        raise DatasetError(f"{path} must hold lists of case ids under train, val and test")
    assigned: dict[str, str] = {}
    for split in SPLITS:
        names = described.get(split, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DatasetError(f"{path} must hold a list of case ids under {split}")
        for name in names:
            if assigned.setdefault(name, split) != split:
                raise DatasetError(f"{path} puts {name} into {assigned[name]} and {split}")
    unknown = sorted(set(assigned) - known)
    if unknown:
        raise DatasetError(
            f"{path} names {len(unknown)} cases that do not exist: {some(unknown)}"
            f"{nearest(unknown[0], known)}"
        )
    return assigned


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"cannot read {path}: {error}") from None


def _check_only(only: Sequence[str], cases: Iterable[Case]) -> None:
    known = {case.case_id for case in cases}
    for name in only:
        if name not in known:
            raise DatasetError(f"--only {name}: there is no such case{nearest(name, known)}")
