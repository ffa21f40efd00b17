"""Every layout satisfies its protocol, and one that is added to `LAYOUTS` is used."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest

from dask_slicer.errors import DatasetError
from dask_slicer.inputs import discovery
from dask_slicer.inputs.case import Case
from dask_slicer.inputs.layouts import LAYOUTS
from dask_slicer.inputs.layouts.base import InputOptions, Layout, LayoutMatch
from dask_slicer.inputs.tree import FileTree


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_satisfies_its_protocol(tmp_path, layout) -> None:
    _, *parameters = inspect.signature(Layout.match).parameters.values()
    assert [*inspect.signature(layout.match).parameters.values()] == parameters
    match = layout.match(FileTree(tmp_path, []), InputOptions())
    assert match.layout
    assert (match.cases, match.seen) == ([], 0)
    assert match.miss


def match_pairs(tree: FileTree, options: InputOptions) -> LayoutMatch:
    scans = [path for path in tree.within("") if path.startswith("scan-")]
    cases = [Case(case_id=path[:6], images=(tree.absolute(path),)) for path in scans]
    if options.include_test:
        cases.append(Case(case_id="held-out", images=("x.nii",), split="test"))
    return LayoutMatch("pairs", "files are called scan-", cases, seen=9, miss="no file scan-")


def test_a_layout_that_is_added_is_used(tmp_path, monkeypatch) -> None:
    layout = SimpleNamespace(match=match_pairs)
    monkeypatch.setattr(discovery, "LAYOUTS", {**LAYOUTS, "pairs": layout})
    (tmp_path / "x.txt").touch()
    with pytest.raises(DatasetError, match="nearest is pairs: no file scan-"):
        discovery.find_cases(tmp_path)
    (tmp_path / "scan-1.nii").touch()
    dataset = discovery.find_cases(tmp_path, InputOptions(include_test=True))
    assert (dataset.layout, dataset.reason) == ("pairs", "files are called scan-")
    assert [case.case_id for case in dataset.cases] == ["held-out", "scan-1"]
    (tmp_path / "manifest.csv").write_text("case_id,image\na,a.nii\n")
    assert discovery.find_cases(tmp_path).layout == "manifest"
