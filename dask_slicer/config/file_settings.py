"""Files that a case becomes: format, templates of names, contents, and lists of files."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cached_property, lru_cache
from importlib.util import find_spec
from itertools import combinations
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from dask_slicer.config import fields

_Split = Literal["train", "val", "test"]
_SPLITS: tuple[_Split, ...] = get_args(_Split)
_PLANE_FOLDERS = tuple(f"/{plane}" for plane in fields.PLANES)
_ANY_SPLIT = f"(?:{'|'.join(_SPLITS)})"
# What an array in a file holds; the last three describe the grid as SimpleITK does.
Content = Literal["image", "label", "metadata", "spacing", "direction", "origin"]
Channels = Literal["first", "last", "none"]
# Suffixes of files with one content, and of files with several by name.
_SINGLE, _NAMED = (".npy", ".png", ".json"), (".npz", ".h5")
_FIELD = re.compile(r"\{(\w+)(?::0([1-9]|10)d)?\}")
_NAME = r"[A-Za-z0-9_]([A-Za-z0-9_. -]*[A-Za-z0-9_-])?"
_FIELDS = ("case_id", "slice_index", "slice_number", "stem", "split")
# Digits of a slice index in a stem: more where a volume has more slices.
_LEAST_DIGITS, _MOST_DIGITS = 3, 10


class ParsedName(NamedTuple):
    """The case id in the name of a file, and the slice index with its digits if it has one."""

    case_id: str
    slice_index: int | None
    digits: int


def stem_digits(n_slices: int) -> int:
    """Return how many digits the index of each of n slices has in the name of a file.

    >>> stem_digits(100), stem_digits(1200)
    (3, 4)
    """
    return max(_LEAST_DIGITS, len(str(n_slices - 1)))


def format_template(
    template: str, *, case_id: str, split: str, slice_index: int = 0, digits: int = _LEAST_DIGITS
) -> str:
    """Return a template with its fields filled in.

    >>> format_template("{split}/{case_id}_slice{slice_index:03d}.h5", case_id="a", split="val")
    'val/a_slice000.h5'
    >>> format_template("{stem}.npz", case_id="liver_7", split="train", slice_index=12)
    'liver_7_012.npz'
    """
    # Templates are checked: they have no other fields, and nothing else in braces.
    of_slice = {"slice_index": slice_index, "slice_number": slice_index + 1, "digits": digits}
    text = template.replace("{stem}", "{case_id}_{slice_index:0{digits}d}")
    return text.format(case_id=case_id, split=split, **of_slice)


def _template(text: str, *, is_path: bool) -> str:
    names = [match[1] for match in _FIELD.finditer(text)]
    numbers = [match[1] for match in _FIELD.finditer(text) if match[2]]
    wrong = {*names} - {*_FIELDS} or {*numbers} - {"slice_index", "slice_number"}
    if wrong or "{" in _FIELD.sub("", text) or "}" in _FIELD.sub("", text):
        raise ValueError(f"must have fields {{{'}, {'.join(_FIELDS)}}} only")
    of_slice = [name for name in names if name != "split"]
    if len({name.replace("number", "index") for name in of_slice}) < len(of_slice) or (
        "stem" in names and len(of_slice) > 1
    ):
        raise ValueError("must name case and slice once")
    if re.search(r"[0-9}]\{slice_|\{slice_\w+(:\w+)?\}[0-9{]|\}\{(case_id|stem)", text):
        raise ValueError("must have a separator, which is no digit, around the slice's number")
    if is_path:
        _check_path(text)
        folder, _, name = text.rpartition("/")
        if not re.search(r"\{(case_id|stem)\}", name):
            raise ValueError("must have {case_id} or {stem} in the name of the file")
        if [m[1] for m in _FIELD.finditer(folder) if m[1] != "split"]:
            raise ValueError("must name case and slice in the name of the file, not of its folder")
        if not folder and not name.endswith((".npz", ".npy", ".h5")):
            raise ValueError(
                "must have a folder, because other files of the output have this ending"
            )
    return text


def _check_path(text: str) -> None:
    *folders, name = _FIELD.sub("x", text).split("/")
    if not (re.fullmatch(_NAME, name) and all(re.fullmatch(_NAME, each) for each in folders)):
        raise ValueError("must be a path below the output, of letters, digits, and . _ -")
    if any("." in folder for folder in folders):
        raise ValueError("must have no dot in the name of a folder: files of the output have one")


def _is_per_slice(template: str) -> bool:
    return "{slice_" in template or "{stem}" in template


def _path_template(text: str) -> str:
    return _template(text, is_path=True)


def _line_template(text: str) -> str:
    if "\n" in text or "\r" in text:
        raise ValueError("must be one line")
    return _template(text, is_path=False)


def _list_path(text: str) -> str:
    _check_path(text)
    if "{" in text or not text.endswith((".txt", ".list")):
        raise ValueError("must be the path of one file that ends with .txt or .list")
    return text


def _one_or_named(value: Any) -> Any:
    return {"": value} if isinstance(value, str) else value


_Splits = Annotated[tuple[_Split, ...], BeforeValidator(fields.comma_separated)]


class FileTemplate(fields.Frozen):
    """A file for each slice, or for each case, and what is in it."""

    path: Annotated[str, AfterValidator(_path_template)] = Field(
        description="Path below the output, with {case_id}, {slice_index:03d} (or {slice_number}, "
        "from 1), {stem} (case and slice), and {split}; without a slice, the file holds a whole "
        "case. Its ending says what kind it is: .npz, .npy, .h5, .png or .json."
    )
    holds: Annotated[dict[str, Content], BeforeValidator(_one_or_named)] = Field(
        description="What is in it: image, label, metadata, or spacing, direction or origin in the "
        "sense of SimpleITK; in .npz and .h5 by name, {img: image, gt: label}."
    )
    channels: Channels = Field(
        "first", description="Place of the channels of an image; none: there is only one."
    )
    copies: fields.Positive = Field(
        1, description="How often the only channel of an image is repeated."
    )
    transpose: bool = Field(
        False, description="Exchange rows and columns, as SimpleITK has them with plane k."
    )
    splits: _Splits = Field(_SPLITS, description="Splits whose cases have such a file.")

    @model_validator(mode="after")
    def _contents_fit(self) -> Self:
        suffix = self.suffix
        if suffix not in (*_SINGLE, *_NAMED):
            raise ValueError(
                f"path must end with {', '.join((*_NAMED, *_SINGLE))}, got {self.path}"
            )
        if not self.holds:
            raise ValueError(f"holds must name a content of {self.path}")
        if (suffix in _SINGLE) != (list(self.holds) == [""]):
            rule = "be one content" if suffix in _SINGLE else "give each content a name"
            raise ValueError(f"holds must {rule} in {suffix}, got that of {self.path}")
        if not all(re.fullmatch(r"\w*", name) for name in self.holds):
            raise ValueError(f"holds must have names of letters, digits and _, in {self.path}")
        contents = {*self.holds.values()}
        if suffix in (".json", ".png"):
            allowed = {"metadata"} if suffix == ".json" else {"image", "label"}
            if not contents <= allowed:
                raise ValueError(f"{self.path} can hold only {' or '.join(sorted(allowed))}")
        if suffix == ".png" and not self.is_per_slice:
            raise ValueError(f"a .png file holds a slice, so its path must name it, in {self.path}")
        if "metadata" in contents and suffix in (".npy", ".h5"):
            raise ValueError(f"metadata must be in .json or .npz, got {self.path}")
        if self.copies > 1 and self.channels == "none":
            raise ValueError(f"copies of a channel need channels first or last, in {self.path}")
        return self

    def __hash__(self) -> int:  # that of pydantic cannot hash a mapping
        return hash((self.path, *self.holds.items()))

    @cached_property
    def suffix(self) -> str:
        """Return the ending of the file's name."""
        return PurePosixPath(self.path).suffix

    @property
    def is_per_slice(self) -> bool:
        """Return whether there is a file for each slice, and not for each case."""
        return _is_per_slice(self.path)

    @property
    def is_readable(self) -> bool:
        """Return whether it is an .npz file of a slice as format npz has it, perhaps elsewhere."""
        as_npz = (NPZ.suffix, True, NPZ.holds, NPZ.channels, NPZ.copies, NPZ.transpose)
        own = (self.suffix, self.is_per_slice, self.holds, self.channels, self.copies)
        return (*own, self.transpose) == as_npz

    @property
    def contents(self) -> tuple[Content, ...]:
        """Return what is in the file."""
        return tuple(self.holds.values())

    def folder(self, section: str) -> str:
        """Return the folder of the files of a section, below the output; empty for the top."""
        return format_template(self.path.rpartition("/")[0], case_id="", split=section)

    def meets(self, other: FileTemplate) -> bool:
        """Return whether a file of another template may be in a folder of this one."""
        sections = [f"{split}{plane}" for split in _SPLITS for plane in ("", *_PLANE_FOLDERS)]
        own, others = ({t.folder(name).lower() for name in sections} for t in (self, other))
        return not own.isdisjoint(others)

    def file(self, case_id: str, section: str, slice_index: int = 0, *, digits: int) -> str:
        """Return the path of a file, below the output; `section` is the split and its plane."""
        return format_template(
            self.path, case_id=case_id, split=section, slice_index=slice_index, digits=digits
        )

    def parse(self, name: str) -> ParsedName | None:
        """Return what the name of a file, without its folder, says; None if it is of another kind.

        >>> FileTemplate(path="{case_id}_slice_{slice_index}.h5", holds={"x": "image"}).parse(
        ...     "patient_1_slice_20.h5"
        ... )
        ParsedName(case_id='patient_1', slice_index=20, digits=2)
        """
        match = _pattern(self.path.rpartition("/")[2]).fullmatch(name)
        if match is None:
            return None
        index = match.groupdict().get("index")
        if index is None:
            return ParsedName(match["case_id"], None, 0)
        first = int("{slice_number" in self.path)
        return ParsedName(match["case_id"], int(index) - first, len(index))


@lru_cache(maxsize=64)
def _pattern(template: str) -> re.Pattern[str]:
    """Return a pattern of the names of files that a template gives."""
    parts, end = [], 0
    for match in _FIELD.finditer(template):
        parts.append(re.escape(template[end : match.start()]))
        index = f"[0-9]{{{match[2] or _LEAST_DIGITS},{_MOST_DIGITS}}}"
        if match[1] != "stem" and match[2] is None:
            index = "(?:0|[1-9][0-9]{0,9})"
        case_id, index = "(?P<case_id>.+)", f"(?P<index>{index})"
        stem = f"{case_id}_{index}"
        parts.append({"case_id": case_id, "stem": stem, "split": _ANY_SPLIT}.get(match[1], index))
        end = match.end()
    return re.compile("".join(parts) + re.escape(template[end:]), re.DOTALL)


class ListTemplate(fields.Frozen):
    """A text file that lists cases or slices, a line each."""

    path: Annotated[str, AfterValidator(_list_path)] = Field(
        description="Path of the list, below the output."
    )
    line: Annotated[str, AfterValidator(_line_template)] = Field(
        description="A line, with the fields of a path; without a slice, there is a line for each "
        "case."
    )
    splits: _Splits = Field(_SPLITS, description="Splits whose cases are in the list.")

    @property
    def is_per_slice(self) -> bool:
        """Return whether there is a line for each slice, and not for each case."""
        return _is_per_slice(self.line)


NPZ = FileTemplate(
    path="{split}/{stem}.npz", holds={"image": "image", "label": "label", "metadata": "metadata"}
)
PNG = (
    FileTemplate(path="images/{split}/{stem}.png", holds="image"),
    FileTemplate(path="masks/{split}/{stem}.png", holds="label"),
    FileTemplate(path="metadata/{split}/{case_id}.json", holds="metadata"),
)
# By format, the setting that has no effect with it.
UNUSED_BY_FORMAT = {
    **dict.fromkeys(("npz", "png", "files"), "compression"),
    "zarr": "compression_level",
}
# By setting, the only format that it has an effect with.
FORMAT_OF = {"bits": "png", "files": "files", "file_lists": "files"}
_OF_FORMAT: dict[str, tuple[FileTemplate, ...]] = {"npz": (NPZ,), "png": PNG, "zarr": ()}


class FileSettings(fields.Frozen):
    """Settings of the files that slices are written to."""

    format: fields.SliceFormat = Field(
        "npz",
        description="How slices are stored: npz, one file per slice; zarr, every plane once; png, "
        "images and masks of one slice; files, as the setting files of a configuration file says.",
    )
    bits: fields.Bits | None = Field(
        None,
        description="png: 8, limits of intensities become 0 and 255; 16, integers of the file plus "
        "an offset. [default: 8]",
    )
    offset: Annotated[fields.Integer, Field(ge=0, le=32768)] | None = Field(
        None,
        description="png, 16 bit: added to intensities; by default 32768 if an image is signed, "
        "and 0 if none is.",
    )
    files: tuple[FileTemplate, ...] = Field(
        (), description="format files: the files that a case becomes, each with path and holds."
    )
    file_lists: tuple[ListTemplate, ...] = Field(
        (), description="format files: text files that list cases or slices."
    )

    @model_validator(mode="after")
    def _file_settings_fit(self) -> Self:
        if self.format != "files":
            return self
        if not self.files:
            raise ValueError(
                "format files needs the setting files, which a configuration file has; the shipped "
                "ones are listed by `dask-slicer configs`"
            )
        paths = [text.path for text in self.file_lists]
        if len({path.lower() for path in paths}) < len(paths):
            raise ValueError("file_lists must have another path each")
        for template, other in combinations(self.files, 2):
            # Else a case a_1 could have the file of another slice, or case, of a template.
            same_splits = set(template.splits) & set(other.splits)
            if template.suffix == other.suffix and (
                same_splits if template.path == other.path else template.meets(other)
            ):
                raise ValueError(
                    "files with the same ending must be in folders of their own, got "
                    f"{template.path} and {other.path}"
                )
        for split in _SPLITS:
            images = [t for t in self.templates_of(split) if "image" in t.contents]
            if self.templates_of(split) and not images:
                raise ValueError(f"files of {split} must hold the image")
        return self

    @property
    def templates(self) -> tuple[FileTemplate, ...]:
        """Return the files that a case becomes; none in a Zarr store."""
        return self.files if self.format == "files" else _OF_FORMAT[self.format]

    @property
    def lists(self) -> tuple[ListTemplate, ...]:
        """Return the text files that list cases or slices."""
        return self.file_lists if self.format == "files" else ()

    @property
    def is_readable(self) -> bool:
        """Return whether this package reads the slices: other layouts are for other projects."""
        return self.format in ("zarr", "png") or all(
            any(t.is_readable for t in self.templates_of(split)) for split in _SPLITS
        )

    def problem_of_files(self, n_modalities: int, n_channels: int, splits: Collection[str]) -> str:
        """Return why files cannot hold such images of some splits; empty if they can."""
        if self.format == "png" and n_modalities > 1:
            return (
                f"format png holds one modality, and a case of this dataset has {n_modalities}; "
                "use format npz or zarr"
            )
        if any(each.suffix == ".h5" for each in self.templates) and find_spec("h5py") is None:
            return "files with the ending .h5 need h5py: python -m pip install 'dask_slicer[h5]'"
        for split in sorted(splits):
            images = [each for each in self.templates_of(split) if "image" in each.contents]
            if self.format == "files" and not images:
                return (
                    f"files have none for split {split}, which has cases; add one, or leave the "
                    "split empty, such as with --val_ratio 0"
                )
            for template in images:
                only_one = template.channels == "none" or template.copies > 1
                if n_channels > 1 and (only_one or (template.suffix == ".png" and n_channels != 3)):
                    return (
                        f"{template.path} has place for one channel, and here an image has "
                        f"{n_channels}; use --window_size 0 and one modality, or another format"
                    )
        return ""

    def templates_of(self, split: str) -> tuple[FileTemplate, ...]:
        """Return the files that a case of a split becomes."""
        return tuple(template for template in self.templates if split in template.splits)

    def image_template(self, split: str) -> FileTemplate:
        """Return the file that holds the image of slices of a split: a readable one if any is."""
        images = [each for each in self.templates_of(split) if "image" in each.contents]
        return min(images, key=lambda template: not template.is_readable)

    def is_transposed(self, split: str) -> bool:
        """Return whether images of a split have the rows of the slices as columns."""
        images = [each for each in self.templates_of(split) if "image" in each.contents]
        return bool(images) and self.image_template(split).transpose
