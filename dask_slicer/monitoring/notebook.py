"""Progress of a run in a notebook cell."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from html import escape
from typing import Any, Self

from dask_slicer.monitoring.links import link_hints, proxied
from dask_slicer.monitoring.observer import Observer, RunReport, report_lines
from dask_slicer.monitoring.progress_line import progress_line
from dask_slicer.monitoring.state import RunState
from dask_slicer.planning.plan import CasePlan, RunPlan
from dask_slicer.records import CommittedCase, FailedCase, failure_line
from dask_slicer.utils.formatting import plural

# Between two drawings.
_EVERY_SECONDS = 0.5
# Notes and failures shown one by one; the others are only counted.
_MOST_LINES = 10
# The colour of the theme, if it has one, or else that of the text.
_COLOR = "var(--jp-brand-color1, var(--vscode-progressBar-background, currentColor))"


def is_notebook() -> bool:
    """Return whether this process is a Jupyter kernel, without an import."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class RunProgress(Observer):
    """Keeps the progress of a run, which any thread may report, as text and HTML."""

    def __init__(self, output_dir: str) -> None:
        self.output_dir = output_dir
        self.report: RunReport | None = None
        self.stopped = False
        self._where = ""
        self._links: list[str] = []  # as HTML
        self._hints: list[str] = []
        self._notes: list[str] = []
        self._failures: list[FailedCase] = []
        self._state, self._state_at = RunState(), 0.0

    def connected(self, where: str, *, dashboard: str = "", run_page: str = "") -> None:
        """Keep where the cases run, the links, and how to open the dashboard."""
        self._where = where
        if dashboard:
            self._links.append(_anchor(dashboard, "Dask dashboard"))
            self._hints = link_hints(dashboard)
        if run_page:
            self._links.append(_anchor(run_page, "run page"))

    def planned(self, plan: RunPlan, *, todo: Sequence[CasePlan], skipped: int) -> None:
        """Keep the notes of the plan."""
        self._notes += plan.notes

    def note(self, text: str) -> None:
        """Keep a note."""
        self._notes.append(text)

    def progress(self, state: RunState) -> None:
        """Keep the state, and when it came."""
        self._state, self._state_at = state, time.monotonic()

    def case_finished(self, record: CommittedCase | FailedCase) -> None:
        """Keep the record of a failed case."""
        if isinstance(record, FailedCase):
            self._failures.append(record)

    def finished(self, report: RunReport) -> None:
        """Keep the report."""
        self.report = report

    @property
    def words(self) -> str:
        """Return the progress of the run on one line."""
        if self.report is not None:
            return report_lines(self.report)[0]
        if not self._state.n_cases:  # the plan is still to come
            return "stopped before the first case" if self.stopped else "reading headers"
        return progress_line(self._state.later(time.monotonic() - self._state_at))

    def html(self) -> str:
        """Return the progress of the run as one block in the colours of the page."""
        place = f"to <code>{_cut(self.output_dir)}</code>"
        head = f"<strong>Slicing</strong> {escape(self._where)} {place}"
        head = " · ".join([head, *self._links])
        lines = self._hints + [f"Note: {note}" for note in self._notes[-_MOST_LINES:]]
        lines += [f"Failed: {failure_line(failure)}" for failure in self._failures[:_MOST_LINES]]
        if (more := len(self._failures) - _MOST_LINES) > 0:
            lines.append(f"… and {plural(more, 'more failed case')}")
        if self.report is not None and self.report.stopped:
            lines.append(f"Error: {self.report.stopped}")
        below = "".join(f"<div>{_cut(line)}</div>" for line in lines)
        return (
            f'<div style="max-width: 60em"><div>{head}</div>{self._bar()}'
            f"<div>{escape(self.words)}</div>{below}</div>"
        )

    def _bar(self) -> str:
        n_ended, n_todo = self._state.n_ended, self._state.n_todo
        share = n_ended / n_todo if n_todo else float(self.report is not None)
        return (
            '<div style="border: 1px solid currentColor; border-radius: 4px; height: 10px; '
            'margin: 4px 0; overflow: hidden; opacity: 0.8" role="progressbar" '
            f'aria-valuemin="0" aria-valuemax="{n_todo}" aria-valuenow="{n_ended}">'
            f'<div style="width: {100 * share:.1f}%; height: 100%; background: {_COLOR}"></div>'
            "</div>"
        )


class NotebookDisplay(RunProgress):
    """Draws the progress of a run below its notebook cell."""

    def __init__(self, output_dir: str) -> None:
        super().__init__(output_dir)
        self._over = threading.Event()
        # Drawing has its own thread, so that the run does not wait for it.
        self._thread = threading.Thread(target=self._keep_drawing, daemon=True)

    def __enter__(self) -> Self:
        # Draw at once: imports, planning and the start of workers can take seconds.
        from IPython.display import HTML, display

        self._drawn = self.html()
        self._handle: Any = display(HTML(self._drawn), display_id=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped = self.report is None
        self._over.set()
        self._thread.join()
        self._draw()

    def _keep_drawing(self) -> None:
        while not self._over.wait(_EVERY_SECONDS):
            self._draw()

    def _draw(self) -> None:
        from IPython.display import HTML

        html = self.html()
        if html != self._drawn:
            self._drawn = html
            self._handle.update(HTML(html))


def _anchor(link: str, text: str) -> str:
    link = proxied(link) or link
    if not link.startswith(("http://", "https://", "/")):
        return escape(link)  # no script, for example
    return f'<a href="{escape(link)}" target="_blank" rel="noopener">{text}</a>'


def _cut(text: str, most: int = 300) -> str:
    return escape(text if len(text) <= most else f"{text[:most]} …")
