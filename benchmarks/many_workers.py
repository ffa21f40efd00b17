"""How busy a scheduler keeps many workers, and where that ends.

    python benchmarks/many_workers.py scheduler                       a scheduler with our settings
    python benchmarks/many_workers.py workers tcp://127.0.0.1:NNNN 8  8 workers in one process

Workers sleep as long as a case takes. What is sent to them and what comes back is as large as of a
real case, and is sent, received and written down by the code that a run uses.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, closing, contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import count, product
from pathlib import Path
from typing import Any

import dask
import psutil
from dask.delayed import Delayed, delayed
from datasets import ct

import dask_slicer
from dask_slicer.cluster.client import SETTINGS, client_timeouts
from dask_slicer.execution.futures import run_graphs
from dask_slicer.execution.graph import Batcher, batch_work, target_of
from dask_slicer.execution.tasks import CaseBatch, Target
from dask_slicer.output.journal import Journal, last_records
from dask_slicer.planning.plan import CasePlan
from dask_slicer.records import CommittedCase

_WORKERS_A_PROCESS = 16
_STEPS = {"load": 0.6, "slice": 0.2, "save": 0.2}
_JOURNAL = "journal.jsonl"
_SLICES = 40
# About what a thread slices of a CT of 512 x 512 x 40 with its labels, as `compare` finds.
_BYTES_A_SECOND = 120_000_000
_VERY_MANY = 1_000_000
# Seconds that the result of a case may take on its way.
_LATE = 2.0
_Span = tuple[float, float]
_Spans = tuple[_Span, ...]


def load(lot: CaseBatch, target: Target, seconds: float) -> _Spans:
    """Sleep as long as the loads of a lot take; return when it began and ended."""
    return (_sleep(seconds * _STEPS["load"]),)


def slice_(loaded: _Spans, target: Target, seconds: float) -> _Spans:
    """Sleep as long as slicing takes; return when it and what came before began and ended."""
    return (*loaded, _sleep(seconds * _STEPS["slice"]))


def save(
    sliced: _Spans, lot: CaseBatch, target: Target, seconds: float
) -> tuple[_Spans, list[CommittedCase]]:
    """Sleep as long as the saves of a lot take; return when all three were, and real records."""
    spans = (*sliced, _sleep(seconds * _STEPS["save"]))
    # A record each: one for all would be sent once.
    return spans, [copy(_record(target.output_dir)) for _ in lot]


def _sleep(seconds: float) -> _Span:
    began = time.time()
    time.sleep(seconds)
    return began, time.time()


@cache
def _record(output_dir: str) -> CommittedCase:
    (record,) = last_records(Path(output_dir) / _JOURNAL)
    return record


@dataclass(slots=True)
class _Feed:
    """Deals out cases as a run does, and makes the graphs of them."""

    plan: CasePlan
    target: Target
    n_workers: int
    seconds_a_case: float
    _lots: Batcher = field(init=False)
    _numbers: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        case = replace(self.plan, voxel_bytes=int(self.seconds_a_case * _BYTES_A_SECOND))
        self._lots = Batcher(
            deque([case] * _VERY_MANY),
            n_threads=self.n_workers,
            enough=batch_work(self.n_workers, None),
        )

    def next_lot(self, n_in_flight: int) -> CaseBatch:
        return self._lots.next(n_in_flight)

    def graph(self, lot: CaseBatch) -> Delayed:
        number = next(self._numbers)
        what = {"target": self.target, "seconds": self.seconds_a_case * len(lot)}
        loaded = delayed(partial(load, lot, **what), pure=False)(dask_key_name=("load", number))
        sliced = delayed(partial(slice_, **what), pure=False)(
            loaded, dask_key_name=("slice", number)
        )
        return delayed(partial(save, lot=lot, **what), pure=False)(
            sliced, dask_key_name=("save", number)
        )


def many_workers(
    work: Path,
    *,
    counts: Sequence[int],
    lengths: Sequence[float],
    seconds: float,
    repeats: int,
    before: Callable[[], None],
) -> dict[str, Any]:
    """Return the share of their time that workers are busy, by their number and a case's length.

    Of repeats the best counts: whatever else the machine does meanwhile takes away from it.

    Parameters
    ----------
    work : Path
    counts : sequence of int
        Workers.
    lengths : sequence of float
        Seconds that a case takes.
    seconds : float
        That are looked at, once all workers have work.
    repeats : int
    before : callable
        Called before every number of workers.
    """
    case, target = _real_case(work)
    found: dict[tuple[int, float], list[dict[str, Any]]] = {}
    for _, n_workers in product(range(repeats), counts):
        before()
        with _started(work, n_workers) as (address, processes):
            for length in lengths:
                feed = _Feed(case, target, n_workers, length)
                row = _measure(address, processes, feed, seconds)
                print(row, file=sys.stderr, flush=True)
                found.setdefault((n_workers, length), []).append(row)
    best = [max(rows, key=lambda row: row["busy_share"]) for rows in found.values()]
    return {"seconds": seconds, "repeats": repeats, "slices_a_case": _SLICES, "runs": best}


def _real_case(work: Path) -> tuple[CasePlan, Target]:
    """Return a case as it was planned, and where its record is."""
    output = work / "many_workers"
    config = dask_slicer.RunConfig(
        input_dir=ct(work, 1, (64, 64, _SLICES)), output_dir=output, num_workers=0, overwrite=True
    )
    dask_slicer.run(config, progress=False)
    return dask_slicer.plan(config).cases[0], target_of(config, run_id="0" * 32)


@contextmanager
def _started(work: Path, n_workers: int) -> Iterator[tuple[str, dict[str, list[psutil.Popen]]]]:
    """Start a scheduler and workers in other processes; yield its address and all of them."""
    processes: dict[str, list[psutil.Popen]] = {"scheduler": [], "workers": []}

    def start(kind: str, *arguments: object) -> psutil.Popen:
        command = [sys.executable, __file__, kind, *map(str, arguments)]
        process = psutil.Popen(command, stdout=subprocess.PIPE, cwd=work, text=True)
        processes[kind].append(process)
        return process

    try:
        address = start("scheduler").stdout.readline().strip()
        for first in range(0, n_workers, _WORKERS_A_PROCESS):
            start("workers", address, min(_WORKERS_A_PROCESS, n_workers - first))
        yield address, processes
    finally:
        for process in [*processes["workers"], *processes["scheduler"]]:
            process.kill()
            process.wait()
            process.stdout.close()


def _measure(
    address: str,
    processes: dict[str, list[psutil.Popen]],
    feed: _Feed,
    seconds: float,
) -> dict[str, Any]:
    from distributed import Client

    groups = {**processes, "client": [psutil.Process()]}
    n_workers, length = feed.n_workers, feed.seconds_a_case
    spans: list[_Span] = []
    began = ended = None
    with (
        client_timeouts(),
        Client(address, set_as_default=False) as client,
        tempfile.TemporaryDirectory() as folder,
        Journal(Path(folder) / _JOURNAL) as journal,
        closing(run_graphs(client, feed.next_lot, feed.graph)) as outcomes,
    ):
        client.wait_for_workers(n_workers, timeout=300)
        for n_ended, (lot, (of_lot, records)) in enumerate(outcomes, start=1):
            for record in records:
                journal.append(record)
            spans += of_lot
            n_cases_a_lot = len(lot)
            now = time.time()
            if began is None:
                # What came of starting all workers at once is over.
                if n_ended >= 2 * n_workers:
                    began, cpu_before = now, {name: _cpu(one) for name, one in groups.items()}
            elif ended is None:
                if now >= began + seconds:
                    ended, cpu = now, {name: _cpu(one) for name, one in groups.items()}
            elif now >= ended + 2 * length * len(lot) + _LATE:
                break  # what ran as we stopped looking has been heard of
    looked = ended - began
    busy = sum(max(0.0, min(end, ended) - max(start, began)) for start, end in spans)
    # Lots end in waves: those that end within a look may be one more, or one less, of each worker.
    cases = busy / length
    return {
        "workers": n_workers,
        "seconds_a_case": length,
        "busy_share": busy / (n_workers * looked),
        "cases_per_second": cases / looked,
        "graphs_per_second": cases / n_cases_a_lot / looked,
        "cores": {name: (cpu[name] - cpu_before[name]) / looked for name in groups},
    }


def _cpu(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


# What every worker does for itself on its own host, and here, together, takes a third of a core:
# looking at the machine, at its clock, at where its task is.
_BLIND = {
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.tick.interval": "5s",
    "distributed.worker.profile.enabled": False,
}


async def _run_scheduler() -> None:
    from distributed import Scheduler

    async with Scheduler(host="127.0.0.1", dashboard_address="127.0.0.1:0") as scheduler:
        print(scheduler.address, flush=True)
        await scheduler.finished()


async def _run_workers(address: str, n_workers: int) -> None:
    from distributed import Worker

    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as stack:
            workers = [
                Worker(
                    address,
                    host="127.0.0.1",
                    nthreads=1,
                    memory_limit=0,
                    dashboard=False,
                    local_directory=folder,
                )
                for _ in range(n_workers)
            ]
            for worker in workers:
                await stack.enter_async_context(worker)
            await asyncio.gather(*(worker.finished() for worker in workers))


def main() -> None:
    """Be the scheduler, or some of the workers, until killed."""
    with dask.config.set(SETTINGS | {"logging.distributed": "error"}):
        match sys.argv[1:]:
            case ["scheduler"]:
                asyncio.run(_run_scheduler())
            case ["workers", address, n_workers]:
                with dask.config.set(_BLIND):
                    asyncio.run(_run_workers(address, int(n_workers)))
            case _:
                raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
