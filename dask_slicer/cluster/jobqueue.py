"""Workers in jobs of a batch system: start, wait, cancel."""

from __future__ import annotations

import logging
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import psutil

from dask_slicer.cluster.batch_system import (
    NAME,
    BatchSystem,
    check_job_settings,
    error_text,
    job_keywords,
    system_of,
)
from dask_slicer.cluster.client import ENVIRONMENT, SETTINGS, run_page_setting, silence_dask
from dask_slicer.cluster.job_monitor import JobMonitor, Note
from dask_slicer.config.run_settings import JobSettings
from dask_slicer.errors import SchedulerError, UsageError
from dask_slicer.utils import signals
from dask_slicer.utils.formatting import format_time

if TYPE_CHECKING:
    from distributed import Client


_LOG = logging.getLogger(__name__)

LOGS = "logs"
# Dask's nannies set the first one, unless it is set, so low that glibc maps fresh memory for every
# plane. Once it is set, glibc no longer raises the second one by itself. These are the values up to
# which glibc would raise both.
_GLIBC = {"MALLOC_TRIM_THRESHOLD_": 64 << 20, "MALLOC_MMAP_THRESHOLD_": 32 << 20}
# A note on waiting comes so often at most; later, whenever the wait has become a sixth longer.
_NOTE_SECONDS, _NOTE_FRACTION = 10.0, 6
_CLOSE_SECONDS, _CANCEL_SECONDS = 5, 10


@contextmanager
def job_client(
    settings: JobSettings,
    *,
    n_jobs: int,
    dashboard_address: str,
    output_dir: Path,
    keep_logs: bool,
    note: Note,
) -> Iterator[Client]:
    """Start a scheduler here and workers in batch jobs; yield the client.

    The jobs are only submitted by then: `wait_for_workers` waits for the first worker. With
    `keep_logs`, an empty folder of logs stays: jobs of another run may be about to print there.
    """
    system = system_of(settings)
    cluster_class = _cluster_class(settings)
    _check_machine(settings, system)
    from distributed import Client

    logs = output_dir / LOGS
    hidden = dashboard_address == "none"
    level = silence_dask()
    options = _keywords(settings, logs)
    with (
        dask.config.set(SETTINGS | _fixed_settings(settings) | run_page_setting()),
        ExitStack() as stack,
    ):
        logs.mkdir(parents=True, exist_ok=True)
        if not keep_logs:
            stack.callback(_remove_if_empty, logs)
        with signals.deferred(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Port .* is already in use")
            try:
                cluster = cluster_class(
                    name=NAME,
                    job_cls=_job_class(cluster_class.job_cls),
                    silence_logs=level,
                    scheduler_options={
                        "dashboard_address": "127.0.0.1:0" if hidden else dashboard_address,
                        "dashboard": not hidden,
                    },
                    **options,
                )
            except (RuntimeError, OSError, ValueError) as error:
                raise SchedulerError(f"cannot start a scheduler here: {error}") from error
            stack.callback(_close, cluster, system, note)
            cluster.job_monitor = JobMonitor(
                cluster, system=system, n_jobs=n_jobs, logs=logs, note=note
            )
            cluster.loop.add_callback(cluster.job_monitor.start)
            # Still without signals: nothing would close a client that is half made.
            client = stack.enter_context(Client(cluster, set_as_default=False))
        try:
            yield client
        finally:
            _cancel(cluster, system)


def wait_for_workers(client: Client, note: Note) -> None:
    """Wait until the first job has a worker, with a note now and then.

    Raises a SchedulerError if the batch system refuses the jobs, or they end too soon.
    """
    monitor: JobMonitor = client.cluster.job_monitor  # type: ignore[union-attr]  # by `job_client`
    began = noted = time.monotonic()
    while not monitor.n_joined:
        signals.raise_if_interrupted()
        if monitor.failure:
            raise SchedulerError(monitor.failure)
        now = time.monotonic()
        if now - noted >= max(_NOTE_SECONDS, (now - began) / _NOTE_FRACTION):
            noted = now
            note(f"waiting for workers: {monitor.summary()}, {format_time(now - began)}")
        time.sleep(0.1)


def has_pending_jobs(client: Client) -> bool:
    """Return whether a client still waits for its first worker, whose job is queued or starting.

    Raises a SchedulerError if no worker will start.
    """
    monitor = getattr(client.cluster, "job_monitor", None)
    if not isinstance(monitor, JobMonitor):
        return False
    if monitor.failure:
        raise SchedulerError(monitor.failure)
    return not monitor.n_joined


def dashboard_link(client: Client, address: str) -> str:
    """Return the link of the dashboard, whose host Dask takes to be the scheduler's."""
    info = client.scheduler_info(n_workers=0)
    port = info.get("services", {}).get("dashboard")
    host = address.rpartition(":")[0]
    if port is None or host in ("", "0.0.0.0"):  # noqa: S104, not to listen there
        return str(client.dashboard_link or "")
    return f"http://{host}:{port}/status"


def job_script(settings: JobSettings, output_dir: Path) -> str:
    """Return the script of a job, without writing anything; raise a UsageError if there is none."""
    job_class = _cluster_class(settings).job_cls
    with dask.config.set(_fixed_settings(settings)):
        job = job_class("tcp://SCHEDULER", name=NAME, **_keywords(settings, output_dir / LOGS))
    return str(job.job_script())


def _cluster_class(settings: JobSettings) -> Any:
    system = system_of(settings)
    check_job_settings(settings)
    try:
        with signals.deferred():  # on import, dask_jobqueue makes Ctrl-C a quiet success
            import dask_jobqueue
    except ModuleNotFoundError:
        raise UsageError(
            f"cluster {settings.cluster} needs dask-jobqueue: pip install 'dask_slicer[hpc]'"
        ) from None
    return getattr(dask_jobqueue, system.cluster)


def _check_machine(settings: JobSettings, system: BatchSystem) -> None:
    for command in (system.submit, system.cancel):
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


def _keywords(settings: JobSettings, logs: Path) -> dict[str, Any]:
    """Return the keywords of dask-jobqueue; lines of its own configuration come first."""
    # Workers in jobs get Dask's settings as variables only.
    variables = {
        "DASK_" + name.upper().replace(".", "__").replace("-", "_"): value
        for name, value in SETTINGS.items()
        if not name.startswith("distributed.scheduler.")
    }
    keywords = job_keywords(
        settings, logs=logs, python=sys.executable, environment=ENVIRONMENT | _GLIBC | variables
    )
    for name in ("job_script_prologue", "job_extra_directives", "worker_extra_args"):
        configured = dask.config.get(f"jobqueue.{settings.cluster}.{name}", None) or []
        keywords[name] = [*configured, *keywords[name]]
    return keywords


@cache
def _job_class(base: Any) -> Any:
    from distributed.core import Status

    class Job(base):  # type: ignore[misc]
        """Keeps why it was refused, where dask-jobqueue's would raise in the event loop."""

        refusal = end = ""
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
                self.refusal = f"{command} refused the job: {error_text(error)}"
                self.status = Status.running  # Dask expects this of a job that was started

        async def close(self) -> None:
            await super().close()
            self.status = Status.closed

    return Job


def _cancel(cluster: Any, system: BatchSystem) -> None:
    """Cancel all jobs with one command."""
    cluster.job_monitor.is_over.set()
    jobs = [job for job in list(cluster.workers.values()) if job.job_id]
    if not jobs:
        return
    try:
        with signals.deferred():  # Ctrl-C would end the command, too
            subprocess.run(  # noqa: S603
                [system.cancel, *(job.job_id for job in jobs)],
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


def _close(cluster: Any, system: BatchSystem, note: Note) -> None:
    """Cancel the remaining jobs, also those that are being submitted."""
    with suppress(TimeoutError):
        # Not during a submission, whose job would stay unknown.
        cluster.sync(cluster.job_monitor.stop, callback_timeout=_CLOSE_SECONDS)
    try:
        cluster.close(_CLOSE_SECONDS)
    except TimeoutError:
        ids = [job.job_id for job in list(cluster.workers.values()) if job.job_id]
        if ids:
            note(
                "Some jobs may still be queued; cancel them with: "
                f"{shlex.join([system.cancel, *ids])}"
            )


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
