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

from dask_slicer.monitoring.events import Observer, RunReport, slices_of_cases
from dask_slicer.monitoring.links import link_hints
from dask_slicer.monitoring.progress_line import progress_line
from dask_slicer.monitoring.state import RunState
from dask_slicer.planning.estimate import plan_lines
from dask_slicer.planning.plan import CasePlan, RunPlan
from dask_slicer.records import CommittedCase, FailedCase, failure_line
from dask_slicer.utils.formatting import format_bytes, format_time, plural

# Between two lines of progress where there is no terminal, in seconds.
_LINE_EVERY = 10.0
# Failures shown one by one; the others are only counted.
_MOST_FAILURES = 10
# Figures beside the bar, which needs the rest of the line.
_MOST_FIGURES = 5


class _Words(ProgressColumn):
    """Text beside a bar, which changes also while no case ends."""

    def __init__(self, words: Callable[[], str]) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._words = words

    def render(self, task: Task) -> Text:
        return Text(self._words())


class ProgressDisplay(Observer):
    """Shows progress: a bar on a terminal, a line every 10 s elsewhere; nothing if `quiet`."""

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
        """Print the link of the dashboard, and how to open it from elsewhere."""
        self._where = where
        if dashboard:
            self._say(f"Dashboard: {dashboard}")
            for line in link_hints(dashboard, os.environ, host=socket.gethostname()):
                self._say(line)

    def run_page(self, link: str) -> None:
        """Print the link of the run page."""
        self._say(f"Run page: {link}")

    def note(self, text: str) -> None:
        """Print a note."""
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
        return progress_line(state, time.monotonic() - at, most=_MOST_FIGURES)

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._print(text)

    def _print(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


class RunDisplay(ProgressDisplay):
    """Shows a run; only its failures if `quiet`, and their tracebacks if `details`."""

    doing = "Slicing"

    def __init__(self, console: Console, *, quiet: bool = False, details: bool = False) -> None:
        super().__init__(console, quiet=quiet)
        self._details = details

    def planned(self, plan: RunPlan, *, todo: Sequence[CasePlan], skipped: int) -> None:
        """Print the plan in a few lines, and start showing progress."""
        for line in plan_lines(plan):
            self._say(line)
        of = f" of partition {plan.config.shard}" if plan.config.shard else ""
        after = f", {skipped} skipped" if skipped else ""
        self._say(f"Run: {plural(len(todo), 'case')}{of} {self._where}{after}")
        self._start_progress(len(todo))

    def case_finished(self, record: CommittedCase | FailedCase) -> None:
        """Print why a case failed, if it did."""
        if isinstance(record, FailedCase):
            # Problems that the plan found are printed once, at the end.
            n_failed = 1 if self._latest is None else self._latest[0].n_failed
            if record.step != "plan" and n_failed <= _MOST_FAILURES and not self._quiet:
                self._print(f"Failed: {failure_line(record)}", style="red")
            if self._details and record.details:
                self._print(record.details)

    def finished(self, report: RunReport) -> None:
        """Print the result, and why cases failed."""
        self._end_progress()
        for line in report_lines(report):
            self._say(line)
        if self._quiet:
            for failure in report.failures[:_MOST_FAILURES]:
                self._print(f"Failed: {failure_line(failure)}")
            if more := len(report.failures[_MOST_FAILURES:]):
                self._print(f"Failed: {more} more{_where_failures_are(report)}")


def report_lines(report: RunReport) -> list[str]:
    """Return the result of a run in a few lines."""
    lines = []
    if report.interrupted:
        lines.append("Stopped. Finished cases are kept; run the same command again to continue.")
        if not report.n_committed:
            return lines
    elif not report.n_committed and not report.remaining:
        lines.append(f"Nothing to do. {_why_nothing(report)}")
        return lines + _next_merge(report)
    lines.append(
        f"Wrote {slices_of_cases(report)} ({format_bytes(report.n_bytes)}) in "
        f"{format_time(report.elapsed_seconds)}, {report.slices_per_second:.0f} slices/s, "
        f"to {report.output_dir}"
    )
    if report.n_skipped:
        lines.append(f"Skipped {plural(report.n_skipped, 'case')} written by earlier runs")
    lines += failure_lines(report.failures, _where_failures_are(report))
    left = report.remaining - len(report.failures)
    if left > 0 and not report.interrupted:
        lines.append(f"{plural(left, 'case')} not done; run the same command again to continue")
    return lines + ([] if report.interrupted else _next_merge(report))


def failure_lines(failures: Sequence[FailedCase], where: str) -> list[str]:
    """Return the first failures, a line each, below a line with the number of each kind."""
    if not failures:
        return []
    kinds = Counter(failure.kind for failure in failures)
    shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    lines = [f"{plural(len(failures), 'case')} failed ({shown}){where}:"]
    lines += [f"  {failure_line(failure)}" for failure in failures[:_MOST_FAILURES]]
    if len(failures) > _MOST_FAILURES:
        lines.append(f"  … and {len(failures) - _MOST_FAILURES} more")
    return lines


def _why_nothing(report: RunReport) -> str:
    if report.share and not report.n_skipped:
        return f"Partition {report.share} has no case"
    return (
        f"Skipped {plural(report.n_skipped, 'case')} written by earlier runs to {report.output_dir}"
    )


def _where_failures_are(report: RunReport) -> str:
    """Return the end of a line about failures; those of partitions are listed by `merge`."""
    return "" if report.share else f", see {report.output_dir}/failures.csv"


def _next_merge(report: RunReport) -> list[str]:
    if not report.share:
        return []
    n_partitions = report.share.partition("/")[2]
    return [f"When all {n_partitions} partitions are done: dask-slicer merge {report.output_dir}"]
