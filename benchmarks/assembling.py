"""Seconds and memory of assembling a volume of predictions, against nibabel writing the same file.

python benchmarks/assembling.py METHOD SLICES PREDICTIONS VOLUMES     one of them, once
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
from datasets import ct

import dask_slicer
from dask_slicer.execution.benchmark import peak_rss


def assembling(
    work: Path, *, shape: tuple[int, int, int], repeats: int, before: Callable[[], None]
) -> dict[str, Any]:
    """Return seconds and memory of each, in a process of its own, and ratios.

    They run in turn, A B C A B C …; the ratio is the median of those of a turn.

    Parameters
    ----------
    work : Path
    shape : tuple of int
        Columns, rows and slices of the CT.
    repeats : int
    before : callable
        Called before every turn.
    """
    slices, predictions = work / "assembling_slices", work / "assembling_predictions"
    # In a process of its own: a process that it starts would begin with its peak of memory.
    command = [sys.executable, __file__, "prepare", ct(work, 1, shape), slices, predictions]
    subprocess.run([*map(str, command)], check=True)
    turns = []
    for _ in range(repeats):
        before()
        turns.append({method: _measured(method, slices, predictions, work) for method in _METHODS})
        print(turns[-1], file=sys.stderr, flush=True)

    def median(figure: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(map(figure, turns))

    return {
        "shape": list(shape),
        "repeats": repeats,
        "seconds": {name: median(lambda turn, n=name: turn[n]["seconds"]) for name in _METHODS},
        "times_nibabel": {
            name: median(lambda turn, n=name: turn[n]["seconds"] / turn["nibabel"]["seconds"])
            for name in ("files", "writer")
        },
        "mb_of_the_volume": float(np.prod(shape) / 1e6),
        "mb_beside_start": {
            name: median(lambda turn, n=name: turn[n]["beside_mb"]) for name in ("files", "writer")
        },
    }


def _prepare(scans: Path, slices: Path, predictions: Path) -> None:
    for folder in (slices, predictions):
        shutil.rmtree(folder, ignore_errors=True)
    settings = {"format": "zarr", "dtype": "source", "window_size": 0, "num_workers": 0}
    dask_slicer.run(input_dir=scans, output_dir=slices, **settings, train_ratio=1.0, progress=False)
    predictions.mkdir()
    for sample in dask_slicer.SliceDataset(slices):
        name = f"{sample['case_id']}_{sample['slice_index']:04d}.npy"
        np.save(predictions / name, sample["label"].astype(np.uint8))


def _measured(method: str, slices: Path, predictions: Path, work: Path) -> dict[str, float]:
    volumes = work / "assembling_volumes"
    shutil.rmtree(volumes, ignore_errors=True)
    command = [sys.executable, __file__, method, *map(str, (slices, predictions, volumes))]
    shown = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(shown.stdout))


def _files(slices: Path, predictions: Path, volumes: Path) -> Callable[[], None]:
    function = dask_slicer.assemble  # imported now

    def assemble() -> None:
        report = function(slices, predictions, volumes, num_workers=0)
        if report.failures or not report.n_written:
            raise RuntimeError(report)

    return assemble


def _writer(slices: Path, predictions: Path, volumes: Path) -> Callable[[], None]:
    paths = sorted(predictions.iterdir())
    labels = np.stack([np.load(path) for path in paths])
    ids = [path.stem.rpartition("_")[0] for path in paths]

    writer_of = dask_slicer.VolumeWriter  # imported now

    def write() -> None:
        with writer_of(slices, volumes) as writer:
            for start in range(0, len(paths), _BATCH):
                batch = slice(start, start + _BATCH)
                indices = range(start, min(start + _BATCH, len(paths)))
                writer.add(ids[batch], indices, labels[batch])

    return write


def _nibabel(slices: Path, predictions: Path, volumes: Path) -> Callable[[], None]:
    volumes.mkdir()
    stack = np.stack([np.load(path) for path in sorted(predictions.iterdir())])
    volume = np.asfortranarray(stack.T)
    return lambda: nib.save(nib.Nifti1Image(volume, np.eye(4)), volumes / "volume.nii.gz")


_BATCH = 16
_METHODS = {"files": _files, "writer": _writer, "nibabel": _nibabel}


def main() -> None:
    """Write the volume once, and print what it took."""
    method, *places = sys.argv[1:]
    if method == "prepare":
        _prepare(*map(Path, places))
        return
    write = _METHODS[method](*map(Path, places))
    process = psutil.Process()
    resident = process.memory_info().rss
    started = time.perf_counter()
    write()
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "beside_mb": (peak_rss(process) - resident) / 1e6}))


if __name__ == "__main__":
    main()
