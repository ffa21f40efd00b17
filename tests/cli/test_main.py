"""Every command and option: help at once, and names with dashes or underscores."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version

import click
import pytest

from dask_slicer.cli.main import main
from dask_slicer.cli.options import MOST_USED
from dask_slicer.config.fields import GROUPS, WITHOUT_OPTION
from dask_slicer.config.schema import RunConfig

# What the command promises, as far as they are settings of one run with npz slices.
RUN_OPTIONS = [
    *("input_dir", "output_dir", "config", "num_workers", "scheduler", "scheduler_file", "format"),
    *("window_size", "padding_mode", "plane", "clip_min", "clip_max", "normalize", "no_normalize"),
    *("dtype", "label_dtype", "nonfinite", "allow_missing_labels", "train_ratio", "val_ratio"),
    *("group_regex", "seed", "splits", "fold", "min_foreground", "overwrite", "only", "fsync"),
    *("compression_level", "retries", "fail_fast", "dashboard_address", "performance_report"),
    *("log_file", "prune", "trust_size", "include_test", "verbose", "quiet"),
    *("group_column", "folds", "stratify"),
]
COMMANDS = sorted(main.commands)


def options_of(command: str) -> dict[str, click.Option]:
    parameters = main.commands[command].get_params(
        click.Context(main, help_option_names=["-h", "--help"])
    )
    return {found.name: found for found in parameters if isinstance(found, click.Option)}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_every_option_has_help(invoke, command) -> None:
    assert {"run", "plan", "demo"} <= set(COMMANDS)
    for arguments in ([command, "--help"], [command, "-h"]):
        result = invoke(*arguments)
        assert result.exit_code == 0
        assert result.stdout.startswith("Usage: ")
    assert main.commands[command].help
    for name, option in options_of(command).items():
        assert option.help, name
        assert all(spelled in result.stdout for spelled in option.opts)


@pytest.mark.parametrize("name", RUN_OPTIONS)
def test_run_has_the_option(name) -> None:
    assert name in options_of("run")


def test_every_setting_is_an_option_of_run_and_plan() -> None:
    for command in ("run", "plan"):
        assert {*RunConfig.model_fields} - {*WITHOUT_OPTION} <= {*options_of(command)}


def test_every_setting_is_in_one_group_of_the_help() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(RunConfig.model_fields)


@pytest.mark.parametrize("command", ["run", "plan", "benchmark"])
def test_the_help_groups_options_with_the_ten_that_most_people_need_first(invoke, command) -> None:
    sections = re.split(r"^(\S.*):\n", invoke(command, "--help").stdout, flags=re.MULTILINE)
    headings, texts = sections[1::2], sections[2::2]
    assert headings == ["Most used", *GROUPS, "Other options"]
    first = re.findall(r"--(\w+)", texts[0])
    assert tuple(dict.fromkeys(first))[:10] == MOST_USED
    spelled = re.findall(r"^  (?:-\w, )?(--\w+)", "".join(texts), flags=re.MULTILINE)
    own = {f"--{option.name}" for option in main.commands[command].params} - {"--more_cases"}
    names = {*RunConfig.model_fields, "config", "no_normalize", "like"} - {*WITHOUT_OPTION}
    settings = {f"--{name}" for name in names}
    own = {"--json" if name == "--as_json" else name for name in own}
    assert sorted(spelled) == sorted({*own, *settings, "--help"})


def test_the_help_of_run_marks_what_is_required_and_shows_two_commands(invoke) -> None:
    for command, count in (("run", 2), ("plan", 1), ("benchmark", 0)):
        assert invoke(command, "--help").stdout.count("[required]") == count
    assert invoke("run", "--help").stdout.count("  dask-slicer run -i ") == 2


def test_the_most_used_options_have_short_forms(dataset, tmp_path, invoke) -> None:
    dataset.add("ct")
    result = invoke("plan", "-i", dataset.root, "-o", tmp_path / "slices", "-c", "ct_abdomen", "-q")
    assert (result.exit_code, result.output) == (0, "")


def test_a_choice_is_matched_without_regard_to_case(dataset, tmp_path, invoke) -> None:
    dataset.add("ct")
    choices = ["--plane", "Coronal", "--normalize=MinMax"]
    directories = ["-i", dataset.root, "-o", tmp_path / "slices", "--num_workers", 0]
    assert invoke("run", *directories, *choices, "-q").exit_code == 0
    config = (tmp_path / "slices" / "config.yaml").read_text()
    assert "plane: coronal\n" in config
    assert "normalize: minmax\n" in config


def test_commands_are_listed_by_use_with_whole_sentences(invoke) -> None:
    shown = invoke("--help").stdout
    rows = re.findall(r"^  (\w+) +([A-Z].*)$", shown.partition("Make slices:")[2], re.MULTILINE)
    assert sorted(name for name, _ in rows) == COMMANDS
    for name, sentence in rows:
        assert main.commands[name].help.startswith(sentence)
        assert sentence.endswith(".")
        assert not sentence.endswith("..")


def test_help_does_not_wait_for_numpy_and_dask() -> None:
    program = """
import sys
from dask_slicer.cli.main import main
from dask_slicer.cli.options import MOST_USED
from dask_slicer.config.fields import GROUPS, WITHOUT_OPTION
main(["run", "--help"], standalone_mode=False)
heavy = {"distributed", "dask", "zarr", "nibabel", "numpy"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_the_version_is_that_of_the_package(invoke) -> None:
    assert version("dask_slicer") in invoke("--version").stdout


@pytest.mark.parametrize(
    "name", [name for name in RUN_OPTIONS if "_" in name], ids=lambda name: name
)
def test_options_are_spelled_with_underscores_or_dashes(invoke, tmp_path, name) -> None:
    # An option that exists complains of something else than of its name.
    for spelled in (f"--{name}", f"--{name.replace('_', '-')}"):
        result = invoke("plan", spelled)
        assert "No such option" not in result.output


def test_dashes_mean_what_underscores_mean(dataset, tmp_path, invoke) -> None:
    dataset.add("ct")
    directories = ["--input-dir", dataset.root, "--output-dir", tmp_path / "slices"]
    result = invoke("run", *directories, "--num-workers", 0, "--window-size=0", "--no-normalize")
    assert result.exit_code == 0
    config = (tmp_path / "slices" / "config.yaml").read_text()
    assert "window_size: 0\n" in config
    assert "normalize: none\n" in config
