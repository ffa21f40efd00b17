"""The facts and the page of a report."""

from __future__ import annotations

import re
from pathlib import Path

from dask_slicer.output.output import open_output
from dask_slicer.report import html_report
from dask_slicer.report.overview import Overview, overview


def facts_of(output_dir: Path) -> Overview:
    return overview(open_output(output_dir))


def page_of(output_dir: Path) -> str:
    html_report.write_report(output_dir, say=lambda _: None)
    return (output_dir / html_report.REPORT).read_text(encoding="utf-8")


def text_of(html: str) -> str:
    """Return what a reader sees, on one line."""
    without_style = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", without_style).split())
