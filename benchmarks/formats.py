"""npz against Zarr: bytes on disk, CPU time of writing, and how fast random windows are read."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from datasets import ct
from measure import Measured, measure, paired, slicer

from dask_slicer import SliceDataset

_TWICE = ", twice the cases"
_EPOCHS = 5
_FORMATS = {
    "npz": ("npz", "float32"),
    "zarr, float32": ("zarr", "float32"),
    "zarr, float16": ("zarr", "float16"),
    "zarr, source": ("zarr", "source"),
}


def formats(
    work: Path,
    *,
    n_cases: int,
    shape: tuple[int, int, int],
    workers: int,
    repeats: int,
    n_windows: int,
    before: Callable[[], None],
) -> dict[str, Any]:
    """Return bytes, CPU seconds of writing and milliseconds of reading, by format.

    Parameters
    ----------
    work : Path
    n_cases, shape, workers, repeats
        Of what is written; the time of a case is the difference between 2n and n cases.
    n_windows : int
        Windows read at random, in this process.
    before : callable
        Called before every command.
    """
    few, many = ct(work, n_cases, shape), ct(work, 2 * n_cases, shape)
    output = work / "output"
    commands: dict[str, Callable[[], Measured]] = {}
    for name, (format_, dtype) in _FORMATS.items():
        options = ("--num_workers", workers, "--format", format_, "--dtype", dtype)
        for scans, suffix in ((few, ""), (many, _TWICE)):
            command = slicer(scans, output, *options)
            commands[name + suffix] = partial(measure, command, output)
    results = paired(commands, repeats=repeats, before=before)

    def cpu_a_case(name: str) -> float:
        pairs = zip(results[name], results[name + _TWICE], strict=True)
        return float(np.median([(more.cpu - less.cpu) / n_cases for less, more in pairs]))

    return {
        "cases": n_cases,
        "shape": list(shape),
        "workers": workers,
        "repeats": repeats,
        "bytes_a_case": {name: results[name][0].written / n_cases for name in _FORMATS},
        "cpu_seconds_a_case": {name: cpu_a_case(name) for name in _FORMATS},
    } | _reading(work, few, n_windows)


def _reading(work: Path, scans: Path, n_windows: int) -> dict[str, Any]:
    """Return milliseconds a sample, by what is read, taken in turn."""
    outputs = {name: work / f"read_{number}" for number, name in enumerate(_FORMATS)}
    for name, (format_, dtype) in _FORMATS.items():
        shutil.rmtree(outputs[name], ignore_errors=True)
        options = ("--format", format_, "--dtype", dtype, "--train_ratio", 1)
        measure(slicer(scans, outputs[name], *options), outputs[name], keep=True)
    datasets = {name: SliceDataset(path) for name, path in outputs.items()}
    npz = sorted((outputs["npz"] / "train").iterdir())
    volumes = _blosc2_volumes(work / "blosc2", outputs["npz"])

    def with_numpy(number: int) -> None:
        with np.load(npz[number]) as members:  # all that SliceDataset reads
            members["image"], members["label"], members["metadata"]

    def with_blosc2(number: int) -> None:
        case, index = divmod(number, len(npz) // len(volumes))
        image, label = volumes[case]
        first = max(index - 2, 0)
        window = np.clip(np.arange(index - 2, index + 3), 0, image.shape[1] - 1)
        planes = image[0, first : index + 3]
        if len(planes) < len(window):
            planes[window - first]
        label[0, index]

    readers: dict[str, Callable[[int], Any]] = {
        "numpy.load of npz": with_numpy,
        "blosc2, float32": with_blosc2,
    } | {f"SliceDataset, {name}": dataset.__getitem__ for name, dataset in datasets.items()}
    center = SliceDataset(outputs["npz"], channels="center")
    readers["SliceDataset, npz, channels='center'"] = center.__getitem__
    order = np.random.default_rng(0).integers(0, len(npz), (8, max(n_windows // 8, 1)))
    taken: dict[str, list[float]] = {name: [] for name in readers}
    for numbers in order:
        for name, read in readers.items():
            started = time.perf_counter()
            for number in numbers:
                read(int(number))
            taken[name].append((time.perf_counter() - started) / len(numbers))
    delivered = _samples_per_second(datasets)
    for path in (*outputs.values(), work / "blosc2"):
        shutil.rmtree(path)
    return {
        "milliseconds_a_window": {name: 1e3 * float(np.median(t)) for name, t in taken.items()},
        "dataloader_samples_per_second": delivered,
    }


def _blosc2_volumes(folder: Path, npz: Path) -> list[tuple[Any, Any]]:
    """Write volumes as nnU-Net stores them for 2D training, and return them opened, by case.

    That is Blosc2 with zstd at level 8; blocks are the largest that fit a core's first cache, by
    halves of the patch, a chunk is a slice; mapped when read, by one thread.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    opened = []
    dataset = SliceDataset(npz, channels="center")
    for case_id in sorted({str(case.case_id) for case in dataset._index.cases}):
        samples = list(SliceDataset(npz, channels="center", cases=[case_id]))
        arrays = []
        for name in ("image", "label"):
            volume = np.stack([np.squeeze(sample[name]) for sample in samples])[None]
            _, _, height, width = volume.shape
            side = 64 if volume.itemsize == np.dtype(np.float32).itemsize else 128
            path = str(folder / f"{case_id}_{name}.b2nd")
            blosc2.asarray(
                np.ascontiguousarray(volume),
                urlpath=path,
                chunks=(1, 1, height, width),
                blocks=(1, 1, min(side, height), min(side, width)),
                cparams={"codec": blosc2.Codec.ZSTD, "clevel": 8, "nthreads": 1},
            )
            arrays.append(blosc2.open(path, mmap_mode="r", dparams={"nthreads": 1}))
        opened.append((arrays[0], arrays[1]))
    return opened


def _samples_per_second(datasets: dict[str, SliceDataset]) -> dict[str, float | None]:
    """Return what torch's DataLoader delivers with two workers, taken in turn; None without it."""
    try:
        from torch.utils.data import DataLoader
    except ImportError:
        return dict.fromkeys(datasets)
    found: dict[str, list[float]] = {name: [] for name in datasets}
    for _ in range(_EPOCHS):
        for name, dataset in datasets.items():
            loader = DataLoader(
                dataset, batch_size=8, shuffle=True, num_workers=2, persistent_workers=True
            )
            for _batch in loader:  # the workers come up
                pass
            started = time.perf_counter()
            n_samples = sum(len(batch["slice_index"]) for batch in loader)
            found[name].append(n_samples / (time.perf_counter() - started))
    return {name: float(np.median(rates)) for name, rates in found.items()}
