"""A run is watched from another shell, through its output or its scheduler, and left alone."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import faults
import psutil
import pytest

import dask_slicer
from dask_slicer.inputs.phantom import write_dataset
from dask_slicer.output.lock_owner import lock_owner

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")

# Few enough that each has a graph of its own.
N_CASES = 10
LOCK = ".dask_slicer.lock"
# Of three workers two come to sleep, whatever the order, and one does all the rest.
GO_ON = {"phantom_003": "sleep", "phantom_006": "sleep"}
# With the default, one more may be put behind a case that sleeps, and be left there.
ONE_A_WORKER = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION": "1.0"}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scans")
    write_dataset(root, n_cases=N_CASES, shape=(24, 22, 9), seed=5)
    return root


def contents(output: Path) -> dict[str, bytes]:
    paths = [*output.rglob("*.npz"), output / "slices.csv", output / "splits.json"]
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


def start_run(scans: Path, output: Path, *options: object, **poison: str) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "dask_slicer", "run", "--input_dir", scans, "--output_dir", output,
        "--dashboard_address", "none", "--retries", 0, "--num_workers", 3, *options,
    ]  # fmt: skip
    return subprocess.Popen(
        [str(part) for part in command],
        env=os.environ | faults.variables(poison),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(what: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def end(process: subprocess.Popen[str]) -> None:
    """End a run, if it goes on, and its workers."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def address_in(output: Path) -> str:
    """Return the address that a lock names, empty until then."""
    owner = lock_owner(output)
    return "" if owner is None else owner.scheduler


@dataclass
class Going:
    """A run that does not come to an end: seven cases done, one failed, two that sleep."""

    output: Path
    process: subprocess.Popen[str]
    address: str
    file: Path | None = None


@pytest.fixture(scope="module")
def here(scans, tmp_path_factory) -> Iterator[Going]:
    """Return a run on workers of its own."""
    output = tmp_path_factory.mktemp("here") / "slices"
    process = start_run(scans, output, **GO_ON, phantom_001="raise")
    try:
        wait_for(lambda: address_in(output), process)
        yield Going(output, process, address_in(output))
    finally:
        end(process)


@pytest.fixture(scope="module")
def there(scans, tmp_path_factory, started_scheduler) -> Iterator[Going]:
    """Return a run on somebody's scheduler."""
    folder = tmp_path_factory.mktemp("there")
    poison = faults.variables(GO_ON | {"phantom_001": "raise"})
    with started_scheduler(folder, n_workers=3, everywhere=ONE_A_WORKER, **poison) as started:
        output = folder / "slices"
        # A worker that comes late finds cases put behind those that sleep.
        all_of_them = ("--wait_workers", 3)
        process = start_run(scans, output, "--scheduler", started.address, *all_of_them)
        try:
            wait_for(lambda: address_in(output), process)
            yield Going(output, process, started.address, started.file)
        finally:
            end(process)


def once_it_shows(invoke, pattern: str, *arguments: object) -> str:
    """Return what `watch --once` prints, as soon as that is in it."""
    deadline = time.monotonic() + 120
    while True:
        result = invoke("watch", *arguments, "--once")
        assert result.exit_code == 0, result.output
        if re.search(pattern, result.stdout):
            return result.stdout
        assert time.monotonic() < deadline, result.stdout
        time.sleep(0.2)


ALL_IN_IT = re.compile(
    r"8 of 10 cases, 1 failed, about .* left, \d+ slices/s, .* so far, "
    r"[\d.]+ \w+/s read, [\d.]+ \w+/s written\n.*"
    r" load +phantom_00[36] +[\d.]+ s\n.* load +phantom_00[36] +[\d.]+ s\n.*"
    r"3 workers, 3 threads.*Last failures\n.*\nphantom_001 +load +Unexpected +RuntimeError",
    flags=re.DOTALL,
)


@pytest.mark.parametrize("where", ["output", "address"])
@pytest.mark.slow
def test_watch_shows_workers_cases_failures_and_time_left(here, invoke, where) -> None:
    shown = once_it_shows(invoke, ALL_IN_IT, here.output if where == "output" else here.address)
    assert f"{here.output} (process {here.process.pid} on {socket.gethostname()})" in shown
    assert len(re.findall(r"^[0-2] +\d+% +[\d.]+ MB of [\d.]+ GB +load", shown, flags=re.M)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("where", ["output", "address", "file"])
def test_watch_shows_a_run_on_a_shared_scheduler(there, invoke, where) -> None:
    options = {
        "output": [there.output],
        "address": [there.address],
        "file": ["--scheduler_file", there.file],
    }
    shown = once_it_shows(invoke, ALL_IN_IT, *options[where])
    assert str(there.output) in shown
    assert len(re.findall(r"^127\.0\.0\.1:\d+ +\d+% ", shown, flags=re.M)) == 3


def test_a_lock_that_names_a_scheduler_refuses_a_second_run(here, invoke, scans) -> None:
    result = invoke("run", "--input_dir", scans, "--output_dir", here.output)
    assert result.exit_code == 2
    assert f"in use by another run (process {here.process.pid} on " in result.stderr


# -- what cannot be watched ------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.mark.parametrize(
    ("lock", "status", "said"),
    [
        (None, 0, "No run writes to {out}. dataset_info.json lists 10 cases, 66 slices, 0 failed"),
        ("{host} {dead} 1.0 tcp://127.0.0.1:{free}", 0, "The run into {out} died (process {dead}"),
        ("far 4711 1.0", 0, "The run into {out} is starting"),
        ("no lock", 0, "No run writes to {out}."),
        ("far 47 1.0 place=a run=b stale=0", 0, "The run into {out} died (process 47 on far, last"),
        ("far 47 1.0 place=a run=b stale=600", 0, "The run into {out} is starting"),
    ],
)
def test_watch_refuses_an_output_without_a_run_in_one_line(
    scans, tmp_path, invoke, lock, status, said
) -> None:
    output = tmp_path / "slices"
    dask_slicer.run(dask_slicer.RunConfig(input_dir=scans, output_dir=output, num_workers=0))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {
        "out": output, "dead": dead.pid, "free": free_port(), "host": socket.gethostname(),
    }  # fmt: skip
    if lock is not None:
        (output / LOCK).write_text(lock.format(**names))
    before = contents(output)
    result = invoke("watch", output)
    assert result.exit_code == status, result.output
    assert len(result.output.splitlines()) == 1
    assert said.format(**names) in result.output
    assert contents(output) == before


def test_watch_of_an_output_with_cases_left_says_so(scans, tmp_path, invoke) -> None:
    output = tmp_path / "slices"
    config = dask_slicer.RunConfig(input_dir=scans, output_dir=output, num_workers=0)
    first = dask_slicer.plan(config).cases[0].case_id
    dask_slicer.run(config.model_copy(update={"only": (first,)}))
    said = invoke("watch", output).output
    assert said.endswith(" 0 failed; 9 not run yet, repeat the run command to continue\n")


@pytest.mark.parametrize(
    ("lock", "said"),
    [
        ("far 4711 1.0 - 10 1.0", "has no scheduler: it uses one process"),
        (
            "far 4711 1.0 - 10 1.0 place=a run=b stale=600",
            "(process 4711 on far, last sign of life",
        ),
        ("far 4711 1.0 tcp://127.0.0.1:{free} 10 1.0", ": ssh -t far dask-slicer watch {out}"),
        (
            "far 4711 1.0 tcp://{host}:{free} 10 1.0",
            "no Dask scheduler answers at tcp://{host}:{free}",
        ),
        ("far 4711 1.0 tcp://far 10 1.0", "tcp://far (the address has no port)"),
        ("far 4711 1.0 tcp://far:99999 10 1.0", "tcp://far:99999 (the address has no port)"),
    ],
)
def test_a_run_whose_scheduler_cannot_be_asked_is_shown_as_of_its_journal(
    scans, tmp_path, invoke, lock, said
) -> None:
    output = tmp_path / "slices"
    dask_slicer.run(dask_slicer.RunConfig(input_dir=scans, output_dir=output, num_workers=0))
    names = {"out": output, "free": free_port(), "host": socket.gethostname()}
    (output / LOCK).write_text(lock.format(**names))
    before = contents(output)
    result = invoke("watch", output)
    assert result.exit_code == 0, result.output
    first, *_ = result.output.splitlines()
    assert first.startswith("No workers to show: ")
    assert said.format(**names) in first
    assert f"{output} (process 4711 on far)" in result.output.replace("\n", "")
    assert ("Last sign of life from far: " in result.output) == ("stale" in lock)
    assert re.search(r"^10 of 10 cases, 0 failed, ", result.output, flags=re.M)
    assert re.search(r"^train +\d+ of \d+ +0 +\d+", result.output, flags=re.M)
    assert contents(output) == before


@pytest.mark.slow
def test_a_run_in_its_own_process_is_watched_until_it_ends(
    scans, tmp_path, invoke, start_watcher
) -> None:
    output = tmp_path / "slices"
    run = start_run(scans, output, "--num_workers", 0, phantom_001="raise", phantom_003="sleep")
    try:
        wait_for((output / LOCK).exists, run)
        shown = once_it_shows(invoke, r"[1-9] of 10 cases, 1 failed", output)
        assert "phantom_001  load  Unexpected  RuntimeError" in shown
        watcher = start_watcher(output)
        watcher.wait_for(rb"[1-9] of 10 cases, 1 failed, about")
    finally:
        end(run)
    assert watcher.process.wait(60) == 0
    watcher.wait_for(rb"No run writes to .*slices")
    assert b"Traceback" not in watcher.drawn


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["tcp://127.0.0.1:{free}"], 1, "no Dask scheduler answers at tcp://127.0.0.1:{free}"),
        (["nowhere"], 2, "neither an output directory nor an address such as tcp://host:8786"),
        (["{empty}"], 2, "is not an output of dask-slicer"),
        (["tcp://host"], 2, "must be an address such as tcp://host:8786"),
        (["tls://127.0.0.1:{free}"], 2, "needs tls_ca, tls_cert and tls_key"),
        (["--scheduler_file", "{empty}/s.json"], 1, "does not exist; is the scheduler running?"),
        ([], 2, "give watch one of: an output directory, an address, --scheduler_file"),
        (
            ["{empty}", "--scheduler_file", "s.json"],
            2,
            "give watch one of: an output directory, an",
        ),
        (["{empty}", "--tls_ca", "ca.pem"], 2, "go together, got no tls_cert and no tls_key"),
    ],
)
def test_an_invalid_target_of_watch_is_refused_in_one_line(
    tmp_path, invoke, arguments, status, said
) -> None:
    names = {"free": free_port(), "empty": tmp_path}
    result = invoke("watch", *(argument.format(**names) for argument in arguments))
    assert result.exit_code == status, result.output
    assert len(result.stderr.splitlines()) == 1
    assert said.format(**names) in result.stderr


@pytest.mark.slow
def test_a_scheduler_without_runs_and_workers_is_shown_as_such(
    tmp_path, invoke, started_scheduler
) -> None:
    with started_scheduler(tmp_path, n_workers=0) as started:
        result = invoke("watch", started.address, "--once")
    assert result.exit_code == 0
    assert "No dask-slicer run on this scheduler" in result.stdout
    assert "no worker" in result.stdout


# -- watchers on a terminal ------------------------------------------------------------------------


@dataclass
class Watcher:
    """`dask-slicer watch` on a terminal of 30 lines, and what it has drawn."""

    process: subprocess.Popen[bytes]
    drawn: bytearray

    def wait_for(self, pattern: bytes) -> None:
        deadline = time.monotonic() + 120
        while not re.search(pattern, bytes(self.drawn)):
            assert time.monotonic() < deadline, self.drawn.decode()
            time.sleep(0.1)


@pytest.fixture
def start_watcher() -> Iterator[Callable[[object], Watcher]]:
    """Return a function that starts a watcher on a terminal; kills what is left of it."""
    import pty

    started: list[subprocess.Popen[bytes]] = []
    masters: list[int] = []

    def call(where: object) -> Watcher:
        master, slave = pty.openpty()
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
        process = subprocess.Popen(
            [sys.executable, "-m", "dask_slicer", "watch", str(where)],
            stdin=slave, stdout=slave, stderr=slave, env=environment,
        )  # fmt: skip
        os.close(slave)
        drawn = bytearray()

        def read() -> None:
            try:
                while part := os.read(master, 65536):
                    drawn.extend(part)
            except OSError:  # its other end is closed
                pass

        threading.Thread(target=read, daemon=True).start()
        started.append(process)
        masters.append(master)
        return Watcher(process, drawn)

    yield call
    for process in started:
        process.kill()
        process.wait()
    for master in masters:
        os.close(master)


@pytest.mark.slow
def test_interrupted_or_killed_watchers_do_not_disturb_a_run(
    scans, tmp_path, start_watcher
) -> None:
    output, undisturbed = tmp_path / "slices", tmp_path / "undisturbed"
    dask_slicer.run(dask_slicer.RunConfig(input_dir=scans, output_dir=undisturbed, num_workers=0))
    output.mkdir()
    # Two workers stop in the middle of a case, until they are told to go on.
    run = start_run(scans, output, phantom_003="freeze", phantom_006="freeze")
    try:
        wait_for((output / LOCK).exists, run)
        watchers = [start_watcher(output) for _ in range(3)]
        for watcher in watchers:
            watcher.wait_for(rb"[1-9] of 10 cases.* left")
        watchers[0].process.send_signal(signal.SIGINT)
        watchers[1].process.kill()
        assert watchers[0].process.wait(60) == 130
        assert b"Traceback" not in watchers[0].drawn
        for worker in psutil.Process(run.pid).children(recursive=True):
            worker.send_signal(signal.SIGCONT)
        said, _ = run.communicate(timeout=120)
        assert run.returncode == 0, said
        assert watchers[2].process.wait(60) == 0
    finally:
        end(run)
    watchers[2].wait_for(rb"(?s)10 of 10 cases.*The run into .*slices has ended")
    assert b"Traceback" not in watchers[2].drawn
    assert contents(output) == contents(undisturbed)


@pytest.mark.slow
def test_watch_reports_a_killed_run(scans, tmp_path, start_watcher) -> None:
    output = tmp_path / "slices"
    run = start_run(scans, output, **GO_ON)
    try:
        wait_for(lambda: address_in(output), run)
        watcher = start_watcher(output)
        watcher.wait_for(rb"of 10 cases")
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
    assert watcher.process.wait(60) == 0
    watcher.wait_for(rb"The run into .*slices died")
    assert b"Traceback" not in watcher.drawn
