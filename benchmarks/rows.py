"""Time and memory of what reads and writes the index of an output of millions of slices.

    python benchmarks/rows.py OUTPUT_DIR STEP     one step, in this process

The output has journal and index, and no slices: lines of the journal are like that of a real case.
"""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from datasets import ct
from measure import peak_rss

import dask_slicer
from dask_slicer.core.splits import by_split
from dask_slicer.output.checks import check_whole
from dask_slicer.output.directory import existing_splits, output_config, splits_text, write_lines
from dask_slicer.output.journal import Journal, last_records
from dask_slicer.output.layout import INDEX, INDEX_COLUMNS, JOURNAL, SPLITS_FILE
from dask_slicer.output.split import split_output
from dask_slicer.output.summary import finalize
from dask_slicer.records import CommittedCase, WrittenSlice
from dask_slicer.report.html_report import write_report

# Of ten cases.
_SPLITS = (*("train",) * 7, *("val",) * 2, "test")
_FEWER = 100


def rows(work: Path, *, n_cases: int, n_slices: int) -> dict[str, Any]:
    """Return seconds and memory of each step, also of a hundredth of the cases.

    Parameters
    ----------
    work : Path
    n_cases : int
    n_slices : int
        Of a case.
    """
    found: dict[str, Any] = {}
    outputs = [_output(work, n, n_slices) for n in (n_cases // _FEWER, n_cases)]
    for step in STEPS:
        few, many = (_measured(output, step) for output in outputs)
        found[step] = many | {"peak_mb_of_few": few["peak_mb"]}
        print(step, found[step], file=sys.stderr, flush=True)
    files = [outputs[1] / name for name in (INDEX, INDEX_COLUMNS, JOURNAL)]
    # Of few slices, there is no file with columns.
    sizes = {path.name: path.stat().st_size / 1e6 if path.exists() else 0.0 for path in files}
    return {"cases": n_cases, "slices": n_cases * n_slices, "fewer": _FEWER} | {
        "mb": sizes,
        "steps": found,
    }


def _output(work: Path, n_cases: int, n_slices: int) -> Path:
    """Return an output of many cases, without their slices."""
    output = work / f"rows_{n_cases}"
    config = dask_slicer.RunConfig(
        input_dir=ct(work, 1, (16, 16, 8)), output_dir=output, num_workers=0, overwrite=True
    )
    dask_slicer.run(config, progress=False)
    (first,) = _committed(output)
    (output / JOURNAL).unlink()
    rng = random.Random(0)  # noqa: S311  # no secret
    splits = {}
    with Journal(output / JOURNAL) as journal:
        for number in range(n_cases):
            case_id = f"case_{number:06d}"
            splits[case_id] = _SPLITS[number % len(_SPLITS)]
            slices = tuple(
                WrittenSlice(index, rng.randrange(2000, 9000), rng.randrange(1 << 32), labels)
                for index, labels in enumerate(_labels(rng, number, n_slices))
            )
            own = {"case_id": case_id, "split": splits[case_id], "slices": slices, "group": ""}
            journal.append(replace(first, shape=(1, n_slices, 16, 16), **own))
    text = splits_text(by_split(splits))
    write_lines(output, SPLITS_FILE, [text])
    return output


def _labels(rng: random.Random, number: int, n_slices: int) -> Iterator[dict[int, int]]:
    """Yield the labels of each slice: an organ in most, a lesion in some of every other case."""
    for index in range(n_slices):
        labels = {}
        if 0.2 < index / n_slices < 0.8:
            labels[1] = rng.randrange(1, 200)
        if number % 2 and 0.4 < index / n_slices < 0.6:
            labels[2] = rng.randrange(1, 20)
        yield labels


def _committed(output: Path) -> list[CommittedCase]:
    records = last_records(output / JOURNAL)
    return [record for record in records if isinstance(record, CommittedCase)]


def _measured(output: Path, step: str) -> dict[str, Any]:
    command = [sys.executable, __file__, str(output), step]
    shown = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(shown.stdout.splitlines()[-1])


# -- steps, each in a process of its own -----------------------------------------------------------

Run = Callable[[], Any]


def _finalize(output: Path) -> Run:
    config = output_config(output)
    planned = set(existing_splits(output))
    return lambda: finalize(
        config,
        [],
        planned=planned,
        n_modalities=1,
        names=None,
        elapsed_seconds=1,
        slices_this_run=0,
        is_complete=True,
    )


def _without_columns(output: Path) -> Run:
    path = output / INDEX_COLUMNS
    kept = path.with_suffix(".kept")

    def run() -> None:
        if path.exists():
            path.rename(kept)
        try:
            dask_slicer.SliceDataset(output, None)
        finally:
            if kept.exists():
                kept.rename(path)

    return run


def _of_cases(output: Path) -> Run:
    cases = dask_slicer.open_output(output).splits["train"][:100]
    return lambda: dask_slicer.SliceDataset(output, cases=cases)


def _opened(output: Path, use: Callable[[dask_slicer.SliceDataset], Any]) -> Run:
    dataset = dask_slicer.SliceDataset(output, None)
    return lambda: use(dataset)


def _verify(output: Path) -> Run:
    config, records = output_config(output), last_records(output / JOURNAL)
    return lambda: check_whole(output, config, records)


STEPS: dict[str, Callable[[Path], Run]] = {
    "write": _finalize,
    "open": lambda output: lambda: dask_slicer.SliceDataset(output, None),
    "open train": lambda output: lambda: dask_slicer.SliceDataset(output),
    "open labels": lambda output: lambda: dask_slicer.SliceDataset(output, labels=[2]),
    "open foreground": lambda output: lambda: dask_slicer.SliceDataset(output, min_foreground=0.2),
    "open cases": _of_cases,
    "open without columns": _without_columns,
    "weights": lambda output: _opened(output, lambda dataset: dataset.weights(0.5)),
    "weights of labels": lambda output: _opened(
        output, lambda dataset: dataset.weights(0.5, labels=[2])
    ),
    "balanced weights": lambda output: _opened(
        output, lambda dataset: dataset.weights(balanced=True)
    ),
    "pickle": lambda output: _opened(output, lambda dataset: pickle.dumps(dataset, 5)),
    "shuffle": lambda output: _opened(
        output, lambda dataset: iter(dataset.loader(8, threads=0, shuffle=True))
    ),
    "split": lambda output: lambda: split_output(output, folds=5, stratify="label"),
    "report": lambda output: (
        lambda: write_report(output, output.with_suffix(".html"), say=lambda _: None)
    ),
    "verify": _verify,
}


def main() -> None:
    """Run one step; print seconds and memory as JSON."""
    output, step = Path(sys.argv[1]), sys.argv[2]
    warnings.simplefilter("ignore")  # of slices that are not there
    run = STEPS[step](output)
    began, cpu = time.perf_counter(), time.process_time()
    result = run()
    found = {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": peak_rss(psutil.Process()) / 1e6,
    }
    if isinstance(result, bytes):
        found["mb_pickled"] = len(result) / 1e6
    print(json.dumps(found))


if __name__ == "__main__":
    main()
