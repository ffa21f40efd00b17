"""Plans of cases that the memory of a worker does not hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dask_slicer
from dask_slicer.inputs.case import Case
from dask_slicer.planning import memory
from dask_slicer.planning.memory import (
    WORKER_BASE_BYTES,
    floor_bytes,
    least_limit,
    needs_scratch,
    peak_bytes,
    planned_limit,
    scratch_bytes,
)
from dask_slicer.planning.plan import CasePlan
from dask_slicer.utils import system

GB = 1_000_000_000
SHAPE = (1000, 1000, 1000)


def config_of(**settings: Any) -> dask_slicer.RunConfig:
    return dask_slicer.RunConfig(input_dir="a", output_dir="b", **settings)


def large_case(**facts: Any) -> CasePlan:
    """Return a case of 2 GB of int16 and a label of 1 GB, not compressed."""
    return CasePlan(
        case=Case(case_id="ct", images=("ct.nii",), label="label.nii"),
        shape=SHAPE,
        spacing=(1.0, 1.0, 1.0),
        **{"voxel_bytes": 3 * GB, "file_bytes": 3 * GB} | facts,
    )


@pytest.mark.parametrize(
    ("settings", "most_mb"),
    [
        ({}, 600),
        ({"format": "zarr"}, 600),
        ({"plane": "axial,coronal,sagittal"}, 600),
        ({"percentiles": "1,99"}, 600),
        ({"foreground": "otsu"}, 600),
        ({"spacing": "0.8,0.8,0.8"}, 800),
        ({"size": 512, "fit": "resize"}, 800),
        ({"label_map": "1:2"}, 600),
        ({"min_component_voxels": 10}, 9000),  # which are found in memory
    ],
    ids=str,
)
def test_a_large_case_needs_little_memory_with_its_voxels_in_files(
    settings: dict[str, Any], most_mb: int
) -> None:
    config, case = config_of(**settings), large_case()
    floor, peak = floor_bytes(case, config), peak_bytes(case, config)
    assert 100e6 < floor < most_mb * 1e6
    assert peak > 3.9 * GB
    assert least_limit(case, config) == floor + WORKER_BASE_BYTES
    assert needs_scratch(case, config, peak)
    assert needs_scratch(case, config, peak + WORKER_BASE_BYTES - 1)
    assert not needs_scratch(case, config, peak + WORKER_BASE_BYTES)
    assert not needs_scratch(case, config, None)


def test_components_are_found_in_memory() -> None:
    with_components = floor_bytes(large_case(), config_of(min_component_voxels=2))
    assert with_components > floor_bytes(large_case(), config_of()) + 7 * GB


def test_a_small_case_never_needs_more_with_files() -> None:
    case = CasePlan(case=Case(case_id="a", images=("a.nii",)), shape=(8, 9, 10), voxel_bytes=1440)
    assert floor_bytes(case, config_of()) == peak_bytes(case, config_of())
    assert least_limit(case, config_of()) == peak_bytes(case, config_of())


def test_room_is_planned_for_what_is_inflated_and_made() -> None:
    raw = scratch_bytes(large_case(), config_of())
    assert raw == 3 * GB + GB  # turned, and the label
    assert scratch_bytes(large_case(file_bytes=GB), config_of()) == raw + 3 * GB
    assert scratch_bytes(large_case(), config_of(spacing="1,1,0.5")) > raw + 8 * GB
    assert scratch_bytes(large_case(), config_of(foreground="otsu")) == raw + 4 * GB


@pytest.mark.parametrize(
    ("settings", "n_cases", "expected"),
    [
        ({}, 100, 16 * GB // 4),
        ({}, 2, 16 * GB // 2),
        ({"num_workers": 0}, 100, 16 * GB),
        ({"num_workers": 16}, 100, GB),
        ({"num_workers": -1}, 100, 16 * GB // 8),
        ({"scheduler": "tcp://a:1"}, 100, None),
        ({"cluster": "slurm", "memory": "6GB", "cores": 3}, 100, 2 * GB),
    ],
    ids=str,
)
def test_the_memory_of_workers_is_planned(
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    n_cases: int,
    expected: int | None,
) -> None:
    monkeypatch.setattr(system, "memory_bytes", lambda: 16 * GB)
    monkeypatch.setattr(system, "cpu_count", lambda: 10)
    limit = planned_limit(config_of(**settings), n_cases=n_cases, peak=2 * GB)
    assert limit == expected


def test_a_plan_says_which_cases_need_files_and_whether_there_is_room(
    dataset: Any, invoke: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset.add("large", np.zeros((120, 120, 60), np.int16))
    dataset.add("small")
    options = ("plan", "-i", dataset.root, "-o", tmp_path / "out", "--num_workers", 0)
    assert "Scratch:" not in invoke(*options).output
    monkeypatch.setattr(memory, "_BLOCK_BYTES", 1000)
    monkeypatch.setattr(memory, "WORKER_BASE_BYTES", 100_000)
    monkeypatch.setattr(system, "memory_bytes", lambda: 3_000_000)
    told = invoke(*options).output
    assert "Scratch: 1 case (large) is larger than the memory of a worker, 3.0 MB" in told
    assert f"files of {tmp_path / 'out'}, at most" in told
    assert "is free in" not in told
    monkeypatch.setattr(system, "free_bytes", lambda _: 1000)
    told = invoke(*options, "--scratch_dir", tmp_path / "fast").output
    assert f"files of {tmp_path / 'fast'}, at most" in told
    assert f"Note: only 1.0 kB is free in {tmp_path / 'fast'}" in told
    told = invoke(*options, "--min_component_voxels", 9).output
    assert "Note: 1 case cannot run with 3.0 MB of memory for a worker, but with" in told
    assert "since components of a label are found in memory: large" in told
