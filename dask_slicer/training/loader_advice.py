"""Conclusions from a benchmark of loaders: a table, what limits the speed, and what to use."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from dask_slicer.training.loader_benchmark import Pass, Way, Workload
from dask_slicer.utils.formatting import format_bytes, plural

# More threads must be this much faster to be worth their memory.
_WORTH = 1.05
# With the CPUs busy for less than this share, threads wait; with less than this speed-up of each,
# they are busy with waiting for memory; with less than this share of the later rate, the first pass
# waits for the disk.
_BUSY, _SPEEDUP, _AS_FAST = 0.75, 0.6, 0.75
# Of what the first pass reads from the disk for a window: with more, later passes read it, too.
_FROM_DISK = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Medians of the passes of one way, in windows a second. `rows` in loader.json."""

    way: Way
    is_first: bool
    windows_per_second: float
    slowest: float
    fastest: float
    speedup: float  # against one thread and the same `output`, or against the fewest
    cpus: float  # busy on average
    cpu_wait: float  # threads or workers that waited for a CPU on average
    megabytes_per_second: float  # of batches
    disk_megabytes_per_second: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """The way to read, as a call, what limits its speed, and what else was seen."""

    way: Way
    call: str
    windows_per_second: float
    bottleneck: str
    reason: str
    remarks: tuple[str, ...]


def rows(passes: Iterable[Pass]) -> list[Row]:
    """Return a row for each way, in the order of their first passes."""
    passes_of: dict[tuple[Way, bool], list[Pass]] = defaultdict(list)
    for reading in passes:
        passes_of[reading.way, reading.is_first].append(reading)
    rate_of = {
        key: median(reading.windows / reading.seconds for reading in its_passes)
        for key, its_passes in passes_of.items()
    }
    table = []
    for (way, is_first), its_passes in passes_of.items():
        seconds = sum(reading.seconds for reading in its_passes)
        rates = [reading.windows / reading.seconds for reading in its_passes]
        disk = [reading.disk_bytes for reading in its_passes if reading.disk_bytes is not None]
        table.append(
            Row(
                way=way,
                is_first=is_first,
                windows_per_second=rate_of[way, is_first],
                slowest=min(rates),
                fastest=max(rates),
                speedup=rate_of[way, is_first] / _base(rate_of, way),
                cpus=sum(reading.cpu_seconds for reading in its_passes) / seconds,
                cpu_wait=sum(reading.cpu_wait_seconds for reading in its_passes) / seconds,
                megabytes_per_second=sum(p.array_bytes for p in its_passes) / seconds / 1e6,
                disk_megabytes_per_second=sum(disk) / seconds / 1e6 if disk else None,
            )
        )
    return table


def _base(rate_of: Mapping[tuple[Way, bool], float], way: Way) -> float:
    """Return the rate of one thread, or of the fewest, that give the same, without a cache."""
    later = {
        other.number: rate
        for (other, is_first), rate in rate_of.items()
        if other.kind == "threads"
        and (other.output, other.device) == (way.output, way.device)
        and not (is_first or other.cache)
    }
    if not later:  # a first pass, or a cache, alone
        return next(rate for (other, _), rate in rate_of.items() if other == way)
    return later.get(1) or later[min(later)]


def recommend(
    table: Sequence[Row],
    workload: Workload,
    *,
    batch_size: int,
    n_cpus: int,
    memory_bytes: int,
) -> Advice:
    """Return the fewest threads that read about as fast as any way, and what limits them.

    Integers are recommended if they are ready faster when `normalize_batch` is included,
    DataLoader if it is faster than all threads, and no thread if nothing else was tried: batches
    would not be read while the network computes.
    """
    later = [row for row in table if not (row.is_first or row.way.cache)]
    first = next((row for row in table if row.is_first), None)
    normalized = [row for row in later if row.way.device]
    floats = [row for row in later if row.way.output == "float32"]
    integers = [row for row in later if row.way.output == "source" and not row.way.device]
    best = _fewest(floats)
    if normalized and _rate(normalized) >= _rate(floats) * _WORTH:
        best = _fewest(normalized)
    bottleneck, reason = _bottleneck(best, n_cpus=n_cpus, first=first)
    remarks = []
    if first is not None:
        slow_first, text = _first_pass_remark(first, later, workload, memory_bytes=memory_bytes)
        remarks.append(text)
        size = workload.bytes_on_disk
        if slow_first and size is not None and size > memory_bytes:
            bottleneck, reason = "disk", "files do not stay in memory from one epoch to the next"
    remarks += _processes_remark(integers or floats)
    remarks += _integers_remark(floats, integers, normalized)
    remarks += _cache_remark(table, workload, memory_bytes=memory_bytes)
    return Advice(
        way=best.way,
        call=_call(best.way, workload, batch_size=batch_size),
        windows_per_second=best.windows_per_second,
        bottleneck=bottleneck,
        reason=reason,
        remarks=tuple(remarks),
    )


def _rate(rows_: Sequence[Row]) -> float:
    return max(row.windows_per_second for row in rows_)


def _fewest(rows_: Sequence[Row]) -> Row:
    """Return the row with the fewest threads, but one, that is about as fast as any."""
    ranked = sorted(rows_, key=lambda row: (row.way.kind != "threads", row.way.number))
    beside = [row for row in ranked if row.way.number] or ranked
    return next(row for row in beside if row.windows_per_second * _WORTH >= _rate(beside))


def _bottleneck(row: Row, *, n_cpus: int, first: Row | None) -> tuple[str, str]:
    """Return what limits a way to read files that are in memory, and why."""
    number = max(row.way.number, 1)
    at_once = min(number, n_cpus)
    busy = row.cpus / at_once
    if row.way.kind == "threads" and first is not None and _disk_share(row, first) > _FROM_DISK:
        return "disk", "later passes read from the disk, too: files do not stay in memory"
    if busy < _BUSY:
        text = f"{_cpus_words(at_once)} busy for {busy:.0%} of the time"
        for_cpu = min(row.cpu_wait / number, 1 - busy)
        if for_cpu > 1 - busy - for_cpu:
            return "CPU", f"{text}, and others use them: threads wait for one for {for_cpu:.0%}"
        return "waiting", f"{text}; else threads wait for the disk, or for each other"
    if row.speedup < _SPEEDUP * at_once:
        return "memory", (
            f"{_cpus_words(at_once)} busy for {min(busy, 1.0):.0%} of the time, but "
            f"{row.speedup:.1f} times as fast as one: memory, or other programs, slow them down"
        )
    text = f"decoding keeps {plural(at_once, 'CPU')} busy for {min(busy, 1.0):.0%} of the time"
    if number < n_cpus:
        text += "; more threads were not faster, or not tried"
    return "CPU", text


def _cpus_words(n: int) -> str:
    return "the CPU is" if n == 1 else f"{n} CPUs are"


def _disk_share(row: Row, first: Row) -> float:
    """Return what later windows read from the disk, as a share of what first ones do."""
    of_first = (first.disk_megabytes_per_second or 0.0) / first.windows_per_second
    of_later = (row.disk_megabytes_per_second or 0.0) / row.windows_per_second
    return of_later / of_first if of_first else 0.0


def _first_pass_remark(
    first: Row, later: Sequence[Row], workload: Workload, *, memory_bytes: int
) -> tuple[bool, str]:
    """Return whether the first pass waited for the disk, and a sentence about it."""
    rate = first.windows_per_second
    disk = first.disk_megabytes_per_second
    where = f"from disk ({disk:.0f} MB/s)" if disk else "which may not have read from a disk"
    text = f"First pass, {where}: {rate:.0f} windows/s"
    same = [row for row in later if row.way == first.way]
    if not same:
        return False, text
    text += f"; later, from memory: {same[0].windows_per_second:.0f}"
    if rate >= same[0].windows_per_second * _AS_FAST:
        return False, text
    size = workload.bytes_on_disk
    if size is None:
        return True, text
    sizes = f"the output has {format_bytes(size)}, this machine {format_bytes(memory_bytes)}"
    if size <= memory_bytes:
        return True, f"{text}. Epochs after the first can come from memory: {sizes}"
    return True, (
        f"{text}. Every epoch reads from disk: {sizes}. A local disk helps, and fewer bytes, as "
        "of --format zarr --dtype source"
    )


def _processes_remark(ranked: Sequence[Row]) -> list[str]:
    """Return how workers of DataLoader compare with as many threads; empty without them."""
    threads = {row.way.number: row for row in ranked if row.way.kind == "threads"}
    both = [row for row in ranked if row.way.kind == "workers" and row.way.number in threads]
    if not both:
        return []
    row = max(both, key=lambda row: row.way.number)
    n, ratio = row.way.number, row.windows_per_second / threads[row.way.number].windows_per_second
    cost = ": batches go from process to process" if ratio * _WORTH < 1 else ""
    workers, threads_words = plural(n, "worker"), plural(n, "thread")
    return [f"{workers} of DataLoader read {ratio:.2f} times as fast as {threads_words}{cost}"]


def _integers_remark(
    floats: Sequence[Row], integers: Sequence[Row], normalized: Sequence[Row]
) -> list[str]:
    """Return how integers compare with float32, before and after they are normalised."""
    if not integers:
        return [
            'The output holds no integers that output="source" could give; slices made with '
            "--format zarr --dtype source are read fastest"
        ]
    text = f"Integers are read {_rate(integers) / _rate(floats):.1f} times as fast as float32"
    if not normalized:
        return [text]
    device = "a GPU" if normalized[0].way.device == "cuda" else "the CPU"
    ratio = _rate(normalized) / _rate(floats)
    text += f", and with normalize_batch on {device} {ratio:.1f} times"
    if ratio < _WORTH:
        text += ": they are for training on a GPU"
    return [text]


def _cache_remark(table: Sequence[Row], workload: Workload, *, memory_bytes: int) -> list[str]:
    """Return how a cache of decoded planes compares with decoding; empty if it was not measured."""
    rate_of = {row.way: row.windows_per_second for row in table if not row.is_first}
    way = next((way for way in rate_of if way.cache), None)
    if way is None or workload.decoded_bytes is None:
        return []
    without = rate_of.get(replace(way, cache=None))
    if without is None:
        return []
    return [
        f"With decoded planes in memory (cache=...), {replace(way, cache=None)}: "
        f"{rate_of[way] / without:.1f} times as fast; all planes would take about "
        f"{format_bytes(workload.decoded_bytes)}, this machine has {format_bytes(memory_bytes)}"
    ]


def _call(way: Way, workload: Workload, *, batch_size: int) -> str:
    """Return a way to read as Python."""
    arguments = [repr(str(workload.output_dir))]
    if workload.window_size is not None:
        arguments.append(f"window_size={workload.window_size}")
    if workload.plane is not None:
        arguments.append(f"plane={workload.plane!r}")
    if way.output == "source":
        arguments.append("output='source'")
    dataset = f"SliceDataset({', '.join(arguments)})"
    if way.kind == "threads":
        return f"{dataset}.loader(batch_size={batch_size}, threads={way.number}, shuffle=True)"
    return (
        f"DataLoader({dataset}, batch_size={batch_size}, num_workers={way.number}, shuffle=True, "
        "collate_fn=SliceDataset.collate)"
    )
