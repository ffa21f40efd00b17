"""Datasets that grow and shrink between runs: splits stay, chosen cases run, old ones are kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from dask_slicer.config.schema import RunConfig
from dask_slicer.planning.planner import make_plan

CASES = [f"liver_{number:03d}" for number in range(10)]


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "slices"


@pytest.fixture
def slice_again(dataset, output, invoke) -> Callable[..., Result]:
    """Return a function that slices the dataset as it is now into `output`."""

    def call(*options: object, output_dir: Path = output) -> Result:
        result = invoke(
            *("run", "--input_dir", dataset.root, "--output_dir", output_dir, "--num_workers", 0),
            *options,
        )
        assert result.exit_code == 0, result.output
        return result

    return call


def contents(output: Path) -> dict[str, bytes]:
    paths = [*output.rglob("*.npz"), output / "slices.csv", output / "splits.json"]
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


def split_of_case(output: Path) -> dict[str, str]:
    splits = json.loads((output / "splits.json").read_text())
    assert list(splits) == ["train", "val", "test"]
    assert all(names == sorted(names) for names in splits.values())
    return {name: split for split, names in splits.items() for name in names}


def case_names(output: Path) -> list[str]:
    return json.loads((output / "dataset_info.json").read_text())["case_names"]


def remove(dataset, case_id: str) -> None:
    dataset.image_path(case_id).unlink()
    dataset.label_path(case_id).unlink()


def test_new_cases_are_added_and_old_ones_stay_where_they_are(dataset, output, slice_again) -> None:
    # New ids that sort before, between and behind the old ones.
    for case_id in CASES[2:8]:
        dataset.add(case_id)
    slice_again()
    old, slices = split_of_case(output), contents(output)
    for case_id in [*CASES[:2], *CASES[8:], "a_first"]:
        dataset.add(case_id)
    assert "Skipped 6 cases" in slice_again().stdout
    new = split_of_case(output)
    assert old.items() <= new.items()
    assert set(new) == {*CASES, "a_first"}
    assert contents(output).items() >= {k: v for k, v in slices.items() if ".npz" in k}.items()
    # 11 cases: 0.8, 0.1, 0.1 are 9, 1, 1.
    counts = [list(new.values()).count(split) for split in ("train", "val", "test")]
    assert counts == [9, 1, 1]


def test_a_new_scan_of_a_known_patient_joins_its_split(dataset, output, slice_again) -> None:
    for case_id in CASES:
        dataset.add(case_id)
    slice_again("--group_regex", r"liver_(\d+)")
    old = split_of_case(output)
    for case_id in CASES:
        dataset.add(f"{case_id}_followup")
    slice_again("--group_regex", r"liver_(\d+)")
    new = split_of_case(output)
    assert {case: new[f"{case}_followup"] for case in CASES} == {case: old[case] for case in CASES}


def test_a_plan_takes_the_splits_and_patients_of_earlier_runs_from_its_caller(
    dataset, output
) -> None:
    def never() -> dict[str, str]:
        raise AssertionError("no case is gone from the dataset")

    dataset.add("liver_000_followup")
    dataset.add("liver_001")
    output.mkdir()
    (output / "not_ours.csv").touch()
    config = RunConfig(
        input_dir=dataset.root,
        output_dir=output,
        group_regex=r"liver_(\d+)",
        train_ratio=1,
    )
    assert make_plan(config).splits["train"] == ["liver_000_followup", "liver_001"]
    plan = make_plan(config, assigned={"liver_001": "val"}, assigned_groups=never)
    assert plan.splits["val"] == ["liver_001"]
    groups = {"liver_000": "000"}
    plan = make_plan(config, assigned={"liver_000": "test"}, assigned_groups=lambda: groups)
    assert plan.splits["test"] == ["liver_000", "liver_000_followup"]


def test_a_case_that_returns_gets_its_old_split(dataset, output, slice_again) -> None:
    for case_id in CASES:
        dataset.add(case_id)
    slice_again()
    before = contents(output)
    (test_case,) = [case for case, split in split_of_case(output).items() if split == "test"]
    image, label = (path(test_case) for path in (dataset.image_path, dataset.label_path))
    for path in (image, label):
        path.rename(path.with_suffix(".hidden"))
    slice_again()
    assert split_of_case(output)[test_case] == "test"
    for path in (image, label):
        path.with_suffix(".hidden").rename(path)
    slice_again()
    assert contents(output) == before


def test_the_splits_do_not_depend_on_the_order_in_which_cases_were_chosen(
    dataset, tmp_path, slice_again
) -> None:
    for case_id in CASES:
        dataset.add(case_id)
    slice_again(output_dir=tmp_path / "at once")
    for case_id in reversed(CASES):
        result = slice_again("--only", case_id, output_dir=tmp_path / "one by one")
        assert "Wrote 10 slices of 1 case" in result.stdout
    assert contents(tmp_path / "one by one") == contents(tmp_path / "at once")


@pytest.mark.parametrize(
    "options",
    [
        ["--only", CASES[1], "--only", CASES[4]],
        ["--only", CASES[1], CASES[4]],
        ["--only", CASES[4], CASES[1], "--retries", "0"],
    ],
    ids=["repeated", "listed", "listed before other options"],
)
def test_only_plans_and_splits_everything_and_runs_those(
    dataset, output, slice_again, options
) -> None:
    for case_id in CASES:
        dataset.add(case_id)
    slice_again(*options)
    assert case_names(output) == [CASES[1], CASES[4]]
    assert set(split_of_case(output)) == set(CASES)
    # The next run is about all cases again.
    assert "Wrote 80 slices of 8 cases" in slice_again().stdout


def test_only_leaves_other_cases_alone(dataset, output, slice_again) -> None:
    for case_id in CASES[:3]:
        dataset.add(case_id)
    slice_again()
    for case_id in CASES[:2]:  # both are stale now
        dataset.image_path(case_id).touch()
    before = contents(output)
    assert "Wrote 10 slices of 1 case" in slice_again("--only", CASES[0]).stdout
    assert contents(output) == before
    assert "Wrote 10 slices of 1 case" in slice_again().stdout


def test_a_case_that_left_the_dataset_is_kept_until_it_is_pruned(
    dataset, output, slice_again
) -> None:
    for case_id in CASES[:3]:
        dataset.add(case_id)
    slice_again()
    before = contents(output)
    remove(dataset, CASES[0])
    result = slice_again()
    assert CASES[0] in result.stdout
    assert "--prune removes such cases" in result.stdout
    assert contents(output) == before
    slice_again("--prune")
    assert list(output.glob(f"*/{CASES[0]}*")) == []
    assert case_names(output) == CASES[1:3]
    assert CASES[0] not in (output / "slices.csv").read_text()
    assert "--prune" not in slice_again().stdout


def test_prune_removes_files_of_a_case_that_no_journal_knows(dataset, output, slice_again) -> None:
    for case_id in CASES[:3]:
        dataset.add(case_id)
    slice_again()
    remove(dataset, CASES[0])
    stray = output / "train" / "stopped_000.npz"  # of a run that was killed
    stray.write_bytes(b"")
    slice_again("--prune")
    assert not stray.exists()


def test_prune_removes_nothing_that_is_still_in_the_dataset(dataset, output, slice_again) -> None:
    for case_id in CASES[:4]:
        dataset.add(case_id)
    slice_again()
    before = contents(output)
    slice_again("--prune", "--only", CASES[0])
    assert contents(output) == before


def test_test_images_are_left_out_with_a_note_or_put_into_test(
    dataset, output, slice_again
) -> None:
    for case_id in CASES[:3]:
        dataset.add(case_id)
    dataset.add("unseen")
    (dataset.root / "imagesTs").mkdir()
    (dataset.root / "labelsTs").mkdir()
    image, label = dataset.image_path("unseen"), dataset.label_path("unseen")
    image.rename(dataset.root / "imagesTs" / image.name)
    label.rename(dataset.root / "labelsTs" / label.name)
    result = slice_again()
    assert "1 image in imagesTs left out; --include_test uses them for test" in result.stdout
    assert case_names(output) == CASES[:3]
    assert "Wrote 10 slices of 1 case" in slice_again("--include_test").stdout
    assert split_of_case(output)["unseen"] == "test"
    assert len(list(output.glob("test/unseen_*.npz"))) == 10


def test_a_splits_file_decides_and_what_it_does_not_name_is_left_out(
    dataset, output, slice_again, tmp_path
) -> None:
    for case_id in CASES[:4]:
        dataset.add(case_id)
    folds = [{"train": [CASES[0]], "val": [CASES[1]]}, {"train": [CASES[2]], "val": [CASES[0]]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    result = slice_again("--splits", tmp_path / "splits_final.json", "--fold", 1)
    assert split_of_case(output) == {CASES[2]: "train", CASES[0]: "val"}
    assert f"does not name are left out: {CASES[1]}, {CASES[3]}" in result.stdout
    assert {path.parent.name for path in output.rglob("*.npz")} == {"train", "val"}
