"""Selection of slices: range, stride, label content, lists, blank slices.

Indices always count the slices of the whole volume; a selection never renumbers them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import floor

from dask_slicer.errors import GeometryMismatch

_BOUND = re.compile(r"\s*(?:(?P<index>[+-]?\d+)|(?P<percent>\d+(?:\.\d+)?)\s*%)?\s*")


@dataclass(frozen=True, slots=True)
class SliceRange:
    """A range of slices: first, included, and last, excluded, as Python counts; or in percent.

    Examples
    --------
    >>> SliceRange.parse("80:-26").of(200), SliceRange.parse("10%:90%").of(50)
    (range(80, 174), range(5, 45))
    """

    start: int | float | None  # a float is a fraction of the volume
    stop: int | float | None

    @classmethod
    def parse(cls, text: str) -> SliceRange:
        """Return the range in a text such as 80:-26 or 10%:90%; raise ValueError if it is none."""
        ends = text.split(":")
        if len(ends) != 2:
            raise ValueError("must be A:B, such as 80:-26 or 10%:90%")
        start, stop = map(_bound, ends)
        if type(start) is type(stop) and start is not None and stop is not None:
            empty = start >= stop and (isinstance(start, float) or (start < 0) == (stop < 0))
            if empty:
                raise ValueError("must be A:B with A before B")
        return cls(start, stop)

    def of(self, n_slices: int) -> range:
        """Return the indices in a volume of n slices."""
        start, stop = (
            floor(end * n_slices + 0.5) if isinstance(end, float) else end
            for end in (self.start, self.stop)
        )
        return range(*slice(start, stop).indices(n_slices))


def _bound(text: str) -> int | float | None:
    match = _BOUND.fullmatch(text)
    if match is None or (match["percent"] is not None and float(match["percent"]) > 100):
        raise ValueError("must be A:B, each a number of slices or a percentage from 0% to 100%")
    if match["percent"] is not None:
        return float(match["percent"]) / 100
    return None if match["index"] is None else int(match["index"])


def candidates(
    n_slices: int,
    *,
    within: SliceRange | None = None,
    stride: int = 1,
    listed: Collection[int] | None = None,
) -> range | list[int]:
    """Return the indices that a range, a stride and a list of slices leave, ascending.

    The stride starts at the first slice of the range.

    Raises
    ------
    GeometryMismatch
        If the list names a slice that the volume does not have.

    Examples
    --------
    >>> list(candidates(10, within=SliceRange.parse("2:9"), stride=3))
    [2, 5, 8]
    """
    if listed and max(listed) >= n_slices:
        raise GeometryMismatch(
            f"the slice_list names slice {max(listed)}, but there are {n_slices} slices, from 0"
        )
    chosen = (range(n_slices) if within is None else within.of(n_slices))[::stride]
    return chosen if listed is None else [index for index in chosen if index in listed]


def thin_empty(
    indices: Sequence[int], is_empty: Sequence[bool], *, share: float, seed: int, case_id: str
) -> list[int]:
    """Return the indices without some of those whose slices have no label.

    Of the empty slices, ``round(share * n)`` stay: which, seed and case id decide, so that every
    run and every machine keeps the same.

    Parameters
    ----------
    indices : sequence of int
        Ascending.
    is_empty : sequence of bool
        Whether each of these slices has no labelled pixel.
    share : float
        0 to 1.

    Examples
    --------
    >>> thin_empty([3, 4, 5], [True, False, True], share=0.0, seed=1, case_id="liver_7")
    [4]
    """
    empty = [index for index, flag in zip(indices, is_empty, strict=True) if flag]
    n_kept = floor(share * len(empty) + 0.5)

    def order(index: int) -> str:
        text = f"{seed}:{case_id}:{index}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

    dropped = set(sorted(empty, key=order)[n_kept:])
    return [index for index in indices if index not in dropped]
