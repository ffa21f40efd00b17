"""An output directory opened for reading."""

from __future__ import annotations

import csv
import html
import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_slicer.config.schema import RunConfig
from dask_slicer.errors import CaseError, OutputError, UsageError
from dask_slicer.output.atomic import not_written
from dask_slicer.output.directory import check_merged, existing_splits, own_config
from dask_slicer.output.formats.base import damage
from dask_slicer.output.formats.npz import NpzReader
from dask_slicer.output.formats.zarr_reader import ZarrReader
from dask_slicer.output.index import SliceIndex, read_index
from dask_slicer.output.layout import FAILURES, SUMMARY
from dask_slicer.utils.formatting import did_you_mean, plural, why_not_written

_OF_A_FAILURE = ("case_id", "step", "kind", "message")


@dataclass(frozen=True)
class Output:
    """What `dask-slicer run` wrote into a directory; nothing is read before it is asked for.

    Attributes
    ----------
    path : Path
    config : RunConfig
        That it was made with.
    """

    path: Path
    config: RunConfig

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Return dataset_info.json; empty while a first run has not ended."""
        return _json(self.path / SUMMARY)

    @cached_property
    def splits(self) -> dict[str, list[str]]:
        """Return the planned case ids of each split, failed cases included."""
        splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        for case_id, split in existing_splits(self.path).items():
            splits[split].append(case_id)
        return splits

    @cached_property
    def failures(self) -> list[dict[str, str]]:
        """Return the failed cases, each with case_id, step, kind and message."""
        path = self.path / FAILURES
        try:
            with path.open(encoding="utf-8", newline="") as lines:
                found = list(csv.DictReader(lines, strict=True))
        except FileNotFoundError:
            return []
        except (ValueError, csv.Error) as error:
            raise _damaged(path, str(error)) from None
        if any(None in (row.get(name) for name in _OF_A_FAILURE) for row in found):
            raise _damaged(path, "a column is missing")
        return found

    @cached_property
    def index(self) -> SliceIndex:
        """Return which slices there are."""
        return read_index(self.path)

    @cached_property
    def cases(self) -> list[str]:
        """Return the ids of the cases that slices were written of."""
        return [case.case_id for case in self.index.cases]

    @property
    def shortfall(self) -> str:
        """Return what is missing, in one line; empty where every planned case is there."""
        planned = sum(map(len, self.splits.values()))
        # A case of which no slice was kept is written, and not in the index.
        written = self.index.n_committed or max(len(self.cases), self.summary.get("num_cases", 0))
        if written >= planned:
            return ""
        failed = len(self.failures)
        why = why_not_written(failed, planned - written - failed)
        return f"{self.path} has slices of {written} of {plural(planned, 'case')}: {why}"

    def volume(self, case_id: str) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return a case's image as it was before it was sliced, normalised, and its affine.

        Of .npz slices that were dropped (`--min_foreground`), those are there that a window holds;
        planes that none holds are NaN.

        Parameters
        ----------
        case_id : str

        Returns
        -------
        volume : (slice, row, column) ndarray of float32
            With several modalities, (modality, slice, row, column).
        affine : (4, 4) ndarray of float64
            (slice, row, column, 1) → RAS+ mm.

        Raises
        ------
        UsageError
            If the case is not there.
        CorruptFile
        """
        index = self.index
        number = next((n for n, case in enumerate(index.cases) if case.case_id == case_id), None)
        if number is None:
            failed = case_id in {failure["case_id"] for failure in self.failures}
            why = f"; it failed, see {FAILURES}" if failed else did_you_mean(case_id, self.cases)
            raise UsageError(f"no slices of {case_id} in {self.path}{why}")
        try:
            return self._volume(number)
        except (CaseError, OSError) as error:
            raise damage(case_id, None, error) from None

    def _volume(self, number: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        index = self.index
        case = index.cases[number]
        if not case.digits:
            zarr_case = ZarrReader(self.path / case.folder)
            planes = zarr_case.planes(list(range(zarr_case.shape[0])))
            return _by_modality(planes), zarr_case.affine
        npz_case = NpzReader(lambda slice_index: self.path / case.path_of(slice_index))
        kept = index.slice_index[index.case == number].tolist()
        metadata = npz_case.metadata(kept[0])
        n_slices, window_size = metadata["total_slices"], metadata["window_size"]
        planes = np.full((n_slices, *npz_case.read(kept[0], 0)[0].shape), np.nan, np.float32)
        n_modalities = planes.shape[1]
        for slice_index in kept:
            window, _ = npz_case.read(slice_index, None)
            for offset in range(-window_size, window_size + 1):
                if 0 <= slice_index + offset < n_slices:
                    first = (offset + window_size) * n_modalities
                    planes[slice_index + offset] = window[first : first + n_modalities]
        return _by_modality(planes), np.array(metadata["affine"])

    def check_cases(self, wanted: Collection[str], *, split: str | None = None) -> None:
        """Raise if slices of a case are asked for that has none here, and say why.

        Parameters
        ----------
        wanted : collection of str
            Case ids.
        split : {"train", "val", "test"}, optional
            In which they should be.

        Raises
        ------
        UsageError
            If it failed, is not known, or is in another split.
        """
        splits = {case_id: name for name, ids in self.splits.items() for case_id in ids}
        splits |= {case.case_id: case.split for case in self.index.cases}
        failed = {failure["case_id"] for failure in self.failures}
        for case_id in sorted(wanted):
            if case_id in failed:
                raise UsageError(f"{case_id} failed, see {self.path / FAILURES}")
            if case_id not in splits:
                raise UsageError(f"no case {case_id} in {self.path}{did_you_mean(case_id, splits)}")
            if split not in (None, splits[case_id]):
                raise UsageError(
                    f"{case_id} is in {splits[case_id]}, not in {split}; split=None has all"
                )

    def check_window_size(self, window_size: int | None) -> None:
        """Raise if no window of this size can be read from it.

        Parameters
        ----------
        window_size : int or None
            Neighbours on each side; None for what was written.

        Raises
        ------
        UsageError
        """
        written = self.config.window_size
        if self.config.format == "npz" and window_size is not None and window_size > written:
            raise UsageError(
                f"{self.path} has .npz windows of --window_size {written}; "
                f"{window_size} needs --format zarr, or slices that were written with it"
            )

    def __repr__(self) -> str:
        return f"Output({str(self.path)!r}: {', '.join(f'{k} {v}' for k, v in self._facts())})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in self._facts()
        )
        return f"<table><caption>{html.escape(str(self.path))}</caption>{rows}</table>"

    def _facts(self) -> list[tuple[str, str]]:
        index = self.index
        splits = [case.split for case in index.cases]
        per_split = ", ".join(f"{split} {splits.count(split)}" for split in self.splits)
        return [
            ("cases", f"{len(index.cases)} ({per_split})"),
            ("slices", str(len(index))),
            ("failed", str(len(self.failures))),
            ("format", f"{self.config.format}, {self.config.dtype}"),
            ("plane", self.config.plane),
            ("window_size", str(self.config.window_size)),
        ]


def open_output(output_dir: str | Path) -> Output:
    """Return an output directory, to be looked at.

    Parameters
    ----------
    output_dir : str or Path
        That `dask-slicer run` wrote to; it may have been moved.

    Returns
    -------
    Output

    Raises
    ------
    OutputError
        If it is not ours, written by a newer version, or by shares that are not merged yet.
    """
    path = Path(output_dir).absolute()
    config = own_config(path)
    check_merged(path)
    return Output(path, config)


def _by_modality(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    return planes[:, 0] if planes.shape[1] == 1 else planes.swapaxes(0, 1)


def _damaged(path: Path, why: str) -> OutputError:
    return OutputError(f"{path} is damaged ({why}); the same run command writes it anew")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(found, dict):
        raise _damaged(path, "it holds no object")
    return found


def place_for(output_dir: Path, file: Path | None, *, name: str, suffixes: Collection[str]) -> Path:
    """Return where a file is to be, with the directories that symlinks lead to.

    Parameters
    ----------
    output_dir : Path
    file : Path or None
        Where the user wants it.
    name : str
        In the output, where nothing else is wanted.
    suffixes : collection of str
        That a file at the top of the output may end with; none of its own does.

    Raises
    ------
    UsageError
        If it is a directory, or would be among the output's own files.
    """
    if file is None:
        return output_dir / name
    try:
        file, home = file.resolve(), output_dir.resolve()
        is_directory = file.is_dir()
    except OSError as error:
        raise not_written(file, error) from None
    if is_directory:
        raise UsageError(f"--file {file} is a directory; name a file in it")
    if file.is_relative_to(home) and (file.parent != home or file.suffix.lower() not in suffixes):
        raise UsageError(
            f"--file {file} is among files of the output; name one at its top that ends in "
            f"{' or '.join(suffixes)}"
        )
    return file
