"""Whatever is killed, and whenever: the same command completes to the bytes of a quiet run."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from slice_formats import FILES, options
from step_settings import EVERY_STEP_TWICE, as_options

import dask_slicer
from dask_slicer.inputs.phantom import write_dataset

# More of them: DASK_SLICER_KILL_ROUNDS=200 python -m pytest -m faults tests/system/test_kills.py
N_ROUNDS = int(os.environ.get("DASK_SLICER_KILL_ROUNDS", "10"))
WITHIN_SECONDS = 3.5
MOST_KILLS = 3
SETTINGS = {
    "npz": {"format": "npz"},
    "zarr": {"format": "zarr"},
    "png": {"format": "png"},
    "files": FILES,
    "npz, every step": EVERY_STEP_TWICE | {"format": "npz"},
    "zarr, every step": EVERY_STEP_TWICE | {"format": "zarr"},
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.faults,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only"),
]


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("scans")
    write_dataset(root, n_cases=24, shape=(96, 88, 30), seed=2)
    return root


@pytest.fixture(scope="module")
def undisturbed(scans, tmp_path_factory) -> dict[str, dict[str, bytes]]:
    contents = {}
    for name, settings in SETTINGS.items():
        output = tmp_path_factory.mktemp(name) / "out"
        place = {"input_dir": scans, "output_dir": output, "num_workers": 0}
        dask_slicer.run(place | settings, progress=False)
        contents[name] = contents_of(output)
    return contents


def contents_of(output: Path) -> dict[str, bytes]:
    """Return every file but those that tell of times."""
    told = {"dataset_info.json", "journal.jsonl", "config.yaml"}
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and path.name not in told
    }


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        found = psutil.Process(process.pid).children(recursive=True)
        return [child for child in found if child.ppid() != process.pid]  # forked by another
    return []


@pytest.mark.parametrize("number", range(N_ROUNDS))
def test_runs_killed_repeatedly_complete(scans, undisturbed, tmp_path, number) -> None:
    chosen = random.Random(number)
    name = [*SETTINGS][number % len(SETTINGS)]
    command = [
        sys.executable, "-m", "dask_slicer", "run", "--input_dir", scans, "--output_dir",
        tmp_path / "out", "--num_workers", "2", "--quiet", "--dashboard_address", "none",
        *(options(name, scans) if name in ("png", "files") else as_options(SETTINGS[name])),
    ]  # fmt: skip
    for n_kills in range(MOST_KILLS + 1):
        process = subprocess.Popen([str(part) for part in command])
        if n_kills < MOST_KILLS:
            with suppress(subprocess.TimeoutExpired):
                process.wait(chosen.uniform(0, WITHIN_SECONDS))
            victims = [process] if chosen.random() < 0.5 else workers_of(process)
            if victims:
                with suppress(psutil.NoSuchProcess):
                    chosen.choice(victims).kill()
        if process.wait() == 0:
            break
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert contents_of(tmp_path / "out") == undisturbed[name]
    time.sleep(0.5)  # for what a worker whose driver is gone may still do
    assert contents_of(tmp_path / "out").keys() == undisturbed[name].keys()


# Runs again and again into new folders: the first run is killed at the first thing that it does to
# the output, or case that it samples, the second one at the second, and so on; then each completes.
KILLED_EVERYWHERE = """
import json, os, signal, sys
from pathlib import Path
import dask_slicer
from dask_slicer.execution import tasks
from dask_slicer.output import journal

folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
countdown = -1

def counted(function):
    def call(*arguments, **others):
        global countdown
        if not countdown:
            os.kill(os.getpid(), signal.SIGKILL)
        countdown -= 1
        return function(*arguments, **others)
    call.__module__, call.__qualname__ = function.__module__, function.__qualname__
    return call

os.replace = counted(os.replace)
tasks.labelled_sample = counted(tasks.labelled_sample)
journal.Journal.append = counted(journal.Journal.append)

def run_in_a_child(number, places):
    global countdown
    child = os.fork()
    if not child:
        countdown = places
        output = {"output_dir": folder / f"{number:03d}", "num_workers": 0}
        report = dask_slicer.run(settings | output, progress=False)
        os._exit(1 if report.remaining or report.failures else 0)
    return os.waitpid(child, 0)[1]

number = 0
while run_in_a_child(number, number):
    assert run_in_a_child(number, -1) == 0, number
    number += 1
print(number)
"""


@pytest.mark.parametrize("format_", ["npz", "zarr", "png", "files"])
def test_a_run_killed_at_any_place_completes(tmp_path, format_) -> None:
    write_dataset(tmp_path / "scans", n_cases=3, shape=(24, 20, 8), seed=5)
    settings = EVERY_STEP_TWICE | SETTINGS[format_] | {"train_ratio": 0.67, "context_mm": 20.0}
    if format_ == "png":  # whose limits are not those of statistics
        settings |= {"normalize": "none"}
    settings |= {"input_dir": str(tmp_path / "scans"), "drop_blank": False, "stride": 1}
    program = [sys.executable, "-c", KILLED_EVERYWHERE, tmp_path, json.dumps(settings)]
    result = subprocess.run(program, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    n_kills = int(result.stdout.split()[-1])
    assert n_kills > 12
    undisturbed = contents_of(tmp_path / f"{n_kills:03d}")
    assert ("statistics.json" in undisturbed) == (format_ != "png")
    for number in range(n_kills):
        assert contents_of(tmp_path / f"{number:03d}") == undisturbed, number


@pytest.mark.parametrize("format_", ["npz", "zarr", "png", "files"])
def test_a_disk_that_is_full_is_named_and_the_run_completes_with_room(
    scans, undisturbed, tmp_path, format_
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_SMALL[format_]}", "tmpfs", disk],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("this user cannot mount a small disk")
    try:
        output = disk / "out"
        command = [
            sys.executable, "-m", "dask_slicer", "run", "--input_dir", scans, "--output_dir",
            output, *options(format_, tmp_path), "--num_workers", "2",
            "--dashboard_address", "none",
        ]  # fmt: skip
        command = [str(part) for part in command]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 1, result.stderr
        assert "DiskFull" in result.stdout
        assert "not written, which need about" in result.stdout
        assert not (output / ".dask_slicer.tmp").exists()
        whole = contents_of(output)
        kept = [name for name in whole if name.endswith((".npz", "/0", ".png", ".h5"))]
        assert kept
        for name in kept:
            assert whole[name] == undisturbed[format_][name], name
        subprocess.run(["mount", "-o", "remount,size=300m", disk], check=True)
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0
        assert contents_of(output) == undisturbed[format_]
    finally:
        subprocess.run(["umount", disk], check=True)


# Less than the slices take, and more than half.
_SMALL = {"npz": "20m", "zarr": "6m", "png": "2m", "files": "5m"}
