"""Cases, their ids, and ids in file names."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from operator import le
from pathlib import Path
from typing import Any

from dask_slicer.utils.formatting import first_few
from dask_slicer.utils.packed import PackedList, quick_to_pack

_CHANNEL = re.compile(r"(?P<case_id>.+)_(?P<channel>\d{4})")
# Names that Windows reserves for devices, with any suffix.
_DEVICES = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[\d¹²³]) *(\..*)?", re.IGNORECASE
)
# Leaves room for slice number and suffix in the 255 bytes of a file name.
_LONGEST_ID = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """A binary mask of one structure, such as an organ."""

    structure: str
    path: str
    value: int = 0  # of the structure in the label of all cases, once the plan has numbered them


@quick_to_pack
@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One scan: images of one grid, and the label map if there is one.

    Paths are absolute; ``scan.nii.gz[2]`` is the third volume of a 4D file.
    """

    case_id: str
    images: tuple[str, ...]  # one for each modality; "" is filled with zeros
    label: str | None = None
    group: str | None = None  # the patient, if the dataset names one
    split: str | None = None  # if the dataset fixes one
    masks: tuple[Mask, ...] = ()  # merged into a label, if there is none
    stated: bool = False  # whether the user or the dataset says which file is an image
    label_grid: str = "own"  # or "image": the label takes the affine of the image
    orientation_from: str = "sform"  # or "qform"
    unnamed: tuple[int, ...] = ()  # images, by number, that may be labels by their names
    overlap: str = "first"  # or "error": a voxel in two masks fails the case
    # Texts by column, such as {"sex": "F"}, for groups and stratification. Not in the repr, which
    # is the key of cached headers: columns decide nothing of what is in the files.
    columns: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)

    @property
    def has_label(self) -> bool:
        """Return whether the case has a label, or masks that make one."""
        return self.label is not None or bool(self.masks)

    @property
    def merges_masks(self) -> bool:
        """Return whether masks are merged into the label of the case."""
        return self.label is None and bool(self.masks)

    @property
    def image_files(self) -> tuple[str, ...]:
        """Return the files of the images, without those that are filled with zeros."""
        return tuple(filter(None, self.images))

    @property
    def label_files(self) -> tuple[str, ...]:
        """Return the file of the label, or those of its masks."""
        return tuple(mask.path for mask in self.masks) if self.label is None else (self.label,)

    @property
    def files(self) -> tuple[str, ...]:
        """Return every file of the case, images first."""
        return (*self.image_files, *self.label_files)


def sorted_cases(cases: PackedList[Case]) -> PackedList[Case]:
    """Return cases sorted by id, which they mostly are."""
    ids = [case.case_id for case in cases]
    is_sorted = all(map(le, ids, islice(ids, 1, None)))
    return cases if is_sorted else PackedList(sorted(cases, key=lambda case: case.case_id))


def given_cells(row: Mapping[Any, Any]) -> dict[str, str]:
    """Return the cells of a row of a table, without those that are empty or n/a.

    >>> given_cells({"sex": " F", "age": "n/a", "site": "", "runs": 2, "notes": ["x"]})
    {'sex': 'F', 'runs': '2'}
    """
    return {
        name.strip(): text
        for name, cell in row.items()
        if isinstance(name, str) and name.strip() and isinstance(cell, str | int | float)
        if (text := str(cell).strip()).lower() not in ("", "n/a")
    }


def is_volume_name(name: str) -> bool:
    """Return whether a file name is that of a volume that a reader reads, and not hidden.

    >>> is_volume_name("liver.nii.gz"), is_volume_name("._liver.nii.gz")
    (True, False)
    """
    # Imported on use: the first line of a run in a notebook need not wait for nibabel.
    from dask_slicer.inputs.readers import volume_suffixes

    return name.lower().endswith(volume_suffixes()) and not name.startswith(".")


def name_of(path: str) -> str:
    """Return the last part of a path with forward slashes."""
    return path.rpartition("/")[2]


def relative_path(path: str | Path, root: str | Path) -> str:
    """Return a path relative to a folder, with forward slashes; absolute on another drive.

    >>> relative_path(os.path.abspath("ct/a.nii"), os.path.abspath("mr"))
    '../ct/a.nii'
    """
    # On Windows, no path leads to another drive or share.
    with suppress(ValueError):
        path = os.path.relpath(path, root)
    return os.fspath(path).replace(os.sep, "/")


def stem_of(name: str) -> str:
    """Return a volume's file name without its suffix.

    >>> stem_of("liver.v2.nii.gz"), stem_of("liver.nii")
    ('liver.v2', 'liver')
    """
    from dask_slicer.inputs.readers import volume_suffixes

    for suffix in volume_suffixes():
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def split_channel(name: str) -> tuple[str, int] | None:
    """Return case id and channel of an nnU-Net file name, None if it has no channel.

    >>> split_channel("liver_007_0001.nii.gz")
    ('liver_007', 1)
    >>> split_channel("liver_007.nii.gz") is None
    True
    """
    match = _CHANNEL.fullmatch(stem_of(name))
    return (match["case_id"], int(match["channel"])) if match else None


def case_id_problem(case_id: str) -> str | None:
    """Return why a case id is not a valid file name on every system, None if it is."""
    bad = re.search(r'[/\\:*?"<>|\x00-\x1f\x7f]', case_id)
    if not case_id.strip():
        reason = "it is empty"
    elif bad:
        reason = f"it holds {bad.group()!r}"
    elif case_id.startswith(".") or case_id.endswith((".", " ")) or case_id.startswith(" "):
        reason = "it starts or ends with a dot or a space"
    elif _DEVICES.fullmatch(case_id):
        reason = "Windows reserves it for a device"
    elif len(case_id.encode("utf-8", "surrogatepass")) > _LONGEST_ID:
        reason = f"it is longer than {_LONGEST_ID} bytes"
    elif not case_id.isprintable():
        reason = "it holds characters that cannot be printed"
    else:
        return None
    return f"case id {case_id[:80]!r} is not a plain file name: {reason}"


def case_id_problems(case_ids: Iterable[str]) -> list[str]:
    """Return the problems of a dataset's case ids: not plain, or not unique.

    Ids that differ only in upper and lower case name one file on macOS and Windows: they are equal.

    >>> case_id_problems(["a", "b", "A"])
    ["case ids must be unique, also if upper and lower case count as equal: 'a', 'A'"]
    """
    case_ids = list(case_ids)
    problems = [problem for problem in map(case_id_problem, dict.fromkeys(case_ids)) if problem]
    equal_ids: defaultdict[str, list[str]] = defaultdict(list)
    for case_id in case_ids:
        # To macOS, a letter with an accent equals a letter followed by the accent.
        equal_ids[unicodedata.normalize("NFC", case_id).casefold()].append(case_id)
    repeated = [
        ", ".join(
            f"{name!r}" + (f" ({count} times)" if count > 1 else "")
            for name, count in Counter(spellings).items()
        )
        for spellings in equal_ids.values()
        if len(spellings) > 1
    ]
    if repeated:
        problems.append(
            "case ids must be unique, also if upper and lower case count as equal: "
            f"{first_few(repeated, 10)}"
        )
    return problems
