"""A report without its pictures."""

from __future__ import annotations

import pytest

from dask_slicer.report import preview


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the drawing out: it takes seconds, and has tests of its own."""
    monkeypatch.setattr(preview, "picture", lambda *_, dark, **__: f"PNG, {dark}".encode())
