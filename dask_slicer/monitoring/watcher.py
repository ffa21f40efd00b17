"""Read-only connection to the scheduler of a run, for `dask-slicer watch`."""

from __future__ import annotations

import json
import logging
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask_slicer.cluster.address import TlsFiles
from dask_slicer.cluster.client import settings_of_clients
from dask_slicer.cluster.remote import connected
from dask_slicer.errors import OutputError, SchedulerError
from dask_slicer.monitoring.snapshot import (
    EventLog,
    Snapshot,
    WorkerInfo,
    scheduler_snapshot,
    with_gone,
    worker_info,
)
from dask_slicer.monitoring.state import TOPIC
from dask_slicer.output.layout import (
    CONFIG,
    SUMMARY,
    partition_journals,
)
from dask_slicer.output.lock import IN_PROCESS, LockOwner, lock_owner
from dask_slicer.utils.formatting import plural

if TYPE_CHECKING:
    from distributed import Client


_LOG = logging.getLogger(__name__)

# That a scheduler may take to answer before the screen says that it does not.
_ANSWER_SECONDS = 3


class SchedulerGone(SchedulerError):
    """The connection to the scheduler that is looked at was lost."""


@contextmanager
def connect_watcher(place: WatchTarget, tls: TlsFiles | None) -> Iterator[Watcher]:
    """Connect to a scheduler to look on; leave it running.

    Raises
    ------
    SchedulerError
        If it does not answer within 10 seconds.
    ConfigError
        If the TLS files cannot be used.
    """
    with ExitStack() as stack:
        stack.enter_context(settings_of_clients())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other versions there
            client = stack.enter_context(connected(place.address, tls, name="dask-slicer-watch"))
        # What becomes of the connection is said by us. Not before: its import sets these levels.
        for name in ("distributed", "distributed.client"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        one = Watcher(client, place)
        # A scheduler that ends soon after a run's last word is not asked again in time.
        client.subscribe_topic(TOPIC, one.add_event)
        yield one


@dataclass(slots=True)
class Watcher:
    """Looks at a scheduler now and then.

    Attributes
    ----------
    client : Client
    place : Place
    silent_since : float or None
        When the scheduler was asked what it has not answered yet, in monotonic seconds.
    """

    client: Client
    place: WatchTarget
    silent_since: float | None = None
    _heard: EventLog = field(default_factory=EventLog)
    _connected: frozenset[str] = frozenset()
    _workers: tuple[WorkerInfo, ...] = ()
    _n_waiting: int = 0
    _last_event: float = 0.0
    _last_look: float = 0.0
    _last_seen: float = 0.0
    _clock_ahead: float = 0.0

    def add_event(self, event: tuple[float, Any]) -> None:
        """Take note of an event: its time, by the scheduler's clock, and what it tells."""
        self._heard.add(*event)

    def poll(self) -> Snapshot:
        """Return what there is to see; what was seen last, where the scheduler does not answer.

        Raises
        ------
        SchedulerGone
        SchedulerError
            If it does not know this package.
        """
        asked = time.monotonic()
        try:
            seen = self.client.sync(
                self.client.run_on_scheduler,
                scheduler_snapshot,
                since=self._last_event,
                callback_timeout=_ANSWER_SECONDS,
            )
        except TimeoutError:
            if self.client.status != "running":
                raise self._gone() from None
            self.silent_since = self.silent_since or asked
            return self.view()
        except (ImportError, AttributeError) as error:
            raise SchedulerError(
                f"the scheduler at {self.place.address} does not have this version of dask_slicer, "
                f"so no run of it is going on there ({error})"
            ) from None
        except Exception as error:  # whatever a connection that breaks comes to
            _LOG.debug("the scheduler cannot be asked", exc_info=True)
            raise self._gone() from error
        self.silent_since = None
        for event in seen["events"]:
            self.add_event(event)
            self._last_event = event[0]
        workers = [worker_info(worker) for worker in seen["workers"]]
        self._workers = with_gone(self._workers, workers, passed=asked - self._last_look)
        self._connected = frozenset(seen["clients"])
        self._n_waiting = seen["n_waiting"]
        self._last_seen = seen["now"]
        self._clock_ahead = seen["now"] - time.time()
        self._last_look = asked
        return self.view()

    def view(self) -> Snapshot:
        """Return what was seen and heard so far."""
        now = time.time() + self._clock_ahead
        return self._heard.view(
            now,
            self._connected | self._heard.clients_since(self._last_seen),
            workers=self._workers,
            n_waiting=self._n_waiting,
            process=self.place.process,
        )

    def _gone(self) -> SchedulerGone:
        self._workers = tuple(replace(worker, tasks=()) for worker in self._workers)
        self._n_waiting = 0
        return SchedulerGone(f"the scheduler at {self.place.address} is gone")


_LOOPBACK = ("127.", "localhost", "[::1]", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class NotRunning:
    """That nothing is going on in an output, and what the last run left."""

    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchTarget:
    """Where to look: a scheduler, and the process of the only run that is meant, if there is one.

    Attributes
    ----------
    address : str
    process : (str, str) or None
        Its host and number.
    """

    address: str
    process: tuple[str, str] | None = None


def find_scheduler(output_dir: Path) -> WatchTarget | NotRunning | None:
    """Return where the run that holds an output can be looked at.

    Returns
    -------
    Place, Standstill or None
        None while the run has not got that far.

    Raises
    ------
    OutputError
        If it is not ours.
    SchedulerError
        If the run cannot be watched, or not from here.
    """
    found = lock_owner(output_dir)
    if found is None or not found.is_alive:
        if found is None and not (output_dir / CONFIG).exists():
            raise OutputError(f"{output_dir} is not an output of dask-slicer: nothing to watch")
        return NotRunning(words=_what_is_left(output_dir, found))
    if found.scheduler == IN_PROCESS:
        raise SchedulerError(
            f"the run into {output_dir} ({found}) works in its own process, without a scheduler "
            "to watch; see what it prints, or run with --num_workers 1 or more"
        )
    place = found.scheduler.rpartition("://")[2]
    if found.host != socket.gethostname() and place.startswith(_LOOPBACK):
        raise SchedulerError(
            f"the run into {output_dir} is on {found.host}, and so is all that can reach its "
            f"scheduler ({found.scheduler}): ssh -t {found.host} dask-slicer watch {output_dir}"
        )
    if not found.scheduler:
        return None
    of_one = (found.host, found.process) if found.process else None
    return WatchTarget(address=found.scheduler, process=of_one)


def _what_is_left(output_dir: Path, died: LockOwner | None) -> str:
    """Return what the last run into an output left, in words."""
    begin = (
        f"No run is going on in {output_dir}"
        if died is None
        else f"The run into {output_dir} died ({died}); the same command continues"
    )
    try:
        info = json.loads((output_dir / SUMMARY).read_text(encoding="utf-8"))
        words = [
            plural(info["num_cases"], "case"),
            plural(info["num_slices"], "slice"),
            f"{info['num_failed']} failed",
        ]
    except (OSError, ValueError, KeyError, TypeError):
        if partition_journals(output_dir):
            return f"{begin}. Its shares are not merged yet: dask-slicer merge {output_dir}"
        return f"{begin}. There is no {SUMMARY} yet"
    return f"{begin}. {'There are' if died is None else 'Before, there were'} {', '.join(words)}"
