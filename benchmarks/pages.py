"""How long `dask-slicer report` takes on an output of many slices, and how large its page is."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from datasets import ct
from measure import measure, slicer


def pages(work: Path, *, n_cases: int, n_slices: int, repeats: int) -> dict[str, Any]:
    """Return seconds, memory and bytes of the report, by format; slices are of 16×16 pixels.

    What grows with their number is to be measured: journal and index.
    """
    scans = ct(work, n_cases, (16, 16, n_slices))
    page = work / "report.html"
    found: dict[str, Any] = {}
    for format_ in ("npz", "zarr"):
        output = work / f"pages_{format_}"
        options = ("--num_workers", 1, "--format", format_)
        subprocess.run(slicer(scans, output, *options), check=True, capture_output=True)
        command = [sys.executable, "-m", "dask_slicer", "report", str(output), "--file", str(page)]
        runs = [measure(command, work / "nothing") for _ in range(repeats)]
        found[format_] = {
            "seconds": statistics.median(run.wall for run in runs),
            "peak_rss_mb": max(run.own_peak_rss for run in runs) / 1e6,
            "page_mb": page.stat().st_size / 1e6,
        }
    return {"slices": n_cases * n_slices, "repeats": repeats, "reports": found}
