"""Input folders that are a part of a dataset only, such as the folder of one case."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.layouts.base import LayoutMatch
from dask_slicer.inputs.role_words import folder_role, says_only_its_role
from dask_slicer.inputs.tree import FileTree

# So many folders beside the input are looked at, and so many files of the input are looked for.
_MOST_FOLDERS, _MOST_FILES = 12, 4
# A file in the folder of a subject may be this deep: sub-01/ses-1/anat.
_DEEPEST_IN_SUBJECT = 3
# Layouts in which labels beside the input would be missed.
_BY_NAMES = {"BIDS", "a folder a case", "images/ and labels/", "one folder"}

MatchTree = Callable[[FileTree], LayoutMatch | None]


def check_is_whole(
    tree: FileTree, match: LayoutMatch, match_tree: MatchTree, *, allow_missing_labels: bool
) -> None:
    """Raise DatasetError if labels of the cases are beside the input; note a folder of one case."""
    if match.layout not in _BY_NAMES:
        return
    if not (allow_missing_labels or any(case.has_label for case in match.cases)) and (
        half := half_of_a_dataset(tree, match_tree)
        or in_a_subject(tree, match_tree, needs_labels=True)
    ):
        raise DatasetError(
            f"no case of {tree.root} has a label: {half} --layout NAME or --allow_missing_labels "
            "reads it alone"
        )
    if len(match.cases) == 1 and (sibling := _sibling(tree)) and is_a_case(tree, match_tree):
        text = (
            f"{sibling} beside {tree.root.name} has files of the same names; --input_dir "
            f"{tree.root.parent} reads both as cases"
        )
        (match.problems or match.notes).append(text)


def half_of_a_dataset(tree: FileTree, match_tree: MatchTree | None = None) -> str:
    """Return which folder beside the input has its labels or images, by names; empty if none.

    With `match_tree`, only if the two folders together have a case with a label.
    """
    root = tree.root
    is_label = folder_role(root.name) == "label" or root.name == "derivatives"
    is_bids = root.name in ("derivatives", "rawdata")
    if not (is_bids or says_only_its_role(root.name)):
        return ""
    others = []
    for name in sorted(_folders_in(root.parent)):
        if is_bids:
            is_other = name.startswith("sub-") if is_label else False
            is_other |= name in ("derivatives", "rawdata") and name != root.name
        else:
            role = folder_role(name)
            is_other = bool(role) and (role == "label") != is_label
        if is_other:
            others.append(name)
    for name in others[:_MOST_FOLDERS]:
        if match_tree is None or _has_labels(root.parent, name, tree, match_tree):
            return (
                f"{root.name} and {name} lie beside each other; did you mean --input_dir "
                f"{root.parent}?"
            )
    return ""


def in_a_subject(tree: FileTree, match_tree: MatchTree, *, needs_labels: bool = False) -> str:
    """Return that the input is in the folder of a BIDS subject; empty if it is not.

    With `needs_labels`, only if the derivatives of the dataset have labels of the input.
    """
    inside, root = "", tree.root
    for _ in range(_DEEPEST_IN_SUBJECT):
        inside, root = f"{root.name}/{inside}", root.parent
        if inside.startswith("sub-"):
            places = (root, root.parent) if root.name == "rawdata" else (root,)
            if needs_labels and not any(
                _has_labels(place, "derivatives", tree, match_tree) for place in places
            ):
                return ""
            match = _match_above(root, inside, tree, match_tree)
            if match is not None and match.layout == "BIDS":
                return f"it is a part of a BIDS dataset; did you mean --input_dir {places[-1]}?"
    return ""


def is_a_case(tree: FileTree, match_tree: MatchTree) -> bool:
    """Return whether the input is the folder of one case, in a folder of such folders."""
    match = _match_above(tree.root.parent, f"{tree.root.name}/", tree, match_tree)
    return match is not None and match.layout == "a folder a case"


def _match_above(
    root: Path, inside: str, tree: FileTree, match_tree: MatchTree
) -> LayoutMatch | None:
    """Return the match of a folder above the input that holds nothing but the input."""
    with suppress(DatasetError):
        return match_tree(FileTree(root, [inside + path for path in tree.paths]))
    return None


def _has_labels(root: Path, other: str, tree: FileTree, match_tree: MatchTree) -> bool:
    """Return whether a case has a label if a folder above holds the input and one folder more."""
    with suppress(DatasetError, OSError):
        inside = tree.root.relative_to(root).as_posix()
        paths = [f"{other}/{path}" for path in FileTree.scan(root / other).paths]
        match = match_tree(FileTree(root, paths + [f"{inside}/{path}" for path in tree.paths]))
        return match is not None and any(case.has_label for case in match.cases)
    return False


def _sibling(tree: FileTree) -> str:
    """Return a folder beside the input with a file of the same name, or with its name in it."""
    root = tree.root
    for name in islice(_folders_in(root.parent), _MOST_FOLDERS):
        paths = (path.replace(root.name, name) for path in tree.volumes[:_MOST_FILES])
        if name != root.name and any((root.parent / name / path).is_file() for path in paths):
            return name
    return ""


def _folders_in(folder: Path) -> Iterable[str]:
    with suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir():
                yield path.name
