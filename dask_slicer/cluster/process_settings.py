"""Settings of this process that runs change, and that are as before when the last run ends.

Runs may overlap in several threads, and end in any order. Each setting counts who uses it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import dask


class SharedSettings:
    """Settings of one kind, such as environment variables, with a value during some blocks.

    Examples
    --------
    >>> settings = {"stealing": True}
    >>> shared = SharedSettings(settings.get, settings.__setitem__)
    >>> with shared.changed({"stealing": False}):
    ...     settings["stealing"], shared.before("stealing")
    (False, True)
    >>> settings
    {'stealing': True}
    """

    def __init__(self, read: Callable[[str], Any], write: Callable[[str, Any], object]) -> None:
        self._read, self._write = read, write
        self._lock = threading.RLock()
        # By name: the value of the rest of the program, that of the runs, how many blocks use it.
        self._changes: dict[str, tuple[Any, Any, int]] = {}

    @contextmanager
    def changed(self, values: Mapping[str, Any]) -> Iterator[None]:
        """Give settings these values; the last block that changes one restores it.

        A value that the program gives to a setting in the meantime is kept.
        """
        entered: list[str] = []
        try:
            with self._lock:
                for name, value in values.items():
                    n_blocks = self._changes[name][2] if name in self._changes else 0
                    self._changes[name] = (self.before(name), value, n_blocks + 1)
                    entered.append(name)
                    self._write(name, value)
            yield
        finally:
            with self._lock:
                for name in entered:
                    before, value, n_blocks = self._changes.pop(name)
                    if n_blocks > 1:
                        self._changes[name] = (before, value, n_blocks - 1)
                    elif self._read(name) == value:
                        self._write(name, before)

    def before(self, name: str) -> Any:
        """Return the value of a setting in the rest of the program."""
        with self._lock:
            now = self._read(name)
            before, ours, _ = self._changes.get(name, (now, now, 0))
            return before if now == ours else now


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


# `catch_warnings` would put back a whole list, with what other threads have done to it. So a filter
# is added, and removed from the list of then and that of now: the program may have copied it.
_filters_of_then: dict[str, Any] = {}


def _ignored(message: str) -> tuple[object, ...]:
    return ("ignore", re.compile(message, re.IGNORECASE), Warning, None, 0)


def _ignore_warning(message: str, is_ignored: bool) -> None:
    if is_ignored:
        warnings.filterwarnings("ignore", message=message)
        _filters_of_then[message] = warnings.filters
        return
    of_then = _filters_of_then.pop(message, [])
    filters: Any
    for filters in (warnings.filters, of_then):
        if _ignored(message) in filters:
            filters.remove(_ignored(message))


VARIABLES = SharedSettings(os.environ.get, _set_variable)
# Of `dask.config`. A setting that this version of Dask lacks has the value None.
DASK = SharedSettings(
    lambda name: dask.config.get(name, None), lambda name, value: dask.config.set({name: value})
)
LOG_LEVELS = SharedSettings(
    lambda name: logging.getLogger(name).level,
    lambda name, level: logging.getLogger(name).setLevel(level),
)
IGNORED_WARNINGS = SharedSettings(lambda name: _ignored(name) in warnings.filters, _ignore_warning)


# How `multiprocessing` starts processes, once something has asked; before, the program may choose.
_START_METHODS = SharedSettings(
    lambda name: multiprocessing.get_start_method(allow_none=True),
    lambda name, method: multiprocessing.set_start_method(method, force=True),
)


def start_method_left_open() -> AbstractContextManager[None]:
    """Leave the start method of `multiprocessing` undecided after a block that asks for it."""
    default = multiprocessing.get_all_start_methods()[0]
    now = multiprocessing.get_start_method(allow_none=True)
    return _START_METHODS.changed({"": now or default})
