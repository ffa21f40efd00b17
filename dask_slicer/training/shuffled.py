"""Samples as a stream that reads case after case, for network disks."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dask_slicer.errors import UsageError
from dask_slicer.output.index import SliceIndex


class IndexedSamples(Protocol):
    """Samples by number, and the index that says which case each is of; a `SliceDataset`."""

    @property
    def index(self) -> SliceIndex:
        """Return the index."""
        ...

    def __getitem__(self, number: int) -> Any: ...


class ShuffledSlices:
    """Samples as a stream: cases in random order, slices of a few of them mixed in a buffer.

    Each case is read from front to back, once per epoch; every iteration is one epoch. In torch's
    DataLoader, every worker reads a part of the cases, and torch's seed changes the order. Import
    torch before you create the stream with `SliceDataset.shuffled`.
    """

    def __init__(self, dataset: IndexedSamples, *, buffer_size: int, seed: int) -> None:
        if buffer_size < 1:
            raise UsageError(f"buffer_size must be 1 or more, got {buffer_size}")
        self.dataset = dataset
        self.buffer_size = buffer_size
        self.seed = seed
        self.epoch = 0
        torch_data = sys.modules.get("torch.utils.data")
        if torch_data is not None:  # DataLoader recognises streams by this class
            torch_data.IterableDataset.register(ShuffledSlices)

    def __iter__(self) -> Iterator[Any]:
        worker, n_workers, torch_seed = _torch_worker()
        order = random.Random(f"{self.seed} {torch_seed} {self.epoch}")  # noqa: S311  # no secret
        self.epoch += 1
        index = self.dataset.index
        cases = list(range(len(index.cases)))
        order.shuffle(cases)
        rows: Sequence[int] | NDArray[np.intp] = range(len(index.case))
        if (index.case[1:] < index.case[:-1]).any():  # rows that the user put in another order
            rows = np.argsort(index.case, kind="stable")
        ends = [0, *np.bincount(index.case, minlength=len(cases)).cumsum().tolist()]
        samples = (
            self.dataset[int(row)]
            for case in cases[worker::n_workers]
            for row in rows[ends[case] : ends[case + 1]]
        )
        buffer = list(islice(samples, self.buffer_size))
        for sample in samples:
            place = order.randrange(len(buffer))
            yield buffer[place]
            buffer[place] = sample
        order.shuffle(buffer)
        yield from buffer


def _torch_worker() -> tuple[int, int, int]:
    """Return the number of this DataLoader worker, of how many, and their seed; else 0, 1, 0."""
    torch_data = sys.modules.get("torch.utils.data")
    info = None if torch_data is None else torch_data.get_worker_info()
    return (0, 1, 0) if info is None else (info.id, info.num_workers, info.seed - info.id)
