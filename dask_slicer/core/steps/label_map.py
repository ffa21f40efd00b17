"""Label maps: values of a label replaced by others, and small components removed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.volume import extremes, iterate_planes, planes_to_write
from dask_slicer.errors import LabelValues
from dask_slicer.utils.formatting import did_you_mean, first_few
from dask_slicer.utils.mapped import empty_beside

_FORM = (
    'must be pairs OLD:NEW with blanks between, such as "1,2:1 3:2", and *:0 or *:* for all others'
)
_LARGEST = 2**31 - 1
# Unlisted values in a message.
_MOST_SHOWN = 10
# Values of a wider range are sorted, which takes longer than a table.
_TABLE = 1 << 16


@dataclass(frozen=True, slots=True)
class LabelMap:
    """New label values by old ones; 0, the background, stays 0.

    Attributes
    ----------
    pairs : tuple of (str, int)
        Old value, as a number or a name, and the new one.
    others : {"fail", "zero", "keep"}
        What becomes of a value that is not listed.
    """

    pairs: tuple[tuple[str, int], ...]
    others: str = "fail"

    @classmethod
    def parse(cls, text: str) -> LabelMap:
        """Return the label map in a text; raise ValueError if it is none.

        A blank in a name is written as _; of names with commas or colons, give the number.

        Examples
        --------
        >>> LabelMap.parse("liver,2:1 3:2 *:0")
        LabelMap(pairs=(('liver', 1), ('2', 1), ('3', 2)), others='zero')
        """
        pairs: dict[str, int] = {}
        others = ""
        for part in re.sub(r"\s*([:,])\s*", r"\1", text.strip()).split():
            olds, colon, new = part.rpartition(":")
            if olds == "*" and new in ("0", "*") and not others:
                others = "zero" if new == "0" else "keep"
                continue
            if not colon or not new.isdecimal() or int(new) > _LARGEST:
                raise ValueError(_FORM)
            for old in olds.split(","):
                if old in ("", "*") or ":" in old:
                    raise ValueError(_FORM)
                if old in pairs:
                    raise ValueError(f"gives {old} two new values")
                pairs[old] = int(new)
        if not pairs and not others:
            raise ValueError(_FORM)
        return cls(tuple(pairs.items()), others or "fail")

    def __str__(self) -> str:
        olds: dict[int, list[str]] = {}
        for old, new in self.pairs:
            olds.setdefault(new, []).append(old)
        parts = [f"{','.join(names)}:{new}" for new, names in olds.items()]
        parts += {"zero": ["*:0"], "keep": ["*:*"]}.get(self.others, [])
        return " ".join(parts)

    def values(self, names: Mapping[int, str]) -> dict[int, int]:
        """Return the new value of each listed old one.

        Parameters
        ----------
        names : mapping of int to str
            The names of old values, where they are known.

        Raises
        ------
        ValueError
            If a name is unknown, or a value is listed by its number and its name.
        """
        numbers = {"background": 0}
        for number, name in names.items():
            numbers |= {name.casefold(): number, name.casefold().replace(" ", "_"): number}
        result: dict[int, int] = {}
        for old, new in self.pairs:
            value = int(old) if re.fullmatch(r"-?\d+", old) else numbers.get(old.casefold())
            if value is None:
                known = did_you_mean(old, names.values())
                known = known or f"; names of this dataset: {first_few(list(names.values()), 10)}"
                raise ValueError(
                    f"label_map: no label is named {old}" + (known if names else "; give its value")
                )
            if value == 0 and new != 0:
                raise ValueError(f"label_map gives the background ({old}) {new}, but it stays 0")
            if result.setdefault(value, new) != new:
                raise ValueError(f"label_map gives {value} ({old}) two new values")
        return result

    def names(self, names: Mapping[int, str]) -> dict[int, str]:
        """Return the names of new values: those of the old ones, joined with +.

        Examples
        --------
        >>> LabelMap.parse("1,2:1 3:2").names({1: "kidney", 2: "tumor", 3: "cyst"})
        {1: 'kidney+tumor', 2: 'cyst'}
        """
        new_of = self.values(names)
        joined: dict[int, list[str]] = {}
        for old, name in sorted(names.items()):
            new = new_of.get(old, old if self.others == "keep" or old == 0 else None)
            if new is not None and (new != 0 or old == 0):
                joined.setdefault(new, []).append(name)
        return {new: "+".join(parts) for new, parts in sorted(joined.items())}


def map_labels(
    label: NDArray[np.integer], new_of: Mapping[int, int], *, others: str, source: str
) -> tuple[NDArray[np.int32], dict[int, int]]:
    """Return a label with its values replaced, and the voxels by old value.

    Parameters
    ----------
    label : ndarray of int
    new_of : mapping of int to int
        From `LabelMap.values`.
    others : {"fail", "zero", "keep"}
        As in `LabelMap`; 0 stays 0 in any case.
    source : str
        The file, for messages.

    Raises
    ------
    LabelValues
        If a value is not listed, and `others` is fail.

    Examples
    --------
    >>> label = np.array([[0, 1], [2, 7]])
    >>> mapped, n_voxels = map_labels(label, {1: 3, 2: 3}, others="zero", source="label.nii")
    >>> mapped.tolist(), n_voxels
    ([[0, 3], [3, 0]], {0: 1, 1: 1, 2: 1, 7: 1})
    """
    olds, counts = _values(label)
    unlisted = [old for old in olds if old not in new_of and old != 0]
    if unlisted and others == "fail":
        raise LabelValues(
            f"label_map does not list {first_few([str(old) for old in unlisted], _MOST_SHOWN)}, "
            f"which {source} holds; list it, or add *:0 (make it background) or *:* (keep it)"
        )
    keep = others == "keep"
    news = np.array(
        [new_of.get(old, old if keep or old == 0 else 0) for old in olds], dtype=np.int32
    )
    first, last = olds[0], olds[-1]
    is_narrow = last - first < _TABLE
    table = np.zeros(last - first + 1 if is_narrow else 0, dtype=np.int32)
    if is_narrow:
        table[np.subtract(olds, first)] = news
    mapped = empty_beside(label, label.shape, np.int32)
    # Small temporary arrays.
    for plane, old in zip(planes_to_write(mapped), iterate_planes(label), strict=True):
        if is_narrow:
            plane[...] = table[np.subtract(old, first, dtype=np.intp)]
        else:
            plane[...] = news[np.searchsorted(olds, old)]
    return mapped, dict(zip(olds, counts, strict=True))


def _values(label: NDArray[np.integer]) -> tuple[list[int], list[int]]:
    """Return the values of a label, ascending, and their voxels."""
    first, last = map(int, extremes(label))
    if last - first < _TABLE:
        counts = np.zeros(last - first + 1, dtype=np.int64)
        for plane in iterate_planes(label):
            offsets = np.subtract(plane, first, dtype=np.intp).ravel()
            counts += np.bincount(offsets, minlength=counts.size)
        values = np.flatnonzero(counts)
        return (values + first).tolist(), counts[values].tolist()
    n_voxels: Counter[int] = Counter()
    for plane in iterate_planes(label):
        values, n_of_each = np.unique(plane, return_counts=True)
        n_voxels.update(dict(zip(values.tolist(), n_of_each.tolist(), strict=True)))
    olds = sorted(n_voxels)
    return olds, [n_voxels[old] for old in olds]


def remove_small_components(
    label: NDArray[np.integer], *, voxels: int = 0, pixels: int = 0
) -> tuple[NDArray[np.integer], int]:
    """Return a label without small components, and the number of voxels removed.

    A component is a set of voxels of one value that are connected by faces, edges or corners.

    Parameters
    ----------
    label : (n_slices, height, width) ndarray of int
    voxels : int
        Components in 3D with fewer voxels become background.
    pixels : int
        Then, components of a slice with fewer pixels become background.
    """
    import cc3d

    result: NDArray[np.integer] = empty_beside(label, label.shape, label.dtype)
    for new, plane in zip(planes_to_write(result), iterate_planes(label), strict=True):
        new[...] = plane
    if voxels > 1:
        cc3d.dust(result, threshold=voxels, connectivity=26, in_place=True)
    if pixels > 1:
        for plane in planes_to_write(result):
            if plane.any():
                cc3d.dust(plane, threshold=pixels, connectivity=8, in_place=True)
    pairs = zip(iterate_planes(label), iterate_planes(result), strict=True)
    return result, sum(int(np.count_nonzero(old != new)) for old, new in pairs)
