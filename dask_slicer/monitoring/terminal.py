"""Progress of a run on a terminal, or as plain lines in a log."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from dask_slicer.monitoring.events import Observer, RunReport
from dask_slicer.monitoring.links import ways_to_see
from dask_slicer.monitoring.state import RunState
from dask_slicer.monitoring.tables import progress_words
from dask_slicer.planning.estimate import plan_lines
from dask_slicer.planning.plan import CasePlan, RunPlan
from dask_slicer.records import CommittedCase, FailedCase, failure_line
from dask_slicer.utils.formatting import format_bytes, format_time, plural

# Between two lines of progress where there is no terminal to draw a bar on, in seconds.
_LINE_EVERY = 10.0
# Failures shown one by one, before the rest is only counted.
_MOST_FAILURES = 10
# Figures beside the bar, which needs the rest of the line.
_MOST_FIGURES = 5


class _Words(ProgressColumn):
    """What a bar says beside it, which goes on while no case ends."""

    def __init__(self, words: Callable[[], str]) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._words = words

    def render(self, task: Task) -> Text:
        return Text(self._words())


class _Display(Observer):
    """Shows how far something is: a bar on a terminal, a plain line every 10 s elsewhere.

    Parameters
    ----------
    console : Console
        Where to.
    quiet : bool
        Show only what went wrong.
    """

    doing = ""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: Any = None
        self._stop = threading.Event()
        self._where = ""
        self._latest: tuple[RunState, float] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end_progress()

    def connected(self, dashboard: str, where: str) -> None:
        """Print the link of the dashboard, which comes first, and how to get there."""
        self._where = where
        if dashboard:
            self._say(f"Dashboard: {dashboard}")
            for line in ways_to_see(dashboard, os.environ, host=socket.gethostname()):
                self._say(line)

    def paged(self, link: str) -> None:
        """Print where the page of runs is."""
        self._say(f"Run page: {link}")

    def note(self, text: str) -> None:
        """Print something the user should know."""
        self._say(f"Note: {text}")

    def progress(self, state: RunState) -> None:
        """Keep the state, and when it came; move the bar, if there is one."""
        self._latest = (state, time.monotonic())
        if self._bar is not None:
            self._bar.update(self._task, completed=state.n_ended)

    def _start_progress(self, total: int) -> None:
        if not total or self._quiet:
            return
        if not self._console.is_terminal:
            threading.Thread(target=self._print_lines, daemon=True).start()
            return
        self._bar = Progress(
            TextColumn(self.doing, table_column=Column(no_wrap=True, min_width=len(self.doing))),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),  # what the words leave
            _Words(self._words),
            console=self._console,
            expand=True,
        )
        self._task = self._bar.add_task("", total=total)
        self._bar.start()

    def _end_progress(self) -> None:
        self._stop.set()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print_lines(self) -> None:
        while not self._stop.wait(_LINE_EVERY):
            self._print(self._words())

    def _words(self) -> str:
        if self._latest is None:
            return ""
        state, at = self._latest
        return progress_words(state, time.monotonic() - at, most=_MOST_FIGURES)

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._print(text)

    def _print(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


class RunDisplay(_Display):
    """Shows a run.

    Parameters
    ----------
    console : Console
        Where to.
    quiet : bool
        Show only failures.
    details : bool
        Show the traceback of each failure.
    """

    doing = "Slicing"

    def __init__(self, console: Console, *, quiet: bool = False, details: bool = False) -> None:
        super().__init__(console, quiet=quiet)
        self._details = details

    def planned(self, plan: RunPlan, *, todo: Sequence[CasePlan], skipped: int) -> None:
        """Print the plan in a few lines, and start to show progress."""
        for line in plan_lines(plan):
            self._say(line)
        already = f", {skipped} written already" if skipped else ""
        of = f" of share {plan.config.shard}" if plan.config.shard else ""
        self._say(f"Run: {plural(len(todo), 'case')}{of} {self._where}{already}")
        self._start_progress(len(todo))

    def case_finished(self, record: CommittedCase | FailedCase) -> None:
        """Print why a case failed, if it did."""
        if isinstance(record, FailedCase):
            # What the plan saw is said once, in the end.
            n_failed = 1 if self._latest is None else self._latest[0].n_failed
            if record.step != "plan" and n_failed <= _MOST_FAILURES and not self._quiet:
                self._print(f"Failed: {failure_line(record)}", style="red")
            if self._details and record.details:
                self._print(record.details)

    def finished(self, report: RunReport) -> None:
        """Print what was made, where, how long it took, and what failed and why."""
        self._end_progress()
        for line in report_lines(report):
            self._say(line)
        if self._quiet:
            for failure in report.failures[:_MOST_FAILURES]:
                self._print(f"Failed: {failure_line(failure)}")
            if more := len(report.failures[_MOST_FAILURES:]):
                self._print(f"Failed: {more} more{_where_failures_are(report)}")


def report_lines(report: RunReport) -> list[str]:
    """Return what a run did in a few lines."""
    lines = []
    if report.interrupted:
        lines.append("Stopped. What is done is kept; the same command continues.")
        if not report.n_committed:
            return lines
    rate = report.n_slices / max(report.elapsed_seconds, 1e-9)
    if not report.n_committed and not report.remaining:
        done = plural(report.n_skipped, "case")
        lines = [f"Nothing to do. Skipped {done} written by earlier runs to {report.output_dir}"]
        if report.share and not report.n_skipped:
            lines = [f"Nothing to do. No case falls to share {report.share}"]
        return lines + _what_merges(report)
    lines.append(
        f"Wrote {plural(report.n_slices, 'slice')} of {plural(report.n_committed, 'case')} "
        f"({format_bytes(report.n_bytes)}) in {format_time(report.elapsed_seconds)}, {rate:.0f} "
        "slices/s, "
        f"to {report.output_dir}"
    )
    if report.n_skipped:
        lines.append(f"Skipped {plural(report.n_skipped, 'case')} written by earlier runs")
    lines += _failure_lines(report.failures, _where_failures_are(report))
    left = report.remaining - len(report.failures)
    if left > 0 and not report.interrupted:
        lines.append(f"{plural(left, 'case')} not done; the same command continues")
    return lines + ([] if report.interrupted else _what_merges(report))


def _failure_lines(failures: Sequence[FailedCase], where: str) -> list[str]:
    if not failures:
        return []
    kinds = Counter(failure.kind for failure in failures)
    shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    lines = [f"{plural(len(failures), 'case')} failed ({shown}){where}:"]
    lines += [f"  {failure_line(failure)}" for failure in failures[:_MOST_FAILURES]]
    if len(failures) > _MOST_FAILURES:
        lines.append(f"  … and {len(failures) - _MOST_FAILURES} more")
    return lines


def _where_failures_are(report: RunReport) -> str:
    """Return the end of a line about failures; those of shares are listed when they are merged."""
    return "" if report.share else f", see {report.output_dir}/failures.csv"


def _what_merges(report: RunReport) -> list[str]:
    if not report.share:
        return []
    n_shares = report.share.partition("/")[2]
    return [f"Once all {n_shares} shares are done: dask-slicer merge {report.output_dir}"]
