"""The documents say what is: options, commands, links, examples, dependencies."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from repository import ROOT

from dask_slicer.cli.main import main
from dask_slicer.cli.options import config_options
from dask_slicer.config.loader import json_schema, shipped_configs

_README = (ROOT / "README.md").read_text(encoding="utf-8")
# conda-forge calls these otherwise.
_CONDA_NAMES = {"dask": "dask-core", "isal": "python-isal"}


def _blocks(language: str, text: str = _README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_table_of_options_names_every_option_in_the_order_of_the_help() -> None:
    in_readme = re.findall(r"^\| `--(\w+)`", _README, flags=re.MULTILINE)
    assert in_readme == [option.name for option in config_options()]


def test_the_table_of_options_gives_the_meaning_that_the_help_gives() -> None:
    for option in config_options():
        meaning = re.sub(r" \[default: .*\]", "", option.help or "")
        assert f"| {meaning} |" in _README, option.name


def test_every_command_is_in_the_readme_and_has_help() -> None:
    for name, command in main.commands.items():
        assert f"`dask-slicer {name}`" in _README
        assert command.help


def test_the_two_commands_that_set_everything_up_are_in_the_readme_and_in_ci() -> None:
    first, second = _blocks("sh")[:2]
    assert first == "python -m pip install . && dask-slicer demo\n"
    assert second == 'python -m pip install ".[test]" && python -m pytest\n'
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in ("pip install --quiet .\n", "dask-slicer demo", '".[test]"', "-m pytest\n"):
        assert command in ci


@pytest.mark.parametrize(
    "document",
    [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))],
    ids=lambda path: path.name,
)
def test_relative_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_the_python_examples_run_on_the_output_of_the_demo(tmp_path: Path) -> None:
    demo = [sys.executable, "-m", "dask_slicer", "demo", "--num_workers", "0", "--quiet"]
    subprocess.run(demo, cwd=tmp_path, check=True)
    load, train, from_python = _blocks("python")
    for number, code in enumerate((load, from_python, train)):
        (tmp_path / f"example_{number}.py").write_text(code, encoding="utf-8")
    printed = [
        subprocess.run(
            [sys.executable, f"example_{number}.py"],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for number in range(3)
    ]
    assert f"prints `{printed[0]}`" in _README
    assert "6 cases," in printed[1]


@pytest.mark.parametrize("heading", ["numpy alone", "torch", "MONAI"])
def test_the_examples_of_training_run(tmp_path: Path, heading: str) -> None:
    needed = {"torch": ["torch"], "MONAI": ["torch", "monai"]}.get(heading, [])
    for package in needed:
        pytest.importorskip(package, reason=f"{package} is not installed")
    demo = [sys.executable, "-m", "dask_slicer", "demo", "--num_workers", "0", "--quiet"]
    subprocess.run(demo, cwd=tmp_path, check=True)
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", page, flags=re.DOTALL | re.M))
    start = page[: page.index("## ")]
    others = (
        [] if needed else ["Choose slices without reading them", "Look at the rest of an output"]
    )
    if heading == "MONAI":
        start += "```python\nfrom torch.utils.data import DataLoader\n```"
    code = "\n".join(
        block
        for text in (start, *(sections[name] for name in (heading, *others)))
        for block in _blocks("python", text)
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)


def test_environment_yml_asks_for_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    wanted = {f"python{project['requires-python']}"}
    for requirement in project["dependencies"]:
        name, version = re.fullmatch(r"([\w-]+)(.*)", requirement).groups()
        wanted.add(_CONDA_NAMES.get(name, name) + version)
    listed = {entry for entry in conda["dependencies"] if isinstance(entry, str)}
    assert listed - {"pip"} == wanted


def test_the_page_and_the_table_of_measurements_are_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    report = importlib.import_module("report")
    monkeypatch.setattr(report, "_plot", lambda found, path: None)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(_README, encoding="utf-8")
    report.write_report(ROOT / "benchmarks" / "results", tmp_path)
    for name in ("README.md", "docs/performance.md"):
        made = (tmp_path / name).read_text(encoding="utf-8")
        assert made == (ROOT / name).read_text(encoding="utf-8")
    assert (ROOT / "docs" / "images" / "performance.png").stat().st_size > 10_000


def test_the_json_schema_is_that_of_the_configuration() -> None:
    committed = (ROOT / "configs" / "schema.json").read_text(encoding="utf-8")
    assert committed == json_schema()


def test_every_shipped_configuration_is_named_in_the_readme() -> None:
    for name in shipped_configs():
        assert f"`{name}`" in _README
