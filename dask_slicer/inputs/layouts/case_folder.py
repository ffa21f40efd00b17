"""Volumes of the folder of a case: images, labels and masks, by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dask_slicer.inputs.case import name_of, stem_of
from dask_slicer.inputs.layouts.base import LayoutMatch
from dask_slicer.inputs.role_words import (
    ONE_STRUCTURE,
    folder_role,
    label_words,
    named_like_labels,
    plain,
    without,
    words_of,
)

# The name in its case of a file whose name is the case id.
UNNAMED = "image"
# Between the id of a case and the rest of a name.
_SEPARATORS = "_-. "


@dataclass(slots=True)
class CaseFolder:
    """The volumes of a case: paths by name in the case, which is without the case id."""

    images: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    # Folders of one mask a file: names of structures, and paths.
    masks: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def alternatives(self) -> list[str]:
        """Return the names of the labels that the case may have."""
        return [*self.labels, *self.masks]

    @property
    def mask_files(self) -> dict[str, str]:
        """Return the masks by their names in the case, such as segmentations/liver."""
        return {
            f"{folder}/{name}": path
            for folder, masks in self.masks.items()
            for name, path in masks.items()
        }

    @property
    def by_structure(self) -> dict[str, str]:
        """Return every file that may be a mask by what its name says it is of."""
        loose = {_structure(name): path for name, path in self.labels.items()}
        masks = {name: path for masks in self.masks.values() for name, path in masks.items()}
        return {**self.images, **self.labels, **loose, **masks}


def ids_in_names(folders: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the id of each case in the names of its files, by the name of its folder.

    It is the folder's name; or, if all folders are so, what the names of the folder and of all its
    files begin with, unless two ids are equal.

    >>> ids_in_names({"P-1_nifti": ["P-1_nifti/P-1_t1.nii"], "P-2_nifti": ["P-2_nifti/P-2_t1.nii"]})
    {'P-1_nifti': 'P-1', 'P-2_nifti': 'P-2'}
    >>> ids_in_names({"P-1": ["P-1/P-1_t1.nii"], "P-2": ["P-2/t1.nii"]})
    {'P-1': 'P-1', 'P-2': 'P-2'}
    """
    own_names = dict(zip(folders, folders, strict=True))
    ids = {}
    for folder, paths in folders.items():
        stems = [plain(stem_of(name_of(path))) for path in paths]
        ends = [number for number, letter in enumerate(folder) if letter in _SEPARATORS]
        for end in [len(folder), *reversed(ends)]:
            if all(_begins(stem, plain(folder[:end])) for stem in stems):
                break
        else:
            return own_names
        if end == len(folder):
            return own_names
        ids[folder] = folder[:end]
    return ids if len(set(map(plain, ids.values()))) == len(folders) > 1 else own_names


def _begins(stem: str, case_id: str) -> bool:
    following = stem[len(case_id) : len(case_id) + 1]
    return (
        bool(case_id) and stem.startswith(case_id) and (not following or following in _SEPARATORS)
    )


def read_case_folder(
    case_id: str,
    paths: list[str],
    result: LayoutMatch,
    spelled: dict[str, str],
    *,
    in_names: str | None = None,
) -> CaseFolder:
    """Return the volumes of a case by their roles.

    `spelled` gives the spelling of names that look alike, and is added to: T1 and t1 are one name.
    `in_names` is the case id in the names of files, if it is shorter.
    """
    path_of: dict[str, str] = {}
    for path in paths:
        folder, _, file_name = path[len(case_id) + 1 :].rpartition("/")
        name = _without_id(stem_of(file_name), in_names or case_id) or UNNAMED
        name = f"{folder}/{name}" if folder else name
        name = spelled.setdefault(plain(name), name)
        other = path_of.setdefault(name, path)
        if other is not path:
            result.problems.append(
                f"case {case_id} has two files for one modality: "
                f"{name_of(other)} and {name_of(path)}"
            )
    named = CaseFolder()
    loose = []
    for name, path in path_of.items():
        folder, _, structure = name.rpartition("/")
        if any(folder_role(part) == "label" for part in folder.split("/")):
            named.masks.setdefault(folder, {})[structure] = path
        else:
            loose.append(name)
    for folder, masks in list(named.masks.items()):
        if len(masks) == 1 and (only := _label_map(*masks)) is not None:
            named.labels[f"{folder}/{only}"] = named.masks.pop(folder)[only]
    for name, is_label in zip(loose, named_like_labels(loose), strict=True):
        (named.labels if is_label else named.images)[name] = path_of[name]
    organs = [name for name in named.labels if ONE_STRUCTURE.intersection(words_of(name))]
    if len(organs) > 1:  # one alone may be a map of all organs
        named.masks["structures"] = {_structure(name): named.labels.pop(name) for name in organs}
    return named


def _without_id(stem: str, case_id: str) -> str:
    """Return a file's name without the case id at its beginning or end.

    >>> _without_id("B_7_t1", "b_7"), _without_id("t1-B_7", "B_7"), _without_id("ct", "c")
    ('t1', 't1', 'ct')
    """
    own, length = case_id.casefold(), len(case_id)
    if stem[:length].casefold() == own and stem[length : length + 1] in ("", *_SEPARATORS):
        return stem[length:].lstrip(_SEPARATORS)
    if stem[-length:].casefold() == own and stem[-length - 1] in _SEPARATORS:
        return stem[:-length].rstrip(_SEPARATORS)
    return stem


def _label_map(name: str) -> str | None:
    """Return the name of the only file in a folder of labels if it names no structure."""
    words = words_of(name)
    return name if name == UNNAMED or set(words) == label_words(words) else None


def _structure(name: str) -> str:
    """Return the structure that a mask is of, by its name."""
    return without(name, ONE_STRUCTURE | label_words(words_of(name))).rstrip(".") or name


def own_images(named: CaseFolder) -> dict[str, str]:
    """Return the image of each label, nothing unless each label has one.

    Here a word for images tells images apart: t1_mask is not a label of t2.
    """
    image_of = {}
    by_name = {plain(name): name for name in named.images}
    for label in named.labels:
        name = plain(without(label, label_words(words_of(label)))) or UNNAMED
        if named.masks or name not in by_name:
            return {}
        image_of[label] = by_name.pop(name)
    return image_of
