"""What was measured of an index of millions of slices, as text of the report."""

from __future__ import annotations

from typing import Any

from tables import Rows, table

_NAMES = {
    "write": "`slices.csv` and `slices.columns` are written, at the end of `run` and `merge`",
    "open": "`SliceDataset(OUT, split=None)`",
    "open train": "`SliceDataset(OUT)`, 7 of 10 slices",
    "open labels": "`SliceDataset(OUT, labels=[2])`",
    "open foreground": "`SliceDataset(OUT, min_foreground=0.2)`",
    "open cases": "`SliceDataset(OUT, cases=…)`, 100 cases",
    "open without columns": "`SliceDataset(OUT, split=None)`, of `slices.csv` alone",
    "weights": "`weights(0.5)`",
    "weights of labels": "`weights(0.5, labels=[2])`",
    "balanced weights": "`weights(balanced=True)`",
    "pickle": "pickled, for a worker that is spawned",
    "shuffle": "order of an epoch, `loader(shuffle=True)`",
    "split": "`dask-slicer split --folds 5 --stratify label`",
    "report": "`dask-slicer report`",
    "verify": "`dask-slicer verify`: what describes the output, without its slices",
}


def rows_of_page(found: dict[str, Any]) -> dict[str, str]:
    """Return the fields of the section on many slices."""
    steps, mb = found["steps"], found["mb"]
    return {
        "rows_slices": f"{found['slices'] / 1e6:.0f} million",
        "rows_cases": f"{found['cases']:,}",
        "rows_few": f"{found['slices'] // found['fewer']:,}",
        "rows_table_mb": f"{mb['slices.csv']:.0f}",
        "rows_columns_mb": f"{mb['slices.columns']:.0f}",
        "rows_bytes": f"{1e6 * steps['pickle']['mb_pickled'] / found['slices']:.0f}",
        "rows_table": table(
            ("", "CPU", "memory", "memory for 1 %"),
            _rows(steps),
        ),
    }


def _rows(steps: dict[str, Any]) -> Rows:
    for step, name in _NAMES.items():
        own = steps[step]
        seconds = own["cpu_seconds"]
        yield (
            name,
            f"{seconds:.1f} s" if seconds >= 0.95 else f"{seconds:.2f} s",
            f"{own['peak_mb']:.0f} MB",
            f"{own['peak_mb_of_few']:.0f} MB",
        )
