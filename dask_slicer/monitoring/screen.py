"""The terminal screen of `dask-slicer watch`."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.columns import Columns
from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dask_slicer.cluster.remote import scheduler_address, tls_security
from dask_slicer.config.run_settings import SchedulerSettings
from dask_slicer.errors import SchedulerError, UsageError
from dask_slicer.monitoring.journal_reader import JournalReader
from dask_slicer.monitoring.progress_line import figures_line
from dask_slicer.monitoring.snapshot import Snapshot
from dask_slicer.monitoring.state import RunState
from dask_slicer.monitoring.tables import COLUMNS, content
from dask_slicer.monitoring.watcher import (
    NotRunning,
    SchedulerGone,
    Watcher,
    WatchTarget,
    connect_watcher,
    find_scheduler,
)
from dask_slicer.output import directory, layout
from dask_slicer.utils.formatting import format_time

if TYPE_CHECKING:
    from distributed import Security


# Between two polls of the scheduler.
_EVERY_SECONDS = 1.0
# Between two looks at an output whose run has no scheduler, or none yet.
_START_SECONDS = 2.0
# How long a run may take to release its output after its scheduler has gone.
_ENDING_SECONDS = 10.0
# A journal that was not written for so long is worth a word.
_OLD_SECONDS = 60.0
_NO_RUN = "No dask-slicer run on this scheduler"
_LAST_FAILURES, _FAILURES_SHOWN = "Last failures", 5
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
        _watch_scheduler(console, where, output_dir, settings, once=once)
    except SchedulerError as error:
        if output_dir is None:
            raise
        if not isinstance(error, SchedulerGone):
            _watch_journal(console, output_dir, f"{error}", once=once)
        elif last := _wait_for_end(output_dir):  # a run that ends takes its scheduler with it
            _print(console, last.words)
        else:
            raise


def _watch_scheduler(
    console: Console,
    where: str | None,
    output_dir: Path | None,
    settings: SchedulerSettings,
    *,
    once: bool,
) -> None:
    if output_dir is None:
        target: WatchTarget | NotRunning | None = WatchTarget(
            address=scheduler_address(where, settings.scheduler_file)
        )
    else:
        target = _target_of(output_dir, console, once=once)
    if target is None:
        _print(console, f"The run into {output_dir} is starting, and has no workers to show yet")
    elif isinstance(target, NotRunning):
        _print(console, target.words)
    else:
        security = tls_security(settings) or _security_of(output_dir, target)
        with connect_watcher(target, security) as watcher:
            if once:
                console.print(picture(watcher.poll(), _title(watcher), console))
            else:
                _draw(console, watcher)


def _watch_journal(console: Console, output_dir: Path, reason: str, *, once: bool) -> None:
    """Draw the run into an output from its journal, until it is over; it has no workers to show."""
    reader = JournalReader(output_dir)

    def title() -> str:
        words = f"progress as of the journal in {output_dir}"
        written_at = reader.last_record_at()
        age = time.time() - written_at
        if written_at and age > _OLD_SECONDS:
            words += f", last record {format_time(age)} ago"
        return words

    if (view := reader.view()) is not None:
        _print(console, f"No workers to show: {reason}")
        if (host := view.runs[0][0].host) != socket.gethostname():
            _print(console, f"From here it cannot be checked whether the run on {host} is alive")
        if once:
            console.print(picture(view, title(), console))
            return
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while view is not None:
            live.update(picture(view, title(), console, height=console.height), refresh=True)
            time.sleep(_START_SECONDS)
            view = reader.view()
    if isinstance(target := find_scheduler(output_dir), NotRunning):
        _print(console, target.words)


def _as_output(where: str | None) -> Path | None:
    """Return `where` as an output directory; None if it is an address."""
    if where is None or "://" in where:
        return None
    path = Path(where)
    if path.is_dir():
        return path.absolute()
    if ":" not in where:
        raise UsageError(
            f"{where} is neither an output directory nor an address such as tcp://host:8786"
        )
    return None


def _security_of(output_dir: Path | None, target: WatchTarget) -> Security | None:
    """Return the TLS files in the configuration of the run, if they are needed."""
    if output_dir is None or not target.address.startswith("tls://"):
        return None
    config = directory.existing_config(output_dir)
    return None if config is None else tls_security(config)


def _target_of(
    output_dir: Path, console: Console, *, once: bool
) -> WatchTarget | NotRunning | None:
    """Return the scheduler of a run; unless `once`, wait until it has one."""
    target = find_scheduler(output_dir)
    if target is None and not once:
        with console.status(f"The run into {output_dir} is starting"):
            while (target := find_scheduler(output_dir)) is None:
                time.sleep(_START_SECONDS)
    return target


def _draw(console: Console, watcher: Watcher) -> None:
    """Draw runs until they are over; without any, wait for one."""
    has_begun = watcher.target.process is not None
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        try:
            while True:
                began = time.monotonic()
                view = watcher.poll()
                _show(live, view, watcher)
                is_active = any(not run.ending for run, _ in view.runs)
                if has_begun and view.runs and not is_active:
                    break
                has_begun = has_begun or is_active
                time.sleep(max(_EVERY_SECONDS - (time.monotonic() - began), 0.1))
        except SchedulerGone:
            view = watcher.view()
            _show(live, view, watcher)
            if not view.runs or any(not run.ending for run, _ in view.runs):
                raise
    for run, _ in view.runs:
        _print(console, _last_words(run))


def _wait_for_end(output_dir: Path) -> NotRunning | None:
    """Wait until a run whose scheduler has gone releases its output; return what it left, or None.

    It may still be writing the index.
    """
    deadline = time.monotonic() + _ENDING_SECONDS
    while not isinstance(target := find_scheduler(output_dir), NotRunning):
        if time.monotonic() > deadline:
            return None
        time.sleep(_START_SECONDS)
    return target


def _show(live: Live, view: Snapshot, watcher: Watcher) -> None:
    console = live.console
    live.update(picture(view, _title(watcher), console, height=console.height), refresh=True)


def _title(watcher: Watcher) -> str:
    if watcher.silent_since is None:
        return watcher.target.address
    silent = format_time(time.monotonic() - watcher.silent_since)
    return f"{watcher.target.address} has not answered for {silent}"


def _last_words(run: RunState) -> str:
    if run.ending == "stopped":
        return f"The run into {run.output_dir} has stopped; run the same command again to continue"
    failed = f"; see {run.output_dir}/{layout.FAILURES}" if run.n_failed else ""
    return f"The run into {run.output_dir} has ended{failed}"


def _print(console: Console, words: str) -> None:
    console.print(words, markup=False, highlight=False, soft_wrap=True)


# -- the picture -----------------------------------------------------------------------------------


def picture(
    view: Snapshot, title: str, console: Console, *, height: int | None = None
) -> RenderableType:
    """Return runs and workers, in plain lines, or in a number of lines with a bar for each run."""
    is_live, room = height is not None, height or sys.maxsize
    shown = content(view)
    for n_tables in (3, 2, 1, 0):  # as many as leave room for workers
        above = Group(
            _line(title, "dim"),
            *(
                line
                for run in shown["runs"]
                for line in _run_lines(run, n_tables, with_bar=is_live)
            ),
            *([] if shown["runs"] else [_line(_NO_RUN)]),
            _line(""),
        )
        below = Group(_line(shown["workers"]["foot"]), *_failure_tables(shown["runs"]))
        # Two lines for the head of the workers' table and the cursor.
        rows = room - 2 - sum(len(console.render_lines(part)) for part in (above, below))
        if rows >= min(len(shown["workers"]["rows"]), _ENOUGH_ROWS):
            break
    workers = content(view, most_workers=max(rows, _FEWEST_ROWS))["workers"]
    return Group(above, *([_table(workers)] if workers["rows"] else []), below)


def _run_lines(run: dict[str, Any], n_tables: int, *, with_bar: bool) -> Iterator[RenderableType]:
    yield _line(f"{run['title']} ({run['where']})", "bold")
    if with_bar:
        bar = Table.grid(expand=True)  # alone, it would not end its line
        bar.add_row(
            ProgressBar(total=max(run["n_todo"], 1), completed=run["n_done"] + run["n_failed"])
        )
        yield bar
    yield _line(figures_line(run["figures"]))
    small = [table for table in run["tables"] if table["title"] != _LAST_FAILURES][:n_tables]
    if small:
        yield Columns([_titled(table) for table in small], padding=(0, 4))


def _failure_tables(runs: Sequence[dict[str, Any]]) -> Iterator[RenderableType]:
    for run in runs:
        for table in run["tables"]:
            if table["title"] == _LAST_FAILURES:
                yield _titled(table | {"rows": table["rows"][:_FAILURES_SHOWN]})


def _titled(table: dict[str, Any]) -> RenderableType:
    return Group(_line(table["title"], "dim"), _table(table))


def _table(shown: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in shown["head"]:
        justify: JustifyMethod = "right" if name in ("CPU", "for") else "left"
        table.add_column(name, no_wrap=True, overflow="ellipsis", justify=justify)
    for row in shown["rows"]:
        status = row[3] if shown["head"] == list(COLUMNS) else ""
        style = next((_STYLES[word] for word in _STYLES if status.startswith(word)), None)
        table.add_row(*map(Text, row), style=style)
    return table


def _line(words: str, style: str = "") -> Text:
    return Text(words, style=style, no_wrap=True, overflow="ellipsis")
