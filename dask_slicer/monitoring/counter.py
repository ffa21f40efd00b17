"""Counting the cases of a run as they end."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dask_slicer.monitoring.state import RunState
from dask_slicer.planning.plan import CasePlan
from dask_slicer.records import CommittedCase, FailedCase


@dataclass(slots=True)
class ProgressCounter:
    """Counts cases as they end; may be read by another thread meanwhile.

    Attributes
    ----------
    n_cases, n_skipped, n_done, n_failed, n_slices, n_bytes, work, work_done : int
        As in `RunState`.
    """

    n_cases: int = 0
    n_skipped: int = 0
    n_done: int = 0
    n_failed: int = 0
    n_slices: int = 0
    n_bytes: int = 0
    work: int = 0
    work_done: int = 0
    _work_of: dict[str, int] = field(default_factory=dict)
    _began: float | None = None

    @property
    def has_begun(self) -> bool:
        """Return whether it is known what there is to do."""
        return self._began is not None

    def begin(self, todo: Iterable[CasePlan], *, skipped: int) -> None:
        """Take note of the cases to run, and how many are there already; time starts to count."""
        self._work_of = {case.case_id: case.work for case in todo}
        self.work = sum(self._work_of.values())
        self.n_cases, self.n_skipped = len(self._work_of) + skipped, skipped
        self._began = time.monotonic()

    def count(self, record: CommittedCase | FailedCase) -> None:
        """Count a case that ended."""
        work = self._work_of.get(record.case_id, 0)
        if isinstance(record, CommittedCase):
            self.work_done += work
            self.n_done += 1
            self.n_slices += len(record.slices)
            self.n_bytes += record.n_bytes
        else:
            # Mostly at once, or before it began: what time it took is no measure.
            self.work -= work
            self.n_failed += 1

    def state(
        self,
        *,
        output_dir: str,
        run_id: str = "",
        host: str = "",
        process: str = "",
        client: str = "",
        **more: Any,
    ) -> RunState:
        """Return how the run stands; what is not counted here is given."""
        return RunState(
            run_id=run_id,
            output_dir=output_dir,
            host=host,
            process=process,
            client=client,
            n_cases=self.n_cases,
            n_skipped=self.n_skipped,
            n_done=self.n_done,
            n_failed=self.n_failed,
            n_slices=self.n_slices,
            n_bytes=self.n_bytes,
            work=self.work,
            work_done=self.work_done,
            seconds=0.0 if self._began is None else round(time.monotonic() - self._began, 3),
            **more,
        )
