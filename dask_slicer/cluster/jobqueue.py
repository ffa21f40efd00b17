"""Workers in jobs of a batch system: start, wait, cancel."""

from __future__ import annotations

import logging
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from dask_slicer.cluster import batch_system
from dask_slicer.cluster import client as clients
from dask_slicer.cluster.batch_system import NAME, job_keywords
from dask_slicer.cluster.job_monitor import JobMonitor
from dask_slicer.cluster.process_settings import DASK
from dask_slicer.cluster.rpc import Note
from dask_slicer.config.run_settings import JobSettings
from dask_slicer.config.schema import RunConfig
from dask_slicer.errors import SchedulerError, UsageError
from dask_slicer.utils import signals
from dask_slicer.utils.formatting import format_time

if TYPE_CHECKING:
    from distributed import Client


_LOG = logging.getLogger(__name__)

_LOGS = "logs"
# A note on waiting comes so often at most; later, whenever the wait has become a sixth longer.
_NOTE_SECONDS, _NOTE_FRACTION = 10.0, 6
_CLOSE_SECONDS, _CANCEL_SECONDS = 5, 10


@contextmanager
def job_client(config: RunConfig, *, n_jobs: int, keep_logs: bool, note: Note) -> Iterator[Client]:
    """Start a scheduler here and workers in batch jobs; yield the client.

    The jobs are only submitted by then: `wait_for_workers` waits for the first worker. With
    `keep_logs`, an empty folder of logs stays: jobs of another run may be about to print there.
    """
    cluster_class = _cluster_class(config)
    _check_machine(config, cluster_class.job_cls)
    logs = config.output_dir / _LOGS

    def start(scheduler_options: dict[str, Any], _: int) -> Any:
        cluster = cluster_class(
            name=NAME,
            job_cls=_job_class(cluster_class.job_cls),
            silence_logs=False,
            scheduler_options=scheduler_options,
            **job_keywords(config, logs=logs),
        )
        system = batch_system.SYSTEMS[str(config.cluster)]
        monitor = JobMonitor(cluster, system=system, n_jobs=n_jobs, logs=logs, note=note)
        cluster.job_monitor = monitor
        cluster.loop.add_callback(monitor.start)
        return cluster

    logs.mkdir(parents=True, exist_ok=True)
    try:
        with clients.cluster_client(
            start,
            partial(_close, note=note),
            failure="cannot start a scheduler here",
            dashboard_address=config.dashboard_address,
            settings=_fixed_settings(config),
        ) as client:
            yield client
    finally:
        if not keep_logs:
            with suppress(OSError):  # it is not empty
                logs.rmdir()


def wait_for_workers(client: Client, note: Note) -> None:
    """Wait for the first worker, with a note now and then; raise a SchedulerError if none comes."""
    monitor: JobMonitor = client.cluster.job_monitor  # type: ignore[union-attr]  # by `job_client`
    began = noted = time.monotonic()
    while has_pending_jobs(client):
        signals.raise_if_interrupted()
        now = time.monotonic()
        if now - noted >= max(_NOTE_SECONDS, (now - began) / _NOTE_FRACTION):
            noted = now
            note(f"waiting for workers: {monitor.summary()}, {format_time(now - began)}")
        time.sleep(0.1)


def has_pending_jobs(client: Client) -> bool:
    """Return whether no job has a worker yet; raise a SchedulerError if none will have one."""
    monitor = getattr(client.cluster, "job_monitor", None)
    if not isinstance(monitor, JobMonitor):
        return False
    if monitor.failure:
        raise SchedulerError(monitor.failure)
    return not monitor.n_joined


def dashboard_link(client: Client, address: str) -> str:
    """Return the link of the dashboard, whose host Dask takes to be the scheduler's."""
    port = client.scheduler_info(n_workers=0).get("services", {}).get("dashboard")
    host = address.rpartition(":")[0]
    if port is None or host in ("", "0.0.0.0"):  # noqa: S104, not to listen there
        return clients.dashboard_link(client)
    return f"http://{host}:{port}/status"


def job_script(settings: JobSettings, output_dir: Path) -> str:
    """Return the script of a job, without writing anything; raise a UsageError if there is none."""
    job_class = _cluster_class(settings).job_cls
    with DASK.changed(_fixed_settings(settings)):
        job = job_class(
            "tcp://SCHEDULER", name=NAME, **job_keywords(settings, logs=output_dir / _LOGS)
        )
    return str(job.job_script())


def _cluster_class(settings: JobSettings) -> Any:
    batch_system.check_job_settings(settings)
    try:
        with signals.no_signal_handlers():
            import dask_jobqueue
    except ModuleNotFoundError:
        raise UsageError(
            f"cluster {settings.cluster} needs dask-jobqueue: pip install 'dask_slicer[hpc]'"
        ) from None
    return getattr(dask_jobqueue, f"{settings.cluster}".upper() + "Cluster")


def _check_machine(settings: JobSettings, job_class: Any) -> None:
    for command in (job_class.submit_command, job_class.cancel_command):
        if shutil.which(command) is None:
            raise UsageError(
                f"{command} is not on this machine: run where {settings.cluster} jobs are submitted"
            )
    known = sorted(psutil.net_if_addrs())
    if settings.interface is not None and settings.interface not in known:
        raise UsageError(
            f"interface must be one of this machine's, {', '.join(known)}, got {settings.interface}"
        )


def _fixed_settings(settings: JobSettings) -> dict[str, Any]:
    """Return settings of Dask that the user's Dask configuration cannot change."""
    return {
        "distributed.deploy.lost-worker-timeout": "10000h",
        f"jobqueue.{settings.cluster}.log-directory": None,
    }


@cache
def _job_class(base: Any) -> Any:
    from distributed.core import Status

    class Job(base):  # type: ignore[misc]
        """Keeps why it was refused, where dask-jobqueue's would raise in the event loop."""

        refusal = ""
        has_joined = False
        n_times_unlisted = 0

        async def start(self) -> None:
            self.last_seen = time.monotonic()
            command = str(self.submit_command)  # type: ignore[has-type]  # of dask-jobqueue
            if getattr(self, "use_stdin", False):  # LSF; dask-jobqueue would drop its errors
                self.use_stdin = False
                self.submit_command = f"sh -c 'exec {command} < \"$0\"'"
            try:
                await super().start()
            except (RuntimeError, OSError, ValueError) as error:
                self.refusal = f"{command} refused the job: {batch_system.error_text(error)}"
                self.status = Status.running  # Dask expects this of a job that was started

        async def close(self) -> None:
            await super().close()
            self.status = Status.closed

    return Job


def _close(cluster: Any, *, note: Note) -> None:
    """Cancel all jobs with one command, and then those that are being submitted."""
    cluster.job_monitor.is_over.set()
    if jobs := _submitted_jobs(cluster):
        try:
            with signals.deferred():  # Ctrl-C would end the command, too
                subprocess.run(  # noqa: S603
                    _cancel_command(jobs),
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    check=True,
                    timeout=_CANCEL_SECONDS,
                )
        except (OSError, subprocess.SubprocessError) as error:
            # Some may have ended; closing the cluster cancels each job by itself.
            _LOG.info("Could not cancel all jobs with one command: %s", error)
        else:
            for job in jobs:
                job.job_id = None
    with suppress(TimeoutError):
        # Not during a submission, whose job would stay unknown.
        cluster.sync(cluster.job_monitor.stop, callback_timeout=_CLOSE_SECONDS)
    try:
        cluster.close(_CLOSE_SECONDS)
    except TimeoutError:
        if jobs := _submitted_jobs(cluster):
            command = shlex.join(_cancel_command(jobs))
            note(f"Some jobs may still be queued; cancel them with: {command}")


def _submitted_jobs(cluster: Any) -> list[Any]:
    return [job for job in list(cluster.workers.values()) if job.job_id]


def _cancel_command(jobs: list[Any]) -> list[str]:
    return [jobs[0].cancel_command, *(job.job_id for job in jobs)]
