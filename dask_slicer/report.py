"""How plans, progress and results look on a terminal, in a batch log, and to machines."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from dask_slicer import machine
from dask_slicer.events import Observer, RunReport
from dask_slicer.journal import CommittedCase, FailedCase
from dask_slicer.plans import (
    CasePlan,
    RunPlan,
    outliers,
    output_bytes,
    peak_bytes,
    size,
    suggest_workers,
)

# Between two lines of progress where there is no terminal to draw a bar on, in seconds.
_LINE_EVERY = 10.0
# Rows of the plan's table, and lines of any list, before the rest is only counted.
_MOST_ROWS = 40
_MOST_FAILURES = 10


class RunDisplay(Observer):
    """Shows a run: a bar on a terminal, a plain line every 10 s elsewhere, nothing if quiet.

    Parameters
    ----------
    console : Console
        Where to.
    quiet : bool
        Show only failures.
    details : bool
        Show the traceback of each failure.
    """

    def __init__(self, console: Console, *, quiet: bool = False, details: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._details = details
        self._bar: Progress | None = None
        self._task: Any = None
        self._stop = threading.Event()
        self._where = ""
        self._total = self._done = self._failed = self._slices = 0
        self._started = time.monotonic()

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
        """Print the link of the dashboard: it comes first."""
        self._where = where
        if dashboard:
            self._say(f"Dashboard: {dashboard}")

    def planned(self, plan: RunPlan, *, todo: int, skipped: int) -> None:
        """Print the plan in a few lines, and start to show progress."""
        for line in plan_lines(plan):
            self._say(line)
        already = f", {skipped} written already" if skipped else ""
        self._say(f"Run: {_count(todo, 'case')} {self._where}{already}")
        self._total, self._started = todo, time.monotonic()
        if todo and not self._quiet:
            self._start_progress()

    def note(self, text: str) -> None:
        """Print something the user should know."""
        self._say(f"Note: {text}")

    def ended(self, record: CommittedCase | FailedCase) -> None:
        """Count a case, and print why it failed if it did."""
        self._done += 1
        if isinstance(record, CommittedCase):
            self._slices += len(record.slices)
        else:
            self._failed += 1
            if not self._quiet and self._failed <= _MOST_FAILURES:
                self._print(f"Failed: {_failure_line(record)}", style="red")
            if self._details and record.details:
                self._print(record.details)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, words=self._words())

    def finished(self, report: RunReport) -> None:
        """Print what was made, where, how long it took, and what failed and why."""
        self._end_progress()
        for line in report_lines(report):
            self._say(line)
        if self._quiet:
            for failure in report.failures:
                self._print(f"Failed: {_failure_line(failure)}")

    def _start_progress(self) -> None:
        if not self._console.is_terminal:
            threading.Thread(target=self._print_lines, daemon=True).start()
            return
        self._bar = Progress(
            TextColumn("Slicing"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[words]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task("", total=self._total, words=self._words())
        self._bar.start()

    def _end_progress(self) -> None:
        self._stop.set()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print_lines(self) -> None:
        while not self._stop.wait(_LINE_EVERY):
            elapsed = time.monotonic() - self._started
            left = (self._total - self._done) * elapsed / self._done if self._done else None
            self._print(
                f"{self._done} of {self._total} cases, {self._words()}, "
                + (f"about {_duration(left)} left" if left is not None else "no case done yet")
            )

    def _words(self) -> str:
        rate = self._slices / max(time.monotonic() - self._started, 1e-3)
        return f"{rate:.0f} slices/s, {self._failed} failed"

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._print(text)

    def _print(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def plan_lines(plan: RunPlan) -> list[str]:
    """Return a plan in a few lines."""
    lines = [f"Input: {plan.config.input_dir}", f"Layout: {plan.layout} ({plan.reason})"]
    by_split = Counter(case.split for case in plan.cases)
    shares = ", ".join(f"{by_split[split]} {split}" for split in plan.splits)
    sound = len(plan.cases) - len(plan.failures)
    bad = f", {_count(len(plan.failures), 'case')} cannot be run" if plan.failures else ""
    lines.append(f"Plan: {_count(len(plan.cases), 'case')} ({shares}){bad}")
    if sound:
        most, likely = _output_bytes(plan)
        lines.append(
            f"Slices: {plan.n_slices} {plan.config.plane}, "
            f"{(2 * plan.config.window_size + 1) * plan.n_modalities} channels, "
            f"about {size(likely)} (at most {size(most)}) to {plan.config.output_dir}"
        )
    free = machine.free_bytes(plan.config.output_dir)
    if sound and likely > free:
        lines.append(f"Note: only {size(free)} of disk are free")
    return lines + [f"Note: {note}" for note in plan.notes]


def report_lines(report: RunReport) -> list[str]:
    """Return what a run did in a few lines."""
    lines = []
    if report.interrupted:
        lines.append("Stopped. What is done is kept; the same command continues.")
    rate = report.n_slices / max(report.elapsed_seconds, 1e-9)
    lines.append(
        f"Wrote {_count(report.n_slices, 'slice')} of {_count(report.n_committed, 'case')} "
        f"({size(report.n_bytes)}) in {_duration(report.elapsed_seconds)}, {rate:.0f} slices/s, "
        f"to {report.output_dir}"
    )
    if report.n_skipped:
        lines.append(f"Skipped {_count(report.n_skipped, 'case')} written by earlier runs")
    if report.failures:
        kinds = Counter(failure.kind for failure in report.failures)
        shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        lines.append(
            f"{_count(len(report.failures), 'case')} failed ({shown}), see "
            f"{report.output_dir}/failures.csv:"
        )
        lines += [f"  {_failure_line(failure)}" for failure in report.failures[:_MOST_FAILURES]]
        if len(report.failures) > _MOST_FAILURES:
            lines.append(f"  … and {len(report.failures) - _MOST_FAILURES} more")
    left = report.remaining - len(report.failures)
    if left > 0 and not report.interrupted:
        lines.append(f"{_count(left, 'case')} not done; the same command continues")
    return lines


def print_plan(plan: RunPlan, console: Console) -> None:
    """Print a plan: the cases, every problem, and what the run will take."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("case", "split", "slices", "rows×columns", "spacing mm", "stored", "dtype"):
        table.add_column(name, no_wrap=name != "case", overflow="fold")
    for case in plan.cases[:_MOST_ROWS]:
        table.add_row(*map(escape, _row(case)))
    console.print(table)
    if len(plan.cases) > _MOST_ROWS:
        console.print(f"… and {len(plan.cases) - _MOST_ROWS} more")

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    for line in plan_lines(plan):
        say(line)
    for text in outliers(plan.cases)[:_MOST_ROWS]:
        say(f"Unlike the rest: {text}")
    needs = plan_needs(plan)
    say(
        f"Output: at most {needs['output_files']} files, {size(needs['output_bytes_estimate'])} "
        f"estimated, {size(needs['output_bytes_at_most'])} at most; "
        f"{size(needs['disk_free_bytes'])} free"
    )
    say(
        f"Memory: {size(needs['peak_bytes_per_worker'])} per worker at most, "
        f"{size(needs['memory_bytes'])} in this machine"
    )
    say(f"Suggested: --num_workers {needs['num_workers']} ({needs['num_workers_reason']})")
    for problem in plan.problems:
        say(f"Problem: {problem}", "red")
    for failure in plan.failures:
        say(f"Problem: {_failure_line(failure)}", "red")


def plan_json(plan: RunPlan) -> str:
    """Return a plan as JSON, for machines."""
    described = {
        "layout": plan.layout,
        "reason": plan.reason,
        "config": plan.config.model_dump(mode="json"),
        "cases": [_case_json(case, plan) for case in plan.cases],
        "splits": plan.splits,
        "num_cases": len(plan.cases),
        "num_slices": plan.n_slices,
        "outliers": outliers(plan.cases),
        "notes": list(plan.notes),
        "problems": [
            *({"case_id": None, "kind": None, "message": text} for text in plan.problems),
            *(
                {"case_id": failure.case_id, "kind": failure.kind, "message": failure.message}
                for failure in plan.failures
            ),
        ],
        **plan_needs(plan),
    }
    return json.dumps(described, indent=2, ensure_ascii=False)


def plan_needs(plan: RunPlan) -> dict[str, Any]:
    """Return what a run will take of disk and memory, and how many workers suit it."""
    most, likely = _output_bytes(plan)
    sound = [case for case in plan.cases if case.problem is None]
    n_workers, reason = suggest_workers(
        n_cpus=machine.cpu_count(),
        memory_bytes=machine.memory_bytes(),
        peak=plan.peak_bytes,
        n_cases=len(sound),
        rotational=machine.is_rotational(plan.config.output_dir),
    )
    return {
        "output_files": plan.n_slices,
        "output_bytes_at_most": most,
        "output_bytes_estimate": likely,
        "disk_free_bytes": machine.free_bytes(plan.config.output_dir),
        "peak_bytes_per_worker": plan.peak_bytes,
        "memory_bytes": machine.memory_bytes(),
        "num_workers": n_workers,
        "num_workers_reason": reason,
    }


def _output_bytes(plan: RunPlan) -> tuple[int, int]:
    sizes = [output_bytes(case, plan.config) for case in plan.cases if case.problem is None]
    return sum(most for most, _ in sizes), sum(likely for _, likely in sizes)


def _row(case: CasePlan) -> tuple[str, ...]:
    if case.problem is not None:
        return (case.case_id, case.split, case.problem.kind, "", "", "", "")
    n_slices, height, width = case.shape
    spacing = " × ".join(f"{step:.3g}" for step in case.spacing)
    return (
        case.case_id,
        case.split,
        str(n_slices),
        f"{height}×{width}",
        spacing,
        case.orientation,
        "/".join(dict.fromkeys(case.dtypes)),
    )


def _case_json(case: CasePlan, plan: RunPlan) -> dict[str, Any]:
    sound = case.problem is None
    return {
        "case_id": case.case_id,
        "split": case.split,
        "images": list(case.case.images),
        "label": case.case.label,
        "shape": list(case.shape) if sound else None,
        "spacing": list(case.spacing) if sound else None,
        "orientation": case.orientation or None,
        "dtypes": list(case.dtypes),
        "peak_bytes": peak_bytes(case, plan.config) if sound else None,
    }


def _failure_line(failure: FailedCase) -> str:
    return f"{failure.case_id}: {failure.kind} ({failure.step}): {failure.message}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
