"""The benchmark command: tables, results.json, loader.json and speed-up plot."""

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
from dask_slicer.training import loader_advice, loader_benchmark
from dask_slicer.utils import system
from dask_slicer.utils.files import is_same_folder
from dask_slicer.utils.formatting import first_few, format_bytes, format_shape, plural

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
# A fourth of the memory for decoded planes, at most.
_SHARE_OF_CACHE = 4
RESULTS, PLOT, LOADER = "results.json", "speedup.png", "loader.json"
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
_LOADER_COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("windows/s", "windows_per_second", "{:.0f}".format),
    ("speed-up", "speedup", "{:.2f}".format),
    ("CPUs", "cpus", "{:.1f}".format),
    ("MB/s", "megabytes_per_second", "{:.0f}".format),
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
    n_cpus, machine = _machine(say)
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
        "machine": machine,
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


def _machine(say: Callable[[RenderableType], None]) -> tuple[int, dict[str, Any]]:
    """Return the number of CPUs, and what the results say of the machine; note if it is busy."""
    n_cpus, in_use = system.cpu_count(), system.cpu_share_in_use()
    if in_use > _MOST_IN_USE:
        load = psutil.getloadavg()[0]
        say(
            f"Note: other programs use {in_use:.0%} of the CPUs (load average {load:.1f}); times "
            "will vary, measure again when the machine is idle"
        )
    return n_cpus, {
        "cpus": n_cpus,
        "memory_bytes": system.memory_bytes(),
        "cpu_share_in_use_before": round(in_use, 3),
    }


def run_loader_benchmark(
    output_dir: Path,
    *,
    folder: Path,
    numbers: Sequence[int] | None,
    window_size: int | None,
    plane: str | None,
    batch_size: int,
    repeats: int,
    seconds: float,
    say: Callable[[RenderableType], None],
) -> loader_advice.Advice:
    """Read slices of an output with several loaders; print the results, and save them in a folder.

    It gets `LOADER`.
    """
    if is_same_folder(folder, output_dir):
        raise UsageError("--output_dir is where results are written; name another than of --loader")
    workload = loader_benchmark.choose_slices(output_dir, window_size=window_size, plane=plane)
    n_cpus, machine = _machine(say)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = benchmark.default_workers(n_cpus) if numbers is None else numbers
    device = loader_benchmark.torch_device()
    ways = loader_benchmark.ways_to_read(
        *(workload, numbers),
        has_torch=device is not None,
        device=device or "cpu",
        cache=machine["memory_bytes"] // _SHARE_OF_CACHE,
    )
    n, size = len(workload.rows), format_shape(workload.shape)
    slices = f"{plural(n, 'slice')} of {size} (channels, rows, columns)"
    if workload.n_other:
        say(
            f"Note: slices have {workload.n_sizes} sizes, but a batch needs one. Only the {slices} "
            "are read; for training, make slices with --size, or choose `cases` or `plane`"
        )
    if device is None:
        say("Note: DataLoader is not measured without torch")
    say(f"Measuring {plural(len(ways), 'way')} to read, {seconds:g} s each")
    first, read = loader_benchmark.first_pass(
        workload, batch_size=batch_size, threads=max(numbers), seconds=seconds
    )
    passes = [first]
    passes += loader_benchmark.sweep(
        *(workload, read, ways),
        batch_size=batch_size,
        repeats=repeats,
        seconds=seconds,
        note=lambda text: say(f"Note: {text}"),
    )
    table = loader_advice.rows(passes)
    advice = loader_advice.recommend(
        *(table, workload),
        batch_size=batch_size,
        n_cpus=n_cpus,
        memory_bytes=machine["memory_bytes"],
    )
    results = {
        "machine": machine,
        "output_dir": str(workload.output_dir),
        "slices": n,
        "shape": workload.shape,
        "batch_size": batch_size,
        "passes": [asdict(reading) for reading in passes],
        "rows": [asdict(row) for row in table],
    } | asdict(advice)
    (folder / LOADER).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    say(f"{slices}, batches of {batch_size}, {plural(n_cpus, 'CPU')}, medians of {repeats}")
    numbers_of = [heading for heading, _, _ in _LOADER_COLUMNS]
    numbers_of.insert(1, "from - to")
    cells = []
    for row in table:
        line = [show(getattr(row, field)) for _, field, show in _LOADER_COLUMNS]
        line.insert(1, f"{row.slowest:.0f} - {row.fastest:.0f}")
        pass_words = ", first pass" if row.is_first else ""
        cells.append([row.way.output, f"{row.way}{pass_words}", *line])
    say(plain_table(["output", "read by", *numbers_of], cells, right=numbers_of))
    for remark in advice.remarks:
        say(remark)
    say(f"Results: {folder / LOADER}")
    return advice


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
