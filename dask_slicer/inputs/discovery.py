"""Discovery of the cases of a dataset, with the first layout that matches."""

from __future__ import annotations

from pathlib import Path

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.accounting import account, unread_notes
from dask_slicer.inputs.case import case_id_problems
from dask_slicer.inputs.choices import apply_choices
from dask_slicer.inputs.label_check import check_labels
from dask_slicer.inputs.layouts import LAYOUTS, manifest, patterns
from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch
from dask_slicer.inputs.no_case import why_no_case
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
    match.notes += unread_notes(match.files)
    if match.layout != "manifest":
        check_labels(tree, match, allow_missing=allow_missing_labels, label_name=options.label_name)
    return match


def _first_match(tree: FileTree, options: InputOptions) -> LayoutMatch:
    match, misses = _try_layouts(tree, options)
    if match is None and options.layout and tree.volumes:
        raise DatasetError(
            f"no case found in {tree.root} with --layout {options.layout}: {misses[0].miss}"
        )
    if match is None:
        why = why_no_case(tree, misses, lambda part: _try_layouts(part, options)[0])
        raise DatasetError(f"no case found in {tree.root}: {why}")
    return match


def _try_layouts(
    tree: FileTree, options: InputOptions
) -> tuple[LayoutMatch | None, list[LayoutMatch]]:
    """Return the match of the first layout that finds a case, and those of layouts before it."""
    misses: list[LayoutMatch] = []
    for name, layout in LAYOUTS.items():
        if options.layout in (None, name):
            match = layout.match(tree, options)
            if match.cases:
                return match, misses
            misses.append(match)
    return None, misses
