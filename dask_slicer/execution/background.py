"""Runs in the background, and handles to them."""

from __future__ import annotations

import atexit
import threading
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dask_slicer.config.schema import RunConfig
from dask_slicer.errors import OutputError
from dask_slicer.execution.pipeline import run
from dask_slicer.monitoring.logs import logged_to
from dask_slicer.monitoring.notebook import RunProgress
from dask_slicer.monitoring.observer import RunReport
from dask_slicer.utils import repr_html, signals

if TYPE_CHECKING:
    from distributed import Client


# How long a run may tidy up when Python ends.
_EXIT_SECONDS = 10.0

# Outputs, with their partitions, that submitted runs write to.
_in_use: set[tuple[Path, str | None]] = set()
_LOCK = threading.Lock()

Status = Literal["running", "cancelling", "done", "cancelled", "stopped", "failed"]


class RunHandle:
    """A run in the background; `submit` returns it.

    Two runs at once need two outputs and two schedulers: a second run on the same client, or into
    the same directory, is refused. The run is cancelled when Python ends.
    """

    def __init__(self, config: RunConfig, client: Client | None = None) -> None:
        # The thread locks the output a moment later: two runs submitted at once would both begin.
        self._key = (config.output_dir.resolve(), config.shard)
        with _LOCK:
            if self._key in _in_use:
                raise OutputError(f"{config.output_dir} is in use by another run of this program")
            _in_use.add(self._key)
        self._progress = RunProgress(str(config.output_dir))
        self._stop, self._ended = threading.Event(), threading.Event()
        self._report: RunReport | None = None
        self._error: BaseException | None = None
        atexit.register(self._end)
        # A daemon: Python waits for other threads before it calls `_end`.
        thread = threading.Thread(
            target=self._run, args=(config, client), name="dask_slicer.submit", daemon=True
        )
        thread.start()

    @property
    def output_dir(self) -> str:
        """Return the output directory."""
        return self._progress.output_dir

    @property
    def status(self) -> Status:
        """Return the state of the run: running or cancelling, and at the end one of four.

        These are done (also with failed cases), cancelled, stopped (the scheduler was lost, see
        the report) and failed (`result` raises the error).
        """
        if not self._ended.is_set():
            return "cancelling" if self._stop.is_set() else "running"
        if self._report is None:
            return "failed"
        if self._report.interrupted:
            return "cancelled"
        return "stopped" if self._report.stopped else "done"

    def cancel(self, timeout: float | None = None) -> None:
        """Stop the run, and wait until it has tidied up; finished cases are kept.

        A run that has ended does not change. A case that runs in this process is finished first.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait; 0 does not wait.

        Raises
        ------
        TimeoutError
            If the run has not ended after a timeout above 0.
        """
        self._stop.set()
        if not self._ended.wait(timeout) and timeout:
            raise TimeoutError(f"the run into {self.output_dir} has not stopped in {timeout:g} s")

    def result(self, timeout: float | None = None) -> RunReport:
        """Wait for the end of the run and return its report; Ctrl-C stops only the waiting.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait.

        Returns
        -------
        RunReport
            A cancelled run has one too.

        Raises
        ------
        TimeoutError
            If the run is not over by then.
        DaskSlicerError
            The error of the run.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"the run into {self.output_dir} is still running: {self._words}")
        if self._report is None:
            raise self._error or AssertionError  # `_run` sets one of them
        return self._report

    def __repr__(self) -> str:
        return f"<RunHandle {self.status}: {self._words}>"

    def _repr_html_(self) -> str:
        if self._error is not None:
            return repr_html.html_card(f"Run failed: {self._words}")
        return f"<div><strong>{escape(self.status)}</strong></div>{self._progress.html()}"

    @property
    def _words(self) -> str:
        if self._error is not None:
            return f"{type(self._error).__name__}: {self._error}"
        return self._progress.words

    def _run(self, config: RunConfig, client: Client | None) -> None:
        try:
            with logged_to(config.log_file), signals.stopped_by(self._stop):
                self._report = run(config, client, observer=self._progress)
        except KeyboardInterrupt:  # cancelled, perhaps before there was anything to report
            self._report = self._progress.report or RunReport(
                output_dir=self.output_dir, interrupted=True
            )
        except BaseException as error:  # `result` raises it
            self._error = error
        finally:
            _in_use.discard(self._key)
            self._ended.set()
            atexit.unregister(self._end)

    def _end(self) -> None:
        self._stop.set()
        self._ended.wait(_EXIT_SECONDS)
