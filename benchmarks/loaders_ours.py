"""Loading with `SliceDataset`, and the same from memory-mapped arrays, which need no decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from loading import (
    BATCH_SIZE,
    N_WORKERS,
    PLANES,
    Batch,
    Batches,
    Method,
    Scans,
    files_of,
    in_workers,
)
from numpy.typing import NDArray

from dask_slicer import SliceDataset
from dask_slicer.training.memory import shared_tensor
from dask_slicer.utils.array_pool import ArrayPool

_OUTPUTS = {"float32": "float32", "integers": "source"}
_CACHE = "2GB"
_STORE = "from a Zarr store of `--dtype source`"


def ours_in_workers(scans: Scans) -> Iterator[Method]:
    """Yield what reads our store in workers of torch's DataLoader."""
    for values, output in _OUTPUTS.items():
        dataset = SliceDataset(scans.store, output=output)
        for collation, collate in (("default collation", None), ("`collate`", dataset.collate)):
            yield Method(
                name=f"`DataLoader`, {collation}",
                group="ours",
                values=values,
                processes=f"{N_WORKERS} workers",
                how=f"`SliceDataset` {_STORE} in torch's DataLoader, persistent workers",
                load=in_workers(dataset, collate),
                files=files_of(scans.store),
            )
        dataset = SliceDataset(scans.store, output=output, cache=_CACHE)
        yield Method(
            name="`DataLoader`, `collate`, cache",
            group="ours",
            values=values,
            processes=f"{N_WORKERS} workers",
            how=f"`SliceDataset(…, cache={_CACHE!r})`; each worker holds all planes that are drawn",
            load=in_workers(dataset, dataset.collate),
            files=files_of(scans.store),
            passes_before=2 * N_WORKERS,  # so that each worker is given most of the windows
        )


def ours_in_this_process(scans: Scans) -> Iterator[Method]:
    """Yield what reads our outputs in this process, with and without threads."""
    of_store = {"group": "ours", "files": files_of(scans.store)}
    stacked = SliceDataset(scans.store)

    def stack(batches: Batches) -> Iterator[Batch]:
        for numbers in batches:
            samples = [stacked[number] for number in numbers]
            yield {
                name: np.stack([sample[name] for sample in samples]) for name in ("image", "label")
            }

    yield Method(
        name="samples, stacked",
        values="float32",
        processes="1 process",
        how=f'`np.stack([dataset[i]["image"] for i in batch])`, and labels, {_STORE}',
        load=stack,
        **of_store,
    )
    for values, output in _OUTPUTS.items():
        yield Method(
            name="`__getitems__` and `collate`",
            values=values,
            processes="1 process",
            how=f"`dataset.collate(dataset.__getitems__(batch))`, {_STORE}",
            load=_collated(SliceDataset(scans.store, output=output)),
            **of_store,
        )
        for threads in range(N_WORKERS + 1):
            yield Method(
                name=f"`loader(threads={threads})`",
                values=values,
                processes=f"{threads} thread{'s' * (threads > 1)}" if threads else "1 process",
                how=f"`dataset.loader({BATCH_SIZE}, threads={threads})`, {_STORE}",
                load=_threads(SliceDataset(scans.store, output=output), threads),
                **of_store,
            )
        yield Method(
            name=f"`loader(threads={N_WORKERS})`, cache",
            values=values,
            processes=f"{N_WORKERS} threads",
            how=f"`SliceDataset(…, cache={_CACHE!r})`, which holds all planes that are drawn",
            load=_threads(SliceDataset(scans.store, output=output, cache=_CACHE), N_WORKERS),
            passes_before=1,
            **of_store,
        )
    yield Method(
        name=f"`loader(threads={N_WORKERS})`, npz",
        group="ours",
        values="float32",
        processes=f"{N_WORKERS} threads",
        how=f"`dataset.loader({BATCH_SIZE}, threads={N_WORKERS})` from `.npz` files",
        load=_threads(SliceDataset(scans.npz), N_WORKERS),
        files=files_of(scans.npz),
    )


def mapped_by_torch(scans: Scans, arrays: Path) -> Iterator[Method]:
    """Yield what copies windows of mapped integers for torch's DataLoader."""
    for values in _OUTPUTS:
        mapped = MappedWindows(scans, arrays, values)
        yield Method(
            name="mapped `.npy`, default collation",
            group="limit",
            values=values,
            processes=f"{N_WORKERS} workers",
            how='`np.load(mmap_mode="r")`; `__getitem__` copies a window into a new array',
            load=in_workers(mapped),
            files=files_of(arrays),
        )
        yield Method(
            name="mapped `.npy`, whole batches",
            group="limit",
            values=values,
            processes=f"{N_WORKERS} workers",
            how="`__getitems__` copies the windows of a batch into memory that is used again, and "
            "`shared_tensor` copies that into shared memory, as ours",
            load=in_workers(MappedBatches(scans, arrays, values), _shared_tensors),
            files=files_of(arrays),
        )
        yield Method(
            name="mapped `.npy`, whole batches, `DataLoader`",
            group="limit",
            values=values,
            processes="1 process",
            how='`np.load(mmap_mode="r")`; `__getitems__` copies the windows of a batch into new '
            "arrays",
            load=in_workers(MappedBatches(scans, arrays, values, np.empty), _tensors, n_workers=0),
            files=files_of(arrays),
        )


def mapped_in_this_process(scans: Scans, arrays: Path) -> Iterator[Method]:
    """Yield what copies windows of mapped integers into one array, used again for every batch."""
    for values in _OUTPUTS:
        yield Method(
            name="mapped `.npy`, whole batches",
            group="limit",
            values=values,
            processes="1 process",
            how='`np.load(mmap_mode="r")`; windows are copied into one array, always the same',
            load=_into_one_array(MappedWindows(scans, arrays, values)),
            files=files_of(arrays),
        )


def write_arrays(scans: Scans, folder: Path) -> None:
    """Write images and labels of cases as stored, an `.npy` file each."""
    folder.mkdir()
    for number, (image, label) in enumerate(scans.planes(stored=True)):
        np.save(folder / f"image_{number}.npy", image)
        np.save(folder / f"label_{number}.npy", label)


class MappedWindows:
    """Windows of mapped integers, as samples; as float32 they are cast, and not normalised."""

    def __init__(self, scans: Scans, arrays: Path, values: str) -> None:
        self.scans = scans
        self.images, self.labels = (
            [np.load(arrays / f"{kind}_{number}.npy", mmap_mode="r") for number in self._cases()]
            for kind in ("image", "label")
        )
        self.dtype = np.dtype(np.float32) if values == "float32" else self.images[0].dtype

    def _cases(self) -> range:
        return range(len(self.scans.volumes))

    def __len__(self) -> int:
        return len(self.scans.case)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return a window and the label of its middle slice, as new arrays."""
        case, window, middle = self.scans.place(number)
        return {
            "image": np.array(self.images[case][window], self.dtype),
            "label": np.array(self.labels[case][middle]),
        }

    def empty(
        self, n_windows: int, allocate: Callable[..., NDArray[Any]] = np.empty
    ) -> dict[str, NDArray[Any]]:
        """Return the arrays of a batch."""
        size = self.images[0].shape[1:]
        return {
            "image": allocate((n_windows, PLANES, *size), self.dtype),
            "label": allocate((n_windows, *size), self.labels[0].dtype),
        }

    def fill(self, batch: dict[str, NDArray[Any]], numbers: list[int]) -> None:
        """Copy windows and labels into the arrays of a batch."""
        for row, number in enumerate(numbers):
            case, window, middle = self.scans.place(number)
            batch["image"][row] = self.images[case][window]
            batch["label"][row] = self.labels[case][middle]


class MappedBatches(MappedWindows):
    """Windows of mapped integers, as batches in arrays that `allocate` makes."""

    def __init__(
        self,
        scans: Scans,
        arrays: Path,
        values: str,
        allocate: Callable[..., NDArray[Any]] | None = None,
    ) -> None:
        super().__init__(scans, arrays, values)
        self.allocate = ArrayPool(4).empty if allocate is None else allocate

    def __getitems__(self, numbers: list[int]) -> dict[str, NDArray[Any]]:
        """Return a batch, which `_tensors` makes one of tensors."""
        batch = self.empty(len(numbers), self.allocate)
        self.fill(batch, numbers)
        return batch


def _shared_tensors(batch: dict[str, NDArray[Any]]) -> Batch:
    return {name: shared_tensor(array) for name, array in batch.items()}


def _tensors(batch: dict[str, NDArray[Any]]) -> Batch:
    import torch

    return {name: torch.from_numpy(array) for name, array in batch.items()}


def _collated(dataset: SliceDataset) -> Callable[[Batches], Iterable[Batch]]:
    return lambda batches: (dataset.collate(dataset.__getitems__(numbers)) for numbers in batches)


def _threads(dataset: SliceDataset, threads: int) -> Callable[[Batches], Iterable[Batch]]:
    order: list[int] = []
    loader = dataset.loader(BATCH_SIZE, threads=threads, sampler=order)

    def load(batches: Batches) -> Iterable[Batch]:
        order[:] = [number for numbers in batches for number in numbers]
        return iter(loader)

    return load


def _into_one_array(windows: MappedWindows) -> Callable[[Batches], Iterable[Batch]]:
    reused = windows.empty(BATCH_SIZE)

    def load(batches: Batches) -> Iterator[Batch]:
        for numbers in batches:
            windows.fill(reused, numbers)
            yield reused

    return load
