"""Estimates of disk, files, memory and workers for a plan."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from math import prod
from statistics import median
from typing import Any

import numpy as np

from dask_slicer.config.dataset_settings import BY_LABEL
from dask_slicer.config.file_settings import FileTemplate
from dask_slicer.config.schema import SliceSettings
from dask_slicer.core.splits import SPLITS
from dask_slicer.planning.case_table import class_counts, column_classes
from dask_slicer.planning.memory import least_limit, peak_bytes, scratch_lines
from dask_slicer.planning.plan import CasePlan, RunPlan
from dask_slicer.planning.step_lines import step_lines
from dask_slicer.utils import system
from dask_slicer.utils.formatting import first_few, format_bytes, format_shape, plural

# Of one file, the most of them npz: member names, zip headers and npy headers; metadata in
# characters of 4 bytes, a fixed part and one per modality. Deflated, they take about 1 kB in all.
_FILE_HEADERS = 1_000
_METADATA_LENGTH, _METADATA_PER_MODALITY = 1_000, 120
_OVERHEAD_DEFLATED = 1_000
# The most that deflating noise can add.
_DEFLATE_EXPANSION = 1.01
# Normalised float32 planes deflate a little worse than the integers they come from. Measured on CT
# and MR; an estimate, not a bound.
_FLOAT_OVER_GZIP = 1.5
_TYPICAL_GZIP_RATIO = 2.0
_INTEGERS_OVER_GZIP = {"uint8": 0.6, "uint16": 0.85}
# In Zarr, which shuffles bytes before it compresses them.
_SHUFFLED_OVER_GZIP = {"source": 1.2, "float16": 1.1, "uint8": 0.6}
# Files of a case in a Zarr store: the group's metadata, and metadata and shard of image, label and
# slice_index. Bytes of these files without the shards.
_ZARR_FILES = 7
_ZARR_OVERHEAD = 6_000


def output_bytes(case: CasePlan, settings: SliceSettings) -> tuple[int, int]:
    """Return the bytes of a case's slices: upper bound, and estimate."""
    sizes = [_output_bytes(part, settings) for part in case.parts]
    return sum(most for most, _ in sizes), sum(likely for _, likely in sizes)


def _output_bytes(case: CasePlan, settings: SliceSettings) -> tuple[int, int]:
    """Return the bytes of a case's slices in one plane."""
    if settings.format != "zarr":
        kinds = [_template_bytes(case, settings, each) for each in _templates(case, settings)]
        return sum(most for most, _ in kinds), sum(likely for _, likely in kinds)
    n_slices, n_planes = case.slice_shape[0], len(case.case.images) * settings.n_windows
    dtypes = case.dtypes if settings.dtype == "source" else [settings.dtype]
    label = _itemsize(settings.label_dtype) if case.has_label else 0
    return _stored_bytes(
        case,
        n_slices=n_slices,
        n_planes=n_planes,
        pixel_bytes=n_planes * _itemsize(*dtypes) + label,
        overhead=_ZARR_OVERHEAD // max(n_slices, 1) + 1,
        is_raw=settings.compression == "none",
        over_gzip=_SHUFFLED_OVER_GZIP.get(settings.dtype, _FLOAT_OVER_GZIP),
    )


def _templates(case: CasePlan, settings: SliceSettings) -> list[FileTemplate]:
    """Return the files that a case becomes."""
    templates = settings.templates_of(case.split)
    return [each for each in templates if case.has_label or {*each.contents} != {"label"}]


def _template_bytes(
    case: CasePlan, settings: SliceSettings, template: FileTemplate
) -> tuple[int, int]:
    """Return the bytes of a case's files of one template."""
    contents, n_planes = template.contents, 0
    if "image" in contents:
        n_planes = settings.n_channels(len(case.case.images)) * template.copies
    n_characters = 0
    if "metadata" in contents:
        n_characters = (
            _METADATA_LENGTH
            + len(case.case_id)
            + sum(_METADATA_PER_MODALITY + len(source) for source in case.sources)
            + sum(len(path) + len(note) + 6 for path, note in case.header_notes)
        )
    label = _itemsize(settings.label_dtype) if "label" in contents and case.has_label else 0
    n_slices = case.most_slices if template.is_per_slice else case.slice_shape[0]
    overhead = _FILE_HEADERS + 4 * n_characters
    if not template.is_per_slice:
        overhead = overhead // max(n_slices, 1) + 1
    return _stored_bytes(
        case,
        n_slices=n_slices,
        n_planes=n_planes,
        pixel_bytes=n_planes * _itemsize(settings.dtype) + label,
        overhead=overhead,
        is_raw=settings.compression_level == 0 or template.suffix == ".npy",
        over_gzip=_INTEGERS_OVER_GZIP.get(settings.dtype, _FLOAT_OVER_GZIP),
    )


def _stored_bytes(
    case: CasePlan,
    *,
    n_slices: int,
    n_planes: int,
    pixel_bytes: int,
    overhead: int,
    is_raw: bool,
    over_gzip: float,
) -> tuple[int, int]:
    """Return the bytes of slices, with `n_planes` of an image each: upper bound, and estimate."""
    pixels = prod(case.slice_shape[1:])
    stored = n_slices * (pixel_bytes * pixels + overhead)
    if is_raw:
        return stored, stored
    most = int(stored * _DEFLATE_EXPANSION)
    ratio = case.voxel_bytes / case.file_bytes if case.file_bytes else _TYPICAL_GZIP_RATIO
    if ratio < 1.05:
        ratio = _TYPICAL_GZIP_RATIO  # not gzipped: the ratio is unknown
    n_pixels = prod(case.shape) * len(case.case.images)
    per_plane = case.voxel_bytes / max(n_pixels, 1) * pixels / ratio * over_gzip
    likely = n_slices * (per_plane * n_planes + min(overhead, _OVERHEAD_DEFLATED))
    return most, min(int(likely), most)


@lru_cache
def _itemsize(*dtypes: str) -> int:
    """Return the bytes of a number of a dtype that holds those of some dtypes."""
    return np.result_type(*dtypes).itemsize


def output_files(case: CasePlan, settings: SliceSettings) -> int:
    """Return the largest number of files of a case."""
    if settings.format != "zarr":
        templates = _templates(case, settings)
        return sum(case.most_slices if each.is_per_slice else 1 for each in templates)
    return (_ZARR_FILES if case.has_label else _ZARR_FILES - 2) * len(case.parts)


def suggest_workers(
    *, n_cpus: int, memory_bytes: int, peak: int, n_cases: int, rotational: bool
) -> tuple[int, str]:
    """Return the suggested number of workers, and what limits it."""
    by_memory = max(memory_bytes // peak, 1)
    memory, each = format_bytes(memory_bytes), format_bytes(peak)
    limits = [
        (n_cpus, f"CPU: this process may use {n_cpus}"),
        (by_memory, f"memory: {memory} holds {by_memory} workers of {each}"),
        (max(n_cases, 1), f"only {plural(n_cases, 'case')} can be run"),
    ]
    if rotational:
        limits.append((2, "disk: a spinning disk slows down with more than 2 readers"))
    return min(limits, key=lambda limit: limit[0])


def outliers(cases: Iterable[CasePlan]) -> list[str]:
    """Return lines about cases with unusual spacing, shape, orientation or dtype.

    A property that is unusual in over a quarter of the cases gets one line: it varies.
    """
    ids, shapes, spacings, orientations, dtypes = _columns(cases)
    if len(ids) < 3:
        return []
    lines: list[str] = []
    for name, triples in (("spacing (mm)", spacings), ("shape", shapes)):
        medians = [median(lengths) for lengths in zip(*triples, strict=True)]
        middle = format_shape(medians)
        table, center = np.array(triples), np.array(medians)
        is_usual = ((table >= center / 2) & (table <= center * 2)).all(axis=1)
        unusual = [
            f"{ids[number]}: {name} {format_shape(triples[number])}, median {middle}"
            for number in np.flatnonzero(~is_usual).tolist()
        ]
        low, high = (format_shape(end.tolist()) for end in (table.min(axis=0), table.max(axis=0)))
        lines += _few_or_one(unusual, len(ids), f"{name} varies from {low} to {high}")
    for name, values in (("stored as", orientations), ("dtype", dtypes)):
        counts = Counter(values).most_common()
        unusual = [
            f"{case_id}: {name} {value}, most cases {counts[0][0]}"
            for case_id, value in zip(ids, values, strict=True)
            if value != counts[0][0]
        ]
        shown = ", ".join(f"{count} {value}" for value, count in counts)
        lines += _few_or_one(unusual, len(ids), f"{name}: {shown}")
    return lines


def _columns(cases: Iterable[CasePlan]) -> Sequence[list[Any]]:
    """Return id, shape, spacing, orientation and dtypes of the cases without a problem."""
    known: dict[object, Any] = {}  # most cases have equal values: each is in memory once
    columns: Sequence[list[Any]] = ([], [], [], [], [])
    for case in cases:
        if case.problem is None:
            values = (case.shape, case.spacing, case.orientation, "/".join(case.dtypes))
            for column, value in zip(columns[1:], values, strict=True):
                column.append(known.setdefault(value, value))
            columns[0].append(case.case_id)
    return columns


def _few_or_one(unusual: list[str], n_cases: int, instead: str) -> list[str]:
    return unusual if len(unusual) <= max(n_cases // 4, 1) else [instead]


def plan_lines(plan: RunPlan, needs: Mapping[str, Any] | None = None) -> list[str]:
    """Return a summary of a plan, as lines of text; `needs` are its `plan_needs`, if known."""
    lines = [f"Input: {plan.config.input_dir}", f"Layout: {plan.layout} ({plan.reason})"]
    counts = Counter(case.split for case in plan.cases)
    splits = ", ".join(f"{counts[split]} {split}" for split in plan.splits)
    bad = f", {plural(len(plan.failures), 'case')} cannot be run" if plan.failures else ""
    lines.append(f"Plan: {plural(len(plan.cases), 'case')} ({splits}){bad}")
    lines += _strata_lines(plan)
    lines += [] if plan.folds is None else plan.folds.lines()
    if len(plan.channel_names) == plan.n_modalities and any(plan.channel_names):
        names = (f"{number} {name}" for number, name in enumerate(plan.channel_names))
        lines.append(f"Channels: {', '.join(names)}")
    if plan.structures:
        names = (f"{value} {name}" for name, value in plan.structures.items())
        lines.append(f"Structures: {first_few(list(names), most=20)}")
    lines += [f"Step: {line}" for line in step_lines(plan.config, plan.runnable)]
    if plan.runnable:
        needs = needs or plan_needs(plan)
        likely, free = needs["output_bytes_estimate"], needs["disk_free_bytes"]
        lines.append(
            f"Slices: {plan.slices_text}, "
            f"{plural(plan.config.n_channels(plan.n_modalities), 'channel')}, "
            f"about {format_bytes(likely)} (at most {format_bytes(needs['output_bytes_at_most'])}) "
            + (f"to {plan.config.output_dir}" if plan.config.has_output else "on disk")
        )
        if free is not None and likely > free:
            lines.append(f"Note: only {format_bytes(free)} of disk space is free")
        lines += scratch_lines(plan.runnable, plan.config, peak=plan.peak_bytes)
    return lines + [f"Note: {note}" for note in plan.notes]


def _strata_lines(plan: RunPlan) -> list[str]:
    """Return the number of cases of each class in the splits, if a column stratifies them."""
    name = plan.config.stratify
    if name in (None, BY_LABEL):
        return []
    classes = column_classes(plan.table.columns.get(name, {}))
    cases = {
        split: [case.case_id for case in plan.cases if case.split == split] for split in SPLITS
    }
    counts = [f"{split} {class_counts(ids, classes)}" for split, ids in cases.items() if ids]
    return [f"Stratified by {name}: {'; '.join(counts)}"]


def plan_json(plan: RunPlan) -> Iterator[str]:
    """Yield a plan as JSON, in parts: of many cases, it takes a kilobyte each."""
    steps = step_lines(plan.config, plan.runnable)
    content = {
        "layout": plan.layout,
        "reason": plan.reason,
        "config": plan.config.model_dump(mode="json")
        | ({} if plan.config.has_output else {"output_dir": None}),
        "cases": [],
        "files": [],
        "splits": plan.splits,
        "folds": plan.folds.content() if plan.folds is not None and plan.folds.fold_of else None,
        "num_cases": len(plan.cases),
        "num_slices": plan.n_slices,
        **({"steps": steps} if steps else {}),
        "outliers": outliers(plan.cases),
        "notes": list(plan.notes),
        "problems": [{"case_id": None, "kind": None, "message": text} for text in plan.problems]
        + [
            {"case_id": failure.case_id, "kind": failure.kind, "message": failure.message}
            for failure in plan.failures
        ],
        **plan_needs(plan),
    }
    rest = json.dumps(content, indent=2, ensure_ascii=False)
    roles = (
        {"path": f.path, "role": f.role, "detail": f.detail, "case_id": f.case_id or None}
        for f in plan.files
    )
    cases = (_case_json(case, plan) for case in plan.cases)
    for name, items in (("cases", cases), ("files", roles)):
        before, start, rest = rest.partition(f'\n  "{name}": [')
        yield before + start
        yield from _json_items(items)
    yield rest


def _json_items(items: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the items of a JSON array at the first level, without its brackets."""
    separator = ""
    for item in items:
        text = json.dumps(item, indent=2, ensure_ascii=False).replace("\n", "\n    ")
        yield f"{separator}\n    {text}"
        separator = ","
    if separator:
        yield "\n  "


def plan_needs(plan: RunPlan) -> dict[str, Any]:
    """Return disk and memory that a run needs, and the suggested number of workers."""
    n_files = at_most = estimate = 0
    for case in plan.runnable:
        most, likely = output_bytes(case, plan.config)
        at_most, estimate = at_most + most, estimate + likely
        n_files += output_files(case, plan.config)
    peak = plan.peak_bytes
    n_workers, reason = suggest_workers(
        n_cpus=system.cpu_count(),
        memory_bytes=system.memory_bytes(),
        peak=peak,
        n_cases=len(plan.runnable),
        rotational=plan.config.has_output and system.is_rotational(plan.config.output_dir),
    )
    return {
        "output_files": n_files,
        "output_bytes_at_most": at_most,
        "output_bytes_estimate": estimate,
        "disk_free_bytes": system.free_bytes(plan.config.output_dir)
        if plan.config.has_output
        else None,
        "peak_bytes_per_worker": peak,
        "memory_bytes": system.memory_bytes(),
        "num_workers": n_workers,
        "num_workers_reason": reason,
    }


def _case_json(case: CasePlan, plan: RunPlan) -> dict[str, Any]:
    sound = case.problem is None
    masks = {mask.structure: mask.path for mask in case.case.masks}
    return {
        "case_id": case.case_id,
        "split": case.split,
        "images": [path or None for path in case.case.images],
        "label": case.case.label,
        **({"masks": masks} if case.case.merges_masks else {}),
        "shape": list(case.shape) if sound else None,
        "spacing": list(case.spacing) if sound else None,
        **(_after_steps(case, plan) if sound and plan.config.changed_steps else {}),
        **({"planes": _planes_json(case, plan)} if sound and case.planes else {}),
        "orientation": case.orientation or None,
        "dtypes": list(case.dtypes),
        "peak_bytes": peak_bytes(case, plan.config) if sound else None,
        "least_bytes": least_limit(case, plan.config) if sound else None,
    }


def _planes_json(case: CasePlan, plan: RunPlan) -> dict[str, Any]:
    """Return shape and spacing of a case in each of several planes."""
    return {
        part.plane: {
            "shape": list(part.shape),
            "spacing": list(part.spacing),
            **_after_steps(part, plan),
        }
        for part in case.parts
    }


def _after_steps(case: CasePlan, plan: RunPlan) -> dict[str, Any]:
    most, likely = output_bytes(case, plan.config)
    return {
        "slice_shape": list(case.slice_shape),
        "slice_spacing": list(case.new_spacing or case.spacing),
        "slices_at_most": case.most_slices,
        "output_bytes_at_most": most,
        "output_bytes_estimate": likely,
    }
