"""Time and memory of each command by the number of cases, which are next to nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import ct
from measure import measure, slicer

_SHAPE = (8, 8, 2)
_COMMAND = [sys.executable, "-m", "dask_slicer"]


def cases(work: Path, *, counts: Sequence[int], workers: int) -> dict[str, Any]:
    """Return seconds, CPU time of all processes, and memory of the command's own, by phase.

    The cache of headers starts empty for each number of cases. Memory is that of the client, with
    the scheduler, which runs in the same process.
    """
    found: dict[str, Any] = {}
    for count in counts:
        scans, output = ct(work, count, _SHAPE, distinct=1), work / "cases"
        os.environ["DASK_SLICER_CACHE_DIR"] = str(work / f"cache_{count}")
        plan = [*_COMMAND, "plan", "--quiet", "--input_dir", str(scans)]
        run = slicer(scans, output, "--num_workers", workers)
        commands = {
            "plan": [*plan, "--output_dir", str(output)],
            "plan again": [*plan, "--output_dir", str(output)],
            "run": run,
            "run again": run,
            "verify": [*_COMMAND, "verify", str(output), "--num_workers", str(workers)],
            "merge": [*_COMMAND, "merge", str(output)],
            "report": [*_COMMAND, "report", str(output)],
        }
        found[str(count)] = {}
        for name, command in commands.items():
            # Only what a run writes is there for the commands after it.
            place = output if name == "run" else work / "nothing"
            done = measure(command, place, keep=True)
            figures = {"s": done.wall, "cpu_s": done.cpu, "own_rss_mb": done.own_peak_rss / 1e6}
            found[str(count)][name] = {key: round(value, 2) for key, value in figures.items()}
            print(count, name, found[str(count)][name], file=sys.stderr, flush=True)
    os.environ["DASK_SLICER_CACHE_DIR"] = "none"
    return {"workers": workers, "shape": list(_SHAPE), "phases": found}
