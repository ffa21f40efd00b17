"""A run in a real JupyterLab, seen in a browser: the plan's table, the bar, the report."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import opened_browser, opened_page

from dask_slicer.inputs.phantom import write_dataset

pytestmark = [pytest.mark.slow, pytest.mark.browser]

NEVER = 180
TOKEN = "of-this-test"
BAR = ".jp-OutputArea-output [role=progressbar]"
CELLS = (
    "import dask_slicer as ds\nplan = ds.plan('ct_abdomen', input_dir='scans', "
    "output_dir='slices', dashboard_address='127.0.0.1:0')\nplan",
    "ds.run(plan, num_workers=1, compression_level=9)",
    "ds.show_slices('slices', n_slices=4)",
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Start a JupyterLab of our own; return where a notebook is, with its token."""
    pytest.importorskip("jupyterlab")
    pytest.importorskip("ipykernel")
    home = tmp_path / "home"
    folder = tmp_path / "work"
    write_dataset(folder / "scans", n_cases=24, shape=(96, 96, 40))
    write_notebook(folder / "slices.ipynb")
    own = {f"JUPYTER_{name}_DIR": str(home / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    own |= {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "s"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "w"),
    }
    own |= {"HOME": str(home), "IPYTHONDIR": str(home / "ipython")}
    options = ["--no-browser", "--ip=127.0.0.1", "--port=0", f"--IdentityProvider.token={TOKEN}"]
    options += ["--allow-root"] if hasattr(os, "getuid") and os.getuid() == 0 else []
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            cwd=folder,
            env=os.environ | own,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield f"{url_of(home / 'RUNTIME', process)}lab/tree/slices.ipynb?token={TOKEN}&reset"
    finally:
        process.terminate()  # it ends its kernels
        process.wait(60)


def url_of(runtime: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + NEVER
    while time.monotonic() < deadline:
        assert process.poll() is None
        for path in runtime.glob("jpserver-*.json"):
            try:
                return str(json.loads(path.read_text())["url"])
            except ValueError:  # it is being written
                continue
        time.sleep(0.1)
    raise AssertionError("JupyterLab has not started")


def write_notebook(path: Path) -> None:
    cells = [
        {
            **{"cell_type": "code", "execution_count": None, "id": f"cell{number}"},
            **{"metadata": {}, "outputs": [], "source": source},
        }
        for number, source in enumerate(CELLS)
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {"metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps({**notebook, "cells": cells}))


def run_cells(page: Any) -> None:
    from playwright.sync_api import TimeoutError as NotThere

    first = page.locator(".jp-Notebook .jp-Cell").first
    try:
        first.wait_for(timeout=1000 * NEVER / 3)
    except NotThere:  # a busy machine may leave the page under its splash screen
        page.reload()
    first.click(timeout=1000 * NEVER)
    page.wait_for_selector('.jp-Toolbar [data-status="idle"]', timeout=1000 * NEVER)
    for _ in CELLS:
        page.keyboard.press("Shift+Enter")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.timeout(600)
def test_a_notebook_shows_plan_bar_report_and_picture(server: str, tmp_path: Path, dark) -> None:
    with opened_browser() as browser, opened_page(browser, dark=dark) as page:
        page.set_default_timeout(1000 * NEVER)
        # On a busy machine JupyterLab may fail to load its theme, and the page stays bare.
        dialog = page.locator("dialog.jp-Dialog").filter(has_text="Error Loading Theme")
        page.add_locator_handler(dialog, lambda _: page.reload())
        page.goto(server)
        if dark:
            page.wait_for_selector(".jp-Notebook .jp-Cell")
            page.get_by_role("menuitem", name="Settings").click()
            page.get_by_text("Theme", exact=True).first.hover()
            page.get_by_role("menuitem", name="JupyterLab Dark", exact=True).click()
            page.wait_for_selector('body[data-jp-theme-light="false"]', state="attached")
        run_cells(page)
        outputs = page.locator(".jp-OutputArea-output")
        bar = page.locator(BAR)
        bar.wait_for()
        page.wait_for_function(
            "bar => Number(document.querySelector(bar).getAttribute('aria-valuenow')) > 2", arg=BAR
        )
        page.screenshot(path=tmp_path / "running.png")
        assert re.match(
            r"http://127\.0\.0\.1:\d+/status",
            page.locator("a", has_text="Dask dashboard").get_attribute("href"),
        )
        assert outputs.filter(has_text="Plan of 24 cases").count() == 1
        page.get_by_text("Wrote ").wait_for()
        page.locator(".jp-OutputArea-output img").wait_for()
        assert bar.get_attribute("aria-valuenow") == bar.get_attribute("aria-valuemax") == "24"
        assert bar.count() == 1
        report = outputs.filter(has_text="not written")
        assert "of 24 cases" in report.inner_text()
        report.scroll_into_view_if_needed()
        page.screenshot(path=tmp_path / "done.png")
        assert not page.locator(".jp-mod-error, [data-mime-type*=stderr]").count()
