"""Progress of the commands `merge` and `verify` on a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from dask_slicer.execution.partitions import MergeReport
from dask_slicer.execution.verify import VerifyReport
from dask_slicer.monitoring.state import RunState
from dask_slicer.monitoring.terminal import ProgressDisplay, failure_lines
from dask_slicer.output.checks import Issue
from dask_slicer.records import CommittedCase, why_not_written
from dask_slicer.utils.formatting import first_few, format_bytes, format_time, plural


class MergeDisplay(ProgressDisplay):
    """Shows the result of a merge."""

    def merged(self, report: MergeReport) -> None:
        """Print what was merged, why cases failed, and which are missing."""
        first, *wrong = merge_lines(report)
        self._say(first)
        for line in wrong:
            self._print(line)


class VerifyDisplay(ProgressDisplay):
    """Shows the progress and the result of `verify`."""

    doing = "Checking"

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        super().__init__(console, quiet=quiet)
        self._began = 0.0
        self._state = RunState(
            run_id="", output_dir="", host="", process="", client="", n_cases=0, n_skipped=0
        )

    def checked(self, record: CommittedCase, total: int, issues: Sequence[Issue]) -> None:
        """Count a case."""
        state = self._state
        if not state.n_cases:
            self._began = time.monotonic()
            self._start_progress(total)
        self._state = replace(
            state,
            n_cases=total,
            n_done=state.n_done + (not issues),
            n_failed=state.n_failed + bool(issues),
            n_slices=state.n_slices + len(record.slices),
            work=total,  # all cases take about the same time
            work_done=state.work_done + 1,
            seconds=time.monotonic() - self._began,
        )
        self.progress(self._state)

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
            damaged = {issue.case_id for issue in report.issues if issue.is_damage} - {""}
            in_cases = (
                f", in {plural(len(damaged), 'case')}; "
                "with --repair, the next run writes them again"
                if damaged
                else ""
            )
            self._print(f"{plural(len(report.issues), 'problem')} found{in_cases}")


def merge_lines(report: MergeReport) -> list[str]:
    """Return the result of a merge in a few lines."""
    merged = (
        f"Merged {plural(report.n_journals, 'partition')}"
        if report.n_journals
        else ("No partition was left to merge; wrote index and summary again")
    )
    totals = report.totals
    lines = [
        f"{merged}: {plural(totals.n_slices, 'slice')} of {plural(len(totals.case_names), 'case')} "
        f"({format_bytes(totals.n_bytes)}) in {report.output_dir}"
    ]
    lines += failure_lines(report.failures, f", see {report.output_dir}/failures.csv")
    if report.missing:
        lines.append(
            f"{plural(len(report.missing), 'case')} still to run: "
            f"{first_few(report.missing)}; "
            "run the missing partitions, or the same run command without --shard"
        )
    return lines
