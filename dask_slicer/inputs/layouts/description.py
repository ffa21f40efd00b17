"""Content of dataset.json and of datalists: entries, folds, names of channels and labels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.case import given_cells, is_volume_name, name_of
from dask_slicer.utils.formatting import first_few

# By section, the keys under which it is; MONAI and its users write all of them.
SECTIONS = {
    "training": ("training", "train"),
    "validation": ("validation", "val"),
    "test": ("test", "testing"),
}
_ALL_KEYS = {key for keys in SECTIONS.values() for key in keys}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A case as dataset.json lists it; paths as they are written."""

    images: tuple[str, ...]
    label: str | None = None
    case_id: str = ""  # if the file names it
    fold: str = ""
    others: tuple[str, ...] = ()  # keys under which there are names of other volumes
    columns: Mapping[str, str] = field(default_factory=dict)  # other keys of texts or numbers


def is_datalist(content: Any) -> bool:
    """Return whether the content of a JSON file lists images: Decathlon, MONAI, or nnU-Net v2."""
    return isinstance(content, dict) and (
        names_cases(content) or any(isinstance(content.get(key), list) for key in _ALL_KEYS)
    )


def names_cases(content: Mapping[str, Any]) -> bool:
    """Return whether there is nnU-Net's key `dataset`: {case: {images, label}}."""
    cases = content.get("dataset")
    return isinstance(cases, dict) and any(
        isinstance(case, dict) and "images" in case for case in cases.values()
    )


def entries_of(content: Mapping[str, Any], section: str, source: str) -> list[Entry]:
    """Return the entries of a section; none if there is no such section.

    Raises
    ------
    DatasetError
        If something in it is not understood: it might be a case, or a label.
    """
    if section == "training" and names_cases(content):
        return [
            _expanded(_entry(value, f"{name} under `dataset` of {source}", case_id=name))
            for name, value in content["dataset"].items()
        ]
    keys = [key for key in SECTIONS[section] if content.get(key)]
    if len(keys) > 1:
        raise DatasetError(f"{source} lists images under {' and '.join(keys)}; keep one of them")
    entries = content[keys[0]] if keys else []
    if isinstance(entries, int | float):
        return []
    if not isinstance(entries, list):
        raise DatasetError(f"`{keys[0]}` of {source} must be a list")
    return [
        _entry(value, f"entry {number} under `{keys[0]}` of {source}")
        for number, value in enumerate(entries, start=1)
    ]


def _entry(value: object, where: str, *, case_id: str = "") -> Entry:
    if isinstance(value, str) and value.strip():
        return Entry(images=(value,))
    if not isinstance(value, dict):
        raise DatasetError(f"{where} is neither a path nor an object with image and label")
    images = value.get("images" if case_id and "images" in value else "image")
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not images or not all(map(_is_path, images)):
        raise DatasetError(f"{where} has no `image` that is a path or a list of paths")
    label = value.get("label")
    if isinstance(label, list) and len(label) == 1:
        label = label[0]
    if isinstance(label, list) and label and all(map(_is_path, label)):
        raise DatasetError(
            f"{where} lists {len(label)} labels, and values of their structures are not known; "
            "give a manifest with a column label:NAME for each structure as --input_dir"
        )
    if label is not None and label != "" and not _is_path(label):
        raise DatasetError(f"{where} has a `label` that is no path")
    used = {"image", "images", "label"}
    others = tuple(key for key, text in value.items() if key not in used and _names_volume(text))
    return Entry(
        images=tuple(images),
        label=label or None,
        case_id=case_id,
        fold=str(value.get("fold", "")),
        others=others,
        columns=given_cells(
            {key: text for key, text in value.items() if key not in {*used, *others, "fold"}}
        ),
    )


def _expanded(entry: Entry) -> Entry:
    """Return an entry whose paths may begin with ``$nnUNet_raw``, as nnU-Net reads them."""
    images = tuple(map(os.path.expandvars, entry.images))
    return replace(entry, images=images, label=entry.label and os.path.expandvars(entry.label))


def _is_path(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _names_volume(value: object) -> bool:
    """Return whether a value is the path of a volume, or a list with one."""
    values = value if isinstance(value, list) else [value]
    return any(isinstance(text, str) and is_volume_name(name_of(text)) for text in values)


def unread_keys(content: Mapping[str, Any]) -> list[str]:
    """Return the keys outside the known sections under which images are listed."""
    keys = [
        key
        for key, value in content.items()
        if key not in _ALL_KEYS
        and isinstance(value, list)
        and any(
            _names_volume(entry.get("image") if isinstance(entry, dict) else entry)
            for entry in value
        )
    ]
    if names_cases(content):
        keys += [key for key in SECTIONS["training"] if content.get(key)]
    return keys


def channel_names(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the channels in their order; none if they are not clear.

    >>> channel_names({"modality": {"1": "T2", "0": "FLAIR"}})
    ('FLAIR', 'T2')
    """
    names = content.get("channel_names", content.get("modality"))
    if isinstance(names, str):
        names = [names]
    if isinstance(names, list):
        names = {str(number): name for number, name in enumerate(names)}
    if not isinstance(names, dict) or not all(map(_is_path, names.values())):
        return ()
    if set(names) != set(map(str, range(len(names)))):
        return ()
    return tuple(" ".join(names[str(number)].split()) for number in range(len(names)))


def label_names(content: Mapping[str, Any], source: str, notes: list[str]) -> dict[int, str]:
    """Return the names of label values, without the background; note those that have no value.

    >>> label_names({"labels": {"background": 0, "liver": 1}}, "dataset.json", [])
    {1: 'liver'}
    >>> label_names({"labels": {"0": "background", "1": "liver"}}, "dataset.json", [])
    {1: 'liver'}
    """
    labels = content.get("labels")
    names: dict[int, str] = {}
    regions = []
    for name, value in _names_and_values(labels if isinstance(labels, dict) else {}):
        if value is None:
            regions.append(name)
        elif value > 0:
            names.setdefault(value, name)
    if regions:
        notes.append(
            f"labels in {source} that are not one value, left without a name: {first_few(regions)}"
        )
    return dict(sorted(names.items()))


def _names_and_values(labels: Mapping[str, Any]) -> Iterator[tuple[str, int | None]]:
    """Yield names with their values, None for regions, in either direction of the mapping."""
    for key, value in labels.items():
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, str) and key.isdecimal():
            yield " ".join(value.split()), int(key[:18])
        elif isinstance(value, str) and value.isdecimal():
            yield " ".join(key.split()), int(value[:18])
        elif isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0:
            yield " ".join(key.split()), int(value)
        else:
            yield " ".join(key.split()), None
