"""Dask graphs: one for each case, or one for a batch of small cases."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import dask.local
from dask.base import annotate
from dask.delayed import Delayed, delayed

from dask_slicer.config.partition import parse_partition
from dask_slicer.config.schema import RunConfig, SliceSettings
from dask_slicer.core.steps.steps import NO_STEPS, Steps
from dask_slicer.errors import UsageError
from dask_slicer.execution import parts, tasks
from dask_slicer.execution.case_queue import CaseQueue
from dask_slicer.output.formats.blocks import is_divisible
from dask_slicer.output.layout import partition_files
from dask_slicer.planning.names import NO_NAMES, Names
from dask_slicer.planning.plan import CasePlan, RunPlan
from dask_slicer.utils.packed import Packed

_STEPS: tuple[Callable[..., Any], ...] = (tasks.load_case, tasks.slice_case, tasks.save_case)

# Work is counted in bytes of voxels; a thread processes about 120 MB a second.
# A graph takes client, scheduler and worker about 10 ms, so cases are batched until they take
# several times as long. A volume of 256 x 256 x 64 is large enough for a graph of its own.
_LEAST_WORK = 8_000_000
# A scheduler serves one thread at a time, so batches grow with the number of threads: by 30 ms of
# work for each thread, up to the size of a whole-body CT.
_WORK_PER_THREAD, _MOST_WORK = 4_000_000, 256_000_000
# All cases of a batch are in memory at once, perhaps in a wider dtype than the file's.
_PART_OF_MEMORY = 16
# A case of this work may be written in parts; a whole-body CT is so large. Each thread gets a few
# parts: slices of some take longer than those of others. A thread is started for so much of it.
LEAST_IN_PARTS, _LEAST_PER_THREAD = 256_000_000, 64_000_000
_PARTS_PER_THREAD = 4
_FEWEST_SLICES = 8
# Each thread gets at least this many batches, so that the run does not wait for the last one.
_BATCHES_PER_THREAD = 4


def build_graphs(plan: RunPlan) -> dict[str, Delayed]:
    """Return the graphs of all cases that a run of this plan would compute, by case id.

    Computing a graph writes its slices into the output directory, which must exist. Only `run`
    writes the journal and the index.

    Parameters
    ----------
    plan : RunPlan

    Returns
    -------
    dict of case id to Delayed
        Cases with a problem are left out.

    Raises
    ------
    UsageError
        If the plan has no output directory, or normalises by statistics that are not known.
    """
    if not plan.config.has_output:
        raise UsageError("build_graphs needs a plan with an output_dir")
    if plan.needs_properties:
        raise UsageError("build_graphs with normalize dataset needs statistics, the file of them")
    target = target_of(plan.config, names=plan.names, steps=plan.steps)
    return {
        case.case_id: case_graph(case, target) for case in plan.selected if case.problem is None
    }


def target_of(
    config: RunConfig, *, run_id: str = "", names: Names = NO_NAMES, steps: Steps = NO_STEPS
) -> tasks.Target:
    """Return where and how a run writes."""
    files = partition_files(parse_partition(config.shard))
    return tasks.Target(
        output_dir=str(config.output_dir),
        settings=config.slice_settings,
        run_id=run_id,
        fsync=config.fsync,
        temporary=files.temporary,
        lock=files.lock if run_id else "",
        names=names,
        steps=steps,
        input_root=str(config.input_root),
        scratch_dir="" if config.scratch_dir is None else str(config.scratch_dir),
    )


def case_graph(case: CasePlan, target: tasks.Target) -> Delayed:
    """Return the graph of one case, which computes to a CommittedCase.

    ::

        ("load", case_id) ──► ("slice", case_id) ──► ("save", case_id)

    The keys are tuples, so that the dashboard groups and colours tasks by step, and the scheduler
    queues all loads as one group. The graph holds paths and settings, never an array. The last task
    raises the error of any step: Dask would count tasks after a failed one as failed, too.
    """
    *early, last = _STEPS
    steps = [partial(tasks.run_early, step) for step in early]
    return _chain(case.case_id, case, [*steps, partial(tasks.run_last, last)], target)


def parts_graph(case: CasePlan, target: tasks.Target, addresses: Sequence[str]) -> Delayed:
    """Return the graph of a large case that several workers write; it gives what others give.

    ::

                                                  ┌► ("save", case_id, 1) ─┐
        ("load", case_id) ──► ("slice", case_id) ─┼► ("save", case_id, 2) ─┼► ("save", case_id)
                                                  └► …                    ─┘

    Dask would give all parts to the worker that has the slices: each has the address of a worker,
    which it may leave if that is lost. `addresses` has one for each thread.
    """
    n_parts = len(addresses) * _PARTS_PER_THREAD
    slice_to_share = partial(parts.slice_to_share, n_parts=n_parts, fewest=_FEWEST_SLICES)
    sliced = _chain(
        case.case_id,
        case,
        [partial(tasks.run_early, step) for step in (tasks.load_case, slice_to_share)],
        target,
        ("load", "slice"),
    )
    written = []
    for number in range(n_parts):
        save = partial(parts.save_part, target=target, number=number, n_parts=n_parts)
        worker = addresses[number % len(addresses)]
        with annotate(workers=[worker], allow_other_workers=True):
            key = ("save", case.case_id, number + 1)
            written.append(delayed(save, pure=False)(sliced, dask_key_name=key))
    saved: Delayed = delayed(partial(parts.save_parts, target=target), pure=False)(
        written, sliced, dask_key_name=("save", case.case_id)
    )
    return saved


def batch_graph(cases: tasks.CaseBatch, target: tasks.Target) -> Delayed:
    """Return the graph of a case; that of several gives a list of CommittedCase or CaseError."""
    if len(cases) == 1:
        return case_graph(cases[0], target)
    name = f"{cases[0].case_id} / {len(cases) - 1} more"  # no case id holds a slash
    steps = [partial(tasks.run_batch, step) for step in _STEPS]
    return _chain(name, Packed(cases), steps, target)


def sample_graph(name: str, case: CasePlan, target: tasks.Target, n_voxels: int) -> Delayed:
    """Return the graph of sampling labelled voxels of a case: load, then ("sample", name)."""
    sample = partial(tasks.sample_case, n_voxels=n_voxels)
    return _chain(name, case, (tasks.load_case, sample), target, ("load", "sample"))


def verify_graph(name: str, check: Callable[[], object]) -> Delayed:
    """Return the graph of checking one case: ("verify", name)."""
    checked: Delayed = delayed(check, pure=False)(dask_key_name=("verify", name))
    return checked


def assembly_graph(name: str, case: object, steps: Sequence[Callable[[Any], Any]]) -> Delayed:
    """Return the graph of assembling a case: ("assemble", name), then ("save", name)."""
    assemble, save = steps
    volume = delayed(partial(assemble, case), pure=False)(dask_key_name=("assemble", name))
    saved: Delayed = delayed(save, pure=False)(volume, dask_key_name=("save", name))
    return saved


def _chain(
    name: str,
    first_input: CasePlan | Packed[CasePlan],
    steps: Sequence[Callable[..., object]],
    target: tasks.Target,
    names: Sequence[str] = ("load", "slice", "save"),
) -> Delayed:
    # Inputs are bound to the functions: Dask would search arguments for other tasks, down to the
    # last field of every record.
    first, *others = (partial(step, target=target) for step in steps)
    result: Delayed = delayed(partial(first, first_input), pure=False)(
        dask_key_name=(names[0], name)
    )
    for step, key in zip(others, names[1:], strict=True):
        result = delayed(step, pure=False)(result, dask_key_name=(key, name))
    return result


def is_in_parts(case: CasePlan, settings: SliceSettings) -> bool:
    """Return whether a case may be written in parts: it is large, and no file holds all of it."""
    return case.work >= LEAST_IN_PARTS and is_divisible(settings, case.split)


def n_useful_threads(cases: Iterable[CasePlan], settings: SliceSettings) -> int:
    """Return how many threads have something to do: one for each case, more for large ones."""
    return sum(
        case.work // _LEAST_PER_THREAD if is_in_parts(case, settings) else 1 for case in cases
    )


def compute_here(graph: Delayed) -> Any:
    """Compute a graph in this thread, without importing `distributed`; raise what a task raised."""
    return graph.compute(scheduler=dask.local.get_sync)


class Batcher:
    """Takes the cases of each graph from a queue: one large case, or a batch of small ones.

    `n_threads` is 0 while workers are still to come; `enough` bytes of voxels fill a batch.
    """

    def __init__(
        self, queue: CaseQueue | deque[CasePlan], *, n_threads: int, enough: int = _LEAST_WORK
    ) -> None:
        self._queue = queue
        self._enough = enough
        self._most = max(len(queue) // (_BATCHES_PER_THREAD * max(n_threads, 1)), 1)
        self._n_threads = n_threads
        self._in_parts_ids: set[str] = set()
        self._unbatched_ids: set[str] = set()
        self._isolated: deque[CasePlan] = deque()
        self._isolated_ids: set[str] = set()
        self._isolated_is_running = False

    def next(self, n_in_flight: int = 0) -> tasks.CaseBatch:
        """Return the cases of the next graph; none when there are none at present.

        An isolated case runs when no other graph is in flight; no other starts until it has ended.
        """
        if self._isolated_is_running and n_in_flight:
            return ()
        batch = self._next_batch()
        self._isolated_is_running = not batch and not n_in_flight and bool(self._isolated)
        return (self._isolated.popleft(),) if self._isolated_is_running else batch

    def in_parts(self, batch: tasks.CaseBatch) -> bool:
        """Return whether a batch that `next` returned is a case that several workers should write.

        It is large, and the run would end later by an eighth of its time if one thread wrote it.
        """
        return batch[0].case_id in self._in_parts_ids and not self.ran_isolated(batch)

    def retry_unbatched(self, case: CasePlan) -> None:
        """Return a case again, in a graph of its own, now and in later attempts."""
        self._unbatched_ids.add(case.case_id)
        self._queue.appendleft(case)

    def retry_isolated(self, case: CasePlan) -> None:
        """Return a case again when nothing else runs: it may have killed its worker."""
        self._isolated_ids.add(case.case_id)
        self._isolated.append(case)

    def ran_isolated(self, batch: tasks.CaseBatch) -> bool:
        """Return whether nothing else ran while a batch did."""
        return len(batch) == 1 and batch[0].case_id in self._isolated_ids

    def _next_batch(self) -> tasks.CaseBatch:
        batch: list[CasePlan] = []
        work = 0
        while self._queue and len(batch) < self._most:
            case = self._queue[0]
            if case.case_id in self._isolated_ids:  # a retry: it must still run isolated
                self._isolated.append(self._queue.popleft())
                continue
            work += self._enough if case.case_id in self._unbatched_ids else case.work
            if batch and work > self._enough:
                break
            batch.append(self._queue.popleft())
            if case.work >= LEAST_IN_PARTS:
                self._in_parts_ids.discard(case.case_id)
                if self._outweighs_others(case):
                    self._in_parts_ids.add(case.case_id)
        return tuple(batch)

    def _outweighs_others(self, case: CasePlan) -> bool:
        # Its time in one thread, less an eighth, against that of all that is left in all threads.
        left = case.work * (self._n_threads * 7 / 8 - 1)
        others = iter(self._queue)
        while left > 0 and (other := next(others, None)) is not None:
            left -= other.work
        return left > 0


def batch_work(n_threads: int, memory_limit: int | None) -> int:
    """Return the work, in bytes of voxels, that fills a batch.

    `memory_limit` is the bytes of each of the scheduler's threads; None for any amount.

    >>> [batch_work(n, 2_000_000_000) // 1_000_000 for n in (1, 16, 64)]
    [8, 64, 125]
    """
    most = _MOST_WORK if memory_limit is None else min(_MOST_WORK, memory_limit // _PART_OF_MEMORY)
    return max(_LEAST_WORK, min(n_threads * _WORK_PER_THREAD, most))
