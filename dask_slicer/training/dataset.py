"""Map-style dataset of slices for training, from npz files, PNG images or Zarr stores."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dask_slicer.config.fields import number_of_bytes
from dask_slicer.errors import UsageError
from dask_slicer.output.formats import npz_reader, png_reader, zarr_reader  # noqa: F401, before loaders are forked
from dask_slicer.output.formats.base import damage_named
from dask_slicer.output.index import SliceIndex
from dask_slicer.output.output import open_output
from dask_slicer.training import batches
from dask_slicer.training.batches import Allocate, ImageOutput, OpenedSlice, Sample
from dask_slicer.training.cache import PlaneCache
from dask_slicer.training.loader import SliceLoader
from dask_slicer.training.open_cases import OpenCases
from dask_slicer.training.selection import Selection
from dask_slicer.training.shuffled import ShuffledSlices
from dask_slicer.training.weights import sampling_weights
from dask_slicer.utils.array_pool import ArrayPool
from dask_slicer.utils.formatting import plural

if TYPE_CHECKING:
    import pandas as pd


class _Default:
    """The default of `split`: the same value, given by the user, is another object."""

    def __repr__(self) -> str:
        return "'train'"


_TRAIN: Any = _Default()
# Pieces of memory of batches that wait for the next: images and labels of two.
_MOST_KEPT = 4


class SliceDataset:
    """The slices of an output, as samples for training.

    Map-style: `len`, `[i]` and iteration, as torch's DataLoader needs, without torch. Files are
    opened when a sample is read; open files are neither pickled nor shared with forked processes.

    Parameters
    ----------
    output_dir : str or Path
        An output of `dask-slicer run`, finished or not.
    split : {"train", "val", "test"}, optional
        None for all splits. Not with `fold`.
    cases : collection of str, optional
        Only these case ids.
    labels : collection of int, optional
        Only slices that hold at least one of these label values.
    min_foreground : float, optional
        Only slices with at least this share of labelled pixels.
    channels : {"window", "center"}
        The whole window, or only the slice itself.
    window_size : int, optional
        Neighbours on each side: any number for Zarr, else at most as many as were written. By
        default that of the output.
    transform : callable, optional
        Applied to every sample. It must be picklable if DataLoader spawns workers.
    fold : int, optional
        Only the cases of a fold of splits_final.json, from 0, whatever their split.
    part : {"train", "val"}, optional
        Of the fold; by default "train".
    plane : str, optional
        Only slices of this plane, such as "coronal". By default those of all planes: then samples
        have their `plane`, if it is not one for all. A window holds slices of one plane.
    output : {"float32", "source"}
        "source": images as the integers that are stored, which are read faster, and with them
        `scale`, `offset`, `clip_range` and `plane_mask`, with which `normalize_batch` normalises a
        batch where it is wanted, such as on a GPU. Of an output that holds integers: of
        ``--dtype source`` or ``uint8``, or PNG.
    cache : int or str, optional
        Bytes of memory, such as ``"8GB"``, for decoded planes and label maps of a Zarr store,
        which threads share; each worker process has its own.

    Raises
    ------
    OutputError
        If the directory is not an output, or was written by a newer version.
    UsageError
        If a case id, split or fold is unknown, an argument is wrong, or the files are in a layout
        that only another project reads.
    """

    def __init__(
        self,
        output_dir: str | Path,
        split: str | None = _TRAIN,
        *,
        cases: Collection[str] | None = None,
        labels: Collection[int] | None = None,
        min_foreground: float | None = None,
        channels: Literal["window", "center"] = "window",
        window_size: int | None = None,
        transform: Callable[[Sample], Any] | None = None,
        fold: int | None = None,
        part: Literal["train", "val"] | None = None,
        plane: str | None = None,
        output: ImageOutput = "float32",
        cache: int | str | None = None,
    ) -> None:
        if split is _TRAIN:
            split = "train" if fold is None else None
        elif fold is not None:
            raise UsageError(
                f"fold and split both choose cases, got {fold} and {split}; give fold alone, with "
                "part='val' for its cases for validation"
            )
        selection = Selection(
            split=split,
            cases=cases,
            labels=labels,
            min_foreground=min_foreground,
            fold=fold,
            part=part,
            plane=plane,
        )
        if channels not in ("window", "center"):
            raise UsageError(f"channels must be window or center, got {channels}")
        if window_size is not None and (int(window_size) != window_size or window_size < 0):
            raise UsageError(f"window_size must be an integer from 0 up, got {window_size}")
        if output not in ("float32", "source"):
            raise UsageError(f"output must be float32 or source, got {output}")
        opened = open_output(output_dir)
        if output == "source" and opened.config.dtype in ("float32", "float16"):
            raise UsageError(
                f"{opened.path} holds no integers, but {opened.config.dtype}, so output cannot be "
                "source; make the slices again with --format zarr --dtype source"
            )
        if cache is not None and opened.config.format != "zarr":
            raise UsageError(
                f"cache needs an output with --format zarr, {opened.path} is {opened.config.format}"
            )
        self._cache = None if cache is None else PlaneCache(number_of_bytes(cache, name="cache"))
        self.output_dir = opened.path
        self._read_arrays = partial(batches.read_arrays, output=output, cache=self._cache)
        self.transform = transform
        self._channel_names, self._label_names = opened.channel_names, opened.label_names
        self._window_size = 0 if channels == "center" else window_size
        written = opened.config.window_size
        if opened.config.format != "zarr" and (self._window_size or 0) > written:
            raise UsageError(
                f"{opened.path} was written with --window_size {written}, so window_size "
                f"{window_size} is too large; make the slices again with --window_size "
                f"{window_size}, or with --format zarr"
            )
        self._index = selection.of(opened)
        self._open_cases = OpenCases(opened.path, self._index)
        self._pool = ArrayPool(_MOST_KEPT)
        if opened.shortfall:
            warnings.warn(opened.shortfall, stacklevel=2)
        if not len(self._index):
            warnings.warn(f"no slice of {opened.path} matches the selection", stacklevel=2)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, number: int) -> Any:
        """Return a sample.

        Returns
        -------
        dict
            `image` (channel, row, column) float32; `label` (row, column) if the case has one;
            `case_id`; `slice_index`; `plane` if the output has several. With a `transform`, its
            result.

        Raises
        ------
        IndexError
        CorruptFile
            If the slice cannot be read; names case, slice and file.
        """
        return self._samples([self._opened(number)], self._pool.empty)[0]

    def __getitems__(self, numbers: Iterable[int]) -> list[Any]:
        """Return samples, as `[i]` does, whose arrays are views into one array of the batch.

        Each plane is decoded once, however many windows hold it. Torch's DataLoader reads batches
        with it; its `collate_fn=dataset.collate` spares a copy.

        Raises
        ------
        IndexError
        CorruptFile
        UsageError
            If the slices have several sizes, and there is no `transform`.
        """
        slices = [self._opened(number) for number in numbers]
        return self._samples(slices, self._pool.empty) if slices else []

    def _samples(self, slices: Sequence[OpenedSlice], allocate: Allocate) -> list[Any]:
        sizes = {each.window.shape for each in slices}
        if self.transform is not None and len(sizes) > 1:  # which may make them equal
            return [self._samples([each], allocate)[0] for each in slices]
        arrays = self._read_arrays(slices, allocate=allocate, must_allocate=False)
        samples = batches.samples_of(slices, arrays)
        return samples if self.transform is None else [self.transform(each) for each in samples]

    def read_batch(self, numbers: Iterable[int], allocate: Allocate = np.empty) -> Any:
        """Return slices as one batch, as those of `loader`.

        Parameters
        ----------
        numbers : iterable of int
        allocate : callable
            Makes an array of a shape and a dtype.

        Raises
        ------
        UsageError
            If the slices have several sizes, or only some of the cases have a label.
        """
        slices = [self._opened(number) for number in numbers]
        if self.transform is not None:
            return batches.collate(self._samples(slices, allocate))
        return batches.batch_of(slices, self._read_arrays(slices, allocate=allocate))

    collate = staticmethod(batches.collate)

    def _opened(self, number: int) -> OpenedSlice:
        """Return a slice that is yet to be decoded."""
        n, number = len(self), operator.index(number)
        if not -n <= number < n:
            raise IndexError(f"there are {n} slices, got index {number}")
        row = range(n)[number]
        case_number, slice_index = int(self._index.case[row]), int(self._index.slice_index[row])
        case = self._index.cases[case_number]
        with damage_named(case.case_id, slice_index):
            window = self._open_cases[case_number].window(slice_index, self._window_size)
        return OpenedSlice(
            case_number=case_number,
            case_id=case.case_id,
            slice_index=slice_index,
            plane=case.plane,
            window=window,
        )

    def __iter__(self) -> Iterator[Any]:
        return (self[number] for number in range(len(self)))

    def __repr__(self) -> str:
        return (
            f"SliceDataset({str(self.output_dir)!r}: {plural(len(self), 'slice')} of "
            f"{plural(len(self._index.case_ids), 'case')})"
        )

    @property
    def index(self) -> SliceIndex:
        """Return the index of the selected slices, as columns."""
        return self._index

    @property
    def window_size(self) -> int | None:
        """Return the number of neighbours on each side; None for that of the output."""
        return self._window_size

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Return a name for each modality, such as ``("T1w", "FLAIR")``; empty where unknown.

        With `ct_windows`, for each window of each modality, such as ``40/400 CT``.

        A window repeats them at every offset: channel `c` of a sample is
        ``channel_names[c % len(channel_names)]``, of the slice at offset
        ``c // len(channel_names) - w`` for w neighbours on each side. Names are known when the
        first run into the output has ended.
        """
        return self._channel_names

    @property
    def label_names(self) -> dict[int, str]:
        """Return the names of label values, such as ``{1: "liver"}``; empty where unknown."""
        return dict(self._label_names)

    def weights(
        self,
        foreground: float | None = None,
        *,
        labels: Collection[int] | None = None,
        balanced: bool = False,
    ) -> NDArray[np.float64]:
        """Return sampling weights, one for each slice, without reading slices.

        They sum to 1. Pass them to torch's WeightedRandomSampler.

        Parameters
        ----------
        foreground : float, optional
            Share of draws with foreground: 0.5 for half of them.
        labels : collection of int, optional
            Label values that count as foreground; by default all but 0.
        balanced : bool
            Give every label value, and the slices without labels, the same total weight. A slice
            with several values has the weight of each.

        Raises
        ------
        UsageError
            If both `foreground` and `balanced` are given, or no slice matches.
        """
        return sampling_weights(
            self._index, foreground=foreground, labels=labels, balanced=balanced
        )

    def shuffled(self, *, buffer_size: int = 256, seed: int = 0) -> ShuffledSlices:
        """Return the samples as a stream that reads case after case, for network disks.

        Parameters
        ----------
        buffer_size : int
            Number of samples in memory, from which the next one is drawn at random.
        seed : int
            For the order of cases and the draws.
        """
        return ShuffledSlices(self, buffer_size=buffer_size, seed=seed)

    def loader(
        self,
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
    ) -> SliceLoader:
        """Return an iterable of batches that threads of this process fill ahead.

        There is no process boundary that batches are copied through, as in torch's DataLoader, and
        decoding releases Python's lock.

        Parameters
        ----------
        batch_size, threads, shuffle, seed, sampler, drop_last, pin_memory, rank, num_replicas
            See `SliceLoader`.

        Raises
        ------
        UsageError
            If an argument is wrong, or arguments contradict each other.
        """
        return SliceLoader(
            self,
            batch_size,
            threads=threads,
            shuffle=shuffle,
            seed=seed,
            sampler=sampler,
            drop_last=drop_last,
            pin_memory=pin_memory,
            rank=rank,
            num_replicas=num_replicas,
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Return the columns of slices.csv for the selected slices, as a pandas data frame.

        Raises
        ------
        UsageError
            If pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise UsageError("to_dataframe needs pandas: python -m pip install pandas") from None
        index = self._index
        cases = [index.cases[number] for number in index.case]
        planes = [case.plane for case in cases]
        slices = zip(cases, index.slice_index.tolist(), strict=True)
        return pd.DataFrame(
            {
                "case_id": [case.case_id for case in cases],
                "split": [case.split for case in cases],
                **({"plane": planes} if any(planes) else {}),
                "slice_index": index.slice_index,
                "path": [case.path_of(slice_index) for case, slice_index in slices],
                "foreground": index.foreground,
                "labels": [index.labels(row) for row in range(len(index))],
            }
        )
