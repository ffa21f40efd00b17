"""What runs have told of themselves so far, event by event: the latest of each run counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dask_slicer.standing import FailureEvent, RunState, chosen, from_event
from dask_slicer.views import View, WorkerView

# Of each run; and runs, of which a scheduler may see very many.
_MOST_FAILURES, _MOST_RUNS = 20, 100


@dataclass(slots=True)
class Heard:
    """Runs by their id, with when they told of themselves; and the last failures.

    Both may be added to by another thread while they are read.
    """

    runs: dict[str, tuple[RunState, float]] = field(default_factory=dict)
    failures: dict[tuple[str, str], FailureEvent] = field(default_factory=dict)

    def hear(self, at: float, content: object) -> None:
        """Take note of an event: its time, by the scheduler's clock, and what it tells."""
        told = from_event(content)
        if isinstance(told, RunState):
            known = self.runs.get(told.run_id)
            if known is None or known[0].seconds <= told.seconds:
                self.runs[told.run_id] = (told, at)
            if len(self.runs) > _MOST_RUNS:
                self._forget(min(self.runs, key=lambda run_id: self.runs[run_id][1]))
        elif isinstance(told, FailureEvent):
            self.failures[told.run_id, told.case_id] = told
            of_run = [key for key in self.failures if key[0] == told.run_id]
            if len(of_run) > _MOST_FAILURES:
                del self.failures[of_run[0]]

    def _forget(self, run_id: str) -> None:
        del self.runs[run_id]
        for key in [key for key in self.failures if key[0] == run_id]:
            del self.failures[key]

    def clients_since(self, at: float) -> set[str]:
        """Return the clients of runs that have told of themselves since: they are there."""
        return {run.client for run, told in list(self.runs.values()) if told > at}

    def view(
        self,
        now: float,
        connected: Iterable[str],
        *,
        workers: Sequence[WorkerView],
        n_waiting: int,
        process: tuple[str, str] | None = None,
    ) -> View:
        """Return what there is to see.

        Parameters
        ----------
        now : float
            By the scheduler's clock.
        connected : iterable of str
            Clients that the scheduler has.
        workers : sequence of WorkerView
        n_waiting : int
            Graphs that wait for a worker.
        process : (str, str), optional
            Host and number of the only process whose runs are meant.
        """
        told = list(self.runs.values())
        ago = {run.run_id: max(now - at, 0.0) for run, at in told}
        runs = chosen([run for run, _ in told], connected, process=process)
        ids = {run.run_id for run in runs}
        return View(
            runs=tuple((run, ago[run.run_id]) for run in runs),
            failures=tuple(one for one in list(self.failures.values()) if one.run_id in ids),
            workers=tuple(workers),
            n_waiting=n_waiting,
        )
