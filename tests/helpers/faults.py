"""Faults in the cases of a run: how the tests break workers on purpose.

Workers get them by Dask's own `distributed.worker.preload`. Run as a program, this is `dask-slicer`
with faults in its own process.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import time
from collections.abc import Callable, Mapping

from dask_slicer.execution import tasks

_FAULTS = "FAULTS_OF_TESTS"
_FOR_EVER = 1_000_000


def variables(faults: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of workers in which these cases, by their ids, have these faults."""
    return {
        _FAULTS: json.dumps(dict(faults)),
        "DASK_DISTRIBUTED__WORKER__PRELOAD": json.dumps([__file__]),
    }


def install() -> None:
    """Let the faults that the environment names happen each time their case is loaded."""
    faults = dict(json.loads(os.environ.get(_FAULTS, "{}")))
    load_volume, save_case = tasks.load_volume, tasks.save_case

    def load(case, plane):
        _BY_NAME.get(faults.get(case.case_id), lambda: None)()
        return load_volume(case, plane)

    def save(sliced, target):
        record = save_case(sliced, target)
        return None if faults.get(record.case_id) == "nonsense" else record

    tasks.load_volume, tasks.save_case = load, save


def dask_setup(_worker: object) -> None:
    """Install the faults; Dask calls this in each worker."""
    install()


def _take_all_memory() -> None:
    blocks = []
    while True:
        blocks.append(b"x" * 16_000_000)
        time.sleep(0.005)  # nannies check ten times a second


def _raise(error: Exception) -> None:
    raise error


_BY_NAME: dict[str | None, Callable[[], object]] = {
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


if __name__ == "__main__":
    install()
    from dask_slicer.cli.main import main

    main()
