"""The page of runs on a scheduler's own server, `/dask-slicer`, beside Dask's dashboard.

Dask imports this in the scheduler's process, where its configuration names it
(`distributed.scheduler.http.routes`). It reads what runs have told the scheduler, and no disk.
"""

from __future__ import annotations

import importlib.resources
import time
from typing import Any

from tornado.web import RequestHandler

from dask_slicer.around import look_around, worker_view
from dask_slicer.hearing import Heard
from dask_slicer.runpage import content
from dask_slicer.views import with_gone

# Nothing from elsewhere, whatever a case is called.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:"
)


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
        page = importlib.resources.files("dask_slicer").joinpath("runpage.html")
        self.write(page.read_text(encoding="utf-8"))


class State(_Handler):
    """What it shows."""

    def get(self) -> None:
        """Answer with what is known of runs and workers."""
        seen = look_around(0.0, self.scheduler)
        heard = Heard()
        for at, told in seen["events"]:
            heard.hear(at, told)
        workers = with_gone((), [worker_view(one) for one in seen["workers"]], passed=0.0)
        view = heard.view(
            time.time(), seen["clients"], workers=workers, n_waiting=seen["n_waiting"]
        )
        self.write(content(view))


routes: list[tuple[str, type[RequestHandler], dict[str, Any]]] = [
    (r"dask-slicer/?", Page, {}),
    (r"dask-slicer/state\.json", State, {}),
]
