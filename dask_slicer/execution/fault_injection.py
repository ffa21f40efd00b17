"""Fault injection for tests.

Only the environment variable DASK_SLICER_FAULTS switches faults on: a JSON object of case id →
fault, which happens each time that case is loaded.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import time
from collections.abc import Callable
from functools import cache

FAULTS = "DASK_SLICER_FAULTS"
_FOR_EVER = 1_000_000


def inject(case_id: str) -> None:
    """Do what the variable asks for this case, most likely nothing."""
    fault = _faults().get(case_id)
    if fault in _BY_NAME:
        _BY_NAME[fault]()


def returns_no_record(case_id: str) -> bool:
    """Return whether the last task of this case is to return an unexpected result."""
    return _faults().get(case_id) == "nonsense"


@cache
def _faults() -> dict[str, str]:
    return dict(json.loads(os.environ.get(FAULTS, "{}")))


def _take_all_memory() -> None:
    blocks = []
    while True:
        blocks.append(b"x" * 16_000_000)
        time.sleep(0.005)  # nannies check ten times a second


def _raise(error: Exception) -> None:
    raise error


_BY_NAME: dict[str, Callable[[], object]] = {
    "exit": lambda: os._exit(7),
    "segfault": lambda: ctypes.string_at(0),
    "memory": _take_all_memory,
    "slow": lambda: time.sleep(1),
    "sleep": lambda: time.sleep(_FOR_EVER),
    "hold_gil": lambda: ctypes.PyDLL(None).sleep(_FOR_EVER),
    "freeze": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "raise": lambda: _raise(RuntimeError("a fault on purpose")),
    "io": lambda: _raise(OSError(errno.EIO, "Input/output error", "a disk")),
}
