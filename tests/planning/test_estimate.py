"""Estimates of a plan: room on disk, workers, and cases unlike the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import dask_slicer
from dask_slicer.inputs.case import Case
from dask_slicer.planning.estimate import outliers, output_bytes, suggest_workers
from dask_slicer.planning.plan import CasePlan

pytestmark = pytest.mark.versions

GB = 10**9


@pytest.mark.parametrize("level", [0, 1, 6])
def test_a_run_never_writes_more_than_its_plan_says(dataset, tmp_path: Path, level: int) -> None:
    noise = np.random.default_rng(0).normal(size=(40, 30, 6)).astype(np.float32)
    dataset.add("noise", noise)
    dataset.add("flat", np.ones((40, 30, 6), dtype=np.int16), label=None)
    config = dask_slicer.RunConfig(
        input_dir=dataset.root,
        output_dir=tmp_path / "slices",
        num_workers=0,
        compression_level=level,
        allow_missing_labels=True,
    )
    plan = dask_slicer.plan(config)
    most = sum(output_bytes(case, config)[0] for case in plan.cases)
    report = dask_slicer.run(config)
    assert 0 < report.n_bytes <= most
    assert report.n_slices == plan.n_slices


@pytest.mark.parametrize(
    ("machine", "expected", "reason"),
    [
        ({}, 16, "CPU"),
        ({"memory_bytes": 8 * GB, "peak": 3 * GB}, 2, "memory: 8.0 GB holds 2 workers of 3.0 GB"),
        ({"memory_bytes": GB, "peak": 3 * GB}, 1, "memory"),
        ({"n_cases": 3}, 3, "only 3 cases"),
        ({"n_cases": 0}, 1, "only 0 cases"),
        ({"rotational": True}, 2, "spinning disk"),
    ],
    ids=["cpu", "memory", "too little memory", "few cases", "no case", "disk"],
)
def test_the_suggested_workers_come_with_what_limits_them(
    machine: dict[str, int], expected: int, reason: str
) -> None:
    roomy = {"n_cpus": 16, "memory_bytes": 64 * GB, "peak": GB, "n_cases": 100, "rotational": False}
    n_workers, why = suggest_workers(**(roomy | machine))
    assert n_workers == expected
    assert reason in why


def _cases(n: int) -> list[CasePlan]:
    return [
        CasePlan(
            case=Case(case_id=f"case_{number}", images=("a.nii",)),
            shape=(50, 128, 128),
            spacing=(3.0, 1.0, 1.0),
            orientation="LPS",
            dtypes=("int16",),
        )
        for number in range(n)
    ]


def test_a_case_unlike_the_rest_is_named_with_what_is_odd() -> None:
    cases = _cases(8)
    cases[3] = replace(cases[3], spacing=(9.0, 1.0, 1.0), orientation="RAS")
    named = outliers(cases)
    assert named == [
        "case_3: spacing (mm) 9×1×1, median 3×1×1",
        "case_3: stored as RAS, most cases LPS",
    ]


def test_where_all_cases_differ_one_line_says_so() -> None:
    cases = [
        replace(case, spacing=(float(4**number), 1.0, 1.0)) for number, case in enumerate(_cases(8))
    ]
    assert outliers(cases) == ["spacing (mm) varies from 1×1×1 to 16384×1×1"]
