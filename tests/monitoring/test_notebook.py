"""Progress in a notebook cell: the first line and the last."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import dask_slicer as ds
from dask_slicer.execution import pipeline
from dask_slicer.monitoring import notebook


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the HTML blocks that a cell shows, in order."""
    display = pytest.importorskip("IPython.display")
    shown: list[str] = []

    def show(block: Any, *, display_id: bool) -> SimpleNamespace:
        assert display_id
        shown.append(block.data)
        return SimpleNamespace(update=lambda update: shown.append(update.data))

    monkeypatch.setattr(display, "display", show)
    monkeypatch.setattr(notebook, "is_notebook", lambda: True)
    return shown


def test_a_cell_shows_a_line_before_planning_starts(dataset, tmp_path, blocks, monkeypatch) -> None:
    dataset.add("a")
    shown_before: list[list[str]] = []
    prepare_plan = pipeline.prepare_plan

    def observed_plan(*args: Any, **kwargs: Any) -> Any:
        shown_before.append(list(blocks))
        return prepare_plan(*args, **kwargs)

    monkeypatch.setattr(pipeline, "prepare_plan", observed_plan)
    ds.run(input_dir=dataset.root, output_dir=tmp_path / "slices", num_workers=0)
    ((first, *_),) = shown_before
    assert "reading headers" in first
    assert "Wrote 10 slices of 1 case" in blocks[-1]


def test_a_cell_whose_run_cannot_start_shows_no_progress(tmp_path, blocks) -> None:
    with pytest.raises(ds.DaskSlicerError):
        ds.run(input_dir=tmp_path / "nowhere", output_dir=tmp_path / "slices", num_workers=0)
    assert "stopped before the first case" in blocks[-1]
