"""Measuring runs with several numbers of workers, and choosing a number."""

from __future__ import annotations

import os
import re
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from dask_slicer.config.schema import RunConfig
from dask_slicer.errors import DatasetError
from dask_slicer.execution.pipeline import run
from dask_slicer.inputs.readers.base import split_volume
from dask_slicer.monitoring.observer import Observer
from dask_slicer.monitoring.state import RunState
from dask_slicer.planning.planner import make_plan
from dask_slicer.records import CommittedCase, FailedCase
from dask_slicer.utils.files import drop_from_cache
from dask_slicer.utils.formatting import plural
from dask_slicer.utils.system import cpu_wait_seconds

# Seconds. Sampling all processes costs milliseconds of CPU, which the workers would lack.
_SAMPLE_EVERY = 0.25
# If workers have a case for less than this share of the time, they wait for the scheduler.
_BUSY = 0.75
# If they compute for less than this share of that time, they wait for the disk.
_COMPUTING = 0.75
# Seconds between runs. For 5 s after files were deleted, ext4 takes a millisecond more for each
# new file, because it avoids the blocks of the deleted ones.
_PAUSE = 6.0
# More workers must be this much faster to be worth their memory.
_WORTH = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One run: time in seconds, memory and files in bytes. `runs` in results.json."""

    n_workers: int  # 0: in this process
    seconds: float  # from the first case submitted to the last one written
    start_seconds: float  # before that: planning, and starting workers
    busy_seconds: float  # in which a worker had a case, all workers together
    cpu_seconds: float  # on the CPU in `seconds`, all workers together
    cpu_wait_seconds: float = 0.0  # ready, but without a CPU, the same; 0 outside Linux
    n_cases: int
    n_slices: int
    n_failed: int
    bytes_in: int
    bytes_out: int
    peak_rss: int  # of the largest worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Medians of the runs with one number of workers, and rates. `rows` in results.json."""

    n_workers: int
    seconds: float
    fastest: float  # seconds of the fastest and of the slowest run
    slowest: float
    n_runs: int
    speedup: float  # against one worker, or against the fewest that were tried
    efficiency: float  # speed-up per worker
    slices_per_second: float
    megabytes_in_per_second: float
    megabytes_out_per_second: float
    peak_rss: int
    busy: float  # share of the time in which a worker had a case
    cpu: float  # share of the time on the CPU
    cpu_wait: float  # share of the time in which a worker waited for a CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The number of workers to use, and what limits the speed."""

    num_workers: int
    bottleneck: str
    reason: str
    as_fast: tuple[int, ...] = ()  # other numbers of workers whose times overlap


def measure(config: RunConfig) -> Measurement:
    """Run a configuration into a new directory, and return what it took."""
    if hasattr(os, "sync"):
        os.sync()  # or this run would also pay for what earlier runs wrote
    with closing(_Meter(config.num_workers)) as meter:
        started = time.perf_counter()
        report = run(config, observer=meter)
    return Measurement(
        n_workers=config.num_workers,
        seconds=max(meter.last - meter.first, 1e-9),
        start_seconds=meter.first - started,
        busy_seconds=meter.busy,
        cpu_seconds=meter.cpu_at_last - meter.cpu_at_first,
        cpu_wait_seconds=meter.wait_at_last - meter.wait_at_first,
        n_cases=report.n_committed,
        n_slices=report.n_slices,
        n_failed=len(report.failures),
        bytes_in=meter.bytes_in,
        bytes_out=report.n_bytes,
        peak_rss=meter.peak_rss,
    )


class _Meter(Observer):
    """Times a run, and samples CPU and memory of its workers while they exist."""

    def __init__(self, n_workers: int) -> None:
        self._n_workers = n_workers
        self._cpu: dict[int, float] = defaultdict(float)
        self._wait: dict[int, float] = defaultdict(float)
        self.first = self.last = 0.0
        self.cpu_at_first = self.cpu_at_last = 0.0
        self.wait_at_first = self.wait_at_last = 0.0
        self.busy = 0.0
        self.bytes_in = 0
        self.peak_rss = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_sampling, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join()

    def progress(self, state: RunState) -> None:
        self.last = time.perf_counter()
        self._sample()
        self.cpu_at_last, self.wait_at_last = sum(self._cpu.values()), sum(self._wait.values())
        self.bytes_in = state.n_bytes_in
        if not state.n_ended:  # the cases are about to start
            self.first = self.last
            self.cpu_at_first, self.wait_at_first = self.cpu_at_last, self.wait_at_last

    def case_finished(self, record: CommittedCase | FailedCase) -> None:
        if isinstance(record, CommittedCase):
            self.busy += sum(record.seconds.values())

    def _keep_sampling(self) -> None:
        while not self._stop.wait(_SAMPLE_EVERY):
            self._sample()

    def _sample(self) -> None:
        driver = psutil.Process()
        for process in driver.children(recursive=True) if self._n_workers else [driver]:
            with suppress(psutil.Error):  # it has just ended
                times = process.cpu_times()
                self._cpu[process.pid] = times.user + times.system
                # A thread that has ended takes its time with it.
                waited = max(cpu_wait_seconds(process.pid), self._wait[process.pid])
                self._wait[process.pid] = waited
                self.peak_rss = max(self.peak_rss, peak_rss(process))


def peak_rss(process: psutil.Process) -> int:
    """Return the peak resident bytes of a process; outside Linux, the present ones."""
    with suppress(OSError):
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        if peak := re.search(r"^VmHWM:\s+(\d+) kB", status, flags=re.MULTILINE):
            return int(peak[1]) * 1024
    return int(process.memory_info().rss)


def rows(measurements: Iterable[Measurement], *, n_cpus: int) -> list[Row]:
    """Return a row for each number of workers, fewest first."""
    runs_of: dict[int, list[Measurement]] = defaultdict(list)
    for trial in measurements:
        runs_of[trial.n_workers].append(trial)
    seconds_of = {n: median(trial.seconds for trial in runs_of[n]) for n in sorted(runs_of)}
    base = 1 if 1 in seconds_of else min(seconds_of)
    table = []
    for n_workers, seconds in seconds_of.items():
        runs = runs_of[n_workers]
        at_once = max(n_workers, 1)
        speedup = seconds_of[base] / seconds
        table.append(
            Row(
                n_workers=n_workers,
                seconds=seconds,
                fastest=min(trial.seconds for trial in runs),
                slowest=max(trial.seconds for trial in runs),
                n_runs=len(runs),
                speedup=speedup,
                efficiency=speedup * max(base, 1) / at_once,
                slices_per_second=runs[0].n_slices / seconds,
                megabytes_in_per_second=runs[0].bytes_in / seconds / 1e6,
                megabytes_out_per_second=runs[0].bytes_out / seconds / 1e6,
                peak_rss=int(median(trial.peak_rss for trial in runs)),
                busy=median(trial.busy_seconds for trial in runs) / seconds / at_once,
                # More workers than CPUs cannot compute at once.
                cpu=median(trial.cpu_seconds for trial in runs) / seconds / min(at_once, n_cpus),
                cpu_wait=median(trial.cpu_wait_seconds for trial in runs) / seconds / at_once,
            )
        )
    return table


def recommend(table: Sequence[Row], *, n_cpus: int) -> Recommendation:
    """Return the fewest workers that are about as fast as any, and what limits them."""
    fastest = min(row.seconds for row in table)
    best = next(row for row in table if row.seconds <= fastest * _WORTH)
    bottleneck, reason = _bottleneck(best, n_cpus=n_cpus)
    if best.n_workers < n_cpus and best is table[-1] and bottleneck == "CPU":
        reason += f"; this machine has {plural(n_cpus, 'CPU')}, more workers were not tried"
    as_fast = tuple(
        row.n_workers
        for row in table
        if row is not best
        and row.n_runs > 1
        and row.fastest <= best.slowest
        and best.fastest <= row.slowest
    )
    return Recommendation(
        num_workers=best.n_workers, bottleneck=bottleneck, reason=reason, as_fast=as_fast
    )


def _bottleneck(row: Row, *, n_cpus: int) -> tuple[str, str]:
    """Return what limits the speed of some workers, and why."""
    if row.busy < _BUSY:
        return "scheduler", (
            f"workers have a case for {row.busy:.0%} of the time: cases are too small, or "
            "too few, for more workers"
        )
    if row.cpu / row.busy >= _COMPUTING:
        return "CPU", f"workers compute for {min(row.cpu, 1.0):.0%} of the time"
    # Of the time in which a worker has a case; more workers than CPUs share them.
    at_once = max(row.n_workers, 1)
    computing = row.cpu * min(at_once, n_cpus) / at_once / row.busy
    for_cpu = min(row.cpu_wait / row.busy, 1 - computing)
    begin = f"workers that have a case compute for {row.cpu / row.busy:.0%} of the time"
    if for_cpu > 1 - computing - for_cpu:
        return "CPU", f"{begin}, and wait for a CPU, which others use, for {for_cpu:.0%}"
    ready = f", and for a CPU for {for_cpu:.0%}" if for_cpu >= 0.05 else ""
    return "disk", f"{begin}, and wait for files to be read or written in the rest{ready}"


def default_workers(n_cpus: int) -> tuple[int, ...]:
    """Return the numbers of workers to try: 0, powers of two, all CPUs.

    >>> default_workers(2), default_workers(12)
    ((0, 1, 2), (0, 1, 2, 4, 8, 12))
    """
    powers = [1 << power for power in range(n_cpus.bit_length())]
    return (0, *sorted({*(n for n in powers if n <= n_cpus), n_cpus}))


def choose_cases(config: RunConfig, *, n_cases: int) -> tuple[RunConfig, list[str]]:
    """Return a configuration of at most `n_cases` readable cases, and the files of their scans."""
    plan = make_plan(config)  # each run goes into a new directory: there are no earlier runs
    readable = [case for case in plan.selected if case.problem is None]
    if plan.problems or not readable:
        raise DatasetError("; ".join(plan.problems) or "no case of the dataset can be run")
    # Spread over the dataset, which may be sorted by scanner or by size.
    step = max(len(readable) / n_cases, 1.0)
    cases = [readable[int(number * step)] for number in range(min(n_cases, len(readable)))]
    files = [split_volume(path)[0] for case in cases for path in case.case.files]
    return config.model_copy(update={"only": tuple(case.case_id for case in cases)}), files


def sweep(
    config: RunConfig, files: Sequence[str], *, workers: Sequence[int], repeats: int
) -> Iterator[Measurement]:
    """Run a configuration with each number of workers in turn, into scratch directories.

    The order is A B C A B C …, so that a machine that slows down affects all numbers alike.
    """
    for number, n_workers in enumerate([*workers] * repeats):
        if number:
            time.sleep(_PAUSE)
        with tempfile.TemporaryDirectory(
            prefix="scratch_", dir=config.output_dir, ignore_cleanup_errors=True
        ) as scratch:
            drop_from_cache(files)
            changes = {"num_workers": n_workers, "output_dir": Path(scratch, "slices")}
            measured = measure(config.model_copy(update=changes))
        if measured.n_failed:
            raise DatasetError(
                f"{plural(measured.n_failed, 'case')} failed; `dask-slicer run` shows why; "
                "choose other cases with --only"
            )
        yield measured
