"""Faults in the cases of a run: how the tests break workers on purpose.

Python imports `startup/sitecustomize.py` when a process starts. It changes the tasks of a run, when
they are imported, so that a case has the fault that the environment of its worker names.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType

_HERE = Path(__file__).resolve().parent
# For the environment variable PYTHONPATH.
PATH = (str(_HERE / "startup"), str(_HERE))
_FAULTS = "FAULTS_OF_TESTS"
_TASKS = "dask_slicer.execution.tasks"
_FOR_EVER = 1_000_000


def variables(faults: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of workers in which these cases, by their ids, have these faults."""
    path = [*PATH, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {_FAULTS: json.dumps(dict(faults)), "PYTHONPATH": os.pathsep.join(path)}


def wait_for_tasks() -> None:
    """Break the tasks of runs when this process imports them."""
    sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname != _TASKS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        run_module = spec.loader.exec_module

        def run_and_break(module: ModuleType) -> None:
            run_module(module)
            if module.__name__ == _TASKS:  # an archive has one loader for all its modules
                _break(module)

        spec.loader.exec_module = run_and_break
        return spec


def _break(tasks: ModuleType) -> None:
    load_volume, save_case = tasks.load_volume, tasks.save_case

    def load(case, *arguments, **options):
        _BY_NAME.get(_faults().get(case.case_id), lambda: None)()
        return load_volume(case, *arguments, **options)

    def save(sliced, target):
        record = save_case(sliced, target)
        return None if _faults().get(record.case_id) == "nonsense" else record

    # Dask finds the task by its name.
    save.__module__, save.__qualname__ = save_case.__module__, save_case.__qualname__
    tasks.load_volume, tasks.save_case = load, save


@cache
def _faults() -> dict[str, str]:
    return dict(json.loads(os.environ.get(_FAULTS, "{}")))


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
