"""The commands `plan`, `run` and `demo`: what they print and write."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dask_slicer.cli import run_commands

# -- plan ------------------------------------------------------------------------------------


def planned(dataset, tmp_path, invoke, *options: object):
    directories = ["--input_dir", dataset.root, "--output_dir", tmp_path / "slices"]
    return invoke("plan", *directories, *options)


def test_plan_is_json_with_sizes_and_writes_nothing(dataset, tmp_path, invoke) -> None:
    for case_id in ("ct_a", "ct_b", "ct_c"):
        dataset.add(case_id)
    before = sorted(tmp_path.rglob("*"))
    result = planned(dataset, tmp_path, invoke, "--json", "--plane", "sagittal")
    assert (result.exit_code, result.stderr) == (0, "")
    plan = json.loads(result.stdout)
    assert [case["case_id"] for case in plan["cases"]] == ["ct_a", "ct_b", "ct_c"]
    assert plan["cases"][0]["shape"] == [8, 10, 9]
    assert plan["cases"][0]["orientation"] == "RAS"
    assert plan["cases"][0]["spacing"] == pytest.approx([2.0, 3.0, 1.5])
    assert (plan["num_cases"], plan["num_slices"], plan["problems"]) == (3, 24, [])
    assert plan["output_files"] == 24
    assert plan["output_bytes_at_most"] >= plan["output_bytes_estimate"] > 0
    assert plan["peak_bytes_per_worker"] > 0
    assert plan["num_workers"] >= 1
    assert sorted(tmp_path.rglob("*")) == before


def test_plan_lists_all_problems_at_once_and_exits_with_1(dataset, tmp_path, invoke) -> None:
    dataset.add("fine")
    dataset.add("flat", np.zeros((8, 9), np.int16))
    dataset.add("unlabelled", label=None)
    dataset.add("twice")
    dataset.add("TWICE")
    before = sorted(tmp_path.rglob("*"))
    result = planned(dataset, tmp_path, invoke)
    assert result.exit_code == 1
    for word in ("flat: UnsupportedImage", "unlabelled: MissingLabel", "'TWICE', 'twice'"):
        assert word in result.stdout
    as_json = planned(dataset, tmp_path, invoke, "--json")
    assert as_json.exit_code == 1
    problems = json.loads(as_json.stdout)["problems"]
    assert {problem["kind"] for problem in problems} == {None, "UnsupportedImage", "MissingLabel"}
    assert sorted(tmp_path.rglob("*")) == before


def test_plan_agrees_with_the_run(dataset, tmp_path, invoke) -> None:
    for case_id in ("ct_a", "ct_b", "ct_c"):
        dataset.add(case_id, np.random.default_rng(1).integers(0, 999, (40, 41, 12), np.int16))
    plan = json.loads(planned(dataset, tmp_path, invoke, "--json").stdout)
    directories = ["--input_dir", dataset.root, "--output_dir", tmp_path / "slices"]
    assert invoke("run", *directories, "--num_workers", 0).exit_code == 0
    assert json.loads((tmp_path / "slices" / "splits.json").read_text()) == plan["splits"]
    written = [path.stat().st_size for path in tmp_path.rglob("*.npz")]
    assert len(written) == plan["output_files"]
    assert sum(written) <= plan["output_bytes_at_most"]


# -- run -------------------------------------------------------------------------------------


def test_quiet_prints_only_what_went_wrong(dataset, tmp_path, invoke) -> None:
    dataset.add("fine")
    directories = ["--input_dir", dataset.root, "--output_dir", tmp_path / "slices"]
    result = invoke("run", *directories, "--num_workers", 0, "-q")
    assert (result.exit_code, result.output) == (0, "")
    dataset.add("flat", np.zeros((8, 9), np.int16))
    result = invoke("run", *directories, "--num_workers", 0, "-q")
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert "flat: UnsupportedImage" in line


def test_a_run_ends_with_two_lines_about_what_to_do_next(
    dataset, tmp_path, invoke, monkeypatch
) -> None:
    dataset.add("fine")
    dataset.add("flat", np.zeros((8, 9), np.int16))
    output = tmp_path / "my slices"
    command = ["run", "--input_dir", dataset.root, "--output_dir", output, "--num_workers", 0]
    for available, look in ((object(), "preview"), (None, "report")):
        monkeypatch.setattr(run_commands, "find_spec", lambda _, available=available: available)
        *_, first, second = invoke(*command).stdout.splitlines()
        assert first.endswith(f"dask-slicer {look} '{output}'")
        program, *arguments = shlex.split(first.partition(": ")[2])
        assert program == "dask-slicer"
        if look == "report":
            assert invoke(*arguments).exit_code == 0
    sample = {}
    code = second.partition(": ")[2].replace("SliceDataset(", "sample = SliceDataset(")
    with pytest.warns(UserWarning, match="1 of 2 cases"):
        exec(code, sample)
    assert sample["sample"]["case_id"] == "fine"


def test_the_command_that_loads_a_slice_names_the_split_that_has_one(dataset, invoke) -> None:
    dataset.add("a")
    result = invoke(
        *("run", "--input_dir", dataset.root, "--output_dir", dataset.root.parent / "slices"),
        *("--num_workers", 0, "--train_ratio", 0, "--val_ratio", 1),
    )
    assert result.stdout.rstrip().endswith("slices', split='val')[0]")


@pytest.mark.parametrize("shard", ["1/2", "2/2"])
def test_a_partition_ends_with_the_command_that_merges(dataset, tmp_path, invoke, shard) -> None:
    for name in ("a", "b"):
        dataset.add(name)
    directories = ["--input_dir", dataset.root, "--output_dir", tmp_path / "slices"]
    result = invoke("run", *directories, "--num_workers", 0, "--shard", shard)
    assert result.stdout.splitlines()[-1].endswith(f"dask-slicer merge {tmp_path / 'slices'}")


def test_a_run_that_wrote_nothing_suggests_nothing(dataset, tmp_path, invoke) -> None:
    dataset.add("flat", np.zeros((8, 9), np.int16))
    directories = ["--input_dir", dataset.root, "--output_dir", tmp_path / "slices"]
    assert "To look" not in invoke("run", *directories, "--num_workers", 0).stdout


def test_verbose_adds_the_traceback_of_a_usage_error(tmp_path, invoke) -> None:
    arguments = ["run", "--input_dir", tmp_path / "no", "--output_dir", tmp_path / "slices"]
    assert "Traceback" not in invoke(*arguments).output
    result = invoke(*arguments, "-v")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: ")


def test_fail_fast_stops_at_the_first_failed_case(dataset, tmp_path, invoke) -> None:
    for case_id in ("a", "b", "c", "d"):
        dataset.add(case_id, np.full((4, 5, 6), np.nan, np.float32))
    directories = ["--input_dir", dataset.root, "--output_dir", tmp_path / "slices"]
    result = invoke("run", *directories, "--num_workers", 0, "--fail_fast")
    assert result.exit_code == 1
    assert "1 case failed" in result.stdout
    assert "3 cases not done" in result.stdout


def test_a_log_file_records_the_run(dataset, tmp_path, invoke) -> None:
    dataset.add("fine")
    directories = ["--input_dir", dataset.root, "--output_dir", tmp_path / "slices"]
    log = tmp_path / "run.log"
    assert invoke("run", *directories, "--num_workers", 0, "--log_file", log).exit_code == 0
    assert "fine" in log.read_text()


def test_an_ascii_terminal_does_not_stop_a_run(dataset, tmp_path) -> None:
    dataset.add("fine")
    dataset.add("flat", np.zeros((8, 9), np.int16))  # its message holds a ×
    for command in ("plan", "run"):
        program = [sys.executable, "-m", "dask_slicer", command, "--num_workers", "0"]
        result = subprocess.run(
            [*program, "--input_dir", dataset.root, "--output_dir", tmp_path / "slices"],
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            check=False,
            capture_output=True,
            text=True,
        )
        assert (result.returncode, result.stderr) == (1, "")
        assert "flat: UnsupportedImage" in result.stdout
    assert (tmp_path / "slices" / "failures.csv").exists()


# -- demo ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("options", ["--num_workers 0", ""], ids=["here", ""])
def test_the_demo_runs_in_an_empty_folder_and_so_do_the_commands_it_prints(
    tmp_path: Path, options
) -> None:
    def sh(command: str) -> str:
        result = subprocess.run(
            command, shell=True, cwd=tmp_path, check=False, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    python = shlex.quote(sys.executable)
    demo = f"{python} -m dask_slicer demo {options}"
    said = sh(demo)
    assert "Wrote 225 slices of 6 cases" in said
    _, _, epilogue = said.partition("To try next:\n")
    commands = [line.strip() for line in epilogue.splitlines() if line.strip()]
    assert len(commands) >= 3
    for command in commands:
        program, _, arguments = command.partition(" ")
        program = {"dask-slicer": f"{python} -m dask_slicer", "python": python}[program]
        printed = sh(f"{program} {arguments}")
    assert printed == "(5, 64, 72)\n"
    assert len(list((tmp_path / "dask_slicer_demo" / "slices_sagittal").rglob("*.npz"))) == 6 * 72
    assert "Skipped 6 cases" in sh(demo)
