"""Measuring runs with several numbers of workers, and choosing one."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from dask_slicer.config.schema import RunConfig
from dask_slicer.errors import DatasetError
from dask_slicer.execution.pipeline import run
from dask_slicer.monitoring.events import Observer
from dask_slicer.planning.plan import CasePlan, RunPlan
from dask_slicer.planning.planner import make_plan
from dask_slicer.records import CommittedCase, FailedCase
from dask_slicer.utils.formatting import plural

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

    def case_finished(self, record: CommittedCase | FailedCase) -> None:
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


# A worker that has a case in hand for less of the time is waiting for the scheduler.
_BUSY = 0.75
# One that has, and uses its CPU for less of the time, is waiting for the disk.
_COMPUTING = 0.75
# Seconds between runs. For 5 s after files were deleted, ext4 takes a millisecond more for every
# new one, as it steers clear of the deleted.
_PAUSE = 6.0
# More workers must be this much faster to be worth their memory.
_WORTH = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Repeats with one number of workers: medians, and what follows from them.

    Attributes
    ----------
    speedup : float
        Against one worker, or against the fewest that were tried.
    efficiency : float
        Speed-up per worker.
    """

    n_workers: int
    seconds: float
    speedup: float
    efficiency: float
    slices_per_second: float
    megabytes_in_per_second: float
    megabytes_out_per_second: float
    peak_rss: int
    busy: float
    cpu: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What holds the best run back, and how many workers to use."""

    num_workers: int
    bottleneck: str
    reason: str


def rows(measurements: Iterable[Measurement], *, n_cpus: int) -> list[Row]:
    """Return a row for each number of workers, fewest first.

    Parameters
    ----------
    measurements : iterable of Measurement
    n_cpus : int
        Of this machine: more workers than that cannot compute at once.
    """
    by_workers: dict[int, list[Measurement]] = {}
    for one in measurements:
        by_workers.setdefault(one.n_workers, []).append(one)
    made = {n: _medians(by_workers[n]) for n in sorted(by_workers)}
    base = 1 if 1 in made else min(made)
    found = []
    for n_workers, figures in made.items():
        one = by_workers[n_workers][0]
        seconds = figures["seconds"]
        at_once = max(n_workers, 1)
        speedup = made[base]["seconds"] / seconds
        found.append(
            Row(
                n_workers=n_workers,
                seconds=seconds,
                speedup=speedup,
                efficiency=speedup * max(base, 1) / at_once,
                slices_per_second=one.n_slices / seconds,
                megabytes_in_per_second=one.bytes_in / seconds / 1e6,
                megabytes_out_per_second=one.bytes_out / seconds / 1e6,
                peak_rss=int(figures["peak_rss"]),
                busy=figures["busy_seconds"] / seconds / at_once,
                cpu=figures["cpu_seconds"] / seconds / min(at_once, n_cpus),
            )
        )
    return found


def _medians(repeats: Sequence[Measurement]) -> dict[str, float]:
    names = ("seconds", "busy_seconds", "cpu_seconds", "peak_rss")
    return {name: median(getattr(one, name) for one in repeats) for name in names}


def judge(table: Sequence[Row], *, n_cpus: int) -> Verdict:
    """Return the fewest workers that are about as fast as any, and what holds them back."""
    fastest = min(row.seconds for row in table)
    best = next(row for row in table if row.seconds <= fastest * _WORTH)
    if best.busy < _BUSY:
        bottleneck = "scheduler"
        reason = (
            f"workers have a case in hand for {best.busy:.0%} of the time: cases are too small, or "
            "too few, for more workers"
        )
    elif best.cpu / best.busy < _COMPUTING:
        bottleneck = "disk"
        reason = (
            f"with a case in hand, workers compute for {best.cpu / best.busy:.0%} of the time, and "
            "wait for files to be read or written in the rest"
        )
    else:
        bottleneck = "CPU"
        reason = f"workers compute for {min(best.cpu, 1.0):.0%} of the time"
        if best.n_workers < n_cpus and best is table[-1]:
            reason += f"; {plural(n_cpus, 'CPU')} are there, more workers were not tried"
    return Verdict(num_workers=best.n_workers, bottleneck=bottleneck, reason=reason)


def _forget(files: Iterable[str]) -> None:
    """Ask the system to read files from the disk the next time, where it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in files:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def default_workers(n_cpus: int) -> tuple[int, ...]:
    """Return numbers of workers worth trying: 0, 1, 2, 4 … and all CPUs.

    Examples
    --------
    >>> default_workers(2), default_workers(12)
    ((0, 1, 2), (0, 1, 2, 4, 8, 12))
    """
    powers = [1 << power for power in range(n_cpus.bit_length())]
    return (0, *sorted({*(n for n in powers if n <= n_cpus), n_cpus}))


def choose_cases(config: RunConfig, *, n_cases: int) -> tuple[RunConfig, list[str]]:
    """Return a configuration of so many sound cases of a dataset, and the files they are read from.

    Raises
    ------
    DatasetError
        If no case can be run.
    """
    made = make_plan(config)  # every run goes into a new directory: there are no earlier ones
    sound = [case for case in made.selected if case.problem is None]
    if made.problems or not sound:
        raise DatasetError("; ".join(made.problems) or "no case of the dataset can be run")
    # Spread over the dataset, which may be sorted by scanner or by size.
    step = max(len(sound) / n_cases, 1.0)
    chosen = [sound[int(number * step)] for number in range(min(n_cases, len(sound)))]
    only = tuple(case.case_id for case in chosen)
    return config.model_copy(update={"only": only}), [p for c in chosen for p in c.case.files]


def sweep(
    config: RunConfig,
    files: Sequence[str],
    *,
    workers: Sequence[int],
    repeats: int,
    tell: Callable[[Measurement], None],
) -> list[Measurement]:
    """Run a configuration with several numbers of workers, in turn, into scratch directories.

    Parameters
    ----------
    config : RunConfig
        Its output directory is where scratch directories are made; they are removed.
    files : sequence of str
        What is read; before every run, the system is asked to forget that it has read them.
    workers : sequence of int
    repeats : int
        A B C A B C …: a machine that slows down meanwhile hits all alike.
    tell : callable
        Is given every measurement as it is made.
    """
    found: list[Measurement] = []
    for _ in range(repeats):
        for n_workers in workers:
            if found:
                time.sleep(_PAUSE)
            scratch = Path(tempfile.mkdtemp(prefix="scratch_", dir=config.output_dir))
            try:
                _forget(files)
                changes = {"num_workers": n_workers, "output_dir": scratch / "slices"}
                one = measure(config.model_copy(update=changes))
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            if one.n_failed:
                raise DatasetError(
                    f"{plural(one.n_failed, 'case')} failed; run them by themselves to see why, "
                    "and choose others with --only"
                )
            tell(one)
            found.append(one)
    return found
