"""The configuration model: every setting, its type, default and rule.

One frozen model; the command line, YAML files and Python all build it, nothing else parses options.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from inspect import Parameter, Signature
from itertools import chain
from typing import TYPE_CHECKING, Any, Never, Self, Unpack, get_args

from pydantic import Field, model_validator

from dask_slicer.config.fields import (
    AbsolutePath,
    Compression,
    Finite,
    Frozen,
    ImageType,
    Integer,
    LabelType,
    Nonfinite,
    NonNegative,
    Normalize,
    PaddingMode,
    Plane,
    Ratio,
    RegexWithGroup,
    SliceFormat,
    plain_type,
)
from dask_slicer.config.keywords import GROUPS, OptionalKeywords, StrPath
from dask_slicer.config.run_settings import RunSettings
from dask_slicer.utils.formatting import format_shape, format_value, plural
from dask_slicer.utils.repr_html import html_card, html_details, html_facts

# 1 - 0.8 - 0.2 is not 0 in binary.
_RATIO_SLACK = 1e-9


class SliceSettings(Frozen):
    """What a slice looks like: every setting that decides the bytes of a case's output."""

    format: SliceFormat = Field(
        "npz",
        description="How slices are stored: a file each, or every plane once, in a Zarr store.",
    )
    window_size: NonNegative = Field(2, description="Neighbouring slices on each side.")
    padding_mode: PaddingMode = Field(
        "replicate",
        description="What stands for slices outside the volume: zeros, the edge slice, or the "
        "reflection about the edge slice.",
    )
    plane: Plane = Field(
        "axial",
        description="Anatomical plane (by the affine, in radiological display order), or the "
        "file's own array axis.",
    )
    clip_min: Finite | None = Field(
        None, description="Lowest intensity kept, in the file's units (HU for CT)."
    )
    clip_max: Finite | None = Field(None, description="Highest intensity kept.")
    normalize: Normalize = Field(
        "zscore",
        description="zscore over the foreground, the voxels above the lowest; minmax to [0, 1]; "
        "percentile: clip to the 0.5 and 99.5 percentiles, then zscore; none.",
    )
    dtype: ImageType = Field(
        "float32",
        description="Of the image on disk; source (zarr): the file's own numbers, normalised when "
        "they are read.",
    )
    label_dtype: LabelType = Field(
        "uint8", description="Of the label on disk; a value that does not fit fails the case."
    )
    nonfinite: Nonfinite = Field("error", description="What to do with NaN and Inf in images.")
    min_foreground: Ratio = Field(
        0.0,
        description="Drop slices whose labelled share is below this; neighbours stay in windows.",
    )
    compression_level: Integer = Field(
        1, ge=0, le=9, description="npz: 0 stored, 1-2 ISA-L, 3-9 zlib."
    )
    compression: Compression = Field(
        "auto", description="zarr: auto is lz4 for integers, zstd for floats and labels."
    )

    @model_validator(mode="after")
    def _source_needs_zarr(self) -> Self:
        if self.dtype == "source" and self.format != "zarr":
            raise ValueError("dtype source needs format zarr; npz holds normalised floats")
        return self

    @model_validator(mode="after")
    def _clip_range_is_ordered(self) -> Self:
        low, high = self.clip_min, self.clip_max
        if low is not None and high is not None and low >= high:
            raise ValueError(f"clip_min must be less than clip_max, got {low:g} and {high:g}")
        return self


class SplitSettings(Frozen):
    """How cases are divided into train, val and test."""

    train_ratio: Ratio = Field(0.8, description="Share of cases for training.")
    val_ratio: Ratio | None = Field(
        None, description="Share for validation; the rest is test. [default: min(0.1, 1 - train)]"
    )
    group_regex: RegexWithGroup | None = Field(
        None,
        description="Its first group, applied to the case id, is the patient; a patient is never "
        "in two splits.",
    )
    seed: Integer = Field(42, description="For the order in which groups are assigned.")
    splits: AbsolutePath | None = Field(
        None, description="JSON file with the splits; nnU-Net's splits_final.json with --fold."
    )
    fold: NonNegative | None = Field(None, description="Which entry of splits_final.json.")

    @model_validator(mode="after")
    def _ratios_sum_to_at_most_one(self) -> Self:
        if self.val_ratio is not None and self.train_ratio + self.val_ratio > 1 + _RATIO_SLACK:
            raise ValueError(
                "train_ratio + val_ratio must be 1 or less, got "
                f"{self.train_ratio + self.val_ratio:g}"
            )
        return self

    @model_validator(mode="after")
    def _fold_is_of_a_file(self) -> Self:
        if self.fold is not None and self.splits is None:
            raise ValueError(f"fold needs splits, the file that holds the folds, got {self.fold}")
        return self

    def ratios(self) -> dict[str, float]:
        """Return the share of each split; they sum to 1.

        Examples
        --------
        >>> SplitSettings(train_ratio=0.95).ratios()
        {'train': 0.95, 'val': 0.05, 'test': 0.0}
        """
        left = round(1 - self.train_ratio, 9)
        val = min(0.1, left) if self.val_ratio is None else self.val_ratio
        test = round(left - val, 9)
        return {"train": self.train_ratio, "val": val, "test": max(test, 0.0)}


class RunConfig(RunSettings, SplitSettings, SliceSettings):
    """Settings of a run, checked when they are given and never changed.

    Examples
    --------
    >>> RunConfig(input_dir="scans", output_dir="slices", window_size=1).padding_mode
    'replicate'
    """

    if TYPE_CHECKING:  # type checkers would take a path for `input_dir`, and no string

        def __init__(
            self,
            *,
            input_dir: StrPath,
            output_dir: StrPath,
            **settings: Unpack[OptionalKeywords[Never]],
        ) -> None: ...

    input_dir: AbsolutePath = Field(
        description="Dataset root (its layout is recognised), or a CSV or JSON manifest."
    )
    output_dir: AbsolutePath = Field(description="Created if missing.")
    allow_missing_labels: bool = Field(
        False, description="Write cases without a label instead of failing them."
    )
    include_test: bool = Field(False, description="Put nnU-Net's imagesTs into test.")

    @model_validator(mode="after")
    def _output_is_not_input(self) -> Self:
        try:
            same = _resolved(self.input_dir) == _resolved(self.output_dir)
        except (RuntimeError, OSError) as error:
            raise ValueError(f"input_dir and output_dir must lead somewhere: {error}") from None
        if same:
            raise ValueError("output_dir must not be the input_dir; nothing is written among scans")
        return self

    @property
    def slice_settings(self) -> SliceSettings:
        """Return the settings that decide the bytes of a case's output."""
        return SliceSettings(**{name: getattr(self, name) for name in SliceSettings.model_fields})

    def _repr_html_(self) -> str:
        return config_card(self)


def _parameters() -> Iterator[Parameter]:
    """Yield the settings as keyword arguments, required ones first, then by group."""
    names = ("input_dir", "output_dir", *chain.from_iterable(GROUPS.values()))
    for name in dict.fromkeys(names):
        field = RunConfig.model_fields[name]
        default = Parameter.empty if field.is_required() else field.default
        kind = plain_type(field.annotation)
        yield Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _described(parameter: Parameter) -> str:
    """Return the entry of a setting in a docstring."""
    kind = str(getattr(parameter.annotation, "__name__", parameter.annotation))
    if choices := get_args(parameter.annotation):
        kind = "sequence of str" if Ellipsis in choices else f"{{{str(choices)[1:-1]}}}"
    kind = {"Path": "str or Path", "ByteSize": "int or str"}.get(kind, kind)
    return f"{parameter.name} : {kind}\n    {RunConfig.model_fields[parameter.name].description}\n"


# For help() and notebooks: pydantic's own signature shows every rule.
_PARAMETERS = list(_parameters())
RunConfig.__signature__ = Signature(
    [parameter.replace(annotation=Parameter.empty) for parameter in _PARAMETERS]
)
RunConfig.__doc__ = inspect.cleandoc(RunConfig.__doc__ or "").replace(
    "Examples\n",
    "Parameters\n----------\n" + "".join(map(_described, _PARAMETERS)) + "\nExamples\n",
)


# By format, the setting that means nothing to it.
OF_ANOTHER_FORMAT = {"npz": "compression", "zarr": "compression_level"}

# Settings that an output directory keeps for life. `nonfinite` is not among them: cases that held
# NaN remember it, and the others come out the same. `splits` and `fold` are judged by the
# assignment they lead to.
_FIXED = (
    *(name for name in SliceSettings.model_fields if name != "nonfinite"),
    "train_ratio",
    "val_ratio",
    "group_regex",
    "seed",
)


def _resolved(path: Path) -> Path:
    """Return where `path` leads; raise OSError where links lead back to themselves."""
    target = path.resolve()
    if target.is_symlink():  # from Python 3.13 on, resolve() leaves such a link as it is
        raise OSError(f"Symlink loop from {str(path)!r}")
    return target


def changed_settings(old: RunConfig, new: RunConfig, *, also: Sequence[str] = ()) -> list[str]:
    """Return what an output directory was made with and what is now asked for, where they differ.

    Of settings that it keeps for life, and others that are named.

    Examples
    --------
    >>> old = RunConfig(input_dir="a", output_dir="b")
    >>> changed_settings(old, old.model_copy(update={"window_size": 1}))
    ['window_size was 2, is now 1']
    """
    names = (*_FIXED, *also)
    before = {name: getattr(old, name) for name in names} | {"val_ratio": old.ratios()["val"]}
    after = {name: getattr(new, name) for name in names} | {"val_ratio": new.ratios()["val"]}
    fixed = set(names)
    if old.format == new.format:
        fixed.discard(OF_ANOTHER_FORMAT[new.format])
    return [
        f"{name} was {format_value(before[name])}, is now {format_value(after[name])}"
        for name in names
        if name in fixed and before[name] != after[name]
    ]


def config_card(config: RunConfig) -> str:
    """Return a configuration as HTML: what was changed, and behind a click what was not."""
    fields = type(config).model_fields
    values = {name: getattr(config, name) for name in fields}
    changed = [
        (name, value)
        for name, value in values.items()
        if fields[name].is_required() or value != fields[name].default
    ]
    given = {name for name, _ in changed}
    others = [(name, value) for name, value in values.items() if name not in given]
    return html_card(
        "Configuration of a run",
        html_facts(_settings(changed)),
        html_details(
            f"{plural(len(others), 'setting')} at the default", html_facts(_settings(others))
        ),
    )


def _settings(settings: Iterable[tuple[str, Any]]) -> list[tuple[str, object]]:
    return [
        (name, "none" if value is None or value == () else _readable(value))
        for name, value in settings
    ]


def _readable(value: Any) -> object:
    in_words = getattr(value, "human_readable", None)
    if in_words:
        return in_words(decimal=True)
    return format_shape(value) if isinstance(value, list) else value
