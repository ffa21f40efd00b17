"""What an onlooker sees of runs: he asks their scheduler alone, for what it knows anyway."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dask_slicer.around import look_around, worker_view
from dask_slicer.cluster import settings_of_clients
from dask_slicer.errors import SchedulerError
from dask_slicer.hearing import Heard
from dask_slicer.holder import Place
from dask_slicer.reach import TlsFiles
from dask_slicer.remote import connected
from dask_slicer.standing import TOPIC
from dask_slicer.views import View, WorkerView, with_gone

if TYPE_CHECKING:
    from distributed import Client

_LOG = logging.getLogger(__name__)

# That a scheduler may take to answer before the screen says that it does not.
_ANSWER_SECONDS = 3


class SchedulerGone(SchedulerError):
    """The connection to the scheduler that is looked at was lost."""


@contextmanager
def onlooker(place: Place, tls: TlsFiles | None) -> Iterator[Onlooker]:
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
        one = Onlooker(client, place)
        # A scheduler that ends soon after a run's last word is not asked again in time.
        client.subscribe_topic(TOPIC, one.hear)
        yield one


@dataclass(slots=True)
class Onlooker:
    """Looks at a scheduler now and then.

    Attributes
    ----------
    client : Client
    place : Place
    silent_since : float or None
        When the scheduler was asked what it has not answered yet, in monotonic seconds.
    """

    client: Client
    place: Place
    silent_since: float | None = None
    _heard: Heard = field(default_factory=Heard)
    _connected: frozenset[str] = frozenset()
    _workers: tuple[WorkerView, ...] = ()
    _n_waiting: int = 0
    _last_event: float = 0.0
    _last_look: float = 0.0
    _last_seen: float = 0.0
    _clock_ahead: float = 0.0

    def hear(self, event: tuple[float, Any]) -> None:
        """Take note of an event: its time, by the scheduler's clock, and what it tells."""
        self._heard.hear(*event)

    def look(self) -> View:
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
                self.client._run_on_scheduler,
                look_around,
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
            self.hear(event)
            self._last_event = event[0]
        workers = [worker_view(worker) for worker in seen["workers"]]
        self._workers = with_gone(self._workers, workers, passed=asked - self._last_look)
        self._connected = frozenset(seen["clients"])
        self._n_waiting = seen["n_waiting"]
        self._last_seen = seen["now"]
        self._clock_ahead = seen["now"] - time.time()
        self._last_look = asked
        return self.view()

    def view(self) -> View:
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
