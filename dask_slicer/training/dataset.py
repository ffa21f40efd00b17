"""Map-style dataset of slices for training, from npz files, PNG images or Zarr stores."""

from __future__ import annotations

import operator
import random
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.splits import SPLITS
from dask_slicer.errors import UsageError
from dask_slicer.output.folds import fold_cases
from dask_slicer.output.formats import npz, png_reader, zarr_reader  # noqa: F401, before loaders are forked
from dask_slicer.output.formats.base import CaseReader, damage_named
from dask_slicer.output.index import SliceIndex, case_reader
from dask_slicer.output.output import Output, check_cases, check_plane, open_output
from dask_slicer.utils.formatting import plural

if TYPE_CHECKING:
    import pandas as pd


Sample = dict[str, Any]


class _Default:
    """The default of `split`: the same value, given by the user, is another object."""

    def __repr__(self) -> str:
        return "'train'"


_TRAIN: Any = _Default()
# Cases that stay open; a case in a Zarr store has two mapped files.
_MOST_OPEN = 64


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
    ) -> None:
        if fold is not None and split is not _TRAIN:
            raise UsageError(
                f"fold and split both choose cases, got {fold} and {split}; give fold alone, with "
                "part='val' for its cases for validation"
            )
        if fold is None and part is not None:
            raise UsageError(f"part needs fold, the number of a fold, got part {part}")
        if split is _TRAIN:
            split = "train" if fold is None else None
        if split is not None and split not in SPLITS:
            raise UsageError(f"split must be one of {', '.join(SPLITS)} or None, got {split}")
        if channels not in ("window", "center"):
            raise UsageError(f"channels must be window or center, got {channels}")
        if window_size is not None and (int(window_size) != window_size or window_size < 0):
            raise UsageError(f"window_size must be an integer from 0 up, got {window_size}")
        for name, wanted in (("cases", cases), ("labels", labels)):
            if isinstance(wanted, str | int):
                raise UsageError(f"{name} must be a list, got {wanted!r}")
        if labels is not None and 0 in labels:
            raise UsageError("labels are values other than 0, which is background")
        output = open_output(output_dir)
        self.output_dir = output.path
        self.transform = transform
        self._channel_names, self._label_names = output.channel_names, output.label_names
        self._window_size = 0 if channels == "center" else window_size
        written = output.config.window_size
        if output.config.format != "zarr" and (self._window_size or 0) > written:
            raise UsageError(
                f"{output.path} was written with --window_size {written}, so window_size "
                f"{window_size} is too large; make the slices again with --window_size "
                f"{window_size}, or with --format zarr"
            )
        check_plane(output, plane)
        self._index = _select(output, split, cases, labels, min_foreground)
        if plane is not None and output.config.plane_folders:
            self._index = self._index.of_cases(lambda case: case.plane == plane)
        if fold is not None:
            in_fold = fold_cases(output, fold, part or "train")
            if apart := sorted(set(cases or ()) - in_fold):
                raise UsageError(f"{apart[0]} is not in {part or 'train'} of fold {fold}")
            self._index = self._index.of_cases(lambda case: case.case_id in in_fold)
        self._readers: OrderedDict[int, CaseReader] = OrderedDict()
        if output.shortfall:
            warnings.warn(output.shortfall, stacklevel=2)
        if not len(self._index):
            warnings.warn(f"no slice of {output.path} matches the selection", stacklevel=2)

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
        n, number = len(self), operator.index(number)
        if not -n <= number < n:
            raise IndexError(f"there are {n} slices, got index {number}")
        row = range(n)[number]
        case_number, slice_index = int(self._index.case[row]), int(self._index.slice_index[row])
        case = self._index.cases[case_number]
        with damage_named(case.case_id, slice_index):
            image, label = self._reader(case_number).read(slice_index, self._window_size)
        sample: Sample = {"image": image}
        if label is not None:
            sample["label"] = label
        sample |= {"case_id": case.case_id, "slice_index": slice_index}
        if case.plane:
            sample["plane"] = case.plane
        return sample if self.transform is None else self.transform(sample)

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
        if foreground is not None and balanced:
            raise UsageError("set foreground or balanced, not both")
        if labels is not None and foreground is None:
            raise UsageError(
                "labels needs foreground, the share of draws with these labels, such as 0.5"
            )
        if balanced:
            return self._index.balanced_weights()
        if foreground is None:
            return np.full(len(self), 1.0 / max(len(self), 1))
        if not 0 <= foreground <= 1:
            raise UsageError(f"foreground must be between 0 and 1, got {foreground:g}")
        index = self._index
        has_foreground = (
            np.diff(index.label_ends) > 0 if labels is None else index.rows_with(labels)
        )
        weights = np.zeros(len(self))
        for kind, share, rows in (
            ("with", foreground, has_foreground),
            ("without", 1 - foreground, ~has_foreground),
        ):
            if share and not rows.any():
                raise UsageError(
                    f"{share:.0%} of the draws should be slices {kind} foreground, but there are "
                    "none"
                )
            weights[rows] = share / max(int(rows.sum()), 1)
        return weights

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

    def _reader(self, case_number: int) -> CaseReader:
        reader = self._readers.get(case_number)
        if reader is None:
            reader = case_reader(self.output_dir, self._index.cases[case_number])
            self._readers[case_number] = reader
            if len(self._readers) > _MOST_OPEN:
                self._readers.popitem(last=False)
        if case_number in self._readers:  # unless another thread just closed it
            self._readers.move_to_end(case_number)
        return reader

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_readers": OrderedDict()}


class ShuffledSlices:
    """Samples as a stream: cases in random order, slices of a few of them mixed in a buffer.

    Each case is read from front to back, once per epoch; every iteration is one epoch. In torch's
    DataLoader, every worker reads a part of the cases, and torch's seed changes the order. Import
    torch before you create the stream with `SliceDataset.shuffled`.
    """

    def __init__(self, dataset: SliceDataset, *, buffer_size: int, seed: int) -> None:
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
        index = self.dataset._index
        cases = list(range(len(index.cases)))
        order.shuffle(cases)
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


def _select(
    output: Output,
    split: str | None,
    cases: Collection[str] | None,
    labels: Collection[int] | None,
    min_foreground: float | None,
) -> SliceIndex:
    index = output.index.of_cases(lambda case: split in (None, case.split))
    if cases is not None:
        wanted = set(cases)
        check_cases(output, wanted, split=split)
        index = index.of_cases(lambda case: case.case_id in wanted)
    rows = np.ones(len(index), dtype=bool)
    if labels is not None:
        rows &= index.rows_with(labels)
    if min_foreground is not None:
        rows &= index.foreground >= min_foreground
    return index.select(rows)
