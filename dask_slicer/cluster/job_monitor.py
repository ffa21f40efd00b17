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
from contextlib import suppress
from pathlib import Path
from typing import Any

from dask_slicer.cluster.batch_system import BatchSystem, ListedJob, error_text, listed_jobs
from dask_slicer.cluster.dask_private import run_batch_command
from dask_slicer.cluster.rpc import Note
from dask_slicer.utils.formatting import escape_line, plural

_LOG = logging.getLogger(__name__)

_CHECK_SECONDS = 1.0
# How often the batch system lists its jobs while some are queued; and while a job that had a
# worker, or was listed, is missing.
_LIST_SECONDS, _URGENT_LIST_SECONDS = 10.0, 2.0
# How many lists in a row must lack a job: some systems list a new one only after a while.
_MOST_UNLISTED = 2
# How long a running job may have no worker, as when its nanny starts another.
_SILENT_SECONDS = 60.0
# A run without workers ends after so many jobs in a row that were refused or ended before their
# worker came; each of them delays the next job by so many more seconds.
_MOST_FAILURES = 3
_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 10.0, 60.0


class JobMonitor:
    """Keeps jobs of the class in `jobqueue` submitted; runs in the event loop of their cluster."""

    def __init__(
        self, cluster: Any, *, system: BatchSystem, n_jobs: int, logs: Path, note: Note
    ) -> None:
        self.n_joined = 0  # jobs with a worker
        self.failure = ""  # why no worker will start
        self.is_over = asyncio.Event()  # no more jobs are to be submitted
        self._cluster, self._system, self._n_jobs = cluster, system, n_jobs
        self._logs, self._note = logs, note
        self._task: asyncio.Future[None] | None = None
        self._listed: dict[str, ListedJob] = {}
        self._failures: list[str] = []
        self._had_no_worker = True
        self._listing_error = ""
        self._next_submit = time.monotonic()
        # The first list is wanted sooner than the others.
        self._last_listed = self._next_submit - _LIST_SECONDS / 2

    def start(self) -> None:
        """Start checking the jobs."""
        self._task = asyncio.ensure_future(self._check_until_over())

    async def stop(self) -> None:
        """Submit no more jobs, and wait for a check that has begun."""
        self.is_over.set()
        if self._task is not None:
            await self._task

    def summary(self) -> str:
        """Return how many jobs are submitted, queued and running, as last listed."""
        jobs = [self._listed.get(job.job_id) for job in list(self._cluster.workers.values())]
        queued = [job for job in jobs if job is not None and job.is_queued]
        reasons = ", ".join(sorted({job.reason for job in queued if job.reason}))
        n_running = sum(job is not None and not job.is_queued for job in jobs)
        submitted = f"{plural(len(jobs), 'job')} submitted"
        if self._listing_error:
            return f"{submitted} ({self._system.listing[0]}: {self._listing_error})"
        because = f" ({reasons})" if reasons else ""
        return f"{submitted}, {len(queued)} queued{because}, {n_running} running"

    async def _check_until_over(self) -> None:
        while not self.is_over.is_set() and not self.failure:
            try:
                await self._check()
            except Exception:  # the next check may succeed
                _LOG.warning(
                    "Checking the batch jobs failed; trying again in %.0f s",
                    _CHECK_SECONDS,
                    exc_info=True,
                )
            with suppress(TimeoutError):
                await asyncio.wait_for(self.is_over.wait(), _CHECK_SECONDS)

    async def _check(self) -> None:
        """Replace the jobs that will have no worker any more; submit those that are missing."""
        without = self._jobs_without_workers()
        if without and await self._list_jobs(without):
            # Workers may have come while the batch system answered.
            now_without = self._jobs_without_workers()
            without = {name: job for name, job in now_without.items() if name in without}
        ends = {name: end for name, job in without.items() if (end := self._end_of(job))}
        failures = [end for name, end in ends.items() if not without[name].has_joined]
        if failures:
            self._failures += failures
            delay = min(_RETRY_SECONDS * len(self._failures), _LONGEST_RETRY_SECONDS)
            self._next_submit = time.monotonic() + delay
        if ends and not self.is_over.is_set():
            await self._cluster.scale_down(ends)  # which cancels what may be left of them
        if self._failures and not self.n_joined:
            is_refused = any(without[name].refusal for name in ends)
            is_first = self._had_no_worker and not self._cluster.workers
            if (is_first and is_refused) or len(self._failures) >= _MOST_FAILURES:
                self.failure = self._failures[-1]
                return
        for end in ends.values():
            self._note(f"{end}; submitted a replacement")
        is_missing = len(self._cluster.worker_spec) < self._n_jobs
        if is_missing and time.monotonic() >= self._next_submit and not self.is_over.is_set():
            self._cluster.scale(jobs=self._n_jobs)

    def _jobs_without_workers(self) -> dict[str, Any]:
        """Return the jobs without a worker, by name; update those that have one."""
        job_of_worker = {
            f"{name}{suffix}": name
            for name, spec in self._cluster.worker_spec.items()
            for suffix in spec.get("group", ("",))
        }
        workers = self._cluster.scheduler.workers.values()
        present = {job_of_worker.get(worker.name) for worker in workers}
        jobs = dict(self._cluster.workers)
        for name in present & jobs.keys():
            job = jobs.pop(name)
            job.last_seen = time.monotonic()
            job.n_times_unlisted = 0
            if not job.has_joined:
                job.has_joined = True
                self._had_no_worker = False
                self._failures.clear()
        self.n_joined = len(self._cluster.workers) - len(jobs)
        return jobs

    async def _list_jobs(self, without: dict[str, Any]) -> bool:
        """Have the batch system list its jobs, if it is time to; return whether it did."""
        is_urgent = any(job.has_joined or job.n_times_unlisted for job in without.values())
        now = time.monotonic()
        if now - self._last_listed < (_URGENT_LIST_SECONDS if is_urgent else _LIST_SECONDS):
            return False
        self._last_listed = now
        submitted = [job for job in without.values() if job.job_id]
        command = [part.format(user=getpass.getuser()) for part in self._system.listing]
        try:
            text = await run_batch_command(self._cluster.job_cls, command)
        except (RuntimeError, OSError) as error:
            if "No unfinished job" not in str(error):  # how LSF lists none
                self._listing_error = error_text(error)
                _LOG.warning("%s: %s", command[0], self._listing_error)
                return False
            text = ""
        self._listing_error = ""
        self._listed = listed_jobs(self._system, text)
        for job in submitted:
            job.n_times_unlisted = 0 if job.job_id in self._listed else job.n_times_unlisted + 1
        return True

    def _end_of(self, job: Any) -> str:
        """Return why a job without a worker will have none any more; empty if it may have one."""
        is_unlisted = job.n_times_unlisted >= _MOST_UNLISTED
        if job.has_joined:
            is_silent = time.monotonic() - job.last_seen > _SILENT_SECONDS
            return f"Job {job.job_id} ended" if is_unlisted or is_silent else ""
        if is_unlisted and not job.refusal:
            last_line = _last_line(self._logs, job.job_id)
            return f"Job {job.job_id} ended before its worker started{last_line}"
        return str(job.refusal)


def _last_line(logs: Path, job_id: str) -> str:
    """Return the last line that a job has printed, and its file."""
    for path in logs.glob(f"*{job_id}*"):
        if job_id not in re.findall(r"\d+", path.name):
            continue
        with suppress(OSError):
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
            printed = [line for line in lines if line.strip()]
            ending = f"ends with: {escape_line(printed[-1])}" if printed else "is empty"
            return f"; {path} {ending}"
    return f"; it left no log file in {logs}"
