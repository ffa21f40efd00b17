"""The report in a real browser: nothing is asked for, nothing goes wrong, light and dark."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browser import opened_browser, opened_page

import dask_slicer
from dask_slicer.inputs.phantom import write_dataset
from dask_slicer.report.html_report import write_report

pytestmark = [pytest.mark.slow, pytest.mark.browser]

_PHONE, _DESKTOP = 390, 1280
# Relative luminance and contrast: WCAG 2.2; what lies behind a text is its nearest parent's colour.
_CONTRASTS = """() => {
  const parts = colour => colour.match(/[\\d.]+/g).map(Number)
  const luminance = colour => parts(colour).slice(0, 3).map(part => part / 255)
    .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, which) => sum + part * [0.2126, 0.7152, 0.0722][which], 0)
  const behind = element => {
    const colour = getComputedStyle(element).backgroundColor
    return parts(colour)[3] === 0 ? behind(element.parentElement) : colour
  }
  const selector = 'h1, h2, h3, p, a, td, th, caption, dt, dd, small, li, code, figcaption, .kind'
  return [...document.querySelectorAll(selector)].map(element => {
    const [dark, light] = [getComputedStyle(element).color, behind(element)]
      .map(luminance).sort((one, other) => one - other)
    return [(light + 0.05) / (dark + 0.05), element.outerHTML.slice(0, 80)]
  })
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a report of phantoms, of which one is torn, and of a failure that is hostile."""
    folder = tmp_path_factory.mktemp("report")
    write_dataset(folder / "scans", n_cases=6)
    (folder / "scans" / "imagesTr" / "phantom_002_0000.nii.gz").write_bytes(b"")
    output = folder / "slices"
    dask_slicer.run(
        dask_slicer.RunConfig(input_dir=folder / "scans", output_dir=output, num_workers=0)
    )
    with (output / "failures.csv").open("a", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(
            (
                "<script>window.hacked = 1</script>",
                "load",
                "CorruptFile",
                "<img src=x onerror=hacked=1>",
            )
        )
    return write_report(output, say=lambda line: pytest.fail(line))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with opened_browser() as found:
        yield found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_opens_without_an_error_and_asks_for_nothing(browser, report, dark) -> None:
    with opened_page(browser, dark=dark) as page:
        page.goto(report.as_uri())
        page.wait_for_function("document.querySelector('.montage').complete")
        assert page.evaluate("document.querySelector('.montage').naturalWidth") >= 900
        assert page.faults == []
        asked = [url for url in page.requests if not url.startswith("data:")]
        assert asked == [report.as_uri()]
        assert page.title() == "slices – dask-slicer report"
        assert page.evaluate("window.hacked") is None


def test_dark_pages_have_other_colours_and_pictures_than_light_ones(browser, report) -> None:
    seen = []
    for dark in (False, True):
        with opened_page(browser, dark=dark) as page:
            page.goto(report.as_uri())
            seen.append(
                page.evaluate(
                    """() => [
                        getComputedStyle(document.body).backgroundColor,
                        getComputedStyle(document.body).color,
                        getComputedStyle(document.querySelector('.bar')).fill,
                        document.querySelector('.montage').currentSrc,
                    ]"""
                )
            )
    light, dark_ = seen
    assert all(one != other for one, other in zip(light, dark_, strict=True))
    assert light[0] == "rgb(246, 247, 249)"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_has_enough_contrast(browser, report, dark) -> None:
    with opened_page(browser, dark=dark) as page:
        page.goto(report.as_uri())
        contrasts = page.evaluate(_CONTRASTS)
    assert len(contrasts) > 100
    assert [where for contrast, where in contrasts if contrast < 4.5] == []


@pytest.mark.parametrize("width", [_PHONE, _DESKTOP], ids=["phone", "desktop"])
def test_the_page_does_not_scroll_sideways(browser, report, width) -> None:
    with opened_page(browser) as page:
        page.set_viewport_size({"width": width, "height": 844})
        page.goto(report.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # Sections come one below the other, none over another.
        places = page.evaluate(
            """[...document.querySelectorAll('main > section')]
                .map(section => section.getBoundingClientRect())
                .map(box => [box.top, box.bottom])"""
        )
        assert len(places) >= 7
        assert all(one[1] <= other[0] for one, other in pairwise(places))


def test_tables_wider_than_a_phone_show_that_they_scroll(browser, report) -> None:
    with opened_page(browser) as page:
        page.set_viewport_size({"width": _PHONE, "height": 844})
        page.goto(report.as_uri())
        wide = page.evaluate(
            """[...document.querySelectorAll('.scroll')]
                .filter(box => box.scrollWidth > box.clientWidth)
                .map(box => getComputedStyle(box).backgroundImage.includes('gradient')
                    || getComputedStyle(box.querySelector('.sideways')).display !== 'none')"""
        )
        # Everything that is wider than the screen is in such a box.
        cut = page.evaluate(
            """[...document.querySelectorAll('main *')].filter(element =>
                element.getBoundingClientRect().right > innerWidth && !element.closest('.scroll')
            ).map(element => element.outerHTML.slice(0, 80))"""
        )
    assert len(wide) >= 3
    assert all(wide)
    assert cut == []


def test_it_is_printed_on_white_also_from_a_dark_screen(browser, report) -> None:
    with opened_page(browser, dark=True) as page:
        page.goto(report.as_uri())
        page.emulate_media(media="print")
        colours = page.evaluate(
            """['body', 'section', '.note'].map(
                which => getComputedStyle(document.querySelector(which)).backgroundColor)"""
        )
        assert colours[:2] == ["rgb(255, 255, 255)"] * 2
        assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
        assert page.pdf(format="A4").startswith(b"%PDF")
