"""Discovery of the cases of a dataset, with the first layout that matches."""

from __future__ import annotations

from pathlib import Path

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.accounting import account, check_labels
from dask_slicer.inputs.case import case_id_problems
from dask_slicer.inputs.layouts import LAYOUTS, manifest, patterns
from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch
from dask_slicer.inputs.modalities import select_modalities
from dask_slicer.inputs.tree import FileTree

# Layouts, by their names for --layout, in which a case may have several labels.
_CHOOSE_LABELS = {"bids", "folder_per_case", "images_and_labels", "one_folder"}


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
        match = _first_match(tree, options)
    else:
        if input_dir.suffix.lower() not in (".csv", ".json"):
            raise DatasetError(
                f"input_dir {input_dir} is neither a folder nor a .csv or .json manifest"
            )
        tree = FileTree(input_dir.parent, [])  # files that the manifest does not name stay unseen
        match = manifest.read_manifest(input_dir)
    problems = case_id_problems(case.case_id for case in match.cases)
    match.problems = list(dict.fromkeys(match.problems + problems))
    select_modalities(tree, match, options.modalities)
    match.cases.sort(key=lambda case: case.case_id)
    match.files = account(tree, match)
    if match.layout != "manifest":
        check_labels(tree, match, allow_missing=allow_missing_labels)
    return match


def _first_match(tree: FileTree, options: InputOptions) -> LayoutMatch:
    if options.images:
        return patterns.match(tree, options)
    misses = []
    for name, layout in LAYOUTS.items():
        if options.layout not in (None, name):
            continue
        match = layout.match(tree, options)
        if match.cases:
            _refuse_unused(options, name, match)
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


def _refuse_unused(options: InputOptions, layout: str, match: LayoutMatch) -> None:
    """Add the problem of options that choose labels and that a layout does not heed."""
    if options.label_name and layout not in _CHOOSE_LABELS:
        match.problems.append(f"--label_name has no effect in the layout {match.layout}")
    if options.structures and not any(case.masks for case in match.cases):
        match.problems.append(f"--structures: the layout {match.layout} has no masks of structures")
