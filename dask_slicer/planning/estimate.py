"""Estimates of disk, files, memory and workers for a plan."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from statistics import median
from typing import Any

import numpy as np

from dask_slicer.config.schema import SliceSettings
from dask_slicer.planning.plan import CasePlan, RunPlan, peak_bytes
from dask_slicer.utils import system
from dask_slicer.utils.formatting import format_bytes, format_shape, plural

# Of one npz file: member names, zip headers and npy headers; the fixed part of the metadata, in
# characters of 4 bytes, and what each modality adds to it. Deflated, all of it takes about 1 kB.
_NPZ_HEADERS = 1_000
_METADATA_LENGTH, _METADATA_PER_MODALITY = 1_000, 120
_NPZ_OVERHEAD_DEFLATED = 1_000
# Deflating noise makes it this much longer at most.
_DEFLATE_EXPANSION = 1.01
# Normalised float32 slices deflate a little worse than the integers they come from, each plane of a
# window alike. Measured on CT and MR; an estimate, not a bound.
_FLOAT_OVER_GZIP = 1.5
_TYPICAL_GZIP_RATIO = 2.0
# In Zarr, where bytes are shuffled before they are compressed.
_SHUFFLED_OVER_GZIP = {"source": 1.2, "float16": 1.1}
# Of a case in a Zarr store: the group, and for each of image, label and slice_index its metadata
# and its shard; and what these take, shards aside.
_ZARR_FILES = 7
_ZARR_OVERHEAD = 6_000


def output_bytes(case: CasePlan, settings: SliceSettings) -> tuple[int, int]:
    """Return how many bytes a case's slices take, at most and probably."""
    n_slices, height, width = case.shape
    n_modalities = len(case.case.images)
    pixels = height * width
    of_floats = settings.dtype != "source"
    image_dtype = np.dtype(settings.dtype) if of_floats else np.result_type(*case.dtypes)
    label = pixels * np.dtype(settings.label_dtype).itemsize if case.has_label else 0
    # Planes that a slice takes on disk: its window's, or its own.
    channels = n_modalities
    texts = _ZARR_OVERHEAD if n_slices == 0 else _ZARR_OVERHEAD // n_slices + 1
    stored_raw = settings.compression == "none"
    if settings.format == "npz":
        channels *= 2 * settings.window_size + 1
        n_characters = (
            _METADATA_LENGTH
            + len(case.case_id)
            + sum(_METADATA_PER_MODALITY + len(source) for source in case.sources)
        )
        texts = _NPZ_HEADERS + 4 * n_characters
        stored_raw = settings.compression_level == 0
    stored = n_slices * (channels * pixels * image_dtype.itemsize + label + texts)
    if stored_raw:
        return stored, stored
    most = int(stored * _DEFLATE_EXPANSION)
    ratio = case.voxel_bytes / case.file_bytes if case.file_bytes else _TYPICAL_GZIP_RATIO
    if ratio < 1.05:
        ratio = _TYPICAL_GZIP_RATIO  # not gzipped: nothing is known
    longer = _FLOAT_OVER_GZIP
    if settings.format == "zarr":
        longer = _SHUFFLED_OVER_GZIP.get(settings.dtype, longer)
    per_plane = case.voxel_bytes / max(n_slices, 1) / n_modalities / ratio * longer
    likely = n_slices * (per_plane * channels + min(texts, _NPZ_OVERHEAD_DEFLATED))
    return most, min(int(likely), most)


def output_files(case: CasePlan, settings: SliceSettings) -> int:
    """Return how many files a case becomes, at most."""
    if settings.format == "npz":
        return case.shape[0]
    return _ZARR_FILES if case.has_label else _ZARR_FILES - 2


def suggest_workers(
    *, n_cpus: int, memory_bytes: int, peak: int, n_cases: int, rotational: bool
) -> tuple[int, str]:
    """Return how many workers suit this machine and plan, and what limits them.

    Examples
    --------
    >>> suggest_workers(
    ...     n_cpus=16, memory_bytes=8 << 30, peak=3 << 30, n_cases=100, rotational=False
    ... )
    (2, 'memory: 8.6 GB holds 2 workers of 3.2 GB')
    """
    by_memory = max(memory_bytes // peak, 1)
    limits = [
        (n_cpus, f"CPU: this process may use {n_cpus}"),
        (
            by_memory,
            f"memory: {format_bytes(memory_bytes)} holds {by_memory} workers of "
            f"{format_bytes(peak)}",
        ),
        (max(n_cases, 1), f"there is only {plural(n_cases, 'case')}"),
    ]
    if rotational:
        limits.append((2, "disk: a spinning disk slows down with more than 2 readers"))
    return min(limits, key=lambda limit: limit[0])


def outliers(cases: Iterable[CasePlan]) -> list[str]:
    """Return which cases are unlike the rest in spacing, shape, orientation or dtype.

    Where more than a quarter of the cases would be named, there is no rest to be unlike; then one
    line says that the property varies.
    """
    sound = [case for case in cases if case.problem is None]
    if len(sound) < 3:
        return []
    found: list[str] = []
    for name, triples in (
        ("spacing (mm)", [case.spacing for case in sound]),
        ("shape", [case.shape for case in sound]),
    ):
        middle = [median(triple[axis] for triple in triples) for axis in range(3)]
        odd = [
            f"{case.case_id}: {name} {format_shape(triple)}, median {format_shape(middle)}"
            for case, triple in zip(sound, triples, strict=True)
            if any(not m / 2 <= value <= m * 2 for value, m in zip(triple, middle, strict=True))
        ]
        low, high = ([edge(t[axis] for t in triples) for axis in range(3)] for edge in (min, max))
        found += _few_or_one(
            odd, len(sound), f"{name} varies from {format_shape(low)} to {format_shape(high)}"
        )
    for name, values in (
        ("stored as", [case.orientation for case in sound]),
        ("dtype", ["/".join(case.dtypes) for case in sound]),
    ):
        counts = Counter(values).most_common()
        odd = [
            f"{case.case_id}: {name} {value}, most {counts[0][0]}"
            for case, value in zip(sound, values, strict=True)
            if value != counts[0][0]
        ]
        shown = ", ".join(f"{count} {value}" for value, count in counts)
        found += _few_or_one(odd, len(sound), f"{name}: {shown}")
    return found


def _few_or_one(odd: list[str], n_cases: int, instead: str) -> list[str]:
    return odd if len(odd) <= max(n_cases // 4, 1) else [instead]


def plan_lines(plan: RunPlan) -> list[str]:
    """Return a plan in a few lines."""
    lines = [f"Input: {plan.config.input_dir}", f"Layout: {plan.layout} ({plan.reason})"]
    by_split = Counter(case.split for case in plan.cases)
    shares = ", ".join(f"{by_split[split]} {split}" for split in plan.splits)
    sound = len(plan.cases) - len(plan.failures)
    bad = f", {plural(len(plan.failures), 'case')} cannot be run" if plan.failures else ""
    lines.append(f"Plan: {plural(len(plan.cases), 'case')} ({shares}){bad}")
    if sound:
        most, likely = _output_bytes(plan)
        lines.append(
            f"Slices: {plan.n_slices} {plan.config.plane}, "
            f"{plural((2 * plan.config.window_size + 1) * plan.n_modalities, 'channel')}, "
            f"about {format_bytes(likely)} (at most {format_bytes(most)}) to "
            f"{plan.config.output_dir}"
        )
    free = system.free_bytes(plan.config.output_dir)
    if sound and likely > free:
        lines.append(f"Note: only {format_bytes(free)} of disk are free")
    return lines + [f"Note: {note}" for note in plan.notes]


def plan_json(plan: RunPlan) -> str:
    """Return a plan as JSON, for machines."""
    described = {
        "layout": plan.layout,
        "reason": plan.reason,
        "config": plan.config.model_dump(mode="json"),
        "cases": [_case_json(case, plan) for case in plan.cases],
        "splits": plan.splits,
        "num_cases": len(plan.cases),
        "num_slices": plan.n_slices,
        "outliers": outliers(plan.cases),
        "notes": list(plan.notes),
        "problems": [
            *({"case_id": None, "kind": None, "message": text} for text in plan.problems),
            *(
                {"case_id": failure.case_id, "kind": failure.kind, "message": failure.message}
                for failure in plan.failures
            ),
        ],
        **plan_needs(plan),
    }
    return json.dumps(described, indent=2, ensure_ascii=False)


def plan_needs(plan: RunPlan) -> dict[str, Any]:
    """Return what a run will take of disk and memory, and how many workers suit it."""
    most, likely = _output_bytes(plan)
    sound = [case for case in plan.cases if case.problem is None]
    n_workers, reason = suggest_workers(
        n_cpus=system.cpu_count(),
        memory_bytes=system.memory_bytes(),
        peak=plan.peak_bytes,
        n_cases=len(sound),
        rotational=system.is_rotational(plan.config.output_dir),
    )
    return {
        "output_files": sum(
            output_files(case, plan.config) for case in plan.cases if case.problem is None
        ),
        "output_bytes_at_most": most,
        "output_bytes_estimate": likely,
        "disk_free_bytes": system.free_bytes(plan.config.output_dir),
        "peak_bytes_per_worker": plan.peak_bytes,
        "memory_bytes": system.memory_bytes(),
        "num_workers": n_workers,
        "num_workers_reason": reason,
    }


def _output_bytes(plan: RunPlan) -> tuple[int, int]:
    sizes = [output_bytes(case, plan.config) for case in plan.cases if case.problem is None]
    return sum(most for most, _ in sizes), sum(likely for _, likely in sizes)


def _case_json(case: CasePlan, plan: RunPlan) -> dict[str, Any]:
    sound = case.problem is None
    return {
        "case_id": case.case_id,
        "split": case.split,
        "images": list(case.case.images),
        "label": case.case.label,
        "shape": list(case.shape) if sound else None,
        "spacing": list(case.spacing) if sound else None,
        "orientation": case.orientation or None,
        "dtypes": list(case.dtypes),
        "peak_bytes": peak_bytes(case, plan.config) if sound else None,
    }
