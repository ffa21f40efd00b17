"""Workers that are lost, hang or are interrupted in the middle of a part of a large case.

`tests/helpers/faults.py` breaks the second part of a case in the processes that a test starts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import faults
import psutil
import pytest

import dask_slicer
from dask_slicer.inputs.phantom import write_dataset

LARGE = "phantom_000"
TIMEOUT = 6
# Every case is large enough for parts here.
PROGRAM = """
from dask_slicer.execution import graph
graph.LEAST_IN_PARTS = graph._LEAST_PER_THREAD = graph._FEWEST_SLICES = 1
graph.Batcher._outweighs_others = lambda *_: True
from dask_slicer.cli.main import main
main()
"""
TELL_OF_TIMES = {"dataset_info.json", "journal.jsonl", "config.yaml"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.faults,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="signals and nannies as on Linux"),
]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scans")
    write_dataset(root, n_cases=3, shape=(64, 60, 48), seed=4)
    return root


@pytest.fixture(scope="module")
def undisturbed(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Return what a run without workers writes, by format."""
    written = {}
    for format_ in ("npz", "zarr"):
        output = tmp_path_factory.mktemp(format_) / "out"
        place = {"input_dir": scans, "output_dir": output, "num_workers": 0}
        dask_slicer.run(place | {"format": format_}, progress=False)
        written[format_] = contents(output)
    return written


def contents(output: Path) -> dict[str, bytes]:
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and path.name not in TELL_OF_TIMES
    }


def start(scans: Path, output: Path, fault: str = "", *options: object) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-c", PROGRAM, "run", "--input_dir", scans, "--output_dir", output,
        "--dashboard_address", "none", "--quiet", "--num_workers", 2, *options,
    ]  # fmt: skip
    return subprocess.Popen(
        [str(word) for word in command],
        env=os.environ | faults.variables({LARGE: fault} if fault else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def failures_of(output: Path) -> list[list[str]]:
    lines = (output / "failures.csv").read_text().splitlines()
    return [line.split(",") for line in lines[1:]]


@pytest.mark.parametrize("format_", ["npz", "zarr"])
@pytest.mark.parametrize("fault", ["part once exit", "part exit", "part segfault"])
def test_a_worker_that_dies_in_a_part_costs_no_case(
    scans, undisturbed, tmp_path, fault, format_
) -> None:
    process = start(scans, tmp_path / "out", fault, "--format", format_)
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert contents(tmp_path / "out") == undisturbed[format_]
    assert not [*(tmp_path / "out").glob(".dask*")]


HANGS = pytest.mark.parametrize("fault", ["part sleep", "part hold_gil", "part freeze"])


@HANGS
def test_a_part_that_hangs_fails_its_case_in_time(scans, tmp_path, fault) -> None:
    options = "--timeout", TIMEOUT, "--only", LARGE, "--retries", 0
    process = start(scans, tmp_path / "out", fault, *options)
    _, stderr = process.communicate()
    assert process.returncode == 1, stderr
    assert [(row[0], row[1], row[2]) for row in failures_of(tmp_path / "out")] == [
        (LARGE, "save", "Timeout")
    ]
    assert not [*(tmp_path / "out").rglob("*.npz")]
    assert not [*(tmp_path / "out").glob(".dask*")]


@HANGS
def test_a_part_that_hangs_costs_no_other_case(scans, undisturbed, tmp_path, fault) -> None:
    process = start(scans, tmp_path / "out", fault, "--timeout", TIMEOUT)
    _, stderr = process.communicate()
    written = {k: v for k, v in contents(tmp_path / "out").items() if k.endswith(".npz")}
    expected = {k: v for k, v in undisturbed["npz"].items() if k.endswith(".npz")}
    if process.returncode == 1:
        assert [(row[0], row[1], row[2]) for row in failures_of(tmp_path / "out")] == [
            (LARGE, "save", "Timeout")
        ]
        expected = {k: v for k, v in expected.items() if LARGE not in k}
    else:
        # Another attempt is not in parts if a worker that was stopped is not back yet, or if it
        # could not say which of its tasks ran; the fault is in parts only.
        assert process.returncode == 0, stderr
    assert written == expected
    assert not [*(tmp_path / "out").glob(".dask*")]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_a_run_that_ends_in_a_part_is_continued(scans, undisturbed, tmp_path, end) -> None:
    output = tmp_path / "out"
    process = start(scans, output, "part sleep")
    deadline = time.monotonic() + 60
    # The other parts of the case are written, then the run waits for the one that hangs.
    while len([*output.glob(".dask_slicer.tmp/*/*/*/*.npz")]) < 20:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(end)
    process.communicate()
    psutil.wait_procs(children, timeout=30)
    records = [json.loads(line) for line in (output / "journal.jsonl").read_text().splitlines()]
    assert LARGE not in [record["case_id"] for record in records]
    assert not [*output.rglob(f"train/{LARGE}*")]
    again = start(scans, output)
    _, stderr = again.communicate()
    assert again.returncode == 0, stderr
    assert contents(output) == undisturbed["npz"]
    assert not [*output.glob(".dask*")]
