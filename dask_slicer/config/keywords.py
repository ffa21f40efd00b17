"""Settings as keyword arguments of `plan`, `run` and `submit`, for type checkers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Generic, TypedDict, TypeVar

from dask_slicer.config import fields
from dask_slicer.config.step_settings import (
    Center,
    Fit,
    Foreground,
    KeepEmptyIn,
    ResampleOrder,
    SizeOrder,
)

StrPath = str | PathLike[str]
# The value of a setting that is not given: None, or Never where there is no such value.
NotGiven = TypeVar("NotGiven")


class OptionalKeywords(TypedDict, Generic[NotGiven], total=False):
    """The settings of `RunConfig` that have a default."""

    include_test: bool | NotGiven
    only: Sequence[str] | NotGiven

    plane: fields.Plane | Sequence[fields.Plane] | NotGiven
    window_size: int | NotGiven
    padding_mode: fields.PaddingMode | NotGiven

    clip_min: float | Sequence[float | None] | None
    clip_max: float | Sequence[float | None] | None
    normalize: fields.Normalize | Sequence[fields.Normalize] | NotGiven
    dtype: fields.ImageType | NotGiven
    nonfinite: fields.Nonfinite | NotGiven
    percentiles: Sequence[float] | None
    ct_windows: Sequence[str] | NotGiven
    foreground: Foreground | NotGiven
    zero_background: bool | NotGiven
    statistics: StrPath | None

    label_map: str | None
    min_component_voxels: int | NotGiven
    min_component_pixels: int | NotGiven
    crop: str | None
    crop_margin: float | NotGiven
    spacing: Sequence[float | None] | None
    resample_order: ResampleOrder | NotGiven
    size: int | Sequence[int] | None
    fit: Fit | NotGiven
    size_order: SizeOrder | NotGiven
    center: Center | NotGiven
    slices: str | None
    stride: int | NotGiven
    keep_empty: float | NotGiven
    keep_empty_in: KeepEmptyIn | NotGiven
    slice_list: StrPath | None
    drop_blank: bool | NotGiven
    context_step: int | NotGiven
    context_mm: float | None

    label_dtype: fields.LabelType | NotGiven
    allow_missing_labels: bool | NotGiven
    min_foreground: float | NotGiven

    layout: fields.LayoutName | None
    images: Sequence[str] | NotGiven
    labels: str | None
    label_name: str | None
    structures: Sequence[str] | NotGiven
    overlap: fields.Overlap | NotGiven
    modalities: Sequence[str] | NotGiven
    missing_modality: fields.MissingModality | NotGiven
    volumes: str | None
    label_grid: fields.LabelGrid | NotGiven
    orientation_from: fields.Orientation | NotGiven
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

    format: fields.SliceFormat | NotGiven
    bits: fields.Bits | None
    offset: int | None
    files: Sequence[Mapping[str, Any]] | NotGiven
    file_lists: Sequence[Mapping[str, Any]] | NotGiven
    compression_level: int | NotGiven
    compression: fields.Compression | NotGiven
    overwrite: bool | NotGiven
    prune: bool | NotGiven
    trust_size: bool | NotGiven
    fsync: bool | NotGiven

    num_workers: int | NotGiven
    dashboard_address: str | NotGiven
    scratch_dir: StrPath | None
    shard: str | None

    scheduler: str | None
    scheduler_file: StrPath | None
    tls_ca: StrPath | None
    tls_cert: StrPath | None
    tls_key: StrPath | None
    wait_workers: int | NotGiven
    wait_timeout: float | NotGiven
    upload_code: bool | NotGiven

    cluster: fields.BatchSystemName | None
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
    like: StrPath | None
