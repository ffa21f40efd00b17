"""Settings that have an effect only with others, or with some datasets; the note on the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dask_slicer.config.fields import WITHOUT_OPTION
from dask_slicer.config.file_settings import UNUSED_BY_FORMAT
from dask_slicer.config.run_settings import JobSettings
from dask_slicer.config.schema import RunConfig
from dask_slicer.utils.modalities import for_each_modality

# Settings that mean something only with a batch system, and only with a running scheduler.
JOB_SETTINGS = tuple(name for name in JobSettings.model_fields if name != "cluster")
WAIT_SETTINGS = ("wait_workers", "wait_timeout")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """Facts of a dataset that decide which settings have an effect."""

    has_labels: bool = True
    has_masks: bool = True  # of structures, to be merged
    has_test_images: bool = True  # that it keeps apart, and that --include_test uses
    n_images: int = 2  # of a case
    states_splits: bool = False  # of every case
    states_patients: bool = False  # of every case, in a manifest


@dataclass(frozen=True, slots=True)
class Effect:
    """Settings with an effect only where a condition holds, and the words for where it does not."""

    names: tuple[str, ...]
    condition: Callable[[RunConfig, DatasetFacts], bool]
    otherwise: str


def _has_scheduler(config: RunConfig) -> bool:
    return config.scheduler is not None or config.scheduler_file is not None


def _has_workers_of_its_own(config: RunConfig) -> bool:
    return config.cluster is not None or config.num_workers != 0


def _is_not(slice_format: str) -> Callable[[RunConfig, DatasetFacts], bool]:
    return lambda config, _: config.format != slice_format


def _is_given(*names: str) -> Callable[[RunConfig, DatasetFacts], bool]:
    return lambda config, _: any(getattr(config, name) is not None for name in names)


def _has_windows(config: RunConfig, _: DatasetFacts) -> bool:
    return config.window_size > 0


def _draws(config: RunConfig) -> bool:
    """Return whether the seed decides more than the splits."""
    return config.folds is not None or config.keep_empty < 1


def _uses_foreground(config: RunConfig, _: DatasetFacts) -> bool:
    methods = {*for_each_modality(config.normalize, 1)}
    if config.percentiles is not None or methods & {"zscore", "percentile"}:
        return True
    # Of modalities with limits of their own, one may have none.
    no_limit = not any(isinstance(end, int | float) for end in (config.clip_min, config.clip_max))
    return config.maps_limits and no_limit and not config.ct_windows


# By setting; of two lines for one setting, the first counts. `upload_code`, `timeout` and
# `performance_report` also depend on the client that a program gives: the run notes them. Names of
# structures, labels and folds that a dataset does not have are refused.
EFFECTS = (
    Effect(JOB_SETTINGS, lambda config, _: config.cluster is not None, " without --cluster"),
    Effect(
        WAIT_SETTINGS,
        lambda config, _: _has_scheduler(config),
        " without --scheduler or --scheduler_file",
    ),
    Effect(
        ("num_workers", "dashboard_address"),
        lambda config, _: not _has_scheduler(config),
        ": a running scheduler has its own",
    ),
    Effect(
        ("num_workers",),
        lambda config, _: config.cluster is None,
        ": --jobs and --cores set the number of workers",
    ),
    Effect(
        ("dashboard_address",),
        lambda config, _: _has_workers_of_its_own(config) or config.dashboard_address == "none",
        " with --num_workers 0",
    ),
    *(
        Effect((unused,), _is_not(name), f" with --format {name}")
        for name, unused in UNUSED_BY_FORMAT.items()
    ),
    Effect(("bits",), lambda config, _: config.format == "png", " without --format png"),
    Effect(
        ("offset",),
        lambda config, _: config.dtype == "uint16",
        " without --format png --bits 16",
    ),
    Effect(
        ("files", "file_lists"),
        lambda config, _: config.format == "files",
        " without --format files",
    ),
    Effect(("padding_mode", "context_step", "context_mm"), _has_windows, " with --window_size 0"),
    Effect(
        ("crop_margin",),
        lambda config, _: config.crop in ("nonzero", "label"),
        " without --crop nonzero or --crop label",
    ),
    Effect(("resample_order",), _is_given("spacing"), " without --spacing"),
    Effect(("fit", "center", "size_order"), _is_given("size"), " without --size"),
    Effect(
        ("size_order",),
        lambda config, _: config.fit != "crop_pad",
        " without --fit resize or --fit letterbox",
    ),
    Effect(
        ("center",),
        lambda config, _: config.fit == "crop_pad",
        " without --fit crop_pad: the others keep whole slices",
    ),
    Effect(
        ("statistics",),
        lambda config, _: config.uses_statistics,
        " without --normalize dataset",
    ),
    Effect(("foreground",), _uses_foreground, ": nothing is computed from the foreground"),
    Effect(
        ("zero_background",),
        lambda config, _: config.foreground in ("nonzero", "positive"),
        " without --foreground nonzero or --foreground positive",
    ),
    Effect(
        ("zero_background",),
        lambda config, _: config.zeroes_background,
        " without --normalize zscore or --normalize percentile",
    ),
    Effect(
        ("keep_empty", "keep_empty_in"),
        lambda config, _: config.min_foreground == 0,
        " with --min_foreground: slices without a label are dropped",
    ),
    Effect(("keep_empty_in",), lambda config, _: config.keep_empty < 1, " without --keep_empty"),
    Effect(("train_ratio", "val_ratio"), lambda config, _: config.splits is None, " with --splits"),
    Effect(("seed",), lambda config, _: config.splits is None or _draws(config), " with --splits"),
    Effect(
        ("train_ratio", "val_ratio", "splits", "fold"),
        lambda _, dataset: not dataset.states_splits,
        ": the dataset states the split of every case",
    ),
    Effect(
        ("seed",),
        lambda config, dataset: not dataset.states_splits or _draws(config),
        ": the dataset states the split of every case",
    ),
    Effect(
        ("group_regex",),
        lambda _, dataset: not dataset.states_patients,
        ": the manifest states the patient of every case",
    ),
    Effect(
        (
            *("label_dtype", "label_grid", "label_map", "keep_empty", "keep_empty_in"),
            *("min_component_voxels", "min_component_pixels"),
        ),
        lambda _, dataset: dataset.has_labels,
        ": no case has a label",
    ),
    Effect(
        ("overlap",),
        lambda _, dataset: dataset.has_masks,
        ": no case has masks of structures",
    ),
    Effect(
        ("missing_modality",),
        lambda _, dataset: dataset.n_images > 1,
        ": a case has one image",
    ),
    Effect(
        ("include_test",),
        lambda _, dataset: dataset.has_test_images,
        ": the dataset keeps no images apart for testing",
    ),
)


def without_effect(config: RunConfig, dataset: DatasetFacts) -> Iterator[tuple[str, str]]:
    """Yield each setting that differs from its default and has no effect, and why."""
    seen = set()
    for effect in EFFECTS:
        if effect.condition(config, dataset):
            continue
        for name in effect.names:
            is_default = getattr(config, name) == RunConfig.model_fields[name].default
            if not is_default and name not in seen:
                seen.add(name)
                yield name, effect.otherwise


def effects_note(config: RunConfig, dataset: DatasetFacts) -> str:
    """Return the note on settings that have no effect, empty if there are none.

    >>> config = RunConfig(input_dir="a", output_dir="b", queue="gpu", jobs=2, compression="lz4")
    >>> for part in effects_note(config, DatasetFacts()).split("; "):
    ...     print(part)
    --jobs, --queue have no effect without --cluster
    --compression has no effect with --format npz
    """
    names_of: dict[str, list[str]] = {}
    for name, otherwise in without_effect(config, dataset):
        spelled = name if name in WITHOUT_OPTION else f"--{name}"
        names_of.setdefault(otherwise, []).append(spelled)
    return "; ".join(
        f"{', '.join(names)} {'has' if len(names) == 1 else 'have'} no effect{otherwise}"
        for otherwise, names in names_of.items()
    )
