"""How a whole command is timed: wall clock, CPU and memory of it and all its children."""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run: seconds of wall clock and CPU, bytes written, peak bytes of the largest process."""

    wall: float
    cpu: float
    written: int
    peak_rss: int


def measure(command: Sequence[str], output: Path) -> Measured:
    """Run a command that fills `output`, which is removed before and after."""
    shutil.rmtree(output, ignore_errors=True)
    os.sync()
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peaks: list[int] = [0]
    watcher = threading.Thread(target=_watch, args=(process.pid, peaks), daemon=True)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {process.stderr.read().decode()}")
    process.stderr.close()
    written = sum(path.stat().st_size for path in output.rglob("*.npz"))
    shutil.rmtree(output)
    # The kernel adds up the CPU of all children that were waited for, workers included.
    cpu = usage.ru_utime + usage.ru_stime
    return Measured(wall=wall, cpu=cpu, written=written, peak_rss=max(peaks))


def paired(
    commands: dict[str, Callable[[], Measured]], *, repeats: int
) -> dict[str, list[Measured]]:
    """Run commands in turn, A B C A B C …, so that a drifting machine hits all of them alike."""
    results: dict[str, list[Measured]] = {name: [] for name in commands}
    for repeat in range(repeats):
        for name, run in commands.items():
            results[name].append(run())
            latest = results[name][-1]
            print(
                f"{repeat + 1}/{repeats} {name:32s} wall {latest.wall:7.2f} s  "
                f"CPU {latest.cpu:7.2f} s  {latest.written / 1e6:8.1f} MB",
                file=sys.stderr,
                flush=True,
            )
    return results


def median(results: list[Measured], name: str) -> float:
    """Return the median of one figure over repeats."""
    return statistics.median(getattr(result, name) for result in results)


def _watch(pid: int, peaks: list[int]) -> None:
    while True:
        try:
            process = psutil.Process(pid)
            everyone = [process, *process.children(recursive=True)]
            peaks.append(max(p.memory_info().rss for p in everyone))
        except (psutil.Error, ValueError):
            return
        del peaks[:-2]
        peaks[-1] = max(peaks)
        time.sleep(0.05)
