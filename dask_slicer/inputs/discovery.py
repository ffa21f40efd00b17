"""Finding the cases of a dataset with the first layout that matches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.case import Case, case_id_problems
from dask_slicer.inputs.layouts import LAYOUTS, manifest
from dask_slicer.inputs.layouts.base import LayoutMatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """The cases that were found, and what was noticed on the way.

    Attributes
    ----------
    root : Path
        What source paths are relative to.
    layout, reason : str
        Which layout was recognised, and by what.
    cases : tuple of Case
        In the order of their ids.
    notes : tuple of str
        Left out or odd, but no reason to stop.
    problems : tuple of str
        Why the cases cannot be told apart; a run refuses them.
    """

    root: Path
    layout: str
    reason: str
    cases: tuple[Case, ...]
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def find_cases(input_dir: Path, *, include_test: bool = False) -> Dataset:
    """Return the cases of a dataset in any of the known layouts.

    Parameters
    ----------
    input_dir : Path
        A folder, or a CSV or JSON manifest.
    include_test : bool
        Put images that a layout keeps apart for testing into the test split.

    Returns
    -------
    Dataset

    Raises
    ------
    DatasetError
        If no layout fits; names those that were tried, the nearest first.
    """
    if not input_dir.exists():
        raise DatasetError(f"input_dir {input_dir} does not exist")
    try:
        result = manifest.match(input_dir, include_test=include_test)
        if result.cases:
            root = input_dir if input_dir.is_dir() else input_dir.parent
            return _dataset(root, result)
        if not input_dir.is_dir():
            raise DatasetError(
                f"input_dir {input_dir} is neither a folder nor a .csv or .json manifest"
            )
        misses = []
        for layout in LAYOUTS:
            match = layout.match(input_dir, include_test=include_test)
            if match.cases:
                return _dataset(input_dir, match)
            misses.append(match)
        misses.append(result)
    except PermissionError as error:
        raise DatasetError(f"cannot list {error.filename}: {error.strerror}") from None
    misses.sort(key=lambda match: -match.seen)  # stable: the usual layouts first
    nearest, *others = misses
    tried = "; ".join(f"{match.layout}: {match.miss}" for match in others)
    raise DatasetError(
        f"no case found in {input_dir}; nearest is {nearest.layout}: {nearest.miss} "
        f"(also tried: {tried})"
    )


def _dataset(root: Path, match: LayoutMatch) -> Dataset:
    problems = [*match.problems, *case_id_problems(case.case_id for case in match.cases)]
    return Dataset(
        root=root,
        layout=match.layout,
        reason=match.reason,
        cases=tuple(sorted(match.cases, key=lambda case: case.case_id)),
        notes=tuple(match.notes),
        problems=tuple(dict.fromkeys(problems)),
    )
