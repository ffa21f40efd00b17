"""Replacing files that another process has open, as Windows refuses it."""

from __future__ import annotations

import os

import pytest

from dask_slicer.output import atomic


@pytest.fixture
def refusals(monkeypatch) -> list[int]:
    """Refuse so many replacements; the number counts down."""
    left = [0]

    def refuse(source: object, target: object) -> None:
        if left[0]:
            left[0] -= 1
            raise PermissionError(13, "the file is used by another process")
        replace(source, target)

    replace = os.replace
    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(atomic.time, "sleep", lambda _: None)
    return left


@pytest.mark.parametrize("n_refusals", [0, 1, 6])
def test_windows_waits_until_a_file_is_closed(tmp_path, monkeypatch, refusals, n_refusals) -> None:
    monkeypatch.setattr(atomic, "_IS_WINDOWS", True)
    path = tmp_path / "slices.csv"
    path.write_text("old")
    refusals[0] = n_refusals
    with atomic.atomic_write(path) as file:
        file.write(b"new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["slices.csv"]


def test_a_folder_in_the_way_is_not_waited_for(tmp_path, monkeypatch, refusals) -> None:
    monkeypatch.setattr(atomic, "_IS_WINDOWS", True)
    source, target = tmp_path / "temporary" / "case", tmp_path / "case"
    for folder in (source, target):
        folder.mkdir(parents=True)
        (folder / folder.parent.name).touch()
    refusals[0] = 1  # as Windows does; Linux would replace an empty folder
    atomic.move(source, target)
    assert os.listdir(target) == ["temporary"]
    assert refusals == [0]


@pytest.mark.parametrize(("is_windows", "left"), [(True, 93), (False, 99)])
def test_a_file_that_stays_open_is_an_error(
    tmp_path, monkeypatch, refusals, is_windows, left
) -> None:
    monkeypatch.setattr(atomic, "_IS_WINDOWS", is_windows)
    refusals[0] = 100
    path = tmp_path / "slices.csv"
    with pytest.raises(PermissionError), atomic.atomic_write(path) as file:
        file.write(b"new")
    assert refusals == [left]
    assert os.listdir(tmp_path) == []
