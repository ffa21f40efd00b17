"""The page of runs on a scheduler's own server, `/dask-slicer`.

Dask imports this in the scheduler's process, where its configuration names it
(`distributed.scheduler.http.routes`). It shows what runs have published, and reads
no file of theirs.
"""

from __future__ import annotations

import importlib.resources
import time
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
# How long one look at the scheduler serves all browsers, to keep its load low.
_LOOK_SECONDS = 0.5

_LOGS: WeakKeyDictionary[Any, EventLog] = WeakKeyDictionary()


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
        log = _LOGS.setdefault(self.scheduler, EventLog())
        if time.monotonic() > log.updated_at + _LOOK_SECONDS:
            log.update(scheduler_snapshot(log.last_event, self.scheduler))
        self.write(content(log.view()))


routes: list[tuple[str, type[RequestHandler], dict[str, Any]]] = [
    (r"dask-slicer/?", Page, {}),
    (r"dask-slicer/state\.json", State, {}),
]
