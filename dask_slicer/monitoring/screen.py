"""The terminal screen of `dask-slicer watch`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dask_slicer.cluster.address import TlsFiles, scheduler_address
from dask_slicer.cluster.remote import tls_files
from dask_slicer.config.run_settings import SchedulerSettings
from dask_slicer.errors import SchedulerError, UsageError
from dask_slicer.monitoring.snapshot import Snapshot
from dask_slicer.monitoring.state import RunState
from dask_slicer.monitoring.tables import (
    COLUMNS,
    detail_words,
    progress_words,
    worker_rows,
    workers_words,
)
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

# Between two looks at the scheduler.
_EVERY_SECONDS = 1.0
# Between two looks at an output whose run has no scheduler yet.
_START_SECONDS = 2.0
# That a run may take to give its output back once its scheduler is gone.
_ENDING_SECONDS = 10.0
_FAILURES_SHOWN = 5
_FEWEST_ROWS = 3
# What workers are told of in, beside names and numbers.
_STYLES = {"gone": "red", "paused": "yellow", "closing_gracefully": "yellow"}


def watch_run(
    console: Console, where: str | None, settings: SchedulerSettings, *, once: bool
) -> None:
    """Draw a run until it is over, or print how it stands.

    Parameters
    ----------
    console : Console
        One that is no terminal is printed to once.
    where : str or None
        An output directory, or the address of a scheduler; None where the settings name one.
    settings : SchedulerSettings
        How to get to the scheduler.
    once : bool
        Print how it stands, and end.

    Raises
    ------
    UsageError
        If there is neither such an output nor such an address.
    SchedulerError
        If the scheduler cannot be reached, or is lost before the run has said that it ended.
    """
    once = once or not console.is_terminal
    output_dir = _as_output(where)
    if output_dir is None:
        place: WatchTarget | NotRunning | None = WatchTarget(
            address=scheduler_address(where, settings.scheduler_file)
        )
    else:
        place = _place_of(output_dir, console, once=once)
    if place is None:
        _say(console, f"The run into {output_dir} is starting, and has no workers to show yet")
    elif isinstance(place, NotRunning):
        _say(console, place.words)
    else:
        try:
            with connect_watcher(place, tls_files(settings) or _tls_of(output_dir, place)) as one:
                if once:
                    console.print(picture(one.poll(), _title(one)))
                else:
                    _draw(console, one)
        except SchedulerError as error:  # with a run that ends, its scheduler goes
            patience = _ENDING_SECONDS if isinstance(error, SchedulerGone) else 0.0
            became = None if output_dir is None else _what_became(output_dir, patience)
            if became is None:
                raise
            _say(console, became.words)


def _as_output(where: str | None) -> Path | None:
    """Return the output directory that is meant; None if it is an address."""
    if where is None or "://" in where:
        return None
    path = Path(where)
    if path.is_dir() or ":" not in where:
        if not path.is_dir():
            raise UsageError(
                f"{where} is neither an output directory nor an address such as tcp://host:8786"
            )
        return path.absolute()
    return None


def _tls_of(output_dir: Path | None, place: WatchTarget) -> TlsFiles | None:
    """Return the files of TLS that a run itself was given, if they are needed."""
    if output_dir is None or not place.address.startswith("tls://"):
        return None
    config = directory.existing_config(output_dir)
    return None if config is None else tls_files(config)


def _place_of(output_dir: Path, console: Console, *, once: bool) -> WatchTarget | NotRunning | None:
    """Return where a run's scheduler is; of a run that starts, wait for it."""
    found = find_scheduler(output_dir)
    if found is None and not once:
        with console.status(f"The run into {output_dir} is starting"):
            while (found := find_scheduler(output_dir)) is None:
                time.sleep(_START_SECONDS)
    return found


def _draw(console: Console, one: Watcher) -> None:
    """Draw what is seen until the run is over; where none goes on, wait for one."""
    is_known = one.place.process is not None
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        try:
            while True:
                began = time.monotonic()
                view = one.poll()
                _show(live, view, one)
                is_going_on = any(not run.ending for run, _ in view.runs)
                if is_known and view.runs and not is_going_on:
                    break
                is_known = is_known or is_going_on
                time.sleep(max(_EVERY_SECONDS - (time.monotonic() - began), 0.1))
        except SchedulerGone:
            view = one.view()
            _show(live, view, one)
            if not view.runs or any(not run.ending for run, _ in view.runs):
                raise
    for run, _ in view.runs:
        _say(console, _last_words(run))


def _what_became(output_dir: Path, patience: float) -> NotRunning | None:
    """Return what a run left whose scheduler is gone; None if the run itself is still there.

    Parameters
    ----------
    output_dir : Path
    patience : float
        Seconds that the run has to give its output back: it may be writing the index.
    """
    deadline = time.monotonic() + patience
    while not isinstance(found := find_scheduler(output_dir), NotRunning):
        if time.monotonic() > deadline:
            return None
        time.sleep(_START_SECONDS)
    return found


def _show(live: Live, view: Snapshot, one: Watcher) -> None:
    live.update(picture(view, _title(one), height=live.console.height), refresh=True)


def _title(one: Watcher) -> str:
    if one.silent_since is None:
        return one.place.address
    silent = format_time(time.monotonic() - one.silent_since)
    return f"{one.place.address} has not answered for {silent}"


def _last_words(run: RunState) -> str:
    if run.ending == "stopped":
        return f"The run into {run.output_dir} has stopped; the same command continues"
    failed = f"; see {run.output_dir}/{layout.FAILURES}" if run.n_failed else ""
    return f"The run into {run.output_dir} has ended{failed}"


def _say(console: Console, words: str) -> None:
    console.print(words, markup=False, highlight=False, soft_wrap=True)


# -- the picture -----------------------------------------------------------------------------------


def picture(view: Snapshot, title: str, *, height: int | None = None) -> RenderableType:
    """Return the picture of what is seen.

    Parameters
    ----------
    view : View
    title : str
    height : int, optional
        Lines that there are; without, it is as long as it likes, and plain.
    """
    above: list[RenderableType] = [_line(title, "dim")]
    for run, since_told in view.runs:
        above += _run_lines(run, since_told, with_bar=height is not None)
    if not view.runs:
        above.append(_line("no run of dask-slicer has told of itself here"))
    below = [_line(workers_words(view))]
    if view.failures:
        below.append(_line("Last failures:", "red"))
        below += [
            _line(f"  {one.case_id}: {one.kind} ({one.step}): {one.message}")
            for one in view.failures[-_FAILURES_SHOWN:]
        ]
    most = sys.maxsize
    if height is not None:  # two lines for the head of the table, and one for the cursor
        most = max(height - len(above) - len(below) - 3, _FEWEST_ROWS)
    return Group(*above, _line(""), _table(view, most), *below)


def _run_lines(run: RunState, since_told: float, *, with_bar: bool) -> list[RenderableType]:
    lines: list[RenderableType] = [
        _line(f"{run.output_dir} (process {run.process} on {run.host})", "bold")
    ]
    if with_bar:
        bar = Table.grid(expand=True)  # alone, it would not end its line
        bar.add_row(ProgressBar(total=max(run.n_todo, 1), completed=run.n_ended))
        lines.append(bar)
    lines.append(_line(progress_words(run, since_told)))
    if details := detail_words(run):
        lines.append(_line(details, "dim"))
    return lines


def _table(view: Snapshot, most: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in COLUMNS:
        justify: JustifyMethod = "right" if name in ("CPU", "for") else "left"
        table.add_column(name, no_wrap=True, overflow="ellipsis", justify=justify)
    for row in worker_rows(view.workers, most=most):
        style = next((style for word, style in _STYLES.items() if row[3].startswith(word)), None)
        table.add_row(*map(Text, row), style=style)
    return table


def _line(words: str, style: str = "") -> Text:
    return Text(words, style=style, no_wrap=True, overflow="ellipsis")
