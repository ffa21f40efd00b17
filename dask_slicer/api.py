"""Public functions for Python and notebooks: plan, run and submit.

They import what is slow to import when they are called, so that a notebook shows a line at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from dask_slicer.config.keywords import RunKeywords
from dask_slicer.config.loader import PLACES, build_config
from dask_slicer.config.partition import parse_partition
from dask_slicer.config.schema import RunConfig
from dask_slicer.errors import UsageError
from dask_slicer.monitoring.logs import logged_to
from dask_slicer.monitoring.observer import Observer, RunReport
from dask_slicer.output.lock import check_free
from dask_slicer.planning.plan import RunPlan
from dask_slicer.utils import signals

if TYPE_CHECKING:
    from distributed import Client

    from dask_slicer.execution.background import RunHandle


# Everything that describes a run: its cases, its settings, its place.
Settings = RunPlan | RunConfig | Mapping[str, Any] | str | Path


def plan(config: Settings | None = None, **settings: Unpack[RunKeywords]) -> RunPlan:
    """Return what a run would do; write nothing but a cache of headers.

    Reads headers; with a clip range, also a few small scans, to note where it does not suit them.

    Parameters
    ----------
    config : RunConfig, mapping, str, Path or RunPlan, optional
        Settings, or the name or path of a configuration, as ``--config`` takes it.
    **settings
        Names of `RunConfig`; they win over `config`. None means not given. `output_dir` may be
        left out: earlier slices are not compared then, and the plan cannot be run.

    Returns
    -------
    RunPlan
        Problems of single cases are in `failures`, those of the dataset in `problems`.

    Raises
    ------
    ConfigError
        If a setting is unknown, missing or out of its range.
    DatasetError
        If there is no case, or splits or `only` do not fit the cases.
    OutputError
        If the output directory has files of other programs, or was made with other settings.
    """
    from dask_slicer.execution.quick_look import with_clip_note
    from dask_slicer.execution.resume import prepare_plan

    return with_clip_note(prepare_plan(_config_of(config, settings, needs_output=False)))


def run(
    config: Settings | None = None,
    client: Client | None = None,
    *,
    progress: bool = True,
    observer: Observer | None = None,
    **settings: Unpack[RunKeywords],
) -> RunReport:
    """Make slices of a dataset; cases that an earlier run wrote are skipped.

    Progress is a bar below the cell in a notebook, and elsewhere the lines of ``dask-slicer run``.
    After Ctrl-C, finished cases are kept and the same call continues.

    Parameters
    ----------
    config : RunPlan, RunConfig, mapping, str or Path, optional
        As for `plan`. Only the settings of a plan are used: it may be hours old, so scans and
        output are read again once the output is locked.
    client : distributed.Client, optional
        Run on its workers. Without it, the run uses the Dask client that this program has made,
        unless the settings name other workers (`num_workers`, `scheduler`, `scheduler_file`,
        `cluster`).
    progress : bool
        False shows nothing.
    observer : Observer, optional
        Receives the progress, and nothing is shown.
    **settings
        Names of `RunConfig`; they win over `config`. None means not given.

    Returns
    -------
    RunReport

    Raises
    ------
    UsageError
        If settings, dataset, output or client cannot be used; nothing was written.
    SchedulerError
        If the scheduler cannot be reached. If it is lost after a case was written, the run ends
        with a report whose `stopped` says so.
    KeyboardInterrupt
        After Ctrl-C, when the finished cases are usable.
    """
    run_config = _config_of(config, settings)
    if client is not None:
        client = _client_for(run_config, client)  # refused before anything is written
    display = _display(str(run_config.output_dir), progress=progress, observer=observer)
    with logged_to(run_config.log_file), display as run_observer, _interrupt_once():
        try:
            from dask_slicer.execution import pipeline

            run_client = client or _client_for(run_config, None)
            return pipeline.run(run_config, run_client, observer=run_observer)
        except KeyboardInterrupt:
            pass
        except UsageError as error:  # its message says all
            raise error.with_traceback(None) from None
    # A new exception: the traceback of the first one would keep futures alive.
    raise signals.Interrupted("stopped; finished cases are kept, and the same call continues")


def submit(
    config: Settings | None = None, client: Client | None = None, **settings: Unpack[RunKeywords]
) -> RunHandle:
    """Start a run in the background, and return a handle to it at once.

    Parameters
    ----------
    config, client
        As for `run`; the client must stay open.
    **settings
        As for `run`.

    Returns
    -------
    RunHandle
        Has `status`, `cancel()` and `result()`.

    Raises
    ------
    UsageError
        If settings or client cannot be used, or the output is in use. Later errors are raised
        by `RunHandle.result`.
    """
    from dask_slicer.execution.background import RunHandle

    run_config = _config_of(config, settings)
    run_client = _client_for(run_config, client)
    check_free(run_config.output_dir, parse_partition(run_config.shard))
    return RunHandle(run_config, run_client)


def _config_of(
    config: Settings | None, settings: Mapping[str, Any], *, needs_output: bool = True
) -> RunConfig:
    """Return the configuration made of `config` and the settings, which win."""
    if isinstance(config, RunPlan):
        config = config.config
    if isinstance(config, RunConfig):
        if not settings and (config.has_output or not needs_output):
            return config
        # Unset fields stay unset: `_client_for` asks which fields were set.
        without = set() if config.has_output else {"output_dir"}
        config = config.model_dump(exclude_unset=True, exclude=without)
    if not isinstance(config, Mapping | str | Path | None):
        raise UsageError(
            "config must be a RunPlan, a RunConfig, a mapping, or the name or path of a "
            f"configuration, got {type(config).__name__}"
        )
    return build_config(settings, base=config, needs_output=needs_output)


def _client_for(config: RunConfig, client: Client | None) -> Client | None:
    """Return the given client, or that of this program; None to make one as `config` says."""
    from dask_slicer.cluster.client import check_usable, default_client

    if client is None:
        places = config.model_fields_set.intersection(PLACES)
        if any(getattr(config, name) is not None for name in places):
            return None
        client = default_client()
    if client is not None:
        check_usable(client)
    return client


def _display(
    output_dir: str, *, progress: bool, observer: Observer | None
) -> AbstractContextManager[Observer]:
    if observer is not None or not progress:
        return nullcontext(observer or Observer())
    from dask_slicer.monitoring.notebook import NotebookDisplay, is_notebook

    if is_notebook():
        return NotebookDisplay(output_dir)
    from rich.console import Console

    from dask_slicer.monitoring.terminal import RunDisplay

    return RunDisplay(Console())


def _interrupt_once() -> AbstractContextManager[None]:
    """Keep a second Ctrl-C from disturbing the tidying up, unless other code handles Ctrl-C."""
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_default and threading.current_thread() is threading.main_thread():
        return signals.interrupt_once([signal.SIGINT])
    return nullcontext()
