"""Settings: what each may be, and what changes slices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from pydantic import ByteSize, ValidationError

from dask_slicer.config.changes import changed_settings
from dask_slicer.config.dataset_settings import SplitSettings
from dask_slicer.config.file_settings import FORMAT_OF
from dask_slicer.config.loader import build_config, json_schema, to_yaml
from dask_slicer.config.schema import RunConfig
from dask_slicer.config.step_settings import StepSettings
from dask_slicer.errors import ConfigError

pytestmark = pytest.mark.versions

PLACES = {"input_dir": "/scans", "output_dir": "/all slices"}
DEFAULT = RunConfig(**PLACES)
# Another value than the default for every setting but the two places.
CHANGED = {
    "label_map": "1:1 *:0",
    "min_component_voxels": 5,
    "min_component_pixels": 5,
    "crop": "nonzero",
    "crop_margin": 2.0,
    "percentiles": (1.0, 99.0),
    "ct_windows": ("40/400",),
    "foreground": "otsu",
    "zero_background": True,
    "spacing": (2.0, None, 1.0),
    "resample_order": 1,
    "size": (64, 32),
    "fit": "resize",
    "size_order": 3,
    "center": "label",
    "slices": "10:-10",
    "stride": 2,
    "keep_empty": 0.5,
    "keep_empty_in": "all",
    "slice_list": Path("/data/list.csv"),
    "drop_blank": True,
    "context_step": 2,
    "context_mm": 2.5,
    "statistics": Path("/data/statistics.json"),
    "layout": "bids",
    "images": ("img/*.nii.gz",),
    "labels": "label/*.nii.gz",
    "label_name": "segTRI",
    "structures": ("liver", "spleen"),
    "overlap": "error",
    "modalities": ("t1c", "flair"),
    "missing_modality": "zero",
    "volumes": "2",
    "label_grid": "image",
    "orientation_from": "qform",
    "datalist_fold": 0,
    "window_size": 0,
    "padding_mode": "mirror",
    "plane": "k",
    "clip_min": -160.5,
    "clip_max": 1e9,
    "normalize": "none",
    "dtype": "float16",
    "label_dtype": "int32",
    "nonfinite": "zero",
    "min_foreground": 1e-9,
    "compression_level": 9,
    "compression": "zstd",
    "format": "zarr",
    "bits": 16,
    "offset": 1024,
    "files": ({"path": "{case_id}.h5", "holds": {"image": "image"}, "splits": ("train",)},),
    "file_lists": ({"path": "a/all.txt", "line": "{case_id}", "splits": ("train",)},),
    "train_ratio": 0.7,
    "val_ratio": 0.15,
    "group_regex": r"^(sub-\d+)_: #'\"é",
    "group_column": "famille é",
    "folds": 5,
    "stratify": "sex",
    "seed": -1,
    "splits": Path("/splits final.json"),
    "fold": 3,
    "num_workers": -1,
    "scheduler": "tcp://host:8786",
    "scheduler_file": Path("/scheduler.json"),
    "dashboard_address": "none",
    "tls_ca": Path("/ca.pem"),
    "tls_cert": Path("/client.pem"),
    "tls_key": Path("/client.key"),
    "wait_workers": 3,
    "wait_timeout": 1.5,
    "upload_code": True,
    "cluster": "slurm",
    "jobs": 8,
    "cores": 2,
    "memory": ByteSize(8_000_000_000),
    "walltime": "2-12:00:00",
    "queue": "long",
    "account": "lab",
    "job_extra": ("--qos=high", "--exclusive"),
    "lifetime": 3000.0,
    "interface": "ib0",
    "scratch_dir": Path("/scratch"),
    "shard": "2/3",
    "fsync": True,
    "retries": 0,
    "timeout": 60.0,
    "fail_fast": True,
    "performance_report": Path("/report.html"),
    "log_file": Path("/run.log"),
    "overwrite": True,
    "prune": True,
    "trust_size": True,
    "only": ("a", "b"),
    "allow_missing_labels": True,
    "include_test": True,
}
DECISIVE = [
    *("window_size", "padding_mode", "plane", "clip_min", "clip_max", "normalize", "dtype"),
    *("format", "bits", "offset", "files", "file_lists", "label_dtype", "min_foreground"),
    "compression_level",
    *StepSettings.model_fields,
    *("train_ratio", "val_ratio", "group_regex", "group_column", "seed", "modalities"),
]
OF_ONE_RUN = {
    *("overwrite", "prune", "trust_size", "only", "shard", "fail_fast"),
    *("log_file", "performance_report"),
}
TLS = ("tls_ca", "tls_cert", "tls_key")


def message_of(settings: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        build_config(settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"), [("plane", "Axial"), ("normalize", "ZScore"), ("cluster", "SLURM")]
)
def test_a_choice_is_matched_without_regard_to_case(name, value) -> None:
    assert getattr(build_config(PLACES | {name: value}), name) == value.lower()
    assert getattr(RunConfig(**PLACES, **{name: value}), name) == value.lower()


@pytest.mark.parametrize(
    ("settings", "suggestion"),
    [
        ({"normalize": "z-score"}, "got z-score; did you mean zscore?"),
        ({"plane": "axal"}, "got axal; did you mean axial?"),
        ({"padding_mode": ["zero"]}, "mirror, got a list"),
    ],
)
def test_a_wrong_choice_gets_its_nearest(settings, suggestion) -> None:
    assert message_of(PLACES | settings).endswith(suggestion)


def test_the_table_of_changes_has_every_setting_that_may_be_changed() -> None:
    assert set(CHANGED) | set(PLACES) == set(RunConfig.model_fields)
    for name, value in CHANGED.items():
        assert value != getattr(DEFAULT, name), name


@pytest.mark.parametrize("name", CHANGED)
def test_a_setting_comes_back_from_yaml_unless_it_is_of_one_run(tmp_path, name) -> None:
    needs = {"fold": "splits", "labels": "images"}.get(name)
    needs = needs or {"crop_margin": "crop", "resample_order": "spacing"}.get(name)
    needs = "size" if name in ("fit", "center") else needs
    needed = {needs: CHANGED[needs]} if needs else {}
    if name == "size_order":
        needed = {other: CHANGED[other] for other in ("size", "fit")}
    if name in TLS:
        needed = {other: CHANGED[other] for other in TLS} | {"scheduler": "tls://host:8786"}
    config = build_config(PLACES | needed | {name: CHANGED[name]})
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    again = build_config({}, base=tmp_path / "config.yaml")
    assert again == (DEFAULT if name in OF_ONE_RUN else config)
    if name in OF_ONE_RUN:
        assert name not in yaml.safe_load(to_yaml(config))


def test_paths_are_made_absolute_and_know_the_home_directory(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    config = build_config({"input_dir": "scans", "output_dir": "~/slices"})
    assert config.input_dir == tmp_path / "scans"
    assert config.output_dir == Path("/home/me/slices")
    (tmp_path / "link").symlink_to(tmp_path)  # and keep the name by which their user knows them
    assert RunConfig(input_dir="link", output_dir="o").input_dir == tmp_path / "link"


# -- what a setting may be -----------------------------------------------------------------------

RULES = [
    ("window_size", -1, "window_size must be 0 or more, got -1"),
    ("compression_level", -1, "compression_level must be 0 or more, got -1"),
    ("compression_level", 10, "compression_level must be 9 or less, got 10"),
    ("min_foreground", -0.1, "min_foreground must be 0 or more, got -0.1"),
    ("min_foreground", 1.5, "min_foreground must be 1 or less, got 1.5"),
    ("train_ratio", 1.1, "train_ratio must be 1 or less, got 1.1"),
    ("val_ratio", 1.1, "val_ratio must be 1 or less, got 1.1"),
    ("num_workers", -2, "num_workers must be -1 or more, got -2"),
    ("retries", -1, "retries must be 0 or more, got -1"),
    ("clip_min", float("nan"), "clip_min must be a finite number, got nan"),
    ("clip_max", float("inf"), "clip_max must be a finite number, got inf"),
    ("padding_mode", "wrap", "padding_mode must be one of zero, replicate, mirror, got wrap"),
    ("plane", "x", "plane must be one of axial, coronal, sagittal, i, j, k, got x"),
    ("label_dtype", "int8", "label_dtype must be one of uint8, uint16, int32, got int8"),
    ("format", "hdf5", "format must be one of npz, zarr, png, files, got hdf5"),
    ("group_regex", "(", "group_regex is not a regular expression: "),
    (
        "group_regex",
        "a.*",
        "group_regex must have a group in parentheses, which matches the patient, got a.*",
    ),
    ("window_size", 1.5, "window_size"),
    ("window_size", True, "window_size"),
    ("seed", "x", "seed"),
    ("fsync", "maybe", "fsync"),
    ("only", "a", "only"),
    ("input_dir", 7, "input_dir"),
    ("input_dir", "~nobody_of_that_name/x", "input_dir"),
    ("input_dir", "/all slices", "output_dir must not be the input_dir"),
]


@pytest.mark.parametrize(("name", "value", "said"), RULES)
def test_a_value_out_of_range_is_refused_with_field_rule_and_value(name, value, said) -> None:
    message = message_of(PLACES | {name: value})
    assert message.startswith(said)
    assert str(value) in message or name == "input_dir"


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"clip_min": 5, "clip_max": 5}, "clip_min must be less than clip_max, got 5 and 5"),
        ({"train_ratio": 0.8, "val_ratio": 0.3}, "must be 1 or less, got 1.1"),
        ({"scheduler": "a", "scheduler_file": "b"}, "must not both be given"),
        ({"tls_ca": "a", "tls_key": "b"}, "go together, got no tls_cert"),
        ({"cluster": "slurm", "scheduler": "a"}, "give cluster or a scheduler"),
        ({"cluster": "condor"}, "cluster must be one of slurm, pbs, sge, lsf, got condor"),
        ({"walltime": "90"}, "walltime must be HH:MM:SS, or D-HH:MM:SS, and in quotes in a file"),
        ({"walltime": 43200}, "and in quotes in a file, got 43200"),
        ({"walltime": "00:00:00"}, "walltime must be HH:MM:SS"),
        ({"memory": 4}, "memory must be a size such as 4GB, got 4"),
        ({"memory": "lots"}, "memory must be a size such as 4GB, got lots"),
        (dict.fromkeys(("tls_ca", "tls_cert", "tls_key"), "a"), "need a scheduler or a sch"),
        ({"shard": "4/3"}, "shard must be I/N, I from 1 to N, got 4/3"),
        ({"shard": "0/3"}, "shard must be I/N"),
        ({"shard": "1/3", "overwrite": True}, "overwrite changes the whole output"),
        ({"windw_size": 1}, "there is no setting windw_size; did you mean window_size?"),
        ({"input_dir": None}, "input_dir is required: give --input_dir, or set it in"),
        ({"retries": -1, "seed": "x"}, "got x; retries must be 0 or more, got -1"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(chosen, said) -> None:
    assert said in message_of(PLACES | chosen)


def test_a_symbolic_link_to_itself_is_refused_by_name(tmp_path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    message = message_of(PLACES | {"input_dir": tmp_path / "loop"})
    assert str(tmp_path / "loop") in message


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        DEFAULT.seed = 7
    assert hash(DEFAULT) == hash(RunConfig(**PLACES))


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, (0.8, 0.1, 0.1)),
        ({"train_ratio": 0.95}, (0.95, 0.05, 0.0)),
        ({"train_ratio": 1}, (1.0, 0.0, 0.0)),
        ({"train_ratio": 0}, (0.0, 0.1, 0.9)),
        ({"train_ratio": 0.7, "val_ratio": 0.3}, (0.7, 0.3, 0.0)),
        ({"train_ratio": 0.8, "val_ratio": 0.2}, (0.8, 0.2, 0.0)),
        ({"val_ratio": 0}, (0.8, 0.0, 0.2)),
        ({"train_ratio": 0.9, "val_ratio": 0.1 + 1e-10}, (0.9, 0.1 + 1e-10, 0.0)),
    ],
)
def test_unset_ratios_are_a_tenth_for_validation_and_the_rest_for_test(chosen, expected) -> None:
    assert tuple(SplitSettings(**chosen).ratios().values()) == expected


def test_the_schema_describes_every_setting() -> None:
    schema = json.loads(json_schema())
    assert set(schema["properties"]) == set(RunConfig.model_fields)
    assert all(field["description"] for field in schema["properties"].values())
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["input_dir", "output_dir"]


@pytest.mark.parametrize("name", CHANGED)
def test_what_changed_is_named_where_it_would_change_the_slices(name) -> None:
    old = DEFAULT.model_copy(update={"format": FORMAT_OF.get(name, DEFAULT.format)})
    new = old.model_copy(update={name: CHANGED[name]})
    said = [line for line in changed_settings(old, new) if line.startswith(f"{name} was ")]
    assert len(said) == (name in DECISIVE)


@pytest.mark.parametrize("name", FORMAT_OF)
def test_settings_of_another_format_are_no_change(name) -> None:
    assert not changed_settings(DEFAULT, DEFAULT.model_copy(update={name: CHANGED[name]}))


def test_a_default_given_explicitly_is_no_change() -> None:
    assert not changed_settings(DEFAULT, DEFAULT.model_copy(update={"val_ratio": 0.1}))
    assert changed_settings(DEFAULT, DEFAULT.model_copy(update={"clip_min": 5.0})) == [
        "clip_min was none, is now 5.0"
    ]


def test_the_output_is_not_the_input_in_other_letters(tmp_path, monkeypatch) -> None:
    # As on a disk that ignores case, where Scans is scans.
    def is_same(path: Path, other: Path) -> bool:
        return str(path).lower() == str(other).lower()

    monkeypatch.setattr(Path, "samefile", is_same)
    message = message_of({"input_dir": tmp_path / "scans", "output_dir": tmp_path / "Scans"})
    assert "output_dir must not be the input_dir" in message
