"""Discovery of the cases of a dataset, with the first layout that matches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.case import Case, case_id_problems
from dask_slicer.inputs.layouts import LAYOUTS, manifest
from dask_slicer.inputs.layouts.base import LayoutMatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """The cases of a dataset, and the layout that found them.

    Attributes
    ----------
    root : Path
        Source paths of the output are relative to it.
    layout, reason : str
        Name of the layout, and by what it was recognised.
    cases : tuple of Case
        Sorted by id.
    notes : tuple of str
        Files left out, and oddities that stop no run.
    problems : tuple of str
        Reasons to refuse the run, such as two cases with one id.
    """

    root: Path
    layout: str
    reason: str
    cases: tuple[Case, ...]
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def find_cases(input_dir: Path, *, include_test: bool = False) -> Dataset:
    """Return the cases of a folder in a known layout, or of a CSV or JSON manifest.

    Without any, the DatasetError names the layouts that were tried, the nearest first.
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
