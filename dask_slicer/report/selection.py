"""Selection of slices for pictures and samples, spread over splits, cases and volumes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.splits import SPLITS
from dask_slicer.errors import UsageError
from dask_slicer.output.formats.base import damage_named
from dask_slicer.output.index import IndexedCase, SliceIndex, case_reader
from dask_slicer.output.output import Output, check_cases
from dask_slicer.utils.formatting import first_few, plural

# The golden ratio spreads any number of steps evenly over a circle.
GOLDEN = (math.sqrt(5) - 1) / 2


def spread(length: int, n: int) -> list[int]:
    """Return `n` of the places in a row of `length`, evenly spread, or all of them.

    >>> spread(9, 1), spread(9, 3), spread(2, 5)
    ([4], [1, 4, 7], [0, 1])
    """
    if n >= length:
        return list(range(length))
    return [(2 * place + 1) * length // (2 * n) for place in range(n)]


def shares(most: Sequence[int], n: int, *, weights: Sequence[float] | None = None) -> list[int]:
    """Return how many of `n` each part gets: by weight, at most `most`, one each before a second.

    >>> shares([90, 90, 90], 10, weights=[8, 1, 1]), shares([50, 1, 0], 4), shares([5, 5, 5], 2)
    ([8, 1, 1], [3, 1, 0], [1, 1, 0])
    """
    weights = [1.0] * len(most) if weights is None else weights
    taken = [0] * len(most)
    for _ in range(min(n, sum(most))):
        open_parts = [part for part, size in enumerate(most) if taken[part] < size]
        # First parts without any, then the part furthest below its weight.
        taken[min(open_parts, key=lambda part: (taken[part] > 0, taken[part] / weights[part]))] += 1
    return taken


def spread_rows(ends: Sequence[int], most: int) -> list[int]:
    """Return at most `most` rows of a table, spread over its groups and within each.

    Group g, at least one row, is `ends[g]` to before `ends[g + 1]`.

    >>> spread_rows([0, 4, 5], 3), spread_rows([0, 10, 20], 4), spread_rows([0, 9, 18, 27], 1)
    ([0, 2, 4], [0, 5, 13, 18], [14])
    """
    groups = spread(len(ends) - 1, most)
    lengths = [ends[group + 1] - ends[group] for group in groups]
    rows: list[int] = []
    for group, length, n in zip(groups, lengths, shares(lengths, most), strict=True):
        # Shift the places in every group, or all would show the same part of the body.
        shift = group * GOLDEN % 1
        rows += [ends[group] + int((place + shift) * length / n) for place in range(n)]
    return rows


def choose_slices(foreground: NDArray[np.floating], n: int) -> list[int]:
    """Return the places of `n` of a case's slices: most where most is labelled, else spread.

    `foreground` is the share of labelled pixels in each slice; 0 or NaN without labels.
    """
    weights = np.nan_to_num(foreground.astype(np.float64))
    labelled, others = np.flatnonzero(weights), np.flatnonzero(weights == 0)
    chosen: list[int] = []
    if n < len(labelled):
        shares_so_far = weights.cumsum() / weights.sum()
        places = np.searchsorted(shares_so_far, (np.arange(n) + 0.5) / n)
        chosen = sorted(set(places.tolist()))
        # One slice may hold several of the wanted shares; other labelled slices take their places.
        labelled = np.setdiff1d(labelled, chosen)
    for left in (labelled, others):
        chosen += [int(left[place]) for place in spread(len(left), n - len(chosen))]
    return sorted(chosen)


def choose_rows(
    output: Output,
    index: SliceIndex,
    *,
    cases: Collection[str] | None = None,
    split: str | None = None,
    slices: Collection[int] | None = None,
    n: int,
) -> list[int]:
    """Return about `n` rows of an index, spread over splits, cases and slices; labelled ones first.

    Named `cases` are shown once at least, named `slices` of every case. `index` is that of `output`
    or a selection of it.
    """
    _check_split(output, index, split)
    numbers = _numbers(output, index, cases, split)
    if slices is not None:
        return _rows_of(output, index, numbers, sorted(set(slices)), cases is not None, n)
    n_of = np.bincount(index.case, minlength=len(index.cases))
    if cases is not None:
        counts = shares(n_of[numbers].tolist(), max(n, len(numbers)))
        chosen = dict(zip(numbers, counts, strict=True))
    else:
        chosen = _spread_over_splits(index.cases, numbers, n_of, n)
    return _rows_of_cases(index, chosen)


def choose_few(output: Output, *, n: int) -> tuple[SliceIndex, list[int]]:
    """Return an index of a few cases with the rows that `choose_rows` gives of the whole index.

    Only these cases are in memory.
    """
    stored = output.stored_index
    if not stored.cases:
        _check_split(output, output.index, None)
    n_of = np.concatenate([np.bincount(part.case, minlength=len(part.cases)) for part in stored])
    chosen = _spread_over_splits(stored.cases, list(range(len(n_of))), n_of, n)
    names = {(case.case_id, case.plane) for case in map(stored.cases.__getitem__, chosen)}
    index = stored.selected(
        lambda part: part.of_cases(lambda case: (case.case_id, case.plane) in names)
    )
    own_number = {number: place for place, number in enumerate(sorted(chosen))}
    return index, _rows_of_cases(index, {own_number[key]: n for key, n in chosen.items()})


def _rows_of_cases(index: SliceIndex, chosen: Mapping[int, int]) -> list[int]:
    """Return the rows of some slices of each case, from their number by the number of the case."""
    rows = []
    for number, wanted in chosen.items():
        of_case = np.flatnonzero(index.case == number)
        rows += [int(of_case[place]) for place in choose_slices(index.foreground[of_case], wanted)]
    return rows


def _check_split(output: Output, index: SliceIndex, split: str | None) -> None:
    """Raise UsageError if there is nothing to show, in a split or at all."""
    if split not in (None, *SPLITS):
        raise UsageError(f"split must be one of {', '.join(SPLITS)}, got {split}")
    if not len(index):
        if len(output.index):
            raise UsageError(f"no slice of {output.path} matches the selection")
        dropped = f"every slice was dropped, see {output.config.selecting}"
        why = output.shortfall or dropped
        why = why.removeprefix(f"{output.path} has ")
        raise UsageError(f"{output.path} has no slices to show: {why}")
    if split not in (None, *(case.split for case in index.cases)):
        per_split = Counter(index.cases[number].split for number in index.case)
        others = [f"{name} ({plural(n, 'slice')})" for name in SPLITS if (n := per_split[name])]
        raise UsageError(
            f"{output.path} has no slices in {split}; it has some in {first_few(others)}"
        )


def _numbers(
    output: Output, index: SliceIndex, cases: Collection[str] | None, split: str | None
) -> list[int]:
    """Return the numbers of the selected cases."""
    if cases is None:
        return [n for n, case in enumerate(index.cases) if split in (None, case.split)]
    wanted = {cases} if isinstance(cases, str) else set(cases)
    check_cases(output, wanted, split=split)
    for case_id in sorted(wanted - set(index.case_ids)):
        raise UsageError(
            f"case {case_id} has no slices in {output.path}: it has not been run yet, or no slice "
            "was kept"
        )
    return [number for number, case in enumerate(index.cases) if case.case_id in wanted]


def _spread_over_splits(
    cases: Sequence[IndexedCase], numbers: list[int], n_of: NDArray[np.intp], n: int
) -> dict[int, int]:
    """Return the number of slices to show of each case, by the number of the case."""
    # Plane after plane, each split from another one on, or all that are picked could be of one.
    planes = list(dict.fromkeys(case.plane for case in cases))
    of_split = [
        sorted(
            (number for number in numbers if cases[number].split == split),
            key=lambda number: (planes.index(cases[number].plane) - first) % len(planes),
        )
        for first, split in enumerate(SPLITS)
    ]
    most = [sum(n_of[own].tolist()) for own in of_split]
    chosen: dict[int, int] = {}
    for own, wanted in zip(of_split, shares(most, n, weights=[*map(len, of_split)]), strict=True):
        shown = [own[place] for place in spread(len(own), wanted)]
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
    # One plane of a case may have slices that another does not have.
    shown = {index.cases[number].case_id for number in complete}
    lacking = [number for number in numbers if index.cases[number].case_id not in shown]
    if named and lacking:
        number = lacking[0]
        raise UsageError(_why_slices_missing(output, index, number, slices))
    if not complete:
        known = index.slice_index[np.isin(index.case, numbers)]
        raise UsageError(
            f"no case has {_slices_in_words(slices)}: "
            f"slices in {output.path} are numbered {known.min()} to {known.max()}"
        )
    if not named:
        # Count one slice for each case, so that enough cases are chosen.
        chosen = _spread_over_splits(
            index.cases, complete, n_found.clip(max=1), max(n // len(slices), 1)
        )
        complete = sorted(chosen)
    return [int(row) for row in rows[np.isin(index.case[rows], complete)]]


def _why_slices_missing(output: Output, index: SliceIndex, number: int, slices: list[int]) -> str:
    """Return why a case lacks some of these slices: out of range, or dropped."""
    case = index.cases[number]
    kept = index.slice_index[index.case == number].tolist()
    with damage_named(case.case_id, kept[0]):
        total = case_reader(output.path, case).metadata(kept[0])["total_slices"]
    outside = [slice_index for slice_index in slices if not 0 <= slice_index < total]
    if outside:
        return (
            f"case {case.case_id} has no {_slices_in_words(outside)}: "
            f"it has {plural(total, 'slice')}, 0 to {total - 1}"
        )
    dropped = sorted(set(slices) - set(kept))
    return (
        f"case {case.case_id} has no {_slices_in_words(dropped)}: dropped by "
        f"{output.config.selecting}; {plural(len(kept), 'slice')} of {total} were kept, from "
        f"{min(kept)} to {max(kept)}"
    )


def _slices_in_words(slices: list[int]) -> str:
    return ("slice " if len(slices) == 1 else "slices ") + first_few([*map(str, slices)])
