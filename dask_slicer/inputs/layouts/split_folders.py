"""Folders of splits, such as train/ and val/, each with a dataset of one layout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from dask_slicer.core.splits import SPLITS
from dask_slicer.errors import DatasetError
from dask_slicer.inputs.layouts.base import FOR_TESTING, InputOptions, LayoutMatch, held_out_note
from dask_slicer.inputs.role_words import folder_role, image_words, plain, split_of_folder
from dask_slicer.inputs.tree import FileTree, relative_to
from dask_slicer.utils.formatting import first_few, plural


def match_splits(
    tree: FileTree,
    options: InputOptions,
    match_folder: Callable[[FileTree, InputOptions], LayoutMatch],
) -> LayoutMatch | None:
    """Return the cases of folders of splits, None if the dataset has other folders.

    The folders give the splits, if two or more have cases. A folder for testing without labels,
    beside others with labels, is left out unless `include_test`.

    Raises
    ------
    DatasetError
        If two folders have cases of one name, or images of different modalities.
    """
    split_of = folders_of_splits(tree.volumes)
    folders = list(split_of)
    if not folders:
        return None
    matches = {name: match_folder(_part(tree, name), options) for name in folders}
    if not all(match.cases for match in matches.values()):
        return None
    result = LayoutMatch(
        matches[folders[0]].layout, channel_names=matches[folders[0]].channel_names
    )
    labelled = {name for name in folders if any(case.has_label for case in matches[name].cases)}
    if labelled and not options.include_test:
        for name in folders:
            if split_of[name] == "test" and name not in labelled:
                where = f"in {name}/, without labels,"
                result.notes.append(held_out_note(len(matches.pop(name).cases), where))
                paths = (path for path in tree.volumes if path.startswith(f"{name}/"))
                result.left_out |= dict.fromkeys(paths, FOR_TESTING)
    _refuse_equal_names(tree, matches)
    _refuse_modalities(tree, matches)
    is_stated = len({split_of[name] for name in matches}) > 1
    for name, match in matches.items():
        split = split_of[name] if is_stated else None
        for case in match.cases:
            result.cases.append(replace(case, split=case.split or split))
        result.notes += [f"in {name}/: {note}" for note in match.notes]
        result.problems += [f"in {name}/, with paths from there: {p}" for p in match.problems]
        result.left_out |= {f"{name}/{path}": why for path, why in match.left_out.items()}
    first = next(iter(matches))
    result.reason = (
        f"{', '.join(f'{name}/' for name in folders)} "
        f"{'give the splits' if is_stated else 'are folders of splits'}; in {first}/, "
        f"{matches[first].reason}"
    )
    return result


def folders_of_splits(paths: Iterable[str]) -> dict[str, str]:
    """Return the split of each top folder, in the order of splits; none if any is for another use.

    >>> folders_of_splits(["val/p1.nii", "train/p2.nii"]), folders_of_splits(["val/p1.nii"])
    ({'train': 'train', 'val': 'val'}, {})
    """
    split_of = {name: split_of_folder(name) for name in {path.partition("/")[0] for path in paths}}
    if not all(split_of.values()) or len(set(split_of.values())) < 2:
        return {}
    return dict(sorted(split_of.items(), key=lambda item: (SPLITS.index(item[1]), item[0])))


def _part(tree: FileTree, folder: str) -> FileTree:
    paths = [path for path in tree.paths if path.startswith(f"{folder}/")]
    return FileTree(tree.root / folder, [path[len(folder) + 1 :] for path in paths])


def _refuse_equal_names(tree: FileTree, matches: Mapping[str, LayoutMatch]) -> None:
    """Raise DatasetError if two folders have cases of one name."""
    folder_of: dict[str, str] = {}
    for folder, match in matches.items():
        names = {plain(case.case_id): case.case_id for case in match.cases}
        if equal := sorted(names[name] for name in names.keys() & folder_of.keys()):
            other = folder_of[plain(equal[0])]
            raise DatasetError(
                f"{plural(len(equal), 'case')} with the same name in {other}/ and {folder}/: "
                f"{first_few(equal)}; a case needs a name of its own: rename the files, name all "
                f"cases in a manifest, or give one folder, such as --input_dir {tree.root / other}"
            )
        folder_of |= dict.fromkeys(names, folder)


def _refuse_modalities(tree: FileTree, matches: Mapping[str, LayoutMatch]) -> None:
    """Raise DatasetError if the folders have images of different modalities, by their names.

    They would be one channel.
    """
    folder_of: dict[frozenset[str], str] = {}
    for name, match in matches.items():
        if match.layout == "a folder a case":  # a folder is a patient
            folder_of.setdefault(frozenset(match.channel_names), f"{name}/")
            continue
        images = {relative_to(tree.root / name, path) for c in match.cases for path in c.images}
        for folder in sorted({path.partition("/")[0] for path in images}):
            if folder_role(folder) == "modality":
                folder_of.setdefault(frozenset(image_words(folder)), f"{name}/{folder}/")
    if len(folder_of) > 1:
        first = next(iter(matches))
        raise DatasetError(
            f"{' and '.join(folder_of.values())} have different modalities, which would be one "
            f"channel; name the files in a manifest, or give one folder, such as --input_dir "
            f"{tree.root / first}"
        )
