"""The command configs: a line for each shipped configuration, and its text."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.shell_completion import ShellComplete

from dask_slicer.cli.main import main
from dask_slicer.config.loader import read_config_file
from dask_slicer.config.shipped import shipped_configs

NAMES = sorted(shipped_configs())


def test_configs_lists_each_name_with_the_first_sentence_of_its_comment(invoke) -> None:
    result = invoke("configs")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert list(rows) == NAMES
    assert rows["ct_lung"] == "Chest CT: lung window, level -600 HU and width 1500 HU."


@pytest.mark.parametrize("name", NAMES)
def test_a_purpose_is_one_sentence_that_fits_in_a_line(invoke, name) -> None:
    (purpose,) = (
        line.removeprefix(name).strip()
        for line in invoke("configs").stdout.splitlines()
        if line.split()[0] == name
    )
    assert purpose[0].isupper()
    assert purpose.endswith(".")
    assert len(purpose) <= 80


@pytest.mark.parametrize("name", NAMES)
def test_what_configs_prints_is_the_configuration_without_the_line_for_editors(
    invoke, tmp_path, name
) -> None:
    result = invoke("configs", name)
    assert result.exit_code == 0
    shipped = shipped_configs()[name].read_text(encoding="utf-8")
    assert shipped == "# yaml-language-server: $schema=schema.json\n" + result.stdout
    mine = tmp_path / "mine.yaml"
    mine.write_bytes(result.stdout_bytes)
    assert read_config_file(mine) == read_config_file(shipped_configs()[name])


def test_a_configuration_is_printed_as_utf_8_in_a_terminal_that_is_not(
    invoke, tmp_path, monkeypatch
) -> None:
    text = "# CT: −160…240 HU × 2.\nseed: 1\n"
    (tmp_path / "odd.yaml").write_text(text, encoding="utf-8")
    program = (
        "import sys; from pathlib import Path; from dask_slicer.config import shipped\n"
        "shipped.shipped_configs = lambda: {'odd': Path('odd.yaml')}\n"
        "from dask_slicer.cli.main import main; main(['configs', 'odd'])"
    )
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True
    )
    assert done.stdout.replace(b"\r\n", b"\n").decode() == text


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ct_abdomn", "; did you mean ct_abdomen?"),
        ("ct_lung.yaml", "; did you mean ct_lung?"),
        ("zzz", ""),
        ("../pyproject", ""),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(invoke, name, hint) -> None:
    result = invoke("configs", name)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"Error: there is no configuration {name}{hint}; "
        "dask-slicer configs lists the shipped ones\n"
    )


def test_an_unknown_name_of_config_names_the_command(invoke, tmp_path) -> None:
    result = invoke("run", "-i", tmp_path, "-o", tmp_path / "out", "--config", "ct_abdomn")
    assert result.exit_code == 2
    assert "dask-slicer configs lists the shipped ones, or give a YAML file" in result.stderr


@pytest.mark.parametrize(("typed", "offered"), [("ct_", 3), ("", len(NAMES)), ("zzz", 0)])
def test_a_shell_completes_names(typed, offered) -> None:
    completion = ShellComplete(main, {}, "dask-slicer", "_DASK_SLICER_COMPLETE")
    values = [item.value for item in completion.get_completions(["configs"], typed)]
    assert values == [name for name in NAMES if name.startswith(typed)]
    assert len(values) >= offered


@pytest.mark.parametrize("arguments", [["configs"], ["configs", "ct_abdomen"]])
def test_configs_does_not_wait_for_numpy_and_pydantic(arguments) -> None:
    program = f"""
import sys
from dask_slicer.cli.main import main
main({arguments}, standalone_mode=False)
heavy = {{"distributed", "dask", "zarr", "nibabel", "numpy", "pydantic", "yaml"}} & set(sys.modules)
sys.exit(f"imported {{heavy}}" if heavy else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
