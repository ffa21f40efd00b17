"""Sentences about what became of cases."""

from __future__ import annotations

import pytest

from dask_slicer.records import why_not_written


@pytest.mark.parametrize(
    ("n_failed", "n_left", "why"),
    [
        (1, 4, "1 failed, see failures.csv; 4 not run yet, repeat the run command to continue"),
        (2, 0, "2 failed, see failures.csv"),
        (0, 3, "3 not run yet, repeat the run command to continue"),
    ],
)
def test_cases_without_slices_failed_or_have_not_run(n_failed: int, n_left: int, why: str) -> None:
    assert why_not_written(n_failed, n_left) == why
