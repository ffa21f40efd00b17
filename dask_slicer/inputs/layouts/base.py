"""Layout protocol, and helpers that the layouts share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.case import Case, is_nifti_name, stem_of
from dask_slicer.utils.formatting import first_few, plural

LABEL_WORDS = {"label", "labels", "seg", "segmentation", "mask", "gt", "dseg"}


@dataclass(slots=True)
class LayoutMatch:
    """What one recogniser says: cases, or how near it was (volumes seen) and what it missed."""

    layout: str
    reason: str = ""
    cases: list[Case] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seen: int = 0
    miss: str = ""


def test_images_note(n_images: int) -> str:
    """Return the note on images that have no label because they are for testing."""
    return f"{n_images} images in imagesTs are left out; --include_test puts them into test"


def volume_files(folder: Path) -> list[Path]:
    """Return what is named like a NIfTI volume in a folder, directories too: they fail by name."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if is_nifti_name(path.name))


def by_stem(paths: list[Path], finding: LayoutMatch) -> dict[str, Path]:
    """Return paths by file name without suffix; two files of one name are a problem."""
    by_stem: dict[str, Path] = {}
    for path in paths:
        other = by_stem.setdefault(stem_of(path.name), path)
        if other is not path:
            finding.problems.append(f"two files for one volume: {other.name} and {path.name}")
    return by_stem


def note_orphans(labels: Iterable[str], images: Iterable[str], finding: LayoutMatch) -> None:
    """Note the labels that have no image."""
    orphans = sorted(set(labels) - set(images))
    if orphans:
        finding.notes.append(
            f"{plural(len(orphans), 'label')} without an image: {first_few(orphans)}"
        )


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, None if there is none.

    Raises
    ------
    DatasetError
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"cannot read {path}: {error}") from None


def optional_text(path: Path | None) -> str | None:
    """Return a path as text, None for none."""
    return None if path is None else str(path)
