"""Publishing the progress of a run as events on the Dask scheduler."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from dask_slicer.core.splits import SPLITS
from dask_slicer.monitoring.counter import ProgressCounter
from dask_slicer.monitoring.events import Observer, RunReport
from dask_slicer.monitoring.state import (
    TOPIC,
    FailureEvent,
    RunState,
    SlowCase,
    SplitState,
    to_event,
)
from dask_slicer.planning.plan import CasePlan, RunPlan
from dask_slicer.records import CommittedCase, FailedCase
from dask_slicer.utils.formatting import escape_line

if TYPE_CHECKING:
    from distributed import Client


_LOG = logging.getLogger(__name__)

# Between two tellings: a scheduler has better things to do.
_EVERY_SECONDS = 0.5
# Failures told one by one each time; of others only the number, failures.csv has them all.
_MOST_FAILURES = 20
# Told of each time: an event stays small.
_MOST_SLOW = 5
# That the run waits for its last word to be heard.
_LAST_SECONDS = 2.0


class ProgressPublisher(Observer):
    """Passes on what happens to an observer, and tells the scheduler, where there is one.

    The run's own thread only counts. Another tells the sums, and waits for the scheduler in its
    place; whatever is not heard is made good by the next telling.

    Parameters
    ----------
    observer : Observer
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._over = threading.Event()
        self._ending = ""
        self._tally = ProgressCounter()
        self._n_bytes_in = 0
        self._splits: dict[str, SplitState] = {}
        self._kinds: dict[str, int] = {}
        self._slowest: tuple[SlowCase, ...] = ()
        self._todo: dict[str, CasePlan] = {}
        self._failures: deque[FailedCase] = deque(maxlen=_MOST_FAILURES)

    @contextmanager
    def publishing_to(self, client: Client, *, run_id: str, output_dir: str) -> Iterator[None]:
        """Tell a client's scheduler how the run stands, until the block is left."""
        known = {
            "run_id": run_id,
            "output_dir": escape_line(output_dir),
            "host": socket.gethostname(),
            "process": str(os.getpid()),
            "client": client.id,
        }
        # A daemon: it may be waiting for a scheduler that never answers.
        teller = threading.Thread(target=self._tell, args=(client, known), daemon=True)
        teller.start()
        self._ending = "stopped"
        try:
            yield
            self._ending = "ended"
        finally:
            self._over.set()
            teller.join(_LAST_SECONDS)

    def connected(self, dashboard: str, where: str) -> None:
        """Pass it on."""
        self._observer.connected(dashboard, where)

    def paged(self, link: str) -> None:
        """Pass it on."""
        self._observer.paged(link)

    def planned(self, plan: RunPlan, *, todo: Sequence[CasePlan], skipped: int) -> None:
        """Pass it on; time starts to count."""
        self._todo = {case.case_id: case for case in todo}
        counts = Counter(case.split for case in todo)
        self._splits = {
            split: SplitState(n_todo=counts[split])
            for split in (*SPLITS, "")  # a case that cannot be run may have none
            if counts[split]
        }
        self._tally.begin(todo, skipped=skipped)
        self._observer.planned(plan, todo=todo, skipped=skipped)

    def note(self, text: str) -> None:
        """Pass it on."""
        self._observer.note(text)

    def case_finished(self, record: CommittedCase | FailedCase) -> None:
        """Count a case, and pass it on."""
        self._tally.count(record)
        if isinstance(record, CommittedCase):
            self._written(record)
        else:
            self._kinds[record.kind] = self._kinds.get(record.kind, 0) + 1
            self._count(record.case_id, n_failed=1)
            self._failures.append(record)
        self._observer.case_finished(record)

    def finished(self, report: RunReport) -> None:
        """Pass it on."""
        self._observer.finished(report)

    def _written(self, record: CommittedCase) -> None:
        if record.case_id in self._todo:
            self._n_bytes_in += self._todo[record.case_id].file_bytes
        self._count(record.case_id, n_done=1, n_slices=len(record.slices))
        steps = {step: record.seconds.get(step, 0.0) for step in ("load", "slice", "save")}
        took = SlowCase(case_id=escape_line(record.case_id), **steps)
        slowest = sorted((*self._slowest, took), key=lambda one: -one.seconds)
        self._slowest = tuple(slowest[:_MOST_SLOW])

    def _count(self, case_id: str, **more: int) -> None:
        """Count a case in its split."""
        case = self._todo.get(case_id)
        if case is not None and case.split in self._splits:
            before = self._splits[case.split]
            counts = {name: getattr(before, name) + n for name, n in more.items()}
            self._splits[case.split] = replace(before, **counts)

    def _tell(self, client: Client, known: dict[str, str]) -> None:
        """Tell how the run stands, now and then, when there is news; runs in a thread."""
        told: RunState | None = None
        is_over = False
        while not is_over:
            is_over = self._over.wait(_EVERY_SECONDS)
            if not self._tally.has_begun:
                continue
            state = self._state(known, ending=self._ending if is_over else "")
            if told is not None and (state.n_ended, state.ending) == (told.n_ended, told.ending):
                continue
            try:
                while self._failures:
                    failure = to_event(_failure(self._failures.popleft(), known["run_id"]))
                    client.log_event(TOPIC, failure)
                client.log_event(TOPIC, to_event(state))
            except Exception:  # the run itself notices if the scheduler is lost
                _LOG.debug("the scheduler could not be told", exc_info=True)
            else:
                told = state

    def _state(self, known: dict[str, str], *, ending: str) -> RunState:
        return self._tally.state(
            **known,
            ending=ending,
            n_bytes_in=self._n_bytes_in,
            # Copies: the run goes on counting while this is sent.
            splits=self._splits.copy(),
            kinds=self._kinds.copy(),
            slowest=self._slowest,
        )


def _failure(record: FailedCase, run_id: str) -> FailureEvent:
    return FailureEvent(
        run_id=run_id,
        case_id=escape_line(record.case_id),
        step=record.step,
        kind=record.kind,
        message=record.message,
    )
