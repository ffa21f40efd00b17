"""Tables of cases: classes of values and numbers, rows that are kept, and the file."""

from __future__ import annotations

import json

import pytest

from dask_slicer.errors import DatasetError
from dask_slicer.planning.case_table import CaseTable, class_counts, column_classes
from dask_slicer.planning.folds import Folds, FoldSettings, make_folds, parse_folds

AGES = [str(age) for age in range(20, 60)]
CLASSES = {
    "texts": (["F", "M", "F"], {"F": 2, "M": 1}),
    "few_numbers": (["1", "2", "2.0"], {"1": 1, "2": 1, "2.0": 1}),
    "ages": (AGES, {"20 to 29": 10, "30 to 39": 10, "40 to 49": 10, "50 to 59": 10}),
    "one_text_among_numbers": ([*AGES, "young"], dict.fromkeys([*AGES, "young"], 1)),
    "no_finite_number": ([*AGES[:9], "inf"], dict.fromkeys([*AGES[:9], "inf"], 1)),
    "codes_of_sites": ([str(n % 12) for n in range(240)], {str(n): 20 for n in range(12)}),
    "equal_numbers_stay_together": (
        [*["1"] * 30, *map(str, range(2, 12))],
        {"1": 30, "2 to 11": 10},
    ),
    "large_numbers": (
        [str(1_000_000 + n) for n in range(12)],
        {f"{1_000_000 + n} to {1_000_002 + n}": 3 for n in (0, 3, 6, 9)},
    ),
}


@pytest.mark.parametrize(("cells", "counts"), CLASSES.values(), ids=CLASSES)
def test_values_and_numbers_have_their_classes(cells, counts) -> None:
    classes = column_classes({f"c{number}": cell for number, cell in enumerate(cells)})
    found: dict[str, int] = {}
    for (name,) in classes.values():
        found[name] = found.get(name, 0) + 1
    assert found == counts


def test_control_characters_of_a_table_do_not_reach_the_terminal() -> None:
    assert class_counts("a", {"a": ("\x1b[31mF",)}) == "\\x1b[31mF: 1"


def test_a_table_comes_back_from_json_with_any_name() -> None:
    table = CaseTable(groups={"é\udcff": "\ud800"}, columns={"ä": {"é\udcff": "\n"}})
    written = table.text().encode("utf-8", "backslashreplace")
    assert CaseTable.parse(json.loads(written)) == table


@pytest.mark.parametrize(
    "content", [[], {}, {"groups": []}, {"groups": {"a": 1}, "columns": {}}, {"groups": {"a": "b"}}]
)
def test_a_damaged_table_is_refused(content) -> None:
    with pytest.raises(ValueError, match="group"):
        CaseTable.parse(content)


@pytest.mark.parametrize("content", [{}, [1], [{"train": []}], [{"train": [], "val": [1]}]])
def test_damaged_folds_are_refused(content) -> None:
    with pytest.raises(ValueError, match="fold"):
        parse_folds(content)


def test_folds_hold_cases_that_are_not_for_test_and_whole_groups() -> None:
    splits = {"a": "train", "b": "val", "c": "train", "t": "test"}
    table = CaseTable(groups={"a": "p", "b": "q", "c": "p", "t": "t"})
    folds = make_folds(FoldSettings(number=2, seed=1), splits, table)
    assert sorted(fold["val"] for fold in folds.content()) == [["a", "c"], ["b"]]


def test_a_group_in_test_and_elsewhere_has_no_folds() -> None:
    table = CaseTable(columns={"family": {"a": "x", "b": "y", "c": "z", "t": "x"}})
    settings = FoldSettings(number=2, seed=1, group_column="family")
    splits = {"a": "train", "b": "train", "c": "train", "t": "test"}
    with pytest.raises(DatasetError, match="group x lies in train and in test"):
        make_folds(settings, splits, table)


def test_lines_and_notes_of_many_folds_and_small_classes() -> None:
    cases = {f"c{number:02d}": number % 12 for number in range(24)}
    settings = FoldSettings(number=12, seed=1, stratify="sex")
    folds = Folds(settings=settings, fold_of=cases, classes={"c00": ("F",), "c01": ("M",)})
    lines = folds.lines()
    assert lines[1] == "Fold 0: 22 train, 2 val (sex F: 1, none: 1)"
    assert lines[-1] == "… and 2 more folds"
    assert folds.notes() == [
        "sex F, M: fewer cases than folds, so some folds have none for validation"
    ]


def test_classes_that_are_numbers_are_in_the_order_of_the_numbers() -> None:
    settings = FoldSettings(number=2, seed=1, stratify="label")
    classes = {"a": ("10", "9", "100")}
    folds = Folds(settings=settings, fold_of={"a": 0, "b": 1}, classes=classes)
    assert folds.lines()[1] == "Fold 0: 1 train, 1 val (label 9: 1, 10: 1, 100: 1)"
    assert folds.notes()[0].startswith("label 9, 10, 100: ")


def test_a_column_of_a_table_without_columns_says_what_participants_must_be() -> None:
    with pytest.raises(DatasetError, match=r"no columns \(participants.tsv must have tabs"):
        CaseTable().column("sex", "stratify")
