"""A process that workers are forked from, apart from the fork server of the user's program.

`multiprocessing` has one such process for a whole program, with one environment and one list of
imported modules. So the workers have their own, with a resource tracker of its own: both end with
the last run. They need private names of `multiprocessing`; no other module of ours uses any.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing.process import BaseProcess
from types import FunctionType
from typing import Any

import psutil

from dask_slicer.cluster.process_settings import VARIABLES, start_method_left_open
from dask_slicer.utils import signals

# The name by which Dask's setting of the process method finds our processes.
METHOD = "dask_slicer_forkserver"
_END_SECONDS = 1.0  # for the tracker: other processes of the program may hold its pipe

_lock = threading.Lock()  # also of the cached functions, which two threads must not call at once
_n_users = 0


class ForkedProcess(BaseProcess):
    """A process that is forked from our server; the child finds this class by its name."""

    _start_method = "forkserver"  # of processes that the child may start

    @staticmethod
    def _Popen(process: BaseProcess) -> Any:
        with _lock:
            # The nanny of a worker that was killed at the end of a run would have another one.
            if not _n_users:
                raise OSError("the run is over")
            return _popen_class()(process)


@contextmanager
def running(imported: Sequence[str], variables: Mapping[str, str]) -> Iterator[None]:
    """Have a server that imports modules and has these variables; raise an OSError if it cannot."""
    global _n_users
    with _lock:
        server = _server()
        _n_users += 1
    try:
        tracked = {"PYTHONWARNINGS": _without_tracker_warnings()}
        with _lock, VARIABLES.changed({**variables, **tracked}), start_method_left_open():
            # The tracker comes first: when it is started, signals are no longer deferred.
            server.resource_tracker.ensure_running()
            with signals.deferred():
                server.set_forkserver_preload(list(imported))
                server.ensure_running()
        yield
    finally:
        with _lock:
            _n_users -= 1
            if not _n_users:
                _stop(server)


def _without_tracker_warnings() -> str:
    # A worker that is killed leaves a lock of Blosc. The tracker removes it; its warning helps no
    # user.
    configured = VARIABLES.before("PYTHONWARNINGS")
    return ",".join(filter(None, (configured, "ignore:resource_tracker")))


@cache
def _server() -> Any:
    """Return a second copy of the module `multiprocessing.forkserver`, which has its own server."""
    from multiprocessing import context, resource_tracker

    spec = importlib.util.find_spec("multiprocessing.forkserver")
    server: Any = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(server)  # type: ignore[union-attr]
    server.resource_tracker = resource_tracker.ResourceTracker()

    class Context(context.ForkServerContext):
        _name = METHOD
        Process = ForkedProcess  # type: ignore[assignment]

    context._concrete_contexts[METHOD] = Context()  # type: ignore[attr-defined]
    return server


@cache
def _popen_class() -> Any:
    """Return the class that starts processes by `multiprocessing`'s server, made to use ours."""
    from multiprocessing import popen_forkserver

    launch: Any = popen_forkserver.Popen._launch  # type: ignore[attr-defined]
    names = {**vars(popen_forkserver), "forkserver": _server()}

    class Popen(popen_forkserver.Popen):
        _launch = FunctionType(launch.__code__, names)

    return Popen


def _stop(server: Any) -> None:
    """End the server, which has no workers any more, and then its tracker."""
    if server._forkserver._forkserver_pid is not None:
        with suppress(ProcessLookupError):
            os.kill(server._forkserver._forkserver_pid, signal.SIGKILL)
        with suppress(ChildProcessError):  # the program waits for all of its children by itself
            server._forkserver._stop()
        server._forkserver._forkserver_pid = None  # else the next run would look for it
    tracker = server.resource_tracker
    if tracker._fd is not None:
        os.close(tracker._fd)  # the tracker ends when the last process has closed it
        with suppress(psutil.Error):
            psutil.Process(tracker._pid).wait(_END_SECONDS)
        tracker._fd = tracker._pid = None  # it can be started again
