"""Public functions for Python and notebooks: plan, run and submit."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from dask_slicer.cluster.client import check_usable, default_client
from dask_slicer.config.keywords import RunKeywords
from dask_slicer.config.loader import build_config
from dask_slicer.config.schema import RunConfig
from dask_slicer.errors import UsageError
from dask_slicer.execution import pipeline
from dask_slicer.execution.background import RunHandle
from dask_slicer.execution.logs import logged_to
from dask_slicer.execution.prepare import prepare_plan
from dask_slicer.monitoring.events import Observer, RunReport
from dask_slicer.output.lock import check_free
from dask_slicer.planning.plan import RunPlan, parse_partition
from dask_slicer.utils import signals

if TYPE_CHECKING:
    from distributed import Client


# What says which cases are to be run, how, and where.
Settings = RunPlan | RunConfig | Mapping[str, Any] | str | Path

# Any of these, given by the user, is where a run is to be.
_PLACES = ("num_workers", "scheduler", "scheduler_file", "cluster")


def plan(config: Settings | None = None, **settings: Unpack[RunKeywords]) -> RunPlan:
    """Return what a run would do; reads headers, writes nothing.

    Parameters
    ----------
    config : RunConfig, mapping, str, Path or RunPlan, optional
        Settings, or the name or path of a configuration, as ``--config`` takes it.
    **settings
        Names of `RunConfig`; they win over `config`. None means not given.

    Returns
    -------
    RunPlan
        `failures` has the problems of single cases, `problems` those of the dataset.

    Raises
    ------
    ConfigError
        If a setting is unknown, missing or out of its range.
    DatasetError
        If there is no case, or splits or `only` do not fit the cases.
    OutputError
        If the output directory is not ours, or was made with other settings.
    """
    return prepare_plan(config_of(config, settings))


def run(
    config: Settings | None = None,
    client: Client | None = None,
    *,
    progress: bool = True,
    observer: Observer | None = None,
    **settings: Unpack[RunKeywords],
) -> RunReport:
    """Make slices of a dataset; what an earlier run completed is kept.

    Progress is a bar below the cell in a notebook, and elsewhere the lines of ``dask-slicer run``.
    After an interrupt, finished cases are kept and the same call continues.

    Parameters
    ----------
    config : RunPlan, RunConfig, mapping, str or Path, optional
        As for `plan`. Of a plan, the settings count: scans and output are looked at again once
        the output is locked, since it may be hours old.
    client : distributed.Client, optional
        Run on its workers. Without, on those of this program's own client, if it has made one
        and the settings name no place (`num_workers`, `scheduler`, `scheduler_file`, `cluster`);
        else where the settings say.
    progress : bool
        False: show nothing.
    observer : Observer, optional
        Receives the progress; nothing is shown then.
    **settings
        Names of `RunConfig`; they win over `config`. None means not given.

    Returns
    -------
    RunReport

    Raises
    ------
    UsageError
        If settings, dataset, output or client are not as they must be; nothing was written.
    SchedulerError
        If the scheduler cannot be reached. One that is lost after some case was done ends the
        run, and its report says so (`stopped`).
    KeyboardInterrupt
        After what was done has been made usable.
    """
    wanted = config_of(config, settings)
    found = client_for(wanted, client)
    shown = _display(str(wanted.output_dir), progress=progress, observer=observer)
    with logged_to(wanted.log_file), shown as told, _ctrl_c_heard_once():
        try:
            return pipeline.run(wanted, found, observer=told)
        except KeyboardInterrupt:
            pass
    # Another one: the first would keep alive what its traceback holds, futures among it.
    raise signals.Interrupted("stopped; what is done is kept, and the same call continues")


def submit(
    config: Settings | None = None, client: Client | None = None, **settings: Unpack[RunKeywords]
) -> RunHandle:
    """Begin a run in the background, and return at once with a handle to it.

    Parameters
    ----------
    config : RunPlan, RunConfig, mapping, str or Path, optional
        As for `run`.
    client : distributed.Client, optional
        As for `run`; it must stay open.
    **settings
        Names of `RunConfig`; they win over `config`. None means not given.

    Returns
    -------
    RunHandle
        Has `status`, `cancel()` and `result()`.

    Raises
    ------
    UsageError
        If settings or client are not as they must be, or the output is in use. What is found
        wrong later, `RunHandle.result` raises.
    """
    wanted = config_of(config, settings)
    found = client_for(wanted, client)
    check_free(wanted.output_dir, parse_partition(wanted.shard))
    return RunHandle(wanted, found)


def config_of(config: Settings | None, settings: Mapping[str, Any]) -> RunConfig:
    """Return the configuration that `config` and the settings over it amount to.

    Raises
    ------
    ConfigError
    UsageError
        If `config` is nothing of the kind.
    """
    if isinstance(config, RunPlan):
        config = config.config
    if isinstance(config, RunConfig):
        if not settings:
            return config
        # What was not set stays so: it decides whether this program's own client is used.
        config = config.model_dump(exclude_unset=True)
    if not isinstance(config, Mapping | str | Path | None):
        raise UsageError(
            "config must be a RunPlan, a RunConfig, a mapping, or the name or path of a "
            f"configuration, got {type(config).__name__}"
        )
    return build_config(settings, base=config)


def client_for(config: RunConfig, client: Client | None) -> Client | None:
    """Return the client to run on: the one given, or this program's; None: as the settings say.

    Raises
    ------
    UsageError
        If the client cannot be run on.
    """
    if client is None:
        asked = config.model_fields_set.intersection(_PLACES)
        if any(getattr(config, name) is not None for name in asked):
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


def _ctrl_c_heard_once() -> AbstractContextManager[None]:
    """Let a second Ctrl-C not disturb the tidying up, unless Ctrl-C is somebody else's to hear."""
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_ours and threading.current_thread() is threading.main_thread():
        return signals.interrupt_once([signal.SIGINT])
    return nullcontext()
