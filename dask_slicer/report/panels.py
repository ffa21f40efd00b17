"""Panels of a figure: slices of an output, and their grey levels."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.splits import SPLITS
from dask_slicer.errors import CaseError, CorruptFile, UsageError
from dask_slicer.output.formats.base import CaseReader, damage
from dask_slicer.output.index import IndexedCase, SliceIndex, case_reader
from dask_slicer.output.output import Output, check_cases
from dask_slicer.report.figure_layout import Panel
from dask_slicer.report.montage import choose_slices, display_range, shares, sides, spread, to_grey
from dask_slicer.utils.formatting import first_few, plural

# Slices of a case that its range of greys is taken from.
_SAMPLED = 5


def choose_rows(
    output: Output,
    index: SliceIndex,
    *,
    cases: Collection[str] | None,
    split: str | None,
    slices: Collection[int] | None,
    n: int,
) -> list[int]:
    """Return about `n` rows of an index, spread over splits, cases and slices; labelled ones first.

    Named `cases` are shown once at least, named `slices` of every case. `index` is that of `output`
    or a selection of it. Raises UsageError, with the reason, if there are none.
    """
    _check_split(output, index, split)
    numbers = _numbers(output, index, cases, split)
    if slices is not None:
        return _rows_of(output, index, numbers, sorted(set(slices)), cases is not None, n)
    n_of = np.bincount(index.case, minlength=len(index.cases))
    if cases is not None:
        chosen = dict(
            zip(numbers, shares(n_of[numbers].tolist(), max(n, len(numbers))), strict=True)
        )
    else:
        chosen = _spread_over_splits(index, numbers, n_of, n)
    rows = []
    for number, wanted in chosen.items():
        of_case = np.flatnonzero(index.case == number)
        rows += [int(of_case[place]) for place in choose_slices(index.foreground[of_case], wanted)]
    return rows


def _check_split(output: Output, index: SliceIndex, split: str | None) -> None:
    """Raise UsageError if there is nothing to show, in a split or at all."""
    if split not in (None, *SPLITS):
        raise UsageError(f"split must be one of {', '.join(SPLITS)}, got {split}")
    per_split = np.zeros(len(SPLITS), dtype=int)
    for number, n_slices in enumerate(np.bincount(index.case, minlength=len(index.cases))):
        per_split[SPLITS.index(index.cases[number].split)] += n_slices
    if not len(index):
        if len(output.index):
            raise UsageError(f"no slice of {output.path} matches the selection")
        raise UsageError(_why_none(output))
    if split is not None and not per_split[SPLITS.index(split)]:
        others = [
            f"{name} ({plural(int(n), 'slice')})"
            for name, n in zip(SPLITS, per_split, strict=True)
            if n
        ]
        raise UsageError(
            f"{output.path} has no slices in {split}; it has some in {first_few(others)}"
        )


def _why_none(output: Output) -> str:
    why = output.shortfall or "every slice was dropped, see --min_foreground"
    why = why.removeprefix(f"{output.path} has ")
    return f"{output.path} has no slices to show: {why}"


def _numbers(
    output: Output, index: SliceIndex, cases: Collection[str] | None, split: str | None
) -> list[int]:
    """Return the numbers of the selected cases."""
    if cases is None:
        return [n for n, case in enumerate(index.cases) if split in (None, case.split)]
    wanted = {cases} if isinstance(cases, str) else set(cases)
    check_cases(output, wanted, split=split)
    known = {case.case_id: number for number, case in enumerate(index.cases)}
    for case_id in sorted(wanted - set(known)):
        raise UsageError(
            f"case {case_id} has no slices in {output.path}: it has not been run yet, or no slice "
            "was kept"
        )
    return sorted(known[case_id] for case_id in wanted)


def _spread_over_splits(
    index: SliceIndex, numbers: list[int], n_of: NDArray[np.intp], n: int
) -> dict[int, int]:
    """Return the number of slices to show of each case, by the number of the case."""
    of_split = {
        split: [number for number in numbers if index.cases[number].split == split]
        for split in SPLITS
    }
    most = [int(n_of[cases].sum()) if cases else 0 for cases in of_split.values()]
    n_cases = [len(cases) for cases in of_split.values()]
    chosen: dict[int, int] = {}
    for cases, wanted in zip(of_split.values(), shares(most, n, weights=n_cases), strict=True):
        shown = [cases[place] for place in spread(len(cases), wanted)]
        chosen |= dict(zip(shown, shares(n_of[shown].tolist(), wanted), strict=True))
    return chosen


def _rows_of(
    output: Output, index: SliceIndex, numbers: list[int], slices: list[int], named: bool, n: int
) -> list[int]:
    """Return the rows of these slices: of every case if `named`, else of a few that have them."""
    if not slices:
        raise UsageError("slices must have at least one slice index")
    rows = np.flatnonzero(np.isin(index.slice_index, slices) & np.isin(index.case, numbers))
    n_found = np.bincount(index.case[rows], minlength=len(index.cases))
    complete = [number for number in numbers if n_found[number] == len(slices)]
    if named and len(complete) < len(numbers):
        number = next(number for number in numbers if number not in complete)
        raise UsageError(_why_slices_missing(output, index, number, slices))
    if not complete:
        known = index.slice_index[np.isin(index.case, numbers)]
        raise UsageError(
            f"no case has {_slices_in_words(slices)}: "
            f"slices in {output.path} are numbered {known.min()} to {known.max()}"
        )
    if not named:
        # Count one slice for each case, so that enough cases are chosen.
        chosen = _spread_over_splits(index, complete, n_found.clip(max=1), max(n // len(slices), 1))
        complete = sorted(chosen)
    return [int(row) for row in rows[np.isin(index.case[rows], complete)]]


def _why_slices_missing(output: Output, index: SliceIndex, number: int, slices: list[int]) -> str:
    """Return why a case lacks some of these slices: out of range, or dropped."""
    case = index.cases[number]
    kept = index.slice_index[index.case == number]
    with _named_damage(case, int(kept[0])):
        total = int(case_reader(output.path, case).metadata(int(kept[0]))["total_slices"])
    outside = [slice_index for slice_index in slices if not 0 <= slice_index < total]
    if outside:
        return (
            f"case {case.case_id} has no {_slices_in_words(outside)}: "
            f"it has {plural(total, 'slice')}, 0 to {total - 1}"
        )
    dropped = sorted(set(slices) - set(kept.tolist()))
    return (
        f"case {case.case_id} has no {_slices_in_words(dropped)}: dropped by --min_foreground "
        f"{output.config.min_foreground:g}; {plural(len(kept), 'slice')} of {total} "
        f"were kept, from {kept.min()} to {kept.max()}"
    )


def _slices_in_words(slices: list[int]) -> str:
    return ("slice " if len(slices) == 1 else "slices ") + first_few(
        [str(number) for number in slices]
    )


# -- reading ---------------------------------------------------------------------------------------


def read_panels(
    output: Output,
    index: SliceIndex,
    rows: Iterable[int],
    *,
    window_size: int | None = None,
    labels: bool = True,
) -> list[Panel]:
    """Read the slices in some rows of an index, those of a case together, as panels.

    `window_size` is the number of neighbours on each side, by default as many as were written.
    Raises CorruptFile, which names case, slice and file.
    """
    panels = []
    for number, of_case in groupby(rows, key=lambda row: int(index.case[row])):
        case = index.cases[number]
        with _named_damage(case, None):
            reader = case_reader(output.path, case)
        ranges = _ranges(reader, case, output.index)
        for row in of_case:
            slice_index = int(index.slice_index[row])
            with _named_damage(case, slice_index):
                panel = _read_panel(reader, case, slice_index, ranges, window_size)
            panels.append(panel if labels else replace(panel, label=None))
    return panels


def _ranges(
    reader: CaseReader, case: IndexedCase, index: SliceIndex
) -> tuple[tuple[float, float], ...]:
    """Return black and white of every modality, the same for every choice of slices of the case."""
    written = index.slice_index[index.case == index.cases.index(case)]
    sampled = []
    for place in spread(len(written), _SAMPLED):
        slice_index = int(written[place])
        with _named_damage(case, slice_index):
            sampled.append(reader.read(slice_index, 0)[0])
    return tuple(display_range(modality) for modality in np.stack(sampled, axis=1))


def _read_panel(
    reader: CaseReader,
    case: IndexedCase,
    slice_index: int,
    ranges: tuple[tuple[float, float], ...],
    window_size: int | None,
) -> Panel:
    metadata = reader.metadata(slice_index)
    image, label = reader.read(slice_index, window_size)
    # Channels are ordered by offset, and within an offset by modality.
    by_modality = image.reshape(-1, len(ranges), *image.shape[1:]).swapaxes(0, 1)
    grey = [
        to_grey(window, low, high) for window, (low, high) in zip(by_modality, ranges, strict=True)
    ]
    _, per_row, per_column = metadata["spacing"]
    return Panel(
        case_id=case.case_id,
        split=case.split,
        slice_index=slice_index,
        total_slices=metadata["total_slices"],
        image=np.array(grey),
        label=label,
        has_label=label is not None,
        spacing=(per_row, per_column),
        sides=sides(np.array(metadata["affine"], dtype=np.float64)),
    )


@contextmanager
def _named_damage(case: IndexedCase, slice_index: int | None) -> Iterator[None]:
    """Turn an error into one that names the damaged case and slice, and what to do."""
    try:
        yield
    except KeyError as error:
        lacking = CorruptFile(f"its metadata lacks {error}")
        raise damage(case.case_id, slice_index, lacking) from None
    except (CaseError, OSError) as error:
        raise damage(case.case_id, slice_index, error) from None
