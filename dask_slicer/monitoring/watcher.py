"""Read-only connection to the scheduler of a run, for `dask-slicer watch`."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask_slicer.cluster.remote import connect
from dask_slicer.errors import OutputError, SchedulerError
from dask_slicer.monitoring.snapshot import EventLog, Snapshot, scheduler_snapshot
from dask_slicer.monitoring.state import TOPIC
from dask_slicer.output.layout import CONFIG, SUMMARY, partition_journals
from dask_slicer.output.lock import IN_PROCESS, LockOwner, lock_owner
from dask_slicer.utils.formatting import plural

if TYPE_CHECKING:
    from distributed import Client, Security


_LOG = logging.getLogger(__name__)

# How long a scheduler may take to answer before the screen shows that it does not.
_ANSWER_SECONDS = 3


class SchedulerGone(SchedulerError):
    """The connection to the watched scheduler was lost."""


@contextmanager
def connect_watcher(target: WatchTarget, security: Security | None) -> Iterator[Watcher]:
    """Connect to a scheduler, and leave it running; raise SchedulerError if there is no answer."""
    with connect(target.address, security, name="dask-slicer-watch") as client:
        # We report a lost connection ourselves. Not earlier: importing Dask sets these levels.
        for name in ("distributed", "distributed.client"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        watcher = Watcher(client, target)
        # A scheduler may end before the next poll: its run's last event comes by subscription.
        client.subscribe_topic(TOPIC, watcher.add_event)
        yield watcher


@dataclass(slots=True)
class Watcher:
    """A read-only connection to a scheduler.

    `silent_since` is when the first unanswered question was sent, in monotonic seconds.
    """

    client: Client
    target: WatchTarget
    silent_since: float | None = None
    _log: EventLog = field(default_factory=EventLog)
    _clock_ahead: float = 0.0

    def add_event(self, event: tuple[float, Any]) -> None:
        """Add an event and its scheduler time."""
        self._log.add(*event)

    def poll(self) -> Snapshot:
        """Ask the scheduler; return what is known then, also if it does not answer.

        Raises SchedulerGone, or SchedulerError if it does not know this package.
        """
        asked = time.monotonic()
        try:
            answer = self.client.sync(
                self.client.run_on_scheduler,
                scheduler_snapshot,
                since=self._log.last_event,
                callback_timeout=_ANSWER_SECONDS,
            )
        except TimeoutError:
            if self.client.status != "running":
                raise self._gone() from None
            self.silent_since = self.silent_since or asked
            return self.view()
        except (ImportError, AttributeError) as error:
            raise SchedulerError(
                f"the scheduler at {self.target.address} has another version of "
                f"dask_slicer, or none; it cannot show runs of this version ({error})"
            ) from None
        except Exception as error:  # a broken connection raises errors of many kinds
            _LOG.debug("Could not ask the scheduler", exc_info=True)
            raise self._gone() from error
        self.silent_since = None
        self._log.update(answer)
        self._clock_ahead = answer["now"] - time.time()
        return self.view()

    def view(self) -> Snapshot:
        """Return what is known so far."""
        return self._log.view(time.time() + self._clock_ahead, process=self.target.process)

    def _gone(self) -> SchedulerGone:
        self._log.workers = tuple(replace(worker, tasks=()) for worker in self._log.workers)
        self._log.n_waiting = 0
        return SchedulerGone(f"the scheduler at {self.target.address} is gone")


_LOOPBACK = ("127.", "localhost", "[::1]", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class NotRunning:
    """No run writes to an output; `words` has what the last one left."""

    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchTarget:
    """The scheduler to watch; and, to watch one run only, host and number of its process."""

    address: str
    process: tuple[str, str] | None = None


def find_scheduler(output_dir: Path) -> WatchTarget | NotRunning | None:
    """Return the scheduler of the run that writes to an output; None while it has none yet.

    Raises OutputError if the directory is no output, and SchedulerError if the run has no scheduler
    that can be reached from this host.
    """
    owner = lock_owner(output_dir)
    if owner is None or not owner.is_alive:
        if owner is None and not (output_dir / CONFIG).exists():
            raise OutputError(f"{output_dir} is not an output of dask-slicer: nothing to watch")
        return NotRunning(words=_last_run(output_dir, owner))
    if owner.scheduler == IN_PROCESS:
        raise SchedulerError(
            f"the run that writes to {output_dir} ({owner}) has no scheduler: it uses one process"
        )
    address = owner.scheduler.rpartition("://")[2]
    if owner.host != socket.gethostname() and address.startswith(_LOOPBACK):
        raise SchedulerError(
            f"the scheduler of the run into {output_dir} ({owner.scheduler}) can be reached from "
            f"{owner.host} only: ssh -t {owner.host} dask-slicer watch {output_dir}"
        )
    if not owner.scheduler:
        return None
    process = (owner.host, owner.process) if owner.process else None
    return WatchTarget(address=owner.scheduler, process=process)


def _last_run(output_dir: Path, died: LockOwner | None) -> str:
    """Return what the last run into an output left, in words."""
    begin = (
        f"No run writes to {output_dir}"
        if died is None
        else f"The run into {output_dir} died ({died}); run the same command again"
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
            return f"{begin}. Its partitions are not merged yet: dask-slicer merge {output_dir}"
        return f"{begin}. There is no {SUMMARY} yet"
    return f"{begin}. {SUMMARY} lists {', '.join(words)}"
