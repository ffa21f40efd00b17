"""Cache of decoded planes and label maps, bounded, for the threads of a process."""

from __future__ import annotations

import threading
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Content = Literal["image", "label"]
_Key = tuple[Content, int, int]  # content, case, slice


class PlaneCache:
    """Planes and label maps as batches hold them, until so many bytes are taken.

    What is read first stays: where slices are drawn evenly, no choice of planes is hit more often
    than another, and none that changes is cheaper. Slices that are drawn often come early.

    Parameters
    ----------
    n_bytes : int
        Of planes and label maps, at most.
    """

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        self.n_used = 0
        self.planes: dict[_Key, NDArray[Any]] = {}
        self._lock = threading.Lock()

    def planes_of(self, content: Content, case_number: int) -> CachedPlanes:
        """Return the planes of a case, or its label maps, for one batch."""
        return CachedPlanes(self, content, case_number)

    def keep(self, key: _Key, plane: NDArray[Any]) -> None:
        """Copy a plane into the cache if there is room."""
        if self.n_used + plane.nbytes > self.n_bytes:
            return
        # Without waiting: in a child that was forked meanwhile, nobody would release the lock.
        if not self._lock.acquire(blocking=False):
            return
        try:
            if key not in self.planes and self.n_used + plane.nbytes <= self.n_bytes:
                self.planes[key] = np.array(plane)
                self.n_used += plane.nbytes
        finally:
            self._lock.release()

    def __reduce__(self) -> tuple[type[PlaneCache], tuple[int]]:
        return PlaneCache, (self.n_bytes,)  # without the planes


class CachedPlanes:
    """Planes of a case for one batch, see `base.Planes`: those of the batch and of the cache."""

    def __init__(self, cache: PlaneCache, content: Content, case_number: int) -> None:
        self._cache, self._content, self._case_number = cache, content, case_number
        self._of_batch: dict[int, NDArray[Any]] = {}

    def __contains__(self, slice_index: object) -> bool:
        key = self._content, self._case_number, slice_index
        return slice_index in self._of_batch or key in self._cache.planes

    def __getitem__(self, slice_index: int) -> NDArray[Any]:
        plane = self._of_batch.get(slice_index)
        if plane is None:
            return self._cache.planes[self._content, self._case_number, slice_index]
        return plane

    def __setitem__(self, slice_index: int, plane: NDArray[Any]) -> None:
        self._of_batch[slice_index] = plane
        self._cache.keep((self._content, self._case_number, slice_index), plane)
