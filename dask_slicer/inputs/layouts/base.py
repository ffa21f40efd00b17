"""The Layout protocol, its result, and helpers that layouts share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.case import Case, is_volume_name, stem_of
from dask_slicer.utils.formatting import first_few, plural


@dataclass(slots=True)
class LayoutMatch:
    """Cases that a layout finds in a folder, or the reason why it finds none."""

    layout: str  # its name in messages
    reason: str = ""  # by what it was recognised
    cases: list[Case] = field(default_factory=list)  # in any order
    notes: list[str] = field(default_factory=list)  # files left out, oddities that stop no run
    problems: list[str] = field(default_factory=list)  # reasons to refuse the run
    # Without cases: the number of volumes in places where this layout has them, and what the folder
    # lacks, such as "no NIfTI file in images". The error names the layout that saw most first.
    seen: int = 0
    miss: str = ""
    # Empty where unknown: a name for each modality, in order, and for label values other than 0.
    channel_names: tuple[str, ...] = ()
    label_names: dict[int, str] = field(default_factory=dict)

    def add_case(
        self,
        case_id: str,
        images: Iterable[str | Path],
        label: str | Path | None = None,
        *,
        group: str | None = None,
        split: str | None = None,
    ) -> None:
        """Add a case."""
        case = Case(
            case_id=case_id,
            images=tuple(map(str, images)),
            label=None if label is None else str(label),
            group=group,
            split=split,
        )
        self.cases.append(case)

    def note_files(self, names: Sequence[str], noun: str, why: str) -> None:
        """Note files that are left out, if there are any: their number, the reason, some names."""
        if names:
            self.notes.append(f"{plural(len(names), noun)} {why}: {first_few(names)}")


class Layout(Protocol):
    """A way in which the files of a dataset lie in a folder: a module with a function `match`.

    To add a layout, write such a module in this folder and add it to `LAYOUTS` in `__init__.py`.
    """

    def match(self, root: Path, *, include_test: bool) -> LayoutMatch:
        """Return the cases of a folder, or why it does not have this layout.

        Go by the names of files and folders and by small text files: a dataset may hold thousands
        of volumes, whose headers are read later, in parallel.

        - The folder has this layout: return `cases`, `reason`, `notes` and `problems`. Paths are
          absolute if `root` is. A file that a case should have, but lacks, is named all the same:
          the case then fails as MissingFile, and the others are written. What makes cases
          ambiguous is a problem; what is left out is a note. That ids are plain and unique is
          checked by the caller.
        - The folder has another layout, or too little of this one: return no case, but `miss`, and
          as `seen` how many volumes were found. The next layout is tried then.

        Parameters
        ----------
        root : Path
            A folder that exists.
        include_test : bool
            Whether images that the layout keeps apart for testing become cases, with
            ``split="test"``; else a note counts them.

        Raises
        ------
        DatasetError
            If a file that describes the dataset is damaged.
        PermissionError
            If a folder cannot be listed; the caller reports it.
        """
        ...


def held_out_note(n_images: int) -> str:
    """Return the note on images that have no label because they are for testing."""
    return f"{plural(n_images, 'image')} in imagesTs left out; --include_test uses them for test"


def volume_files(folder: Path) -> list[Path]:
    """Return the paths in a folder that are named like volumes, also directories (they fail)."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if is_volume_name(path.name))


def by_stem(paths: list[Path], result: LayoutMatch) -> dict[str, Path]:
    """Return paths by file name without suffix; two files with one name are a problem."""
    path_of: dict[str, Path] = {}
    for path in paths:
        other = path_of.setdefault(stem_of(path.name), path)
        if other is not path:
            result.problems.append(f"two files for one volume: {other.name} and {path.name}")
    return path_of


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; raise DatasetError if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"cannot read {path}: {error}") from None


def read_description(root: Path) -> dict[str, Any]:
    """Return the content of dataset.json in a folder, empty if there is no such file."""
    path = root / "dataset.json"
    content = read_json(path) if path.exists() else None
    return content if isinstance(content, dict) else {}
