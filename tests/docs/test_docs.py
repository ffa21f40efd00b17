"""Documents against the code: options, commands, links, examples, dependencies."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
import yaml
from fences import PAGES, README, Fence, code_of, fences
from repository import ROOT

import dask_slicer
from dask_slicer.cli.main import main
from dask_slicer.cli.options import config_options
from dask_slicer.config.loader import json_schema
from dask_slicer.inputs.phantom import write_dataset

_README = README.read_text(encoding="utf-8")
_OPTIONS = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
_QUICKSTART = ROOT / "docs" / "quickstart.md"
# The two commands that set everything up, which `.ci/run` runs.
_SET_UP = (
    "python -m pip install . && dask-slicer demo\n",
    'python -m pip install ".[test]" && python -m pytest -n auto\n',
)
# By page, the languages whose blocks are run, each by the test that is named.
_RUN = {
    "README.md": {"sh": "test_the_commands_of_a_page_run"},
    "docs/quickstart.md": {
        "sh": "test_the_commands_of_a_page_run",
        "python": "test_the_python_examples_run_on_the_output_of_the_demo",
        "console": "test_the_demo_prints_what_the_quick_start_shows",
    },
    "docs/steps.md": {"sh": "test_the_commands_of_a_page_run"},
    "docs/recipes.md": {"sh": "test_the_commands_of_a_page_run"},
    **{
        page.relative_to(ROOT).as_posix(): {
            "sh": "test_recipes.test_the_commands_and_the_code_of_a_page_run",
            "python": "test_recipes.test_the_commands_and_the_code_of_a_page_run",
        }
        for page in PAGES
        if page.parent.name == "recipes"
    },
    "docs/reliability.md": {"sh": "test_the_commands_of_a_page_run"},
    "docs/options.md": {"yaml": "test_a_configuration_file_in_the_docs_is_valid"},
    "docs/output.md": {"yaml": "test_a_configuration_file_in_the_docs_is_valid"},
    "docs/assemble.md": {
        "python": "test_the_page_on_volumes_runs_from_top_to_bottom",
        "sh": "test_the_page_on_volumes_runs_from_top_to_bottom",
    },
    "docs/training.md": {"python": "test_the_examples_of_training_run"},
    "docs/api.md": {"pycon": "test_api_page.test_the_examples_run_one_after_another"},
    "docs/hpc.md": {
        "sh": "test_slurm_recipes.test_every_recipe_gives_the_bytes_of_one_run",
        "bash": "test_slurm_recipes and test_run_page, the script and the variable",
    },
}
# conda-forge calls these otherwise.
_CONDA_NAMES = {"dask": "dask-core", "isal": "python-isal"}
_NOT_ON_CONDA_FORGE = {"deflate"}


def _blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_code_is_run_or_marked_as_an_example(page: Path) -> None:
    def is_known(fence: Fence) -> bool:
        if fence.language == "text":
            return not re.search(r"^(\$|dask|python|pip|ssh|export) ", fence.code, flags=re.M)
        return fence.is_example or fence.language in _RUN.get(fence.page, {})

    assert not [
        (fence.page, fence.line, fence.language) for fence in fences(page) if not is_known(fence)
    ]


def test_every_language_listed_for_a_page_has_a_block_there() -> None:
    for page, languages in _RUN.items():
        for language in languages:
            assert code_of(ROOT / page, language), (page, language)


def test_the_readme_fits_and_its_first_screen_has_what_a_newcomer_needs() -> None:
    assert len(_README.encode()) < 7_000
    first_screen = "\n".join(_README.splitlines()[:40])
    commands = ("plan --input_dir", "run --input_dir", "preview ")
    wanted = (
        *("](docs/images/preview.png)", "SliceDataset('slices')[0]"),
        *(command.strip() for command in _SET_UP),
        *(f"dask-slicer {command}" for command in commands),
    )
    assert not [text for text in wanted if text not in first_screen]


def test_every_reason_in_the_readme_has_a_number_that_its_page_measured() -> None:
    section = _README.partition("## Why")[2].partition("\n## ")[0]
    reasons = re.findall(r"^- (.*?)(?=^- |\Z)", section, flags=re.DOTALL | re.M)
    assert len(reasons) == 5
    for reason in reasons:
        pages = [
            (ROOT / name).read_text(encoding="utf-8")
            for name in re.findall(r"\((docs/\w+\.md)\)", reason)
        ]
        figures = re.findall(r"(?<![\w.-])\d(?:[\w.-]*\w)?(?: ×| %| ms)?", reason)
        assert figures, reason
        assert not [figure for figure in figures if not any(figure in page for page in pages)]


def test_the_page_of_options_is_made_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    made = importlib.import_module("make_options").page()
    assert made == _OPTIONS, "run: python docs/make_options.py"


def test_the_page_of_options_names_every_option_of_run_once() -> None:
    named = re.findall(r"^\| `--(\w+)`", _OPTIONS, flags=re.MULTILINE)
    command = main.commands["run"]
    options = command.get_params(click.Context(command, help_option_names=["-h", "--help"]))
    long_names = [name for option in options for name in option.opts if name.startswith("--")]
    assert sorted(named) == sorted(name.removeprefix("--") for name in long_names)


def test_the_page_of_options_gives_the_meaning_that_the_help_gives() -> None:
    plain = _OPTIONS.replace("`", "")
    for option in config_options():
        if option.name in ("config", "no_normalize", "like"):
            continue  # no settings; the page has words of its own
        meaning = re.sub(r" \[default: .*\]", "", option.help or "").replace("`", "")
        assert f"| {meaning} " in plain, option.name


@pytest.mark.parametrize(
    "block",
    [pytest.param(code, id=page.stem) for page in PAGES for code in code_of(page, "yaml")],
)
def test_a_configuration_file_in_the_docs_is_valid(block: str) -> None:
    folders = {"input_dir": "scans", "output_dir": "slices"}
    assert dask_slicer.RunConfig(**folders | yaml.safe_load(block)).model_fields_set


def test_every_command_is_in_the_readme_and_has_help() -> None:
    for name, command in main.commands.items():
        assert f"`dask-slicer {name}`" in _README
        assert command.help


def test_the_two_commands_that_set_everything_up_are_in_the_readme_and_in_ci() -> None:
    assert tuple(code_of(README, "sh")[:2]) == _SET_UP
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in (
        "pip install --quiet .\n",
        "dask-slicer demo",
        '".[test]"',
        "-m pytest -n auto\n",
    ):
        assert command in ci


@pytest.mark.parametrize(
    "document",
    sorted({*ROOT.glob("*.md"), *PAGES}),
    ids=lambda path: path.name,
)
def test_relative_links_have_targets(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_the_python_examples_run_on_the_output_of_the_demo(tmp_path: Path) -> None:
    demo = [sys.executable, "-m", "dask_slicer", "demo", "--num_workers", "0", "--quiet"]
    subprocess.run(demo, cwd=tmp_path, check=True)
    load, train, from_python = code_of(_QUICKSTART, "python")
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
    assert f"prints `{printed[0]}`" in _QUICKSTART.read_text(encoding="utf-8")
    assert "6 cases," in printed[1]


def _shell(commands: str, folder: Path) -> str:
    """Run commands as in an environment that is activated; return what they print."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", commands],
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (commands, done.stdout, done.stderr)
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page, by in _RUN.items() if by.get("sh") == "test_the_commands_of_a_page_run"],
)
def test_the_commands_of_a_page_run(tmp_path: Path, page: str) -> None:
    pytest.importorskip("matplotlib")
    write_dataset(tmp_path / "scans", n_cases=6, shape=(24, 22, 9))
    if "dask-slicer run" not in "".join(code_of(ROOT / page, "sh")):
        settings = {"input_dir": tmp_path / "scans", "output_dir": tmp_path / "slices"}
        dask_slicer.run(**settings, num_workers=0, progress=False)
    for commands in code_of(ROOT / page, "sh"):
        if commands not in _SET_UP:
            _shell(commands, tmp_path)
    assert (tmp_path / "slices" / "slices.csv").stat().st_size > 0


@pytest.mark.slow
def test_the_page_on_volumes_runs_from_top_to_bottom(tmp_path: Path) -> None:
    write_dataset(tmp_path / "scans", n_cases=6, shape=(24, 22, 9))
    settings = {"input_dir": tmp_path / "scans", "output_dir": tmp_path / "slices"}
    dask_slicer.run(**settings, num_workers=0, progress=False)
    page = ROOT / "docs" / "assemble.md"
    script = tmp_path / "page.py"
    script.write_text("\n".join(code_of(page, "python")), encoding="utf-8")
    _shell("python page.py", tmp_path)
    assert len(list((tmp_path / "volumes").glob("*.nii.gz"))) == 1
    for commands in code_of(page, "sh"):
        _shell(commands, tmp_path)
    assert (tmp_path / "from_files" / "metrics.csv").stat().st_size
    assert "Metrics, test" in (tmp_path / "from_files" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_demo_prints_what_the_quick_start_shows(tmp_path: Path) -> None:
    (session,) = code_of(_QUICKSTART, "console")
    command, _, shown = session.removeprefix("$ ").partition("\n")

    def without_figures_of_the_machine(text: str) -> list[str]:
        text = re.sub(r"127\.0\.0\.1:\d+", "HOST", text)
        text = re.sub(r"/\S*(?=/dask_slicer_demo)", "HOME", text)
        text = re.sub(r"\([\d.]+ MB\) in .* slices/s", "TIMES", text)
        return text.splitlines()

    printed = without_figures_of_the_machine(_shell(command, tmp_path))
    expected = without_figures_of_the_machine(shown)
    assert printed[: len(expected)] == expected


def test_the_script_for_a_job_does_not_wait_for_a_scheduler_that_did_not_start(
    tmp_path: Path,
) -> None:
    (script, _) = code_of(ROOT / "docs" / "hpc.md", "bash")
    start = re.search(r"^file=.*?^while .*?$", script, flags=re.DOTALL | re.MULTILINE)
    assert start is not None
    # A file, not `bash -c`: only in a script is a job that has ended kept until it is asked for.
    (tmp_path / "start.sh").write_text(f"dask() {{ false; }}\n{start[0]}\n", encoding="utf-8")
    subprocess.run(
        ["bash", "start.sh"],
        cwd=tmp_path,
        env=os.environ | {"SLURM_JOB_ID": "1"},
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_the_site_is_built_without_a_broken_link(tmp_path: Path) -> None:
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q"]
    done = subprocess.run(
        [*build, "-d", str(tmp_path / "doctrees"), str(ROOT / "docs"), str(tmp_path / "site")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "index.html").stat().st_size > 10_000


_OF_NUMPY = [
    "Choose slices without reading them",
    "Cross-validation",
    "Statistics, and new scans",
    "Read a whole output",
]


@pytest.mark.parametrize("heading", ["numpy alone", "torch", "Feed a GPU", "MONAI"])
def test_the_examples_of_training_run(tmp_path: Path, heading: str) -> None:
    # The packages of a section, and the sections that belong to it.
    needed, others = {
        "torch": (["torch"], []),
        "Feed a GPU": (["torch"], ["Which loader"]),
        "MONAI": (["torch", "monai"], ["Feed a GPU"]),
    }.get(heading, ([], _OF_NUMPY))
    for package in needed:
        pytest.importorskip(package, reason=f"{package} is not installed")
    demo = [sys.executable, "-m", "dask_slicer", "demo", "--num_workers", "0", "--quiet"]
    subprocess.run(demo, cwd=tmp_path, check=True)
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", page, flags=re.DOTALL | re.M))
    start = page[: page.index("## ")]
    if heading == "MONAI":
        start += "```python\nfrom torch.utils.data import DataLoader\n```"
    wanted = {heading, *others}
    assert wanted <= sections.keys()
    texts = (start, *(text for name, text in sections.items() if name in wanted))
    code = "\n".join(block for text in texts for block in _blocks("python", text))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)


def test_environment_yml_asks_for_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    wanted, wanted_of_pip = {f"python{project['requires-python']}"}, {"."}
    for requirement in project["dependencies"]:
        name, version = re.fullmatch(r"([\w-]+)(.*)", requirement).groups()
        if name in _NOT_ON_CONDA_FORGE:
            wanted_of_pip.add(name + version)
        else:
            wanted.add(_CONDA_NAMES.get(name, name) + version)
    *listed, of_pip = conda["dependencies"]
    assert {*listed} - {"pip"} == wanted
    assert {*of_pip["pip"]} == wanted_of_pip


def test_the_page_of_measurements_is_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    report = importlib.import_module("report")
    monkeypatch.setattr(report, "_plot", lambda found, path: None)
    (tmp_path / "docs").mkdir()
    report.write_report(ROOT / "benchmarks" / "results", tmp_path)
    made = (tmp_path / "docs" / "performance.md").read_text(encoding="utf-8")
    assert made == (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert (ROOT / "docs" / "images" / "performance.png").stat().st_size > 10_000


def test_the_json_schema_is_that_of_the_configuration() -> None:
    committed = (ROOT / "configs" / "schema.json").read_text(encoding="utf-8")
    assert committed == json_schema()
