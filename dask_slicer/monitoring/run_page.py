"""The page of runs on a scheduler's own server, `/dask-slicer`.

Dask imports this in the scheduler's process, where its configuration names it
(`distributed.scheduler.http.routes`). It shows what runs have published, and reads
no file of theirs.
"""

from __future__ import annotations

import importlib.resources
import math
import time
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from tornado.web import RequestHandler

from dask_slicer.monitoring.snapshot import EventLog, scheduler_snapshot
from dask_slicer.monitoring.tables import content

# Nothing is loaded from elsewhere, whatever the name of a case.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:"
)
# How long one answer serves all browsers, to keep the load of the scheduler low.
_ANSWER_SECONDS = 0.5


@dataclass(slots=True)
class _Known:
    """A scheduler's events, read once each, and the last answer about them."""

    log: EventLog = field(default_factory=EventLog)
    answer: dict[str, Any] = field(default_factory=dict)
    answered_at: float = -math.inf

    def refresh(self, scheduler: Any) -> None:
        """Bring the answer up to date."""
        self.log.update(scheduler_snapshot(self.log.last_event, scheduler))
        self.answer = content(self.log.view(time.time()))
        self.answered_at = time.monotonic()


_KNOWN: WeakKeyDictionary[Any, _Known] = WeakKeyDictionary()


class _Handler(RequestHandler):
    """Knows the scheduler that it is part of."""

    def initialize(self, dask_server: Any) -> None:
        """Keep the scheduler, which Dask passes under this name."""
        self.scheduler = dask_server

    def set_default_headers(self) -> None:
        """Forbid to cache an answer, or to guess its type."""
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Content-Security-Policy", _POLICY)


class Page(_Handler):
    """The page, which fetches its content."""

    def get(self) -> None:
        """Answer with the page."""
        page = importlib.resources.files("dask_slicer.monitoring").joinpath("run_page.html")
        self.write(page.read_text(encoding="utf-8"))


class State(_Handler):
    """The content of the page."""

    def get(self) -> None:
        """Answer with runs and workers."""
        known = _KNOWN.setdefault(self.scheduler, _Known())
        if time.monotonic() > known.answered_at + _ANSWER_SECONDS:
            known.refresh(self.scheduler)
        self.write(known.answer)


routes: list[tuple[str, type[RequestHandler], dict[str, Any]]] = [
    (r"dask-slicer/?", Page, {}),
    (r"dask-slicer/state\.json", State, {}),
]
