"""A run as it is seen in a browser while it goes on: Dask's pages, and the page of runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faults
import pytest
from browser import opened_browser, opened_page

from dask_slicer.inputs.phantom import write_dataset

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.timeout(300)]

STEPS = {"load", "slice", "save"}
N_CASES = 24
# Three cases share a graph; the stuck one is the first of its three.
FAILING, STUCK, N_STUCK = "phantom_001", "phantom_009", 3
POISON = {f"phantom_{n:03d}": "slow" for n in range(3, N_CASES)} | {
    FAILING: "raise",
    STUCK: "sleep",
}
# Bokeh draws on a canvas; what it draws is in the columns of its data sources.
COLUMNS = """(wanted) => [...(window.Bokeh ? Bokeh.documents : [])]
    .flatMap((document) => [...document._all_models.values()])
    .filter((model) => model.type == "ColumnDataSource")
    .filter((model) => wanted.every((name) => name in model.data))
    .map((model) => Object.fromEntries(wanted.map((name) => [name, [...model.data[name]]])))[0]"""
ON_SCREEN_MS = 60_000


@pytest.fixture(scope="module")
def links(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Start a run of which one case fails and one never ends; yield the links that it prints.

    The others end while the first test looks on, but for those that share the stuck one's graph.
    """
    folder = tmp_path_factory.mktemp("run")
    write_dataset(folder / "scans", n_cases=N_CASES, shape=(40, 36, 12), varied=False)
    command = [
        *(sys.executable, "-m", "dask_slicer", "run", "--num_workers", "2"),
        *("--input_dir", "scans", "--output_dir", "slices", "--dashboard_address", "127.0.0.1:0"),
    ]
    with (folder / "log").open("w") as log:
        run = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=subprocess.STDOUT,
            env=os.environ | faults.variables(POISON),
        )  # fmt: skip
    try:
        journal = folder / "slices" / "journal.jsonl"
        deadline = time.monotonic() + 120
        while not (journal.exists() and journal.stat().st_size):
            assert time.monotonic() < deadline, (folder / "log").read_text()
            assert run.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        shown = (folder / "log").read_text().splitlines()
        yield dict(line.split(": ", 1) for line in shown[:2])
    finally:
        run.terminate()  # as a batch system would: the run tidies up
        run.wait(60)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with opened_browser() as browser:
        yield browser


@pytest.fixture
def page(browser) -> Iterator[Any]:
    with opened_page(browser) as page:
        yield page


def drawn(page: Any, *columns: str, until: str = "true") -> dict[str, list[Any]]:
    """Return columns of what Bokeh draws, once it draws them and a condition of them holds."""
    found = page.wait_for_function(
        f"(wanted) => {{ const drawn = ({COLUMNS})(wanted); return drawn && ({until}) && drawn; }}",
        arg=list(columns),
        timeout=ON_SCREEN_MS,
    )
    return found.json_value()


def screenshot(page: Any, folder: Path, name: str) -> None:
    """Leave a picture to look at."""
    page.screenshot(path=folder / f"{name}.png")


def test_the_status_page_shows_the_steps_by_name_and_what_failed(links, page, tmp_path) -> None:
    page.goto(links["Dashboard"])
    stream = drawn(
        page, "name", "duration_text", "key",
        until=" && ".join(f"drawn.name.includes('{step}')" for step in sorted(STEPS)),
    )  # fmt: skip
    assert {key[0] for key in stream["key"] if isinstance(key, list)} >= STEPS
    bars = drawn(page, "name", "show-name", "erred", until="drawn.erred.some((n) => n > 0)")
    screenshot(page, tmp_path, "status")
    assert set(bars["name"]) == set(bars["show-name"]) == STEPS
    # One for each failed case, whatever its step.
    erred = {"load": 0, "slice": 0, "save": 1}
    assert dict(zip(bars["name"], bars["erred"], strict=True)) == erred


def test_the_graph_page_shows_tasks_of_every_step(links, page, tmp_path) -> None:
    page.goto(links["Dashboard"].replace("/status", "/graph"))
    nodes = drawn(page, "name", "state", "x", "key", until="drawn.name.length >= 6")
    screenshot(page, tmp_path, "graph")
    assert set(nodes["name"]) == STEPS
    shown = zip(nodes["name"], nodes["state"], nodes["key"], strict=True)
    assert [name for name, state, key in shown if state == "erred" and FAILING in key] == ["save"]


def test_a_failed_case_is_listed_by_id_among_failed_tasks(links, page, tmp_path) -> None:
    page.goto(links["Dashboard"].replace("/status", "/info/main/exceptions.html"))
    # Dask makes this page once for each request.
    deadline = time.monotonic() + ON_SCREEN_MS / 1000
    while FAILING not in page.inner_text("body") and time.monotonic() < deadline:
        time.sleep(0.2)
        page.reload()
    screenshot(page, tmp_path, "exceptions")
    text = page.inner_text("body")
    assert f"('save', '{FAILING}')" in text
    assert "a fault on purpose" in text


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_run_page_shows_finished_and_failed_cases(links, browser, tmp_path, dark) -> None:
    with opened_page(browser, dark=dark) as page:
        page.goto(links["Run page"])
        n_ended = N_CASES - N_STUCK
        page.wait_for_selector(f"dd:text-is('{n_ended} of {N_CASES}')", timeout=ON_SCREEN_MS)
        screenshot(page, tmp_path, "runs")
        cells = [row.split("\t") for row in page.inner_text("main").splitlines()]
        by_first = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in cells}
        figures = dict(
            zip(page.locator("dt").all_inner_texts(), page.locator("dd").all_inner_texts(),
                strict=True)
        )  # fmt: skip
        assert figures["failed"] == "1"
        done = [by_first[split][0].split(" of ") for split in ("train", "val", "test")]
        assert sum(int(n) for n, _ in done) == n_ended - 1
        assert sum(int(n) for _, n in done) == N_CASES
        assert by_first["Unexpected"] == ["1"]
        assert by_first[FAILING][:2] == ["load", "Unexpected"]
        assert STUCK in page.inner_text("section:last-child")  # the case that a worker is at
        assert page.faults == []
        host = links["Run page"].removesuffix("/dask-slicer")
        assert [url for url in page.requests if not url.startswith(host)] == []
        dim, bright = (0, 128) if dark else (128, 256)
        ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        assert dim <= int(ground.removeprefix("rgb(").split(",")[0]) < bright


def test_the_run_page_refreshes_itself_and_says_when_the_scheduler_is_gone(links, page) -> None:
    page.goto(links["Run page"])
    page.wait_for_selector(".run")
    first = page.inner_text("#updated")
    page.wait_for_function(
        "(first) => document.getElementById('updated').innerText != first",
        arg=first,
        timeout=ON_SCREEN_MS,
    )
    assert page.inner_text("#updated").startswith("as of ")
    page.context.set_offline(True)
    page.wait_for_selector("#updated.silent", timeout=ON_SCREEN_MS)
    assert "has not answered since" in page.inner_text("#updated")
    assert page.locator(".run").count() == 1  # what was seen last stays
