"""The state of a process that a run must leave as it was, and its changes."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import dask
import psutil

# Idle threads of pools that Dask has once in a process, for all that use it.
DASKS_POOLS = ("Dask-Offload", "TCP-Executor")
# A logger that nothing has set up, as each import of a module may make one.
UNSET = (logging.NOTSET, True, False, [], [])


def snapshot() -> dict[str, Any]:
    """Return the state of this process by kind."""
    gc.collect()
    manager = logging.root.manager.loggerDict
    loggers = {"root": logging.root}
    loggers |= {name: log for name, log in manager.items() if isinstance(log, logging.Logger)}
    states = {
        name: (
            log.level,
            log.propagate,
            log.disabled,
            [(str(handler), id(handler), handler.level) for handler in log.handlers],
            [*map(id, log.filters)],
        )
        for name, log in loggers.items()
    }
    me = psutil.Process()
    server = forkserver._forkserver
    return {
        "dask.config": copy.deepcopy(dask.config.config),
        "loggers": {name: state for name, state in states.items() if state != UNSET},
        "warnings": list(warnings.filters),
        "signals": {number.name: signal.getsignal(number) for number in signal.Signals},
        "signal mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "os.environ": dict(os.environ),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "forkserver": (server._forkserver_pid, list(server._preload_modules)),
        "event loop policy": type(asyncio.get_event_loop_policy()),
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook, signal.signal),
        "directory": Path.cwd(),
        "path": list(sys.path),
        "threads": sorted(
            thread.name
            for thread in threading.enumerate()
            if not thread.name.startswith(DASKS_POOLS)
        ),
        "processes": {child.pid: _command(child) for child in me.children(recursive=True)},
        "files": dict(_open_files()),
        "sockets": sorted(map(str, me.net_connections(kind="all"))),
    }


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


def _open_files() -> Iterator[tuple[int, str]]:
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            yield number, str(Path(f"/proc/self/fd/{number}").readlink())
        except OSError:  # that of the list
            continue


def changes(before: dict[str, Any], *, seconds: float = 5.0) -> dict[str, Any]:
    """Return what is not as before, by kind and name; wait for it that long at most."""
    deadline = time.monotonic() + seconds
    while True:
        after = snapshot()
        found = {
            (kind, name): (old.get(name), new.get(name))
            for kind in before
            for old, new in [(_named(before[kind]), _named(after[kind]))]
            for name in old.keys() | new.keys()
            if old.get(name) != new.get(name)
        }
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def _named(state: Any) -> dict[Any, Any]:
    return state if isinstance(state, dict) else {"": state}
