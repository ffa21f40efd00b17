"""What a plan promises: room on disk that is not exceeded, memory, workers, odd ones named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

import dask_slicer
from dask_slicer import workplaces
from dask_slicer.cases import Case
from dask_slicer.events import Observer
from dask_slicer.plans import CasePlan, outliers, output_bytes, peak_bytes, suggest_workers

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


def test_a_case_is_planned_to_take_its_voxels_and_little_more() -> None:
    case = CasePlan(
        case=Case(case_id="ct", images=("ct.nii.gz",)),
        shape=(275, 512, 512),
        voxel_bytes=275 * 512 * 512 * 2,
        file_bytes=60_000_000,
    )
    settings = dask_slicer.RunConfig(input_dir="a", output_dir="b").slice_settings
    planned = peak_bytes(case, settings)
    assert case.voxel_bytes < planned < case.voxel_bytes + 4 * 275 * 512 * 512


@pytest.mark.parametrize(
    ("machine", "expected", "reason"),
    [
        ({}, 16, "CPU"),
        ({"memory_bytes": 8 * GB, "peak": 3 * GB}, 2, "memory"),
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
        "case_3: stored as RAS, most LPS",
    ]


def test_where_all_cases_differ_one_line_says_so() -> None:
    cases = [
        replace(case, spacing=(float(4**number), 1.0, 1.0)) for number, case in enumerate(_cases(8))
    ]
    assert outliers(cases) == ["spacing (mm) varies from 1×1×1 to 16384×1×1"]


def test_the_plan_names_every_problem_at_once_and_writes_nothing(
    dataset, tmp_path: Path, invoke: Callable[..., Result]
) -> None:
    dataset.add("good")
    dataset.add("no_label", label=None)
    dataset.add("other_shape", label=np.zeros((8, 9, 11), dtype=np.uint8))
    shifted = np.eye(4)
    shifted[2, 3] = 3.0
    dataset.add("shifted", affine=np.eye(4), label_affine=shifted)
    dataset.image_path("cut").write_bytes(dataset.image_path("good").read_bytes()[:40])
    output = tmp_path / "slices"
    result = invoke("plan", "--input_dir", dataset.root, "--output_dir", output, "--json")
    described = json.loads(result.stdout)
    assert result.exit_code == 1
    assert {problem["case_id"]: problem["kind"] for problem in described["problems"]} == {
        "cut": "MissingLabel",
        "no_label": "MissingLabel",
        "other_shape": "GeometryMismatch",
        "shifted": "GeometryMismatch",
    }
    (shift,) = [p["message"] for p in described["problems"] if p["case_id"] == "shifted"]
    assert "3 mm" in shift
    assert described["num_cases"] == 5
    assert not output.exists()


@pytest.mark.parametrize(
    ("num_workers", "memory", "expected", "said"),
    [(-1, 64 * GB, 8, ""), (-1, GB // 2, 2, "2 of 8 CPUs are used"), (4, GB // 2, 4, "2 fits")],
    ids=["room for all CPUs", "lowered to what fits", "as asked, with a warning"],
)
def test_workers_are_lowered_to_what_memory_holds_only_where_none_were_asked_for(
    dataset, tmp_path: Path, monkeypatch, num_workers: int, memory: int, expected: int, said: str
) -> None:
    dataset.add("small")
    notes: list[str] = []
    observer = Observer()
    monkeypatch.setattr(observer, "note", notes.append)
    monkeypatch.setattr(workplaces.machine, "cpu_count", lambda: 8)
    monkeypatch.setattr(workplaces.machine, "memory_bytes", lambda: memory)
    config = dask_slicer.RunConfig(
        input_dir=dataset.root, output_dir=tmp_path / "slices", num_workers=num_workers
    )
    plan = dask_slicer.plan(config)
    assert workplaces._n_workers(config, 20, plan.peak_bytes, observer) == expected
    assert said in " ".join(notes)
    assert bool(notes) == bool(said)
