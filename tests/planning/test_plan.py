"""A plan: the memory of a case, and all problems at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

import dask_slicer
from dask_slicer.inputs.case import Case
from dask_slicer.planning.plan import CasePlan, peak_bytes
from dask_slicer.planning.steps import n_selected


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
    ("settings", "listed", "most"),
    [
        ({"slices": "-5:6"}, None, 0),
        ({"slices": "-5:6", "crop": "nonzero"}, None, 5),  # of 5 or 6 slices
        ({"slices": "-5:6", "crop": "label", "stride": 2}, None, 3),
        ({"slices": "-5:6", "crop": "label"}, {2, 3, 9}, 0),  # of 10 or more slices, 5 alone
        ({"slices": "-5:12", "crop": "label"}, {2, 3, 9}, 1),
        ({"slices": "2:-2", "crop": "label"}, None, 16),
        ({"stride": 3, "crop": "label"}, None, 7),
    ],
)
def test_a_crop_that_is_not_known_yet_may_leave_more_slices_in_a_range(
    settings, listed, most
) -> None:
    config = dask_slicer.RunConfig(input_dir="a", output_dir="b", **settings)
    assert n_selected(config, 20, None if listed is None else frozenset(listed)) == most


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
    ("broken", "words"),
    [
        ([3], "test will be empty: the only case in it cannot be run (case_3)"),
        ([0, 1, 2], "train will be empty: none of the 3 cases in it can be run (case_0, case_1,"),
        ([], ""),
        ([1], ""),
    ],
    ids=["its only case", "all of its cases", "none", "one of several"],
)
def test_a_split_whose_cases_cannot_be_run_is_noted(dataset, tmp_path, broken, words) -> None:
    splits = {"train": ["case_0", "case_1", "case_2"], "test": ["case_3"]}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    for number in range(4):
        dataset.add(f"case_{number}")
    for number in broken:
        dataset.image_path(f"case_{number}").write_bytes(b"")
    plan = dask_slicer.plan(
        input_dir=dataset.root,
        output_dir=tmp_path / "slices",
        splits=tmp_path / "splits.json",
    )
    notes = [note for note in plan.notes if "will be empty" in note]
    assert len(notes) == bool(words)
    assert all(note.startswith(words) for note in notes)
