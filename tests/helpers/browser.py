"""A headless Chromium of the system's, for tests that look at pages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

WIDTH, HEIGHT = 1280, 900


@contextmanager
def opened_browser() -> Iterator[Any]:
    """Yield a browser of playwright's; skip the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium here")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened_page(browser: Any, *, dark: bool = False) -> Iterator[Any]:
    """Yield an empty page that keeps what goes wrong (`page.faults`) and what it asks for."""
    context = browser.new_context(
        viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="dark" if dark else "light"
    )
    try:
        page = context.new_page()
        page.faults = []
        page.requests = []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on(
            "console",
            lambda said: page.faults.append(said.text) if said.type == "error" else None,
        )
        page.on("request", lambda asked: page.requests.append(asked.url))
        yield page
    finally:
        context.close()
