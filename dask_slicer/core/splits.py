"""Assignment of patients to train, val and test."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

from dask_slicer.errors import DatasetError

SPLITS = ("train", "val", "test")


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
) -> dict[str, str]:
    """Return the split of every case; groups stay whole, and ratios are met as nearly as possible.

    Groups are assigned in the order of sha256("seed:group"), each to the split that lacks the most
    cases.

    Parameters
    ----------
    groups : mapping of case id to group
        The group is the patient; all its cases go into one split.
    ratios : mapping of split to float
        Sum to 1.
    assigned : mapping of case id to split, optional
        Cases that already have one keep it, and so do the other cases of their groups.

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
    waiting = sorted(
        set(sizes) - set(split_of_group),
        key=lambda group: hashlib.sha256(
            f"{seed}:{group}".encode("utf-8", "surrogateescape")
        ).hexdigest(),
    )
    enough = len(waiting) >= len(empty)
    for n_assigned, group in enumerate(waiting):
        # The last groups are reserved for splits that would otherwise stay empty.
        is_last = len(waiting) - n_assigned <= len(empty)
        candidates = empty if enough and is_last else wanted
        split = max(candidates, key=lambda name: (lacking[name], -SPLITS.index(name)))
        split_of_group[group] = split
        lacking[split] -= sizes[group]
        empty.discard(split)
    return {case: split_of_group[group] for case, group in groups.items()}


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
