"""Hosts that fail: links that are cut, machines that freeze or die, on network namespaces.

A scheduler and two workers have a host each, on a bridge of which this machine is a part. What they
are started with is what `docs/hpc.md` recommends, with shorter times.
"""

from __future__ import annotations

import csv
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import faults
import psutil
import pytest
from distributed import Client

import dask_slicer
from dask_slicer.inputs.phantom import write_dataset

N_CASES = 20
# A second each, for two workers, and lots of one.
SLOW = {f"phantom_{number:03d}": "slow" for number in range(N_CASES)}

# Seconds after which a silent connection counts as lost (the least that Dask allows), that a
# connection may take to be made, and after which a silent worker counts as lost.
TCP, CONNECT, TTL = 11, 3, 5
# Within which a cut-off worker is lost, and its cases are done by the other.
COMPLETES = TCP + CONNECT + N_CASES
# Within which a scheduler that nobody reaches is given up.
GIVES_UP = 2 * (TCP + CONNECT)
# A worker that does not answer is looked for twice; then its nanny gets 30 s to start it anew.
GIVES_UP_FROZEN = 2 * TTL + 30
# Everything else that a test does: two commands, and processes that start and end.
SLACK = 360
ENVIRONMENT = {
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": f"{TCP}s",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": f"{CONNECT}s",
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": f"{TTL}s",
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION": "1.0",
    "DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING": "False",
}

# Of bridge, links and namespaces; a link's name has 15 letters at most.
PREFIX = "dsl-"
BRIDGE, NETWORK = f"{PREFIX}bridge", "10.91.77"
NAMES = ("scheduler", "worker1", "worker2")


def _ip(*arguments: object, check: bool = True) -> str:
    command = ["ip", *map(str, arguments)]
    return subprocess.run(command, check=check, capture_output=True, text=True).stdout


def _why_not() -> str | None:
    """Return why hosts cannot be made here; None if they can."""
    if shutil.which("ip") is None:
        return "no network namespaces: iproute2 is not installed"
    made = subprocess.run(["ip", "netns", "add", f"{PREFIX}try"], check=False, capture_output=True)
    if made.returncode:
        return f"no network namespaces: {made.stderr.decode().strip()}"
    _ip("netns", "del", f"{PREFIX}try")
    return None


pytestmark = [pytest.mark.slow, pytest.mark.hosts]


@dataclass
class Hosts:
    """A scheduler and two workers, each on a host of its own."""

    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"tcp://{self.ip('scheduler')}:8786"

    @staticmethod
    def ip(name: str) -> str:
        return f"{NETWORK}.{NAMES.index(name) + 2}"

    def start(self, name: str) -> None:
        """Start a host's process, as a user would."""
        if name == "scheduler":
            module, options = "dask_scheduler", ["--host", self.ip(name), "--port", 8786]
        else:
            module = "dask_worker"
            options = [self.address, "--host", self.ip(name), "--nthreads", 1]
            options += ["--local-directory", self.folder / name]
        command = [
            *("ip", "netns", "exec", f"{PREFIX}{name}", sys.executable, "-m"),
            *(f"distributed.cli.{module}", *options, "--no-dashboard"),
        ]
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                [str(part) for part in command],
                stdout=log,
                stderr=log,
                env=os.environ | ENVIRONMENT | faults.variables(SLOW),
            )

    def tree(self, name: str) -> list[psutil.Process]:
        """Return a host's processes: of a worker, the nanny too."""
        process = psutil.Process(self.processes[name].pid)
        return [process, *process.children(recursive=True)]

    def cut(self, name: str) -> None:
        _ip("link", "set", f"{PREFIX}{name}", "down")

    def restore(self, name: str) -> None:
        _ip("link", "set", f"{PREFIX}{name}", "up")

    def workers(self) -> list[str]:
        """Return the names of the workers that the scheduler has."""
        with Client(self.address, timeout=30, set_as_default=False) as client:
            addresses = client.scheduler_info(n_workers=-1)["workers"]
        return [name for name in NAMES for address in addresses if self.ip(name) in address]

    def are_joined(self) -> bool:
        with suppress(OSError):
            return len(self.workers()) == len(NAMES) - 1
        return False


def _build() -> None:
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("addr", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")
    for name in NAMES:
        host = f"{PREFIX}{name}"
        _ip("netns", "add", host)
        _ip("link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", host)
        _ip("link", "set", host, "master", BRIDGE, "up")
        _ip("-n", host, "link", "set", "lo", "up")
        _ip("-n", host, "addr", "add", f"{Hosts.ip(name)}/24", "dev", "eth0")
        _ip("-n", host, "link", "set", "eth0", "up")


def _raze() -> None:
    """Remove the hosts and what runs on them, also those of a test that was killed."""
    for name in NAMES:
        for pid in _ip("netns", "pids", f"{PREFIX}{name}", check=False).split():
            with suppress(psutil.NoSuchProcess):
                psutil.Process(int(pid)).kill()
        _ip("link", "del", f"{PREFIX}{name}", check=False)
        _ip("netns", "del", f"{PREFIX}{name}", check=False)
    _ip("link", "del", BRIDGE, check=False)
    # A link goes a moment after its namespace.
    wait_until(lambda: PREFIX not in _ip("-brief", "link"))


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Return a scheduler and two workers on hosts of their own, or skip."""
    if why_not := _why_not():
        pytest.skip(why_not)
    # One at a time on this machine; the lock goes with a process that is killed.
    with open("/tmp/dask_slicer_hosts.lock", "w") as lock:  # whatever TMPDIR is
        fcntl.flock(lock, fcntl.LOCK_EX)
        _raze()
        made = Hosts(tmp_path)
        try:
            _build()
            for name in NAMES:
                made.start(name)
            wait_until(made.are_joined)
            yield made
        finally:
            _raze()
            for process in made.processes.values():
                process.wait(30)


def wait_until(condition: Callable[[], object], *, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scans")
    write_dataset(root, n_cases=N_CASES, shape=(40, 36, 12), seed=3)
    return root


@pytest.fixture(scope="module")
def undisturbed(scans: Path, tmp_path_factory) -> Callable[[str], dict[str, bytes]]:
    """Return what a run in one process writes, by format."""
    outputs = {}
    for format_ in ("npz", "zarr"):
        outputs[format_] = tmp_path_factory.mktemp(format_) / "out"
        dask_slicer.run(
            dask_slicer.RunConfig(
                input_dir=scans, output_dir=outputs[format_], num_workers=0, format=format_
            )
        )
    return lambda format_: contents_of(outputs[format_])


def contents_of(output: Path) -> dict[str, bytes]:
    """Return every file but those that tell of times and places."""
    told = {"dataset_info.json", "journal.jsonl", "config.yaml"}
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and path.name not in told
    }


def start_run(scans: Path, output: Path, *options: object) -> subprocess.Popen[str]:
    """Start the command on this host."""
    command = [
        *(sys.executable, "-m", "dask_slicer", "run", "--input_dir", scans),
        *("--output_dir", output, "--dashboard_address", "none", *options),
    ]
    return subprocess.Popen(
        [str(part) for part in command],
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def n_ended(output: Path) -> int:
    """Return how many cases a run's journal knows."""
    journal = output / "journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


@pytest.mark.timeout(COMPLETES + SLACK)
@pytest.mark.parametrize("format_", ["npz", "zarr"])
def test_the_other_worker_takes_over_from_one_that_is_cut_off(
    hosts, scans, undisturbed, tmp_path, format_
) -> None:
    output = tmp_path / "out"
    run = start_run(scans, output, "--scheduler", hosts.address, "--format", format_)
    wait_until(lambda: n_ended(output) >= 4)
    hosts.cut("worker1")
    _, said = run.communicate()
    assert run.returncode == 0, said
    assert hosts.workers() == ["worker2"]
    assert contents_of(output) == undisturbed(format_)


@pytest.mark.timeout(GIVES_UP + 2 * N_CASES + SLACK)
@pytest.mark.parametrize(("format_", "then"), [("npz", "workers"), ("zarr", "restored")])
def test_a_scheduler_that_is_cut_off_ends_the_run_and_the_same_command_continues(
    hosts, scans, undisturbed, tmp_path, format_, then
) -> None:
    output = tmp_path / "out"
    command = [scans, output, "--format", format_]
    run = start_run(*command, "--scheduler", hosts.address)
    wait_until(lambda: n_ended(output) >= 4)
    hosts.cut("scheduler")
    said = run.communicate()[1].splitlines()
    assert run.returncode == 1
    assert said == [
        f"Error: the connection to the Dask scheduler at {hosts.address} was lost; "
        "run the same command again to continue"
    ]
    whole = undisturbed(format_)
    committed = contents_of(output)
    n_committed = len(list(csv.DictReader(committed["slices.csv"].decode().splitlines())))
    assert 0 < n_committed < len(whole["slices.csv"].splitlines()) - 1
    verified = subprocess.run(
        [sys.executable, "-m", "dask_slicer", "verify", output, "--num_workers", "0"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert verified.returncode == 0, verified.stdout
    if then == "restored":
        hosts.restore("scheduler")
        for name in ("worker1", "worker2"):  # none comes back by itself
            hosts.processes[name].wait()
            hosts.start(name)
        wait_until(hosts.are_joined)
        run = start_run(*command, "--scheduler", hosts.address)
    else:
        run = start_run(*command, "--num_workers", 2)
    said = run.communicate()[1]
    assert run.returncode == 0, said
    assert contents_of(output) == whole


@pytest.mark.timeout(2 * N_CASES + SLACK)
@pytest.mark.parametrize("name", ["worker1", "scheduler"])
def test_a_network_outage_of_some_seconds_loses_no_worker(
    hosts, scans, undisturbed, tmp_path, name
) -> None:
    output = tmp_path / "out"
    run = start_run(scans, output, "--scheduler", hosts.address)
    wait_until(lambda: n_ended(output) >= 4)
    hosts.cut(name)
    time.sleep(TCP / 2)
    hosts.restore(name)
    _, said = run.communicate()
    assert run.returncode == 0, said
    assert hosts.workers() == ["worker1", "worker2"]
    assert contents_of(output) == undisturbed("npz")


@pytest.mark.timeout(GIVES_UP_FROZEN + 2 * N_CASES + SLACK)
@pytest.mark.parametrize("event", ["frozen", "killed"])
def test_the_other_worker_takes_over_from_a_frozen_or_dead_host(
    hosts, scans, undisturbed, tmp_path, event
) -> None:
    output = tmp_path / "out"
    run = start_run(scans, output, "--scheduler", hosts.address)
    wait_until(lambda: n_ended(output) >= 4)
    for process in hosts.tree("worker1"):
        process.suspend() if event == "frozen" else process.kill()
    _, said = run.communicate()
    assert run.returncode == 0, said
    assert hosts.workers() == ["worker2"]
    assert contents_of(output) == undisturbed("npz")
