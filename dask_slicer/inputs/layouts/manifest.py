"""CSV and JSON manifests: case_id, image, image_2…, label, group, split."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dask_slicer.core.splits import SPLITS
from dask_slicer.errors import DatasetError
from dask_slicer.inputs.case import Case
from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch
from dask_slicer.inputs.tree import FileTree

_IMAGE = re.compile(r"image(_\d+)?")


def match(tree: FileTree, options: InputOptions) -> LayoutMatch:
    """Match a folder with a manifest."""
    path = find_manifest(tree.root)
    if path is None:
        return LayoutMatch("manifest", miss="no manifest.csv or manifest.json")
    return read_manifest(path)


def find_manifest(input_dir: Path) -> Path | None:
    """Return the manifest in the folder of a dataset, None if it has none.

    It is manifest.csv, manifest.json, or the only CSV file with columns case_id and image.
    """
    for name in ("manifest.csv", "manifest.json"):
        if (input_dir / name).is_file():
            return input_dir / name
    tables = [path for path in sorted(input_dir.glob("*.csv")) if _has_columns(path)]
    return tables[0] if len(tables) == 1 else None


def read_manifest(path: Path) -> LayoutMatch:
    """Return the cases of a manifest, in its order.

    It is CSV with a header, or JSON: a list of objects, or such a list under `cases`. Relative
    paths are relative to the manifest.
    """
    try:
        rows = list(_rows(path))
    except UnicodeDecodeError:
        raise DatasetError(f"the manifest {path} is not UTF-8 text") from None
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise DatasetError(f"cannot read the manifest {path}: {error}") from None
    if not rows:
        raise DatasetError(f"the manifest {path} names no case")
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    images = sorted(
        (name for name in columns if _IMAGE.fullmatch(name)),
        key=lambda name: int(name.partition("_")[2] or 1),
    )
    if "case_id" not in columns or "image" not in columns:
        raise DatasetError(
            f"the manifest {path} must have the columns case_id and image, has {', '.join(columns)}"
        )
    cases = [_case(position, row, images, path) for position, row in rows]
    splits = {case.split is not None for case in cases}
    if len(splits) == 2:
        without = [case.case_id for case in cases if case.split is None]
        raise DatasetError(
            f"the manifest {path} gives a split to some cases but not to {without[0]}"
            f" ({len(without)} in all); give every case one, or none"
        )
    known = {"case_id", "label", "group", "split", *images}
    ignored = ", ".join(name for name in columns if name not in known)
    notes = [f"columns of {path.name} that are ignored: {ignored}"] if ignored else []
    return LayoutMatch("manifest", f"{path.name} has the columns case_id and image", cases, notes)


def _has_columns(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            header = next(csv.reader(lines), [])
    except (OSError, ValueError, csv.Error):
        return False
    return {"case_id", "image"} <= {name.strip() for name in header}


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield the position of each row and its cells, without those that are empty or null."""
    if path.suffix.lower() == ".json":
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        entries = content.get("cases") if isinstance(content, dict) else content
        if not isinstance(entries, list):
            raise ValueError("expected a list of cases, or one under the key `cases`")
        for number, entry in enumerate(entries, start=1):
            if not isinstance(entry, dict):
                raise ValueError(f"case {number} is not an object")
            for name, value in entry.items():
                # 7 is accepted as the name of a case, not of a file.
                if not isinstance(value, str | None) and (
                    name not in ("case_id", "group") or isinstance(value, dict | list)
                ):
                    raise ValueError(f"{name} of case {number} must be text, got {value!r}")
            yield f"case {number}", _cells(entry)
        return
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, skipinitialspace=True, strict=True)
        names = [name.strip() for name in reader.fieldnames or ()]
        duplicates = [name for name in names if names.count(name) > 1]
        if duplicates:
            raise ValueError(f"the column {duplicates[0]} is given twice")
        for row in reader:
            if None in row:
                raise ValueError(f"line {reader.line_num} has more fields than the header")
            yield f"line {reader.line_num}", _cells(row)


def _cells(row: Mapping[Any, Any]) -> dict[str, str]:
    return {
        str(name).strip(): str(value).strip()
        for name, value in row.items()
        if value is not None and str(value).strip()
    }


def _case(position: str, row: Mapping[str, str], images: list[str], manifest: Path) -> Case:
    if "case_id" not in row:
        raise DatasetError(f"the manifest {manifest} has no case_id in {position}")
    split = row.get("split")
    if split is not None and split not in SPLITS:
        raise DatasetError(
            f"split must be one of {', '.join(SPLITS)}, got {split} in {position} of {manifest}"
        )
    named = [name for name in (*images, "label") if name in row]
    paths = {name: os.path.normpath(manifest.parent / row[name]) for name in named}
    label = paths.get("label")
    return Case(
        case_id=row["case_id"],
        images=tuple(paths.get(name, "") for name in images),
        label=label,
        group=row.get("group"),
        split=split,
        stated=True,
    )
