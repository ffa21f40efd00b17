"""Measure everything, and write down what was found.

    python -m pip install ".[benchmarks]"
    python benchmarks/run.py --work /tmp/benchmarks           all of it: an hour
    python benchmarks/run.py --work /tmp/benchmarks compare   one part
    python benchmarks/run.py --work /tmp/benchmarks --quick   every part in small, to see it work

Results go to benchmarks/results/; `report` makes docs/performance.md and its plot of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from assembling import assembling
from cases import cases
from compare import compare
from compressors import compressors
from formats import formats
from loaders import loaders
from many_workers import many_workers
from measure import settle
from overhead import overhead
from pages import pages
from png import png
from report import write_report
from resampling import resampling
from resources import memory, startup
from rows import rows

from dask_slicer.utils import system

_HERE = Path(__file__).parent
_CT = (512, 512, 40)


def _scaling(work: Path, *, n_cases: int, shape: tuple[int, int, int], repeats: int) -> Any:
    """Return what `dask-slicer benchmark` finds over all CPUs of the machine."""
    from datasets import ct

    folder = work / "scaling"
    command = [
        sys.executable, "-m", "dask_slicer", "benchmark", "--input_dir", ct(work, n_cases, shape),
        "--output_dir", folder, "--repeats", repeats, "--cases", n_cases,
    ]  # fmt: skip
    subprocess.run([str(part) for part in command], check=True)
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return {
        name: found[name] for name in ("cases", "slices", "rows", "num_workers", "bottleneck")
    } | {
        "shape": list(shape),
        "repeats": repeats,
    }


def _as_it_is() -> None:
    """Leave the machine alone: what is measured in small, to see it work, nobody reads."""


def parts(
    work: Path, *, quick: bool, scans: Path | None = None, before: Path | None = None
) -> dict[str, Callable[[], Any]]:
    """Return what can be measured, by name; `scans` and `before` are for the loaders."""
    of_loaders = {"scans": scans, "before": before}
    settled = partial(settle, work)
    if quick:
        shape = (64, 64, 8)
        return {
            "compare": lambda: compare(
                work, n_cases=2, shape=shape, workers=2, repeats=1, before=_as_it_is
            ),
            "overhead": lambda: overhead(
                work, counts=(10, 20, 40), workers=2, repeats=1, before=_as_it_is
            ),
            "cases": lambda: cases(work, counts=(10, 20), workers=2),
            "memory": lambda: memory(work, shape=(64, 64), depths=(8, 16)),
            "startup": lambda: startup(work, shape=shape, workers=2, repeats=1, before=_as_it_is),
            "scaling": lambda: _scaling(work, n_cases=4, shape=shape, repeats=1),
            "formats": lambda: formats(
                work, n_cases=2, shape=shape, workers=2, repeats=1, n_windows=8, before=_as_it_is
            ),
            "compressors": lambda: compressors(work, shape=shape, repeats=1),
            "pages": lambda: pages(work, n_cases=4, n_slices=10, repeats=1),
            "rows": lambda: rows(work, n_cases=2000, n_slices=10),
            "resampling": lambda: resampling(work, shape=(8, 64, 64), repeats=1, before=_as_it_is),
            "assembling": lambda: assembling(work, shape=shape, repeats=1, before=_as_it_is),
            "png": lambda: png(work, shape=shape, repeats=1, before=_as_it_is),
            "loaders": lambda: loaders(
                work, n_cases=2, shape=shape, n_batches=2, repeats=1, pool=8, **of_loaders
            ),
            "many_workers": lambda: many_workers(
                work, counts=(2, 4), lengths=(0.1,), seconds=1, repeats=1, before=_as_it_is
            ),
        }
    return {
        "compare": lambda: compare(
            work, n_cases=16, shape=_CT, workers=2, repeats=5, before=settled
        ),
        "overhead": lambda: overhead(
            work, counts=(1000, 5000, 20000), workers=2, repeats=3, before=settled
        ),
        "cases": lambda: cases(work, counts=(1000, 5000, 20_000, 100_000), workers=2),
        "memory": lambda: memory(work, shape=(512, 512), depths=(40, 100, 275)),
        "startup": lambda: startup(work, shape=_CT, workers=4, repeats=5, before=settled),
        "scaling": lambda: _scaling(work, n_cases=32, shape=_CT, repeats=3),
        "formats": lambda: formats(
            work, n_cases=16, shape=_CT, workers=2, repeats=3, n_windows=400, before=settled
        ),
        "compressors": lambda: compressors(work, shape=_CT, repeats=5),
        "pages": lambda: pages(work, n_cases=500, n_slices=200, repeats=3),
        "rows": lambda: rows(work, n_cases=100_000, n_slices=100),
        "resampling": lambda: resampling(work, shape=(100, 512, 512), repeats=5, before=_as_it_is),
        "assembling": lambda: assembling(work, shape=(512, 512, 1000), repeats=3, before=_as_it_is),
        "png": lambda: png(work, shape=_CT, repeats=9, before=_as_it_is),
        "loaders": lambda: loaders(
            work, n_cases=8, shape=(512, 512, 100), n_batches=12, repeats=7, pool=256, **of_loaders
        ),
        "many_workers": lambda: many_workers(
            work,
            counts=(16, 32, 64, 128),
            lengths=(0.25, 0.5, 1, 2, 4),
            seconds=5,
            repeats=2,
            before=_as_it_is,
        ),
    }


def main() -> None:
    """Measure the parts asked for, then write the report of all that are there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*parts(Path(), quick=False), "report"]
    parser.add_argument("part", nargs="*", choices=[*names, []], help="all where none is given")
    parser.add_argument(
        "--work", type=Path, required=True, help="scratch folder, on the disk to be measured"
    )
    parser.add_argument("--results", type=Path, default=_HERE / "results")
    parser.add_argument("--scans", type=Path, help="a dataset that `loaders` reads, too")
    parser.add_argument(
        "--before", type=Path, help="a wheel, or a folder to import from, that `loaders` compares"
    )
    parser.add_argument("--quick", action="store_true", help="in small; reports nothing")
    options = parser.parse_args()
    # Each run reads its headers, as the first run of a dataset does.
    os.environ["DASK_SLICER_CACHE_DIR"] = "none"
    results = options.work / "quick" if options.quick else options.results
    results.mkdir(parents=True, exist_ok=True)
    this_machine = {
        "cores": system.cpu_count(),
        "memory_gb": round(system.memory_bytes() / 1e9),
    }
    of_loaders = {"scans": options.scans, "before": options.before}
    for name, run in parts(options.work, quick=options.quick, **of_loaders).items():
        if options.part and name not in options.part:
            continue
        found = {"machine": this_machine, **run()}
        (results / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(found, indent=2))
    if not options.quick:
        write_report(options.results, _HERE.parent)


if __name__ == "__main__":
    main()
