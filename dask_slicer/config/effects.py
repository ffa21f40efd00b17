"""Settings that have an effect only with others, or with some datasets; the note on the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dask_slicer.config.run_settings import JobSettings
from dask_slicer.config.schema import UNUSED_BY_FORMAT, RunConfig

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
    Effect(("padding_mode",), lambda config, _: config.window_size > 0, " with --window_size 0"),
    Effect(
        ("train_ratio", "val_ratio", "seed"),
        lambda config, _: config.splits is None,
        " with --splits",
    ),
    Effect(
        ("train_ratio", "val_ratio", "seed", "splits", "fold"),
        lambda _, dataset: not dataset.states_splits,
        ": the dataset states the split of every case",
    ),
    Effect(
        ("group_regex",),
        lambda _, dataset: not dataset.states_patients,
        ": the manifest states the patient of every case",
    ),
    Effect(
        ("label_dtype", "label_grid"),
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
    Effect(
        ("min_foreground",),
        lambda _, dataset: dataset.has_labels,
        ": no case has a label",
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
        names_of.setdefault(otherwise, []).append(f"--{name}")
    return "; ".join(
        f"{', '.join(names)} {'has' if len(names) == 1 else 'have'} no effect{otherwise}"
        for otherwise, names in names_of.items()
    )
