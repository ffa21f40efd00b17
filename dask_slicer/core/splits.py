"""Assignment of patients to train, val and test, and to the folds of a cross-validation."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import Generic, TypeVar

from dask_slicer.errors import DatasetError

SPLITS = ("train", "val", "test")

Part = TypeVar("Part", bound=Hashable)  # a split, or the number of a fold


def target_counts(n_cases: int, ratios: Mapping[str, float]) -> dict[str, int]:
    """Return the number of cases for each split, by largest remainder.

    Ties go to train before val before test. Every split with a ratio over 0 gets at least one case
    if there are enough. The ratios sum to 1, and the counts to `n_cases`.

    Examples
    --------
    >>> target_counts(10, {"train": 0.8, "val": 0.1, "test": 0.1})
    {'train': 8, 'val': 1, 'test': 1}
    """
    shares = {split: n_cases * ratios[split] for split in SPLITS}
    # Rounded, so that errors as in 0.1 + 0.2 break no tie.
    counts = {split: int(round(share, 9)) for split, share in shares.items()}
    by_remainder = sorted(
        SPLITS, key=lambda split: (-round(shares[split] - counts[split], 9), SPLITS.index(split))
    )
    for split in by_remainder[: n_cases - sum(counts.values())]:
        counts[split] += 1
    wanted = [split for split in SPLITS if ratios[split] > 0]
    if n_cases >= len(wanted):
        for split in wanted:
            if counts[split] == 0:
                counts[split] += 1
                counts[max(SPLITS, key=lambda name: counts[name])] -= 1
    return counts


def assign_splits(
    groups: Mapping[str, str],
    *,
    ratios: Mapping[str, float],
    seed: int,
    assigned: Mapping[str, str] | None = None,
    classes: Mapping[str, Collection[str]] | None = None,
) -> dict[str, str]:
    """Return the split of every case; groups stay whole, and ratios are met as nearly as possible.

    Groups are assigned in the order of sha256("seed:group"), each to the split that lacks the most
    cases. With `classes`, large groups come first, and each goes to the split that lacks the most
    cases of its classes.

    Parameters
    ----------
    groups : mapping of case id to group
        The group is the patient; all its cases go into one split.
    ratios : mapping of split to float
        Sum to 1.
    assigned : mapping of case id to split, optional
        Cases that already have one keep it, and so do the other cases of their groups.
    classes : mapping of case id to collection of str, optional
        Of which each split gets its share of the cases. A case may have several, or none.

    Raises
    ------
    DatasetError
        If `assigned` puts one group into two splits.

    Examples
    --------
    >>> assign_splits({"a": "a", "b": "b"}, ratios={"train": 1, "val": 0, "test": 0}, seed=1)
    {'a': 'train', 'b': 'train'}
    """
    assigned = {case: split for case, split in (assigned or {}).items() if case in groups}
    check_groups_whole(assigned, groups)
    split_of_group = {groups[case]: split for case, split in assigned.items()}
    sizes = Counter(groups.values())
    lacking = target_counts(len(groups), ratios)
    for group, split in split_of_group.items():
        lacking[split] -= sizes[group]
    wanted = {split for split in SPLITS if ratios[split] > 0}
    empty = wanted - set(split_of_group.values())
    strata = None if classes is None else _Strata(groups, classes, ratios)
    waiting = sorted(set(sizes) - set(split_of_group), key=lambda group: _digest(group, seed))
    if strata is not None:
        for group, split in split_of_group.items():
            strata.add(group, split)
        waiting = strata.ordered(waiting)
    enough = len(waiting) >= len(empty)
    for n_assigned, group in enumerate(waiting):
        # The last groups are reserved for splits that would otherwise stay empty.
        is_last = len(waiting) - n_assigned <= len(empty)
        candidates = empty if enough and is_last else wanted
        if strata is None:
            split = max(candidates, key=lambda name: (lacking[name], -SPLITS.index(name)))
        else:
            open_splits = [name for name in SPLITS if name in candidates and lacking[name] > 0]
            split = strata.add(group, *(open_splits or sorted(candidates, key=SPLITS.index)))
        split_of_group[group] = split
        lacking[split] -= sizes[group]
        empty.discard(split)
    return {case: split_of_group[group] for case, group in groups.items()}


def assign_folds(
    groups: Mapping[str, str],
    *,
    n_folds: int,
    seed: int,
    classes: Mapping[str, Collection[str]] | None = None,
    assigned: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Return the fold in which each case is for validation, from 0; groups stay whole.

    Folds have about the same number of cases, and of cases of each class. Of groups with one case
    each, in one class each, these numbers differ by at most 1.

    Parameters
    ----------
    groups : mapping of case id to group
    n_folds : int
    seed : int
    classes : mapping of case id to collection of str, optional
        A case may have several, such as the label values in it, or none.
    assigned : mapping of case id to int, optional
        Cases that already have a fold keep it, and so do the other cases of their groups.

    Raises
    ------
    DatasetError
        If there are fewer groups than folds, or `assigned` puts one group into two folds.

    Examples
    --------
    >>> groups = {case: case for case in "abcd"}
    >>> classes = {"a": "x", "b": "x", "c": "y", "d": "y"}
    >>> folds = assign_folds(groups, n_folds=2, seed=1, classes=classes)
    >>> folds["a"] != folds["b"] and folds["c"] != folds["d"]
    True
    """
    assigned = {case: fold for case, fold in (assigned or {}).items() if case in groups}
    check_groups_whole({case: f"fold {fold}" for case, fold in assigned.items()}, groups)
    fold_of_group = {groups[case]: fold for case, fold in assigned.items()}
    n_groups = len(set(groups.values()))
    if n_groups < n_folds:
        raise DatasetError(
            f"{n_folds} folds need {n_folds} groups of cases (patients) that are not for test, "
            f"there are {n_groups}"
        )
    strata = _Strata(groups, classes or {}, dict.fromkeys(range(n_folds), 1 / n_folds))
    for group, fold in fold_of_group.items():
        strata.add(group, fold)
    waiting = set(groups.values()) - set(fold_of_group)
    for group in strata.ordered(sorted(waiting, key=lambda group: _digest(group, seed))):
        fold_of_group[group] = strata.add(group, *range(n_folds))
    return {case: fold_of_group[group] for case, group in groups.items()}


def check_groups_whole(assigned: Mapping[str, str], groups: Mapping[str, str]) -> None:
    """Raise DatasetError if an assignment puts cases of one group into different splits.

    Both arguments are by case id. Cases without a group are skipped.
    """
    first: dict[str, str] = {}
    for case, split in assigned.items():
        group = groups.get(case)
        if group is None:
            continue
        other = first.setdefault(group, case)
        if assigned[other] != split:
            raise DatasetError(
                f"group {group} lies in two splits: {other} in {assigned[other]}, "
                f"{case} in {split}; put all its cases into one"
            )


def _digest(group: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{group}".encode("utf-8", "surrogateescape")).hexdigest()


class _Strata(Generic[Part]):
    """Numbers of cases by class, in groups and in the parts that these are assigned to.

    Every case is also in the class None, so that parts get their share of all cases. Classes count
    by share of their cases: one case more of a rare class weighs more than of a frequent one.
    """

    def __init__(
        self,
        groups: Mapping[str, str],
        classes: Mapping[str, Collection[str]],
        shares: Mapping[Part, float],
    ) -> None:
        self._shares: dict[Part, float] = dict(shares)
        self._of_group: defaultdict[str, Counter[str | None]] = defaultdict(Counter)
        for case_id, group in groups.items():
            self._of_group[group].update({None, *classes.get(case_id, ())})
        self._total: Counter[str | None] = Counter()
        for counts in self._of_group.values():
            self._total.update(counts)
        self._in_part: dict[Part, Counter[str | None]] = {part: Counter() for part in shares}
        self._assigned: Counter[str | None] = Counter()

    def ordered(self, groups: Iterable[str]) -> list[str]:
        """Return groups by size, the largest first; then rare classes before others."""

        def key(group: str) -> tuple[int, list[tuple[int, str]]]:
            counts = self._of_group[group]
            rarity = sorted((self._total[name], name) for name in counts if name is not None)
            return -counts[None], rarity

        return sorted(groups, key=key)

    def add(self, group: str, *candidates: Part) -> Part:
        """Assign a group to the candidate that lacks its classes the most, and return it."""
        counts = self._of_group[group]
        self._assigned.update(counts)

        def excess(part: Part) -> float:
            share, present = self._shares[part], self._in_part[part]
            weighted = [
                n * (present[name] - share * self._assigned[name]) / self._total[name]
                for name, n in counts.items()
            ]
            # Rounded, so that errors as in 0.1 + 0.2 break no tie: the first candidate is taken.
            return round(sum(weighted), 9)

        part = min(candidates, key=excess)
        self._in_part[part].update(counts)
        return part


def by_split(assignment: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the cases of each split, sorted, from the split of each case; no split is left out."""
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for case_id, split in sorted(assignment.items()):
        splits[split].append(case_id)
    return splits
