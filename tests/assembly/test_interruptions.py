"""Assembling that is killed or stopped, and continued: the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from predicted import assemble, predict, run

from dask_slicer.inputs.phantom import write_dataset

N_CASES = 40


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("places")
    write_dataset(folder / "scans", n_cases=N_CASES, shape=(96, 96, 40), spacing=(4.0, 4.0, 5.0))
    output = run(folder / "scans", folder / "out", window_size=0)
    return output, predict(output, folder / "predictions", whole=True)


def files(volumes: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in volumes.glob("*.nii.gz")}


def n_noted(volumes: Path) -> int:
    journal = volumes / "assembly.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_assembly_continues_to_the_same_bytes(places, tmp_path, n_workers, sent) -> None:
    output, predictions = places
    volumes = tmp_path / "volumes"
    command = [
        *(sys.executable, "-m", "dask_slicer", "assemble", output, "--predictions", predictions),
        *("--output_dir", volumes, "--num_workers", n_workers, "--dashboard_address", "none"),
    ]
    process = subprocess.Popen(
        [*map(str, command)],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and n_noted(volumes) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    if process.poll() is None:
        if sent == signal.SIGKILL:
            os.killpg(process.pid, sent)
        else:
            process.send_signal(sent)
    printed, _ = process.communicate(timeout=120)
    n_before = len(files(volumes))
    if n_before == N_CASES:
        pytest.skip("it ended before the signal came")
    assert process.returncode == (130 if sent == signal.SIGINT else -sent), printed
    assert b"Traceback" not in printed
    assert (b"Stopped." in printed) == (sent == signal.SIGINT)
    report = assemble(output, predictions, volumes)
    assert not report.failures, report.failures
    assert report.n_written + report.n_skipped == N_CASES
    assert report.n_skipped >= 1
    assert not assemble(output, predictions, tmp_path / "whole").failures
    assert files(volumes) == files(tmp_path / "whole")
    assert not [path.name for path in volumes.iterdir() if path.name.startswith(".")]
