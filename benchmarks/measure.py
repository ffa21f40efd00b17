"""How a whole command is measured: wall clock, CPU and memory of it and all its descendants."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from datasets import ct

from dask_slicer.execution.benchmark import peak_rss

_BECOME_SUBREAPER = 36  # of prctl(2)
# Looking at all processes costs milliseconds, of which the command would be short.
_SAMPLE_EVERY = 0.25
# For 5 s, ext4 takes a millisecond more for every new file, as it steers clear of deleted ones.
_FORGET_DELETED = 6.0
_READ_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run of a command.

    Attributes
    ----------
    wall, cpu : float
        Seconds.
    written : int
        Bytes of slices.
    peak_rss : int
        Bytes resident in the largest process but the command's own.
    own_peak_rss : int
        Bytes resident in the command's own process, with Dask its client and scheduler.
    printed : str
    began : float
        Time of day at which the command was started.
    """

    wall: float
    cpu: float
    written: int
    peak_rss: int
    own_peak_rss: int
    printed: str
    began: float


def measure(
    command: Sequence[str],
    output: Path,
    *,
    look: Callable[[], None] | None = None,
    keep: bool = False,
) -> Measured:
    """Run a command that fills `output`, which is removed before, and after unless it is kept.

    Processes that outlive their parent (those that workers are forked from do, for a moment) are
    waited for, too, so that no CPU time is missed.
    """
    if output.exists():
        shutil.rmtree(output)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_BECOME_SUBREAPER, 1, 0, 0, 0)
    os.sync()
    began, started = time.time(), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    peaks = {"own": 0, "others": 0}
    watcher = threading.Thread(target=_watch, args=(process.pid, peaks), daemon=True)
    watcher.start()
    printed = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.stdout.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    cpu = usage.ru_utime + usage.ru_stime
    with contextlib.suppress(ChildProcessError):
        while True:
            _, _, usage = os.wait4(-1, 0)
            cpu += usage.ru_utime + usage.ru_stime
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {printed}")
    if look is not None:
        look()
    written = sum(
        path.stat().st_size
        for path in output.rglob("*")
        if path.is_file() and (path.suffix == ".npz" or "slices.zarr" in path.parts)
    )
    if not keep:
        shutil.rmtree(output, ignore_errors=True)
    return Measured(
        wall=wall,
        cpu=cpu,
        written=written,
        peak_rss=peaks["others"],
        own_peak_rss=peaks["own"],
        printed=printed,
        began=began,
    )


def settle(work: Path) -> None:
    """Bring the machine into the state that it is in during a long run.

    Memory is in use, as cache: what lies free, a hypervisor takes back, and then a page costs ten
    times as much when it is first written to. Python's files are in memory again, the disk has
    nothing left to do, and what was deleted is forgotten.
    """
    began = time.monotonic()
    ballast = work / "ballast"
    memory = psutil.virtual_memory().total
    if not ballast.exists():
        with open(ballast, "wb") as file:
            file.truncate(memory)  # holes: takes no disk
    with open(ballast, "rb", buffering=0) as file:
        while file.read(_READ_AT_ONCE):
            pass
    output = work / "output"
    measure(slicer(ct(work, 1, (16, 16, 8)), output, "--num_workers", 1), output)
    time.sleep(max(0.0, began + _FORGET_DELETED - time.monotonic()))


def paired(
    commands: dict[str, Callable[[], Measured]],
    *,
    repeats: int,
    before: Callable[[], None],
) -> dict[str, list[Measured]]:
    """Run commands in turn, A B C A B C …, so that a drifting machine hits all of them alike."""
    results: dict[str, list[Measured]] = {name: [] for name in commands}
    for repeat in range(repeats):
        for name, run in commands.items():
            before()
            latest = run()
            results[name].append(latest)
            print(
                f"{repeat + 1}/{repeats} {name:40s} wall {latest.wall:7.2f} s  "
                f"CPU {latest.cpu:7.2f} s  {latest.written / 1e6:8.1f} MB",
                file=sys.stderr,
                flush=True,
            )
    return results


def median(results: list[Measured], name: str) -> float:
    """Return the median of one figure over repeats."""
    return statistics.median(getattr(result, name) for result in results)


def slicer(scans: Path, output: Path, *options: object) -> list[str]:
    """Return the command that slices a dataset."""
    command = [sys.executable, "-m", "dask_slicer", "run", "--input_dir", scans]
    return list(map(str, [*command, "--output_dir", output, "--quiet", *options]))


def _watch(pid: int, peaks: dict[str, int]) -> None:
    process = psutil.Process(pid)
    while True:
        try:
            peaks["own"] = max(peaks["own"], peak_rss(process))
            for child in process.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    peaks["others"] = max(peaks["others"], peak_rss(child))
        except (psutil.Error, ValueError):
            return
        time.sleep(_SAMPLE_EVERY)
