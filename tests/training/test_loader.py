"""Batches that threads fill: their order, their end, and their memory."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from dask_slicer import SliceDataset, SliceLoader
from dask_slicer.errors import CorruptFile, UsageError
from dask_slicer.output.formats.zarr_planes import one_thread

N_SLICES = 20  # of the two cases of conftest.py


@pytest.fixture
def slices(store) -> SliceDataset:
    return SliceDataset(store("zarr as stored"))


class Numbered:
    """A source of batches that are numbers, with a pause for each of them."""

    def __init__(self, n: int, pause: Callable[[int], float] = lambda _: 0) -> None:
        self._n, self._pause = n, pause
        self.read: list[int] = []

    def __len__(self) -> int:
        return self._n

    def read_batch(self, numbers: Sequence[int], allocate: object) -> dict[str, Any]:
        self.read.extend(numbers)
        time.sleep(sum(map(self._pause, numbers)))
        if -1 in numbers:
            raise CorruptFile("the last slice is damaged")
        return {"numbers": list(numbers)}


def numbers_of(loader: SliceLoader) -> list[list[int]]:
    return [batch["numbers"] for batch in loader]


def n_threads() -> int:
    return sum(thread.name.startswith("SliceLoader") for thread in threading.enumerate())


def wait_until(is_reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_reached():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class TestOrder:
    @pytest.mark.parametrize("threads", [0, 1, 2, 5])
    def test_batches_come_in_order_whichever_thread_is_ready_first(self, threads):
        source = Numbered(17, pause=lambda number: 0.002 * (number * 7 % 5))
        loader = SliceLoader(source, 3, threads=threads)
        expected = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], [12, 13, 14], [15, 16]]
        assert [numbers_of(loader), numbers_of(loader)] == [expected, expected]
        assert len(loader) == 6

    def test_a_shuffled_order_is_decided_by_seed_and_epoch_alone(self):
        orders = {}
        for threads in (0, 1, 4):
            for seed in (0, 1):
                loader = SliceLoader(Numbered(17), 3, threads=threads, shuffle=True, seed=seed)
                orders[threads, seed] = [numbers_of(loader) for _ in range(3)]
        assert orders[0, 0] == orders[1, 0] == orders[4, 0] != orders[0, 1]
        assert orders[0, 1] == orders[1, 1] == orders[4, 1]
        epochs = [[n for batch in epoch for n in batch] for epoch in orders[0, 0]]
        assert all(sorted(epoch) == list(range(17)) for epoch in epochs)
        assert epochs[0] != epochs[1] != epochs[2] != epochs[0]

    def test_an_epoch_can_be_chosen(self):
        loader = SliceLoader(Numbered(17), 3, shuffle=True)
        epochs = [numbers_of(loader) for _ in range(4)]
        loader.set_epoch(2)
        assert [numbers_of(loader), numbers_of(loader)] == epochs[2:]

    def test_what_does_not_fill_a_batch_can_be_left_out(self):
        for n, batches in ((17, 5), (15, 5), (2, 0), (0, 0)):
            loader = SliceLoader(Numbered(n), 3, drop_last=True)
            assert len(loader) == len(numbers_of(loader)) == batches

    @pytest.mark.parametrize("sampler", [[3, 3, 0, 16, -2], np.array([3, 3, 0, 16, -2])], ids=type)
    def test_a_sampler_decides_the_order(self, sampler):
        loader = SliceLoader(Numbered(17), 2, sampler=sampler)
        assert len(loader) == 3
        assert numbers_of(loader) == [[3, 3], [0, 16], [-2]]
        assert len(SliceLoader(Numbered(17), 2, sampler=sampler, drop_last=True)) == 2

    def test_a_sampler_is_asked_in_each_epoch(self):
        class Sampler:
            epoch = 0

            def __len__(self) -> int:
                return 2

            def __iter__(self) -> Iterator[int]:
                self.epoch += 1
                return iter([self.epoch, self.epoch + 1])

        loader = SliceLoader(Numbered(17), 2, sampler=Sampler())
        assert [numbers_of(loader), numbers_of(loader)] == [[[1, 2]], [[2, 3]]]

    def test_two_passes_at_once_do_not_disturb_each_other(self):
        loader = SliceLoader(Numbered(9), 2, threads=2)
        assert [a["numbers"] for a, b in zip(loader, loader, strict=True) if a == b] == numbers_of(
            loader
        )


class TestRanks:
    @pytest.mark.parametrize("n", [1, 3, 16, 17])
    @pytest.mark.parametrize("num_replicas", [1, 2, 4])
    @pytest.mark.parametrize("shuffle", [False, True])
    def test_all_ranks_together_read_every_slice_and_each_as_many(self, n, num_replicas, shuffle):
        loaders = [
            SliceLoader(Numbered(n), 3, shuffle=shuffle, rank=rank, num_replicas=num_replicas)
            for rank in range(num_replicas)
        ]
        for _ in range(2):
            batches = [numbers_of(loader) for loader in loaders]
            assert {number for rank in batches for batch in rank for number in batch} == {*range(n)}
            assert len({tuple(map(len, rank)) for rank in batches}) == 1
            assert {len(loader) for loader in loaders} == {len(batches[0])}

    def test_with_drop_last_no_slice_is_read_twice(self):
        loaders = [
            SliceLoader(Numbered(17), 2, shuffle=True, rank=rank, num_replicas=3, drop_last=True)
            for rank in range(3)
        ]
        batches = [numbers_of(loader) for loader in loaders]
        assert [len(rank) for rank in batches] == [len(loader) for loader in loaders] == [2, 2, 2]
        numbers = [number for rank in batches for batch in rank for number in batch]
        assert len(set(numbers)) == len(numbers) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer from 1 up, got 0"),
        ({"batch_size": 1.5}, "batch_size must be an integer from 1 up, got 1.5"),
        ({"threads": -1}, "threads must be an integer from 0 up, got -1"),
        ({"seed": -1}, "seed must be an integer from 0 up, got -1"),
        ({"sampler": [0], "shuffle": True}, "sampler decides the order: leave out shuffle"),
        ({"sampler": [0], "rank": 0, "num_replicas": 1}, "sampler decides the order"),
        ({"rank": 0}, "rank and num_replicas need each other"),
        ({"num_replicas": 2}, "rank and num_replicas need each other"),
        ({"rank": 2, "num_replicas": 2}, "rank must be from 0 to 1, got 2"),
    ],
    ids=str,
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        SliceLoader(Numbered(3), **arguments)


@pytest.mark.usefixtures("without_torch")
class TestBatches:
    @pytest.mark.parametrize("threads", [0, 2])
    @pytest.mark.parametrize("output", ["float32", "source"])
    def test_a_batch_has_the_values_of_its_samples(self, store, threads, output):
        slices = SliceDataset(store("zarr as stored"), output=output)
        loader = slices.loader(3, threads=threads, shuffle=True, seed=5)
        seen = []
        for batch in loader:
            numbers = [
                10 * (case_id == "b") + int(slice_index)
                for case_id, slice_index in zip(batch["case_id"], batch["slice_index"], strict=True)
            ]
            seen += numbers
            samples = [slices[number] for number in numbers]
            assert list(batch) == list(samples[0])
            for name, value in samples[0].items():
                if isinstance(value, np.ndarray):
                    assert batch[name].dtype == value.dtype
                np.testing.assert_array_equal(batch[name], [sample[name] for sample in samples])
        assert sorted(seen) == list(range(N_SLICES))

    def test_the_transform_is_applied_to_each_sample(self, slices):
        slices.transform = lambda sample: {"top": sample["image"][0], "where": sample["case_id"]}
        batches = list(slices.loader(8))
        np.testing.assert_array_equal(
            np.concatenate([batch["top"] for batch in batches]),
            [slices[number]["top"] for number in range(N_SLICES)],
        )
        assert [name for batch in batches for name in batch["where"]] == ["a"] * 10 + ["b"] * 10

    def test_a_training_loop_finds_what_it_asks_loaders_for(self, slices):
        loader = slices.loader(batch_size=8, sampler=range(5), drop_last=True)
        assert loader.dataset is slices
        assert (loader.batch_size, loader.sampler, loader.drop_last) == (8, range(5), True)
        assert loader.batch_sampler is None

    def test_torch_is_not_imported(self, slices):
        program = (
            "import sys, numpy; from dask_slicer import SliceDataset\n"
            f"batches = list(SliceDataset({str(slices.output_dir)!r}).loader(8))\n"
            "assert all(type(batch['image']) is numpy.ndarray for batch in batches)\n"
            "assert 'torch' not in sys.modules, 'torch is imported'"
        )
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


class TestStopping:
    def test_threads_end_with_the_epoch(self):
        assert len(list(SliceLoader(Numbered(9), threads=3))) == 9
        wait_until(lambda: not n_threads())

    def test_threads_end_when_a_loop_is_left(self):
        for batch in SliceLoader(Numbered(99), threads=3):
            assert batch["numbers"] == [0]
            break
        wait_until(lambda: not n_threads())

    def test_threads_end_when_an_iterator_in_a_circle_is_collected(self):
        circle: list[Any] = [iter(SliceLoader(Numbered(99), threads=3))]
        circle.append(circle)
        next(circle[0])
        del circle
        gc.collect()
        wait_until(lambda: not n_threads())

    def test_little_is_read_ahead(self):
        source = Numbered(99)
        batches = iter(SliceLoader(source, 2, threads=3))
        next(batches)
        wait_until(lambda: len(source.read) == 12)
        time.sleep(0.02)
        assert sorted(source.read) == list(range(12))

    def test_an_ended_epoch_stays_ended(self):
        for threads in (0, 2):
            batches = iter(SliceLoader(Numbered(3), threads=threads))
            assert len(list(batches)) == 3
            assert [next(batches, None), next(batches, None)] == [None, None]

    @pytest.mark.parametrize("threads", [0, 2])
    def test_an_error_is_raised_at_its_batch_and_the_next_can_be_asked_for(self, threads):
        order = [0, 1, 2, -1, 4, 5]
        batches = iter(SliceLoader(Numbered(6), threads=threads, sampler=order))
        assert [next(batches)["numbers"] for _ in range(3)] == [[0], [1], [2]]
        with pytest.raises(CorruptFile, match="the last slice is damaged"):
            next(batches)
        assert [batch["numbers"] for batch in batches] == [[4], [5]]

    @pytest.mark.parametrize("threads", [0, 2])
    def test_a_damaged_file_is_named_at_its_batch(self, store, tmp_path, threads):
        path = shutil.copytree(store("npz"), tmp_path / "damaged")
        files = sorted(path.rglob("a_*.npz"))
        files[4].write_bytes(files[4].read_bytes()[:40])
        batches = iter(SliceDataset(path).loader(2, threads=threads))
        assert [len(next(batches)["case_id"]) for _ in range(2)] == [2, 2]
        with pytest.raises(CorruptFile, match=r"case a, slice 4: .*a_.*npz.*--repair"):
            next(batches)
        assert sum(len(batch["case_id"]) for batch in batches) == N_SLICES - 6

    def test_the_interpreter_ends_in_the_middle_of_an_epoch(self, slices):
        program = (
            "import time; from dask_slicer import SliceDataset\n"
            f"batches = iter(SliceDataset({str(slices.output_dir)!r}).loader(1, threads=3))\n"
            "next(batches)\n"
            "print(time.time(), flush=True)"
        )
        shown = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
        )
        assert time.time() - float(shown.stdout) < 10
        assert shown.stderr == ""


@pytest.mark.usefixtures("without_torch")
class TestMemory:
    def test_batches_that_are_kept_stay_as_they_are(self, store):
        slices = SliceDataset(store("zarr as stored"))
        loader = slices.loader(3, threads=3)
        epochs = [list(loader) for _ in range(3)]
        for batches in epochs:
            images = np.concatenate([batch["image"] for batch in batches])
            np.testing.assert_array_equal(images, [sample["image"] for sample in slices])
            labels = np.concatenate([batch["label"] for batch in batches])
            np.testing.assert_array_equal(labels, [sample["label"] for sample in slices])

    @pytest.mark.parametrize(
        "part",
        [
            lambda image: image[0],
            lambda image: image[1:, ::2].T[1:],
            lambda image: image.reshape(-1)[5:40].view(np.int32),
            lambda image: np.frombuffer(image, np.uint8),
            lambda image: memoryview(image)[1:],
            lambda image: np.asarray(np.ma.masked_array(image).data[-1:]),
        ],
        ids=range(6),
    )
    def test_a_part_that_is_kept_alone_keeps_the_memory_of_its_batch(self, slices, part):
        loader = slices.loader(2, threads=2)
        for _ in range(2):
            kept = [part(batch["image"]) for batch in loader]
            expected = [np.array(part(np.array(batch["image"]))) for batch in loader]
            for array, copy in zip(kept, expected, strict=True):
                np.testing.assert_array_equal(np.array(array), copy)

    @pytest.mark.parametrize("threads", [0, 2])
    def test_many_epochs_take_no_more_memory_than_a_few_batches(self, slices, threads):
        loader = slices.loader(4, threads=threads)
        addresses = {batch["image"].ctypes.data for _ in range(20) for batch in loader}
        assert len(addresses) <= 2 * threads + 3
        assert len(loader._pool._free) <= 2 * (2 * threads + 2)

    def test_errors_do_not_hold_memory(self, store, tmp_path):
        path = shutil.copytree(store("zarr"), tmp_path / "damaged")
        for file in path.rglob("b/label/c/*/0/0"):
            file.unlink()
        loader = SliceDataset(path, cases=["b"]).loader(4, threads=2)
        for _ in range(10):
            for _ in range(len(loader)):
                batches = iter(loader)
                with pytest.raises(CorruptFile, match="case b"):
                    next(batches)
        del batches
        wait_until(lambda: not n_threads())
        assert 0 < len(loader._pool._free) <= 12


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.usefixtures("without_torch")  # whose own threads do not survive a fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
class TestForks:
    def test_a_child_decodes_that_was_forked_while_threads_were_decoding(self, slices):
        expected = [float(sample["image"].sum()) for sample in slices]
        batches = iter(slices.loader(2, threads=3))
        next(batches)
        with one_thread:  # as the threads do now and then
            child = os.fork()
            if child == 0:
                signal.alarm(30)  # ends it where it waits for ever
                in_order = [float(batch["image"].sum()) for batch in slices.loader(1, threads=2)]
                del batches
                os._exit(in_order != expected or one_thread._n_users)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    def test_a_lock_that_another_thread_held_is_free_in_a_child(self):
        is_held, may_end = threading.Event(), threading.Event()

        def hold() -> None:
            with one_thread._lock:
                is_held.set()
                may_end.wait(20)

        thread = threading.Thread(target=hold)
        thread.start()
        is_held.wait(20)
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # ends it where it waits for ever
            with one_thread:
                os._exit(0)
        may_end.set()
        thread.join()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_loader_can_be_pickled_with_its_place(slices) -> None:
    loader = slices.loader(3, shuffle=True, seed=2)
    list(loader)
    copy = pickle.loads(pickle.dumps(loader))
    assert copy.epoch == 1
    assert [b["slice_index"].tolist() for b in copy] == [b["slice_index"].tolist() for b in loader]
