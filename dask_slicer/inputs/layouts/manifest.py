"""Manifests: CSV or JSON that names the files of each case."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dask_slicer.core.splits import SPLITS
from dask_slicer.errors import DatasetError
from dask_slicer.inputs.case import Case, Mask, given_cells, is_volume_name, name_of
from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch
from dask_slicer.inputs.layouts.manifest_table import IMAGE, Table, header_of, read_table
from dask_slicer.inputs.listed_paths import ListedPaths
from dask_slicer.inputs.role_words import label_words, words_of
from dask_slicer.inputs.tree import FileTree
from dask_slicer.utils.packed import PackedList

NO_FILE = "(no file in the column"
_NAMES = ("manifest.csv", "manifest.tsv", "manifest.json")
_CHOICES = {
    "split": SPLITS,
    "label_grid": ("own", "image"),
    "orientation_from": ("sform", "qform"),
}


def match(tree: FileTree, options: InputOptions) -> LayoutMatch:
    """Match a folder with a manifest."""
    path = find_manifest(tree.root)
    if path is None:
        return LayoutMatch("manifest", miss="no manifest.csv or manifest.json")
    result = read_manifest(path)
    result.left_out = dict.fromkeys(result.unused(tree), f"not in {path.name}")
    return result


def find_manifest(input_dir: Path) -> Path | None:
    """Return the manifest in the folder of a dataset, None if it has none.

    It is manifest.csv, .tsv or .json, or the only CSV file with columns case_id and image.
    """
    for name in _NAMES:
        if (input_dir / name).is_file():
            return input_dir / name
    tables = [*sorted(input_dir.glob("*.csv")), *sorted(input_dir.glob("*.tsv"))]
    tables = [path for path in tables if path.is_file() and _has_columns(path)]
    return tables[0] if len(tables) == 1 else None


def read_manifest(path: Path) -> LayoutMatch:
    """Return the cases of a manifest, in its order; paths are relative to the manifest."""
    try:
        table = read_table(path)
    except UnicodeDecodeError:
        raise DatasetError(
            f"the manifest {path} is not UTF-8 text; in Excel, save it as CSV UTF-8"
        ) from None
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        what = str(error)
        if what == "unexpected end of data":  # of the csv module
            what = 'a quotation mark (") is not closed'
        raise DatasetError(f"cannot read the manifest {path}: {what}") from None
    if not table.rows:
        raise DatasetError(f"the manifest {path} names no case")
    images = _image_columns(table, path)
    notes = check_other_columns(table, path)
    masks = [name for name in table.header if name.startswith("label:")]
    paths = ListedPaths(path)
    others = {name for name in table.used_columns if not table.is_known(name)}
    cases = [
        replace(
            _case(position, row, images, masks, paths, path),
            columns=given_cells({name: row[name] for name in row if name in others}),
        )
        for position, row in table.rows
    ]
    splits = {case.split is not None for case in cases}
    if len(splits) == 2:
        without = [case.case_id for case in cases if case.split is None]
        raise DatasetError(
            f"the manifest {path} gives a split to some cases but not to {without[0]}"
            f" ({len(without)} in all); give every case one, or none"
        )
    result = LayoutMatch("manifest", f"{path.name} has the columns case_id and image", notes=notes)
    result.cases = PackedList(cases)
    if images[0].startswith("image:"):
        result.channel_names = tuple(name.partition(":")[2] for name in images)
    result.structures = tuple(name.partition(":")[2] for name in masks)
    return result


def _has_columns(path: Path) -> bool:
    try:
        header = header_of(path)
    except (OSError, ValueError, csv.Error):
        return False
    return "case_id" in header and any(map(IMAGE.fullmatch, header))


def _image_columns(table: Table, path: Path) -> list[str]:
    """Return the columns of images that any case uses, in the order of the modalities."""
    used = table.used_columns
    numbered = sorted(
        (name for name in used if IMAGE.fullmatch(name) and ":" not in name),
        key=lambda name: int(name.partition("_")[2] or 1),
    )
    named = [name for name in used if name.startswith("image:")]
    if "case_id" not in used or not (named or "image" in numbered):
        raise DatasetError(
            f"the manifest {path} must have the columns case_id and image, has {', '.join(used)}"
        )
    if named and numbered:
        raise DatasetError(
            f"the manifest {path} has the columns {numbered[0]} and {named[0]}; name all columns "
            "of images, or number all of them"
        )
    return named or numbered


def check_other_columns(table: Table, path: Path) -> list[str]:
    """Return notes on further columns; refuse those that seem to name volumes."""
    unknown = [name for name in table.used_columns if not table.is_known(name)]
    has_labels = any(name.partition(":")[0] == "label" for name in table.used_columns)
    for name in unknown:
        cells = [row[name] for _, row in table.rows if name in row]
        like_label = bool(label_words(words_of(name)))
        if like_label and has_labels:
            continue
        if like_label and not all(map(_is_number, cells)):
            raise DatasetError(
                f"the manifest {path} has a column {name}, which is not read; if it names the "
                "labels, call it label"
            )
        if volumes := [cell for cell in cells if _is_volume(cell)]:
            raise DatasetError(
                f"the manifest {path} names volumes, such as {volumes[0]}, in the column {name}, "
                f"which is not read; call it image:{name} for a modality, label for the labels, "
                "or remove it"
            )
    if not unknown:
        return []
    return [
        f"columns of {path.name} that are read for --group_column and --stratify only: "
        f"{', '.join(unknown)}"
    ]


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?[\d.,]+", text) is not None


def _is_volume(text: str) -> bool:
    # Imported on use, as nibabel with it.
    from dask_slicer.inputs.readers.base import split_volume

    return is_volume_name(name_of(split_volume(text)[0].replace("\\", "/")))


def _case(
    position: str,
    row: Mapping[str, str],
    images: list[str],
    masks: list[str],
    paths: ListedPaths,
    manifest: Path,
) -> Case:
    if "case_id" not in row:
        raise DatasetError(f"the manifest {manifest} has no case_id in {position}")
    choices = {name: row[name].lower() for name in _CHOICES if name in row}
    for name, choice in choices.items():
        if choice not in _CHOICES[name]:
            raise DatasetError(
                f"{name} must be one of {', '.join(_CHOICES[name])}, got {row[name]} in {position} "
                f"of {manifest}"
            )
    named = [name for name in masks if name in row]
    if "label" in row and named:
        raise DatasetError(
            f"the manifest {manifest} gives both label and {named[0]} in {position}; give one of "
            "them"
        )
    return Case(
        case_id=row["case_id"],
        images=tuple(
            paths.find(row[name]) if name in row else no_file(manifest.parent, name)
            for name in images
        ),
        label=paths.find(row["label"]) if "label" in row else None,
        masks=tuple(
            Mask(structure=name.partition(":")[2], path=paths.find(row[name]), value=value)
            for value, name in enumerate(masks, start=1)
            if name in row
        ),
        group=row.get("group"),
        split=choices.get("split"),
        stated=True,
        label_grid=choices.get("label_grid", "own"),
        orientation_from=choices.get("orientation_from", "sform"),
    )


def no_file(folder: Path, column: str) -> str:
    """Return a path that does not exist, for an empty cell: the case then fails as MissingFile."""
    return os.path.join(folder, f"{NO_FILE} {column})")
