"""What a run costs: seconds, CPU, memory and bytes, by number of workers."""

from __future__ import annotations

import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psutil

from dask_slicer.config import RunConfig
from dask_slicer.events import Observer
from dask_slicer.journal import CommittedCase, FailedCase
from dask_slicer.pipeline import run
from dask_slicer.plans import CasePlan, RunPlan

# Looking at all processes costs milliseconds, of which the workers would be short.
_SAMPLE_EVERY = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One run. Its start-up, until workers are there, is not part of `seconds`.

    Attributes
    ----------
    n_workers : int
        0: in this process.
    seconds : float
        From the first case handed out to the last one written.
    start_seconds : float
        Before that: planning, starting workers.
    busy_seconds : float
        Of all workers together, with a case in hand.
    cpu_seconds : float
        Of all workers together, meanwhile.
    n_cases, n_slices : int
        Written.
    n_failed : int
        Cases.
    bytes_in, bytes_out : int
        Of the source files and of the slices, on disk.
    peak_rss : int
        Bytes resident in the largest worker.
    """

    n_workers: int
    seconds: float
    start_seconds: float
    busy_seconds: float
    cpu_seconds: float
    n_cases: int
    n_slices: int
    n_failed: int
    bytes_in: int
    bytes_out: int
    peak_rss: int


def measure(config: RunConfig) -> Measurement:
    """Run a configuration, and return what it cost.

    Parameters
    ----------
    config : RunConfig
        Writes into a new directory, with workers of its own or in this process.

    Returns
    -------
    Measurement

    Raises
    ------
    DaskSlicerError
        As `pipeline.run`.
    """
    _write_back()
    with closing(_Watch(workers=config.num_workers > 0)) as watch:
        observer = _Clock(watch)
        started = time.perf_counter()
        report = run(config, observer=observer)
    return Measurement(
        n_workers=config.num_workers,
        seconds=max(observer.last - observer.first, 1e-9),
        start_seconds=observer.first - started,
        busy_seconds=observer.busy,
        cpu_seconds=observer.cpu_at_last - observer.cpu_at_first,
        n_cases=report.n_committed,
        n_slices=report.n_slices,
        n_failed=len(report.failures),
        bytes_in=observer.bytes_in,
        bytes_out=report.n_bytes,
        peak_rss=watch.peak_rss,
    )


class _Clock(Observer):
    """Notes when slicing begins and ends."""

    def __init__(self, watch: _Watch) -> None:
        self._watch = watch
        self._file_bytes: dict[str, int] = {}
        self.first = self.last = 0.0
        self.cpu_at_first = self.cpu_at_last = 0.0
        self.busy = 0.0
        self.bytes_in = 0

    def planned(self, plan: RunPlan, *, todo: Sequence[CasePlan], skipped: int) -> None:
        self._file_bytes = {case.case_id: case.file_bytes for case in todo}
        self.cpu_at_first = self.cpu_at_last = self._watch.cpu_seconds()
        self.first = self.last = time.perf_counter()

    def ended(self, record: CommittedCase | FailedCase) -> None:
        self.last = time.perf_counter()
        self.cpu_at_last = self._watch.cpu_seconds()
        if isinstance(record, CommittedCase):
            self.busy += sum(record.seconds.values())
            self.bytes_in += self._file_bytes[record.case_id]


class _Watch:
    """Samples CPU and memory of worker processes, which take their figures with them as they end.

    Parameters
    ----------
    workers : bool
        Whether the children of this process do the work, or this process itself.
    """

    def __init__(self, *, workers: bool) -> None:
        self._workers = workers
        self._cpu: dict[int, float] = defaultdict(float)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_on, daemon=True)
        self.peak_rss = 0
        self._thread.start()

    def close(self) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join()

    def cpu_seconds(self) -> float:
        """Return the CPU time of all workers so far."""
        self._sample()
        return sum(self._cpu.values())

    def _sample_on(self) -> None:
        while not self._stop.wait(_SAMPLE_EVERY):
            self._sample()

    def _sample(self) -> None:
        this = psutil.Process()
        for process in this.children(recursive=True) if self._workers else [this]:
            try:
                times = process.cpu_times()
                self._cpu[process.pid] = times.user + times.system
                self.peak_rss = max(self.peak_rss, peak_rss(process))
            except psutil.Error:  # it has just ended
                continue


def peak_rss(process: psutil.Process) -> int:
    """Return the most bytes that a process has had resident, or has now where that is not known."""
    try:
        text = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    except OSError:
        return int(process.memory_info().rss)
    found = re.search(r"^VmHWM:\s+(\d+) kB", text, flags=re.MULTILINE)
    return int(found[1]) * 1024 if found else int(process.memory_info().rss)


def _write_back() -> None:
    """Have what earlier runs wrote on disk, so that this one does not pay for it."""
    if hasattr(os, "sync"):
        os.sync()
