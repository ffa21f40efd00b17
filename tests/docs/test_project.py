"""Files of the project: sessions are run everywhere, types are shipped, settings are parsed."""

from __future__ import annotations

import ast
import re
import tomllib

import pytest
import yaml
from repository import ROOT

import dask_slicer

_SESSIONS = [
    node.name
    for node in ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef)
    and any("session" in ast.unparse(decorator) for decorator in node.decorator_list)
]
_WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_there_are_sessions() -> None:
    assert {"lint", "types", "tests", "slow", "docs", "oldest", "newest"} <= set(_SESSIONS)


@pytest.mark.parametrize("session", _SESSIONS)
def test_every_session_is_in_the_guide_and_in_both_kinds_of_ci(session: str) -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert f"`nox -s {session}`" in guide
    workflows = "\n".join(path.read_text(encoding="utf-8") for path in _WORKFLOWS)
    assert re.search(rf"\b{session}\b", workflows)
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    # The default tests are the README's second command there.
    assert session == "tests" or re.search(rf"[( ]{session}[) \n]", ci)


def test_workflows_may_only_read_and_run_what_every_python_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = {
        line.rsplit(" ", 1)[1]
        for line in project["classifiers"]
        if re.search(r":: 3\.\d+$", line)
    }
    tests = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    assert tests["permissions"] == {}
    assert versions <= set(tests["jobs"]["tests"]["strategy"]["matrix"]["python"])


def test_the_package_says_that_it_has_types() -> None:
    (package,) = dask_slicer.__path__
    assert (ROOT / "dask_slicer" / "py.typed").read_bytes() == b""
    assert package
