"""Threads for reading many files, where the disk is slower than Python."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_THREADS = 16
# Threads take turns in Python: a file that is in memory is read faster without them. So a few of
# each thousand items are tried one by one, and the rest go to threads if these mostly waited.
_BATCH, _TRIED = 1000, 9
_SLOW_SECONDS = 1e-4


def map_files(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return what a function that reads files returns of each item, in order.

    >>> map_files(len, ["a", "bc"])
    [1, 2]
    """
    results: list[Result] = []
    with ThreadPoolExecutor(_THREADS) as threads:  # which start on use
        for first in range(0, len(items), _BATCH):
            batch = items[first : first + _BATCH]
            waits = []
            for item in batch[:_TRIED]:
                began, cpu_began = time.perf_counter(), time.thread_time()
                results.append(function(item))
                cpu = time.thread_time() - cpu_began
                waits.append(time.perf_counter() - began - cpu)
            rest = batch[_TRIED:]
            is_slow = bool(rest) and median(waits) > _SLOW_SECONDS
            results += threads.map(function, rest) if is_slow else map(function, rest)
    return results
