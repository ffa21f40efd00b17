"""Against the usual script, with and without compression, and the least that has to be done."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ct, write_statistics
from measure import Measured, measure, median, paired, slicer

_HERE = Path(__file__).parent
_TWICE = ", twice the cases"


def compare(
    work: Path,
    *,
    n_cases: int,
    shape: tuple[int, int, int],
    workers: int,
    repeats: int,
    before: Callable[[], None],
) -> dict[str, Any]:
    """Return times of commands that do the same, run in turn, and their ratios.

    "Excluded" is start-up: then a figure is the difference between 2n and n cases, divided by n.
    Before every command, `before` is called.
    """
    few, many = ct(work, n_cases, shape), ct(work, 2 * n_cases, shape)
    output = work / "output"

    def ours(scans: Path, n_workers: int, *options: str) -> Callable[[], Measured]:
        command = slicer(scans, output, "--num_workers", n_workers, *options)
        return partial(measure, command, output)

    def script(name: str, scans: Path) -> Callable[[], Measured]:
        write_statistics(scans)
        command = [sys.executable, _HERE / name, scans, output, "--num_workers", workers]
        return partial(measure, [str(part) for part in command], output)

    zarr = ("--format", "zarr", "--dtype", "source")
    commands = {
        "ours": ours(few, workers),
        f"ours{_TWICE}": ours(many, workers),
        "zarr, source": ours(few, workers, *zarr),
        f"zarr, source{_TWICE}": ours(many, workers, *zarr),
        "limit": script("limit.py", few),
        f"limit{_TWICE}": script("limit.py", many),
        "uncompressed": script("usual_script_uncompressed.py", few),
        f"uncompressed{_TWICE}": script("usual_script_uncompressed.py", many),
        "one worker": ours(few, 1),
        f"one worker{_TWICE}": ours(many, 1),
    }
    results = paired(commands, repeats=repeats, before=before)
    # It takes minutes, and all of it is spent on cases: once, and its start-up counts as nothing.
    results |= paired({"usual": script("usual_script.py", few)}, repeats=1, before=before)
    return {
        "cases": n_cases,
        "shape": list(shape),
        "workers": workers,
        "repeats": repeats,
        "largest_difference": _largest_difference(few, work, workers),
        "ratios": _ratios(results, n_cases),
        "medians": {
            name: {
                figure: median(runs, figure) for figure in ("wall", "cpu", "written", "peak_rss")
            }
            for name, runs in results.items()
        },
    }


def _ratios(results: dict[str, list[Measured]], n: int) -> dict[str, float]:
    def of(name: str, figure: str) -> float:
        return median(results[name], figure)

    def a_case(name: str, figure: str) -> list[float]:
        """Return a figure for a case in every repeat, start-up excluded."""
        few = [getattr(run, figure) for run in results[name]]
        many = [getattr(run, figure) for run in results[f"{name}{_TWICE}"]]
        return [(more - less) / n for less, more in zip(few, many, strict=True)]

    def ratio(name: str, other: str, figure: str) -> float:
        """Return the median of the ratios of runs that were close in time."""
        pairs = zip(a_case(name, figure), a_case(other, figure), strict=True)
        return statistics.median(one / another for one, another in pairs)

    ours = statistics.median(a_case("ours", "cpu"))
    return {
        "usual / ours, wall, included": of("usual", "wall") / of("ours", "wall"),
        "usual / ours, CPU, included": of("usual", "cpu") / of("ours", "cpu"),
        "usual / ours, CPU, excluded": of("usual", "cpu") / n / ours,
        "uncompressed / ours, CPU, excluded": ratio("uncompressed", "ours", "cpu"),
        "uncompressed / ours, wall, excluded": ratio("uncompressed", "ours", "wall"),
        "uncompressed / ours, bytes": of("uncompressed", "written") / of("ours", "written"),
        "ours / limit, CPU, excluded": ratio("ours", "limit", "cpu"),
        "one worker / ours, wall, excluded": ratio("one worker", "ours", "wall"),
        "zarr, source / ours, CPU, excluded": ratio("zarr, source", "ours", "cpu"),
        "usual / zarr, source, CPU, excluded": of("usual", "cpu")
        / n
        / statistics.median(a_case("zarr, source", "cpu")),
        "ours / zarr, source, bytes": of("ours", "written") / of("zarr, source", "written"),
        "ours, CPU seconds a case, excluded": ours,
    }


def _largest_difference(scans: Path, work: Path, workers: int) -> float:
    """Return by how much images of the usual script differ from ours, over all slices."""
    outputs = {name: work / f"output_{name}" for name in ("ours", "usual")}
    found = [0.0]

    def compare_all() -> None:
        theirs = {path.name: path for path in outputs["usual"].rglob("*.npz")}
        ours = {path.name: path for path in outputs["ours"].rglob("*.npz")}
        if theirs.keys() != ours.keys():
            raise RuntimeError("the two wrote different slices")
        for name, path in ours.items():
            with np.load(path) as mine, np.load(theirs[name]) as other:
                if not np.array_equal(mine["label"], other["label"]):
                    raise RuntimeError(f"the labels of {name} differ")
                found.append(float(np.abs(mine["image"] - other["image"]).max()))

    script = [sys.executable, _HERE / "usual_script_uncompressed.py", scans, outputs["usual"]]
    measure(
        [str(part) for part in [*script, "--num_workers", workers]],
        outputs["usual"],
        look=lambda: measure(
            slicer(scans, outputs["ours"], "--num_workers", workers),
            outputs["ours"],
            look=compare_all,
        ),
    )
    return max(found)
