"""An output directory opened for reading."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_slicer.config.schema import RunConfig
from dask_slicer.core.splits import by_split
from dask_slicer.core.windows import ZERO_SLICE, window_indices
from dask_slicer.errors import CorruptFile, OutputError, UsageError
from dask_slicer.output.atomic import atomic_write
from dask_slicer.output.directory import existing_folds, existing_splits, output_config
from dask_slicer.output.formats.base import damage_named, read_json, step_of
from dask_slicer.output.formats.npz_reader import NpzReader
from dask_slicer.output.formats.zarr_reader import ZarrReader
from dask_slicer.output.index import SliceIndex, case_reader
from dask_slicer.output.index_table import StoredIndex, open_index
from dask_slicer.output.layout import FAILURE_COLUMNS, FAILURES, SUMMARY, partition_journals
from dask_slicer.planning.names import Names
from dask_slicer.planning.step_lines import step_lines
from dask_slicer.records import why_not_written
from dask_slicer.utils.files import open_file
from dask_slicer.utils.formatting import did_you_mean, first_few, plural
from dask_slicer.utils.repr_html import html_card, html_facts

# Slices of a volume for each that was kept: more is damage, for which memory is not reserved.
_MOST_DROPPED = 2000
_REWRITE = "; the same run command writes it again"


@dataclass(frozen=True)
class Output:
    """The output of a run: planned, written and failed cases, volumes, and the summary.

    Files are read when they are first needed.

    Attributes
    ----------
    path : Path
    config : RunConfig
        The settings of the run.
    """

    path: Path
    config: RunConfig

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Return dataset_info.json; empty until the first run has ended."""
        try:
            return read_json(self.path / SUMMARY)
        except FileNotFoundError:
            return {}
        except CorruptFile as error:
            raise OutputError(f"{error}{_REWRITE}") from None

    @cached_property
    def _names(self) -> Names:
        try:
            return Names.parse(self.summary)
        except ValueError as error:
            raise OutputError(f"{self.path / SUMMARY} is damaged ({error}){_REWRITE}") from None

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Return a name for each modality, such as T1w; empty where the summary has none.

        With `ct_windows`, for each window of each modality, such as ``40/400 CT``.
        """
        config, names = self.config, self._names.channels
        if not config.ct_windows:
            return names
        n_modalities = self.summary.get("total_channels", 0) // config.n_channels(1)
        if not names and n_modalities > 1:
            names = tuple(f"modality {number}" for number in range(n_modalities))
        modalities = names or ("",) * n_modalities
        return tuple(f"{w} {name}".strip() for w in config.ct_windows for name in modalities)

    @property
    def label_names(self) -> dict[int, str]:
        """Return the names of label values, ``{1: "liver"}``; empty where the summary has none."""
        return dict(self._names.labels)

    @cached_property
    def splits(self) -> dict[str, list[str]]:
        """Return the planned case ids of each split, including failed cases."""
        return by_split(existing_splits(self.path))

    @cached_property
    def folds(self) -> list[dict[str, list[str]]]:
        """Return the case ids in train and val of each fold; empty without splits_final.json."""
        return existing_folds(self.path) or []

    @cached_property
    def failures(self) -> list[dict[str, str]]:
        """Return the failed cases, each with case_id, step, kind and message."""
        path = self.path / FAILURES
        try:
            with io.TextIOWrapper(open_file(path), encoding="utf-8", newline="") as lines:
                failures = list(csv.DictReader(lines, strict=True))
        except FileNotFoundError:
            return []
        except (ValueError, csv.Error) as error:
            raise OutputError(f"{path} is damaged ({error}){_REWRITE}") from None
        if any(None in map(row.get, FAILURE_COLUMNS) for row in failures):
            raise OutputError(f"{path} is damaged (a column is missing){_REWRITE}")
        return failures

    @cached_property
    def stored_index(self) -> StoredIndex:
        """Return the slices, to be read part by part."""
        return open_index(self.path, self.config)

    @cached_property
    def index(self) -> SliceIndex:
        """Return the slices, as columns."""
        return self.stored_index.whole()

    @cached_property
    def cases(self) -> list[str]:
        """Return the ids of the cases that have slices."""
        return list(dict.fromkeys(case.case_id for case in self.stored_index.cases))

    @property
    def shortfall(self) -> str:
        """Return one line about missing cases; empty if every planned case is written."""
        planned = sum(map(len, self.splits.values()))
        # A case without a kept slice is written, but not in the index.
        listed = self.summary.get("num_cases", 0)
        listed = listed if isinstance(listed, int) else 0
        written = self.stored_index.n_committed or max(len(self.cases), listed)
        if written >= planned:
            return ""
        failed = len(self.failures)
        reason = why_not_written(failed, planned - written - failed)
        return f"{self.path} has slices of {written} of {plural(planned, 'case')}: {reason}"

    def volume(
        self, case_id: str, *, plane: str | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return the normalised image of a case, put together from its slices, and its affine.

        If `--min_foreground` dropped slices from an .npz output, planes that are in no window are
        NaN.

        Parameters
        ----------
        case_id : str
        plane : str, optional
            Whose slices; needed if the output has several planes.

        Returns
        -------
        volume : (slice, row, column) ndarray of float32
            With several modalities, (modality, slice, row, column).
        affine : (4, 4) ndarray of float64
            (slice, row, column, 1) → RAS+ mm.

        Raises
        ------
        UsageError
            If the output has no slices of the case, or not in this plane.
        CorruptFile
        """
        with self._opened(case_id, plane) as (reader, kept):
            if isinstance(reader, ZarrReader):
                planes, affine = reader.planes(list(range(reader.shape[0]))), reader.affine
            else:
                planes, affine = _planes_of_windows(reader, kept)
        return planes[:, 0] if planes.shape[1] == 1 else planes.swapaxes(0, 1), affine

    def label(
        self, case_id: str, *, plane: str | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Return the label map of a case, put together from its slices, and its affine.

        If `--min_foreground` dropped slices from an .npz output, these slices are -1 (or, if labels
        are negative, 1 below the lowest).

        Parameters
        ----------
        case_id : str
        plane : str, optional
            Whose slices; needed if the output has several planes.

        Returns
        -------
        label : (slice, row, column) ndarray of int32
            Whatever integers are on disk; 0 is background. `label_names` has names of the values.
        affine : (4, 4) ndarray of float64
            (slice, row, column, 1) → RAS+ mm, the same as that of `volume`.

        Raises
        ------
        UsageError
            If the output has no slices of the case, or not in this plane, or the case has no label.
        CorruptFile
        """
        with self._opened(case_id, plane) as (reader, kept):
            metadata = reader.metadata(kept[0])
            shape = metadata["shape"]["label"]
            if shape is None:
                raise UsageError(f"{case_id} has no label in {self.path}")
            n_slices = _n_slices(metadata, kept)
            label = np.zeros((n_slices, *shape), np.int32)
            stored = range(n_slices) if isinstance(reader, ZarrReader) else kept
            for slice_index in stored:
                _, pixels = reader.stored(slice_index)
                if pixels is None:
                    raise CorruptFile(f"slice {slice_index} has lost its label")
                label[slice_index] = pixels
            dropped = sorted(set(range(n_slices)).difference(stored))
            label[dropped] = label.min() - 1
        return label, np.array(metadata["affine"])

    @contextmanager
    def _opened(
        self, case_id: str, plane: str | None = None
    ) -> Iterator[tuple[NpzReader | ZarrReader, list[int]]]:
        """Open a case in a plane; yield its reader, and the indices of its kept slices."""
        index, planes = self.index, self.config.planes
        if plane is None and len(planes) > 1:
            raise UsageError(f"{self.path} has slices of {', '.join(planes)}; give plane")
        check_plane(self, plane)
        own = "" if len(planes) == 1 else plane
        number = next(
            (
                n
                for n, case in enumerate(index.cases)
                if (case.case_id, case.plane) == (case_id, own)
            ),
            None,
        )
        if number is None:
            failed = case_id in {failure["case_id"] for failure in self.failures}
            hint = f"; it failed, see {FAILURES}" if failed else did_you_mean(case_id, self.cases)
            if not failed and any(case_id in cases for cases in self.splits.values()):
                hint = ": it is not written yet, or the run kept none of them"
            if plane is not None and case_id in self.cases:
                hint = f" in {plane}"
            raise UsageError(f"no slices of {case_id} in {self.path}{hint}")
        with damage_named(case_id, None):
            reader = case_reader(self.path, index.cases[number])
            yield reader, index.slice_index[index.case == number].tolist()

    def __repr__(self) -> str:
        return f"Output({str(self.path)!r}: {', '.join(f'{k} {v}' for k, v in self._facts())})"

    def _repr_html_(self) -> str:
        steps = (("step", line) for line in step_lines(self.config))
        return html_card(f"Output {self.path}", html_facts([*self._facts(), *steps]))

    def _facts(self) -> list[tuple[str, object]]:
        index = self.index
        splits = [*{case.case_id: case.split for case in index.cases}.values()]
        per_split = ", ".join(f"{split} {splits.count(split)}" for split in self.splits)
        return [
            ("cases", f"{len(splits)} ({per_split})"),
            ("slices", len(index)),
            ("failed", len(self.failures)),
            ("format", f"{self.config.format}, {self.config.dtype}"),
            ("plane", ", ".join(self.config.planes)),
            ("window_size", self.config.window_size),
        ]


def open_output(output_dir: str | Path) -> Output:
    """Open an output directory for reading.

    Parameters
    ----------
    output_dir : str or Path
        The output of a run; it may have been moved.

    Returns
    -------
    Output

    Raises
    ------
    OutputError
        If it is no output, was written by a newer version, or has partitions that are not merged.
    """
    path = Path(output_dir).absolute()
    config = output_config(path)
    if left := [journal.name for journal in partition_journals(path)]:
        raise OutputError(
            f"{path} has partitions that are not merged yet ({first_few(left)}): when all "
            f"have ended, run dask-slicer merge {path}"
        )
    return Output(path, config)


def check_cases(output: Output, wanted: Collection[str], *, split: str | None = None) -> None:
    """Raise UsageError if a case failed, is unknown, or is in another split than `split`."""
    splits = {case_id: name for name, ids in output.splits.items() for case_id in ids}
    splits |= {case.case_id: case.split for case in output.stored_index.cases}
    failed = {failure["case_id"] for failure in output.failures}
    for case_id in sorted(wanted):
        if case_id in failed:
            raise UsageError(f"{case_id} failed, see {output.path / FAILURES}")
        if case_id not in splits:
            raise UsageError(f"no case {case_id} in {output.path}{did_you_mean(case_id, splits)}")
        if split not in (None, splits[case_id]):
            raise UsageError(
                f"{case_id} is in {splits[case_id]}, not in {split}; choose split "
                f"{splits[case_id]}, or none"
            )


def check_plane(output: Output, plane: str | None) -> None:
    """Raise UsageError if an output has no slices in a plane."""
    planes = output.config.planes
    if plane is not None and plane not in planes:
        raise UsageError(f"{output.path} has slices of {', '.join(planes)}, not of {plane}")


def _n_slices(metadata: Mapping[str, Any], kept: Sequence[int]) -> int:
    """Return the number of slices of a volume; raise CorruptFile if its files cannot back it."""
    n_slices = metadata["total_slices"]
    if type(n_slices) is not int or not kept[-1] < n_slices <= _MOST_DROPPED * len(kept):
        raise CorruptFile(f"{len(kept)} slices on disk are not of a volume of {n_slices}")
    return n_slices


def _planes_of_windows(
    reader: NpzReader, kept: list[int]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return the planes of an .npz case, (slice, modality, row, column), and its affine."""
    metadata = reader.metadata(kept[0])
    n_slices, step = _n_slices(metadata, kept), step_of(metadata)
    planes = np.full((n_slices, *reader.read(kept[0], 0)[0].shape), np.nan, np.float32)
    for slice_index in kept:
        window, _ = reader.read(slice_index, None)
        indices = window_indices(
            slice_index,
            n_slices=n_slices,
            window_size=metadata["window_size"],
            padding_mode="zero",  # which tells what is padding
            step=step,
        )
        inside = indices != ZERO_SLICE
        planes[indices[inside]] = window.reshape(-1, *planes.shape[1:])[inside]
    return planes, np.array(metadata["affine"])


# -- files that the user names ---------------------------------------------------------------------


def user_file_path(
    output_dir: Path, file: Path | None, *, name: str, suffixes: Collection[str]
) -> Path:
    """Return the path of `--file`, by default `name` in the output; raise UsageError if unfit."""
    if file is None:
        return output_dir / name
    try:
        file, home = file.resolve(), output_dir.resolve()
        is_directory = file.is_dir()
    except OSError as error:
        raise _not_written(file, error) from None
    if is_directory:
        raise UsageError(f"--file {file} is a directory; name a file in it")
    endings = " or ".join(suffixes)
    has_ending = file.suffix.lower() in suffixes
    if file.is_relative_to(home) and (file.parent != home or not has_ending):
        raise UsageError(
            f"--file {file} could be a file of the output itself; choose a place outside "
            f"{output_dir}, or directly in it with the ending {endings}"
        )
    if not has_ending:
        raise UsageError(f"--file must end with {endings}, got {file.name}")
    return file


def write_user_file(file: Path, content: bytes) -> None:
    """Write the file of `--file`; raise UsageError if it fails."""
    try:
        with atomic_write(file) as stream:
            stream.write(content)
    except OSError as error:
        raise _not_written(file, error) from None


def _not_written(file: Path, error: OSError) -> UsageError:
    reason = (error.strerror or str(error)).lower()
    return UsageError(f"cannot write {file}: {reason}; name another place with --file")
