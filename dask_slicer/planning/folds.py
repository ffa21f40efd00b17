"""Folds of a cross-validation over the cases that are not for test, as nnU-Net lists them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dask_slicer.config.dataset_settings import BY_LABEL
from dask_slicer.config.schema import RunConfig
from dask_slicer.core.splits import assign_folds
from dask_slicer.errors import DatasetError
from dask_slicer.planning.case_table import CaseTable, class_counts, column_classes
from dask_slicer.utils.formatting import escape_line, first_few, natural_key, plural

FOLD_PARTS = ("train", "val")
_MOST_FOLDS_SHOWN = 10

# The content of splits_final.json.
FoldList = list[dict[str, list[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldSettings:
    """The settings of folds, as dataset_info.json keeps them under the key `folds`."""

    number: int
    seed: int
    stratify: str | None = None
    group_column: str | None = None  # of `dask-slicer split`; None: the groups of the run

    @classmethod
    def of_run(cls, config: RunConfig) -> FoldSettings | None:
        """Return the settings of a run, None if it makes no folds."""
        if config.folds is None:
            return None
        return cls(number=config.folds, seed=config.seed, stratify=config.stratify)

    @classmethod
    def parse(cls, summary: Mapping[str, Any]) -> FoldSettings | None:
        """Return the settings in dataset_info.json, None if there are none or they are damaged."""
        try:
            settings = cls(**summary["folds"])
        except (KeyError, TypeError):
            return None
        is_valid = type(settings.number) is type(settings.seed) is int and settings.number > 1
        columns = (settings.stratify, settings.group_column)
        is_valid &= all(isinstance(name, str | None) for name in columns)
        return settings if is_valid else None

    def summary(self) -> dict[str, Any]:
        """Return the settings as dataset_info.json holds them."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Folds:
    """Folds and what decided them.

    Attributes
    ----------
    settings : FoldSettings
    fold_of : dict of case id to int
        The fold in which a case is for validation; empty until the labels are known.
    classes : dict of case id to tuple of str
        For stratification; a case may have none.
    """

    settings: FoldSettings
    fold_of: dict[str, int] = field(default_factory=dict)
    classes: Mapping[str, Collection[str]] = field(default_factory=dict)

    def content(self) -> FoldList:
        """Return the content of splits_final.json.

        >>> settings = FoldSettings(number=2, seed=1)
        >>> Folds(settings=settings, fold_of={"a": 0, "b": 1}).content()
        [{'train': ['b'], 'val': ['a']}, {'train': ['a'], 'val': ['b']}]
        """
        return [
            {
                "train": [case for case, fold in sorted(self.fold_of.items()) if fold != number],
                "val": [case for case, fold in sorted(self.fold_of.items()) if fold == number],
            }
            for number in range(self.settings.number)
        ]

    def lines(self) -> list[str]:
        """Return the folds as lines of text: their sizes, and the classes in validation."""
        by = "" if self.settings.stratify is None else f", stratified by {self.settings.stratify}"
        if not self.fold_of:
            return [f"Folds: {self.settings.number}{by}, made when all cases have been run"]
        lines = [f"Folds: {self.settings.number} of {plural(len(self.fold_of), 'case')}{by}"]
        for number, fold in enumerate(self.content()[:_MOST_FOLDS_SHOWN]):
            classes = class_counts(fold["val"], self.classes)
            classes = f" ({self.settings.stratify} {classes})" if by else ""
            lines.append(
                f"Fold {number}: {len(fold['train'])} train, {len(fold['val'])} val{classes}"
            )
        if self.settings.number > _MOST_FOLDS_SHOWN:
            lines.append(f"… and {self.settings.number - _MOST_FOLDS_SHOWN} more folds")
        return lines

    def notes(self) -> list[str]:
        """Return notes on classes that are too small for the number of folds."""
        counts = Counter(name for case in self.fold_of for name in self.classes.get(case, ()))
        small = [name for name, count in counts.items() if count < self.settings.number]
        if not small:
            return []
        names = first_few([escape_line(name) for name in sorted(small, key=natural_key)])
        return [
            f"{self.settings.stratify} {names}: fewer cases than folds, so some folds have none "
            "for validation"
        ]


def make_folds(
    settings: FoldSettings,
    splits: Mapping[str, str],
    table: CaseTable,
    *,
    labels: Mapping[str, Collection[str]] | None = None,
    assigned: Mapping[str, int] | None = None,
) -> Folds:
    """Return the folds of the cases that are not for test.

    Parameters
    ----------
    settings : FoldSettings
    splits : mapping of case id to split
    table : CaseTable
    labels : mapping of case id to collection of str, optional
        The label values in each case. Without them, folds that these decide are left open.
    assigned : mapping of case id to int, optional
        Cases keep the fold that they have here.

    Raises
    ------
    DatasetError
        If no case has a value in a column that is named, or there are fewer groups than folds, or
        a group has cases for test and others.
    """
    by_column = settings.group_column
    known = table.groups if by_column is None else table.grouped_by(by_column)
    group_of = {case: known.get(case, case) for case in splits}
    groups = {case: group for case, group in group_of.items() if splits[case] != "test"}
    tested = {group_of[case] for case in splits if splits[case] == "test"}
    if broken := sorted(case for case, group in groups.items() if group in tested):
        raise DatasetError(
            f"group {groups[broken[0]]} lies in {splits[broken[0]]} and in test: folds would train "
            f"on patients of test ({plural(len(broken), 'case')}, such as {broken[0]}); make the "
            "splits again with these groups: run with --group_column and --overwrite"
        )
    classes: Mapping[str, Collection[str]] = {}
    if settings.stratify == BY_LABEL:
        classes = labels or {}
    elif settings.stratify is not None:
        classes = column_classes(table.column(settings.stratify, "stratify"))
    fold_of = assign_folds(
        groups, n_folds=settings.number, seed=settings.seed, classes=classes, assigned=assigned
    )
    is_open = settings.stratify == BY_LABEL and labels is None
    return Folds(settings=settings, fold_of={} if is_open else fold_of, classes=classes)


def fold_of_cases(folds: Sequence[Mapping[str, Sequence[str]]]) -> dict[str, int]:
    """Return the first fold in which each case is for validation."""
    fold_of: dict[str, int] = {}
    for number, fold in enumerate(folds):
        for case in fold["val"]:
            fold_of.setdefault(case, number)
    return fold_of


def parse_folds(content: Any) -> FoldList:
    """Return the content of splits_final.json; raise ValueError if it is damaged.

    >>> parse_folds([{"train": ["a"], "val": ["b"]}])
    [{'train': ['a'], 'val': ['b']}]
    """
    if not isinstance(content, list):
        raise ValueError("it is no list of folds")
    for number, fold in enumerate(content):
        parts = [fold.get(part) if isinstance(fold, dict) else None for part in FOLD_PARTS]
        for names in parts:
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"fold {number} has no lists of case ids under train and val")
    return content
