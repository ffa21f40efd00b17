"""State of a run, as it is published: counts, failures, slowest cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

# Of the scheduler's events, under which runs tell how they stand.
TOPIC = "dask-slicer"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitState:
    """What a run has done of a split: cases to run, written and failed; slices written."""

    n_todo: int = 0
    n_done: int = 0
    n_failed: int = 0
    n_slices: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowCase:
    """A written case that took long: the seconds of each step."""

    case_id: str
    load: float = 0.0
    slice: float = 0.0
    save: float = 0.0

    @property
    def seconds(self) -> float:
        """Return how long it took in all."""
        return self.load + self.slice + self.save


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What a run has done so far: an event of our topic, the latest of which counts.

    Attributes
    ----------
    run_id, output_dir : str
    host, process : str
        Of the run itself.
    client : str
        Id of its client; a scheduler that does not know it has lost the run.
    n_cases, n_skipped : int
        Cases that the run is about, and those of them that were written before.
    n_done, n_failed : int
        Written, and failed.
    n_slices, n_bytes : int
        Written.
    work, work_done : int
        Of the cases to run, less those that failed, and of those written, as `CasePlan.work`.
    seconds : float
        Since the first case could be run.
    ending : str
        Empty while it goes on; ended, or stopped, when no more cases are run.
    n_bytes_in : int
        Of the files of cases that were written.
    splits : dict of str to SplitState
    kinds : dict of str to int
        Failures by kind.
    slowest : tuple of SlowCase
        The slowest first.
    """

    run_id: str
    output_dir: str
    host: str
    process: str
    client: str
    n_cases: int
    n_skipped: int
    n_done: int = 0
    n_failed: int = 0
    n_slices: int = 0
    n_bytes: int = 0
    work: int = 0
    work_done: int = 0
    seconds: float = 0.0
    ending: str = ""
    n_bytes_in: int = 0
    splits: dict[str, SplitState] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    slowest: tuple[SlowCase, ...] = ()

    @property
    def n_todo(self) -> int:
        """Return how many cases there were to run."""
        return self.n_cases - self.n_skipped

    @property
    def n_ended(self) -> int:
        """Return how many of them are over."""
        return self.n_done + self.n_failed


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureEvent:
    """A case that failed: an event of our topic."""

    run_id: str
    case_id: str
    step: str
    kind: str
    message: str


_KINDS: dict[str, type[RunState] | type[FailureEvent]] = {
    "run": RunState,
    "failure": FailureEvent,
}


def to_event(told: RunState | FailureEvent) -> dict[str, Any]:
    """Return what is told as an event: plain data that says what it is about."""
    about = "run" if isinstance(told, RunState) else "failure"
    return {"about": about, **asdict(told)}


def from_event(event: object) -> RunState | FailureEvent | None:
    """Return what an event tells; None of what no version like this one has told.

    Examples
    --------
    >>> from_event({"about": "the weather"}) is None
    True
    """
    kind = _KINDS.get(str(event.get("about"))) if isinstance(event, Mapping) else None
    if kind is None or not isinstance(event, Mapping):
        return None
    try:
        told = _made(kind, event)
        if isinstance(told, RunState):
            splits, kinds = event.get("splits", {}), event.get("kinds", {})
            return replace(
                told,
                splits={str(name): _made(SplitState, one) for name, one in splits.items()},
                kinds={str(name): int(n) for name, n in kinds.items()},
                slowest=tuple(_made(SlowCase, one) for one in event.get("slowest", ())),
            )
    except (TypeError, ValueError, AttributeError):  # it lacks something, or has another shape
        return None
    return told


def _made(kind: type[T], told: Mapping[str, Any]) -> T:
    """Return a record of what it knows of what was told."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    return kind(**{name: value for name, value in told.items() if name in known})
