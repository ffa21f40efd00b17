"""A case that kills its worker, hangs, or comes to nonsense fails by name; the others are written.

`tests/helpers/faults.py` breaks cases in the processes that a test starts.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import faults
import psutil
import pytest

import dask_slicer
from dask_slicer.execution import pipeline, watchdog
from dask_slicer.inputs.phantom import write_dataset
from dask_slicer.utils import system

POISON = "phantom_004"
N_CASES = 13
TIMEOUT = 6
# A worker's share of what this program believes the machine to have is what it may use.
PROGRAM = """
import sys
from dask_slicer.utils import system
system.memory_bytes = lambda: 900_000_000
from dask_slicer.cli.main import main
main()
"""


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("scans")
    write_dataset(root, n_cases=N_CASES, shape=(40, 36, 12), seed=3)
    return root


@pytest.fixture(scope="module")
def undisturbed(scans, tmp_path_factory) -> Callable[[str], dict[str, bytes]]:
    """Return what a run in which nothing goes wrong writes, by format."""
    outputs = {}
    for format_ in ("npz", "zarr"):
        outputs[format_] = tmp_path_factory.mktemp(format_) / "out"
        dask_slicer.run(
            dask_slicer.RunConfig(
                input_dir=scans, output_dir=outputs[format_], num_workers=0, format=format_
            )
        )
    return lambda format_: slices_of(outputs[format_])


def slices_of(output: Path) -> dict[str, bytes]:
    """Return all files of slices by name; those of the store as a whole say what it holds."""
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for folder in ("train", "val", "test", "slices.zarr")
        for path in (output / folder).rglob("*")
        if path.is_file() and path != output / "slices.zarr" / "zarr.json"
    }


def failures_of(output: Path) -> list[tuple[str, str, str, str]]:
    with (output / "failures.csv").open(encoding="utf-8", newline="") as lines:
        return [tuple(row.values()) for row in csv.DictReader(lines)]


def run(scans: Path, output: Path, *options: object, **poison: str) -> subprocess.CompletedProcess:
    command = [
        sys.executable, "-c", PROGRAM, "run", "--input_dir", scans, "--output_dir", output,
        "--dashboard_address", "none", "--quiet", *options,
    ]  # fmt: skip
    return subprocess.run(
        [str(part) for part in command],
        env=os.environ | faults.variables(poison),
        capture_output=True,
        text=True,
        check=False,
    )


UNTOLD = "died; the system's log may say why"
SORTS = [
    ("exit", "WorkerLost", "exited with status 7"),
    ("segfault", "WorkerLost", "was killed by signal 11 (SIGSEGV)"),
    ("memory", "OutOfMemory", "its worker exceeded its memory limit"),
    ("sleep", "Timeout", f"took longer than --timeout {TIMEOUT} s and was stopped"),
    ("hold_gil", "Timeout", f"took longer than --timeout {TIMEOUT} s and was stopped"),
    ("freeze", "Timeout", f"took longer than --timeout {TIMEOUT} s and was stopped"),
    ("raise", "Unexpected", "RuntimeError: a fault on purpose"),
    ("io", "Unexpected", "OSError: a disk: input/output error"),
    ("nonsense", "Unexpected", "returned no record"),
]


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="signals and nannies as on Linux")
@pytest.mark.parametrize("where", ["npz", "zarr", "scheduler"])
@pytest.mark.parametrize(("sort", "kind", "message"), SORTS, ids=[sort[0] for sort in SORTS])
def test_one_poison_case_among_twelve(
    scans, undisturbed, started_scheduler, tmp_path, sort, kind, message, where
) -> None:
    output = tmp_path / "out"
    format_ = "zarr" if where == "zarr" else "npz"
    # Of the others none is to be stopped for its time, however busy this machine is.
    timeout = TIMEOUT if kind == "Timeout" else 20 * TIMEOUT
    options = ["--timeout", timeout, "--format", format_, "--retries", 1]
    if where == "scheduler":
        poison = faults.variables({POISON: sort})
        with started_scheduler(tmp_path, n_workers=2, memory_limit="450MB", **poison) as started:
            result = run(scans, output, "--scheduler", started.address, *options)
    else:
        result = run(scans, output, "--num_workers", 2, *options, **{POISON: sort})
    assert result.returncode == 1, result.stderr
    failures = failures_of(output)
    assert [(case_id, found) for case_id, _, found, _ in failures] == [(POISON, kind)], failures
    told = [message]
    if kind == "WorkerLost":  # how, is lost where the next worker starts at that moment
        told.append(UNTOLD)
    assert any(text in failures[0][-1] for text in told)
    healthy = {
        name: content for name, content in undisturbed(format_).items() if POISON not in name
    }
    assert slices_of(output) == healthy
    assert not list(output.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="signals as on Linux")
@pytest.mark.parametrize(
    ("sort", "message"),
    [(sort, message) for sort, kind, message in SORTS if kind == "WorkerLost"],
)
def test_the_cause_of_death_of_a_local_worker_is_reported(scans, tmp_path, sort, message) -> None:
    output = tmp_path / "out"
    # Tried once more when nothing else runs: no other worker starts as this one dies.
    run(scans, output, "--num_workers", 2, "--retries", 0, **{POISON: sort})
    ((case_id, _, _, told),) = failures_of(output)
    assert (case_id, told) == (POISON, f"the worker that ran it {message}")


@pytest.mark.parametrize(
    ("exitcode", "more_oom_kills", "kind", "message"),
    [
        (7, 0, "WorkerLost", "exited with status 7"),
        (-11, 0, "WorkerLost", "was killed by signal 11 (SIGSEGV)"),
        (-9, 0, "WorkerLost", "was killed by signal 9 (SIGKILL)"),
        (255, 0, "WorkerLost", UNTOLD),  # read elsewhere
        (None, 0, "WorkerLost", UNTOLD),  # has no nanny of ours
        (-9, 1, "OutOfMemory", "the system was out of memory"),
        (255, 1, "OutOfMemory", "the system was out of memory"),
        (7, 1, "WorkerLost", "exited with status 7"),
        (None, 1, "WorkerLost", UNTOLD),  # may be of another machine
    ],
)
def test_the_exit_code_gives_the_cause_of_death_of_a_worker(
    monkeypatch, exitcode, more_oom_kills, kind, message
) -> None:
    monkeypatch.setattr(watchdog, "address", str)
    monkeypatch.setattr(watchdog.Watchdog, "_passed_its_limit", lambda *_: False)
    monkeypatch.setattr(watchdog.Watchdog, "_exitcode", lambda *_: exitcode)
    monkeypatch.setattr(system, "n_oom_kills", lambda: 3)
    watching = watchdog.Watchdog(Mock(), None)
    watching._n_oom_kills = 3
    monkeypatch.setattr(system, "n_oom_kills", lambda: 3 + more_oom_kills)
    lost = watching._lost(Mock(task=("load", "ct_1")))
    assert (lost.kind, lost.step) == (kind, "load")
    assert message in lost.one_line


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(300)
def test_the_same_command_runs_the_case_again(scans, undisturbed, tmp_path) -> None:
    output = tmp_path / "out"
    assert run(scans, output, "--num_workers", 2, **{POISON: "exit"}).returncode == 1
    assert run(scans, output, "--num_workers", 2).returncode == 0
    assert slices_of(output) == undisturbed("npz")
    assert not (output / "failures.csv").exists()


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(300)
def test_poison_cases_fail_alone(scans, tmp_path) -> None:
    poison = {f"phantom_{number:03d}": "exit" for number in (0, 3, 4, 8)}
    result = run(scans, tmp_path / "out", "--num_workers", 2, "--retries", 0, **poison)
    assert result.returncode == 1
    assert {failure[0] for failure in failures_of(tmp_path / "out")} == set(poison)


def test_a_case_that_does_not_fit_is_named_before_it_is_loaded(
    dataset, slice_dataset, monkeypatch
) -> None:
    import numpy as np

    dataset.add("large", np.zeros((120, 120, 60), np.int16))
    dataset.add("small")
    monkeypatch.setattr(system, "memory_bytes", lambda: 3_000_000)
    output = slice_dataset()
    ((case_id, step, kind, message),) = failures_of(output)
    assert (case_id, step, kind) == ("large", "load", "OutOfMemory")
    assert message.startswith("needs 4.3 MB of memory, a worker may use 3.0 MB")
    assert list((output / "train").glob("small_*"))


HUNGRY = """
import resource, sys
from pathlib import Path
from dask_slicer.cli.main import main
import dask_slicer.execution.pipeline, dask_slicer.inputs.phantom, dask.delayed
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 250_000_000,) * 2)
main()
"""


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.skipif(sys.platform != "linux", reason="limits as on Linux")
def test_memory_that_the_system_does_not_give_fails_the_case_that_asked_for_it(
    dataset, tmp_path
) -> None:
    import numpy as np

    dataset.add("large", np.ones((400, 400, 500), np.int16))
    dataset.add("small")
    output = tmp_path / "out"
    command = [
        sys.executable, "-c", HUNGRY, "run", "--input_dir", dataset.root, "--output_dir", output,
        "--num_workers", "0",
    ]  # fmt: skip
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1, result.stderr
    ((case_id, _, kind, _),) = failures_of(output)
    assert (case_id, kind) == ("large", "OutOfMemory")
    assert list(output.rglob("small_*.npz"))


def test_no_variable_of_the_environment_makes_a_case_fail(
    dataset, slice_dataset, monkeypatch
) -> None:
    monkeypatch.setenv("DASK_SLICER_FAULTS", "not JSON")
    dataset.add("a")
    assert not (slice_dataset() / "failures.csv").exists()


def test_without_workers_no_case_can_be_stopped(dataset, invoke, tmp_path) -> None:
    dataset.add("a")
    result = invoke(
        *("run", "--input_dir", dataset.root, "--output_dir", tmp_path / "out"),
        *("--num_workers", 0, "--timeout", 1),
    )
    assert result.exit_code == 0
    assert "--timeout has no effect in this process" in result.output


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("event", "said"),
    [
        ("frozen", "has not answered for 3 s"),
        ("killed", "was lost"),
        ("without_workers", "nothing has run for 4 s; the scheduler has 0 workers"),
    ],
)
def test_a_run_ends_when_the_scheduler_is_lost_or_nothing_runs(
    scans, started_scheduler, tmp_path, monkeypatch, event, said
) -> None:
    monkeypatch.setattr(watchdog, "_LOOK_SECONDS", 0.5)
    monkeypatch.setattr(watchdog, "_ANSWER_SECONDS", 3)
    monkeypatch.setattr(watchdog, "_STALLED_SECONDS", 4.0)
    output = tmp_path / "out"
    slow = faults.variables({f"phantom_{number:03d}": "slow" for number in range(N_CASES)})
    with started_scheduler(tmp_path, n_workers=1, **slow) as started:
        wanted = started.workers if event == "without_workers" else [started.process]
        processes = [psutil.Process(process.pid) for process in wanted]
        processes += [child for one in processes for child in one.children(recursive=True)]

        def break_it() -> None:
            journal = output / "journal.jsonl"
            deadline = time.monotonic() + 30
            while not (journal.exists() and journal.stat().st_size) and time.monotonic() < deadline:
                time.sleep(0.05)
            for process in processes:
                process.suspend() if event == "frozen" else process.kill()

        breaker = threading.Thread(target=break_it)
        breaker.start()
        try:
            report = pipeline.run(
                dask_slicer.RunConfig(
                    input_dir=scans,
                    output_dir=output,
                    scheduler=started.address,
                    performance_report=tmp_path / "report.html",
                )
            )
        finally:
            breaker.join()
            if event == "frozen":
                for process in processes:
                    process.resume()
    assert 0 < report.n_committed < N_CASES
    assert said in report.stopped
    assert not (tmp_path / "report.html").exists()
