"""Plans, and the results of `merge` and `verify`, on the terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dask_slicer.inputs.accounting import FILE_COLUMNS, file_kinds
from dask_slicer.monitoring.observer import MOST_FAILURES, STOPPED, failure_lines
from dask_slicer.monitoring.terminal import ProgressDisplay, plain_table
from dask_slicer.planning.estimate import outliers, output_bytes, plan_lines, plan_needs
from dask_slicer.planning.plan import RunPlan, case_rows
from dask_slicer.records import CommittedCase, FailedCase, failure_line, why_not_written
from dask_slicer.utils.formatting import escape_line, first_few, format_bytes, format_time, plural

if TYPE_CHECKING:
    from dask_slicer.assembly.assemble import AssemblyReport
    from dask_slicer.execution.partitions import MergeReport
    from dask_slicer.execution.verify import VerifyReport
    from dask_slicer.output.checks import Issue

# Of a plan's table, and of outliers.
_MOST_ROWS = 40


class _PatientConsole(Console):
    def on_broken_pipe(self) -> None:  # such as `dask-slicer run | head`: the run continues
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def make_console() -> Console:
    """Return a console that ignores a closed pipe, and wraps no lines in a log."""
    console = _PatientConsole(highlight=False)
    if not console.is_terminal:
        console.width = 160
    return console


def print_plan(plan: RunPlan, console: Console) -> None:
    """Print the cases of a plan, its problems, and the disk space and memory of its run."""
    cases = plan.cases[:_MOST_ROWS]
    head, rows = case_rows(plan, cases)
    if plan.config.changed_steps:  # then cases of one shape differ
        head = (*head, "about")
        sizes = [
            "" if part.problem else format_bytes(output_bytes(part, plan.config)[1])
            for case in cases
            for part in case.parts
        ]
        rows = [(*row, size) for row, size in zip(rows, sizes, strict=True)]
    console.print(plain_table(head, rows))
    if len(plan.cases) > _MOST_ROWS:
        console.out(f"… and {len(plan.cases) - _MOST_ROWS} more")
    for line in _file_lines(plan):
        console.out(line)
    needs = plan_needs(plan)
    lines = [
        *plan_lines(plan, needs),
        *(f"Outlier: {text}" for text in outliers(plan.cases)[:_MOST_ROWS]),
        f"Output: at most {needs['output_files']} files, "
        f"{format_bytes(needs['output_bytes_estimate'])} "
        f"estimated, {format_bytes(needs['output_bytes_at_most'])} at most"
        + (f"; {format_bytes(needs['disk_free_bytes'])} free" if plan.config.has_output else ""),
        f"Memory: {format_bytes(needs['peak_bytes_per_worker'])} per worker at most, "
        f"{format_bytes(needs['memory_bytes'])} in this machine",
        f"Suggested: --num_workers {needs['num_workers']} ({needs['num_workers_reason']})",
    ]
    for line in lines:
        console.out(line)
    print_problems(plan, console)


def _file_lines(plan: RunPlan) -> list[str]:
    """Return the kinds of files of a plan as a table; reasons are not cut to fit a terminal."""
    kinds = [(kind, str(number), path) for kind, number, path in file_kinds(plan.files)]
    rows = [FILE_COLUMNS, *kinds]
    width = max(len(kind) for kind, _, _ in rows)
    return [f"{number:>6}  {kind:<{width}}  {escape_line(path)}" for kind, number, path in rows]


def print_problems(plan: RunPlan, console: Console) -> None:
    """Print the problems of a plan."""
    for text in (*plan.problems, *map(failure_line, plan.failures)):
        console.out(f"Problem: {text}", style="red")


class OutputDisplay(ProgressDisplay):
    """Shows the result of `merge`, or progress and result of `verify`."""

    doing = "Checking"

    def merged(self, report: MergeReport) -> None:
        """Print what was merged, why cases failed, and which are missing."""
        merged = "No partition was left to merge; wrote index and summary again"
        if report.n_journals:
            merged = f"Merged {plural(report.n_journals, 'partition')}"
        totals = report.totals
        cases = plural(len(totals.split_of), "case")
        self._say(
            f"{merged}: {plural(totals.n_slices, 'slice')} of {cases} "
            f"({format_bytes(totals.n_bytes)}) in {report.output_dir}"
        )
        for line in failure_lines(report.failures, f", see {report.output_dir}/failures.csv"):
            self._print(line)
        if report.missing:
            names = first_few([*map(escape_line, report.missing)])
            self._print(
                f"{plural(len(report.missing), 'case')} still to run: {names}; "
                "run the missing partitions, or the same run command without --shard"
            )

    def checked(self, record: CommittedCase, total: int, issues: Sequence[Issue]) -> None:
        """Count a case."""
        state = self._state
        if not state.n_cases:
            self._began = time.monotonic()
        self.progress(
            replace(
                state,
                n_cases=total,
                n_done=state.n_done + (not issues),
                n_failed=state.n_failed + bool(issues),
                n_slices=state.n_slices + record.n_slices,
                work=total,  # all cases take about the same time
                work_done=state.work_done + 1,
                seconds=time.monotonic() - self._began,
            )
        )
        if not state.n_cases:
            self._start_progress()

    def verified(self, report: VerifyReport) -> None:
        """Print the problems, a line each, and the result."""
        self._end_progress()
        for issue in report.issues:
            self._print(f"Wrong: {issue}", style="red")
        self._say(
            f"Checked {plural(report.n_slices, 'slice')} of {plural(report.n_cases, 'case')} "
            f"({format_bytes(report.n_bytes)}) in {format_time(report.elapsed_seconds)}"
            + (f", {report.n_derived} of them against their scans" if report.n_derived else "")
        )
        if report.n_missing:
            why = why_not_written(report.n_failed, report.n_missing - report.n_failed)
            self._print(f"{plural(report.n_missing, 'planned case')} not written: {why}")
        if report.to_rewrite:
            self._print(
                f"Marked {plural(len(report.to_rewrite), 'case')} for rewriting; "
                "run the `dask-slicer run` command of this output again"
            )
        if not report.issues:
            self._say(f"No problems found in {report.output_dir}")
        elif not report.to_rewrite:
            found = f"{plural(len(report.issues), 'problem')} found"
            if damaged := {issue.case_id for issue in report.issues if issue.is_damage} - {""}:
                cases = plural(len(damaged), "case")
                found += f", in {cases}; with --repair, the next run writes them again"
            self._print(found)


class AssemblyDisplay(ProgressDisplay):
    """Shows progress and result of `assemble`."""

    doing = "Assembling"

    def ended(self, total: int, n_slices: int, failure: FailedCase | None) -> None:
        """Count a case; before the first of them, without one."""
        state = self._state
        if not state.n_cases:
            self._began = time.monotonic()
            self._say(f"Assemble: {plural(total, 'case')} {self._where}")
        self.progress(
            replace(
                state,
                n_cases=total,
                n_done=state.n_done + (failure is None and bool(n_slices)),
                n_failed=state.n_failed + (failure is not None),
                n_slices=state.n_slices + n_slices,
                work=total,
                work_done=state.work_done + bool(n_slices or failure),
                seconds=time.monotonic() - self._began,
            )
        )
        if failure is not None and state.n_failed < MOST_FAILURES and not self._quiet:
            self._print(f"Failed: {failure_line(failure)}", style="red")
        if not state.n_cases:
            self._start_progress()

    def stopped(self) -> None:
        """Say what remains of a call that was stopped."""
        self._end_progress()
        self._say(STOPPED)

    def assembled(self, report: AssemblyReport) -> None:
        """Print the result, and why cases failed."""
        self._end_progress()
        skipped = f", {report.n_skipped} skipped" if report.n_skipped else ""
        self._say(
            f"Wrote {plural(report.n_written, 'volume')}{skipped} to {report.output_dir} in "
            f"{format_time(report.elapsed_seconds)}"
        )
        if report.n_without:
            self._say(f"{plural(report.n_without, 'case')} without predictions left out")
        for line in failure_lines(report.failures, f", see {report.output_dir}/failures.csv"):
            self._print(line)
        if report.metrics and not self._quiet:
            head, rows = metrics_rows(report.metrics)
            self._console.print(plain_table(head, rows, right=head[2:]))
            self._say(f"Metrics: {report.output_dir}/metrics.csv")


def metrics_rows(metrics: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return head and rows of a table of metrics, means by split and label."""
    head = ("split", "label", "cases", "Dice", "HD95 in mm", "reference ml", "predicted ml")
    rows: list[tuple[str, ...]] = []
    for split, labels in metrics.items():
        for label, values in labels.items():
            distance = values["hd95_mm"]["mean"]
            rows.append(
                (
                    *(split, f"{label} {values['name']}".rstrip(), str(values["n_cases"])),
                    f"{values['dice']['mean']:.3f}",
                    "none" if distance is None else f"{distance:.2f}",
                    f"{values['reference_ml']['mean']:.4g}",
                    f"{values['predicted_ml']['mean']:.4g}",
                )
            )
    return head, rows
