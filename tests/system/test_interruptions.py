"""A run that is killed, interrupted or terminated: what is done stays, the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from linked_phantoms import write_many

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")

N_CASES = 40
# Level 9 takes long enough to be in the middle of a run when its first cases are done.
SETTINGS = ("--compression_level", "9", "--window_size", "1")
EXPECTED = {
    *("config.yaml", "dataset_info.json", "journal.jsonl", "slices.csv", "splits.json"),
    "slices.columns",
    *("train", "val", "test"),
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset of many cases, all of them the same volume."""
    return write_many(tmp_path_factory.mktemp("many"), n_cases=N_CASES, shape=(64, 60, 16))


@pytest.fixture(scope="module")
def undisturbed(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return what a run that nobody disturbs writes."""
    output = tmp_path_factory.mktemp("undisturbed") / "slices"
    subprocess.run(command(scans, output, n_workers=2), check=True, capture_output=True)
    return contents(output)


def contents(output: Path) -> dict[str, bytes]:
    paths = [*output.rglob("*.npz"), output / "slices.csv", output / "splits.json"]
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


def command(scans: Path, output: Path, *, n_workers: int) -> list[str]:
    directories = ["--input_dir", str(scans), "--output_dir", str(output)]
    workers = ["--num_workers", str(n_workers), "--dashboard_address", "127.0.0.1:0"]
    return [sys.executable, "-m", "dask_slicer", "run", *directories, *workers, *SETTINGS]


@pytest.fixture
def start(scans: Path, tmp_path: Path) -> Iterator[Callable[[int], subprocess.Popen[str]]]:
    """Return a function that starts a run in a session of its own; kills what is left of it."""
    started: list[subprocess.Popen[str]] = []

    def call(n_workers: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command(scans, tmp_path / "slices", n_workers=n_workers),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield call
    for process in started:
        for left in processes_of(process):
            left.kill()
        process.communicate()


def processes_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes that a session still holds, zombies left out."""
    found = []
    for candidate in psutil.process_iter():
        try:
            mine = os.getsid(candidate.pid) == process.pid
            if mine and candidate.status() != psutil.STATUS_ZOMBIE:
                found.append(candidate)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def assert_no_process_is_left(process: subprocess.Popen[str], *, within: float = 30) -> None:
    # Python's own resource tracker ends a moment after the process that it served.
    deadline = time.monotonic() + within
    while left := processes_of(process):
        assert time.monotonic() < deadline, [found.cmdline() for found in left]
        time.sleep(0.05)


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def n_lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def assert_the_same_command_completes(
    scans: Path, output: Path, undisturbed: dict[str, bytes], *, n_workers: int
) -> str:
    result = subprocess.run(
        command(scans, output, n_workers=n_workers), check=False, capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert contents(output) == undisturbed
    assert {path.name for path in output.iterdir()} == EXPECTED
    assert all(path.suffix == ".npz" for path in output.glob("*/*"))
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_killed_run_is_completed_by_the_same_command(
    scans, undisturbed, start, tmp_path, n_workers
) -> None:
    output = tmp_path / "slices"
    killed = start(n_workers)
    wait_until(lambda: n_lines(output / "journal.jsonl") >= 5, killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    n_done = n_lines(output / "journal.jsonl")
    assert n_done < N_CASES
    said = assert_the_same_command_completes(scans, output, undisturbed, n_workers=0)
    assert "took over the lock of a run that died" in said
    assert f"Skipped {n_done} cases" in said


@pytest.mark.slow
def test_a_run_killed_repeatedly_completes(scans, undisturbed, start, tmp_path) -> None:
    output = tmp_path / "slices"
    rng = np.random.default_rng(11)
    for _ in range(6):
        before = n_lines(output / "journal.jsonl")
        killed = start(2)
        wait_until(lambda: n_lines(output / "journal.jsonl") > before, killed)  # noqa: B023, at once
        time.sleep(rng.uniform(0, 0.1))
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
    assert_the_same_command_completes(scans, output, undisturbed, n_workers=2)


@pytest.mark.slow
def test_a_second_run_into_the_same_directory_is_refused_and_harms_nothing(
    scans, undisturbed, start, tmp_path
) -> None:
    output = tmp_path / "slices"
    first = start(0)
    wait_until(lambda: n_lines(output / "journal.jsonl") >= 1, first)
    second = start(0)
    stdout, stderr = second.communicate(timeout=60)
    assert first.poll() is None
    assert (second.returncode, stdout) == (2, "")
    (line,) = stderr.splitlines()
    assert f"is in use by another run (process {first.pid} on " in line
    assert first.wait(60) == 0
    assert contents(output) == undisturbed


@pytest.mark.slow
def test_workers_do_not_outlive_a_driver_that_is_killed(scans, start, tmp_path) -> None:
    output = tmp_path / "slices"
    killed = start(2)
    wait_until(lambda: n_lines(output / "journal.jsonl") >= 3, killed)
    killed.kill()
    killed.wait()
    assert_no_process_is_left(killed)


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_time_and_nothing_else(
    scans, undisturbed, start, tmp_path
) -> None:
    output = tmp_path / "slices"
    run = start(2)
    for n_done in (3, 10):
        wait_until(lambda: n_lines(output / "journal.jsonl") >= n_done, run)  # noqa: B023, at once
        victim = max(processes_of(run), key=lambda process: process.create_time())
        victim.kill()
    stdout, stderr = run.communicate(timeout=120)
    assert (run.returncode, stderr) == (0, ""), stdout
    assert contents(output) == undisturbed
    assert {path.name for path in output.iterdir()} == EXPECTED


def to_group(process: subprocess.Popen[str], number: int) -> None:
    os.killpg(process.pid, number)


def to_driver(process: subprocess.Popen[str], number: int) -> None:
    process.send_signal(number)


slow = pytest.mark.slow
STOPS = [
    pytest.param(signal.SIGINT, to_group, 2, 130, id="Ctrl-C", marks=slow),
    pytest.param(signal.SIGTERM, to_group, 2, 143, id="batch system", marks=pytest.mark.slow),
    pytest.param(signal.SIGTERM, to_driver, 2, 143, id="kill", marks=slow),
    pytest.param(signal.SIGINT, to_driver, 2, 130, id="kill -INT", marks=slow),
    pytest.param(signal.SIGINT, to_group, 0, 130, id="Ctrl-C in this process"),
    pytest.param(signal.SIGTERM, to_driver, 0, 143, id="kill in this process", marks=slow),
]


@pytest.mark.parametrize(("number", "send", "n_workers", "status"), STOPS)
def test_a_run_that_is_stopped_ends_soon_and_tidily_and_can_be_continued(
    scans, undisturbed, start, tmp_path, number, send, n_workers, status
) -> None:
    output = tmp_path / "slices"
    stopped = start(n_workers)
    wait_until(lambda: n_lines(output / "journal.jsonl") >= 5, stopped)
    send(stopped, number)
    assert_stopped_tidily(stopped, status)
    assert {path.name for path in output.iterdir()} <= EXPECTED
    assert 5 <= n_lines(output / "journal.jsonl") < N_CASES
    said = assert_the_same_command_completes(scans, output, undisturbed, n_workers=0)
    assert f"Skipped {N_CASES - said_to_be_run(said)} cases" in said
    assert "lock" not in said


def said_to_be_run(text: str) -> int:
    (line,) = [line for line in text.splitlines() if line.startswith("Run: ")]
    return int(line.split()[1])


def assert_stopped_tidily(stopped: subprocess.Popen[str], status: int) -> None:
    # 5 s are promised; a machine that runs other tests meanwhile may take longer.
    stdout, stderr = stopped.communicate(timeout=60)
    assert stopped.returncode == status, stdout + stderr
    assert "Traceback" not in stdout + stderr
    assert "run the same command again to continue" in stdout
    assert_no_process_is_left(stopped)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "send", "n_workers", "status"), STOPS)
@pytest.mark.parametrize("seconds", [0.0, 0.2, 0.4, 0.8])
def test_a_run_that_is_stopped_while_its_workers_start_ends_tidily_too(
    scans, undisturbed, start, tmp_path, number, send, n_workers, status, seconds
) -> None:
    output = tmp_path / "slices"
    stopped = start(n_workers)
    wait_until((output / ".dask_slicer.lock").exists, stopped)
    time.sleep(seconds)
    if stopped.poll() is not None:
        pytest.skip("it was done before")
    send(stopped, number)
    stdout, stderr = stopped.communicate(timeout=60)
    if f"of {N_CASES} cases (" in stdout and stopped.returncode:
        pytest.skip("it was done when the signal came, and was on its way out")
    assert stopped.returncode == status, stdout + stderr
    assert "Traceback" not in stdout + stderr
    assert_no_process_is_left(stopped)
    assert_the_same_command_completes(scans, output, undisturbed, n_workers=0)
    assert not (output / ".dask_slicer.lock").exists()
    assert not (output / ".dask_slicer.tmp").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.01, 0.05, 0.2])
def test_repeated_ctrl_c_changes_nothing(scans, undisturbed, start, tmp_path, seconds) -> None:
    output = tmp_path / "slices"
    stopped = start(2)
    wait_until(lambda: n_lines(output / "journal.jsonl") >= 5, stopped)
    for _ in range(3):
        os.killpg(stopped.pid, signal.SIGINT)
        time.sleep(seconds)
    stdout, stderr = stopped.communicate(timeout=60)
    # One that comes after all is done may end Python itself; a shell says 130 to both.
    assert stopped.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in stdout + stderr
    assert "run the same command again to continue" in stdout
    assert {path.name for path in output.iterdir()} <= EXPECTED
    assert_no_process_is_left(stopped)
    assert_the_same_command_completes(scans, output, undisturbed, n_workers=2)
