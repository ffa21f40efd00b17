"""State of a run, as it is published: counts, last failures, slowest cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from dask_slicer.core.splits import SPLITS
from dask_slicer.utils.formatting import escape_line

if TYPE_CHECKING:
    from dask_slicer.records import CommittedCase, FailedCase

# Dask's topic of the events that runs publish on the scheduler.
TOPIC = "dask-slicer"

STEPS = ("load", "slice", "save")

# Slowest cases and last failures in a state, to keep its events small; failures.csv has all.
_MOST_SLOW, _MOST_FAILURES = 5, 10

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitState:
    """Progress in one split: cases to run, written and failed; slices written."""

    n_todo: int = 0
    n_done: int = 0
    n_failed: int = 0
    n_slices: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowCase:
    """One of the slowest written cases: the seconds of each step."""

    case_id: str
    load: float = 0.0
    slice: float = 0.0
    save: float = 0.0

    @property
    def seconds(self) -> float:
        """Return the seconds of all steps."""
        return self.load + self.slice + self.save


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One of the last failed cases."""

    case_id: str
    step: str
    kind: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Progress of a run. Published as events, of which the latest counts."""

    run_id: str = ""
    output_dir: str = ""
    host: str = ""
    process: str = ""
    client: str = ""  # its id; when the scheduler no longer has it, the run has stopped
    n_cases: int = 0  # selected
    n_skipped: int = 0  # of these, written by an earlier run
    n_done: int = 0  # written
    n_failed: int = 0
    n_slices: int = 0  # written
    n_bytes: int = 0
    n_bytes_in: int = 0  # the scans of written cases
    work: int = 0  # sum of `CasePlan.work` of the cases to run, without failed ones
    work_done: int = 0  # of written cases
    seconds: float = 0.0  # since the first case could run
    ending: str = ""  # ended or stopped, when the run is over
    splits: dict[str, SplitState] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)  # of failures
    slowest: tuple[SlowCase, ...] = ()  # the slowest first
    failures: tuple[Failure, ...] = ()  # the last first

    @property
    def n_todo(self) -> int:
        """Return the number of cases to run."""
        return self.n_cases - self.n_skipped

    @property
    def n_ended(self) -> int:
        """Return the number of cases written or failed."""
        return self.n_done + self.n_failed

    def later(self, seconds: float) -> RunState:
        """Return the state some seconds later, if no case ends until then."""
        return self if self.ending else replace(self, seconds=self.seconds + seconds)

    def with_plan(self, n_todo: Mapping[str, int], *, n_skipped: int, work: int) -> RunState:
        """Return the state with the number of cases to run of each split, and of skipped cases."""
        return replace(
            self,
            n_cases=sum(n_todo.values()) + n_skipped,
            n_skipped=n_skipped,
            work=work,
            splits={
                split: replace(self.splits.get(split, SplitState()), n_todo=n_todo[split])
                for split in (*SPLITS, "")  # a case that cannot be run may have none
                if n_todo.get(split)
            },
        )

    def with_written(self, record: CommittedCase, *, work: int, n_bytes_in: int = 0) -> RunState:
        """Return the state with one more written case."""
        n_slices = record.n_slices
        steps = {step: record.seconds.get(step, 0.0) for step in STEPS}
        slow_case = SlowCase(case_id=escape_line(record.case_id), **steps)
        slowest = sorted((*self.slowest, slow_case), key=lambda slow: -slow.seconds)
        return replace(
            self,
            n_done=self.n_done + 1,
            n_slices=self.n_slices + n_slices,
            n_bytes=self.n_bytes + record.n_bytes,
            n_bytes_in=self.n_bytes_in + n_bytes_in,
            work_done=self.work_done + work,
            splits=self._split_counts(record.split, n_done=1, n_slices=n_slices),
            slowest=tuple(slowest[:_MOST_SLOW]),
        )

    def with_failed(self, record: FailedCase, *, split: str, work: int = 0) -> RunState:
        """Return the state with one more failed case, its work subtracted."""
        failure = Failure(
            case_id=escape_line(record.case_id),
            step=record.step,
            kind=record.kind,
            message=record.message,
        )
        return replace(
            self,
            n_failed=self.n_failed + 1,
            # Most fail at once, or before they begin: their time says nothing about other cases.
            work=self.work - work,
            splits=self._split_counts(split, n_failed=1),
            kinds=self.kinds | {record.kind: self.kinds.get(record.kind, 0) + 1},
            failures=(failure, *self.failures[: _MOST_FAILURES - 1]),
        )

    def _split_counts(self, name: str, **more: int) -> dict[str, SplitState]:
        split = self.splits.get(name, SplitState())
        sums = {count: getattr(split, count) + n for count, n in more.items()}
        return self.splits | {name: replace(split, **sums)}


def from_event(data: object) -> RunState | None:
    """Return the state in an event; None if no version of this package published it.

    >>> from_event({"about": "the weather"}) is None
    True
    """
    try:
        state = _record(RunState, data)
        state = replace(
            state,
            splits={name: _record(SplitState, split) for name, split in state.splits.items()},
            kinds={kind: int(n) for kind, n in state.kinds.items()},
            slowest=tuple(_record(SlowCase, case) for case in state.slowest),
            failures=tuple(_record(Failure, failure) for failure in state.failures),
        )
    except (TypeError, ValueError, AttributeError):  # it has another shape
        return None
    return state if state.run_id else None


def _record(kind: type[T], data: Any) -> T:
    """Return a record of the fields that this version knows."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    return kind(**{name: value for name, value in data.items() if name in known})
