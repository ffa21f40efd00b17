"""Counting the cases of a run, and publishing its progress as events on the Dask scheduler."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from dask_slicer.monitoring.observer import Observer
from dask_slicer.monitoring.state import TOPIC, RunState
from dask_slicer.planning.plan import CasePlan, RunPlan
from dask_slicer.records import CommittedCase, FailedCase
from dask_slicer.utils.formatting import escape_line

if TYPE_CHECKING:
    from distributed import Client


_LOG = logging.getLogger(__name__)

# Between two events of a run, to keep the load of its scheduler low.
_EVERY_SECONDS = 0.5
# How long the run waits until its last event is sent.
_LAST_SECONDS = 2.0


class ProgressPublisher:
    """Counts the cases of a run, for its observer and for the scheduler.

    The thread of the run only counts; a second one sends. The next event has what it could not.
    """

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.n_lost_workers = 0  # that had a case when they were lost
        self._state = RunState()
        self._began: float | None = None
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

    def planned(self, plan: RunPlan, *, todo: Sequence[CasePlan], skipped: int) -> None:
        """Start counting cases and time, and pass it on."""
        n_todo: Counter[str] = Counter()
        work = 0
        for case in todo:
            n_todo[case.split] += 1
            work += case.work
        self._state = self._state.with_plan(n_todo, n_skipped=skipped, work=work)
        self._began = time.monotonic()
        self.observer.progress(self.state)
        self.observer.planned(plan, todo=todo, skipped=skipped)

    def case_finished(self, case: CasePlan, record: CommittedCase | FailedCase) -> None:
        """Count a case, and pass its record on."""
        if isinstance(record, CommittedCase):
            self._state = self._state.with_written(
                record, work=case.work, n_bytes_in=case.file_bytes
            )
        else:
            self._state = self._state.with_failed(record, split=case.split, work=case.work)
        self.observer.progress(self.state)
        self.observer.case_finished(record)

    def _publish(self, client: Client) -> None:
        """Send the state now and then, if it has changed; runs in a thread."""
        sent: tuple[int, str] | None = None
        is_over = False
        while not is_over:
            is_over = self._over.wait(_EVERY_SECONDS)
            state = self.state
            news = (state.n_ended, state.ending)
            if self._began is None or news == sent:
                continue
            try:
                client.log_event(TOPIC, asdict(state))
            except Exception:  # the run itself notices if the scheduler is lost
                _LOG.debug("Could not publish progress to the scheduler", exc_info=True)
            else:
                sent = news
