"""Arrays whose memory is used again once no array on it is left."""

from __future__ import annotations

import math
import weakref
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class ArrayPool:
    """Arrays whose memory is kept for the next ones, because new memory is slow to write to.

    Memory comes back when the last array, view or tensor on it is gone, and not before. Threads may
    share a pool.

    Parameters
    ----------
    most_kept : int
        Pieces of memory that wait for use; with more, the oldest is freed.
    """

    def __init__(self, most_kept: int) -> None:
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=most_kept)

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array of any content, as `numpy.empty` does."""
        n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        if not n_bytes:
            return np.empty(shape, dtype)
        memory = self._taken(n_bytes)
        if memory is None:
            memory = np.empty(n_bytes, np.uint8)
        # All views keep this array alive: its base is no array, which they would refer to instead.
        root = np.frombuffer(memory.data, np.uint8, n_bytes)
        weakref.finalize(root, self._free.append, memory).atexit = False
        array: NDArray[Any] = root.view(dtype).reshape(shape)
        return array

    def __reduce__(self) -> tuple[type[ArrayPool], tuple[int | None]]:
        return ArrayPool, (self._free.maxlen,)  # without the memory

    def _taken(self, n_bytes: int) -> NDArray[np.uint8] | None:
        """Return free memory of at least so many bytes, and at most twice as many."""
        for _ in range(len(self._free)):
            try:
                memory = self._free.popleft()
            except IndexError:  # another thread took the last
                return None
            if n_bytes <= memory.size <= 2 * n_bytes:
                return memory
            self._free.append(memory)
        return None
