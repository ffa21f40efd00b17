"""Windows that loaders are measured with, and a method of loading them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_slicer import SliceDataset

NEIGHBOURS = 2
PLANES = 2 * NEIGHBOURS + 1
BATCH_SIZE = 8
N_WORKERS = 2
Batch = Any
# Numbers of windows, as datasets count slices, for each batch.
Batches = list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Scans:
    """The scans that windows are read from.

    Attributes
    ----------
    store, npz : Path
        Outputs of `dask-slicer run`: a Zarr store with the integers of the scans, and npz files.
    volumes : list of (Path, Path)
        Image and label of each case, as NIfTI.
    case, index : ndarray
        Of each window, the number of its case and that of its middle slice.
    pool : ndarray
        Numbers of the windows that are drawn from.
    shape : tuple of int
        Slices, rows and columns of the first case.
    """

    store: Path
    npz: Path
    volumes: list[tuple[Path, Path]]
    case: NDArray[np.integer]
    index: NDArray[np.integer]
    pool: NDArray[np.integer]
    shape: tuple[int, int, int]

    def draw(self, seed: int, n_batches: int) -> Batches:
        """Return batches of windows, none of them twice before all are drawn."""
        n_windows = n_batches * BATCH_SIZE
        rng = np.random.default_rng(seed)
        passes = [rng.permutation(self.pool) for _ in range(ceil(n_windows / len(self.pool)))]
        numbers = np.concatenate(passes)[:n_windows].tolist()
        return [numbers[first : first + BATCH_SIZE] for first in range(0, n_windows, BATCH_SIZE)]

    def place(self, number: int) -> tuple[int, slice, int]:
        """Return the case of a window, its slices, and the one in the middle."""
        middle = int(self.index[number])
        return int(self.case[number]), slice(middle - NEIGHBOURS, middle + NEIGHBOURS + 1), middle

    def planes(self, *, stored: bool) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Yield image and label of each case, slices first, stored or normalised."""
        output = "source" if stored else "float32"
        dataset = SliceDataset(self.store, channels="center", output=output)
        for number in range(len(self.volumes)):
            samples = [dataset[int(row)] for row in np.flatnonzero(self.case == number)]
            image = np.concatenate([sample["image"] for sample in samples])
            yield image, np.stack([sample["label"] for sample in samples])


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to load windows.

    Attributes
    ----------
    name : str
    group : {"ours", "limit", "other", "before"}
    values : {"float32", "integers"}
        Of images.
    processes : str
        Such as "1 process", "2 workers" or "2 threads".
    how : str
        What is done, in a sentence for the report.
    load : callable
        Yields the batches asked for.
    files : list of Path
        What is read; empty for what lies in memory.
    drawn : bool
        Whether it loads the windows asked for, and not as many that it draws by itself.
    pool_only : bool
        Whether there are only files of the windows that are drawn from.
    passes_before : int
        How often all windows are loaded before the first turn: what fills a cache.
    """

    name: str
    group: str
    values: str
    processes: str
    how: str
    load: Callable[[Batches], Iterable[Batch]]
    files: Sequence[Path] = ()
    drawn: bool = True
    pool_only: bool = False
    passes_before: int = 0

    def rate(self, batches: Batches) -> float:
        """Return windows a second; each batch is dropped when the next is there.

        Those asked for are loaded twice, and the second time counts: files and memory that were
        idle during the turns of other methods are in the caches again.
        """
        if self.drawn:
            for _ in self.load(batches):
                pass
        started = time.perf_counter()
        n_windows = sum(len(batch["image"]) for batch in self.load(batches))
        taken = time.perf_counter() - started
        if self.drawn and n_windows != sum(map(len, batches)):
            raise RuntimeError(f"{self.name} gave {n_windows} windows")
        return n_windows / taken


def files_of(folder: Path) -> list[Path]:
    """Return all files in a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def in_workers(
    dataset: Any,
    collate: Callable[[Any], Batch] | None = None,
    loader: Any = None,
    *,
    n_workers: int = N_WORKERS,
) -> Callable[[Batches], Iterable[Batch]]:
    """Return what loads batches through torch's DataLoader, whose workers stay between epochs.

    Parameters
    ----------
    dataset : Dataset
    collate : callable, optional
    loader : type, optional
        A DataLoader of another package.
    n_workers : int
        0 loads in this process.
    """
    if loader is None:
        from torch.utils.data import DataLoader

        loader = DataLoader

    wanted: Batches = []
    options: dict[str, Any] = {} if collate is None else {"collate_fn": collate}
    if n_workers:
        options |= {"persistent_workers": True, "multiprocessing_context": "fork"}
    data_loader = loader(dataset, batch_sampler=wanted, num_workers=n_workers, **options)

    def load(batches: Batches) -> Iterable[Batch]:
        wanted[:] = batches
        return iter(data_loader)

    return load
