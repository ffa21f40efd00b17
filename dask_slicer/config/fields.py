"""Types of settings with their rules; groups of settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
)

from dask_slicer.errors import UsageError


class Frozen(BaseModel):
    """Settings that are validated once and never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def not_bool(value: Any) -> Any:
    """Return a value that is not a truth value."""
    if isinstance(value, bool):  # which is an int in Python
        raise ValueError("must be a number")
    return value


def number_in_text(value: Any) -> Any:
    """Return the number in a text of digits, for choices among numbers."""
    return int(value) if isinstance(value, str) and value.isdecimal() else not_bool(value)


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _each_modality(value: Any) -> Any:
    """Return the parts of a text such as ``zscore,none``; other values as they are."""
    if isinstance(value, str) and "," in value:
        return [part.strip() for part in value.split(",")]
    return value


def _planes(value: Any) -> Any:
    """Return one plane as a text; several in the order of `PLANES`, each once."""
    parts = _each_modality(value)
    if not isinstance(parts, list | tuple):
        return value
    names = [_lower(part) for part in parts]
    if not names or any(names.count(name) > 1 for name in names):
        raise ValueError("must be planes with commas between them, each once")
    known = [name for name in PLANES if name in names]
    names = known + [name for name in names if name not in known]
    return names[0] if len(names) == 1 else tuple(names)


def none_in_words(value: Any) -> Any:
    """Return None for its name, and other values as they are."""
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


def comma_separated(value: Any) -> Any:
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

Integer = Annotated[int, BeforeValidator(not_bool)]
NonNegative = Annotated[Integer, Field(ge=0)]
Positive = Annotated[Integer, Field(ge=1)]
Ratio = Annotated[float, BeforeValidator(not_bool), Field(ge=0, le=1)]
Finite = Annotated[float, BeforeValidator(not_bool), Field(allow_inf_nan=False)]
Seconds = Annotated[float, BeforeValidator(not_bool), Field(gt=0, allow_inf_nan=False)]
AtLeastTwo = Annotated[Integer, Field(ge=2)]
NonEmpty = Annotated[str, Field(min_length=1)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
RegexWithGroup = Annotated[str, AfterValidator(_regex_with_group)]
HostAndPort = Annotated[str, AfterValidator(_host_and_port)]
Walltime = Annotated[str, BeforeValidator(_walltime)]
Memory = Annotated[ByteSize, AfterValidator(_memory)]
Shard = Annotated[str, AfterValidator(_shard)]
# One value of an option holds them all.
Names = Annotated[tuple[str, ...], BeforeValidator(comma_separated)]
Volumes = Annotated[str, BeforeValidator(_volumes)]

ANY_CASE = BeforeValidator(_lower)
_PlaneName = Literal["axial", "coronal", "sagittal", "i", "j", "k"]
PLANES: tuple[str, ...] = get_args(_PlaneName)
Plane = Annotated[_PlaneName, ANY_CASE]
# One, or several with commas between them.
Planes = Annotated[
    Annotated[Plane, Tag("one")] | Annotated[tuple[Plane, ...], Tag("each")],
    Discriminator(_one_or_each),
    BeforeValidator(_planes),
]
PaddingMode = Annotated[Literal["zero", "replicate", "mirror"], ANY_CASE]
Normalize = Annotated[Literal["zscore", "minmax", "percentile", "dataset", "none"], ANY_CASE]
ImageType = Annotated[Literal["float32", "float16", "uint8", "uint16", "source"], ANY_CASE]
LabelType = Annotated[Literal["uint8", "uint16", "int32"], ANY_CASE]
Nonfinite = Annotated[Literal["error", "zero"], ANY_CASE]
# One for all modalities, or one for each.
_Limit = Annotated[Finite | None, BeforeValidator(none_in_words)]
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
# Settings that take one value, or several with commas between them.
ONE_OR_SEVERAL = (*PER_MODALITY, "plane")
# Settings without an option on the command line.
WITHOUT_OPTION = ("offset", "files", "file_lists")
SliceFormat = Annotated[Literal["npz", "zarr", "png", "files"], ANY_CASE]
Bits = Annotated[Literal[8, 16], BeforeValidator(number_in_text)]
Compression = Annotated[Literal["auto", "lz4", "zstd", "none"], ANY_CASE]
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
    ANY_CASE,
]
Orientation = Annotated[Literal["sform", "qform"], ANY_CASE]
LabelGrid = Annotated[Literal["own", "image"], ANY_CASE]
MissingModality = Annotated[Literal["error", "zero"], ANY_CASE]
Overlap = Annotated[Literal["first", "error"], ANY_CASE]
BatchSystemName = Annotated[Literal["slurm", "pbs", "sge", "lsf"], ANY_CASE]


# By heading, in the order of `--help`; every setting is in one group.
GROUPS: dict[str, tuple[str, ...]] = {
    "Input": ("input_dir", "include_test", "only"),
    "Slices": ("plane", "window_size", "padding_mode", "context_step", "context_mm"),
    "Intensities": (
        *("clip_min", "clip_max", "percentiles", "ct_windows", "normalize", "statistics"),
        *("foreground", "zero_background", "dtype", "nonfinite"),
    ),
    "Labels": (
        *("label_dtype", "allow_missing_labels", "label_map"),
        *("min_component_voxels", "min_component_pixels"),
    ),
    "Crop, spacing and size": (
        *("crop", "crop_margin", "spacing", "resample_order", "size", "fit", "size_order"),
        "center",
    ),
    "Selection of slices": (
        *("min_foreground", "slices", "stride", "keep_empty", "keep_empty_in", "slice_list"),
        "drop_blank",
    ),
    "Files of the dataset": (
        *("layout", "images", "labels", "label_name", "structures", "overlap", "modalities"),
        *("missing_modality", "volumes", "label_grid", "orientation_from", "datalist_fold"),
    ),
    "Splits": (
        *("train_ratio", "val_ratio", "group_regex", "group_column", "seed", "splits", "fold"),
        *("folds", "stratify"),
    ),
    "Output": (
        *("output_dir", "format", "bits", "compression_level", "compression"),
        *("offset", "files", "file_lists"),
        *("overwrite", "prune", "trust_size", "fsync"),
    ),
    "Workers": ("num_workers", "dashboard_address", "scratch_dir", "shard"),
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


def number_of_bytes(size: int | str, *, name: str) -> int:
    """Return a size in bytes; raise UsageError, with the name of its argument, if it is none.

    >>> number_of_bytes("8GB", name="cache")
    8000000000
    """
    try:
        return int(TypeAdapter(ByteSize).validate_python(size))
    except ValidationError:
        raise UsageError(f"{name} must be a size such as 8GB, got {size}") from None
