"""Workers as jobs of a batch system: start, wait, end."""

from __future__ import annotations

import logging
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
    job_keywords,
    system_of,
    words_of,
)
from dask_slicer.cluster.client import ENVIRONMENT, SETTINGS, quiet, with_our_page
from dask_slicer.cluster.job_monitor import Keeper, Note
from dask_slicer.config.run_settings import JobSettings
from dask_slicer.errors import SchedulerError, UsageError
from dask_slicer.utils import signals
from dask_slicer.utils.formatting import format_time

if TYPE_CHECKING:
    from distributed import Client


_LOG = logging.getLogger(__name__)

LOGS = "logs"
# Dask's nannies set the first one so that glibc maps memory anew for every plane, unless it is set;
# and once it is set, glibc no longer raises the second one by itself. Both as far as it would.
_GLIBC = {"MALLOC_TRIM_THRESHOLD_": 64 << 20, "MALLOC_MMAP_THRESHOLD_": 32 << 20}
# How often waiting is told of; in the long run, whenever it has become a sixth longer.
_TELL_SECONDS, _TELL_SHARE = 10.0, 6
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
    """Start a scheduler here, and workers in jobs of a batch system; yield the scheduler's client.

    The jobs are queued when it does; `wait_for_workers` waits for the first one.

    Parameters
    ----------
    settings : JobSettings
    n_jobs : int
        No more than `settings` asks for.
    dashboard_address : str
        host:port; a busy port falls back to a free one. none: no dashboard.
    output_dir : Path
        Gets a directory of what the jobs print.
    keep_logs : bool
        Leave that directory where it is empty: jobs of another run may be about to print there.
    note : callable
        Is told what becomes of jobs.

    Raises
    ------
    UsageError
        If there are no such jobs here.
    SchedulerError
    """
    system = system_of(settings)
    cluster_class = _cluster_class(settings)
    _check_here(settings, system)
    from distributed import Client

    logs = output_dir / LOGS
    hidden = dashboard_address == "none"
    level = quiet()
    options = _keywords(settings, logs)
    with dask.config.set(SETTINGS | _own(settings) | with_our_page()), ExitStack() as stack:
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
            cluster.keeper = Keeper(cluster, system=system, n_jobs=n_jobs, logs=logs, note=note)
            cluster.loop.add_callback(cluster.keeper.keep)
            # Half made, it would be closed by nobody before its loop is.
            client = stack.enter_context(Client(cluster, set_as_default=False))
        try:
            yield client
        finally:
            _cancel(cluster, system)


def wait_for_workers(client: Client, note: Note) -> None:
    """Wait until a first job has started its worker; telling now and then how it stands.

    Raises
    ------
    SchedulerError
        If the batch system refuses the jobs, in its words, or they end too soon.
    """
    keeper: Keeper = client.cluster.keeper  # type: ignore[union-attr]  # given by `job_client`
    began = told = time.monotonic()
    while not keeper.n_joined:
        signals.raise_if_interrupted()
        if keeper.failure:
            raise SchedulerError(keeper.failure)
        now = time.monotonic()
        if now - told >= max(_TELL_SECONDS, (now - began) / _TELL_SHARE):
            told = now
            note(f"waiting for workers: {keeper.standing()}, {format_time(now - began)}")
        time.sleep(0.1)


def are_coming(client: Client) -> bool:
    """Return whether a client has no worker because its jobs are still queued, or are starting.

    Raises
    ------
    SchedulerError
        If they have come to nothing again and again.
    """
    keeper = getattr(client.cluster, "keeper", None)
    if not isinstance(keeper, Keeper):
        return False
    if keeper.failure:
        raise SchedulerError(keeper.failure)
    return not keeper.n_joined


def dashboard_link(client: Client, address: str) -> str:
    """Return where the dashboard is to be seen: its host is not the scheduler's, as Dask has it."""
    info = client.scheduler_info(n_workers=0)
    port = info.get("services", {}).get("dashboard")
    host = address.rpartition(":")[0]
    if port is None or host in ("", "0.0.0.0"):  # noqa: S104, not to listen there
        return str(client.dashboard_link or "")
    return f"http://{host}:{port}/status"


def job_script(settings: JobSettings, output_dir: Path) -> str:
    """Return what is submitted for a job; nothing is touched.

    Raises
    ------
    UsageError
    """
    job_class = _cluster_class(settings).job_cls
    with dask.config.set(_own(settings)):
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


def _check_here(settings: JobSettings, system: BatchSystem) -> None:
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


def _own(settings: JobSettings) -> dict[str, Any]:
    """Return settings of Dask that are ours to decide."""
    return {
        "distributed.deploy.lost-worker-timeout": "10000h",
        f"jobqueue.{settings.cluster}.log-directory": None,
    }


def _keywords(settings: JobSettings, logs: Path) -> dict[str, Any]:
    """Return what dask-jobqueue is to be told; what the site has configured for it comes first."""
    # Dask's settings reach workers that are started elsewhere as variables only.
    dasks = {
        "DASK_" + name.upper().replace(".", "__").replace("-", "_"): value
        for name, value in SETTINGS.items()
        if not name.startswith("distributed.scheduler.")
    }
    keywords = job_keywords(
        settings, logs=logs, python=sys.executable, environment=ENVIRONMENT | _GLIBC | dasks
    )
    for name in ("job_script_prologue", "job_extra_directives", "worker_extra_args"):
        sites = dask.config.get(f"jobqueue.{settings.cluster}.{name}", None) or []
        keywords[name] = [*sites, *keywords[name]]
    return keywords


@cache
def _job_class(base: Any) -> Any:
    from distributed.core import Status

    class Job(base):  # type: ignore[misc]
        """Remembers what became of it, where dask-jobqueue's would raise in the event loop."""

        refusal = end = ""
        has_joined = False
        n_times_unlisted = 0

        async def start(self) -> None:
            self.last_seen = time.monotonic()
            try:
                await super().start()
            except (RuntimeError, OSError, ValueError) as error:
                self.refusal = f"{self.submit_command} refused the job: {words_of(error)}"
                self.status = Status.running  # as what has been started must be

        async def close(self) -> None:
            await super().close()
            self.status = Status.closed

        async def _submit_job(self, script: str) -> str:
            if getattr(self, "use_stdin", False):  # of LSF, whose words would go to /dev/null
                command = [f"{self.submit_command} < {script}"]
                return str(await self._call(command, shell=True))  # noqa: S604, a name we made
            return str(await super()._submit_job(script))

    return Job


def _cancel(cluster: Any, system: BatchSystem) -> None:
    """Cancel all jobs by one command."""
    cluster.keeper.is_over.set()  # no other is submitted
    jobs = [job for job in list(cluster.workers.values()) if job.job_id]
    if not jobs:
        return
    try:
        with signals.deferred():  # Ctrl-C is sent to commands, too
            subprocess.run(  # noqa: S603
                [system.cancel, *(job.job_id for job in jobs)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=True,
                timeout=_CANCEL_SECONDS,
            )
    except (OSError, subprocess.SubprocessError) as error:
        # Some may have ended; each is cancelled by itself when the cluster is closed.
        _LOG.info("cancelling together: %s", error)
    else:
        for job in jobs:
            job.job_id = None


def _close(cluster: Any, system: BatchSystem, note: Note) -> None:
    """Cancel what jobs there still are, those that are being submitted among them."""
    with suppress(TimeoutError):
        # Not in the middle of a submission, of whose job nothing would be known.
        cluster.sync(cluster.keeper.end, callback_timeout=_CLOSE_SECONDS)
    try:
        cluster.close(_CLOSE_SECONDS)
    except TimeoutError:
        left = [job.job_id for job in list(cluster.workers.values()) if job.job_id]
        if left:
            note(f"jobs may be left, which end when they are run: {system.cancel} {' '.join(left)}")


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
