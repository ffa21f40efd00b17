"""The note on settings that have no effect, over the table of where they have one."""

from __future__ import annotations

from typing import Any

import pytest

from dask_slicer.config.effects import EFFECTS, DatasetFacts, effects_note, without_effect
from dask_slicer.config.fields import WITHOUT_OPTION
from dask_slicer.config.loader import build_config
from dask_slicer.config.schema import RunConfig

BOTH = {"input_dir": "scans", "output_dir": "slices"}
JOBS: dict[str, Any] = {
    **{"jobs": 3, "cores": 2, "memory": "8GB", "walltime": "02:00:00", "queue": "gpu"},
    **{"account": "lab", "job_extra": ["--qos=high"], "lifetime": 60, "interface": "ib0"},
}
REMOTE, SLURM = {"scheduler": "tcp://host:8786"}, {"cluster": "slurm"}
FILES = {"files": [{"path": "a/{stem}.npy", "holds": "image"}]}
LISTS = {"file_lists": [{"path": "a/all.txt", "line": "{case_id}"}]}
LABELS = {
    **{"label_dtype": "int32", "label_grid": "image", "label_map": "1:2", "keep_empty": 0.5},
    **{"keep_empty_in": "all", "min_component_voxels": 9, "min_component_pixels": 9},
}
RATIOS = {"train_ratio": 0.5, "val_ratio": 0.2, "seed": 1}

# Settings, the place where they have no effect, one where they have, and what the note ends with.
SETTINGS = [
    (JOBS, {}, SLURM, "without --cluster"),
    ({"wait_workers": 2, "wait_timeout": 5}, {}, REMOTE, "without --scheduler or --scheduler_file"),
    ({"wait_workers": 2}, SLURM, {"scheduler_file": "s.json"}, "or --scheduler_file"),
    ({"num_workers": 2}, REMOTE, {}, ": a running scheduler has its own"),
    ({"num_workers": 2}, SLURM, {}, ": --jobs and --cores set the number of workers"),
    ({"dashboard_address": "none"}, REMOTE, SLURM, ": a running scheduler has its own"),
    ({"dashboard_address": ":1"}, {"num_workers": 0}, {}, "with --num_workers 0"),
    ({"compression_level": 2}, {"format": "zarr"}, {}, "with --format zarr"),
    ({"compression": "lz4"}, {}, {"format": "zarr"}, "with --format npz"),
    ({"compression": "lz4"}, {"format": "png"}, {"format": "zarr"}, "with --format png"),
    (FILES | LISTS, {}, {"format": "files"}, "without --format files"),
    ({"bits": 8}, {}, {"format": "png"}, "without --format png"),
    (
        {"offset": 7},
        {"format": "png"},
        {"format": "png", "bits": 16},
        "without --format png --bits",
    ),
    ({"padding_mode": "zero"}, {"window_size": 0}, {}, "with --window_size 0"),
    ({"context_step": 2}, {"window_size": 0}, {}, "with --window_size 0"),
    ({"context_mm": 2}, {"window_size": 0}, {}, "with --window_size 0"),
    ({"crop_margin": 2}, {}, {"crop": "nonzero"}, "without --crop nonzero or --crop label"),
    ({"crop_margin": 2}, {"crop": "0:1,0:1,0:1"}, {"crop": "label"}, "without --crop nonzero"),
    ({"resample_order": 1}, {"size": 8}, {"spacing": "1,1,1"}, "without --spacing"),
    ({"fit": "resize"}, {}, {"size": 8}, "without --size"),
    ({"center": "label"}, {}, {"size": 8}, "without --size"),
    ({"size_order": 3}, {"fit": "resize"}, {"size": 8, "fit": "resize"}, "--size_order"),
    ({"size_order": 3}, {"size": 8}, {"size": 8, "fit": "resize"}, "without --fit resize"),
    ({"center": "label"}, {"size": 8, "fit": "resize"}, {"size": 8}, "without --fit crop_pad"),
    ({"statistics": "s.json"}, {}, {"normalize": "dataset"}, "without --normalize dataset"),
    ({"foreground": "otsu"}, {"normalize": "minmax"}, {}, "computed from the foreground"),
    ({"foreground": "otsu"}, {"normalize": "dataset"}, {"normalize": "percentile"}, "foreground"),
    ({"foreground": "otsu"}, {"dtype": "uint8", "clip_min": 0}, {"dtype": "uint8"}, "foreground"),
    ({"foreground": "otsu"}, {"ct_windows": "lung"}, {"percentiles": "1,99"}, "foreground"),
    ({"zero_background": True}, {}, {"foreground": "positive"}, "--foreground positive"),
    (
        {"zero_background": True},
        {"foreground": "nonzero", "normalize": "minmax"},
        {"foreground": "nonzero", "normalize": "percentile"},
        "without --normalize zscore or --normalize percentile",
    ),
    ({"keep_empty_in": "all"}, {}, {"keep_empty": 0.5}, "without --keep_empty"),
    ({"keep_empty": 0.5}, {"min_foreground": 0.1}, {}, "slices without a label are dropped"),
    (RATIOS, {"splits": "splits.json"}, {}, "with --splits"),
    ({"seed": 1}, {"splits": "splits.json"}, {"splits": "s.json", "keep_empty": 0}, "--splits"),
    ({"seed": 1}, {"splits": "splits.json"}, {"splits": "s.json", "folds": 3}, "--splits"),
]
# The same for facts of datasets.
DATASETS = [
    (RATIOS | {"splits": "a", "fold": 0}, DatasetFacts(states_splits=True), "of every case"),
    ({"group_regex": "(.)"}, DatasetFacts(states_patients=True), "the patient of every case"),
    (LABELS, DatasetFacts(has_labels=False), "no case has a label"),
    ({"overlap": "error"}, DatasetFacts(has_masks=False), "no case has masks of structures"),
    ({"missing_modality": "zero"}, DatasetFacts(n_images=1), "a case has one image"),
    ({"include_test": True}, DatasetFacts(has_test_images=False), "no images apart for testing"),
]


@pytest.mark.parametrize(("given", "without", "with_", "words"), SETTINGS)
def test_settings_without_effect_are_named_in_one_note(given, without, with_, words) -> None:
    note = effects_note(RunConfig(**BOTH, **given | without), DatasetFacts())
    assert all(("" if name in WITHOUT_OPTION else "--") + name in note for name in given)
    assert words in note
    assert not effects_note(RunConfig(**BOTH, **given | with_), DatasetFacts())


@pytest.mark.parametrize(("given", "facts", "words"), DATASETS)
def test_settings_without_effect_on_a_dataset_are_named(given, facts, words) -> None:
    config = RunConfig(**BOTH, **given)
    assert dict(without_effect(config, facts)).keys() >= given.keys() - {"train_ratio"}
    assert words in effects_note(config, facts)


def test_every_line_of_the_table_is_tested() -> None:
    tested = {name for given, *_ in [*SETTINGS, *DATASETS] for name in given}
    assert {name for effect in EFFECTS for name in effect.names} == tested
    assert tested <= RunConfig.model_fields.keys()


@pytest.mark.parametrize("place", [{}, REMOTE, SLURM, {"num_workers": 0}, {"format": "zarr"}])
def test_defaults_are_never_named(place) -> None:
    dataset = DatasetFacts(
        has_labels=False,
        has_masks=False,
        has_test_images=False,
        n_images=1,
        states_splits=True,
        states_patients=True,
    )
    defaults = {
        name: field.default
        for name, field in RunConfig.model_fields.items()
        if not field.is_required()
    }
    names = dict(without_effect(RunConfig(**BOTH, **defaults | place), dataset))
    assert names.keys() <= place.keys()


def test_settings_of_a_place_in_a_file_go_with_the_place(tmp_path) -> None:
    file = tmp_path / "slurm.yaml"
    file.write_text("cluster: slurm\nmemory: 16GB\nqueue: gpu\nwindow_size: 1\n")
    config = build_config(BOTH | {"num_workers": 2}, base=file)
    assert (config.queue, config.window_size) == (None, 1)
    assert not effects_note(config, DatasetFacts())
    assert build_config(BOTH | {"cluster": "pbs"}, base=file).queue == "gpu"
    # What is given beside it is named all the same.
    config = build_config(BOTH | {"num_workers": 2, "queue": "cpu"}, base=file)
    assert effects_note(config, DatasetFacts()) == "--queue has no effect without --cluster"


@pytest.mark.parametrize("where", ["options", "file"])
def test_the_note_is_in_a_plan_and_in_a_run(dataset, tmp_path, invoke, where) -> None:
    dataset.add("liver_0")
    given = ["--memory", "8GB", "--queue", "gpu", "--include_test"]
    if where == "file":
        file = tmp_path / "own.yaml"
        file.write_text("memory: 8GB\nqueue: gpu\ninclude_test: true\n")
        given = ["--config", file]
    there = ["-i", dataset.root, "-o", tmp_path / "slices", "--num_workers", "0", *given]
    for command in ("plan", "run"):
        output = " ".join(invoke(command, *there).output.split())
        assert "--memory, --queue have no effect without --cluster" in output, output
        assert "--include_test has no effect: the dataset keeps no images apart" in output
