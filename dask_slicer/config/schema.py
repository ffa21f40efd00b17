"""The configuration model: every setting with its type, default and rule.

The command line, YAML files and Python all build this one frozen model.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import suppress
from inspect import Parameter, Signature
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Never, Self, Unpack, get_args

from pydantic import ByteSize, Field, model_validator

from dask_slicer.config import fields
from dask_slicer.config.run_settings import RunSettings
from dask_slicer.utils.formatting import format_value, plural
from dask_slicer.utils.modalities import for_each_modality
from dask_slicer.utils.repr_html import html_card, html_facts

# Name of the output directory of a plan that has none; the run of such a plan is refused.
NO_OUTPUT = ".dask_slicer_no_output"
# The value of `stratify` that names no column of the dataset.
BY_LABEL = "label"
# 1 - 0.8 - 0.2 is not 0 in binary.
_RATIO_SLACK = 1e-9


class SliceSettings(fields.Frozen):
    """Settings that decide the bytes of a case's output."""

    format: fields.SliceFormat = Field(
        "npz", description="How slices are stored: npz, one file per slice; zarr, every plane once."
    )
    window_size: fields.NonNegative = Field(2, description="Neighbouring slices on each side.")
    padding_mode: fields.PaddingMode = Field(
        "replicate",
        description="Slices outside the volume: zeros, copies of the edge slice, or a reflection "
        "about the edge slice.",
    )
    plane: fields.Plane = Field(
        "axial",
        description="Anatomical plane (by the affine, in radiological display order), or the "
        "file's own array axis.",
    )
    clip_min: fields.Limits = Field(
        None,
        description="Lower limit of intensities, in the file's units (HU for CT). One for all "
        "modalities, or one for each: -160,none.",
    )
    clip_max: fields.Limits = Field(
        None, description="Upper limit of intensities; also for each modality: 240,none."
    )
    normalize: fields.Normalizations = Field(
        "zscore",
        description="zscore over the foreground, the voxels above the lowest; minmax to [0, 1]; "
        "percentile: clip to the 0.5 and 99.5 percentiles, then zscore; none. Also for each "
        "modality: zscore,none.",
    )
    dtype: fields.ImageType = Field(
        "float32",
        description="Data type of the image on disk; source (zarr): as in the file, normalised "
        "when read.",
    )
    label_dtype: fields.LabelType = Field(
        "uint8",
        description="Data type of the label on disk; a value that does not fit fails the case.",
    )
    nonfinite: fields.Nonfinite = Field(
        "error", description="NaN and Inf in images: fail the case, or count as 0."
    )
    min_foreground: fields.Ratio = Field(
        0.0,
        description="Drop slices with a smaller labelled fraction; windows of other slices still "
        "hold them.",
    )
    compression_level: fields.Integer = Field(
        1, ge=0, le=9, description="npz: 0 stored, 1-2 ISA-L, 3-9 zlib."
    )
    compression: fields.Compression = Field(
        "auto", description="zarr: auto is lz4 for integers, zstd for floats and labels."
    )

    @model_validator(mode="after")
    def _slice_settings_fit(self) -> Self:
        if self.dtype == "source" and self.format != "zarr":
            raise ValueError("dtype source needs format zarr; npz holds normalised floats")
        counts = {
            name: len(value)
            for name in fields.PER_MODALITY
            if isinstance(value := getattr(self, name), tuple)
        }
        if len(set(counts.values())) > 1:
            numbers = " and ".join(f"{n} of {name}" for name, n in counts.items())
            raise ValueError(
                f"values for each modality must be equally many, got {numbers}; "
                "a single value counts for all modalities"
            )
        n = max(counts.values(), default=1)
        limits = (for_each_modality(value, n) for value in (self.clip_min, self.clip_max))
        for low, high in zip(*limits, strict=True):
            if low is not None and high is not None and low >= high:
                raise ValueError(f"clip_min must be less than clip_max, got {low:g} and {high:g}")
        return self


class SplitSettings(fields.Frozen):
    """How cases are divided into train, val and test."""

    train_ratio: fields.Ratio = Field(0.8, description="Fraction of the cases for training.")
    val_ratio: fields.Ratio | None = Field(
        None,
        description="Fraction for validation; the rest is test. [default: min(0.1, 1 - train)]",
    )
    group_regex: fields.RegexWithGroup | None = Field(
        None,
        description="Regular expression for case ids whose first group is the patient; a patient "
        "is never in two splits.",
    )
    group_column: fields.NonEmpty | None = Field(
        None,
        description="Column of the manifest or of participants.tsv: cases with the same value are "
        "never in two splits. It wins over group_regex and the groups of the dataset.",
    )
    seed: fields.Integer = Field(
        42, description="Seed of the order in which patients are assigned."
    )
    folds: fields.AtLeastTwo | None = Field(
        None,
        description="Number of folds of a cross-validation over the cases that are not for test, "
        "written to splits_final.json as nnU-Net has it.",
    )
    stratify: fields.NonEmpty | None = Field(
        None,
        description="Column of the manifest or of participants.tsv whose values have about the "
        "same share in each split and fold; label: label values, in each fold.",
    )
    splits: fields.AbsolutePath | None = Field(
        None, description="JSON file with the splits; nnU-Net's splits_final.json with --fold."
    )
    fold: fields.NonNegative | None = Field(None, description="Entry of splits_final.json, from 0.")

    @model_validator(mode="after")
    def _split_settings_fit(self) -> Self:
        if self.val_ratio is not None and self.train_ratio + self.val_ratio > 1 + _RATIO_SLACK:
            raise ValueError(
                "train_ratio + val_ratio must be 1 or less, got "
                f"{self.train_ratio + self.val_ratio:g}"
            )
        if self.fold is not None and self.splits is None:
            raise ValueError(f"fold needs splits, the file that holds the folds, got {self.fold}")
        if self.stratify == BY_LABEL and self.folds is None:
            raise ValueError(
                "stratify label needs folds: labels are known after train, val and test are"
            )
        return self

    def ratios(self) -> dict[str, float]:
        """Return the fraction of cases in each split; they sum to 1.

        >>> SplitSettings(train_ratio=0.95).ratios()
        {'train': 0.95, 'val': 0.05, 'test': 0.0}
        """
        left = round(1 - self.train_ratio, 9)
        val = min(0.1, left) if self.val_ratio is None else self.val_ratio
        test = round(left - val, 9)
        return {"train": self.train_ratio, "val": val, "test": max(test, 0.0)}


class InputSettings(fields.Frozen):
    """Which files of the dataset are images and labels, where that is not clear."""

    layout: fields.LayoutName | None = Field(
        None, description="Layout of the dataset; without it, the first that fits."
    )
    images: tuple[str, ...] = Field(
        (),
        description="Pattern (glob) of the images, relative to the dataset; once for each "
        "modality. Cases are what the wildcards match.",
    )
    labels: str | None = Field(None, description="Pattern of the labels; with images.")
    label_name: str | None = Field(
        None, description="Label to use where a case has several, such as segTRI."
    )
    structures: fields.Names = Field(
        (),
        description="Structures whose binary masks, one in each file, make the label, such as "
        "liver,spleen: values 1, 2, … in this order. [default: all, by name]",
    )
    overlap: fields.Overlap = Field(
        "first",
        description="Voxels in the masks of two structures: count them for the first, or fail the "
        "case.",
    )
    modalities: fields.Names = Field(
        (), description="Images of a case to use, and their order, such as t1c,flair."
    )
    missing_modality: fields.MissingModality = Field(
        "error", description="A case without one of the images: fail it, or fill with zeros."
    )
    volumes: fields.Volumes | None = Field(
        None,
        description="Volumes of 4D images: channels of one case, frames that are a case each, or "
        "the number of the one to use, from 0.",
    )
    label_grid: fields.LabelGrid = Field(
        "own", description="Affine of labels: their own, or the image's if the shape is the same."
    )
    orientation_from: fields.Orientation = Field(
        "sform", description="Form of a NIfTI header to use where it has both."
    )
    datalist_fold: fields.NonNegative | None = Field(
        None, description="Fold of a MONAI datalist for validation; the others are for training."
    )
    include_test: bool = Field(
        False,
        description="Put the images for testing, such as nnU-Net's imagesTs, into the test split.",
    )

    @model_validator(mode="after")
    def _input_settings_fit(self) -> Self:
        if self.labels is not None and not self.images:
            raise ValueError("labels needs images: give the patterns of both")
        if self.layout is not None and self.images:
            raise ValueError("images, patterns of files, take the place of a layout; give one")
        return self


class RunConfig(RunSettings, SplitSettings, SliceSettings, InputSettings):
    """Settings of a run, validated once and never changed.

    Examples
    --------
    >>> RunConfig(input_dir="scans", output_dir="slices", window_size=1).padding_mode
    'replicate'
    """

    if TYPE_CHECKING:  # else type checkers refuse a string for a path

        def __init__(
            self,
            *,
            input_dir: fields.StrPath,
            output_dir: fields.StrPath,
            **settings: Unpack[fields.OptionalKeywords[Never]],
        ) -> None: ...

    input_dir: fields.AbsolutePath = Field(
        description="Folder of the dataset, or a manifest (CSV, TSV, JSON) or datalist (JSON)."
    )
    output_dir: fields.AbsolutePath = Field(
        description="Folder for the slices; created if missing."
    )
    allow_missing_labels: bool = Field(
        False, description="Write cases without a label; without this option, they fail."
    )

    @model_validator(mode="after")
    def _output_is_not_input(self) -> Self:
        try:
            same = _is_same(_resolved(self.input_dir), _resolved(self.output_dir))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"input_dir and output_dir cannot be resolved: {error}") from None
        if same:
            raise ValueError("output_dir must not be the input_dir; name another folder")
        return self

    @property
    def has_output(self) -> bool:
        """Return whether there is an output directory; a plan needs none."""
        return self.output_dir.name != NO_OUTPUT

    @property
    def input_root(self) -> Path:
        """Return the folder that the paths of scans are relative to."""
        return self.input_dir if self.input_dir.is_dir() else self.input_dir.parent

    @property
    def slice_settings(self) -> SliceSettings:
        """Return the settings that decide the bytes of a case's output."""
        return SliceSettings(**{name: getattr(self, name) for name in SliceSettings.model_fields})

    def _repr_html_(self) -> str:
        """Return changed settings as an HTML table, and the others behind a click."""
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        changed = [(name, _readable(value)) for name, value in self if value != defaults[name]]
        others = [(name, _readable(value)) for name, value in self if value == defaults[name]]
        unchanged = f"{plural(len(others), 'setting')} at the default"
        return html_card(
            "Configuration of a run",
            html_facts(changed),
            f"<details><summary>{unchanged}</summary>{html_facts(others)}</details>",
        )


def _described(name: str) -> str:
    """Return the entry of a setting in a docstring."""
    field = RunConfig.model_fields[name]
    annotation = fields.plain_type(field.annotation)
    kind = str(getattr(annotation, "__name__", annotation))
    if choices := get_args(annotation):
        kind = "sequence of str" if Ellipsis in choices else f"{{{str(choices)[1:-1]}}}"
    if name in fields.PER_MODALITY:
        kind = f"{kind} or sequence of it"
    kind = {"Path": "str or Path", "ByteSize": "int or str"}.get(kind, kind)
    return f"{name} : {kind}\n    {field.description}\n"


def _parameter(name: str) -> Parameter:
    field = RunConfig.model_fields[name]
    default = Parameter.empty if field.is_required() else field.default
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default)


# For help() and notebooks, required settings first; pydantic's signature is long, with every rule.
_NAMES = dict.fromkeys(("input_dir", "output_dir", *chain.from_iterable(fields.GROUPS.values())))
RunConfig.__signature__ = Signature(list(map(_parameter, _NAMES)))
RunConfig.__doc__ = inspect.cleandoc(RunConfig.__doc__ or "").replace(
    "Examples\n", "Parameters\n----------\n" + "".join(map(_described, _NAMES)) + "\nExamples\n"
)


# By format, the setting that has no effect with it.
UNUSED_BY_FORMAT = {"npz": "compression", "zarr": "compression_level"}

# Settings that may change between runs into one output: cases with NaN record `nonfinite`, and the
# others come out the same; `splits` and `fold` are compared by the assignment that they lead to;
# cases keep their split if `stratify` changes, and folds are made again.
_MAY_CHANGE = {"nonfinite", "splits", "fold", "folds", "stratify"}


def _resolved(path: Path) -> Path:
    """Return the target of a path; raise OSError if its links form a loop."""
    target = path.resolve()
    if target.is_symlink():  # from Python 3.13 on, resolve() does not raise
        raise OSError(f"Symlink loop from {str(path)!r}")
    return target


def _is_same(path: Path, other: Path) -> bool:
    """Return whether two paths name one folder, also in other cases of letters."""
    with suppress(OSError):  # one is missing
        return path.samefile(other)
    return path == other


def changed_settings(old: RunConfig, new: RunConfig, *, also: Sequence[str] = ()) -> list[str]:
    """Return how the settings that an output directory keeps, and those in `also`, changed.

    >>> old = RunConfig(input_dir="a", output_dir="b")
    >>> changed_settings(old, old.model_copy(update={"window_size": 1}))
    ['window_size was 2, is now 1']
    """
    unused = {UNUSED_BY_FORMAT[new.format]} if old.format == new.format else set()
    # With `only`, other modalities would give cases of one output other channels.
    kept = (*SliceSettings.model_fields, *SplitSettings.model_fields, "modalities")
    names = [*(name for name in kept if name not in _MAY_CHANGE | unused), *also]
    before = {name: getattr(old, name) for name in names} | {"val_ratio": old.ratios()["val"]}
    after = {name: getattr(new, name) for name in names} | {"val_ratio": new.ratios()["val"]}
    return [
        f"{name} was {format_value(before[name]) or 'none'}, is now "
        f"{format_value(after[name]) or 'none'}"
        for name in names
        if before[name] != after[name]
    ]


def _readable(value: object) -> object:
    if isinstance(value, ByteSize):
        return value.human_readable(decimal=True)
    return "none" if value in (None, ()) else format_value(value)
