"""Threads for reading many files, where the disk is slower than Python."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
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
    return list(iter_files(function, items))


def iter_files(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield what a function that reads files returns of each item, in order, a thousand at once."""
    items = iter(items)
    with ThreadPoolExecutor(_THREADS) as threads:  # which start on use
        while batch := list(islice(items, _BATCH)):
            waits = []
            for item in batch[:_TRIED]:
                began, cpu_began = time.perf_counter(), time.thread_time()
                result = function(item)
                cpu = time.thread_time() - cpu_began
                waits.append(time.perf_counter() - began - cpu)
                yield result
            rest = batch[_TRIED:]
            is_slow = bool(rest) and median(waits) > _SLOW_SECONDS
            yield from threads.map(function, rest) if is_slow else map(function, rest)
