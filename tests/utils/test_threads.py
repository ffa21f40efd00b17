"""Files that are read in threads only where the disk is slow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from dask_slicer.utils.threads import map_files


def _reader(threads: set[int], seconds: float) -> Callable[[int], int]:
    def read(item: int) -> int:
        threads.add(threading.get_ident())
        time.sleep(seconds)
        return -item

    return read


def test_a_slow_disk_is_read_in_threads_and_the_order_is_kept() -> None:
    threads: set[int] = set()
    items = range(1500)
    assert map_files(_reader(threads, 0.002), items) == [-item for item in items]
    assert len(threads) == 17


def test_files_in_memory_are_read_without_threads() -> None:
    threads: set[int] = set()
    assert map_files(lambda item: threads.add(threading.get_ident()), range(3000)) == [None] * 3000
    assert threads == {threading.get_ident()}


def test_a_few_files_are_read() -> None:
    assert map_files(str, []) == []
    assert map_files(str, [1, 2]) == ["1", "2"]
