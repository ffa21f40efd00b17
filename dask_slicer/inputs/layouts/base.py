"""The Layout protocol, its options and result, and helpers that layouts share."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.case import Case, Mask, name_of, stem_of
from dask_slicer.inputs.role_words import label_words, plain, without, words_of
from dask_slicer.inputs.tree import FileTree, relative_to
from dask_slicer.utils.formatting import did_you_mean, first_few, plural
from dask_slicer.utils.packed import PackedList, quick_to_pack


@dataclass(frozen=True, slots=True, kw_only=True)
class InputOptions:
    """What the user says of the files of a dataset; the settings of the same names."""

    layout: str | None = None
    images: tuple[str, ...] = ()
    labels: str | None = None
    label_name: str | None = None
    structures: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    missing_modality: str = "error"
    volumes: str | None = None
    datalist_fold: int | None = None
    include_test: bool = False
    splits: Path | None = None  # a file of splits, which win over those of the dataset


@quick_to_pack
@dataclass(frozen=True, slots=True, kw_only=True)
class FileRole:
    """A volume of a dataset, and what it is used for."""

    path: str  # relative to the dataset, with forward slashes
    role: str  # "image", "label", "left out", or "not read": of a format that no reader reads
    detail: str = ""  # the modality of an image, the structure of a mask, or why it is not used
    case_id: str = ""


@dataclass(slots=True)
class LayoutMatch:
    """Cases that a layout finds in a folder, or the reason why it finds none."""

    layout: str  # its name in messages
    reason: str = ""  # by what it was recognised
    cases: PackedList[Case] = field(default_factory=PackedList)  # in any order
    notes: list[str] = field(default_factory=list)  # oddities that stop no run
    problems: list[str] = field(default_factory=list)  # reasons to refuse the run
    # Volumes that are not used, and why: paths relative to the dataset. The caller adds those that
    # are neither here nor in a case.
    left_out: dict[str, str] = field(default_factory=dict)
    # Of these, files that are named like labels, but are none, such as masks of the brain.
    not_labels: set[str] = field(default_factory=set)
    # Without cases: the number of volumes in places where this layout has them, and what the folder
    # lacks, such as "no NIfTI file in images". The error names the layout that saw most, if these
    # are at least half of the volumes.
    seen: int = 0
    miss: str = ""
    # Empty where unknown: a name for each modality, in order, and for label values other than 0.
    channel_names: tuple[str, ...] = ()
    label_names: dict[int, str] = field(default_factory=dict)
    files: Sequence[FileRole] = ()  # of all volumes; filled in by the caller
    volumes: str | None = None  # "channels" if the dataset says that those of 4D images are
    structures: tuple[str, ...] = ()  # of masks, in the order that the dataset gives, if it does

    def add_case(
        self,
        case_id: str,
        images: Iterable[str | Path],
        label: str | Path | None = None,
        *,
        masks: Iterable[Mask] = (),
        group: str | None = None,
        split: str | None = None,
        stated: bool = False,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        """Add a case; paths are absolute. For the other parameters see `Case`."""
        case = Case(
            case_id=case_id,
            images=tuple(map(str, images)),
            label=None if label is None else str(label),
            group=group,
            split=split,
            masks=tuple(masks),
            stated=stated,
            columns=dict(columns or {}),
        )
        self.cases.append(case)

    def leave_out(self, paths: Sequence[str], noun: str, why: str) -> None:
        """Note volumes that are not used: their number, the reason, some names."""
        if paths:
            reason = noun if why == "left out" else why.removeprefix("left out, ")
            self.left_out.update(dict.fromkeys(paths, reason))
            self.notes.append(f"{plural(len(paths), noun)} {why}: {first_few(paths)}")

    def leave_out_labels(self, label_of: Mapping[str, str], images: Iterable[str]) -> None:
        """Note labels, by their names, that pair with none of the images, or not as their only one.

        >>> match = LayoutMatch("any")
        >>> match.leave_out_labels({"a_seg": "labels/a_seg.nii"}, ["a"])
        >>> match.left_out
        {'labels/a_seg.nii': 'beside another label of the image (--images and --labels choose)'}
        """
        known = set(map(plain, images))
        others: list[str] = []
        seconds: list[str] = []
        for name, path in sorted(label_of.items()):
            image = plain(without(name, label_words(words_of(name))))
            (seconds if image in known else others).append(path)
        self.leave_out(others, "label", "without an image")
        self.leave_out(
            seconds,
            "label",
            "left out, beside another label of the image (--images and --labels choose)",
        )

    def unused(self, tree: FileTree) -> list[str]:
        """Return the volumes that are in no case and have no reason in `left_out` yet."""
        used = {relative_to(tree.root, path) for case in self.cases for path in case.files}
        return [path for path in tree.volumes if path not in used and path not in self.left_out]


class Layout(Protocol):
    """A way in which the files of a dataset lie in a folder: a module with a function `match`.

    To add a layout, write such a module in this folder and add it to `LAYOUTS` in `__init__.py`.
    Its name there is the value of `--layout`.
    """

    def match(self, tree: FileTree, options: InputOptions) -> LayoutMatch:
        """Return the cases of a folder, or why it does not have this layout.

        Go by the names of files and folders and by small text files: a dataset may hold thousands
        of volumes, whose headers are read later, in parallel.

        - The folder has this layout: return `cases`, `reason`, `notes`, `left_out` and `problems`.
          A file that a case should have, but lacks, is named all the same: the case then fails as
          MissingFile, and the others are written. What makes cases ambiguous is a problem, which
          names the option that decides; what is left out has a reason. That ids are plain and
          unique is checked by the caller.
        - The folder has another layout, or too little of this one: return no case, but `miss`, and
          as `seen` how many volumes were found. The next layout is tried then.

        Parameters
        ----------
        tree : FileTree
            The files of the folder.
        options : InputOptions
            A layout heeds `include_test` (whether images that it keeps apart for testing become
            cases, with ``split="test"``), `label_name`, `structures`, `datalist_fold` and
            `splits`; the caller sees to the others.

        Raises
        ------
        DatasetError
            If a file that describes the dataset is damaged.
        """
        ...


# One way out where the roles of files are not clear.
NAME_THEM = "name images and labels with --images GLOB --labels GLOB, or in a manifest"
# Why a volume for testing is left out.
FOR_TESTING = "for testing; --include_test uses it"


def held_out_note(n_images: int, where: str = "in imagesTs") -> str:
    """Return the note on images that are left out because they are for testing."""
    return f"{plural(n_images, 'image')} {where} left out; --include_test uses them for test"


def by_stem(paths: Iterable[str], result: LayoutMatch) -> dict[str, str]:
    """Return paths by file name without suffix; two files with one name are a problem."""
    path_of: dict[str, str] = {}
    twice = []
    for path in paths:
        other = path_of.setdefault(stem_of(name_of(path)), path)
        if other is not path:
            folder = other[: other.rfind("/") + 1]
            twice.append(f"{other} and {path.removeprefix(folder)}")
    if twice and not result.problems:  # such as two folders of labels, which explains it
        result.problems.append(f"two files for one volume: {first_few(twice)}; remove one of them")
    return path_of


def unknown_name(option: str, name: str, known: Collection[str]) -> str:
    """Return the problem of a name that an option gives and the dataset does not have."""
    return (
        f"--{option} {name}: there is no such name{did_you_mean(name, known)}; there are "
        f"{first_few(sorted(known), 12)}"
    )


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; raise DatasetError if it cannot be read."""
    if path.exists() and not path.is_file():  # reading a pipe would never end
        raise DatasetError(f"cannot read {path}: it is not a file")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DatasetError(f"cannot read {path}: {reason}") from None


def read_description(root: Path) -> dict[str, Any]:
    """Return the content of dataset.json in a folder, empty if there is no such file."""
    path = root / "dataset.json"
    content = read_json(path) if path.is_file() else None
    return content if isinstance(content, dict) else {}
