"""Batches that threads fill ahead of the training loop."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from math import ceil
from typing import Any, Protocol

import numpy as np

from dask_slicer.errors import UsageError
from dask_slicer.training.batches import Allocate
from dask_slicer.training.memory import can_pin, pinned_empty
from dask_slicer.utils.array_pool import ArrayPool

Batch = dict[str, Any]
# Batches for each thread: the one that it fills, and one that waits.
_PER_THREAD = 2


class BatchSource(Protocol):
    """Slices that can be read as batches; a `SliceDataset`."""

    def __len__(self) -> int: ...

    def read_batch(self, numbers: Sequence[int], allocate: Allocate) -> Batch:
        """Return slices as a batch, in arrays that `allocate` makes."""
        ...


class SliceLoader:
    """Batches of a dataset, epoch after epoch, in an order that seed and epoch decide.

    A batch is a dict: `image` (slice, channel, row, column), `label` (slice, row, column) where the
    cases have one, `case_id`, a list, `slice_index` (slice,), and with ``output="source"`` what
    `normalize_batch` needs. Arrays are torch tensors where torch is imported. The memory of a batch
    is used again when nothing on it is left, so a batch may be kept.

    The next iteration is the next epoch. An error is raised at the batch it belongs to; the next
    batch can still be asked for.

    Parameters
    ----------
    dataset : SliceDataset
        Its `transform`, if any, runs in the threads.
    batch_size : int
    threads : int
        0 reads each batch when it is asked for.
    shuffle : bool
    seed : int
        For the order of slices.
    sampler : collection of int, optional
        Numbers of slices in the order of an epoch, iterated over in each: any sampler of torch's.
        Then `shuffle`, `rank` and `num_replicas` are its own task.
    drop_last : bool
        Leave out what does not fill a batch.
    pin_memory : bool
        Put batches into page-locked memory, for fast copies to a GPU. Needs torch with CUDA.
    rank, num_replicas : int, optional
        Of the processes of a distributed training, this one's number, and how many there are; by
        default those of `torch.distributed` when an epoch begins. Each process has the same number
        of slices: the first ones are repeated, or the last ones left out with `drop_last`.

    Raises
    ------
    UsageError
        If an argument is wrong, or arguments contradict each other.
    """

    def __init__(
        self,
        dataset: BatchSource,
        batch_size: int = 1,
        *,
        threads: int = 2,
        shuffle: bool = False,
        seed: int = 0,
        sampler: Collection[int] | None = None,
        drop_last: bool = False,
        pin_memory: bool = False,
        rank: int | None = None,
        num_replicas: int | None = None,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("threads", threads, 0),
            ("seed", seed, 0),
        ):
            if int(value) != value or value < least:
                raise UsageError(f"{name} must be an integer from {least} up, got {value}")
        if sampler is not None and (shuffle or rank is not None or num_replicas is not None):
            raise UsageError("sampler decides the order: leave out shuffle, rank and num_replicas")
        if (rank is None) != (num_replicas is None):
            raise UsageError("rank and num_replicas need each other: set both or none")
        if rank is not None and num_replicas is not None and not 0 <= rank < num_replicas:
            raise UsageError(f"rank must be from 0 to {num_replicas - 1}, got {rank}")
        if pin_memory and not can_pin():
            raise UsageError(
                "pin_memory needs torch and a GPU that it can use, and there is none; leave it out"
            )
        self.dataset = dataset
        self.batch_size, self.threads = int(batch_size), int(threads)
        self.shuffle, self.seed, self.sampler = shuffle, seed, sampler
        self.drop_last, self.pin_memory = drop_last, pin_memory
        self.batch_sampler = None  # which Lightning looks for beside a sampler
        self._rank, self._num_replicas = rank, num_replicas
        self.epoch = 0
        self._pool = ArrayPool(most_kept=2 * (_PER_THREAD * self.threads + 2))

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        n_slices = self._rank_of()[2] if self.sampler is None else len(self.sampler)
        return n_slices // self.batch_size if self.drop_last else ceil(n_slices / self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration.

        Parameters
        ----------
        epoch : int
            From 0; each iteration adds 1.
        """
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        if self.sampler is None:
            rank, n_replicas, n = self._rank_of()
            numbers = np.arange(len(self.dataset))
            if self.shuffle:
                numbers = np.random.default_rng((self.seed, self.epoch)).permutation(numbers)
            if n * n_replicas > len(numbers):
                numbers = np.resize(numbers, n * n_replicas)  # which repeats the first ones
            numbers = numbers[rank : n * n_replicas : n_replicas]
        else:
            numbers = np.fromiter(map(int, self.sampler), np.intp)
        self.epoch += 1
        n = len(numbers) - (len(numbers) % self.batch_size if self.drop_last else 0)
        starts = range(0, n, self.batch_size)
        batches = (numbers[start : start + self.batch_size].tolist() for start in starts)
        allocate: Allocate = pinned_empty if self.pin_memory else self._pool.empty
        return _Batches(self.dataset, batches, threads=self.threads, allocate=allocate)

    def _rank_of(self) -> tuple[int, int, int]:
        """Return the rank of this process, how many there are, and how many slices each has."""
        rank, n_replicas = self._rank, self._num_replicas
        if rank is None or n_replicas is None:
            rank, n_replicas = _distributed()
        n = len(self.dataset)
        return rank, n_replicas, n // n_replicas if self.drop_last else ceil(n / n_replicas)


class _Batches:
    """One pass over batches, filled ahead by threads, in order."""

    def __init__(
        self,
        dataset: BatchSource,
        batches: Iterator[Sequence[int]],
        *,
        threads: int,
        allocate: Allocate,
    ) -> None:
        self._remaining = batches
        self._n_ahead = _PER_THREAD * threads
        self._futures: deque[Future[Batch]] = deque()
        self._executor: ThreadPoolExecutor | None = None
        if threads:
            self._executor = ThreadPoolExecutor(threads, thread_name_prefix="SliceLoader")
        self._read = partial(dataset.read_batch, allocate=allocate)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        executor = self._executor
        if executor is None:
            return self._read(next(self._remaining))
        while len(self._futures) < self._n_ahead:
            numbers = next(self._remaining, None)
            if numbers is None:
                break
            self._futures.append(executor.submit(self._read, numbers))
        if not self._futures:
            self.close()
            raise StopIteration
        return self._futures.popleft().result()

    def close(self) -> None:
        """End the threads, after the batches they are filling."""
        self._remaining = iter(())
        self._futures.clear()
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)

    def __del__(self) -> None:
        self.close()


def _distributed() -> tuple[int, int]:
    """Return rank and number of processes of torch.distributed; 0 and 1 if it is not in use."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()
