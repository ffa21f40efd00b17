"""A plan: the memory of a case, and all problems at once."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

import dask_slicer
from dask_slicer.core.slices import slice_volume
from dask_slicer.core.steps import operators
from dask_slicer.core.volume import Volume, Voxels
from dask_slicer.inputs.case import Case
from dask_slicer.output.formats import write_case
from dask_slicer.planning.memory import peak_bytes
from dask_slicer.planning.plan import CasePlan
from dask_slicer.planning.steps import common_steps, n_selected


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


@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize(
    "settings",
    [
        {"foreground": "otsu"},
        {"foreground": "nonzero", "percentiles": "1,99"},
        {"spacing": "0.7,1,1"},
        {"spacing": "none,2,2", "size": 150, "fit": "resize"},
        {"size": 150, "fit": "resize"},
        {"size": 150},
        {"label_map": "1:2"},
        {"ct_windows": "lung,bone", "size": 150},
        {"ct_windows": "lung,bone", "spacing": "0.7,1,1"},
    ],
    ids=str,
)
def test_steps_take_no_more_memory_than_planned(monkeypatch, settings, dtype) -> None:
    for name, value in {"_BLOCK": 1 << 17, "_ROW": 1 << 10}.items():  # as against large volumes
        monkeypatch.setattr(operators, name, value)
    rng = np.random.default_rng(1)
    image = rng.integers(0, 1000, (80, 100, 90)).astype(dtype)
    label = (image > 400).astype(np.uint8)
    volume = Volume(
        image=(Voxels(stored=image),), label=Voxels(stored=label), affine=np.diag([1, 1, 1, 1.0])
    )
    config = dask_slicer.RunConfig(input_dir="a", output_dir="b", **settings)
    steps = common_steps(config, {1: 2} if config.label_map else None)
    options = {"normalize": config.normalize, "label_dtype": config.label_dtype, "steps": steps}
    slice_volume(volume, **options)  # imports what it needs
    tracemalloc.start()
    try:
        stack = slice_volume(volume, **options)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    case = CasePlan(
        case=Case(case_id="ct", images=("ct.nii",), label="label.nii"),
        shape=image.shape,
        spacing=(1.0, 1.0, 1.0),
        new_shape=stack.shape,
        voxel_bytes=image.nbytes + label.nbytes,
    )
    assert peak <= peak_bytes(case, config) - case.voxel_bytes + 1e6


@pytest.mark.parametrize(
    ("suffix", "settings", "copies"),
    [(".npz", {}, 1), (".npz", {"compression_level": 0}, 3), (".npy", {}, 3), (".h5", {}, 1)],
)
def test_files_of_whole_cases_take_no_more_memory_than_planned(
    tmp_path, suffix, settings, copies
) -> None:
    if suffix == ".h5":
        pytest.importorskip("h5py")
    image = np.random.default_rng(1).integers(0, 1000, (64, 100, 90)).astype(np.int16)
    volume = Volume(image=(Voxels(stored=image),), label=None, affine=np.diag([1, 1, 1, 1.0]))
    holds = "image" if suffix == ".npy" else {"image": "image"}
    files = [{"path": f"a/{{case_id}}{suffix}", "holds": holds, "copies": copies}]
    place = {"input_dir": "a", "output_dir": "b", "format": "files", "window_size": 0}
    config = dask_slicer.RunConfig(**place, files=files, **settings)
    stack = slice_volume(volume)
    case = CasePlan(
        case=Case(case_id="ct", images=("ct.nii",)),
        split="train",
        shape=image.shape,
        spacing=(1.0, 1.0, 1.0),
        new_shape=stack.shape,
        voxel_bytes=image.nbytes,
    )
    for name in ("first", "second"):  # the first imports what it needs
        (tmp_path / name).mkdir()
        tracemalloc.start()
        try:
            write_case([stack], case, config.slice_settings, [tmp_path / name], fsync=False)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak <= peak_bytes(case, config) - case.voxel_bytes + 1e6


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
