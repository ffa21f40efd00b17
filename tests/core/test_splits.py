"""Splits: largest remainders, whole groups, and an order that only the seed decides."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_slicer.core.splits import (
    SPLITS,
    assign_folds,
    assign_splits,
    check_groups_whole,
    target_counts,
)
from dask_slicer.errors import DatasetError


def ratios_of(train: float, val: float, test: float) -> dict[str, float]:
    return {"train": train, "val": val, "test": test}


def alone(n_cases: int) -> dict[str, str]:
    """Return cases that are each a group of their own."""
    return {f"case_{number:03d}": f"case_{number:03d}" for number in range(n_cases)}


def sizes(split_of: dict[str, str]) -> tuple[int, ...]:
    counts = Counter(split_of.values())
    return tuple(counts[split] for split in SPLITS)


STANDARD = ratios_of(0.8, 0.1, 0.1)
percent = st.integers(0, 100)
some_ratios = st.tuples(percent, percent).map(
    lambda cuts: ratios_of(min(cuts) / 100, (max(cuts) - min(cuts)) / 100, (100 - max(cuts)) / 100)
)
# Up to 30 cases of up to 12 patients.
some_groups = st.lists(st.integers(0, 11), min_size=1, max_size=30).map(
    lambda patients: {f"c{n:02d}": f"p{patient}" for n, patient in enumerate(patients)}
)


@pytest.mark.parametrize(
    ("n_cases", "ratios", "expected"),
    [
        pytest.param(10, STANDARD, (8, 1, 1), id="no_remainder"),
        pytest.param(100, STANDARD, (80, 10, 10), id="hundred"),
        pytest.param(131, STANDARD, (105, 13, 13), id="largest_remainder_is_train"),
        pytest.param(9, ratios_of(0.5, 0.3, 0.2), (4, 3, 2), id="largest_remainders_are_not_train"),
        pytest.param(7, ratios_of(0.6, 0.2, 0.2), (4, 2, 1), id="tie_of_val_and_test_goes_to_val"),
        pytest.param(3, ratios_of(0.5, 0.5, 0), (2, 1, 0), id="tie_of_train_and_val_goes_to_train"),
        pytest.param(5, ratios_of(0.5, 0, 0.5), (3, 0, 2), id="tie_of_train_and_test"),
        pytest.param(10, ratios_of(1 / 3, 1 / 3, 1 / 3), (4, 3, 3), id="tie_of_all_three"),
        pytest.param(11, ratios_of(1 / 3, 1 / 3, 1 / 3), (4, 4, 3), id="two_over_a_tie_of_three"),
        pytest.param(10, ratios_of(0.7, 0.2, 0.1), (7, 2, 1), id="no_noise_of_binary_fractions"),
        pytest.param(10, ratios_of(1 - 0.2 - 0.1, 0.2, 0.1), (7, 2, 1), id="noisy_ratio"),
        pytest.param(3, STANDARD, (1, 1, 1), id="at_least_one_each"),
        pytest.param(4, STANDARD, (2, 1, 1), id="at_least_one_each_of_four"),
        pytest.param(2, STANDARD, (2, 0, 0), id="too_few_for_one_each"),
        pytest.param(2, ratios_of(0.9, 0, 0.1), (1, 0, 1), id="enough_for_two_splits"),
        pytest.param(1, STANDARD, (1, 0, 0), id="one_case"),
        pytest.param(0, STANDARD, (0, 0, 0), id="no_case"),
        pytest.param(5, ratios_of(1, 0, 0), (5, 0, 0), id="train_only"),
        pytest.param(5, ratios_of(0, 0, 1), (0, 0, 5), id="test_only"),
        pytest.param(50, ratios_of(0.98, 0.01, 0.01), (48, 1, 1), id="tiny_ratios_get_one"),
    ],
)
def test_each_split_gets_its_share_by_largest_remainder(
    n_cases: int, ratios: dict[str, float], expected: tuple[int, ...]
) -> None:
    assert tuple(target_counts(n_cases, ratios).values()) == expected
    assert sizes(assign_splits(alone(n_cases), ratios=ratios, seed=3)) == expected


@given(n_cases=st.integers(0, 300), ratios=some_ratios)
def test_shares_are_those_of_exact_arithmetic(n_cases: int, ratios: dict[str, float]) -> None:
    exact = {split: Fraction(round(ratios[split] * 100), 100) * n_cases for split in SPLITS}
    expected = {split: int(share) for split, share in exact.items()}
    while sum(expected.values()) < n_cases:
        # max returns the first of equals: ties go to train before val before test.
        expected[max(SPLITS, key=lambda split: exact[split] - expected[split])] += 1
    wanted = [split for split in SPLITS if ratios[split] > 0]
    if n_cases >= len(wanted):
        for split in wanted:
            if expected[split] == 0:
                expected[max(SPLITS, key=lambda name: expected[name])] -= 1
                expected[split] = 1
    assert target_counts(n_cases, ratios) == expected


@pytest.mark.parametrize("seed", [0, 42, -1])
def test_cases_come_in_the_order_of_the_hash_of_seed_and_group(seed: int) -> None:
    cases = alone(20)
    order = sorted(cases, key=lambda case: hashlib.sha256(f"{seed}:{case}".encode()).hexdigest())
    left = {"train": 12, "val": 4, "test": 4}
    expected = {}
    for case in order:
        expected[case] = max(SPLITS, key=lambda split: left[split])
        left[expected[case]] -= 1
    assert assign_splits(cases, ratios=ratios_of(0.6, 0.2, 0.2), seed=seed) == expected


def test_an_assignment_is_the_same_next_year() -> None:
    found = assign_splits(alone(10), ratios=ratios_of(0.6, 0.2, 0.2), seed=42)
    in_val = {case for case, split in found.items() if split == "val"}
    in_test = {case for case, split in found.items() if split == "test"}
    assert (in_val, in_test) == ({"case_001", "case_007"}, {"case_002", "case_008"})


def test_another_seed_gives_another_assignment() -> None:
    found = {
        tuple(assign_splits(alone(20), ratios=STANDARD, seed=seed).values()) for seed in range(10)
    }
    assert len(found) > 1


@given(groups=some_groups, ratios=some_ratios, seed=st.integers(0, 99), data=st.data())
def test_the_order_of_cases_does_not_matter(
    groups: dict[str, str], ratios: dict[str, float], seed: int, data: st.DataObject
) -> None:
    shuffled = dict(data.draw(st.permutations(list(groups.items()))))
    expected = assign_splits(groups, ratios=ratios, seed=seed)
    found = assign_splits(shuffled, ratios=ratios, seed=seed)
    assert found == expected
    assert list(found) == list(shuffled)


@given(groups=some_groups, ratios=some_ratios, seed=st.integers(0, 99))
def test_groups_are_never_split(
    groups: dict[str, str], ratios: dict[str, float], seed: int
) -> None:
    found = assign_splits(groups, ratios=ratios, seed=seed)
    assert found.keys() == groups.keys()
    splits_of_group: dict[str, set[str]] = {}
    for case, split in found.items():
        splits_of_group.setdefault(groups[case], set()).add(split)
    assert all(len(splits) == 1 for splits in splits_of_group.values())


@given(groups=some_groups, ratios=some_ratios, seed=st.integers(0, 99))
def test_a_split_has_a_case_exactly_where_its_ratio_and_the_groups_allow(
    groups: dict[str, str], ratios: dict[str, float], seed: int
) -> None:
    used = set(assign_splits(groups, ratios=ratios, seed=seed).values())
    wanted = {split for split in SPLITS if ratios[split] > 0}
    assert used <= wanted
    if len(set(groups.values())) >= len(wanted):
        assert used == wanted


def test_a_large_group_does_not_leave_the_other_splits_empty() -> None:
    groups = {f"a{number}": "everyone" for number in range(50)} | {"b": "b", "c": "c"}
    for seed in range(10):
        found = assign_splits(groups, ratios=STANDARD, seed=seed)
        assert set(found.values()) == set(SPLITS)


def test_groups_of_two_approach_the_ratios_counted_in_cases() -> None:
    groups = {f"{patient}_{visit}": f"p{patient}" for patient in range(20) for visit in "ab"}
    found = assign_splits(groups, ratios=STANDARD, seed=42)
    assert sizes(found) == (32, 4, 4)


@pytest.mark.parametrize(
    ("assigned", "n_cases", "ratios", "expected"),
    [
        pytest.param((10, 0, 0), 20, (0.5, 0.25, 0.25), (10, 5, 5), id="train_was_full"),
        pytest.param((8, 1, 1), 20, (0.8, 0.1, 0.1), (16, 2, 2), id="twice_as_many"),
        pytest.param((8, 1, 1), 11, (0.8, 0.1, 0.1), (9, 1, 1), id="one_more"),
        pytest.param((0, 0, 6), 10, (0.5, 0.3, 0.2), (3, 1, 6), id="test_was_too_full"),
        pytest.param((4, 0, 0), 6, (0.8, 0.1, 0.1), (4, 1, 1), id="empty_splits_come_first"),
        pytest.param((4, 1, 0), 5, (0.8, 0.1, 0.1), (4, 1, 0), id="none_is_new"),
        pytest.param((0, 0, 2), 4, (1.0, 0.0, 0.0), (2, 0, 2), id="a_split_of_ratio_0_is_kept"),
    ],
)
def test_assigned_cases_stay_and_new_ones_bring_the_ratios_nearer(
    assigned: tuple[int, ...],
    n_cases: int,
    ratios: tuple[float, ...],
    expected: tuple[int, ...],
) -> None:
    groups = alone(n_cases)
    splits = [split for split, n in zip(SPLITS, assigned, strict=True) for _ in range(n)]
    before = dict(zip(groups, splits, strict=False))
    found = assign_splits(groups, ratios=ratios_of(*ratios), seed=42, assigned=before)
    assert before.items() <= found.items()
    assert sizes(found) == expected


@given(groups=some_groups, ratios=some_ratios, seed=st.integers(0, 99), data=st.data())
def test_an_assignment_made_in_part_is_completed_around_it(
    groups: dict[str, str], ratios: dict[str, float], seed: int, data: st.DataObject
) -> None:
    patients = data.draw(st.sets(st.sampled_from(sorted(set(groups.values())))))
    split_of = {patient: data.draw(st.sampled_from(SPLITS)) for patient in sorted(patients)}
    before = {case: split_of[group] for case, group in groups.items() if group in split_of}
    found = assign_splits(groups, ratios=ratios, seed=seed, assigned=before)
    assert before.items() <= found.items()
    assert found.keys() == groups.keys()
    check_groups_whole(found, groups)


def test_assigned_groups_count_with_all_their_cases() -> None:
    groups = {f"{patient}_{visit}": f"p{patient}" for patient in range(10) for visit in "ab"}
    before = {f"{patient}_a": "train" for patient in range(4)}
    found = assign_splits(groups, ratios=ratios_of(0.4, 0.3, 0.3), seed=42, assigned=before)
    assert sizes(found) == (8, 6, 6)


def test_a_new_case_follows_its_patient() -> None:
    groups = {"anna_1": "anna", "anna_2": "anna", "anna_3": "anna"} | alone(10)
    for split in SPLITS:
        found = assign_splits(groups, ratios=STANDARD, seed=42, assigned={"anna_2": split})
        assert {found["anna_1"], found["anna_2"], found["anna_3"]} == {split}


def test_an_assigned_case_that_is_missing_changes_nothing() -> None:
    expected = assign_splits(alone(10), ratios=STANDARD, seed=42)
    found = assign_splits(alone(10), ratios=STANDARD, seed=42, assigned={"gone": "val"})
    assert found == expected


def test_arguments_stay_as_they_were() -> None:
    groups, assigned = alone(5), {"case_001": "val", "gone": "test"}
    assign_splits(groups, ratios=STANDARD, seed=42, assigned=assigned)
    assert groups == alone(5)
    assert assigned == {"case_001": "val", "gone": "test"}


@pytest.mark.parametrize(
    ("first", "second"), [("train", "val"), ("train", "test"), ("test", "val")], ids=str
)
def test_a_group_in_two_splits_is_refused_by_name(first: str, second: str) -> None:
    groups = {"anna_1": "anna", "anna_2": "anna", "bert_1": "bert"}
    assigned = {"anna_1": first, "bert_1": "train", "anna_2": second}
    message = f"anna lies in two splits: anna_1 in {first}, anna_2 in {second}"
    with pytest.raises(DatasetError, match=message):
        check_groups_whole(assigned, groups)
    with pytest.raises(DatasetError, match=message):
        assign_splits(groups, ratios=STANDARD, seed=42, assigned=assigned)


# -- strata and folds ------------------------------------------------------------------------------


def spread(parts: Mapping[str, object], classes: Mapping[str, Sequence[str]]) -> Counter[object]:
    """Return the number of cases by part and class; class None has every case."""
    return Counter(
        (part, name) for case, part in parts.items() for name in (None, *classes.get(case, ()))
    )


def names(letter: str, n: int) -> dict[str, tuple[str]]:
    return {f"{letter}{number}": (letter,) for number in range(n)}


RATIOS = {"train": 0.8, "val": 0.1, "test": 0.1}
SPLIT_COUNTS = {
    "even": (names("F", 10) | names("M", 10), {"F": (8, 1, 1), "M": (8, 1, 1)}),
    "rare": (names("a", 10) | names("b", 30), {"a": (8, 1, 1), "b": (24, 3, 3)}),
    "three": (
        names("a", 10) | names("b", 20) | names("c", 70),
        {"a": (8, 1, 1), "b": (16, 2, 2), "c": (56, 7, 7)},
    ),
}


@pytest.mark.parametrize(("classes", "counts"), SPLIT_COUNTS.values(), ids=SPLIT_COUNTS)
def test_each_split_gets_its_share_of_each_class(classes, counts) -> None:
    splits = assign_splits({case: case for case in classes}, ratios=RATIOS, seed=3, classes=classes)
    found = spread(splits, classes)
    assert counts == {name: tuple(found[split, name] for split in SPLITS) for name in counts}


def test_a_class_for_each_case_leaves_sizes_and_no_split_empty() -> None:
    classes = {f"c{number}": (str(number),) for number in range(20)}
    splits = assign_splits({case: case for case in classes}, ratios=RATIOS, seed=1, classes=classes)
    assert Counter(splits.values()) == {"train": 16, "val": 2, "test": 2}


def test_cases_that_have_a_split_keep_it_and_count() -> None:
    classes = names("F", 10) | names("M", 10)
    assigned = {f"F{number}": "train" for number in range(8)}
    splits = assign_splits(
        {case: case for case in classes},
        ratios=RATIOS,
        seed=3,
        classes=classes,
        assigned=assigned,
    )
    assert splits | assigned == splits
    found = spread(splits, classes)
    assert [found[split, "F"] for split in SPLITS] == [8, 1, 1]


def test_folds_are_the_same_next_year() -> None:
    classes = names("F", 4) | names("M", 4)
    folds = assign_folds({c: c for c in classes}, n_folds=2, seed=42, classes=classes)
    assert sorted(case for case, fold in folds.items() if fold == 0) == ["F1", "F3", "M0", "M3"]


def test_large_groups_are_spread_first() -> None:
    groups = {f"{group}{n}": group for group, size in zip("abcdef", (5, 5, 1, 1, 1, 1), strict=True)
              for n in range(size)}  # fmt: skip
    folds = assign_folds(groups, n_folds=2, seed=1)
    assert sorted(Counter(folds.values()).values()) == [7, 7]
    assert folds["a0"] != folds["b0"]


def test_several_classes_of_a_case_are_balanced_each() -> None:
    classes = {f"c{n}": ("1", *("2" * (n % 2)), *("3" if n % 5 == 0 else "")) for n in range(20)}
    folds = assign_folds({c: c for c in classes}, n_folds=4, seed=1, classes=classes)
    found = spread(folds, classes)
    counts = {name: sorted(found[fold, name] for fold in range(4)) for name in "123"}
    assert counts == {"1": [5, 5, 5, 5], "2": [2, 2, 3, 3], "3": [1, 1, 1, 1]}


def test_fewer_groups_than_folds_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"3 folds need 3 groups of cases .* there are 2"):
        assign_folds({"a": "x", "b": "x", "c": "y"}, n_folds=3, seed=1)


def test_a_group_in_two_folds_is_refused() -> None:
    groups = {"a": "x", "b": "x", "c": "y"}
    with pytest.raises(DatasetError, match="group x lies in two splits: a in fold 0, b in fold 1"):
        assign_folds(groups, n_folds=2, seed=1, assigned={"a": 0, "b": 1})


CASES = st.lists(
    st.tuples(st.integers(0, 12), st.frozensets(st.sampled_from("xyz"), max_size=3)),
    min_size=1,
    max_size=60,
)


@given(CASES, st.integers(2, 6), st.integers())
def test_folds_keep_groups_whole_and_differ_by_little(cases, n_folds, seed) -> None:
    groups = {f"c{number}": str(group) for number, (group, _) in enumerate(cases)}
    classes = {f"c{number}": tuple(names) for number, (_, names) in enumerate(cases)}
    if len(set(groups.values())) < n_folds:
        with pytest.raises(DatasetError):
            assign_folds(groups, n_folds=n_folds, seed=seed, classes=classes)
        return
    folds = assign_folds(groups, n_folds=n_folds, seed=seed, classes=classes)
    assert folds.keys() == groups.keys()
    assert set(folds.values()) == set(range(n_folds))
    assert all(folds[a] == folds[b] for a in groups for b in groups if groups[a] == groups[b])
    in_order = dict(sorted(groups.items(), reverse=True))
    assert folds == assign_folds(in_order, n_folds=n_folds, seed=seed, classes=classes)
    # Those of half of the cases stay when the others join them.
    half = {case: folds[case] for case in list(groups)[::2]}
    more = assign_folds(groups, n_folds=n_folds, seed=seed, classes=classes, assigned=half)
    assert half.items() <= more.items()


@given(
    st.lists(st.sampled_from("abcde"), min_size=2, max_size=80), st.integers(2, 6), st.integers()
)
def test_of_single_cases_in_one_class_each_no_fold_has_two_more(letters, n_folds, seed) -> None:
    classes = {f"c{number}": (letter,) for number, letter in enumerate(letters)}
    if len(classes) < n_folds:
        return
    found = spread(
        assign_folds({c: c for c in classes}, n_folds=n_folds, seed=seed, classes=classes), classes
    )
    for name in (None, *letters):
        counts = [found[fold, name] for fold in range(n_folds)]
        assert max(counts) - min(counts) <= 1


@given(CASES, st.integers(2, 6), st.integers())
def test_a_group_more_explains_any_difference_in_size(cases, n_folds, seed) -> None:
    groups = {f"c{number}": str(group) for number, (group, _) in enumerate(cases)}
    if len(set(groups.values())) < n_folds:
        return
    sizes = Counter(assign_folds(groups, n_folds=n_folds, seed=seed).values())
    assert max(sizes.values()) - min(sizes.values()) <= max(Counter(groups.values()).values())
