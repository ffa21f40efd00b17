"""Compare dask_slicer with the usual script and with the least that has to be done, in one run.

    python benchmarks/compare.py --work /tmp/benchmark --repeats 3 --json results.json

Figures are ratios of medians of runs in turn, on one machine. "Start-up excluded" is the difference
between 2n and n cases, divided by n.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
from measure import Measured, measure, median, paired

from dask_slicer.phantom import write_dataset

_HERE = Path(__file__).parent
# Noise with which CT of a patient deflates: about 2.3 : 1.
_NOISE_HU = 11.0


def main() -> None:
    """Write the phantoms, run everything in turn, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="scratch folder")
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 40))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    few = _dataset(options.work, options.cases, tuple(options.shape))
    many = _dataset(options.work, 2 * options.cases, tuple(options.shape))
    output = options.work / "output"

    def ours(scans: Path, workers: int = options.workers) -> Callable[[], Measured]:
        command = [
            sys.executable, "-m", "dask_slicer", "run", "--input_dir", str(scans),
            "--output_dir", str(output), "--num_workers", str(workers), "--quiet",
        ]  # fmt: skip
        return partial(measure, command, output)

    def script(name: str, scans: Path) -> Callable[[], Measured]:
        command = [
            sys.executable, str(_HERE / name), str(scans), str(output),
            "--num_workers", str(options.workers),
        ]  # fmt: skip
        return partial(measure, command, output)

    commands = {
        "ours": ours(few),
        "ours, twice the cases": ours(many),
        "limit": script("limit.py", few),
        "limit, twice the cases": script("limit.py", many),
        "uncompressed": script("usual_script_uncompressed.py", few),
        "ours, 1 worker": ours(few, 1),
        "ours, 1 worker, twice the cases": ours(many, 1),
    }
    results = paired(commands, repeats=options.repeats)
    # It takes minutes, and its start-up is nothing beside them: fewer repeats, and only n cases.
    results |= paired({"usual": script("usual_script.py", few)}, repeats=1)
    summary = _summary(results, options.cases, options.workers)
    for name, value in summary.items():
        print(f"{name:60s} {value:8.2f}")
    if options.json:
        described = {
            "machine": {
                "cores": psutil.cpu_count(),
                "memory_gb": round(psutil.virtual_memory().total / 1e9),
            },
            "cases": options.cases,
            "shape": list(options.shape),
            "workers": options.workers,
            "repeats": options.repeats,
            "summary": summary,
            "runs": {
                name: [[r.wall, r.cpu, r.written, r.peak_rss] for r in runs]
                for name, runs in results.items()
            },
        }
        options.json.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def _dataset(work: Path, n_cases: int, shape: tuple[int, int, int]) -> Path:
    folder = work / f"scans_{n_cases}_{'x'.join(map(str, shape))}"
    if not folder.exists():
        unfinished = folder.with_suffix(".unfinished")
        write_dataset(
            unfinished, n_cases=n_cases, shape=shape, spacing=(0.8, 0.8, 5.0), noise=_NOISE_HU,
            varied=False,
        )  # fmt: skip
        unfinished.rename(folder)
    return folder


def _summary(results: dict[str, list[Measured]], n: int, workers: int) -> dict[str, float]:
    def of(name: str, figure: str) -> float:
        return median(results[name], figure)

    def per_case(name: str, figure: str) -> float:
        return (of(f"{name}, twice the cases", figure) - of(name, figure)) / n

    one_worker = "ours, 1 worker"
    return {
        "usual / ours, wall, start-up included": of("usual", "wall") / of("ours", "wall"),
        "usual / ours, CPU, start-up included": of("usual", "cpu") / of("ours", "cpu"),
        "usual / ours, CPU per case, start-up excluded": of("usual", "cpu") / n
        / per_case("ours", "cpu"),
        "uncompressed / ours, CPU, start-up included": of("uncompressed", "cpu")
        / of("ours", "cpu"),
        "uncompressed / ours, CPU per case, start-up excluded": of("uncompressed", "cpu") / n
        / per_case("ours", "cpu"),
        "uncompressed / ours, bytes": of("uncompressed", "written") / of("ours", "written"),
        "ours / limit, CPU per case, start-up excluded": per_case("ours", "cpu")
        / per_case("limit", "cpu"),
        f"1 worker / {workers} workers, wall, start-up excluded": per_case(one_worker, "wall")
        / per_case("ours", "wall"),
        "ours, CPU seconds per case, start-up excluded": per_case("ours", "cpu"),
        "limit, CPU seconds per case, start-up excluded": per_case("limit", "cpu"),
        "ours, peak RSS of the largest process, MB": of("ours", "peak_rss") / 1e6,
    }  # fmt: skip


if __name__ == "__main__":
    main()
