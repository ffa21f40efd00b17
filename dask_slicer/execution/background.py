"""Runs in the background, and handles to them."""

from __future__ import annotations

import atexit
import threading
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dask_slicer.config.schema import RunConfig
from dask_slicer.errors import OutputError
from dask_slicer.execution.logs import logged_to
from dask_slicer.execution.pipeline import run
from dask_slicer.monitoring.events import RunReport
from dask_slicer.monitoring.notebook import RunProgress
from dask_slicer.utils import repr_html, signals

if TYPE_CHECKING:
    from distributed import Client


# That a run has to tidy up when Python ends.
_EXIT_SECONDS = 10.0

# Outputs, and shares, that submitted runs write to.
_in_use: set[tuple[Path, str | None]] = set()
_LOCK = threading.Lock()

Status = Literal["running", "cancelling", "done", "cancelled", "stopped", "failed"]


class RunHandle:
    """A run in the background; `submit` returns it.

    Two runs at once need two outputs, and two schedulers: another run on the same client, or into
    the same directory, is refused. When Python ends, the run is cancelled.

    Parameters
    ----------
    config : RunConfig
    client : distributed.Client, optional

    Raises
    ------
    OutputError
        If another one writes there.
    """

    def __init__(self, config: RunConfig, client: Client | None = None) -> None:
        # Its thread takes the lock a moment later: two that are submitted at once would both begin.
        self._place = (config.output_dir.resolve(), config.shard)
        with _LOCK:
            if self._place in _in_use:
                raise OutputError(f"{config.output_dir} is in use by another run of this program")
            _in_use.add(self._place)
        self._progress = RunProgress(str(config.output_dir))
        self._token, self._over = threading.Event(), threading.Event()
        self._report: RunReport | None = None
        self._error: BaseException | None = None
        atexit.register(self._end)
        # A daemon: Python would wait for another before it comes to cancel it.
        thread = threading.Thread(
            target=self._run, args=(config, client), name="dask_slicer.submit", daemon=True
        )
        thread.start()

    @property
    def output_dir(self) -> str:
        """Return where it writes to."""
        return self._progress.output_dir

    @property
    def status(self) -> Status:
        """Return the state of the run.

        Returns
        -------
        str
            running, cancelling, and in the end done (also with failed cases), cancelled, stopped
            (the scheduler was lost; the report says so) or failed (`result` raises).
        """
        if not self._over.is_set():
            return "cancelling" if self._token.is_set() else "running"
        if self._report is None:
            return "failed"
        if self._report.interrupted:
            return "cancelled"
        return "stopped" if self._report.stopped else "done"

    def cancel(self, timeout: float | None = None) -> None:
        """Stop the run, and wait until it has tidied up; what is done is kept.

        Of a run that is over, nothing changes. A case that runs in this process is first done.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait; 0 only asks.

        Raises
        ------
        TimeoutError
            If it is still tidying up then; unless nothing was to be waited for.
        """
        self._token.set()
        if not self._over.wait(timeout) and timeout:
            raise TimeoutError(f"the run into {self.output_dir} has not stopped in {timeout:g} s")

    def result(self, timeout: float | None = None) -> RunReport:
        """Return the report, once the run is over; to interrupt the waiting does not stop the run.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait.

        Returns
        -------
        RunReport
            Of a cancelled run too: of what it did.

        Raises
        ------
        TimeoutError
            If the run still goes on then.
        DaskSlicerError
            What the run raised.
        """
        if not self._over.wait(timeout):
            raise TimeoutError(f"the run into {self.output_dir} still goes on: {self._words}")
        if self._report is None:
            # Made by `_run`, which sets one of both.
            raise self._error or AssertionError
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
            with logged_to(config.log_file), signals.stopped_by(self._token):
                self._report = run(config, client, observer=self._progress)
        except KeyboardInterrupt:  # cancelled, perhaps before there was anything to report
            self._report = self._progress.report or RunReport(
                output_dir=self.output_dir, interrupted=True
            )
        except BaseException as error:  # it is raised where somebody asks for the result
            self._error = error
        finally:
            _in_use.discard(self._place)
            self._over.set()
            atexit.unregister(self._end)

    def _end(self) -> None:
        self._token.set()
        self._over.wait(_EXIT_SECONDS)
