"""State of a run, as it is published: counts, failures, slowest cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

# Dask's topic of the events that runs publish on the scheduler.
TOPIC = "dask-slicer"

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
class RunState:
    """Progress of a run. Published as events, of which the latest counts.

    Attributes
    ----------
    run_id, output_dir : str
    host, process : str
        Host and process id of the run.
    client : str
        Id of its client; when its scheduler no longer has this client, the run has stopped.
    n_cases, n_skipped : int
        Selected cases, and those of them that an earlier run wrote.
    n_done, n_failed : int
        Cases written, and cases failed.
    n_slices, n_bytes : int
        Slices and bytes written.
    work, work_done : int
        Sum of `CasePlan.work` of the cases to run, without failed ones, and of written cases.
    seconds : float
        Time since the first case could run.
    ending : str
        Empty while the run is in progress; then ended, or stopped.
    n_bytes_in : int
        Size of the scans of written cases.
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
        """Return the number of cases to run."""
        return self.n_cases - self.n_skipped

    @property
    def n_ended(self) -> int:
        """Return the number of cases written or failed."""
        return self.n_done + self.n_failed


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureEvent:
    """A failed case, published as an event."""

    run_id: str
    case_id: str
    step: str
    kind: str
    message: str


_KINDS: dict[str, type[RunState] | type[FailureEvent]] = {
    "run": RunState,
    "failure": FailureEvent,
}


def to_event(event: RunState | FailureEvent) -> dict[str, Any]:
    """Return an event as plain data, with its kind as `about`."""
    about = "run" if isinstance(event, RunState) else "failure"
    return {"about": about, **asdict(event)}


def from_event(data: object) -> RunState | FailureEvent | None:
    """Return an event from plain data; None if no version of this package published it.

    Examples
    --------
    >>> from_event({"about": "the weather"}) is None
    True
    """
    kind = _KINDS.get(str(data.get("about"))) if isinstance(data, Mapping) else None
    if kind is None or not isinstance(data, Mapping):
        return None
    try:
        event = _record(kind, data)
        if isinstance(event, RunState):
            splits, kinds = data.get("splits", {}), data.get("kinds", {})
            return replace(
                event,
                splits={str(name): _record(SplitState, split) for name, split in splits.items()},
                kinds={str(name): int(n) for name, n in kinds.items()},
                slowest=tuple(_record(SlowCase, case) for case in data.get("slowest", ())),
            )
    except (TypeError, ValueError, AttributeError):  # it lacks something, or has another shape
        return None
    return event


def _record(kind: type[T], data: Mapping[str, Any]) -> T:
    """Return a record of the fields that this version knows."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    return kind(**{name: value for name, value in data.items() if name in known})
