"""Reasons why a folder holds no case: the files in it, and one way to read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.case import Case, name_of, stem_of
from dask_slicer.inputs.layouts.base import NAME_THEM, LayoutMatch
from dask_slicer.inputs.parent import MatchTree, half_of_a_dataset, in_a_subject, is_a_case
from dask_slicer.inputs.role_words import (
    folder_role,
    held_out_split,
    label_words,
    named_like_labels,
    names_an_image,
    says_only_its_role,
    words_of,
)
from dask_slicer.inputs.tree import FileTree
from dask_slicer.inputs.unread import DICOM, kinds_of, suffix_of, unread_files
from dask_slicer.utils.formatting import first_few, plural

# Of a search in the folders of a folder: how deep, and how many of each level.
_DEEPEST, _MOST_FOLDERS = 3, 12
# A single case of these layouts is no sign of a dataset: any folder with volumes has it.
_GENERIC = {"a folder a case", "one folder"}


def why_no_case(tree: FileTree, misses: Sequence[LayoutMatch], match_tree: MatchTree) -> str:
    """Return what a folder without a case holds, and one way out.

    Parameters
    ----------
    tree : FileTree
    misses : sequence of LayoutMatch
        Of the layouts that were tried.
    match_tree : callable
        Returns the match of the first layout that finds a case in a folder, None if none does.
    """
    if not tree.paths:
        return "there is no file in it"
    n_volumes = len(tree.volumes)
    if n_volumes and (
        part := half_of_a_dataset(tree) or in_a_subject(tree, match_tree) or _named_for_labels(tree)
    ):
        return part
    # Of equals, one that names the option that decides.
    nearest = max(misses, key=lambda match: (match.seen, "--" in match.miss))
    if nearest.seen and 2 * nearest.seen >= n_volumes:
        way_out = "" if "--" in nearest.miss else f"; {NAME_THEM}"
        return f"nearest is {nearest.layout}: {nearest.miss}{way_out}"
    if not n_volumes:
        return _without_volumes(tree)
    return (
        _within(tree, match_tree)
        or _labels_alone(tree)
        or _deeper(tree)
        or _one_case(tree, match_tree)
        or f"{plural(n_volumes, 'volume')} in no known layout, such as {tree.volumes[0]}; "
        f"{NAME_THEM}"
    )


def _named_for_labels(tree: FileTree) -> str:
    name = tree.root.name
    if folder_role(name) != "label" or not says_only_its_role(name):
        return ""
    return "it is named for labels alone; give the folder that holds images and labels"


def _one_case(tree: FileTree, match_tree: MatchTree) -> str:
    if not is_a_case(tree, match_tree):
        return ""
    return f"its files are those of one case; did you mean --input_dir {tree.root.parent}?"


def _without_volumes(tree: FileTree) -> str:
    """Return the kinds of files in a folder that holds none that is read."""
    if unread := unread_files(tree):
        kind, *others = kinds_of(unread)
        also = first_few([other.partition(":")[0] for other in others])
        return kind + (f" (also {also})" if others else "")
    unnamed = [path for path in tree.paths if not suffix_of(path)]
    if unnamed and _is_dicom(tree, unnamed[0]):
        return f"{plural(len(unnamed), 'file')} without a suffix: {DICOM}"
    counts = Counter(suffix_of(path) or "no suffix" for path in tree.paths)
    kinds = [f"{n} {suffix}" for suffix, n in counts.most_common()]
    return (
        f"{plural(len(tree.paths), 'file')}, none of them a volume such as .nii.gz "
        f"({first_few(kinds)})"
    )


def _is_dicom(tree: FileTree, path: str) -> bool:
    with suppress(OSError), (tree.root / path).open("rb") as file:
        return file.read(132)[128:] == b"DICM"
    return False


def _within(tree: FileTree, match_tree: MatchTree) -> str:
    """Return which folders in a folder are datasets, empty if none is."""
    for depth in range(1, _DEEPEST + 1):
        folders = sorted(
            {
                path.rsplit("/", path.count("/") - depth + 1)[0]
                for path in tree.volumes
                if path.count("/") >= depth
            }
        )
        matches: dict[str, LayoutMatch] = {}
        for folder in folders[:_MOST_FOLDERS]:
            inside = [p[len(folder) + 1 :] for p in tree.paths if p.startswith(f"{folder}/")]
            with suppress(DatasetError):
                match = match_tree(FileTree(tree.root / folder, inside))
                if match and (match.layout not in _GENERIC or len(match.cases) > len(folders)):
                    matches[folder] = match
        if matches:
            return _datasets(tree, matches)
    return ""


def _datasets(tree: FileTree, matches: dict[str, LayoutMatch]) -> str:
    """Return folders that are datasets, those with labels first."""
    folders = sorted(matches, key=lambda name: -sum(case.has_label for case in matches[name].cases))
    best = matches[folders[0]]
    kind = f"{best.layout}, {plural(len(best.cases), 'case')}"
    path = tree.root / folders[0]
    if len(folders) == 1:
        return f"its folder {folders[0]} is a dataset ({kind}); did you mean --input_dir {path}?"
    way_out = f"give one, such as --input_dir {path}"
    if all(len(match.cases) == 1 for match in matches.values()) and not any(
        map(held_out_split, folders)
    ):
        way_out = f"read all with {_patterns(tree, folders[0], best.cases[0])}"
    return f"its folders {first_few(folders)} are datasets (the first: {kind}); {way_out}"


def _patterns(tree: FileTree, folder: str, case: Case) -> str:
    """Return patterns for the files of datasets of one case each, of which one is in a folder."""
    options = [("images", path) for path in case.image_files]
    options += [("labels", path) for path in case.label_files[:1]]
    above = "*/" * (folder.count("/") + 1)
    return " ".join(
        f"--{option} '{above}{Path(path).parent.relative_to(tree.root / folder).as_posix()}/*'"
        for option, path in options
    )


def _labels_alone(tree: FileTree) -> str:
    """Return that all volumes are named like labels, empty if some are not."""
    if not all(label_words(words_of(path)) for path in tree.volumes):
        return ""
    return (
        f"{plural(len(tree.volumes), 'volume')}, all named like labels, such as "
        f"{tree.volumes[0]}; give the folder that holds images and labels"
    )


def _deeper(tree: FileTree) -> str:
    """Return patterns for images and labels that lie some folders down, empty if depths differ."""
    depths = {path.count("/") for path in tree.volumes}
    if len(depths) != 1:
        return ""
    (depth,) = depths
    if not depth or any(label_words(words_of(folder)) for folder in tree.by_folder):
        return ""
    names = [name_of(path) for path in tree.volumes]
    common = _common_names(names, len(tree.by_folder))
    are_labels = named_like_labels([stem_of(name) for name in common])
    folders = "*/" * depth
    patterns = [
        f"--{'labels' if is_label else 'images'} '{folders}{name}'"
        for name, is_label in sorted(zip(common, are_labels, strict=True), key=lambda pair: pair[1])
    ]
    others = [
        path
        for path, name in zip(tree.volumes, names, strict=True)
        if not any(fnmatch(name, pattern) for pattern in common)
    ]
    is_label_lost = any(label_words(words_of(path)) for path in others)
    if are_labels.count(True) > 1 or all(are_labels) or is_label_lost:
        return ""
    images = [name for name, is_label in zip(common, are_labels, strict=True) if not is_label]
    unsure = [name for name in images if not names_an_image(stem_of(name))] if images[1:] else []
    if len(unsure) == len(images) > 1:  # perhaps patients
        return ""
    doubt = f"; use --labels for a label map among {first_few(unsure)}" if unsure else ""
    return (
        f"{plural(len(names), 'volume')} {plural(depth, 'folder')} down, such as "
        f"{tree.volumes[0]}; read them with {' '.join(patterns)}{doubt}"
    )


def _common_names(names: Sequence[str], n_folders: int) -> list[str]:
    """Return file names, or patterns of their ends, that at least half of the folders have."""
    ends = [f"*{name[name.rfind('_') :]}" for name in names if "_" in name]
    for candidates in (names, ends):
        common = [name for name, n in sorted(Counter(candidates).items()) if 2 * n >= n_folders > 1]
        if common:
            return common
    suffixes = sorted({f"*{name[len(stem_of(name)) :]}" for name in names})
    return suffixes if not any(label_words(words_of(name)) for name in names) else []
