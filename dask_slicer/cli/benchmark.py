"""The benchmark command: table, results.json and speed-up plot."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
from rich.console import RenderableType

from dask_slicer.config.schema import RunConfig
from dask_slicer.errors import UsageError
from dask_slicer.execution import benchmark
from dask_slicer.inputs.phantom import ensure_dataset
from dask_slicer.monitoring.terminal import plain_table
from dask_slicer.utils import system
from dask_slicer.utils.formatting import first_few, format_bytes, plural

PHANTOMS = "phantoms"
# Like abdominal CT, whose noise lets it be deflated about 2.3 : 1.
_LIKE_CT: dict[str, Any] = {
    "shape": (256, 256, 64),
    "spacing": (1.6, 1.6, 4.0),
    "noise": 11.0,
    "varied": False,
}
_FEWEST_CASES, _CASES_PER_WORKER = 16, 4
# Of all CPUs before the first run: more than this disturbs the times.
_MOST_IN_USE = 0.2
RESULTS, PLOT = "results.json", "speedup.png"
# Of each column of the table: its heading, the field of a row, and how that is shown.
_COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("workers", "n_workers", str),
    ("seconds", "seconds", "{:.2f}".format),
    ("speed-up", "speedup", "{:.2f}".format),
    ("efficiency", "efficiency", "{:.0%}".format),
    ("slices/s", "slices_per_second", "{:.0f}".format),
    ("MB/s in", "megabytes_in_per_second", "{:.1f}".format),
    ("MB/s out", "megabytes_out_per_second", "{:.1f}".format),
    ("peak RSS", "peak_rss", format_bytes),
)


def run_benchmark(
    config: RunConfig,
    *,
    workers: Sequence[int] | None,
    repeats: int,
    n_cases: int | None,
    say: Callable[[RenderableType], None],
) -> benchmark.Recommendation:
    """Run some cases of a dataset with several numbers of workers; print and save the results.

    The output directory gets `RESULTS`, `PLOT`, and made-up scans if `PHANTOMS` in it is the input.
    """
    if config.scheduler is not None or config.scheduler_file is not None:
        raise UsageError("benchmark starts workers of its own; leave out --scheduler")
    if config.cluster is not None:
        raise UsageError("benchmark starts workers on this machine; leave out --cluster")
    n_cpus = system.cpu_count()
    in_use = system.cpu_share_in_use()
    if in_use > _MOST_IN_USE:
        load = psutil.getloadavg()[0]
        say(
            f"Note: other programs use {in_use:.0%} of the CPUs (load average {load:.1f}); times "
            "will vary, measure again when the machine is idle"
        )
    numbers = benchmark.default_workers(n_cpus) if workers is None else workers
    # Fewer would say little: with a case each, all but one worker wait for the slowest.
    n_cases = n_cases or max(_FEWEST_CASES, _CASES_PER_WORKER * max(numbers))
    folder = config.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    if config.input_dir == folder / PHANTOMS:
        say(f"Phantoms: made-up CTs in {config.input_dir}")
        ensure_dataset(config.input_dir, n_cases=min(n_cases, 64), **_LIKE_CT)
    config, files = benchmark.choose_cases(config, n_cases=n_cases)
    too_many = [str(n) for n in numbers if n > len(config.only)]
    if too_many:
        say(f"Note: {plural(len(config.only), 'case')}, too few for {first_few(too_many)} workers")
    tried = [n for n in numbers if n <= len(config.only)] or [1]
    runs = []
    for run in benchmark.sweep(config, files, workers=tried, repeats=repeats):
        say(f"{plural(run.n_workers, 'worker')}: {run.seconds:.2f} s")
        runs.append(run)
    table = benchmark.rows(runs, n_cpus=n_cpus)
    recommendation = benchmark.recommend(table, n_cpus=n_cpus)
    first = runs[0]  # all have the same cases
    results = {
        "machine": {
            "cpus": n_cpus,
            "memory_bytes": system.memory_bytes(),
            "cpu_share_in_use_before": round(in_use, 3),
        },
        "config": config.model_dump(mode="json", exclude={"num_workers", "output_dir"}),
        "cases": first.n_cases,
        "slices": first.n_slices,
        "bytes_in": first.bytes_in,
        "bytes_out": first.bytes_out,
        "runs": [asdict(run) for run in runs],
        "rows": [asdict(row) for row in table],
    } | asdict(recommendation)
    (folder / RESULTS).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    cases, slices = plural(first.n_cases, "case"), plural(first.n_slices, "slice")
    title = f"{cases}, {slices}, {plural(n_cpus, 'CPU')}"
    say(f"{title}, medians of {repeats}; start-up excluded")
    cells = [[show(getattr(row, field)) for _, field, show in _COLUMNS] for row in table]
    headings = [heading for heading, _, _ in _COLUMNS]
    if repeats > 1:
        headings.insert(2, "from - to")
        for row, line in zip(table, cells, strict=True):
            line.insert(2, f"{row.fastest:.2f} - {row.slowest:.2f}")
    say(plain_table(headings, cells, right=headings))
    say(f"Results: {folder / RESULTS}")
    if find_spec("matplotlib") is None:
        say("Note: no plot without matplotlib; pip install 'dask_slicer[plot]'")
    else:
        _write_plot(table, folder / PLOT, title=title)
        say(f"Plot: {folder / PLOT}")
    if repeats == 1:
        say("Note: one run with each number of workers does not show how much times vary")
    return recommendation


def _write_plot(table: Sequence[benchmark.Row], path: Path, *, title: str) -> None:
    """Draw the speed-up against the number of workers, beside the ideal, as a PNG."""
    from matplotlib.figure import Figure

    shown = [row for row in table if row.n_workers > 0] or list(table)
    workers = [max(row.n_workers, 1) for row in shown]
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    base = shown[0].speedup / workers[0]
    axes.plot(workers, [base * n for n in workers], "--", color="0.6", label="ideal")
    axes.plot(workers, [row.speedup for row in shown], "o-", color="tab:blue", label="measured")
    for n, row in zip(workers, shown, strict=True):
        axes.annotate(
            f"{row.slices_per_second:.0f} slices/s", (n, row.speedup), xytext=(6, -12),
            textcoords="offset points", fontsize=8,
        )  # fmt: skip
    axes.set(xlabel="workers", ylabel="speed-up, start-up excluded", title=title, xticks=workers)
    axes.margins(x=0.18)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=120)
