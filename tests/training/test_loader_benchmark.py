"""The benchmark of loaders: which slices and ways are measured, and what the figures mean."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dask_slicer import SliceDataset
from dask_slicer.errors import CorruptFile, UsageError
from dask_slicer.training import loader_benchmark
from dask_slicer.training.loader_advice import Row, recommend, rows
from dask_slicer.training.loader_benchmark import (
    Pass,
    Way,
    Workload,
    choose_slices,
    first_pass,
    sweep,
    ways_to_read,
)

FORMATS = [
    pytest.param({"format": "npz"}, ("float32",), id="npz"),
    pytest.param({"format": "zarr"}, ("float32",), id="zarr"),
    pytest.param({"format": "zarr", "dtype": "source"}, ("float32", "source"), id="source"),
    pytest.param({"format": "png"}, ("float32", "source"), id="png"),
]
ONE, TWO = (Way(output="float32", kind="threads", number=number) for number in (1, 2))
WORKLOAD = Workload(
    output_dir=Path("slices"),
    window_size=None,
    plane=None,
    rows=(0, 1),
    shape=(5, 8, 9),
    outputs=("float32",),
    n_other=0,
    n_sizes=1,
    bytes_on_disk=1000,
    decoded_bytes=None,
)


HERE = {"has_torch": False, "device": "cpu", "cache": 10**6}


def no_note(text: str) -> None:
    raise AssertionError(text)


@pytest.mark.parametrize(("settings", "outputs"), FORMATS)
def test_every_way_is_measured_once_in_each_round(
    dataset, slice_dataset, settings, outputs
) -> None:
    for case_id in "ab":
        dataset.add(case_id)
    workload = choose_slices(slice_dataset(**settings))
    assert workload.outputs == outputs
    assert len(workload.rows) == len(SliceDataset(workload.output_dir, split=None))
    ways = ways_to_read(workload, (0, 1, 2), **HERE)
    normalized = [way for way in ways if way.device]
    cached = [way for way in ways if way.cache]
    assert len(ways) == 3 * len(outputs) + len(normalized) + len(cached)
    is_zarr = settings["format"] == "zarr"
    assert [(way.number, way.output) for way in cached] == [(2, outputs[-1])] * is_zarr
    assert [way.number for way in normalized] == [1, 2] * (len(outputs) - 1)
    first, read = first_pass(workload, batch_size=3, threads=2, seconds=9.0)
    assert sorted(read) == list(workload.rows)
    assert (first.is_first, first.windows, first.way.output) == (True, len(read), outputs[-1])
    passes = list(sweep(workload, read, ways, batch_size=3, repeats=2, seconds=0.002, note=no_note))
    assert [reading.way for reading in passes] == ways * 2
    for reading in passes:
        assert reading.windows >= 3
        n_channels, height, width = workload.shape
        pixel_bytes = reading.array_bytes / reading.windows / (height * width)
        label_bytes = 1
        if reading.way.output == "float32":
            assert pixel_bytes == 4 * n_channels + label_bytes
        else:
            assert pixel_bytes < 4 * n_channels
    table = rows([first, *passes])
    assert [(row.way, row.is_first) for row in table[1:]] == [(way, False) for way in ways]
    assert (table[0].way, table[0].is_first) == (first.way, True)


@pytest.mark.parametrize(("settings", "outputs"), FORMATS)
def test_the_system_is_asked_to_forget_the_images_before_the_first_pass(
    dataset, slice_dataset, monkeypatch, settings, outputs
) -> None:
    dataset.add("a")
    output = slice_dataset(**settings)
    forgotten: list[Path] = []
    monkeypatch.setattr(loader_benchmark, "drop_from_cache", forgotten.extend)
    first_pass(choose_slices(output), batch_size=2, threads=0, seconds=0.001)
    folder = {"zarr": "slices.zarr/train/a", "png": "images", "npz": "train"}[settings["format"]]
    images = {path for path in (output / folder).rglob("*") if path.is_file()}
    assert images
    assert set(forgotten) == images


def test_a_first_pass_ends_in_time_and_gives_what_it_has_read(dataset, slice_dataset) -> None:
    for case_id in "abc":
        dataset.add(case_id)
    workload = choose_slices(slice_dataset())
    reading, read = first_pass(workload, batch_size=2, threads=1, seconds=1e-6)
    assert len(read) == reading.windows == 8  # four batches at least
    assert set(read) <= set(workload.rows)


def test_workers_are_tried_where_torch_is_and_0_is_no_number_of_them() -> None:
    workload = replace(WORKLOAD, outputs=("float32", "source"))
    ways = ways_to_read(workload, (0, 2), has_torch=True, device="cuda", cache=10**6)
    assert [(way.output, way.kind, way.number, way.device) for way in ways] == [
        ("float32", "threads", 0, ""),
        ("float32", "threads", 2, ""),
        ("float32", "workers", 2, ""),
        ("source", "threads", 0, ""),
        ("source", "threads", 2, ""),
        ("source", "workers", 2, ""),
        ("source", "threads", 2, "cuda"),
    ]


def test_no_thread_of_a_loader_is_left_when_another_way_begins(dataset, slice_dataset) -> None:
    dataset.add("a")
    workload = choose_slices(slice_dataset())
    for _ in sweep(
        workload, workload.rows, [TWO], batch_size=1, repeats=3, seconds=0.01, note=no_note
    ):
        assert not [each for each in threading.enumerate() if each.name.startswith("SliceLoader")]


def test_without_torch_nothing_asks_for_it(dataset, slice_dataset, monkeypatch) -> None:
    monkeypatch.setattr(loader_benchmark, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "torch", None)  # an import raises
    dataset.add("a")
    workload = choose_slices(slice_dataset())
    assert loader_benchmark.torch_device() is None
    ways = ways_to_read(workload, (1,), **HERE)
    assert [way.kind for way in ways] == ["threads"]


def test_a_torch_that_cannot_be_imported_counts_as_none(monkeypatch) -> None:
    monkeypatch.setattr(loader_benchmark, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "torch", None)
    assert loader_benchmark.torch_device() is None


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "outputs"), FORMATS)
def test_workers_of_dataloader_read_what_threads_read(
    dataset, slice_dataset, settings, outputs
) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    for case_id in "ab":
        dataset.add(case_id)
    workload = choose_slices(slice_dataset(**settings))
    device = loader_benchmark.torch_device()
    assert device is not None
    ways = [
        way
        for way in ways_to_read(workload, (0, 1, 2), has_torch=True, device=device, cache=10**6)
        if way.kind == "workers"
    ]
    assert [(way.output, way.number) for way in ways] == [
        (output, number) for output in outputs for number in (1, 2)
    ]
    passes = list(
        sweep(workload, workload.rows, ways, batch_size=2, repeats=1, seconds=0.01, note=no_note)
    )
    assert [reading.way for reading in passes] == ways


def test_workers_that_fail_are_noted_once_and_no_others_are_tried(
    dataset, slice_dataset, monkeypatch
) -> None:
    dataset.add("a")
    workload = choose_slices(slice_dataset())
    lost = Way(output="float32", kind="workers", number=2)
    other = replace(lost, number=3)
    batches = loader_benchmark._batches

    @contextmanager
    def losing(dataset_, way, *arguments, **options) -> Iterator[object]:
        if way == lost:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error.\nMore")
        with batches(dataset_, way, *arguments, **options) as those:
            yield those

    monkeypatch.setattr(loader_benchmark, "_batches", losing)
    notes: list[str] = []
    passes = list(
        sweep(
            *(workload, workload.rows, [ONE, lost, other]),
            **{"batch_size": 2, "repeats": 3, "seconds": 0.003, "note": notes.append},
        )
    )
    assert [reading.way for reading in passes] == [ONE] * 3
    (note,) = notes
    assert note.startswith(
        "DataLoader, 2 workers: DataLoader worker (pid 7) is killed by signal: Bus error.; others "
    )
    assert "--shm-size" in note


def test_slices_of_the_commonest_size_are_read(dataset, slice_dataset) -> None:
    dataset.add("a")
    dataset.add("b", np.zeros((5, 6, 10), np.int16) + np.arange(10, dtype=np.int16))
    dataset.add("c")
    workload = choose_slices(slice_dataset(plane="k", window_size=1))
    assert (workload.shape[1:], workload.n_sizes, workload.n_other) == ((8, 9), 2, 10)
    samples = SliceDataset(workload.output_dir, split=None)
    assert {samples[row]["case_id"] for row in workload.rows} == {"a", "c"}
    first, _ = first_pass(workload, batch_size=4, threads=0, seconds=9.0)
    assert first.windows == 20


def test_a_window_size_and_a_plane_are_those_of_the_dataset(dataset, slice_dataset) -> None:
    dataset.add("a")
    output = slice_dataset(format="zarr", plane="axial,coronal")
    narrow = choose_slices(output, window_size=1, plane="coronal")
    assert narrow.shape[0] == 3
    chosen = SliceDataset(output, split=None, plane="coronal")
    assert len(narrow.rows) == len(chosen)
    with pytest.raises(UsageError, match="not of sagittal"):
        choose_slices(output, plane="sagittal")


def test_floats_among_integers_leave_the_integers_out(dataset, slice_dataset) -> None:
    dataset.add("a")
    dataset.add("b", np.linspace(0, 1, 720, dtype=np.float32).reshape(8, 9, 10))
    workload = choose_slices(slice_dataset(format="zarr", dtype="source"))
    assert workload.outputs == ("float32",)


def test_an_output_without_slices_is_refused(dataset, slice_dataset) -> None:
    dataset.add("a", label=np.zeros((8, 9, 10), np.uint8))
    with pytest.raises(UsageError, match="has no slice to read"):
        choose_slices(slice_dataset(min_foreground=0.5))


def test_a_damaged_case_is_named(dataset, slice_dataset) -> None:
    dataset.add("a")
    output = slice_dataset()
    for path in output.rglob("*.npz"):
        path.write_bytes(b"")
    with pytest.raises(CorruptFile, match=r"case a, slice 0: .*\.npz"):
        choose_slices(output)


def row(way: Way, rate: float, *, cpus: float = 1.0, **changes: object) -> Row:
    values = {
        "way": way,
        "is_first": False,
        "windows_per_second": rate,
        "slowest": rate,
        "fastest": rate,
        "speedup": 1.0,
        "cpus": cpus,
        "cpu_wait": 0.0,
        "megabytes_per_second": 1.0,
        "disk_megabytes_per_second": None,
    }
    return Row(**values | changes)


MEMORY = {"batch_size": 8, "n_cpus": 2, "memory_bytes": 10**9}
NONE = replace(ONE, number=0)
WORKERS = replace(TWO, kind="workers")
SOURCE = replace(TWO, output="source")
NORMALIZED = replace(SOURCE, device="cpu")


@pytest.mark.parametrize(
    ("table", "way"),
    [
        pytest.param([row(ONE, 100), row(TWO, 190)], TWO, id="more_threads_are_faster"),
        pytest.param([row(ONE, 100), row(TWO, 103)], ONE, id="fewer_threads_are_about_as_fast"),
        pytest.param([row(NONE, 110), row(ONE, 100)], ONE, id="no_thread_would_stop_the_loop"),
        pytest.param([row(NONE, 110)], NONE, id="nothing_else_was_tried"),
        pytest.param([row(TWO, 100), row(WORKERS, 104)], TWO, id="threads_win_a_draw"),
        pytest.param([row(TWO, 100), row(WORKERS, 120)], WORKERS, id="workers_are_faster"),
        pytest.param(
            [row(TWO, 100), row(SOURCE, 300), row(NORMALIZED, 90)], TWO, id="normalising_is_slower"
        ),
        pytest.param(
            [row(TWO, 100), row(SOURCE, 300), row(NORMALIZED, 150)],
            NORMALIZED,
            id="normalised_integers_are_faster",
        ),
    ],
)
def test_the_fewest_threads_that_are_about_as_fast_as_any_are_recommended(table, way) -> None:
    advice = recommend(table, WORKLOAD, **MEMORY)
    assert advice.way == way
    number = f"num_workers={way.number}" if way.kind == "workers" else f"threads={way.number}"
    assert number in advice.call
    assert ("output='source'" in advice.call) == (way.output == "source")


@pytest.mark.parametrize(
    ("best", "bottleneck"),
    [
        pytest.param(row(TWO, 100, cpus=1.9, speedup=1.9), "CPU", id="cpu"),
        pytest.param(row(TWO, 100, cpus=1.9, speedup=1.1), "memory", id="memory"),
        pytest.param(row(TWO, 100, cpus=0.8, cpu_wait=1.1), "CPU", id="other_programs"),
        pytest.param(row(TWO, 100, cpus=0.8, speedup=1.9), "waiting", id="waiting"),
        pytest.param(
            row(TWO, 100, cpus=1.9, disk_megabytes_per_second=50.0), "disk", id="later_from_disk"
        ),
    ],
)
def test_the_bottleneck_is_what_threads_spend_their_time_on(best, bottleneck) -> None:
    first = row(TWO, 50, is_first=True, disk_megabytes_per_second=40.0)
    advice = recommend([first, best], WORKLOAD, **MEMORY)
    assert advice.bottleneck == bottleneck


@pytest.mark.parametrize(
    ("size", "rate", "bottleneck", "says"),
    [
        pytest.param(10**8, 30, "CPU", "can come from memory", id="fits"),
        pytest.param(10**10, 30, "disk", "Every epoch reads from disk", id="does_not_fit"),
        pytest.param(10**10, 90, "CPU", "First pass, from disk (40 MB/s): 90", id="fast_disk"),
        pytest.param(None, 30, "CPU", "First pass, from disk (40 MB/s): 30", id="unknown"),
    ],
)
def test_a_disk_limits_what_does_not_fit_into_memory(size, rate, bottleneck, says) -> None:
    first = row(TWO, rate, is_first=True, disk_megabytes_per_second=40.0)
    later = row(TWO, 100, cpus=1.9, speedup=1.9)
    advice = recommend([first, later], replace(WORKLOAD, bytes_on_disk=size), **MEMORY)
    assert advice.bottleneck == bottleneck
    assert says in " ".join(advice.remarks)


def test_remarks_compare_workers_with_threads_and_integers_with_floats() -> None:
    source_workers = replace(WORKERS, output="source")
    table = [row(TWO, 100), row(SOURCE, 300), row(source_workers, 240), row(NORMALIZED, 90)]
    text = "\n".join(recommend(table, WORKLOAD, **MEMORY).remarks)
    assert "2 workers of DataLoader read 0.80 times as fast as 2 threads: batches go" in text
    assert "Integers are read 3.0 times as fast as float32, and with normalize_batch on" in text
    assert "0.9 times: they are for training on a GPU" in text


def test_a_cache_is_no_advice_but_a_remark_with_what_it_would_take() -> None:
    cached = replace(TWO, cache=10**6)
    table = [row(ONE, 60), row(TWO, 100), row(cached, 350)]
    advice = recommend(table, replace(WORKLOAD, decoded_bytes=2 * 10**9), **MEMORY)
    assert advice.way == TWO
    assert advice.remarks[-1] == (
        "With decoded planes in memory (cache=...), 2 threads: 3.5 times as fast; all planes would "
        "take about 2.0 GB, this machine has 1.0 GB"
    )


@pytest.mark.parametrize(("dtype", "itemsize"), [("source", 2), ("float32", 4)])
def test_decoded_planes_take_an_image_and_a_label_for_each_slice(
    dataset, slice_dataset, dtype, itemsize
) -> None:
    dataset.add("a")
    output = slice_dataset(format="zarr", dtype=dtype, plane="k")
    for window_size in (None, 1):
        workload = choose_slices(output, window_size=window_size)
        assert workload.decoded_bytes == 8 * 9 * 10 * (itemsize + 1)
    kept = workload.dataset(workload.outputs[-1], cache=10**6)
    kept.read_batch(workload.rows)
    assert kept._cache.n_used == workload.decoded_bytes


def test_speed_up_is_against_one_thread_that_gives_the_same() -> None:
    def reading(way: Way, windows: int) -> Pass:
        return Pass(
            way=way,
            is_first=False,
            windows=windows,
            seconds=2.0,
            cpu_seconds=3.0,
            cpu_wait_seconds=1.0,
            array_bytes=10**7,
            disk_bytes=None,
        )

    source_one, normalized_one = replace(SOURCE, number=1), replace(NORMALIZED, number=1)
    ways = {ONE: 100, TWO: 150, source_one: 400, SOURCE: 600, normalized_one: 50, NORMALIZED: 75}
    passes = [reading(way, windows) for way, windows in ways.items()]
    passes += [reading(TWO, 190), reading(TWO, 170)]
    table = {each.way: each for each in rows(passes)}
    speedups = {way: each.speedup for way, each in table.items()}
    assert speedups == {
        ONE: 1.0,
        TWO: 1.7,
        source_one: 1.0,
        SOURCE: 1.5,
        normalized_one: 1.0,
        NORMALIZED: 1.5,
    }
    two = table[TWO]
    assert (two.windows_per_second, two.slowest, two.fastest) == (85, 75, 95)
    assert (two.cpus, two.cpu_wait, two.megabytes_per_second) == (1.5, 0.5, 5.0)


def test_the_call_names_the_window_and_the_plane() -> None:
    workload = replace(WORKLOAD, window_size=1, plane="coronal")
    assert recommend([row(TWO, 1)], workload, **MEMORY).call == (
        "SliceDataset('slices', window_size=1, plane='coronal')"
        ".loader(batch_size=8, threads=2, shuffle=True)"
    )
