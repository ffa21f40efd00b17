"""Manifests of cases that were found, as text."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.case import Case, relative_path
from dask_slicer.inputs.layouts.manifest import NO_FILE, check_other_columns
from dask_slicer.inputs.layouts.manifest_table import Table, column_name


def manifest_text(
    cases: Sequence[Case],
    manifest: Path,
    *,
    channel_names: Sequence[str] = (),
    label_names: Mapping[int, str] | None = None,
) -> str:
    """Return a CSV manifest that reads back to the same cases.

    Parameters
    ----------
    cases : sequence of Case
        With the groups and splits to write.
    manifest : Path
        Where the text will be written: paths are relative to its folder where that is possible.
    channel_names : sequence of str
        Names of the modalities, if they are known.
    label_names : mapping of int to str, optional
        Names of the structures by their values, for cases with masks.
    """
    columns: dict[str, list[str | None]] = {"case_id": [case.case_id for case in cases]}
    for number, name in enumerate(_image_columns(cases, channel_names)):
        paths = [case.images[number] if number < len(case.images) else None for case in cases]
        columns[name] = [_relative(path, manifest) for path in paths]
    for structure in _structures(cases, label_names or {}):
        masks = [{mask.structure: mask.path for mask in case.masks} for case in cases]
        columns[f"label:{structure}"] = [_relative(mask.get(structure), manifest) for mask in masks]
    others = {
        "label": [_relative(case.label, manifest) for case in cases],
        "group": [None if case.group == case.case_id else case.group for case in cases],
        "split": [case.split for case in cases],
        "label_grid": [_unless(case.label_grid, "own") for case in cases],
        "orientation_from": [_unless(case.orientation_from, "sform") for case in cases],
    }
    columns |= {name: cells for name, cells in others.items() if any(cells)}
    for name in dict.fromkeys(name for case in cases for name in case.columns):
        free_name, cells = _free_name(name, columns), [case.columns.get(name) for case in cases]
        if _is_read([*columns, free_name], cells, manifest):
            columns[free_name] = cells
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *zip(*columns.values(), strict=True)])
    return text.getvalue()


def _free_name(name: str, columns: Collection[str]) -> str:
    """Return a name that has no meaning in a manifest, such as group_ for a column group in BIDS.

    >>> _free_name("group", []), _free_name("Label: x", []), _free_name("age", ["age"])
    ('group_', 'further Label: x', 'age_')
    """
    name = " ".join(name.split())
    if Table.is_known(column_name(name)) and ":" in name:
        name = f"further {name}"
    while name in columns or Table.is_known(column_name(name)):
        name = f"{name}_"
    return name


def _is_read(header: list[str], cells: Sequence[str | None], manifest: Path) -> bool:
    """Return whether a manifest may have these cells in its last column: no paths of volumes."""
    checked = [name for name in header if name.partition(":")[0] == "label"] + header[-1:]
    rows = [("", dict.fromkeys(checked, cell)) for cell in cells if cell]
    try:
        check_other_columns(Table(header=header, rows=rows), manifest)
    except DatasetError:
        return False
    return True


def _image_columns(cases: Sequence[Case], names: Sequence[str]) -> list[str]:
    n_images = max((len(case.images) for case in cases), default=1)
    if len(names) == n_images == len(set(names)) and all(names):
        return [f"image:{name}" for name in names]
    return ["image", *(f"image_{number}" for number in range(2, n_images + 1))]


def _structures(cases: Sequence[Case], names: Mapping[int, str]) -> list[str]:
    """Return the structures of masks in the order of their values, without gaps."""
    values = {mask.structure: mask.value for case in cases for mask in case.masks}
    if not all(values.values()):  # not numbered yet
        return list(values)
    name_of = {**names, **{value: structure for structure, value in values.items()}}
    last = max(values.values(), default=0)
    return [name_of.get(value, f"value {value}") for value in range(1, last + 1)]


def _unless(value: str, default: str) -> str | None:
    return None if value == default else value


def _relative(path: str | None, manifest: Path) -> str | None:
    """Return a path as the manifest holds it, None for an empty cell."""
    if not path or Path(path).name.startswith(NO_FILE):
        return None
    return relative_path(path, manifest.parent)
