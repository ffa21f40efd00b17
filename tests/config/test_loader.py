"""Settings from command line, file and defaults: which of them wins, and YAML there and back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_slicer.config.loader import (
    build_config,
    find_config,
    read_config_file,
    to_yaml,
)
from dask_slicer.config.schema import RunConfig
from dask_slicer.config.shipped import shipped_configs
from dask_slicer.errors import ConfigError

PLACES = {"input_dir": "/scans", "output_dir": "/all slices"}
DEFAULT = RunConfig(**PLACES)


NAMES = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@given(name=st.text(NAMES, min_size=1, max_size=9), clip_min=FLOATS, seed=st.integers())
def test_any_number_and_any_name_come_back_from_yaml(
    tmp_path_factory, name, clip_min, seed
) -> None:
    config = build_config(PLACES | {"input_dir": f"/{name}", "clip_min": clip_min, "seed": seed})
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert build_config({}, base=path) == config


@pytest.mark.parametrize("said", [{"num_workers": 0}, {"scheduler": "tcp://b:1"}, {"seed": 1}])
def test_a_scheduler_on_the_command_line_replaces_that_of_the_file(tmp_path, said) -> None:
    (tmp_path / "old.yaml").write_text(
        "{scheduler: 'tls://a:1', tls_ca: c, tls_cert: d, tls_key: e, window_size: 0}"
    )
    config = build_config(PLACES | said, base=tmp_path / "old.yaml")
    of_file = "seed" in said
    assert config.scheduler == ("tls://a:1" if of_file else said.get("scheduler"))
    assert (config.tls_ca is not None) == of_file
    assert config.window_size == 0


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("window_size: 5\nplane: coronal\noutput_dir: /from_file\n")
    config = build_config(
        {"input_dir": "/scans", "output_dir": None, "plane": "sagittal", "seed": None}, base=path
    )
    assert (config.plane, config.window_size, config.seed) == ("sagittal", 5, 42)
    assert config.output_dir == Path("/from_file")


def test_a_value_that_is_given_wins_also_where_it_is_false_or_0() -> None:
    base = {"window_size": 5, "clip_min": -5.0, "fsync": True}
    config = build_config(PLACES | {"window_size": 0, "clip_min": 0, "fsync": False}, base=base)
    assert (config.window_size, config.clip_min, config.fsync) == (0, 0.0, False)
    assert base["window_size"] == 5


@pytest.mark.parametrize(
    "name", ["default", "ct_abdomen", "ct_lung", "ct_nnunet", "brain_mri", "debug"]
)
def test_a_shipped_configuration_is_found_by_its_name(tmp_path, monkeypatch, name) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()  # a folder of that name is no configuration
    assert find_config(name) == shipped_configs()[name]
    config = build_config(PLACES, base=name)
    assert (config == DEFAULT) == (name == "default")


def test_a_file_wins_over_a_shipped_configuration_of_its_name(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "debug").write_text("seed: 7")
    assert build_config(PLACES, base="debug").seed == 7
    (tmp_path / "debug").write_text("# all at their defaults")
    assert build_config(PLACES, base="debug") == DEFAULT


FILES = {
    "unknown": ("windw_size: 1", "no setting windw_size; did you mean window_size?"),
    "dashes": ("window-size: 1", "no setting window-size; did you mean window_size?"),
    "number_as_name": ("1: 2", "there is no setting 1"),
    "not_yaml": ("a: [", "is not YAML"),
    "code": ("seed: !!python/object/apply:os.getcwd []", "is not YAML"),
    "not_utf8": (b"seed: '\xff'", "is not UTF-8 text"),
    "deep": ("[" * 100_000, "is not YAML"),
}


@pytest.mark.parametrize(("content", "said"), FILES.values(), ids=FILES)
def test_a_file_that_is_wrong_is_refused_by_name(tmp_path, content, said) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        read_config_file(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ct_abdomn", "there is no configuration ct_abdomn; did you mean ct_abdomen?"),
        (
            "zzz",
            "configuration zzz; dask-slicer configs lists the shipped ones, or give a YAML file",
        ),
        ("mine.yaml", "cannot read the configuration mine.yaml: No such file"),
        ("configs/mine", "cannot read the configuration configs/mine: No such file"),
        ("~nobody_of_that_name/mine.yaml", "~nobody_of_that_name"),
    ],
)
def test_a_missing_configuration_is_named(name, said) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(PLACES, base=name)
    assert said in str(caught.value)
