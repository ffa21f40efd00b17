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
_TASKS, _PARTS = "dask_slicer.execution.tasks", "dask_slicer.execution.parts"
# What the name of a fault begins with that a part of a large case has: one, or one once.
_IN_PART, _ONCE = "part ", "once "
_FOR_EVER = 1_000_000


def variables(faults: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of workers in which these cases, by their ids, have these faults."""
    path = [*PATH, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {_FAULTS: json.dumps(dict(faults)), "PYTHONPATH": os.pathsep.join(path)}


def wait_for_tasks() -> None:
    """Break the tasks of runs when this process imports them."""
    sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def __init__(self) -> None:
        self._left = {_TASKS: _break, _PARTS: _break_parts}

    def find_spec(self, fullname, path=None, target=None):
        break_module = self._left.pop(fullname, None)
        if break_module is None:
            return None
        spec = importlib.util.find_spec(fullname)
        run_module = spec.loader.exec_module

        def run_and_break(module: ModuleType) -> None:
            run_module(module)
            if module.__name__ == fullname:  # an archive has one loader for all its modules
                break_module(module)

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


def _break_parts(parts: ModuleType) -> None:
    save_part = parts.save_part

    def save(sliced, target, *, number, n_parts):
        case = getattr(sliced, "case", None)  # not of an error, or of a case that is saved
        name = "" if case is None else _faults().get(case.case_id, "")
        if name.startswith(_IN_PART) and number == 1:
            name = name.removeprefix(_IN_PART)
            if not name.startswith(_ONCE) or _is_first(target.output_dir):
                _BY_NAME[name.removeprefix(_ONCE)]()
        return save_part(sliced, target, number=number, n_parts=n_parts)

    save.__module__, save.__qualname__ = save_part.__module__, save_part.__qualname__
    parts.save_part = save


def _is_first(output_dir: str) -> bool:
    """Return whether no process has asked this for an output before."""
    try:
        Path(f"{output_dir}.once").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


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
