"""Facts of a folder of assembled volumes, for its page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dask_slicer.assembly.volume_files import (
    JOURNAL,
    failed_cases,
    metrics_summary,
    named_metrics,
    written_cases,
)

# Rows of cases; metrics.csv has all.
_MOST_ROWS = 100


def has_volumes(folder: Path) -> bool:
    """Return whether `assemble` made a folder."""
    return (folder / JOURNAL).is_file()


def volume_facts(folder: Path) -> dict[str, Any]:
    """Return what the page of a folder of volumes shows."""
    cases = written_cases(folder)
    rows = named_metrics(folder)
    names = {int(row["label"]): row["name"] for row in rows}
    return {
        "n_cases": len(cases),
        "n_bytes": sum(file.size for case in cases.values() for file in case.files),
        "summary": metrics_summary(cases.values(), names),
        "rows": sorted(rows, key=lambda row: float(row["dice"]))[:_MOST_ROWS],
        "n_rows": len(rows),
        "failures": failed_cases(folder),
    }
