"""Counting the cases of a run, and publishing its progress as events on the Dask scheduler."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from dask_slicer.core.splits import SPLITS
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
from dask_slicer.records import STEPS, CommittedCase, FailedCase
from dask_slicer.utils.formatting import escape_line

if TYPE_CHECKING:
    from distributed import Client


_LOG = logging.getLogger(__name__)

# Between two events of a run, to keep the load of its scheduler low.
_EVERY_SECONDS = 0.5
# Failures sent with one event; failures.csv has all of them.
_MOST_FAILURES = 20
# Slowest cases sent with each event, to keep it small.
_MOST_SLOW = 5
# How long the run waits until its last event is sent.
_LAST_SECONDS = 2.0


class ProgressPublisher(Observer):
    """Counts the cases of a run; passes its events on to an observer, and its state to a scheduler.

    The thread of the run only counts: a second thread sends, and waits for the scheduler. What it
    could not send is part of the next event.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._state = RunState(
            run_id="", output_dir="", host="", process="", client="", n_cases=0, n_skipped=0
        )
        self._began: float | None = None
        self._todo: dict[str, CasePlan] = {}
        self._failures: deque[FailedCase] = deque(maxlen=_MOST_FAILURES)
        self._over = threading.Event()

    @property
    def state(self) -> RunState:
        """Return the progress of the run so far."""
        if self._began is None:
            return self._state
        return replace(self._state, seconds=round(time.monotonic() - self._began, 3))

    @contextmanager
    def publishing_to(self, client: Client, *, run_id: str, output_dir: str) -> Iterator[None]:
        """Publish progress on a client's scheduler until the block is left."""
        self._state = replace(
            self._state,
            run_id=run_id,
            output_dir=escape_line(output_dir),
            host=socket.gethostname(),
            process=str(os.getpid()),
            client=client.id,
        )
        # A daemon: it may be waiting for a scheduler that never answers.
        sender = threading.Thread(target=self._publish, args=(client,), daemon=True)
        sender.start()
        ending = "stopped"
        try:
            yield
            ending = "ended"
        finally:
            self._state = replace(self._state, ending=ending)
            self._over.set()
            sender.join(_LAST_SECONDS)

    def connected(self, dashboard: str, where: str) -> None:
        """Pass it on."""
        self._observer.connected(dashboard, where)

    def run_page(self, link: str) -> None:
        """Pass it on."""
        self._observer.run_page(link)

    def planned(self, plan: RunPlan, *, todo: Sequence[CasePlan], skipped: int) -> None:
        """Start counting cases and time, and pass it on."""
        self._todo = {case.case_id: case for case in todo}
        counts = Counter(case.split for case in todo)
        self._state = replace(
            self._state,
            n_cases=len(self._todo) + skipped,
            n_skipped=skipped,
            work=sum(case.work for case in todo),
            splits={
                split: SplitState(n_todo=counts[split])
                for split in (*SPLITS, "")  # a case that cannot be run may have none
                if counts[split]
            },
        )
        self._began = time.monotonic()
        self._observer.progress(self.state)
        self._observer.planned(plan, todo=todo, skipped=skipped)

    def note(self, text: str) -> None:
        """Pass it on."""
        self._observer.note(text)

    def case_finished(self, record: CommittedCase | FailedCase) -> None:
        """Count a case, and pass it on."""
        case = self._todo.get(record.case_id)
        split, work, n_bytes_in = (case.split, case.work, case.file_bytes) if case else (None, 0, 0)
        if isinstance(record, CommittedCase):
            self._state = with_written(
                self._state, record, split=split, work=work, n_bytes_in=n_bytes_in
            )
        else:
            self._state = with_failed(self._state, record, split=split, work=work)
            self._failures.append(record)
        self._observer.progress(self.state)
        self._observer.case_finished(record)

    def finished(self, report: RunReport) -> None:
        """Pass it on."""
        self._observer.finished(report)

    def _publish(self, client: Client) -> None:
        """Send the state now and then, if it has changed; runs in a thread."""
        sent: RunState | None = None
        is_over = False
        while not is_over:
            is_over = self._over.wait(_EVERY_SECONDS)
            if self._began is None:
                continue
            state = self.state
            if sent is not None and (state.n_ended, state.ending) == (sent.n_ended, sent.ending):
                continue
            try:
                while self._failures:
                    failure = failure_event(self._failures.popleft(), state.run_id)
                    client.log_event(TOPIC, to_event(failure))
                client.log_event(TOPIC, to_event(state))
            except Exception:  # the run itself notices if the scheduler is lost
                _LOG.debug("Could not publish progress to the scheduler", exc_info=True)
            else:
                sent = state


def with_written(
    state: RunState, record: CommittedCase, *, split: str | None, work: int, n_bytes_in: int = 0
) -> RunState:
    """Return a state in which a written case is counted, in no split if `split` is None."""
    seconds = {step: record.seconds.get(step, 0.0) for step in STEPS}
    slow_case = SlowCase(case_id=escape_line(record.case_id), **seconds)
    slowest = sorted((*state.slowest, slow_case), key=lambda slow: -slow.seconds)
    return replace(
        state,
        n_done=state.n_done + 1,
        n_slices=state.n_slices + len(record.slices),
        n_bytes=state.n_bytes + record.n_bytes,
        n_bytes_in=state.n_bytes_in + n_bytes_in,
        work_done=state.work_done + work,
        splits=_with_counts(state.splits, split, n_done=1, n_slices=len(record.slices)),
        slowest=tuple(slowest[:_MOST_SLOW]),
    )


def with_failed(
    state: RunState, record: FailedCase, *, split: str | None, work: int = 0
) -> RunState:
    """Return a state in which a failed case is counted, and its work is subtracted."""
    return replace(
        state,
        n_failed=state.n_failed + 1,
        # Most cases fail at once, or before they begin: their time says nothing about the others.
        work=state.work - work,
        splits=_with_counts(state.splits, split, n_failed=1),
        kinds=state.kinds | {record.kind: state.kinds.get(record.kind, 0) + 1},
    )


def _with_counts(
    splits: dict[str, SplitState], name: str | None, **counts: int
) -> dict[str, SplitState]:
    if name is None or name not in splits:
        return splits
    sums = {count: getattr(splits[name], count) + n for count, n in counts.items()}
    return splits | {name: replace(splits[name], **sums)}


def failure_event(record: FailedCase, run_id: str) -> FailureEvent:
    """Return a failed case as an event."""
    return FailureEvent(
        run_id=run_id,
        case_id=escape_line(record.case_id),
        step=record.step,
        kind=record.kind,
        message=record.message,
    )
