"""The observer of a run, and the report that it receives at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dask_slicer.monitoring.state import RunState
from dask_slicer.planning.plan import CasePlan, RunPlan
from dask_slicer.records import CommittedCase, FailedCase, failure_line, failure_table
from dask_slicer.utils import repr_html
from dask_slicer.utils.formatting import format_bytes, format_time, plural

# Failures shown one by one; the others are only counted.
MOST_FAILURES = 10
STOPPED = "Stopped. Finished cases are kept; run the same command again to continue."


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """The result of a run.

    Attributes
    ----------
    output_dir : str
    n_committed : int
        Cases that this run wrote.
    n_skipped : int
        Cases that an earlier run wrote.
    n_slices : int
        Slices that this run wrote.
    n_bytes : int
        Bytes that this run wrote.
    remaining : int
        Selected cases that are still not written, failed ones included.
    failures : tuple of FailedCase
    elapsed_seconds : float
    interrupted : bool
    share : str
        The partition, such as 1/3; empty for a whole run.
    stopped : str
        Why the run ended early, such as a lost scheduler; else empty.
    n_lost_workers : int
        Workers that were lost while they had a case, and replaced; the case ran again.
    notes : tuple of str
        What to check in the output, such as a clip range that does not suit the scans.
    """

    output_dir: str
    n_committed: int = 0
    n_skipped: int = 0
    n_slices: int = 0
    n_bytes: int = 0
    remaining: int = 0
    failures: tuple[FailedCase, ...] = ()
    elapsed_seconds: float = 0.0
    interrupted: bool = False
    share: str = ""
    stopped: str = ""
    n_lost_workers: int = 0
    notes: tuple[str, ...] = ()

    @property
    def slices_per_second(self) -> float:
        """Return how many slices this run wrote per second."""
        return self.n_slices / max(self.elapsed_seconds, 1e-9)

    def __repr__(self) -> str:
        skipped = f", {self.n_skipped} skipped" if self.n_skipped else ""
        failed = f", {len(self.failures)} failed" if self.failures else ""
        ending = ", interrupted" if self.interrupted else ", stopped" if self.stopped else ""
        return (
            f"RunReport({slices_of_cases(self)} written{skipped}{failed}, {self.remaining} "
            f"remaining{ending}, to {self.output_dir!r})"
        )

    def _repr_html_(self) -> str:
        rows = [
            ("written", f"{slices_of_cases(self)}, {format_bytes(self.n_bytes)}"),
            ("skipped", plural(self.n_skipped, "case")),
            ("failed", plural(len(self.failures), "case")),
            ("not written", plural(self.remaining, "case")),
            ("took", f"{format_time(self.elapsed_seconds)}, {self.slices_per_second:.0f} slices/s"),
            ("output", self.output_dir),
        ]
        if self.share:
            rows.append(("partition", self.share))
        if self.stopped:
            rows.append(("stopped", self.stopped))
        rows += [("note", note) for note in self.notes]
        title = "Run, interrupted: call it again to continue" if self.interrupted else "Run"
        return repr_html.html_card(title, repr_html.html_facts(rows), failure_table(self.failures))


def slices_of_cases(report: RunReport) -> str:
    """Return how many slices and cases a run wrote, in words."""
    return f"{plural(report.n_slices, 'slice')} of {plural(report.n_committed, 'case')}"


def report_lines(report: RunReport) -> list[str]:
    """Return the result of a run in a few lines."""
    lines: list[str] = []
    skipped = f"Skipped {plural(report.n_skipped, 'case')} written by earlier runs"
    next_step = [f"Note: {note}" for note in report.notes]
    if report.share and not report.interrupted:
        partitions = f"all {report.share.partition('/')[2]} partitions"
        next_step += [f"When {partitions} are done: dask-slicer merge {report.output_dir}"]
    if report.interrupted:
        lines.append(STOPPED)
        if not report.n_committed:
            return lines
    elif not report.n_committed and not report.remaining:
        why = f"{skipped} to {report.output_dir}"
        if report.share and not report.n_skipped:
            why = f"Partition {report.share} has no case"
        return [f"Nothing to do. {why}", *next_step]
    lines.append(
        f"Wrote {slices_of_cases(report)} ({format_bytes(report.n_bytes)}) in "
        f"{format_time(report.elapsed_seconds)}, {report.slices_per_second:.0f} slices/s, "
        f"to {report.output_dir}"
    )
    if report.n_skipped:
        lines.append(skipped)
    lines += failure_lines(report.failures, failures_place(report))
    left = report.remaining - len(report.failures)
    if left > 0 and not report.interrupted:
        lines.append(f"{plural(left, 'case')} not done; run the same command again to continue")
    return lines + next_step


def failure_lines(failures: Sequence[FailedCase], where: str) -> list[str]:
    """Return the first failures, a line each, below a line with the number of each kind."""
    if not failures:
        return []
    kinds = Counter(failure.kind for failure in failures)
    shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    lines = [f"{plural(len(failures), 'case')} failed ({shown}){where}:"]
    lines += [f"  {failure_line(failure)}" for failure in failures[:MOST_FAILURES]]
    if len(failures) > MOST_FAILURES:
        lines.append(f"  … and {len(failures) - MOST_FAILURES} more")
    return lines


def failures_place(report: RunReport) -> str:
    """Return the end of a line about failures; those of partitions are listed by `merge`."""
    return "" if report.share else f", see {report.output_dir}/failures.csv"


class Observer:
    """Receives the events of a run; a subclass overrides those that it needs."""

    def connected(self, where: str, *, dashboard: str = "", run_page: str = "") -> None:
        """Receive in words where the cases run, and links, empty if the scheduler has no page."""

    def planning(self, doing: str, n_done: int, total: int | None) -> None:
        """Receive how many files were found, or cases were read; the total is None if unknown."""

    def planned(self, plan: RunPlan, *, todo: Sequence[CasePlan], skipped: int) -> None:
        """Receive the plan, the cases to run, and the number of cases that are skipped."""

    def note(self, text: str) -> None:
        """Receive something that the user should know."""

    def progress(self, state: RunState) -> None:
        """Receive the state of the run, before `planned` and before each `case_finished`."""

    def case_finished(self, record: CommittedCase | FailedCase) -> None:
        """Receive the record of a case that was written, or that failed."""

    def finished(self, report: RunReport) -> None:
        """Receive the report when the run is over, also when it was interrupted."""
