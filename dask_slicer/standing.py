"""How a run stands: what it tells of itself, and what follows: rate, and time left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from dask_slicer.words import count, duration, size

# Of the scheduler's events, under which runs tell how they stand.
TOPIC = "dask-slicer"


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
    n_done, n_failed, n_refused : int
        Written, and failed; the last is how many of these failed by their headers, at once.
    n_slices, n_bytes : int
        Written.
    seconds : float
        Since the first case could be run.
    ending : str
        Empty while it goes on; ended, or stopped, when no more cases are run.
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
    n_refused: int = 0
    n_slices: int = 0
    n_bytes: int = 0
    seconds: float = 0.0
    ending: str = ""

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
    known = {field.name for field in fields(kind)}
    try:
        return kind(**{name: value for name, value in event.items() if name in known})
    except TypeError:  # it lacks something
        return None


def slices_per_second(run: RunState, since_told: float = 0.0) -> float:
    """Return how many slices a run has written per second."""
    return run.n_slices / max(run.seconds + since_told, 1e-3)


def seconds_left(run: RunState, since_told: float = 0.0) -> float | None:
    """Return about how long a run will take yet; None while no case has told.

    Cases that failed by their headers took no time, and say nothing.
    """
    n_timed = run.n_ended - run.n_refused
    n_left = run.n_todo - run.n_ended
    if run.ending or not n_left:
        return 0.0
    if not n_timed:
        return None
    return (run.seconds + since_told) * n_left / n_timed


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
        left = seconds_left(run, since_told)
        words.append(f"{duration(seconds)} so far")
        words.append("no case done yet" if left is None else f"about {duration(left)} left")
    return ", ".join(words)


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
