"""A run that is frozen until another one has taken over its output, and then wakes up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import faults
import psutil
import pytest
from linked_phantoms import write_many

from dask_slicer.output.lock_owner import read_owner

N_CASES = 12
PATIENCE = 120
# Seconds until a lock is stale; long enough for a run to start on a busy machine.
STALE = 6
RUN = (
    f"from dask_slicer.output import lock_owner; lock_owner.STALE_SECONDS = {STALE}; "
    "from dask_slicer.cli.main import main; main()"
)
# With process ids of its own, as in a container on the same host.
CONTAINER = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="PID namespaces"),
]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_many(tmp_path_factory.mktemp("many"), n_cases=N_CASES, shape=(32, 30, 8))


def command(scans: Path, output: Path, n_workers: int) -> list[str]:
    places = ["--input_dir", str(scans), "--output_dir", str(output)]
    workers = ["--num_workers", str(n_workers), "--dashboard_address", "none"]
    return [sys.executable, "-c", RUN, "run", *places, *workers]


def is_overdue(lock: Path) -> bool:
    _, owner = read_owner(lock)
    return owner is not None and owner.is_overdue


def contents(output: Path) -> dict[str, bytes]:
    paths = [*output.rglob("*.npz"), output / "slices.csv", output / "splits.json"]
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_frozen_run_that_wakes_up_leaves_the_output_to_its_successor(
    scans, tmp_path, n_workers
) -> None:
    if subprocess.run([*CONTAINER, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no PID namespace can be made here")
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "slices"
    subprocess.run(command(scans, undisturbed, 0), check=True, capture_output=True)
    cases = [name.rpartition("_")[0] for name in contents(undisturbed) if name.endswith(".npz")]
    slow = {case.rpartition("/")[2]: "slow" for case in cases}
    with subprocess.Popen(
        [*CONTAINER, *command(scans, output, n_workers)],
        env=os.environ | faults.variables(slow),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as frozen:
        journal = output / "journal.jsonl"
        deadline = time.monotonic() + PATIENCE
        while not (journal.exists() and b"\n" in journal.read_bytes()):
            assert frozen.poll() is None, frozen.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        processes = psutil.Process(frozen.pid).children(recursive=True)
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        # A run that starts at once is refused: the lock may have been touched just before.
        while not is_overdue(output / ".dask_slicer.lock"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        next_run = subprocess.run(
            command(scans, output, n_workers), check=False, capture_output=True, text=True
        )
        assert (next_run.returncode, next_run.stderr) == (0, "")
        assert "took over the lock of a run that died" in next_run.stdout
        written = contents(output), journal.read_bytes()
        for process in processes:
            process.send_signal(signal.SIGCONT)
        _, said = frozen.communicate(timeout=PATIENCE)
        assert frozen.returncode == 1, said
        assert "of this run was removed, perhaps while this run was frozen" in said
        assert len(said.splitlines()) == 1
    assert (contents(output), journal.read_bytes()) == written
    assert written[0] == contents(undisturbed)
    assert not list(output.glob(".dask_slicer*"))
