"""Progress of a run on a terminal, or as plain lines in a log."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Self

from rich.console import Console, JustifyMethod
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from dask_slicer.monitoring.links import link_hints
from dask_slicer.monitoring.observer import (
    MOST_FAILURES,
    Observer,
    RunReport,
    failures_place,
    report_lines,
)
from dask_slicer.monitoring.progress_line import progress_line
from dask_slicer.monitoring.state import RunState
from dask_slicer.planning.estimate import plan_lines
from dask_slicer.planning.plan import CasePlan, RunPlan
from dask_slicer.records import CommittedCase, FailedCase, failure_line
from dask_slicer.utils.formatting import plural

# Between two lines of progress where there is no terminal, in seconds.
_LINE_EVERY = 10.0
# Between two changes of a line on a terminal.
_REFRESH_EVERY = 0.2
# Figures beside the bar, which needs the rest of the line.
_MOST_FIGURES = 5


def plain_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[str] = ()
) -> Table:
    """Return a table without lines, the columns named in `right` at the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in head:
        justify: JustifyMethod = "right" if name in right else "left"
        table.add_column(name, no_wrap=True, overflow="ellipsis", justify=justify)
    for row in rows:
        table.add_row(*map(Text, row))  # as it is, without markup
    return table


class ProgressDisplay(Observer):
    """Shows progress: a bar on a terminal, a line every 10 s elsewhere; nothing if `quiet`."""

    doing = ""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._bar: Live | None = None
        self._stop = threading.Event()
        self._where = ""
        self._state, self._state_at = RunState(), 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._end_progress()

    def connected(self, where: str, *, dashboard: str = "", run_page: str = "") -> None:
        """Print the links of dashboard and run page, and how to open them from elsewhere."""
        self._where = where
        if dashboard:
            for line in (f"Dashboard: {dashboard}", *link_hints(dashboard)):
                self._say(line)
        if run_page:
            self._say(f"Run page: {run_page}")

    def note(self, text: str) -> None:
        """Print a note."""
        self._say(f"Note: {text}")

    def progress(self, state: RunState) -> None:
        """Keep the state, and when it came."""
        self._state, self._state_at = state, time.monotonic()

    def __rich__(self) -> Table:
        columns = (
            Column(no_wrap=True, min_width=len(self.doing)),
            Column(ratio=1),  # what the words leave
            Column(no_wrap=True),
        )
        line = Table.grid(*columns, padding=(0, 1), expand=True)
        bar = ProgressBar(total=max(self._state.n_todo, 1), completed=self._state.n_ended)
        line.add_row(self.doing, bar, self._words())
        return line

    def _start_progress(self) -> None:
        if self._quiet:
            return
        if self._console.is_terminal:
            self._bar = Live(self, console=self._console)
            self._bar.start(refresh=True)
        else:
            threading.Thread(target=self._print_lines, daemon=True).start()

    def _end_progress(self) -> None:
        self._stop.set()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print_lines(self) -> None:
        while not self._stop.wait(_LINE_EVERY):
            self._print(self._words())

    def _words(self) -> str:
        state = self._state.later(time.monotonic() - self._state_at)
        return progress_line(state, most=_MOST_FIGURES)

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._print(text)

    def _print(self, text: str, style: str | None = None) -> None:
        self._console.out(text, style=style, highlight=False)


class PlanningDisplay:
    """Shows how far planning has come, if it takes long: a line on a terminal, or one every 10 s.

    It is for stderr, since the standard output of a command may be JSON.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console, self._quiet = console, quiet
        self._line: Live | None = None
        self._next = time.monotonic() + (1.0 if console.is_terminal else _LINE_EVERY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def show(self, doing: str, n_done: int, total: int | None) -> None:
        """Show what is being done, unless that was done a moment ago."""
        now = time.monotonic()
        if self._quiet or now < self._next:
            return
        text = f"{doing}: {n_done} files" if total is None else f"{doing}: {n_done} of {total}"
        self._next = now + (_REFRESH_EVERY if self._console.is_terminal else _LINE_EVERY)
        if not self._console.is_terminal:
            self._console.out(text, highlight=False)
            return
        if self._line is None:
            self._line = Live(console=self._console, transient=True, auto_refresh=False)
            self._line.start()
        self._line.update(Text(text), refresh=True)

    def close(self) -> None:
        """Remove the line."""
        if self._line is not None:
            self._line.stop()
            self._line = None


class RunDisplay(ProgressDisplay):
    """Shows a run; only its failures if `quiet`, and their tracebacks if `details`."""

    doing = "Slicing"

    def __init__(self, console: Console, *, quiet: bool = False, details: bool = False) -> None:
        super().__init__(console, quiet=quiet)
        self._details = details
        self._planning = PlanningDisplay(Console(stderr=True), quiet=quiet)

    def __exit__(self, *error: object) -> None:
        self._planning.close()
        super().__exit__(*error)

    def planning(self, doing: str, n_done: int, total: int | None) -> None:
        """Show how far planning has come."""
        self._planning.show(doing, n_done, total)

    def planned(self, plan: RunPlan, *, todo: Sequence[CasePlan], skipped: int) -> None:
        """Print the plan in a few lines, and start showing progress."""
        self._planning.close()
        for line in plan_lines(plan):
            self._say(line)
        of = f" of partition {plan.config.shard}" if plan.config.shard else ""
        after = f", {skipped} skipped" if skipped else ""
        self._say(f"Run: {plural(len(todo), 'case')}{of} {self._where}{after}")
        if todo:
            self._start_progress()

    def case_finished(self, record: CommittedCase | FailedCase) -> None:
        """Print why a case failed, if it did."""
        if isinstance(record, FailedCase):
            # Problems that the plan found are printed once, at the end.
            if record.step != "plan" and self._state.n_failed <= MOST_FAILURES and not self._quiet:
                self._print(f"Failed: {failure_line(record)}", style="red")
            if self._details and record.details:
                self._print(record.details)

    def finished(self, report: RunReport) -> None:
        """Print the result, and why cases failed."""
        self._end_progress()
        for line in report_lines(report):
            self._say(line)
        if self._quiet:
            for failure in report.failures[:MOST_FAILURES]:
                self._print(f"Failed: {failure_line(failure)}")
            if more := len(report.failures[MOST_FAILURES:]):
                self._print(f"Failed: {more} more{failures_place(report)}")
