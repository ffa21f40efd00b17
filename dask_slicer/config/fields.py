"""Types of settings: with their rules, and as keyword arguments; groups of settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypedDict, TypeVar, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
)


class Frozen(BaseModel):
    """Settings that are validated once and never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):  # which is an int in Python
        raise ValueError("must be a number")
    return value


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _each_modality(value: Any) -> Any:
    """Return the parts of a text such as ``zscore,none``; other values as they are."""
    if isinstance(value, str) and "," in value:
        return [part.strip() for part in value.split(",")]
    return value


def _none_in_words(value: Any) -> Any:
    return None if isinstance(value, str) and value.lower() == "none" else value


def _one_or_each(value: Any) -> str:
    return "each" if isinstance(value, list | tuple) else "one"


def _absolute(path: Path) -> Path:
    # Not resolve(): a symbolic link to the data keeps the name that the user gave.
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        raise ValueError("is in the home directory of an unknown user") from None


def _regex_with_group(text: str) -> str:
    try:
        groups = re.compile(text).groups
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    if groups < 1:
        raise ValueError("must have a group in parentheses, which matches the patient")
    return text


def _host_and_port(text: str) -> str:
    _, colon, port = text.rpartition(":")
    if text != "none" and not (colon and port.isdecimal() and int(port) < 1 << 16):
        raise ValueError("must be host:port, or none")
    return text


def _walltime(value: Any) -> str:
    # YAML reads 12:00:00 without quotes as 43200.
    text = value if isinstance(value, str) else ""
    if not (_WALLTIME.fullmatch(text) and re.search("[1-9]", text)):
        raise ValueError("must be HH:MM:SS, or D-HH:MM:SS, and in quotes in a file")
    return text


def _memory(size: ByteSize) -> ByteSize:
    if size < _LEAST_MEMORY:
        raise ValueError("must be a size such as 4GB")
    return size


def _comma_separated(value: Any) -> Any:
    """Return the names in a text, or in a sequence of texts, with commas between them."""
    texts = [value] if isinstance(value, str) else value
    if not (isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts)):
        return value
    names = tuple(name.strip() for text in texts for name in text.split(","))
    if not all(names):
        raise ValueError("must be names with commas between them, none empty")
    if len(set(names)) < len(names):
        raise ValueError("must name each only once")
    return names


def _volumes(value: Any) -> Any:
    text = str(value).lower()
    if isinstance(value, bool) or not (text in ("channels", "frames") or text.isdecimal()):
        raise ValueError("must be channels, frames, or the number of one volume, from 0")
    return text


def _shard(text: str) -> str:
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise ValueError("must be I/N, I from 1 to N")
    return f"{int(number)}/{int(of)}"


# Less than Python and its imports take.
_LEAST_MEMORY = 100_000_000
_WALLTIME = re.compile(r"(\d+-)?\d+:\d\d:\d\d")

Integer = Annotated[int, BeforeValidator(_not_bool)]
NonNegative = Annotated[Integer, Field(ge=0)]
Positive = Annotated[Integer, Field(ge=1)]
AtLeastTwo = Annotated[Integer, Field(ge=2)]
NonEmpty = Annotated[str, Field(min_length=1)]
Ratio = Annotated[float, BeforeValidator(_not_bool), Field(ge=0, le=1)]
Finite = Annotated[float, BeforeValidator(_not_bool), Field(allow_inf_nan=False)]
Seconds = Annotated[float, BeforeValidator(_not_bool), Field(gt=0, allow_inf_nan=False)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
RegexWithGroup = Annotated[str, AfterValidator(_regex_with_group)]
HostAndPort = Annotated[str, AfterValidator(_host_and_port)]
Walltime = Annotated[str, BeforeValidator(_walltime)]
Memory = Annotated[ByteSize, AfterValidator(_memory)]
Shard = Annotated[str, AfterValidator(_shard)]
# One value of an option holds them all.
Names = Annotated[tuple[str, ...], BeforeValidator(_comma_separated)]
Volumes = Annotated[str, BeforeValidator(_volumes)]

_AnyCase = BeforeValidator(_lower)
Plane = Annotated[Literal["axial", "coronal", "sagittal", "i", "j", "k"], _AnyCase]
PaddingMode = Annotated[Literal["zero", "replicate", "mirror"], _AnyCase]
Normalize = Annotated[Literal["zscore", "minmax", "percentile", "none"], _AnyCase]
ImageType = Annotated[Literal["float32", "float16", "source"], _AnyCase]
LabelType = Annotated[Literal["uint8", "uint16", "int32"], _AnyCase]
Nonfinite = Annotated[Literal["error", "zero"], _AnyCase]
# One for all modalities, or one for each.
_Limit = Annotated[Finite | None, BeforeValidator(_none_in_words)]
Limits = Annotated[
    Annotated[_Limit, Tag("one")] | Annotated[tuple[_Limit, ...], Tag("each")],
    Discriminator(_one_or_each),
    BeforeValidator(_each_modality),
]
Normalizations = Annotated[
    Annotated[Normalize, Tag("one")] | Annotated[tuple[Normalize, ...], Tag("each")],
    Discriminator(_one_or_each),
    BeforeValidator(_each_modality),
]
PER_MODALITY = ("clip_min", "clip_max", "normalize")
SliceFormat = Annotated[Literal["npz", "zarr"], _AnyCase]
Compression = Annotated[Literal["auto", "lz4", "zstd", "none"], _AnyCase]
LayoutName = Annotated[
    Literal[
        "manifest",
        "dataset_json",
        "nnunet",
        "images_and_labels",
        "bids",
        "folder_per_case",
        "one_folder",
    ],
    _AnyCase,
]
Orientation = Annotated[Literal["sform", "qform"], _AnyCase]
LabelGrid = Annotated[Literal["own", "image"], _AnyCase]
MissingModality = Annotated[Literal["error", "zero"], _AnyCase]
Overlap = Annotated[Literal["first", "error"], _AnyCase]
BatchSystemName = Annotated[Literal["slurm", "pbs", "sge", "lsf"], _AnyCase]


StrPath = str | PathLike[str]
# The value of a setting that is not given: None, or Never where there is no such value.
NotGiven = TypeVar("NotGiven")


class OptionalKeywords(TypedDict, Generic[NotGiven], total=False):
    """The settings of `RunConfig` that have a default."""

    include_test: bool | NotGiven
    only: Sequence[str] | NotGiven

    plane: Plane | NotGiven
    window_size: int | NotGiven
    padding_mode: PaddingMode | NotGiven

    clip_min: float | Sequence[float | None] | None
    clip_max: float | Sequence[float | None] | None
    normalize: Normalize | Sequence[Normalize] | NotGiven
    dtype: ImageType | NotGiven
    nonfinite: Nonfinite | NotGiven

    label_dtype: LabelType | NotGiven
    allow_missing_labels: bool | NotGiven
    min_foreground: float | NotGiven

    layout: LayoutName | None
    images: Sequence[str] | NotGiven
    labels: str | None
    label_name: str | None
    structures: Sequence[str] | NotGiven
    overlap: Overlap | NotGiven
    modalities: Sequence[str] | NotGiven
    missing_modality: MissingModality | NotGiven
    volumes: str | None
    label_grid: LabelGrid | NotGiven
    orientation_from: Orientation | NotGiven
    datalist_fold: int | None

    train_ratio: float | NotGiven
    val_ratio: float | None
    group_regex: str | None
    group_column: str | None
    seed: int | NotGiven
    folds: int | None
    stratify: str | None
    splits: StrPath | None
    fold: int | None

    format: SliceFormat | NotGiven
    compression_level: int | NotGiven
    compression: Compression | NotGiven
    overwrite: bool | NotGiven
    prune: bool | NotGiven
    trust_size: bool | NotGiven
    fsync: bool | NotGiven

    num_workers: int | NotGiven
    dashboard_address: str | NotGiven
    shard: str | None

    scheduler: str | None
    scheduler_file: StrPath | None
    tls_ca: StrPath | None
    tls_cert: StrPath | None
    tls_key: StrPath | None
    wait_workers: int | NotGiven
    wait_timeout: float | NotGiven
    upload_code: bool | NotGiven

    cluster: BatchSystemName | None
    jobs: int | NotGiven
    cores: int | NotGiven
    memory: int | str | NotGiven
    walltime: str | NotGiven
    queue: str | None
    account: str | None
    job_extra: Sequence[str] | NotGiven
    lifetime: float | None
    interface: str | None

    retries: int | NotGiven
    timeout: float | None
    fail_fast: bool | NotGiven
    performance_report: StrPath | None
    log_file: StrPath | None


class RunKeywords(OptionalKeywords[None], total=False):
    """Settings over a configuration; None means not given."""

    input_dir: StrPath | None
    output_dir: StrPath | None


# By heading, in the order of `--help`; every setting is in one group.
GROUPS: dict[str, tuple[str, ...]] = {
    "Input": ("input_dir", "include_test", "only"),
    "Slices": ("plane", "window_size", "padding_mode"),
    "Intensities": ("clip_min", "clip_max", "normalize", "dtype", "nonfinite"),
    "Labels": ("label_dtype", "allow_missing_labels", "min_foreground"),
    "Files of the dataset": (
        *("layout", "images", "labels", "label_name", "structures", "overlap", "modalities"),
        *("missing_modality", "volumes", "label_grid", "orientation_from", "datalist_fold"),
    ),
    "Splits": (
        *("train_ratio", "val_ratio", "group_regex", "group_column", "seed", "splits", "fold"),
        *("folds", "stratify"),
    ),
    "Output": (
        *("output_dir", "format", "compression_level", "compression"),
        *("overwrite", "prune", "trust_size", "fsync"),
    ),
    "Workers": ("num_workers", "dashboard_address", "shard"),
    "Running scheduler": (
        *("scheduler", "scheduler_file", "tls_ca", "tls_cert", "tls_key"),
        *("wait_workers", "wait_timeout", "upload_code"),
    ),
    "Batch system": (
        *("cluster", "jobs", "cores", "memory", "walltime", "queue", "account"),
        *("job_extra", "lifetime", "interface"),
    ),
    "Failures and logs": ("retries", "timeout", "fail_fast", "performance_report", "log_file"),
}


def plain_type(annotation: Any) -> Any:
    """Return the type behind ``X | None`` and ``Annotated[X, ...]``.

    >>> plain_type(Positive | None)
    <class 'int'>
    """
    if get_origin(annotation) in (Literal, tuple):
        return annotation
    inner = [part for part in get_args(annotation) if part is not type(None)]
    return plain_type(inner[0]) if inner else annotation


def walltime_seconds(walltime: str) -> int:
    """Return the seconds of a batch system's time limit.

    >>> walltime_seconds("1-02:00:30")
    93630
    """
    days, _, clock = walltime.rpartition("-")
    hours, minutes, seconds = map(int, clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
