"""Windows a second of our loaders, of memory-mapped arrays, and of other packages."""

from __future__ import annotations

import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any

import loaders_others as others
import loaders_ours as own
import nibabel as nib
import numpy as np
from datasets import ct
from loading import BATCH_SIZE, N_WORKERS, NEIGHBOURS, Method, Scans
from measure import slicer

from dask_slicer import SliceDataset
from dask_slicer.inputs.discovery import find_cases

# What all turns may take, and what a method should load in one of them at least.
_SECONDS, _SECONDS_IN_A_TURN = 160.0, 0.25
_ONE, _WORKERS, _THREADS = "1 process", f"{N_WORKERS} workers", f"{N_WORKERS} threads"
_BEFORE = "the version before, `DataLoader`"
_LOADER, _OLD = f"`loader(threads={N_WORKERS})`", (_BEFORE, "float32", _WORKERS)
_SAMPLES = ("samples, stacked", "float32", _ONE)
_MAPPED, _MAPPED_SAMPLES = "mapped `.npy`, whole batches", "mapped `.npy`, default collation"
_Key = tuple[str, str, str]
# What is compared with what; with what of ours every other method is compared, see `_reference`.
_RATIOS: dict[str, tuple[_Key, _Key]] = {
    "batches of integers / stacked samples, 1 process": (
        ("`__getitems__` and `collate`", "integers", _ONE),
        _SAMPLES,
    ),
    "batches of float32 / stacked samples, 1 process": (
        ("`__getitems__` and `collate`", "float32", _ONE),
        _SAMPLES,
    ),
    **{
        f"DataLoader / mapped integers in DataLoader, {collation}, {values}": (
            ("`DataLoader`, `collate`", values, _WORKERS),
            (mapped, values, _WORKERS),
        )
        for values in ("integers", "float32")
        for collation, mapped in (
            ("torch's collation", _MAPPED_SAMPLES),
            ("into shared memory as ours", _MAPPED),
        )
    },
    "loader of integers / DataLoader of the version before": (
        (_LOADER, "integers", _THREADS),
        _OLD,
    ),
    **{
        f"loader of integers{cache} / mapped integers in 1 process, {how}": (
            (_LOADER + (cache and ", cache"), "integers", _THREADS),
            (mapped, "integers", _ONE),
        )
        for cache in ("", " with a cache")
        for how, mapped in (
            ("`DataLoader`", f"{_MAPPED}, `DataLoader`"),
            ("always into one array", _MAPPED),
        )
    },
    "loader of float32 / DataLoader of the version before": ((_LOADER, "float32", _THREADS), _OLD),
}


def loaders(
    work: Path,
    *,
    n_cases: int,
    shape: tuple[int, int, int],
    n_batches: int,
    repeats: int,
    pool: int,
    scans: Path | None = None,
    before: Path | None = None,
) -> dict[str, Any]:
    """Return windows a second of each method, and ratios; what is not installed is left out.

    A window has five slices, and the label of the middle one; none is at the end of a scan. The
    methods load the same windows in turn, A B C A B C …; a ratio is the median of those of a turn.
    Files are in the system's cache.

    Parameters
    ----------
    work : Path
        What the methods read is kept there for the next time, but for what this version writes.
    n_cases, shape
        Of CT phantoms.
    n_batches : int
        Batches that a method loads in a turn; fast ones load more, for some `_SECONDS_IN_A_TURN`.
    repeats : int
        Turns, after one that does not count; fewer where they take longer than `_SECONDS`.
    pool : int
        Windows that batches are drawn from.
    scans : Path, optional
        A folder of scans, to measure them too: the cases of integers that are of one size in
        the plane, that of most voxels.
    before : Path, optional
        A wheel of another version of the package, or a folder to import it from.
    """
    options = {"n_batches": n_batches, "repeats": repeats, "pool": pool, "before": before}
    phantoms = ct(work, n_cases, shape)
    measured = {"phantoms": _measured(phantoms, work / "loaders_phantoms", **options)}
    if scans is not None:
        measured["scans"] = _measured(scans, work / "loaders_scans", **options)
    return {
        "batch_size": BATCH_SIZE,
        "pool": pool,
        "versions": others.versions(),
        **measured,
    }


def _measured(
    folder: Path,
    work: Path,
    *,
    n_batches: int,
    repeats: int,
    pool: int,
    before: Path | None,
) -> dict[str, Any]:
    scans = _sliced(folder, work, pool)
    with _methods(scans, work, n_batches * BATCH_SIZE, before) as methods:
        _warm(methods, scans)
        _check(methods, scans)
        n_batches_of = dict.fromkeys(methods, n_batches)
        turns: list[dict[_Key, float]] = []
        started = time.monotonic()
        for number in range(repeats + 1):
            if number > 1 and time.monotonic() - started > _SECONDS:
                break
            turns.append({
                key: method.rate(scans.draw(number, n_batches_of[key]))
                for key, method in methods.items()
            })  # fmt: skip
            if number == 0 and repeats > 1:
                for key, rate in turns[0].items():
                    enough = ceil(rate * _SECONDS_IN_A_TURN / BATCH_SIZE)
                    if methods[key].drawn:
                        n_batches_of[key] = max(enough, n_batches)
            rates = ", ".join(f"{name} {rate:.0f}" for (name, *_), rate in turns[-1].items())
            print(f"{number}/{repeats} {rates}", file=sys.stderr, flush=True)
    del turns[0]

    def ratio(key: _Key, other: _Key) -> float | None:
        if not {key, other} <= methods.keys():
            return None
        return statistics.median(turn[key] / turn[other] for turn in turns)

    rows = [
        {
            "name": method.name,
            "group": method.group,
            "values": method.values,
            "processes": method.processes,
            "how": method.how,
            "windows_per_second": statistics.median(turn[key] for turn in turns),
            "times_ours": ratio(key, _reference(key)),
            "mb_a_case": sum(path.stat().st_size for path in method.files)
            * (len(scans.case) / len(scans.pool) if method.pool_only else 1)
            / len(scans.volumes)
            / 1e6,
        }
        for key, method in methods.items()
    ]
    return {
        "cases": len(scans.volumes),
        "windows": len(scans.case),
        "shape": list(scans.shape),
        "batches": n_batches,
        "repeats": len(turns),
        "methods": rows,
        "ratios": {name: ratio(*keys) for name, keys in _RATIOS.items()},
    }


def _reference(key: _Key) -> _Key:
    """Return our loader with as many processes or threads, for the same values."""
    _, values, processes = key
    if processes in (_ONE, "1 thread"):
        return "`loader(threads=0)`", values, _ONE
    return _LOADER, values, _THREADS


def _sliced(folder: Path, work: Path, pool: int) -> Scans:
    """Return cases of integers and of one size, sliced by this version."""
    work.mkdir(exist_ok=True)
    of_size: dict[tuple[int, ...], list[tuple[int, Any]]] = {}
    for case in find_cases(folder).cases:
        header = nib.load(case.images[0]).header if len(case.images) == 1 else None
        if header is None or case.label is None or header.get_data_dtype().kind not in "iu":
            continue
        shape = header.get_data_shape()
        if len(shape) == 3 and shape[2] > 2 * NEIGHBOURS:
            of_size.setdefault(shape[:2], []).append((shape[2], case))
    # The size that the most voxels have.
    n_planes = {size: sum(depth for depth, _ in of_cases) for size, of_cases in of_size.items()}
    size = max(of_size, key=lambda size: size[0] * size[1] * n_planes[size])
    cases = [case for _, case in of_size[size]]
    manifest = work / "cases.csv"
    with open(manifest, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", "image", "label"])
        writer.writerows([case.case_id, case.images[0], case.label] for case in cases)
    outputs = {"store": ("--format", "zarr", "--dtype", "source"), "npz": ("--format", "npz")}
    for name, options in outputs.items():
        shutil.rmtree(work / name, ignore_errors=True)
        _slice(manifest, work / name, *options)
    index = SliceDataset(work / "store").index
    volumes = {case.case_id: (Path(case.images[0]), Path(case.label)) for case in cases}
    case_ids = [case.case_id for case in index.cases]
    _, rows, columns = SliceDataset(work / "store")[0]["image"].shape
    n_slices = np.bincount(index.case)
    inside = (index.slice_index >= NEIGHBOURS) & (
        index.slice_index < n_slices[index.case] - NEIGHBOURS
    )
    drawn = np.random.default_rng(0).permutation(np.flatnonzero(inside))[:pool]
    return Scans(
        store=work / "store",
        npz=work / "npz",
        volumes=[volumes[case_id] for case_id in case_ids],
        case=np.asarray(index.case),
        index=np.asarray(index.slice_index),
        pool=np.sort(drawn),
        shape=(int(n_slices[0]), rows, columns),
    )


def _slice(scans: Path, output: Path, *options: object, package: Path | None = None) -> None:
    path = {} if package is None else {"PYTHONPATH": str(package)}
    command = slicer(scans, output, "--train_ratio", 1, "--window_size", NEIGHBOURS, *options)
    subprocess.run(command, check=True, env=os.environ | path)


@contextmanager
def _methods(
    scans: Scans, work: Path, n_windows: int, before: Path | None
) -> Iterator[dict[_Key, Method]]:
    """Give the methods whose packages are installed; those with processes come first.

    Workers are forked before there are threads.
    """

    def written(name: str, write: Callable[[Scans, Path], None]) -> Path:
        folder = work / name
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            write(scans, unfinished)
            unfinished.rename(folder)
        return folder

    arrays = written("arrays", own.write_arrays)
    methods: list[Method] = []
    if _installed("torch"):
        methods += own.ours_in_workers(scans)
        methods += own.mapped_by_torch(scans, arrays)
        methods += others.numpy_files(scans, written("npy", others.write_npy))
        if _installed("nnunetv2"):
            methods += others.nnunet(scans, written("nnunet", others.write_nnunet))
        if _installed("monai"):
            methods += others.monai(scans, written("monai", others.write_monai))
        if _installed("torchio"):
            methods += others.torchio(scans, n_windows)
    process = None
    if before is not None:
        process, method = _before(scans, work, before)
        methods.append(method)
    else:
        print("skipped: the version before, as --before is not given", file=sys.stderr)
    methods += own.mapped_in_this_process(scans, arrays)
    methods += own.ours_in_this_process(scans)
    methods.sort(key=lambda method: method.processes != _WORKERS)
    try:
        yield {(method.name, method.values, method.processes): method for method in methods}
    finally:
        if process is not None:
            # Workers that were forked meanwhile keep its input open, so that it sees no end of it.
            process.communicate("[]\n")


def _installed(package: str) -> bool:
    if find_spec(package) is None:
        print(f"skipped: what needs {package}, which is not installed", file=sys.stderr)
        return False
    return True


def _before(scans: Scans, work: Path, package: Path) -> tuple[Any, Method]:
    """Return a process that loads with another version of the package, and that as a method."""
    if package.suffix == ".whl":
        folder = work / "before"
        shutil.rmtree(folder, ignore_errors=True)
        with zipfile.ZipFile(package) as wheel:
            wheel.extractall(folder)
        package = folder
    store = work / "before_store"
    shutil.rmtree(store, ignore_errors=True)
    _slice(work / "cases.csv", store, "--format", "zarr", "--dtype", "source", package=package)
    program = Path(__file__).with_name("loaders_before.py")
    process = subprocess.Popen(
        [sys.executable, program, store, str(N_WORKERS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(package)},
        text=True,
    )
    return process, _OtherProcess(
        name=_BEFORE,
        group="before",
        values="float32",
        processes=_WORKERS,
        how=(
            "the version that read each window of a batch alone, from its own store of `--dtype "
            "source`, in a process of its own with torch's DataLoader and its default collation"
        ),
        load=_asked(process),
        files=own.files_of(store),
        drawn=False,
    )


class _OtherProcess(Method):
    """A method that measures itself."""

    def rate(self, batches: list[list[int]]) -> float:
        """Return windows a second, as the other process measures them."""
        _, answer = (answer for _ in range(2) for answer in self.load(batches))
        return sum(map(len, batches)) / answer["seconds"]


def _asked(process: Any) -> Callable[[list[list[int]]], Iterator[Any]]:
    def load(batches: list[list[int]]) -> Iterator[Any]:
        process.stdin.write(json.dumps(batches) + "\n")
        process.stdin.flush()
        yield json.loads(process.stdout.readline())

    return load


def _warm(methods: dict[_Key, Method], scans: Scans) -> None:
    """Bring all files into the system's cache, and what is drawn into those of methods."""
    for path in {path for method in methods.values() for path in method.files}:
        path.read_bytes()
    n_batches = ceil(len(scans.pool) / BATCH_SIZE)
    for method in methods.values():
        if method.passes_before:
            method.rate(scans.draw(0, method.passes_before * n_batches))


def _check(methods: dict[_Key, Method], scans: Scans) -> None:
    """Check that each method gives the windows it is asked for, which also starts workers.

    Cases differ in how they are normalised, and mapped integers are not: what is compared is the
    correlation of the images, and the labels.
    """
    batches = scans.draw(0, 1)
    dataset = SliceDataset(scans.store)
    expected = dataset.collate([dataset[number] for number in batches[0]])
    shape = tuple(expected["image"].shape)
    for (name, values, _), method in methods.items():
        if isinstance(method, _OtherProcess):
            (answer,) = method.load(batches)
            if answer["places"] != [expected["case_id"], list(map(int, expected["slice_index"]))]:
                raise RuntimeError(f"{name} gave other windows: {answer['places']}")
        if not method.drawn:
            continue
        (batch,) = method.load(batches)
        image, label = np.asarray(batch["image"]), np.asarray(batch["label"])
        kind = "f" if values == "float32" else "iu"
        if image.shape != shape or image.dtype.kind not in kind:
            raise RuntimeError(f"{name} gave {image.dtype} {image.shape}, not {shape}")
        if not np.array_equal(label, np.asarray(expected["label"])):
            raise RuntimeError(f"{name} gave other labels")
        for ours, theirs in zip(np.asarray(expected["image"]), image, strict=True):
            if np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] < 0.999:
                raise RuntimeError(f"{name} gave other windows")
