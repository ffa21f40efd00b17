"""Planning a run: find the cases, read their headers, assign splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path, PurePath

from dask_slicer.config.fields import PER_MODALITY
from dask_slicer.config.schema import UNUSED_BY_FORMAT, RunConfig
from dask_slicer.core.geometry import align, axis_codes, spacing
from dask_slicer.core.splits import SPLITS
from dask_slicer.errors import DatasetError, MissingFile, MissingLabel, as_case_error
from dask_slicer.inputs.case import Case
from dask_slicer.inputs.discovery import find_cases
from dask_slicer.inputs.layouts.base import InputOptions
from dask_slicer.inputs.load import grids_of
from dask_slicer.inputs.readers import read_header
from dask_slicer.planning.assignment import case_groups, case_splits
from dask_slicer.planning.plan import CasePlan, RunPlan, by_split, case_digest
from dask_slicer.records import FailedCase
from dask_slicer.utils.formatting import did_you_mean, first_few, format_value, plural

# Reading a header is mostly waiting for the disk.
_HEADER_THREADS = 16


def make_plan(
    config: RunConfig,
    *,
    assigned: Mapping[str, str] | None = None,
    assigned_groups: Callable[[], Mapping[str, str]] = dict,
) -> RunPlan:
    """Return the plan of a run; reads headers, writes nothing.

    Cases keep the split that earlier runs `assigned`. `assigned_groups` returns the patients of
    their cases; it reads the whole journal, so it is called only if some left the dataset.
    """
    assigned = assigned or {}
    names = (field.name for field in fields(InputOptions))
    dataset = find_cases(
        config.input_dir,
        InputOptions(**{name: getattr(config, name) for name in names}),
        skip=config.output_dir,
        allow_missing_labels=config.allow_missing_labels,
    )
    root = config.input_dir if config.input_dir.is_dir() else config.input_dir.parent
    notes = list(dataset.notes)
    if config.prune:
        present = {case.case_id for case in dataset.cases}
        assigned = {case_id: split for case_id, split in assigned.items() if case_id in present}
    has_labels = any(case.has_label for case in dataset.cases)
    if config.min_foreground > 0 and not has_labels and not dataset.problems:
        raise DatasetError("min_foreground needs labels, and no case of this dataset has one")
    groups = case_groups(dataset, config, notes)
    cases, splits = case_splits(dataset.cases, groups, config, assigned, assigned_groups, notes)
    known = {case.case_id for case in cases}
    for name in config.only:
        if name not in known:
            raise DatasetError(f"--only {name}: there is no such case{did_you_mean(name, known)}")
    n_modalities = Counter(len(case.images) for case in cases).most_common(1)[0][0]
    _check_modalities(config, n_modalities)

    def plan_case(case: Case) -> CasePlan:
        plan = CasePlan(case=case, split=splits[case.case_id], group=groups[case.case_id])
        for _ in range(config.retries + 1):
            try:
                if not case.has_label and has_labels and not config.allow_missing_labels:
                    raise MissingLabel(
                        "no label for this case, but others have one; add it, "
                        "or use --allow_missing_labels"
                    )
                if len(case.images) != n_modalities:
                    raise MissingFile(f"found {len(case.images)} of {n_modalities} images")
                return _with_headers(plan, config, root)
            except Exception as error:  # any error: the other cases continue
                failure = as_case_error(error, step="plan")
                if not failure.retriable:
                    break
        problem = FailedCase(
            case_id=case.case_id, step="plan", kind=failure.kind, message=failure.one_line
        )
        return replace(plan, problem=problem)

    with ThreadPoolExecutor(_HEADER_THREADS) as threads:
        plans = tuple(threads.map(plan_case, cases))
    return RunPlan(
        config=config,
        layout=dataset.layout,
        reason=dataset.reason,
        cases=plans,
        splits=by_split(splits),
        notes=(*notes, *_notes(plans, config, has_labels=has_labels)),
        problems=tuple(dataset.problems),
        files=dataset.files,
        channel_names=dataset.channel_names,
        label_names=dataset.label_names,
    )


def _check_modalities(config: RunConfig, n_modalities: int) -> None:
    """Raise a DatasetError unless settings for each modality have as many values."""
    for name in PER_MODALITY:
        value = getattr(config, name)
        if isinstance(value, tuple) and len(value) != n_modalities:
            raise DatasetError(
                f"{name} has {plural(len(value), 'value')} ({format_value(value)}), but a case of "
                f"this dataset has {n_modalities} modalities; give one value for all, or one each"
            )


def _with_headers(plan: CasePlan, config: RunConfig, root: Path) -> CasePlan:
    """Return a case's plan, filled in from its headers."""
    case = plan.case
    headers = [read_header(path) for path in case.files]
    _, grid = align(grids_of(headers, has_label=plan.has_label), config.plane)
    images = headers[: len(case.images)]
    sources = []
    for path in case.files:
        status = Path(path).stat()
        relative = PurePath(os.path.relpath(path, root)).as_posix()
        sources.append((relative, status.st_size, status.st_mtime_ns))
    return replace(
        plan,
        digest=case_digest(plan, config, sources),
        sources=tuple(path for path, _, _ in sources[: len(images)]),
        shape=grid.shape,
        spacing=spacing(grid.affine),
        orientation=axis_codes(images[0].affine),
        dtypes=tuple(str(header.dtype.newbyteorder("=")) for header in images),
        file_bytes=sum(header.file_bytes for header in headers),
        voxel_bytes=sum(header.voxel_bytes for header in headers),
        oriented=images[0].oriented,
    )


def _notes(cases: Sequence[CasePlan], config: RunConfig, *, has_labels: bool) -> Iterator[str]:
    """Yield notes on a plan whose headers have been read."""
    unknown = [case.case_id for case in cases if not case.oriented]
    if unknown:
        yield (
            f"{len(unknown)} images do not define their orientation (sform and qform code 0), "
            f"LAS is assumed, as in nibabel: {first_few(unknown)}"
        )
    if not has_labels:
        yield "no case has a label; slices will hold images only"
    filled = {case.split for case in cases if case.problem is None}
    wanted = {case.split for case in cases}
    if config.splits is None:
        wanted |= {split for split, ratio in config.ratios().items() if ratio > 0}
    empty = [split for split in SPLITS if split in wanted - filled]
    if empty:
        yield f"no case that can be run is in {' or '.join(empty)}"
    unused = UNUSED_BY_FORMAT[config.format]
    if getattr(config, unused) != RunConfig.model_fields[unused].default:
        yield f"--{unused} has no effect with --format {config.format}"
