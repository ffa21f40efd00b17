"""Types of settings as keyword arguments, and groups of settings."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Generic, TypedDict, TypeVar

from dask_slicer.config import fields

StrPath = str | PathLike[str]
# The value of a setting that is not given: None, or Never where there is no such value.
NotGiven = TypeVar("NotGiven")


class OptionalKeywords(TypedDict, Generic[NotGiven], total=False):
    """The settings of `RunConfig` that have a default."""

    include_test: bool | NotGiven
    only: Sequence[str] | NotGiven

    plane: fields.Plane | NotGiven
    window_size: int | NotGiven
    padding_mode: fields.PaddingMode | NotGiven

    clip_min: float | None
    clip_max: float | None
    normalize: fields.Normalize | NotGiven
    dtype: fields.ImageType | NotGiven
    nonfinite: fields.Nonfinite | NotGiven

    label_dtype: fields.LabelType | NotGiven
    allow_missing_labels: bool | NotGiven
    min_foreground: float | NotGiven

    train_ratio: float | NotGiven
    val_ratio: float | None
    group_regex: str | None
    seed: int | NotGiven
    splits: StrPath | None
    fold: int | None

    format: fields.SliceFormat | NotGiven
    compression_level: int | NotGiven
    compression: fields.Compression | NotGiven
    overwrite: bool | NotGiven
    prune: bool | NotGiven
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

    cluster: fields.BatchSystem | None
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
    "Splits": ("train_ratio", "val_ratio", "group_regex", "seed", "splits", "fold"),
    "Output": (
        *("output_dir", "format", "compression_level", "compression"),
        *("overwrite", "prune", "fsync"),
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
