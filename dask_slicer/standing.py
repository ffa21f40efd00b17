"""How a run stands: what it tells of itself, and what follows: rate, and time left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

from dask_slicer.words import count, duration, size

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


def slices_per_second(run: RunState, since_told: float = 0.0) -> float:
    """Return how many slices a run has written per second."""
    return run.n_slices / max(run.seconds + since_told, 1e-3)


def seconds_left(run: RunState, since_told: float = 0.0) -> float | None:
    """Return about how long a run will take yet; None while no case has told.

    A case that fails mostly does so at once, and says nothing.
    """
    if run.ending or run.n_ended == run.n_todo:
        return 0.0
    if not run.work_done:
        return None
    return (run.seconds + since_told) * (run.work - run.work_done) / run.work_done


def left_words(run: RunState, since_told: float = 0.0) -> str:
    """Return about how long a run will take yet, in words."""
    left = seconds_left(run, since_told)
    return "time left not known yet" if left is None else f"about {duration(left)} left"


def progress_words(run: RunState, since_told: float = 0.0) -> str:
    """Return how far a run is, in words.

    Parameters
    ----------
    run : RunState
    since_told : float
        Seconds since that was its state; while it goes on, its rate falls.
    """
    since_told = 0.0 if run.ending else since_told
    seconds = max(run.seconds + since_told, 1e-3)
    words = [
        f"{run.n_ended} of {count(run.n_todo, 'case')}",
        f"{run.n_failed} failed",
        f"{slices_per_second(run, since_told):.0f} slices/s",
        f"{size(run.n_bytes / seconds)}/s",
    ]
    if run.n_skipped:
        words.insert(1, f"{run.n_skipped} written before")
    if run.ending:
        words.append(f"{run.ending} after {duration(run.seconds)}")
    else:
        words += [f"{duration(seconds)} so far", left_words(run, since_told)]
    return ", ".join(words)


def detail_words(run: RunState) -> str:
    """Return how far a run is with each split, and what failed there, in words.

    Examples
    --------
    >>> detail_words(
    ...     RunState(
    ...         run_id="1f", output_dir="/out", host="node7", process="4711", client="Client-1",
    ...         n_cases=12, n_skipped=2, splits={"train": SplitState(n_todo=10, n_done=3)},
    ...         kinds={"NonFinite": 1, "CorruptFile": 2},
    ...     )
    ... )
    'train 3 of 10; failed: 2 CorruptFile, 1 NonFinite'
    """
    splits = [f"{name} {one.n_done} of {one.n_todo}" for name, one in run.splits.items() if name]
    failed = [f"{n} {kind}" for kind, n in failures_by_kind(run)]
    words = [", ".join(splits), f"failed: {', '.join(failed)}" if failed else ""]
    return "; ".join(filter(None, words))


def failures_by_kind(run: RunState) -> list[tuple[str, int]]:
    """Return kinds of failures with their numbers, the most frequent first."""
    return sorted(run.kinds.items(), key=lambda one: (-one[1], one[0]))


def chosen(
    told: Iterable[RunState], connected: Iterable[str], *, process: tuple[str, str] | None
) -> list[RunState]:
    """Return the runs to show: those that go on, else the last one told of.

    Parameters
    ----------
    told : iterable of RunState
        The latest of each run, in the order in which they began.
    connected : iterable of str
        Clients that the scheduler has. A run whose client is not among them has stopped, whether
        it could say so or not.
    process : (str, str), optional
        Host and number of the only process whose runs are meant.
    """
    known = set(connected)
    runs = [
        run if run.ending or run.client in known else replace(run, ending="stopped")
        for run in told
        if process in (None, (run.host, run.process))
    ]
    return [run for run in runs if not run.ending] or runs[-1:]
