"""What a worker holds in memory, and how soon the first case starts."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import ct
from measure import measure, slicer


def memory(work: Path, *, shape: tuple[int, int], depths: Sequence[int]) -> dict[str, Any]:
    """Return the peak memory of a worker against what the volume itself takes, by depth."""
    found = []
    for depth in depths:
        scans = ct(work, 1, (*shape, depth))
        run = measure(slicer(scans, work / "output", "--num_workers", 1), work / "output")
        voxels = shape[0] * shape[1] * depth
        found.append(
            {
                "depth": depth,
                "peak_rss_mb": run.peak_rss / 1e6,
                # int16 image and uint8 label, inflated; one float32 volume.
                "inflated_mb": 3 * voxels / 1e6,
                "float32_volume_mb": 4 * voxels / 1e6,
                "allowed_mb": 7 * voxels / 1e6 + 200,
            }
        )
    return {"shape": list(shape), "runs": found}


def startup(
    work: Path,
    *,
    shape: tuple[int, int, int],
    workers: int,
    repeats: int,
    before: Callable[[], None],
) -> dict[str, Any]:
    """Return seconds until the first case is taken up, and until help is printed."""
    scans, output = ct(work, 2 * workers, shape, distinct=2), work / "output"
    first, help_ = [], []
    for _ in range(repeats):
        before()
        first.append(_first_case(slicer(scans, output, "--num_workers", workers), output))
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "dask_slicer", "--help"], check=True, capture_output=True
        )
        help_.append(time.perf_counter() - started)
    return {
        "workers": workers,
        "repeats": repeats,
        "first_case_seconds": statistics.median(first),
        "help_seconds": statistics.median(help_),
    }


def _first_case(command: list[str], output: Path) -> float:
    """Return when a first case was begun: when its first file was written, less what came before.

    "First" is the one that was done first: it was among the first to be begun.
    """
    found: list[float] = []
    journal = output / "journal.jsonl"

    def look() -> None:
        record = json.loads(journal.read_text(encoding="utf-8").splitlines()[0])
        found.append(record["seconds"]["load"] + record["seconds"]["slice"])
        slices = sorted(output.glob(f"*/{record['case_id']}_*.npz"))
        found.append(slices[0].stat().st_mtime)

    run = measure(command, output, look=look)
    computing, first_file = found
    return first_file - computing - run.began
