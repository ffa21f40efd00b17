"""Types of settings with their rules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize, ConfigDict, Field


class Frozen(BaseModel):
    """Settings that are validated once and never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):  # which is an int in Python
        raise ValueError("must be a number")
    return value


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


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
Ratio = Annotated[float, BeforeValidator(_not_bool), Field(ge=0, le=1)]
Finite = Annotated[float, BeforeValidator(_not_bool), Field(allow_inf_nan=False)]
Seconds = Annotated[float, BeforeValidator(_not_bool), Field(gt=0, allow_inf_nan=False)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
RegexWithGroup = Annotated[str, AfterValidator(_regex_with_group)]
HostAndPort = Annotated[str, AfterValidator(_host_and_port)]
Walltime = Annotated[str, BeforeValidator(_walltime)]
Memory = Annotated[ByteSize, AfterValidator(_memory)]
Shard = Annotated[str, AfterValidator(_shard)]

_AnyCase = BeforeValidator(_lower)
Plane = Annotated[Literal["axial", "coronal", "sagittal", "i", "j", "k"], _AnyCase]
PaddingMode = Annotated[Literal["zero", "replicate", "mirror"], _AnyCase]
Normalize = Annotated[Literal["zscore", "minmax", "percentile", "none"], _AnyCase]
ImageType = Annotated[Literal["float32", "float16", "source"], _AnyCase]
LabelType = Annotated[Literal["uint8", "uint16", "int32"], _AnyCase]
Nonfinite = Annotated[Literal["error", "zero"], _AnyCase]
SliceFormat = Annotated[Literal["npz", "zarr"], _AnyCase]
Compression = Annotated[Literal["auto", "lz4", "zstd", "none"], _AnyCase]
BatchSystem = Annotated[Literal["slurm", "pbs", "sge", "lsf"], _AnyCase]


def plain_type(annotation: Any) -> Any:
    """Return the type behind ``X | None`` and ``Annotated[X, ...]``.

    Examples
    --------
    >>> plain_type(Positive | None)
    <class 'int'>
    """
    if get_origin(annotation) in (Literal, tuple):
        return annotation
    inner = [part for part in get_args(annotation) if part is not type(None)]
    return plain_type(inner[0]) if inner else annotation


def walltime_seconds(walltime: str) -> int:
    """Return the seconds of a batch system's time limit.

    Examples
    --------
    >>> walltime_seconds("1-02:00:30")
    93630
    """
    days, _, clock = walltime.rpartition("-")
    hours, minutes, seconds = map(int, clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
