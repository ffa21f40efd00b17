"""The cache of plans: an unchanged dataset is not planned again, and a changed one always is."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dask_slicer.config.schema import RunConfig
from dask_slicer.inputs import header_cache
from dask_slicer.inputs.cache_files import CACHE_DIR
from dask_slicer.inputs.case import Case, Mask
from dask_slicer.inputs.layouts.base import FileRole
from dask_slicer.planning import plan_cache, planner
from dask_slicer.planning.plan import CasePlan, RunPlan
from dask_slicer.records import FailedCase


@pytest.fixture
def cache_dir(monkeypatch, tmp_path) -> Path:
    """Return the folder of an empty cache, in which files of this moment count as settled."""
    monkeypatch.setenv(CACHE_DIR, str(tmp_path / "cache"))
    monkeypatch.setattr(header_cache, "RACY_NS", -(10**12))
    return tmp_path / "cache" / "headers"


@pytest.fixture
def plan(dataset, tmp_path, monkeypatch) -> Callable[..., tuple[RunPlan, bool]]:
    """Return a function that plans a run, and says whether the plan was made, not recalled."""
    for case_id in ("a", "b", "c"):
        dataset.add(case_id)
    n_made = 0
    make = planner._make_plan

    def counted(*arguments: object) -> object:
        nonlocal n_made
        n_made += 1
        return make(*arguments)

    monkeypatch.setattr(planner, "_make_plan", counted)

    def call(
        input_dir: Path = dataset.root, earlier: dict[str, object] | None = None, **settings: object
    ) -> tuple[RunPlan, bool]:
        config = RunConfig(input_dir=input_dir, output_dir=tmp_path / "slices", **settings)
        before = n_made
        run_plan = planner.make_plan(config, **(earlier or {}))
        was_made = n_made > before
        with monkeypatch.context() as patch:
            patch.setenv(CACHE_DIR, "none")
            assert run_plan == planner.make_plan(config, **(earlier or {}))
        return run_plan, was_made

    return call


@pytest.mark.usefixtures("cache_dir")
def test_an_unchanged_dataset_is_planned_once(plan) -> None:
    (first, is_first_made), (second, is_second_made) = plan(), plan()
    assert (is_first_made, is_second_made) == (True, False)
    assert second == first
    assert type(second.cases[0].shape) is tuple
    assert second.files


def test_the_command_prints_the_same(dataset, invoke, cache_dir, monkeypatch) -> None:
    dataset.add("a")
    options = ("--input_dir", dataset.root, "--json")
    first = json.loads(invoke("plan", *options).stdout)
    monkeypatch.setattr(planner, "_make_plan", pytest.fail)
    second = json.loads(invoke("plan", *options).stdout)
    for content in (first, second):
        for name in ("disk_free_bytes", "memory_bytes", "num_workers_reason"):
            content.pop(name)
    assert first == second


def _write_again(image: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((5, 6, 7), np.uint8), np.eye(4)), image)


def _touch(image: Path) -> None:
    os.utime(image, (1, 1))


def _remove(image: Path) -> None:
    image.unlink()


def _add_other_file(image: Path) -> None:
    (image.parents[1] / "scan.dcm").write_bytes(b"DICM")


def _add_description(image: Path) -> None:
    text = '{"channel_names": {"0": "CT"}, "labels": {"liver": 1}, "file_ending": ".nii.gz"}'
    (image.parents[1] / "dataset.json").write_text(text)


def _same_size_and_mtime(image: Path) -> None:
    status, content = image.stat(), bytearray(image.read_bytes())
    content[-1] ^= 1
    image.write_bytes(content)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.usefixtures("cache_dir")
@pytest.mark.parametrize(
    "change",
    [_write_again, _touch, _remove, _add_other_file, _add_description, _same_size_and_mtime],
)
def test_any_change_of_the_dataset_is_planned(plan, dataset, change) -> None:
    plan()
    change(dataset.image_path("b"))
    assert plan()[1]


@pytest.mark.usefixtures("cache_dir")
@pytest.mark.parametrize(
    "settings",
    [
        {"plane": "sagittal"},
        {"seed": 7},
        {"label_grid": "image"},
        {"orientation_from": "qform"},
        {"allow_missing_labels": True},
    ],
    ids=str,
)
def test_other_settings_are_planned(plan, settings) -> None:
    plan()
    assert plan(**settings)[1]
    assert not plan(**settings)[1]


@pytest.mark.usefixtures("cache_dir")
def test_splits_and_structures_of_earlier_runs_count(plan) -> None:
    plan()
    earlier = {"assigned": {"a": "val", "b": "train", "c": "test"}}
    assert plan(earlier=earlier)[1]
    assert not plan(earlier=earlier)[1]
    assert plan(earlier=earlier | {"structures": {"liver": 2}})[1]
    # The patients of cases that left the dataset are in the journal, which is not looked at.
    left = {"assigned": {"gone": "val"}, "assigned_groups": lambda: {"gone": "gone"}}
    assert plan(earlier=left)[1]
    assert plan(earlier=left)[1]


@pytest.mark.usefixtures("cache_dir")
def test_a_file_of_splits_counts(plan, tmp_path) -> None:
    splits = tmp_path / "splits.json"
    splits.write_text('{"train": ["a", "b"], "val": ["c"]}')
    assert plan(splits=splits)[1]
    assert not plan(splits=splits)[1]
    splits.write_text('{"train": ["a", "c"], "val": ["b"]}')
    assert plan(splits=splits)[1]


@pytest.mark.usefixtures("cache_dir")
def test_files_of_a_manifest_count_wherever_they_are(plan, dataset, tmp_path) -> None:
    manifest = tmp_path / "lists" / "cases.csv"
    manifest.parent.mkdir()
    with manifest.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["case_id", "image"])
        rows.writerows([case_id, dataset.image_path(case_id)] for case_id in ("a", "b"))
    assert plan(manifest)[1]
    assert not plan(manifest)[1]
    _write_again(dataset.image_path("b"))
    assert plan(manifest)[1]
    assert not plan(manifest)[1]
    (dataset.image_path("b").parent / "another.nii").touch()  # perhaps a better match
    assert plan(manifest)[1]
    manifest.write_text(f"case_id,image\na,{dataset.image_path('a')}\n")
    assert plan(manifest)[1]


@pytest.mark.usefixtures("cache_dir")
def test_a_changed_cell_of_a_table_counts_and_reads_no_header(tmp_path, monkeypatch) -> None:
    root = tmp_path / "bids"
    table = root / "participants.tsv"
    for subject in ("sub-1", "sub-2"):
        image = root / subject / "anat" / f"{subject}_T1w.nii"
        image.parent.mkdir(parents=True)
        _write_again(image)
    table.write_text("participant_id\tsex\nsub-1\tF\nsub-2\tM\n")
    config = RunConfig(input_dir=root, output_dir=tmp_path / "slices")
    planner.make_plan(config)
    monkeypatch.setattr("dask_slicer.planning.headers.read_header", pytest.fail)
    table.write_text("participant_id\tsex\nsub-1\tF\nsub-2\tX\n")
    for _ in range(2):
        columns = [case.case.columns for case in planner.make_plan(config).cases]
        assert columns == [{"sex": "F"}, {"sex": "X"}]


@pytest.mark.usefixtures("cache_dir")
def test_a_plan_with_a_file_that_is_missing_or_out_of_reach_is_not_cached(plan, dataset) -> None:
    dataset.image_path("b").unlink()
    dataset.image_path("b").symlink_to("nowhere.nii.gz")
    assert plan()[1]
    assert plan()[1]


@pytest.mark.usefixtures("cache_dir")
def test_a_failure_that_the_files_decide_is_cached(plan, dataset) -> None:
    dataset.image_path("b").write_bytes(b"noise")
    first, _ = plan()
    second, is_made = plan()
    assert not is_made
    assert [failure.kind for failure in second.failures] == ["CorruptFile"]
    assert first.failures == second.failures


def test_a_dataset_that_changed_just_now_is_not_cached(plan, cache_dir, monkeypatch) -> None:
    monkeypatch.setattr(header_cache, "RACY_NS", 2_000_000_000)
    assert plan()[1]
    assert plan()[1]
    assert not cache_dir.exists()


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"program": 1}\n[]', b"\xff" * 100])
def test_a_damaged_file_is_ignored_and_written_again(plan, cache_dir, damage) -> None:
    plan()
    for file in cache_dir.iterdir():
        file.write_bytes(damage)
    assert plan()[1]
    assert not plan()[1]


def test_no_flipped_byte_changes_a_plan(plan, cache_dir, dataset) -> None:
    plan()
    file = header_cache.cache_file(dataset.root, "plan")
    content = file.read_bytes()
    for position in range(0, len(content), 97):
        flipped = bytearray(content)
        flipped[position] ^= 1
        file.write_bytes(flipped)
        plan()  # which compares


def test_every_field_of_a_plan_survives_json(tmp_path) -> None:
    mask = Mask(structure="liver", path="/m.nii", value=3)
    case = Case(
        case_id="a\udcff",
        images=("/i.nii[2]", ""),
        group="g",
        split="val",
        masks=(mask,),
        stated=True,
        label_grid="image",
        orientation_from="qform",
        unnamed=(1,),
        overlap="error",
        columns={"sex": "F", "é\udcff": "1"},
    )
    problem = FailedCase(case_id="a", step="plan", kind="CorruptFile", message="cut")
    planned = CasePlan(
        case=case,
        split="val",
        group="g",
        digest="0",
        sources=("i.nii",),
        shape=(1, 2, 3),
        spacing=(0.1, 1 / 3, 5e-324),
        orientation="LPS",
        dtypes=("int16", "int16"),
        file_bytes=2**40,
        voxel_bytes=1,
        mask_bytes=2,
        header_notes=(("i.nii", "odd"),),
        label_names={1: "liver"},
        oriented=False,
        problem=problem,
    )
    config = RunConfig(input_dir=tmp_path, output_dir=tmp_path / "out")
    run_plan = RunPlan(
        config=config,
        layout="x",
        reason="y",
        cases=(planned, replace(planned, problem=None)),
        splits={"train": [], "val": ["a"]},
        notes=("n",),
        problems=("p",),
        files=(FileRole(path="i.nii", role="image", case_id="a"),),
        channel_names=("CT", "MR"),
        label_names={1: "liver"},
        structures={"liver": 3},
    )
    packed = plan_cache._packed(run_plan)
    again = plan_cache._unpacked(((name, t) for name in packed for t in packed[name]), config)
    assert again == run_plan
    assert repr(again.cases) == repr(run_plan.cases)
    for name in plan_cache._given(planned):
        assert type(getattr(again.cases[0], name)) is type(getattr(planned, name))
