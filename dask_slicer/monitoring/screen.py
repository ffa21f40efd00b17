"""The terminal screen of `dask-slicer watch`."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dask_slicer.cluster.remote import scheduler_address, tls_security
from dask_slicer.config.run_settings import SchedulerSettings
from dask_slicer.errors import SchedulerError, UsageError
from dask_slicer.monitoring import tables, watcher
from dask_slicer.monitoring.journal_reader import JournalReader
from dask_slicer.monitoring.progress_line import figures_line
from dask_slicer.monitoring.snapshot import Snapshot
from dask_slicer.monitoring.terminal import plain_table
from dask_slicer.output import directory
from dask_slicer.output.lock_owner import LockOwner, lock_owners
from dask_slicer.utils.formatting import format_time

# Between two looks at an output whose run has no scheduler yet, or has lost it.
_LOOK_SECONDS = 2.0
# How long a run may take to release its output after its scheduler has gone.
_ENDING_SECONDS = 10.0
# Failures shown of each run.
_MOST_FAILURES = 5
# Rows of workers: shown at least; and for which other tables are left out until they fit.
_FEWEST_ROWS, _ENOUGH_ROWS = 3, 8
# Styles of the rows of workers that need attention, by status.
_STYLES = {"gone": "red", "paused": "yellow", "closing_gracefully": "yellow"}


def watch_run(
    console: Console, where: str | None, settings: SchedulerSettings, *, once: bool
) -> None:
    """Draw the run of an output or a scheduler until it is over; or print its progress once.

    `where` is None if the settings have the scheduler. Raises UsageError if it is neither an output
    nor an address, and SchedulerError if no scheduler answers there, or it is lost during the run.
    """
    once = once or not console.is_terminal
    output_dir = _as_output(where)
    try:
        if output_dir is None:
            address = scheduler_address(where, settings.scheduler_file)
            with watcher.connect_watcher(address, tls_security(settings)) as source:
                _draw(console, source, once=once)
        else:
            _watch_output(console, output_dir, settings, once=once)
    except watcher.NotRunning as ending:
        console.out(ending)


def _watch_output(
    console: Console, output_dir: Path, settings: SchedulerSettings, *, once: bool
) -> None:
    try:
        owner = _owner_of(output_dir, console, once=once)
        security = tls_security(settings)
        if security is None and owner.scheduler.startswith("tls://"):
            config = directory.existing_config(output_dir)
            security = None if config is None else tls_security(config)
        process = (owner.host, owner.process) if owner.process else None
        with watcher.connect_watcher(owner.scheduler, security, process=process) as source:
            _draw(console, source, once=once)
    except watcher.SchedulerGone:
        # A run that ends takes its scheduler with it, and may still be writing the index.
        deadline = time.monotonic() + _ENDING_SECONDS
        while time.monotonic() < deadline:
            watcher.find_scheduler(output_dir)
            time.sleep(_LOOK_SECONDS)
        raise
    except SchedulerError as error:
        _watch_journal(console, output_dir, f"{error}", once=once)


def _watch_journal(console: Console, output_dir: Path, reason: str, *, once: bool) -> None:
    """Draw the run into an output from its journal; it has no workers to show."""
    reader = JournalReader(output_dir)
    if (view := reader.view()) is not None:
        console.out(f"No workers to show: {reason}")
        host, owners = view.runs[0].host, lock_owners(output_dir)
        if signs := [owner.silent for owner in owners if owner.left and owner.silent is not None]:
            console.out(f"Last sign of life from {host}: {format_time(min(signs))} ago")
        elif host != socket.gethostname():
            console.out(f"From here it cannot be checked whether the run on {host} is alive")
    _draw(console, reader, once=once)


def _draw(console: Console, source: watcher.Watcher | JournalReader, *, once: bool) -> None:
    """Draw runs until they are over, or print them once."""
    if once:
        for view in islice(source.views(), 1):
            console.print(picture(view, source.title, console))
        return
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        for view in source.views():
            live.update(picture(view, source.title, console, height=console.height), refresh=True)


def _as_output(where: str | None) -> Path | None:
    """Return `where` as an output directory; None if it is an address."""
    if where is not None and Path(where).is_dir():
        return Path(where).absolute()
    if where is None or ":" in where:
        return None
    raise UsageError(
        f"{where} is neither an output directory nor an address such as tcp://host:8786"
    )


def _owner_of(output_dir: Path, console: Console, *, once: bool) -> LockOwner:
    """Return the run into an output, with its scheduler; unless `once`, wait until it has one."""
    owner = watcher.find_scheduler(output_dir)
    starting = f"The run into {output_dir} is starting"
    if owner is None and once:
        raise watcher.NotRunning(f"{starting}, and has no workers to show yet")
    if owner is None:
        with console.status(starting):
            while (owner := watcher.find_scheduler(output_dir)) is None:
                time.sleep(_LOOK_SECONDS)
    return owner


# -- the picture -----------------------------------------------------------------------------------


def picture(
    view: Snapshot, title: str, console: Console, *, height: int | None = None
) -> RenderableType:
    """Return runs and workers, in plain lines, or in a number of lines with a bar for each run."""
    shown, room = tables.content(view), height or sys.maxsize
    runs = shown["runs"]
    failures = [
        _titled(table, most=_MOST_FAILURES)
        for run in runs
        for table in run["tables"]
        if table["title"] == tables.LAST_FAILURES
    ]
    below = Group(_line(shown["workers"]["foot"]), *failures)
    for n_tables in (3, 2, 1, 0):  # as many as leave room for workers
        lines = [_run_lines(run, n_tables, with_bar=height is not None) for run in runs]
        no_run = [] if runs else [_line("No dask-slicer run on this scheduler")]
        above = Group(_line(title, "dim"), *chain(*lines), *no_run, _line(""))
        # Two lines for the head of the workers' table and the cursor.
        n_rows = room - 2 - sum(len(console.render_lines(part)) for part in (above, below))
        if n_rows >= min(len(shown["workers"]["rows"]), _ENOUGH_ROWS):
            break
    workers = [_workers_table(view, max(n_rows, _FEWEST_ROWS))] if view.workers else []
    return Group(above, *workers, below)


def _run_lines(run: dict[str, Any], n_tables: int, *, with_bar: bool) -> Iterator[RenderableType]:
    yield _line(f"{run['title']} ({run['where']})", "bold")
    if with_bar:
        bar = Table.grid(expand=True)  # alone, it would not end its line
        bar.add_row(
            ProgressBar(total=max(run["n_todo"], 1), completed=run["n_done"] + run["n_failed"])
        )
        yield bar
    yield _line(figures_line(run["figures"]))
    small = [table for table in run["tables"] if table["title"] != tables.LAST_FAILURES][:n_tables]
    if small:
        yield Columns([_titled(table) for table in small], padding=(0, 4))


def _titled(table: dict[str, Any], most: int | None = None) -> RenderableType:
    return Group(_line(table["title"], "dim"), plain_table(table["head"], table["rows"][:most]))


def _workers_table(view: Snapshot, most: int) -> Table:
    rows = tables.worker_rows(view.workers, most=most)
    table = plain_table(tables.WORKER_COLUMNS, rows, right=("CPU", "for"))
    for row, (_, _, _, status, *_) in zip(table.rows, rows, strict=True):
        row.style = next((_STYLES[word] for word in _STYLES if status.startswith(word)), None)
    return table


def _line(words: str, style: str = "") -> Text:
    return Text(words, style=style, no_wrap=True, overflow="ellipsis")
