"""What a case costs when there is next to nothing to slice, however many cases there are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import ct
from measure import Measured, measure, median, paired, slicer

_HERE = Path(__file__).parent
_SHAPE = (16, 16, 8)


def overhead(
    work: Path,
    *,
    counts: Sequence[int],
    workers: int,
    repeats: int,
    before: Callable[[], None],
) -> dict[str, Any]:
    """Return seconds a case and memory for datasets of thousands of tiny cases.

    Parameters
    ----------
    work : Path
    counts : sequence of 3 int
        Cases: the fewest give start-up and the memory to compare with, the second is run by Dask
        alone too.
    workers, repeats : int
    before : callable
        Called before every command.
    """
    output = work / "output"
    few, some, many = counts

    def ours(n_cases: int) -> Callable[[], Measured]:
        scans = ct(work, n_cases, _SHAPE, distinct=1)
        return partial(measure, slicer(scans, output, "--num_workers", workers), output)

    raw = [sys.executable, str(_HERE / "raw_dask.py"), str(some), "--num_workers", str(workers)]
    commands = {"few": ours(few), "some": ours(some), "raw": partial(measure, raw, output)}
    results = paired(commands, repeats=repeats, before=before)
    results |= paired({"many": ours(many)}, repeats=1, before=before)
    wall = {name: median(runs, "wall") for name, runs in results.items()}
    own = {name: median(runs, "own_peak_rss") for name, runs in results.items()}
    a_case = (wall["some"] - wall["few"]) / (some - few)
    a_raw_case = sorted(float(run.printed) for run in results["raw"])[repeats // 2] / some
    return {
        "counts": list(counts),
        "workers": workers,
        "repeats": repeats,
        "ms_per_case": 1e3 * a_case,
        "ms_per_case_of_raw_dask": 1e3 * a_raw_case,
        "ms_per_case_of_many": 1e3 * (wall["many"] - wall["few"]) / (many - few),
        "ours_over_raw_dask": a_case / a_raw_case,
        "many_over_some": (wall["many"] - wall["few"]) / (many - few) / a_case,
        "own_rss_mb": {name: own[name] / 1e6 for name in ("few", "some", "many")},
        "own_rss_growth_mb": (own["many"] - own["few"]) / 1e6,
    }
