"""Speed of reading batches, by threads of `SliceLoader` and by workers of torch's DataLoader."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil

from dask_slicer.errors import UsageError
from dask_slicer.output.formats.base import damage_named
from dask_slicer.output.index import case_reader
from dask_slicer.output.output import open_output
from dask_slicer.training.batches import ImageOutput
from dask_slicer.training.dataset import SliceDataset
from dask_slicer.training.loader import SliceLoader
from dask_slicer.training.normalization import normalize_batch
from dask_slicer.utils.files import drop_from_cache
from dask_slicer.utils.formatting import plural
from dask_slicer.utils.system import cpu_wait_seconds

Kind = Literal["threads", "workers"]
# Cases whose sizes are looked at, spread over the output.
_MOST_CASES = 1000
# Of the first pass: fewer would repeat planes within batches, more could not stay in memory.
_FEWEST_BATCHES, _MOST_WINDOWS = 4, 1024
# Seconds that a batch of DataLoader may take: without shared memory it would never come.
_PATIENCE = 20.0
# More windows a second than any machine reads.
_MOST_PER_SECOND = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Slices of one size, to be read again and again. `rows` are their numbers in a dataset."""

    output_dir: Path
    window_size: int | None
    plane: str | None
    rows: tuple[int, ...]
    shape: tuple[int, int, int]  # channel, row, column
    outputs: tuple[ImageOutput, ...]  # "source" only of stored integers
    n_other: int  # slices of other sizes
    n_sizes: int
    bytes_on_disk: int | None  # of the output, None if it is not known
    decoded_bytes: int | None  # of all planes, about; None if a dataset cannot keep them

    def dataset(self, output: ImageOutput, *, cache: int | None = None) -> SliceDataset:
        """Return a dataset of all slices of the output, without open files."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a part of an output is enough here
            return SliceDataset(
                self.output_dir,
                split=None,
                window_size=self.window_size,
                plane=self.plane,
                output=output,
                cache=cache,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way to read: threads of this process (0: without), or worker processes of DataLoader."""

    output: ImageOutput
    kind: Kind
    number: int
    device: str = ""  # on which `normalize_batch` then normalises; empty without
    cache: int | None = None  # bytes for decoded planes

    def __str__(self) -> str:
        if self.kind == "workers":
            return f"DataLoader, {plural(self.number, 'worker')}"
        threads = plural(self.number, "thread") if self.number else "no thread"
        after = ", normalised" if self.device else ", cache" if self.cache else ""
        return threads + after


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One pass over some batches: time in seconds. `passes` in loader.json."""

    way: Way
    is_first: bool
    windows: int
    seconds: float
    cpu_seconds: float  # on the CPU, all processes together
    cpu_wait_seconds: float  # ready, but without a CPU, the same; 0 outside Linux
    array_bytes: int  # of the batches
    disk_bytes: int | None  # read from the disk by this process, None if it is not known


def choose_slices(
    output_dir: Path, *, window_size: int | None = None, plane: str | None = None
) -> Workload:
    """Return the slices of an output that have the size of most; raise UsageError without any."""
    opened = open_output(output_dir)
    whole = Workload(
        output_dir=opened.path,
        window_size=window_size,
        plane=plane,
        rows=(),
        shape=(0, 0, 0),
        outputs=("float32",),
        n_other=0,
        n_sizes=0,
        bytes_on_disk=opened.summary.get("bytes_written") or None,
        decoded_bytes=None,
    )
    dataset = whole.dataset("float32")
    index = dataset.index
    if not len(index):
        raise UsageError(f"{opened.path} has no slice to read")
    # One slice of each case: all of a case have one size.
    _, first_rows = np.unique(index.case, return_index=True)
    first_rows = first_rows[:: ceil(len(first_rows) / _MOST_CASES)]
    n_slices = np.bincount(index.case)
    cases_of: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    sizes: Counter[tuple[int, int, int]] = Counter()
    row_of_dtype: dict[Any, int] = {}
    label_bytes = 0  # of a pixel
    for row in first_rows.tolist():
        number = int(index.case[row])
        case, slice_index = index.cases[number], int(index.slice_index[row])
        with damage_named(case.case_id, slice_index):
            reader = case_reader(opened.path, case)
            window = reader.window(slice_index, dataset.window_size)
        shape = window.shape
        cases_of[shape].append(number)
        sizes[shape] += int(n_slices[number])
        row_of_dtype.setdefault(window.dtype, row)
        if window.label_dtype is not None:
            label_bytes = max(label_bytes, window.label_dtype.itemsize)
    shape, n = sizes.most_common(1)[0]
    rows = np.flatnonzero(np.isin(index.case, cases_of[shape]))
    outputs: list[ImageOutput] = ["float32"]
    with suppress(UsageError):  # it holds no integers, or such that torch lacks
        source = whole.dataset("source")
        for row in row_of_dtype.values():
            source.read_batch([row])
        outputs.append("source")
    decoded_bytes = None
    if opened.config.format == "zarr":
        w = opened.config.window_size if window_size is None else window_size
        itemsize = max(dtype.itemsize for dtype in row_of_dtype) if "source" in outputs else 4
        slice_bytes = shape[0] // (2 * w + 1) * itemsize + label_bytes  # of one pixel
        decoded_bytes = slice_bytes * shape[1] * shape[2] * len(index)
    return replace(
        whole,
        rows=tuple(rows.tolist()),
        shape=shape,
        outputs=tuple(outputs),
        n_other=sizes.total() - n,
        n_sizes=len(sizes),
        decoded_bytes=decoded_bytes,
    )


def ways_to_read(
    workload: Workload, numbers: Sequence[int], *, has_torch: bool, device: str, cache: int
) -> list[Way]:
    """Return the ways to measure: numbers of threads, and where torch is, of workers.

    Integers are also read and normalised, on a device; and the most threads read from a cache of so
    many bytes, where a dataset may have one.
    """
    ways = []
    for output in workload.outputs:
        ways += [Way(output=output, kind="threads", number=number) for number in numbers]
        if has_torch:
            ways += [Way(output=output, kind="workers", number=n) for n in numbers if n]
    if "source" in workload.outputs:
        ways += [
            Way(output="source", kind="threads", number=n, device=device) for n in numbers if n
        ]
    if workload.decoded_bytes is not None:
        most, output = max(numbers), workload.outputs[-1]
        ways.append(Way(output=output, kind="threads", number=most, cache=cache))
    return ways


def torch_device() -> str | None:
    """Import torch, if it is installed, and return where batches would go; None without it."""
    if find_spec("torch") is None:
        return None
    try:
        import torch
    except (ImportError, OSError):  # such as a library that it lacks
        return None
    return "cuda" if torch.cuda.is_available() else "cpu"


def first_pass(
    workload: Workload, *, batch_size: int, threads: int, seconds: float
) -> tuple[Pass, tuple[int, ...]]:
    """Read slices that the system was asked to forget; return also their numbers, for later passes.

    It ends after some seconds, or earlier, when all slices were read once.
    """
    rows = np.random.default_rng(0).permutation(workload.rows)[:_MOST_WINDOWS].tolist()
    way = Way(output=workload.outputs[-1], kind="threads", number=threads)
    dataset = workload.dataset(way.output)
    if hasattr(os, "sync"):
        os.sync()  # what is not yet written cannot be dropped
    drop_from_cache(_files(dataset, rows))
    with _batches(dataset, way, rows, batch_size=batch_size) as batches:
        at_least = min(_FEWEST_BATCHES, ceil(len(rows) / batch_size))
        reading = _timed(batches, way, seconds=seconds, at_least=at_least, is_first=True)
    return reading, tuple(rows[: reading.windows])


def _files(dataset: SliceDataset, rows: Sequence[int]) -> set[Path]:
    """Return the files of the images of some slices."""
    index = dataset.index
    paths = {
        dataset.output_dir / index.cases[index.case[row]].path_of(int(index.slice_index[row]))
        for row in rows
    }
    groups = {path for path in paths if path.is_dir()}
    return (paths - groups) | {
        path for group in groups for path in group.rglob("*") if path.is_file()
    }


def sweep(
    workload: Workload,
    rows: Sequence[int],
    ways: Sequence[Way],
    *,
    batch_size: int,
    repeats: int,
    seconds: float,
    note: Callable[[str], None],
) -> Iterator[Pass]:
    """Read slices in each way in turn, for `seconds` in all passes together, in random order.

    The order is A B C A B C …, so that a machine that slows down affects all ways alike. If workers
    fail, as where shared memory is small, this is noted, and no others are tried.
    """
    random = np.random.default_rng(0)
    n = max(ceil(seconds / repeats * _MOST_PER_SECOND), 3 * batch_size)
    have_failed = False
    # Kept from pass to pass: opening a case takes as long as reading a window.
    datasets = {
        (way.output, way.cache): workload.dataset(way.output, cache=way.cache) for way in ways
    }
    for (_, cache), dataset in datasets.items():
        if cache is not None:
            for start in range(0, len(rows), batch_size):
                dataset.read_batch(rows[start : start + batch_size])
    for way in [*ways] * repeats:
        if way.kind == "workers" and have_failed:
            continue
        epochs = [random.permutation(rows) for _ in range(ceil(n / len(rows)))]
        numbers = np.concatenate(epochs)[:n].tolist()
        try:
            with _batches(
                datasets[way.output, way.cache], way, numbers, batch_size=batch_size
            ) as batches:
                next(batches)  # without the time in which workers start
                reading = _timed(
                    batches, way, seconds=seconds / repeats, at_least=1, is_first=False
                )
        except RuntimeError as error:
            if way.kind != "workers":
                raise
            have_failed = True
            reason = str(error).partition("\n")[0]
            note(
                f"{way}: {reason}; others are left out. Workers need shared memory (of containers: "
                "--shm-size), threads do not"
            )
        else:
            yield reading


@contextmanager
def _batches(
    dataset: SliceDataset, way: Way, rows: list[int], *, batch_size: int
) -> Iterator[Iterator[Mapping[str, Any]]]:
    """Give batches of slices in a certain order; afterwards end what fills them."""
    if way.kind == "workers":
        from torch.utils.data import DataLoader

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # more workers than CPUs: as was asked for
            loader = DataLoader(
                dataset,
                batch_size=batch_size,
                sampler=rows,
                num_workers=way.number,
                collate_fn=dataset.collate,
                timeout=_PATIENCE,
            )
        yield iter(loader)
        return
    pin = way.device == "cuda"
    ahead: Any = iter(
        SliceLoader(dataset, batch_size, threads=way.number, sampler=rows, pin_memory=pin)
    )
    with closing(ahead):
        yield ahead
    # They would disturb the next way, and a process that is forked must have no other thread.
    for thread in threading.enumerate():
        if thread.name.startswith("SliceLoader"):
            thread.join()


def _timed(
    batches: Iterable[Mapping[str, Any]],
    way: Way,
    *,
    seconds: float,
    at_least: int,
    is_first: bool,
) -> Pass:
    """Read batches for some seconds, and at least so many."""
    windows = array_bytes = 0
    (cpu, wait), disk, started = _cpu_seconds(), _disk_bytes(), time.perf_counter()
    for n_batches, batch in enumerate(batches, start=1):
        windows += len(batch["slice_index"])
        array_bytes += sum(batch[name].nbytes for name in ("image", "label") if name in batch)
        if way.device:
            _normalize(batch, way.device)
        if time.perf_counter() - started >= seconds and n_batches >= at_least:
            break
    passed, disk_after = time.perf_counter() - started, _disk_bytes()
    cpu_after, wait_after = _cpu_seconds()
    return Pass(
        way=way,
        is_first=is_first,
        windows=windows,
        seconds=max(passed, 1e-9),
        cpu_seconds=cpu_after - cpu,
        cpu_wait_seconds=wait_after - wait,
        array_bytes=array_bytes,
        disk_bytes=None if disk is None or disk_after is None else disk_after - disk,
    )


def _normalize(batch: Mapping[str, Any], device: str) -> None:
    """Normalise a batch of integers on a device, and wait for the end of it."""
    if device == "cpu":
        normalize_batch(batch)
        return
    import torch

    moved = {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
    normalize_batch(moved)
    torch.cuda.synchronize()


def _cpu_seconds() -> tuple[float, float]:
    """Return the time on the CPU, and of waiting for one, of this process and its children."""
    own = psutil.Process()
    total, waited = time.process_time(), cpu_wait_seconds(own.pid)
    for child in own.children(recursive=True):
        with suppress(psutil.Error):
            times = child.cpu_times()
            total += times.user + times.system
            waited += cpu_wait_seconds(child.pid)
    return total, waited


def _disk_bytes() -> int | None:
    """Return how much this process has read from disks so far, None if the system does not say."""
    with suppress(AttributeError, NotImplementedError, OSError, psutil.Error):
        return int(psutil.Process().io_counters().read_bytes)
    return None
