"""Timeouts, lost workers and stalled runs."""

from __future__ import annotations

import logging
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from dask_slicer.cluster import jobqueue
from dask_slicer.cluster.client import address
from dask_slicer.cluster.dask_private import EXIT_EVENTS
from dask_slicer.cluster.local import logs_exit_codes
from dask_slicer.errors import (
    CaseError,
    OutOfMemory,
    SchedulerError,
    Timeout,
    WorkerLost,
    as_case_error,
    shared_scheduler_error,
)
from dask_slicer.monitoring.snapshot import step_and_name
from dask_slicer.monitoring.state import STEPS
from dask_slicer.utils import system
from dask_slicer.utils.formatting import plural

if TYPE_CHECKING:
    from distributed import Client, Future, Scheduler
    from distributed.scheduler import WorkerState


_LOG = logging.getLogger(__name__)

# How long to wait for a result.
_RESULT_SECONDS = 5
# How long to wait for a nanny of this run to report its worker's exit status.
_EXITCODE_SECONDS = 10.0
# In place of a result that was lost with its worker.
LOST = object()
_KILLED = -9
# The exit status from multiprocessing when other code has read the status of the process before;
# multiprocessing does so itself when it starts a process while this one ends.
_UNREAD = 255
_LESS = "use fewer workers, or a machine with more memory"
# Seconds between polls of the scheduler, at most and at least; and how long to wait for an answer.
_LOOK_SECONDS, _SHORTEST_LOOK_SECONDS = 5.0, 0.2
_ANSWER_SECONDS = 60
# How long to wait for a worker's nanny; its host may be frozen, or cut off.
_TRY_SECONDS = 10
# The run ends after this time in which nothing has run and nothing has ended.
_STALLED_SECONDS = 120.0


class _Running(NamedTuple):
    """A task of this run that is running; if not `is_certain`, it may still be waiting."""

    step: str
    has_nanny: bool
    is_certain: bool


_RunningTasks = dict[tuple[str, str], _Running]  # by the name in the key, and worker


@dataclass(slots=True)
class Watchdog:
    """Stops graphs that take too long, explains lost workers, and notices when nothing runs."""

    client: Client
    timeout: float | None
    # The errors of graphs that were stopped, by key.
    stopped: dict[Any, CaseError] = field(default_factory=dict)
    _address: str = field(init=False)
    _began: dict[tuple[str, str], float] = field(default_factory=dict)
    _last_look: float = field(default_factory=time.monotonic)
    _last_activity: float = field(default_factory=time.monotonic)
    _n_oom_kills: int = field(default_factory=system.n_oom_kills)

    def __post_init__(self) -> None:
        self._address = address(self.client)

    def poll(self, in_flight: Iterable[Future[Any]]) -> None:
        """Ask the scheduler which tasks run, if it is time to, and stop those that are late.

        Raises SchedulerError if it does not answer, or if nothing has run for too long.
        """
        now = time.monotonic()
        interval = _LOOK_SECONDS if self.timeout is None else self.timeout / 4
        if now - self._last_look < min(max(interval, _SHORTEST_LOOK_SECONDS), _LOOK_SECONDS):
            return
        running, is_busy = self._running_tasks()  # several of one name: parts of a large case
        now = self._last_look = time.monotonic()
        ours = {step_and_name(future.key)[1]: future for future in in_flight}
        self._began = {
            (name, worker): self._began.get((name, worker), now)
            for name, worker in running
            if name in ours
        }
        if is_busy or jobqueue.has_pending_jobs(self.client):
            self._last_activity = now
        elif now - self._last_activity > _STALLED_SECONDS:
            raise SchedulerError(
                f"nothing has run for {_STALLED_SECONDS:.0f} s; the scheduler has "
                f"{plural(len(self.client.nthreads()), 'worker')}"
            )
        if self.timeout is None:
            return
        late: defaultdict[str, list[tuple[Future[Any], _Running]]] = defaultdict(list)
        late_names = {name for (name, _), at in self._began.items() if now - at > self.timeout}
        for name, worker in self._began:
            if name in late_names and ours[name].key not in self.stopped:
                late[worker].append((ours[name], running[name, worker]))
        for worker, graphs in late.items():
            self._stop(worker, graphs)

    def result(self, future: Future[Any]) -> Any:
        """Return the result or error of a graph that has ended, or LOST; from any thread."""
        from distributed import CancelledError

        if future.key in self.stopped:
            return None
        try:
            return self._fetch(future)
        except Exception as raised:
            if future.status == "cancelled":  # a lost scheduler cancels all of them
                lost = self._scheduler_lost()
                if self.client.status != "running":
                    return lost
                return SchedulerError(
                    f"another client cancelled the tasks of this run, or {lost} for a moment"
                )
            if future.status == "error":
                with suppress(Exception):
                    return future.exception(timeout=_RESULT_SECONDS)
                return LOST
            # UnboundLocalError: distributed, when its client is closing.
            if isinstance(raised, TimeoutError | CancelledError | OSError | UnboundLocalError):
                return LOST
            return raised

    def _fetch(self, future: Future[Any]) -> Any:
        """Return the result of a graph, or raise its error."""
        # The client fetches results that are asked for at the same time together: a worker that
        # does not answer would hold up those of all others. So each is first asked for by itself.
        if future.status == "finished" and (scheduler := self.client.scheduler) is not None:
            answer = self.client.sync(
                scheduler.gather, keys=[future.key], callback_timeout=_RESULT_SECONDS
            )
            if answer["status"] == "OK":
                return answer["data"][future.key]
        return future.result(timeout=_RESULT_SECONDS)

    def resolve(self, future: Future[Any], result: Any) -> Any:
        """Turn what `result` returned for a graph into its outcome: a result or a CaseError."""
        from distributed.scheduler import KilledWorker

        outcome = self.stopped.pop(future.key, result)
        self._last_activity = time.monotonic()
        _, name = step_and_name(future.key)
        # If it runs again, its time begins again.
        self._began = {key: began for key, began in self._began.items() if key[0] != name}
        if isinstance(outcome, CaseError) or not isinstance(outcome, Exception):
            return outcome
        if isinstance(outcome, SchedulerError):
            raise outcome
        if isinstance(outcome, KilledWorker):
            # If another client holds the same task, it may be that of its run.
            call, client = self.client.run_on_scheduler, self.client.id
            if self._try(call, _is_wanted_by_others, key=future.key, client=client):
                raise shared_scheduler_error(name)
            return self._lost(outcome)
        if isinstance(outcome, RuntimeError) and "deserialization" in str(outcome):
            raise SchedulerError(
                "the scheduler or a worker cannot import dask_slicer; install this version there "
                f"too ({outcome})"
            )
        return as_case_error(outcome, step="load")

    def _lost(self, error: Any) -> CaseError:
        """Return the error of a case whose worker died."""
        # The task is named by its key, ("save", case_id).
        step = error.task[0] if isinstance(error.task, tuple) else "load"
        worker = error.last_worker
        exitcode = self._exitcode(worker)
        lost: CaseError
        if self._passed_its_limit(worker):
            lost = OutOfMemory(f"its worker exceeded its memory limit and was stopped; {_LESS}")
        elif exitcode in (_KILLED, _UNREAD) and system.n_oom_kills() > self._n_oom_kills:
            self._n_oom_kills = system.n_oom_kills()
            lost = OutOfMemory(f"the system was out of memory and ended its worker; {_LESS}")
        else:
            lost = WorkerLost(f"the worker that ran it {_how_it_ended(exitcode)}")
        return as_case_error(lost, step=step)

    def _passed_its_limit(self, worker: WorkerState) -> bool:
        """Return whether a worker's nanny stopped it because of its memory."""
        # Not by address: until a nanny knows that of a new worker, it reports the old one.
        return any(
            event["pid"] == worker.pid and _host(event["worker"]) == _host(worker.address)
            for _, event in self._events("worker-restart-memory")
        )

    def _exitcode(self, worker: WorkerState) -> int | None:
        """Return the exit status of a worker; None if no nanny of this run reports it."""
        if not logs_exit_codes(self.client):
            return None
        began = min((at for at, _ in self._events(worker.address)), default=0.0)
        deadline = time.monotonic() + _EXITCODE_SECONDS
        while True:
            for at, event in self._events(EXIT_EVENTS):
                if event["name"] == worker.name and at > began:
                    return int(event["exitcode"])
            if time.monotonic() > deadline:
                return None
            time.sleep(0.05)

    def _events(self, topic: str) -> list[tuple[float, dict[str, Any]]]:
        # Only the wording of errors depends on them.
        return list(self._try(self.client.get_events, topic) or ())

    def _try(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Return the answer to a call; None if there is none."""
        try:
            return self.client.sync(call, *args, **options, callback_timeout=_TRY_SECONDS)
        except Exception as error:  # a worker or a host is gone, or does not answer
            _LOG.debug("No answer to %s: %s", call, error)
            return None

    def _stop(self, worker: str, graphs: list[tuple[Future[Any], _Running]]) -> None:
        """Stop late graphs by killing the worker that runs them.

        Cancelling does not stop its thread. The worker is paused first, so that it takes no other
        case; the graphs are cancelled, so that no other worker runs them.
        """
        has_nanny = all(task.has_nanny for _, task in graphs)
        stays = "" if has_nanny else f"; {worker} has no nanny to restart it, and stays busy"
        for future, task in graphs:
            # A worker that hangs may not say which of its tasks run: each may be the late one.
            subject = "took" if task.is_certain else "it or another case on its worker took"
            kind = Timeout if task.is_certain else WorkerLost
            failure = kind(
                f"{subject} longer than --timeout {self.timeout:g} s and was stopped{stays}"
            )
            self.stopped[future.key] = as_case_error(failure, step=task.step)
        self._try(self.client.run_on_scheduler, _pause, worker=worker)
        self.client.cancel([future for future, _ in graphs], force=True)
        if has_nanny:
            self._try(self.client.run, _kill_worker, workers=[worker], nanny=True)

    def _running_tasks(self) -> tuple[_RunningTasks, bool]:
        try:
            running: tuple[_RunningTasks, bool] = self.client.sync(
                self.client.run_on_scheduler, _running_tasks, callback_timeout=_ANSWER_SECONDS
            )
        except TimeoutError:
            if self.client.status != "running":
                raise self._scheduler_lost() from None
            raise SchedulerError(
                f"the Dask scheduler at {self._address} has not answered for {_ANSWER_SECONDS} s"
            ) from None
        except OSError as error:  # the client may connect again; if not, it raises
            _LOG.debug("Could not ask the scheduler which tasks run: %s", error)
            return {}, False
        return running

    def _scheduler_lost(self) -> SchedulerError:
        return SchedulerError(f"the connection to the Dask scheduler at {self._address} was lost")


def last_event(client: Client) -> float:
    """Return the time of the last event on a client's scheduler, by its clock."""
    return max((at for at, _ in _scheduler_events(client)), default=0.0)


def count_lost_workers(client: Client, *, after: float) -> int:
    """Return how many workers were lost with a case of ours after an event; they are replaced."""
    return sum(
        event.get("action") == "remove-worker"
        and not event.get("expected", True)
        and any(
            step_and_name(key)[0] in STEPS
            for key in (*event.get("processing-tasks", ()), *event.get("lost-computed-tasks", ()))
        )
        for at, event in _scheduler_events(client)
        if at > after
    )


def _scheduler_events(client: Client) -> list[tuple[float, dict[str, Any]]]:
    with suppress(Exception):  # a count is no reason to fail
        return list(client.sync(client.get_events, "all", callback_timeout=_TRY_SECONDS))
    return []


def _host(address: str | None) -> str:
    from distributed.comm.addressing import get_address_host

    return str(get_address_host(address)) if address else ""


def _how_it_ended(exitcode: int | None) -> str:
    if exitcode in (None, _UNREAD):
        return "died; the system's log may say why"
    if exitcode >= 0:
        return f"exited with status {exitcode}"
    names = {int(known): f" ({known.name})" for known in signal.Signals}
    return f"was killed by signal {-exitcode}{names.get(-exitcode, '')}"


def _running_tasks(dask_scheduler: Scheduler) -> tuple[_RunningTasks, bool]:
    """Return our running tasks, and whether any task runs; called on the scheduler."""
    running = {}
    is_busy = False
    for worker in dask_scheduler.workers.values():
        tasks = list(worker.processing)
        is_busy = is_busy or bool(tasks)
        if len(tasks) > worker.nthreads:
            # Some schedulers are configured to queue one more task on a busy worker. The worker
            # says which of its tasks run, unless it hangs.
            tasks = [task for task in tasks if task in worker.executing] or tasks
        is_certain = len({step_and_name(t.key)[1] or t.key for t in tasks}) <= worker.nthreads
        for task in tasks:
            step, name = step_and_name(task.key)
            if name:
                has_nanny = worker.nanny is not None
                running[name, worker.address] = _Running(step, has_nanny, is_certain)
    return running, is_busy


def _is_wanted_by_others(key: Any, client: str, dask_scheduler: Scheduler) -> bool:
    """Return whether clients other than `client` hold a task; called on the scheduler."""
    task = dask_scheduler.tasks.get(key)
    return task is not None and any(other.client_key != client for other in task.who_wants or ())


def _pause(worker: str, dask_scheduler: Scheduler) -> None:
    """Give a worker no more tasks; called on the scheduler."""
    if worker in dask_scheduler.workers:
        dask_scheduler.handle_worker_status_change("paused", worker, stimulus_id="dask-slicer-stop")


def _kill_worker(dask_worker: Any) -> None:
    """Kill a worker at once; called in its nanny."""
    if dask_worker.pid:
        psutil.Process(dask_worker.pid).kill()
