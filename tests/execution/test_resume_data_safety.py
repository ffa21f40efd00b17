"""What earlier runs wrote is lost to no mishap of a later one, and patients stay in one split."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

import dask_slicer
from dask_slicer.errors import MissingFile
from dask_slicer.execution.tasks import Target, load_case, save_case, slice_case


def _slices(output: Path) -> set[str]:
    return {path.relative_to(output).as_posix() for path in output.rglob("*.npz")}


@pytest.fixture
def run_again(dataset, tmp_path: Path, invoke: Callable[..., Result]) -> Callable[..., Result]:
    for case_id in ("p1_a", "p1_b", "p2_a", "p2_b"):
        dataset.add(case_id)

    def call(*options: object) -> Result:
        return invoke(
            *("run", "--input_dir", dataset.root, "--output_dir", tmp_path / "slices"),
            *("--num_workers", 0, *options),
        )

    return call


@pytest.mark.slow  # it waits for somebody who never answers
def test_overwrite_removes_nothing_while_there_is_nothing_to_run_on(run_again, tmp_path) -> None:
    run_again()
    before = _slices(tmp_path / "slices")
    absent = tmp_path / "scheduler.json"
    absent.write_text("{}")  # of no scheduler
    assert run_again("--overwrite", "--scheduler_file", absent).exit_code == 1
    assert _slices(tmp_path / "slices") == before


def test_slices_of_a_case_with_an_unreachable_scan_stay(run_again, dataset, tmp_path) -> None:
    run_again()
    before = _slices(tmp_path / "slices")
    label = dataset.label_path("p1_a")
    label.rename(label.with_suffix(".away"))
    result = run_again()
    assert result.exit_code == 1
    assert "p1_a,plan,MissingLabel" in (tmp_path / "slices" / "failures.csv").read_text()
    assert _slices(tmp_path / "slices") == before
    label.with_suffix(".away").rename(label)
    result = run_again()
    assert (result.exit_code, "Skipped 4 cases" in result.stdout) == (0, True)
    assert not (tmp_path / "slices" / "failures.csv").exists()


def test_a_second_splits_file_cannot_bring_a_patient_into_another_split(
    run_again, tmp_path
) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text(json.dumps({"train": ["p1_a"], "val": ["p2_a"]}))
    second.write_text(json.dumps({"train": ["p2_b"], "test": ["p1_b"]}))
    by_patient = ("--group_regex", r"(p\d)")
    assert run_again(*by_patient, "--splits", first).exit_code == 0
    result = run_again(*by_patient, "--splits", second)
    assert result.exit_code == 2
    assert "lies in two splits" in result.stderr


def test_a_config_yaml_that_is_not_ours_marks_nothing_as_ours(run_again, tmp_path) -> None:
    theirs = tmp_path / "slices" / "train" / "scan_001.npz"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"precious")
    (tmp_path / "slices" / "config.yaml").write_text("input_dir: /somewhere\n")
    result = run_again("--overwrite")
    assert (result.exit_code, theirs.read_bytes()) == (2, b"precious")


def test_a_run_that_is_stopped_leaves_no_file_of_a_case_that_is_not_whole(
    run_again, tmp_path, monkeypatch
) -> None:
    from dask_slicer.execution import tasks

    moved = []
    replace = tasks.os.replace

    def stop_in_the_second_case(source, target) -> None:
        if str(target).endswith(".npz"):
            moved.append(target)
            if len(moved) == 15:
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(tasks.os, "replace", stop_in_the_second_case)
    assert run_again().exit_code == 130
    monkeypatch.undo()
    cases = {name.rpartition("/")[2][:4] for name in _slices(tmp_path / "slices")}
    assert cases == {"p1_a"}
    assert run_again().exit_code == 0


def test_an_error_that_a_retry_can_cure_is_retried(run_again, tmp_path, monkeypatch) -> None:
    from dask_slicer.execution import tasks

    write_case = tasks.write_case
    attempts = []

    def fail_twice(stack, case, *arguments, **options):
        attempts.append(case.case_id)
        if attempts.count(case.case_id) < 3:
            raise OSError(5, "Input/output error")
        return write_case(stack, case, *arguments, **options)

    monkeypatch.setattr(tasks, "write_case", fail_twice)
    assert run_again("--retries", 2).exit_code == 0
    assert attempts.count("p2_b") == 3


def test_an_output_directory_that_a_worker_cannot_find_is_named(dataset, tmp_path) -> None:
    dataset.add("a")
    config = dask_slicer.RunConfig(input_dir=dataset.root, output_dir=tmp_path / "gone")
    (case,) = dask_slicer.plan(config).cases
    target = Target(
        output_dir=str(tmp_path / "gone"), temporary=".tmp", settings=config.slice_settings
    )
    sliced = slice_case(load_case(case, target), target)
    with pytest.raises(MissingFile, match="cannot find the output directory") as caught:
        save_case(sliced, target)
    assert caught.value.step == "save"


def test_a_patient_keeps_the_split_of_a_case_that_has_left_the_manifest(
    dataset, tmp_path, invoke
) -> None:
    def run_with(cases: dict[str, str]) -> dict[str, list[str]]:
        lines = ["case_id,image,group"]
        lines += [f"{name},{dataset.image_path(name)},{group}" for name, group in cases.items()]
        (tmp_path / "cases.csv").write_text("\n".join(lines))
        result = invoke(
            *("run", "--input_dir", tmp_path / "cases.csv", "--output_dir", tmp_path / "slices"),
            *("--num_workers", 0, "--train_ratio", 0.6, "--val_ratio", 0.2),
        )
        assert result.exit_code == 0, result.output
        return json.loads((tmp_path / "slices" / "splits.json").read_text())

    cases = {f"c{number:02d}": f"patient_{number}" for number in range(10)}
    for name in (*cases, "new"):
        dataset.add(name, label=None)
    (gone, *_) = run_with(cases)["test"]
    patient = cases.pop(gone)
    assert "new" in run_with(cases | {"new": patient})["test"]
