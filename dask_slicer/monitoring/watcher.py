"""Read-only connection to the scheduler of a run, for `dask-slicer watch`."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dask_slicer.cluster.remote import connect
from dask_slicer.errors import DaskSlicerError, OutputError, SchedulerError
from dask_slicer.monitoring.links import LOOPBACK
from dask_slicer.monitoring.snapshot import EventLog, Snapshot, scheduler_snapshot
from dask_slicer.monitoring.state import TOPIC, RunState
from dask_slicer.output.directory import existing_splits
from dask_slicer.output.layout import CONFIG, FAILURES, SUMMARY, partition_journals
from dask_slicer.output.lock_owner import IN_PROCESS, LockOwner, lock_owner
from dask_slicer.records import why_not_written
from dask_slicer.utils.files import parse_json, read_text
from dask_slicer.utils.formatting import format_time, plural

if TYPE_CHECKING:
    from distributed import Client, Security


_LOG = logging.getLogger(__name__)

# Between two polls of the scheduler.
_EVERY_SECONDS = 1.0
# How long a scheduler may take to answer before the screen shows that it does not.
_ANSWER_SECONDS = 3


class SchedulerGone(SchedulerError):
    """The connection to the watched scheduler was lost."""


class NotRunning(DaskSlicerError):
    """There is no run to draw, or not any more; the message says why, and what it left."""


@contextmanager
def connect_watcher(
    address: str, security: Security | None, *, process: tuple[str, str] | None = None
) -> Iterator[Watcher]:
    """Connect to a scheduler, and leave it running; raise SchedulerError if there is no answer."""
    with connect(address, security, name="dask-slicer-watch") as client:
        watcher = Watcher(client, address, process)
        # A scheduler may end before the next poll: its run's last event comes by subscription.
        client.subscribe_topic(TOPIC, lambda event: watcher.log.add(*event))
        yield watcher


@dataclass(slots=True)
class Watcher:
    """A read-only connection to a scheduler."""

    client: Client
    address: str
    process: tuple[str, str] | None  # host and number of the only process whose run is shown
    silent_since: float | None = None  # the first unanswered question, in monotonic seconds
    log: EventLog = field(default_factory=EventLog)

    @property
    def title(self) -> str:
        """Return the heading of a picture: the scheduler, and for how long it has been silent."""
        if self.silent_since is None:
            return self.address
        silent = format_time(time.monotonic() - self.silent_since)
        return f"{self.address} has not answered for {silent}"

    def views(self) -> Iterator[Snapshot]:
        """Yield what the scheduler knows until its runs are over, then raise NotRunning.

        Without a run, it waits for one. Raises SchedulerGone if the scheduler is lost before that.
        """
        has_begun = self.process is not None
        while True:
            began = time.monotonic()
            is_gone = not self._poll()
            if is_gone:
                self.log.workers, self.log.n_waiting = (), 0
            view = self.log.view(process=self.process)
            is_active = any(not run.ending for run in view.runs)
            if is_gone and (is_active or not view.runs):
                raise SchedulerGone(f"the scheduler at {self.address} is gone")
            yield view
            has_begun = has_begun or is_active or is_gone
            if has_begun and view.runs and not is_active:
                raise NotRunning("\n".join(map(_last_words, view.runs)))
            time.sleep(max(_EVERY_SECONDS - (time.monotonic() - began), 0.1))

    def _poll(self) -> bool:
        """Ask the scheduler; return whether it is there, even if it does not answer in time.

        Raises SchedulerError if it does not know this package.
        """
        asked = time.monotonic()
        try:
            answer = self.client.sync(
                self.client.run_on_scheduler,
                scheduler_snapshot,
                since=self.log.last_event,
                callback_timeout=_ANSWER_SECONDS,
            )
        except TimeoutError:
            self.silent_since = self.silent_since or asked
            return self.client.status == "running"
        except (ImportError, AttributeError) as error:
            raise SchedulerError(
                f"the scheduler at {self.address} has another version of "
                f"dask_slicer, or none; it cannot show runs of this version ({error})"
            ) from None
        except Exception:  # a broken connection raises errors of many kinds
            _LOG.debug("Could not ask the scheduler", exc_info=True)
            return False
        self.silent_since = None
        self.log.update(answer)
        return True


def _last_words(run: RunState) -> str:
    if run.ending == "stopped":
        return f"The run into {run.output_dir} has stopped; run the same command again to continue"
    failed = f"; see {run.output_dir}/{FAILURES}" if run.n_failed else ""
    return f"The run into {run.output_dir} has ended{failed}"


def find_scheduler(output_dir: Path) -> LockOwner | None:
    """Return the run that writes to an output, with its scheduler; None while it has none yet.

    Raises NotRunning if no run writes to it, OutputError if the directory is no output, and
    SchedulerError if the run has no scheduler that can be reached from this host.
    """
    owner = lock_owner(output_dir)
    if owner is None or not owner.is_alive:
        if owner is None and not (output_dir / CONFIG).exists():
            raise OutputError(f"{output_dir} is not an output of dask-slicer: nothing to watch")
        raise NotRunning(_last_run(output_dir, owner))
    if owner.scheduler == IN_PROCESS:
        raise SchedulerError(
            f"the run that writes to {output_dir} ({owner}) has no scheduler: it uses one process"
        )
    address = owner.scheduler.rpartition("://")[2]
    if owner.host != socket.gethostname() and address.startswith(LOOPBACK):
        raise SchedulerError(
            f"the scheduler of the run into {output_dir} ({owner.scheduler}) can be reached from "
            f"{owner.host} only: ssh -t {owner.host} dask-slicer watch {output_dir}"
        )
    return owner if owner.scheduler else None


def _last_run(output_dir: Path, died: LockOwner | None) -> str:
    """Return what the last run into an output left, in words."""
    begin = f"No run writes to {output_dir}"
    if died is not None:
        begin = f"The run into {output_dir} died ({died}); run the same command again"
    try:
        info = parse_json(read_text(output_dir / SUMMARY))
        n_cases, n_slices, n_failed = (
            int(info[name]) for name in ("num_cases", "num_slices", "num_failed")
        )
        cases, slices = plural(n_cases, "case"), plural(n_slices, "slice")
        said = f"{begin}. {SUMMARY} lists {cases}, {slices}, {n_failed} failed"
        with suppress(OutputError):  # a damaged splits.json
            if left := why_not_written(0, len(existing_splits(output_dir)) - n_cases - n_failed):
                said += f"; {left}"
        return said
    except (OSError, ValueError, OverflowError, KeyError, TypeError):
        if partition_journals(output_dir):
            return f"{begin}. Its partitions are not merged yet: dask-slicer merge {output_dir}"
        return f"{begin}. There is no {SUMMARY} yet"
