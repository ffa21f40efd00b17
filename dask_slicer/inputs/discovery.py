"""Discovery of the cases of a dataset, with the first layout that matches."""

from __future__ import annotations

from pathlib import Path

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.accounting import account, check_labels
from dask_slicer.inputs.case import case_id_problems
from dask_slicer.inputs.choices import apply_choices
from dask_slicer.inputs.layouts import LAYOUTS, manifest, patterns
from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch
from dask_slicer.inputs.tree import FileTree


def find_cases(
    input_dir: Path,
    options: InputOptions | None = None,
    *,
    skip: Path | None = None,
    allow_missing_labels: bool = False,
) -> LayoutMatch:
    """Return the cases of a folder in a known layout, or of a CSV or JSON manifest.

    `skip` is a folder in it that is no part of the dataset, such as an output.
    """
    options = options or InputOptions()
    if not input_dir.exists():
        raise DatasetError(f"input_dir {input_dir} does not exist")
    if input_dir.is_dir():
        tree = FileTree.scan(input_dir, skip=skip)
        match = patterns.match(tree, options) if options.images else _first_match(tree, options)
    else:
        if input_dir.suffix.lower() not in (".csv", ".json"):
            raise DatasetError(
                f"input_dir {input_dir} is neither a folder nor a .csv or .json manifest"
            )
        tree = FileTree(input_dir.parent, [])  # files that the manifest does not name stay unseen
        match = manifest.read_manifest(input_dir)
    problems = case_id_problems(case.case_id for case in match.cases)
    match.problems = list(dict.fromkeys(match.problems + problems))
    apply_choices(tree, match, options)
    match.cases.sort(key=lambda case: case.case_id)
    match.files = account(tree, match)
    if match.layout != "manifest":
        check_labels(tree, match, allow_missing=allow_missing_labels)
    return match


def _first_match(tree: FileTree, options: InputOptions) -> LayoutMatch:
    misses = []
    for name, layout in LAYOUTS.items():
        if options.layout not in (None, name):
            continue
        match = layout.match(tree, options)
        if match.cases:
            return match
        misses.append(match)
    if options.layout:
        (miss,) = misses
        raise DatasetError(
            f"no case found in {tree.root} with --layout {options.layout}: {miss.miss}"
        )
    # Stable: the usual layouts first, the manifest last.
    nearest, *others = sorted((*misses[1:], misses[0]), key=lambda match: -match.seen)
    tried = "; ".join(f"{match.layout}: {match.miss}" for match in others)
    raise DatasetError(
        f"no case found in {tree.root}; nearest is {nearest.layout}: {nearest.miss} "
        f"(also tried: {tried})"
    )
