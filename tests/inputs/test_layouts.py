"""Every layout satisfies its protocol, and one that is added to `LAYOUTS` is used."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest

from dask_slicer.errors import DatasetError
from dask_slicer.inputs import discovery
from dask_slicer.inputs.case import Case
from dask_slicer.inputs.layouts import LAYOUTS, manifest
from dask_slicer.inputs.layouts.base import Layout, LayoutMatch, volume_files


@pytest.mark.parametrize("layout", [manifest, *LAYOUTS], ids=lambda layout: layout.__name__)
def test_a_layout_satisfies_its_protocol(tmp_path, layout) -> None:
    _, *parameters = inspect.signature(Layout.match).parameters.values()
    assert [*inspect.signature(layout.match).parameters.values()] == parameters
    match = layout.match(tmp_path, include_test=False)
    assert match.layout
    assert (match.cases, match.seen) == ([], 0)
    assert match.miss


def match_pairs(root: Path, *, include_test: bool) -> LayoutMatch:
    scans = [path for path in volume_files(root) if path.name.startswith("scan-")]
    cases = [Case(case_id=path.name[:6], images=(str(path),)) for path in scans]
    if include_test:
        cases.append(Case(case_id="held-out", images=("x.nii",), split="test"))
    return LayoutMatch("pairs", "files are called scan-", cases, seen=9, miss="no file scan-")


def test_a_layout_that_is_added_is_used(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(discovery, "LAYOUTS", (*LAYOUTS, SimpleNamespace(match=match_pairs)))
    with pytest.raises(DatasetError, match="nearest is pairs: no file scan-"):
        discovery.find_cases(tmp_path)
    (tmp_path / "scan-1.nii").touch()
    dataset = discovery.find_cases(tmp_path, include_test=True)
    assert (dataset.layout, dataset.reason) == ("pairs", "files are called scan-")
    assert [case.case_id for case in dataset.cases] == ["held-out", "scan-1"]
    (tmp_path / "manifest.csv").write_text("case_id,image\na,a.nii\n")
    assert discovery.find_cases(tmp_path).layout == "manifest"
