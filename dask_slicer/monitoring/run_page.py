"""The page of runs on a scheduler's own server, `/dask-slicer`.

Dask imports this in the scheduler's process, where its configuration names it
(`distributed.scheduler.http.routes`). It reads what runs have told the scheduler, and no disk.
"""

from __future__ import annotations

import importlib.resources
import math
import time
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from tornado.web import RequestHandler

from dask_slicer.monitoring.snapshot import EventLog, scheduler_snapshot, with_gone, worker_info
from dask_slicer.monitoring.tables import content

# Nothing from elsewhere, whatever a case is called.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:"
)


# For which an answer serves all who ask: the scheduler has better things to do.
_ANSWER_SECONDS = 0.5


@dataclass(slots=True)
class _Known:
    """What was found on a scheduler so far; its log of events is read once."""

    heard: EventLog = field(default_factory=EventLog)
    until: float = 0.0
    answer: dict[str, Any] = field(default_factory=dict)
    answered_at: float = -math.inf

    def refresh(self, scheduler: Any) -> None:
        """Bring the answer up to date."""
        seen = scheduler_snapshot(self.until, scheduler)
        for at, told in seen["events"]:
            self.heard.add(at, told)
            self.until = at
        workers = with_gone((), [worker_info(one) for one in seen["workers"]], passed=0.0)
        self.answer = content(
            self.heard.view(
                time.time(), seen["clients"], workers=workers, n_waiting=seen["n_waiting"]
            )
        )
        self.answered_at = time.monotonic()


_KNOWN: WeakKeyDictionary[Any, _Known] = WeakKeyDictionary()


class _Handler(RequestHandler):
    """Knows the scheduler that it is part of."""

    def initialize(self, dask_server: Any) -> None:
        """Take note of the scheduler: Dask gives it to whoever names it so."""
        self.scheduler = dask_server

    def set_default_headers(self) -> None:
        """Let nobody keep an answer, nor guess what it is."""
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Content-Security-Policy", _POLICY)


class Page(_Handler):
    """The page itself, which asks for what it shows."""

    def get(self) -> None:
        """Answer with the page."""
        page = importlib.resources.files("dask_slicer.monitoring").joinpath("run_page.html")
        self.write(page.read_text(encoding="utf-8"))


class State(_Handler):
    """What it shows."""

    def get(self) -> None:
        """Answer with what is known of runs and workers."""
        known = _KNOWN.setdefault(self.scheduler, _Known())
        if time.monotonic() > known.answered_at + _ANSWER_SECONDS:
            known.refresh(self.scheduler)
        self.write(known.answer)


routes: list[tuple[str, type[RequestHandler], dict[str, Any]]] = [
    (r"dask-slicer/?", Page, {}),
    (r"dask-slicer/state\.json", State, {}),
]
