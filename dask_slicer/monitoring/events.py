"""Events and the report of a run, and the observer that receives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dask_slicer import records
from dask_slicer.monitoring.state import RunState
from dask_slicer.planning.plan import CasePlan, RunPlan
from dask_slicer.records import CommittedCase, FailedCase
from dask_slicer.utils import repr_html
from dask_slicer.utils.formatting import format_bytes, format_time, plural


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """What a run did.

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
        Cases that this run was about and that are still not written, failed ones included.
    failures : tuple of FailedCase
    elapsed_seconds : float
    interrupted : bool
    share : str
        Which of how many; empty for a run of the whole.
    stopped : str
        Why the run ended before its time, such as a lost scheduler; empty if it did not.
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

    def __repr__(self) -> str:
        skipped = f", {self.n_skipped} written before" if self.n_skipped else ""
        failed = f", {len(self.failures)} failed" if self.failures else ""
        how = ", interrupted" if self.interrupted else ", stopped" if self.stopped else ""
        return (
            f"RunReport({plural(self.n_slices, 'slice')} of {plural(self.n_committed, 'case')} "
            f"written{skipped}{failed}, {self.remaining} remaining{how}, to {self.output_dir!r})"
        )

    def _repr_html_(self) -> str:
        rate = self.n_slices / max(self.elapsed_seconds, 1e-9)
        rows = [
            (
                "written",
                f"{plural(self.n_slices, 'slice')} of {plural(self.n_committed, 'case')}, "
                f"{format_bytes(self.n_bytes)}",
            ),
            ("written before", plural(self.n_skipped, "case")),
            ("failed", plural(len(self.failures), "case")),
            ("not written", plural(self.remaining, "case")),
            ("took", f"{format_time(self.elapsed_seconds)}, {rate:.0f} slices/s"),
            ("output", self.output_dir),
        ]
        if self.share:
            rows.append(("share", self.share))
        if self.stopped:
            rows.append(("stopped", self.stopped))
        title = "Run, interrupted: the same call continues" if self.interrupted else "Run"
        return repr_html.html_card(
            title, repr_html.html_facts(rows), records.failure_table(self.failures)
        )


class Observer:
    """What a run tells while it goes on; a face overrides what it shows."""

    def connected(self, dashboard: str, where: str) -> None:
        """Take note of where the cases run; the dashboard's link is empty where there is none."""

    def paged(self, link: str) -> None:
        """Take note of where the page of runs is, on the scheduler's server; if it has one."""

    def planned(self, plan: RunPlan, *, todo: Sequence[CasePlan], skipped: int) -> None:
        """Take note of the plan, of the cases to run, and how many are there already."""

    def note(self, text: str) -> None:
        """Take note of something the user should know."""

    def progress(self, state: RunState) -> None:
        """Show the state of the run; called before `planned`, and before each `case_finished`."""

    def case_finished(self, record: CommittedCase | FailedCase) -> None:
        """Take note of a case that ended."""

    def finished(self, report: RunReport) -> None:
        """Take note that the run is over, also when it was interrupted."""
