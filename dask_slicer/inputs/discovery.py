"""Discovery of the cases of a dataset, with the first layout that matches."""

from __future__ import annotations

from pathlib import Path

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.case import case_id_problems
from dask_slicer.inputs.layouts import LAYOUTS, manifest
from dask_slicer.inputs.layouts.base import LayoutMatch


def find_cases(input_dir: Path, *, include_test: bool = False) -> LayoutMatch:
    """Return the cases of a folder in a known layout, or of a CSV or JSON manifest."""
    if not input_dir.exists():
        raise DatasetError(f"input_dir {input_dir} does not exist")
    layouts = (manifest, *LAYOUTS) if input_dir.is_dir() else (manifest,)
    misses = []
    try:
        for layout in layouts:
            match = layout.match(input_dir, include_test=include_test)
            if match.cases:
                problems = case_id_problems(case.case_id for case in match.cases)
                match.problems = list(dict.fromkeys(match.problems + problems))
                match.cases.sort(key=lambda case: case.case_id)
                return match
            misses.append(match)
    except PermissionError as error:
        raise DatasetError(f"cannot list {error.filename}: {error.strerror}") from None
    if not input_dir.is_dir():
        raise DatasetError(
            f"input_dir {input_dir} is neither a folder nor a .csv or .json manifest"
        )
    # Stable: the usual layouts first, the manifest last.
    nearest, *others = sorted((*misses[1:], misses[0]), key=lambda match: -match.seen)
    tried = "; ".join(f"{match.layout}: {match.miss}" for match in others)
    raise DatasetError(
        f"no case found in {input_dir}; nearest is {nearest.layout}: {nearest.miss} "
        f"(also tried: {tried})"
    )
