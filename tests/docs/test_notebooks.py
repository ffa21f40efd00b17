"""The notebooks, as they are kept: without what they printed, and one that a stranger can begin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from repository import ROOT

_NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))


def test_there_are_four_notebooks() -> None:
    assert [path.stem for path in _NOTEBOOKS] == [
        "01-quickstart",
        "02-own-scheduler-and-dashboard",
        "03-train-on-slices",
        "04-predict-and-assemble",
    ]


@pytest.mark.parametrize("path", _NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    for cell in notebook["cells"]:
        assert not cell["metadata"]
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.mark.parametrize("path", _NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_with_a_title_and_what_must_be_installed(path: Path) -> None:
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    text = "".join(first["source"])
    assert first["cell_type"] == "markdown"
    assert text.startswith("# ")
    assert "pip install" in text


def test_every_notebook_is_named_in_the_docs_and_run_by_ci() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for path in _NOTEBOOKS:
        assert f"(../notebooks/{path.name})" in page
    sessions = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    assert '"--nbmake", "--nbmake-timeout=300", "notebooks")' in sessions
    assert " notebooks " in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
