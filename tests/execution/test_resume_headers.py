"""Continued runs read no header again, also without a cache of the user."""

from __future__ import annotations

import io
import shutil

import pytest
from rich.console import Console

import dask_slicer
from dask_slicer.inputs import header_cache
from dask_slicer.inputs.cache_files import CACHE_DIR
from dask_slicer.monitoring import terminal
from dask_slicer.output import layout
from dask_slicer.planning import headers, planner


@pytest.fixture
def run(dataset, tmp_path, monkeypatch):
    """Return a function that runs, and returns how many headers the plan read."""
    monkeypatch.setenv(CACHE_DIR, "none")
    monkeypatch.setattr(header_cache, "RACY_NS", -(10**12))
    monkeypatch.setattr(header_cache, "_LEAST_BESIDE", 2)
    for case_id in ("a", "b", "c"):
        dataset.add(case_id)
    n_read = 0
    read = headers.read_header

    def counted(path: str, **keywords: object):
        nonlocal n_read
        n_read += 1
        return read(path, **keywords)

    monkeypatch.setattr(headers, "read_header", counted)

    def call(input_dir=dataset.root, **settings: object) -> int:
        nonlocal n_read
        n_read = 0
        settings = {"num_workers": 0, "output_dir": tmp_path / "out"} | settings
        report = dask_slicer.run(input_dir=input_dir, **settings)
        assert not report.remaining
        return n_read

    return call


def test_a_continued_run_reads_no_header_twice(run, tmp_path) -> None:
    assert run() == 6
    assert (tmp_path / "out" / layout.HEADERS).exists()
    assert run() == 0


def test_the_output_of_few_files_holds_no_headers(run, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(header_cache, "_LEAST_BESIDE", 7)
    assert run() == run() == 6
    assert not (tmp_path / "out" / layout.HEADERS).exists()


def test_a_continued_run_reads_the_headers_of_what_is_new(run, dataset) -> None:
    run()
    dataset.add("d")
    dataset.image_path("b").touch()
    assert run() == 3
    assert run() == 0


def test_headers_beside_the_output_serve_a_dataset_that_was_moved(run, dataset, tmp_path) -> None:
    run()
    moved = shutil.move(dataset.root, tmp_path / "elsewhere")
    # Moving a folder changes no file in it.
    assert run(input_dir=moved) == 0


def test_a_plan_writes_nothing_beside_the_output(run, dataset, tmp_path) -> None:
    run()
    (tmp_path / "out" / layout.HEADERS).unlink()
    dask_slicer.plan(input_dir=dataset.root, output_dir=tmp_path / "out")
    assert not (tmp_path / "out" / layout.HEADERS).exists()


def test_damaged_headers_beside_the_output_are_read_again(run, tmp_path) -> None:
    run()
    (tmp_path / "out" / layout.HEADERS).write_bytes(b"noise")
    assert run() == 6
    assert run() == 0


def test_headers_of_the_cache_are_kept_beside_the_output_too(run, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv(CACHE_DIR, str(tmp_path / "cache"))
    assert run() == 6
    assert run(output_dir=tmp_path / "second") == 0  # from the cache
    shutil.rmtree(tmp_path / "cache")
    assert run(output_dir=tmp_path / "second") == 0


def test_overwrite_removes_and_writes_them_again(run, tmp_path) -> None:
    run()
    file = tmp_path / "out" / layout.HEADERS
    before = file.read_bytes()
    assert run(overwrite=True) == 0
    assert file.read_bytes() == before


@pytest.mark.parametrize("settings", [{}, {"folds": 2}, {"seed": 7, "normalize": "dataset"}])
def test_the_plan_of_a_first_run_serves_the_run_after_it(
    run, dataset, monkeypatch, tmp_path, settings
) -> None:
    monkeypatch.setenv(CACHE_DIR, str(tmp_path / "cache"))
    run(**settings)
    settings |= {"num_workers": 0}
    config = {"input_dir": dataset.root, "output_dir": tmp_path / "out", **settings}
    with monkeypatch.context() as patch:
        patch.setenv(CACHE_DIR, "none")
        made = dask_slicer.plan(**config)
    monkeypatch.setattr(planner, "_make_plan", None)
    assert dask_slicer.plan(**config) == made


@pytest.mark.parametrize("is_terminal", [False, True])
def test_planning_shows_how_far_it_has_come(run, dataset, monkeypatch, is_terminal) -> None:
    monkeypatch.setattr(terminal, "_LINE_EVERY", 0.0)
    monkeypatch.setattr(terminal, "_REFRESH_EVERY", 0.0)
    clock = iter(range(1000))
    monkeypatch.setattr("dask_slicer.monitoring.terminal.time.monotonic", lambda: next(clock))
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=is_terminal, width=80, color_system=None)
    with terminal.PlanningDisplay(console) as display:
        dask_slicer.execution.resume.prepare_plan(
            dask_slicer.RunConfig(input_dir=dataset.root, output_dir="out"), progress=display.show
        )
    shown = screen.getvalue()
    for line in ("searching: 6 files", "looking at files: 6 of 6", "reading headers: 3 of 3"):
        assert line in shown


def test_planning_that_is_quick_shows_nothing() -> None:
    screen = io.StringIO()
    with terminal.PlanningDisplay(Console(file=screen)) as display:
        display.show("searching", 1, None)
    assert screen.getvalue() == ""
