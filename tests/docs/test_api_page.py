"""Every public name has a section in docs/api.md, whose examples run, and says what it takes."""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT

import dask_slicer as ds
from dask_slicer.inputs.phantom import write_dataset

_PAGE = ROOT / "docs" / "api.md"
_TEXT = _PAGE.read_text(encoding="utf-8")
_SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", _TEXT, flags=re.DOTALL | re.M))
_NAMES = sorted(set(ds.__all__) - {"__version__"})
_CALLABLES: dict[str, Callable[..., Any]] = {
    name: getattr(ds, name) for name in _NAMES if inspect.isfunction(getattr(ds, name))
} | {
    f"{name}.{method}": function
    for name in _NAMES
    if inspect.isclass(getattr(ds, name)) and name not in ("RunConfig", "DaskSlicerError")
    for method, function in vars(getattr(ds, name)).items()
    if inspect.isfunction(function) and not method.startswith("_")
}


def test_the_page_has_a_section_for_every_public_name_and_for_no_other() -> None:
    assert sorted(_SECTIONS) == _NAMES


def test_the_reference_has_every_public_name_once() -> None:
    page = _PAGE.with_name("reference.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\.\. auto\w+:: (\w+)", page, flags=re.M)) == _NAMES


@pytest.mark.parametrize("name", _NAMES)
def test_a_section_has_an_example_that_runs_what_it_is_about(name: str) -> None:
    examples = "".join(re.findall(r"```pycon\n(.*?)```", _SECTIONS[name], flags=re.DOTALL))
    assert ">>> " in examples


def test_the_examples_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "phantoms")
    failed, tried = doctest.testfile(str(_PAGE), module_relative=False)
    assert tried >= len(_NAMES)
    assert not failed
    assert (tmp_path / "slices.png").stat().st_size > 10_000


def sections_of(docstring: str) -> dict[str, str]:
    """Return the sections of a numpydoc docstring, by their headings."""
    found = re.split(r"^(\w+)\n-{3,}\n", inspect.cleandoc(docstring), flags=re.M)
    return dict(zip(found[1::2], found[2::2], strict=True))


def test_sections_of_a_docstring_are_recognised() -> None:
    assert sections_of("Do it.\n\n    Parameters\n    ----------\n    a : int\n") == {
        "Parameters": "a : int"
    }


@pytest.mark.parametrize("name", _CALLABLES)
def test_a_public_function_has_types_and_says_what_it_takes_and_returns(name: str) -> None:
    function = _CALLABLES[name]
    signature = inspect.signature(function)
    parameters = {key: one for key, one in signature.parameters.items() if key != "self"}
    assert signature.return_annotation is not inspect.Signature.empty
    assert not [key for key, one in parameters.items() if one.annotation is one.empty]
    docstring = function.__doc__ or ""
    sections = sections_of(docstring)
    named = re.findall(r"^(\*{0,2}\w+(?:, \w+)*)(?: :.*)?$", sections.get("Parameters", ""), re.M)
    documented = {key.strip("*") for group in named for key in group.split(", ")}
    assert documented == set(parameters)
    if signature.return_annotation != "None":
        assert "Returns" in sections or "Yields" in sections or docstring.startswith("Return ")
    if re.search(r"^ +raise ", inspect.getsource(function), flags=re.M):
        assert "Raises" in sections


@pytest.mark.parametrize("name", _NAMES)
def test_a_public_class_or_function_has_a_docstring_of_its_own(name: str) -> None:
    docstring = inspect.cleandoc(getattr(ds, name).__doc__ or "")
    assert docstring.splitlines()[0].endswith((".", ";"))
