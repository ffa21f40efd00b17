"""Discovery of the cases of a dataset, with the first layout that matches."""

from __future__ import annotations

from pathlib import Path

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.accounting import account, unread_notes
from dask_slicer.inputs.case import case_id_problems, sorted_cases
from dask_slicer.inputs.choices import apply_choices
from dask_slicer.inputs.label_check import check_labels
from dask_slicer.inputs.layouts import LAYOUTS, dataset_json, manifest, patterns
from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch
from dask_slicer.inputs.no_case import why_no_case
from dask_slicer.inputs.parent import check_is_whole
from dask_slicer.inputs.tree import FileTree


def find_cases(
    input_dir: Path,
    options: InputOptions | None = None,
    *,
    skip: Path | None = None,
    tree: FileTree | None = None,
    allow_missing_labels: bool = False,
) -> LayoutMatch:
    """Return the cases of a folder in a known layout, or of a CSV or JSON manifest.

    `skip` is a folder in it that is no part of the dataset, such as an output; `tree` are the files
    of the folder, if they have been listed.
    """
    options = options or InputOptions()
    if not input_dir.exists():
        raise DatasetError(f"input_dir {input_dir} does not exist")
    if input_dir.is_dir():
        tree = tree or FileTree.scan(input_dir, skip=skip)
        match = patterns.match(tree, options) if options.images else _first_match(tree, options)
    else:
        tree = FileTree(input_dir.parent, [])  # files that it does not name stay unseen
        match = _read_file(tree, input_dir, options)
    if options.datalist_fold is not None and match.layout not in dataset_json.NAMES:
        raise DatasetError(
            f"--datalist_fold needs a datalist, and {input_dir} is read as {match.layout}"
        )
    problems = case_id_problems(case.case_id for case in match.cases)
    match.problems = list(dict.fromkeys(match.problems + problems))
    apply_choices(tree, match, options)
    match.cases = sorted_cases(match.cases)
    match.files = account(tree, match)
    match.notes += unread_notes(match.files)
    check_labels(tree, match, allow_missing=allow_missing_labels, label_name=options.label_name)
    if options.layout is None:  # else the user is sure
        check_is_whole(
            tree,
            match,
            lambda above: _try_layouts(above, options)[0],
            allow_missing_labels=allow_missing_labels,
        )
    return match


def _read_file(tree: FileTree, path: Path, options: InputOptions) -> LayoutMatch:
    """Return the cases that a manifest or a datalist names; its content decides which it is."""
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".json") or not path.is_file():
        raise DatasetError(
            f"input_dir {path} is neither a folder nor a .csv, .tsv or .json manifest"
        )
    content = dataset_json.datalist_in(path) if suffix == ".json" else None
    layout = "manifest" if content is None else "dataset_json"
    if options.images or options.layout not in (None, layout):
        option = "--images" if options.images else f"--layout {options.layout}"
        raise DatasetError(f"{option} is for a folder, and {path} is a file, read as {layout}")
    if content is None:
        return manifest.read_manifest(path)
    match = dataset_json.read_datalist(tree, path.name, content, options)
    if not match.cases:
        raise DatasetError(
            f"no case found in {path}: {match.miss}; if it describes a folder in a known layout, "
            f"use --input_dir {path.parent}"
        )
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
