"""Replacing batch jobs that ended, failed to start, or were refused.

Dask would replace a job whose worker has left, but not one of several workers, nor one that was
refused, or that ended before its worker came; and it would give up one whose worker is only being
restarted. So the batch system is asked which jobs it has.
"""

from __future__ import annotations

import asyncio
import getpass
import logging
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from dask_slicer.cluster.batch_system import BatchSystem, ListedJob, fate_of, listed_jobs, words_of
from dask_slicer.utils.formatting import escape_line, plural

Note = Callable[[str], None]

_LOG = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
# How often the batch system is asked for its list while jobs are queued; and while one that had a
# worker, or was listed, is not to be found.
_ASK_SECONDS, _SHORTEST_ASK_SECONDS = 10.0, 2.0
# Jobs in a row that were refused, or ended before their worker came, after which a run ends if it
# has no worker; and how long the next one is put off, for each of them.
_MOST_IN_A_ROW = 3
_AGAIN_SECONDS, _LONGEST_AGAIN_SECONDS = 10.0, 60.0


class Keeper:
    """Keeps so many jobs of a cluster; lives in its event loop, and is read from elsewhere.

    Parameters
    ----------
    cluster : dask_jobqueue.JobQueueCluster
        Of jobs as `jobs` makes them.
    system : BatchSystem
    n_jobs : int
    logs : Path
        Where the jobs print to.
    note : callable
        Is told when a job is replaced.

    Attributes
    ----------
    n_joined : int
        Jobs with a worker.
    failure : str
        Why there will be no worker; nothing while there may be.
    is_over : asyncio.Event
        Set when no other job is to be submitted.
    """

    def __init__(
        self, cluster: Any, *, system: BatchSystem, n_jobs: int, logs: Path, note: Note
    ) -> None:
        self.n_joined = 0
        self.failure = ""
        self.is_over = asyncio.Event()
        self._cluster, self._system, self._n_jobs = cluster, system, n_jobs
        self._logs, self._note = logs, note
        self._task: asyncio.Future[None] | None = None
        self._listed: dict[str, ListedJob] = {}
        self._in_a_row: list[str] = []
        self._is_new = True
        self._trouble = ""
        self._again_at = time.monotonic()
        # The first list is asked for sooner than others.
        self._asked_at = self._again_at - _ASK_SECONDS / 2

    def keep(self) -> None:
        """Begin."""
        self._task = asyncio.ensure_future(self._keep())

    async def end(self) -> None:
        """Begin nothing more, and wait until what has been begun is done."""
        self.is_over.set()
        if self._task is not None:
            await self._task

    def standing(self) -> str:
        """Return how many jobs are submitted, queued and running, as last listed."""
        jobs = [self._listed.get(job.job_id) for job in list(self._cluster.workers.values())]
        queued = [job for job in jobs if job is not None and job.is_queued]
        reasons = ", ".join(sorted({job.reason for job in queued if job.reason}))
        n_running = sum(job is not None and not job.is_queued for job in jobs)
        because = f" ({reasons})" if reasons else ""
        n_submitted = f"{plural(len(jobs), 'job')} submitted"
        if self._trouble:
            return f"{n_submitted} ({self._system.listing[0]}: {self._trouble})"
        return f"{n_submitted}, {len(queued)} queued{because}, {n_running} running"

    async def _keep(self) -> None:
        while not self.is_over.is_set() and not self.failure:
            try:
                await self._look()
            except Exception:  # of one look; the next one may be luckier
                _LOG.warning("looking after the jobs", exc_info=True)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.is_over.wait(), _LOOK_SECONDS)

    async def _look(self) -> None:
        """Look what became of the jobs, and submit those that are missing."""
        away = self._away()
        if away and await self._ask(away):
            away = {name: job for name, job in self._away().items() if name in away}
        gone = {name: job for name, job in away.items() if self._is_gone(job)}
        refusals = [job.refusal for job in gone.values()]
        if gone and not self.is_over.is_set():
            await self._cluster.scale_down(gone)  # which cancels what may be left of them
        if self._in_a_row and not self.n_joined:
            is_refused = self._is_new and not self._cluster.workers and any(refusals)
            if is_refused or len(self._in_a_row) >= _MOST_IN_A_ROW:
                self.failure = self._in_a_row[-1]
                return
        for job in gone.values():
            self._note(f"{job.end}; another one is submitted")
        is_missing = len(self._cluster.worker_spec) < self._n_jobs
        if is_missing and time.monotonic() >= self._again_at and not self.is_over.is_set():
            self._cluster.scale(jobs=self._n_jobs)

    def _away(self) -> dict[str, Any]:
        """Return the jobs that have no worker, by name; take note of those that have."""
        job_of = {
            f"{name}{suffix}": name
            for name, spec in self._cluster.worker_spec.items()
            for suffix in spec.get("group", ("",))
        }
        present = {job_of.get(one.name) for one in self._cluster.scheduler.workers.values()}
        jobs = dict(self._cluster.workers)
        for name in present & jobs.keys():
            job = jobs.pop(name)
            job.last_seen = time.monotonic()
            job.n_times_unlisted = 0
            if not job.has_joined:
                job.has_joined = True
                self._is_new = False
                self._in_a_row.clear()
        self.n_joined = len(self._cluster.workers) - len(jobs)
        return jobs

    async def _ask(self, away: dict[str, Any]) -> bool:
        """Have the batch system list its jobs, if it is time to; return whether it has."""
        is_urgent = any(job.has_joined or job.n_times_unlisted for job in away.values())
        now = time.monotonic()
        if now - self._asked_at < (_SHORTEST_ASK_SECONDS if is_urgent else _ASK_SECONDS):
            return False
        self._asked_at = now
        submitted = [job for job in away.values() if job.job_id]
        command = [part.format(user=getpass.getuser()) for part in self._system.listing]
        try:
            text = await self._cluster.job_cls._call(command)
        except (RuntimeError, OSError) as error:
            if "No unfinished job" not in str(error):  # LSF's way to list none
                self._trouble = words_of(error)
                _LOG.warning("%s: %s", command[0], self._trouble)
                return False
            text = ""
        self._trouble = ""
        self._listed = listed_jobs(self._system, text)
        for job in submitted:
            job.n_times_unlisted += 1
            if job.job_id in self._listed:
                job.n_times_unlisted = 0
        return True

    def _is_gone(self, job: Any) -> bool:
        """Return whether a job is to be replaced; put down why."""
        fate = fate_of(
            refused=bool(job.refusal),
            has_joined=job.has_joined,
            silent_seconds=time.monotonic() - job.last_seen,
            n_times_unlisted=job.n_times_unlisted,
        )
        if fate == "lost":
            job.end = f"job {job.job_id} has ended"
        elif fate != "kept":
            job.end = job.refusal or f"job {job.job_id} ended before its worker came" + _last_words(
                self._logs, job.job_id
            )
            self._in_a_row.append(job.end)
            put_off = min(_AGAIN_SECONDS * len(self._in_a_row), _LONGEST_AGAIN_SECONDS)
            self._again_at = time.monotonic() + put_off
        return fate != "kept"


def _last_words(logs: Path, job_id: str) -> str:
    """Return the last line that a job has printed, and where."""
    for path in logs.glob(f"*{job_id}*"):
        if job_id not in re.findall(r"\d+", path.name):
            continue
        with suppress(OSError):
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
            said = [line for line in lines if line.strip()]
            return f"; {path} ends with: {escape_line(said[-1])}" if said else f"; {path} is empty"
    return f"; it left nothing in {logs}"
