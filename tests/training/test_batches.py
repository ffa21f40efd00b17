"""Batches of slices: the samples of single reads, in one array."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dask_slicer import SliceDataset
from dask_slicer.errors import CorruptFile, UsageError
from dask_slicer.output.formats.zarr_planes import PlaneReader
from dask_slicer.training.memory import joined
from dask_slicer.utils.array_pool import ArrayPool

# Names of outputs, see conftest.py.
STORES = (
    *("npz", "npz of float16", "zarr", "zarr of float16"),
    *("zarr as stored", "png", "png of 16 bit"),
)
WITH_INTEGERS = ("zarr as stored", "png", "png of 16 bit")
Slice = Callable[..., Path]
# Slices of two cases of 10 slices each, some of them twice, in an order of no rule.
NUMBERS = [3, 17, 4, -1, 3, 0, 12, 13, 5]


def assert_same(sample: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(sample) == list(expected)
    for name, value in expected.items():
        assert type(sample[name]) is type(value)
        if isinstance(value, np.ndarray):
            assert sample[name].dtype == value.dtype
        np.testing.assert_array_equal(sample[name], value)


class TestSamples:
    @pytest.mark.parametrize("name", STORES)
    def test_samples_of_a_batch_are_those_of_single_reads_in_the_order_asked(self, store, name):
        slices = SliceDataset(store(name))
        for sample, number in zip(slices.__getitems__(NUMBERS), NUMBERS, strict=True):
            assert_same(sample, slices[number])

    @pytest.mark.parametrize("name", WITH_INTEGERS)
    def test_stored_integers_are_the_same_in_a_batch_too(self, store, name):
        slices = SliceDataset(store(name), output="source")
        for sample, number in zip(slices.__getitems__(NUMBERS), NUMBERS, strict=True):
            assert_same(sample, slices[number])

    @pytest.mark.parametrize(
        "settings",
        [
            {"padding_mode": "zero", "context_step": 2},
            {"padding_mode": "replicate", "context_mm": 5.0},
            {"padding_mode": "mirror", "plane": ["axial", "coronal"], "spacing": (2, 2, 2)},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("options", [{}, {"channels": "center"}, {"window_size": 5}])
    def test_windows_and_planes_are_those_of_single_reads(self, store, settings, options):
        slices = SliceDataset(store("zarr", **settings), None, **options)
        of_one_size: dict[tuple[int, ...], list[int]] = {}
        for number, sample in enumerate(slices):
            of_one_size.setdefault(sample["image"].shape, []).append(number)
        for numbers in of_one_size.values():
            for sample, number in zip(slices.__getitems__(numbers), numbers, strict=True):
                assert_same(sample, slices[number])

    @pytest.mark.parametrize(
        ("name", "output"),
        [(name, "float32") for name in STORES] + [(name, "source") for name in WITH_INTEGERS],
    )
    def test_samples_are_views_into_one_array(self, store, name, output):
        samples = SliceDataset(store(name), output=output).__getitems__(NUMBERS)
        for key in ("image", "label"):
            whole = joined([sample[key] for sample in samples])
            assert whole is not None
            assert len(whole) == len(samples)

    def test_no_number_gives_no_sample(self, store):
        assert SliceDataset(store("npz")).__getitems__([]) == []

    def test_a_number_beyond_the_slices_is_an_error(self, store):
        with pytest.raises(IndexError, match="there are 20 slices, got index 20"):
            SliceDataset(store("zarr")).__getitems__([0, 20])

    def test_a_batch_leaves_those_before_it_alone(self, store):
        slices = SliceDataset(store("zarr"))
        kept = [slices.__getitems__(NUMBERS) for _ in range(7)]
        for samples in kept:
            for sample, number in zip(samples, NUMBERS, strict=True):
                assert_same(sample, slices[number])


class TestDecoding:
    @pytest.fixture
    def decoded(self, monkeypatch) -> Counter[tuple[str, str, int]]:
        """Return a counter of decoded planes, by case, image or label, and slice."""
        counter: Counter[tuple[str, str, int]] = Counter()
        decode = PlaneReader._decode_into

        def counted(self: PlaneReader, out: Any, chunk: Any, index: int) -> None:
            counter[(*self.path.parts[-3:-1], index)] += 1
            decode(self, out, chunk, index)

        monkeypatch.setattr(PlaneReader, "_decode_into", counted)
        return counter

    @pytest.mark.parametrize("padding_mode", ["zero", "replicate", "mirror"])
    @pytest.mark.parametrize("output", ["float32", "source"])
    def test_each_plane_is_decoded_once_however_many_windows_hold_it(
        self, store, decoded, padding_mode, output
    ):
        path = store("zarr as stored", padding_mode=padding_mode)
        SliceDataset(path, output=output).__getitems__(range(20))
        planes = {(case, "image", index) for case in "ab" for index in range(10)}
        assert planes < decoded.keys()
        assert set(decoded.values()) == {1}

    def test_a_single_window_is_decoded_without_what_it_repeats(self, store, decoded):
        SliceDataset(store("zarr", padding_mode="replicate"))[0]
        planes = [("a", "image", index) for index in range(3)]
        assert decoded == Counter([*planes, ("a", "label", 0)])


class TestSizes:
    @pytest.fixture
    def unequal(self, dataset, slice_dataset) -> Path:
        """Return slices of two cases of unequal sizes."""
        dataset.add("a")
        dataset.add("b", np.arange(7 * 9 * 10, dtype=np.int16).reshape(7, 9, 10))
        return slice_dataset(train_ratio=1.0, window_size=0)

    def test_unequal_sizes_are_an_error_that_names_both_and_the_option(self, unequal):
        slices = SliceDataset(unequal)
        message = (
            r"a batch needs slices of one size, but a has 1 × \d+ × \d+ and b 1 × \d+ × \d+ .*; "
            "make the slices again with --size, or choose"
        )
        for read in (slices.__getitems__, slices.read_batch):
            with pytest.raises(UsageError, match=message):
                read([0, len(slices) - 1])
        with pytest.raises(UsageError, match=r"a has .* and b has .* with --size"):
            slices.collate([slices[0], slices[-1]])
        assert len(slices.__getitems__([0, 1])) == 2

    def test_a_transform_may_make_sizes_equal(self, unequal):
        slices = SliceDataset(unequal, transform=lambda s: s | {"image": s["image"][:, :3, :3]})
        images = [sample["image"] for sample in slices.__getitems__([0, -1])]
        np.testing.assert_array_equal(images, [slices[0]["image"], slices[-1]["image"]])


class TestDtypes:
    @pytest.mark.parametrize(
        ("stored", "dtype"),
        [("u1", "u1"), ("i1", "i1"), ("i2", "i2"), (">i2", "i2"), ("u2", "i4"), ("i4", "i4")],
    )
    def test_integers_are_as_stored_or_such_as_torch_computes_with(
        self, dataset, slice_dataset, stored, dtype
    ):
        info = np.iinfo(stored)
        image = np.random.default_rng(0).integers(info.min, info.max, (6, 5, 4), endpoint=True)
        dataset.add("a", image.astype(stored))
        path = slice_dataset(format="zarr", dtype="source", window_size=0)
        samples = SliceDataset(path, None, output="source").__getitems__(range(4))
        assert all(sample["image"].dtype == dtype for sample in samples)
        read = np.concatenate([sample["image"] for sample in samples])
        assert sorted(read.ravel().tolist()) == sorted(image.ravel().tolist())

    def test_cases_of_several_dtypes_share_one_that_holds_all(self, dataset, slice_dataset):
        rng = np.random.default_rng(0)
        for case_id, dtype in (("a", "u1"), ("b", "i1"), ("c", "u2")):
            info = np.iinfo(dtype)
            dataset.add(case_id, rng.integers(info.min, info.max, (6, 5, 4)).astype(dtype))
        path = slice_dataset(format="zarr", dtype="source", train_ratio=1.0)
        slices = SliceDataset(path, output="source")
        for numbers, dtype in ((range(8), np.int16), (range(12), np.int32)):
            samples = slices.__getitems__(numbers)
            assert {sample["image"].dtype for sample in samples} == {np.dtype(dtype)}
            for sample, number in zip(samples, numbers, strict=True):
                np.testing.assert_array_equal(sample["image"], slices[number]["image"])

    @pytest.mark.parametrize(
        ("name", "dtype"),
        [
            *(("npz", "float32"), ("npz of float16", "float16")),
            *(("zarr", "float32"), ("zarr of float16", "float16")),
        ],
    )
    def test_an_output_without_integers_says_so_in_a_line(self, store, name, dtype):
        with pytest.raises(
            UsageError, match=f"holds no integers, but {dtype}.*--dtype source"
        ) as e:
            SliceDataset(store(name), output="source")
        assert "\n" not in str(e.value)

    @pytest.mark.parametrize("stored", ["f4", "u4"])
    def test_numbers_that_torch_has_no_integers_for_are_refused(
        self, dataset, slice_dataset, stored
    ):
        dataset.add("a", np.arange(120).reshape(6, 5, 4).astype(stored))
        path = slice_dataset(format="zarr", dtype="source")
        name = np.dtype(stored).name
        with pytest.raises(UsageError, match=f"case a is stored as {name}, .* 32 bit, signed"):
            SliceDataset(path, None, output="source")[0]

    def test_another_output_is_refused(self, store):
        with pytest.raises(UsageError, match="output must be float32 or source, got int16"):
            SliceDataset(store("npz"), output="int16")


class TestLabels:
    @pytest.fixture
    def half(self, dataset, slice_dataset) -> SliceDataset:
        """Return slices of a case with a label and one without."""
        dataset.add("a")
        dataset.add("b", label=None)
        path = slice_dataset(format="zarr", train_ratio=1.0, allow_missing_labels=True)
        return SliceDataset(path)

    def test_each_sample_has_the_label_of_its_case(self, half):
        for sample, number in zip(half.__getitems__(NUMBERS), NUMBERS, strict=True):
            assert_same(sample, half[number])

    def test_a_batch_of_cases_with_and_without_is_an_error(self, half):
        for read in (half.read_batch, lambda n: half.collate(half.__getitems__(n))):
            with pytest.raises(UsageError, match=r"a and b differ in label; choose .* `cases`"):
                read([0, 19])
            assert "label" in read([0, 1])
            assert "label" not in read([18, 19])


@pytest.mark.usefixtures("without_torch")
def test_a_batch_of_one_npz_slice_is_in_the_memory_that_is_given(dataset, slice_dataset) -> None:
    dataset.add("a")
    slices = SliceDataset(slice_dataset(train_ratio=1.0))
    given: list[np.ndarray] = []

    def allocate(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        given.append(np.empty(shape, dtype))
        return given[-1]

    batch = slices.read_batch([3], allocate)
    assert any(np.shares_memory(batch["image"], array) for array in given)
    own = slices[3]["image"]
    np.testing.assert_array_equal(own, batch["image"][0])
    own += 1  # it is the caller's
    np.testing.assert_array_equal(slices[3]["image"], batch["image"][0])


@pytest.mark.usefixtures("without_torch")
class TestCollate:
    @pytest.mark.parametrize("output", ["float32", "source"])
    def test_a_batch_is_handed_on_without_a_copy(self, store, output):
        slices = SliceDataset(store("zarr as stored"), output=output)
        samples = slices.__getitems__(NUMBERS)
        batch = slices.collate(samples)
        assert list(batch) == list(samples[0])
        for key in ("image", "label"):
            assert batch[key].ctypes.data == samples[0][key].ctypes.data
        assert_batch(batch, [slices[number] for number in NUMBERS])

    @pytest.mark.parametrize("order", [[0, 1], [1, 0], [0, 2], [0, 0], [1, 2]], ids=str)
    def test_samples_that_are_not_a_whole_batch_are_copied(self, store, order):
        slices = SliceDataset(store("zarr"))
        samples = slices.__getitems__([4, 5, 6])
        batch = slices.collate([samples[place] for place in order])
        assert not any(np.shares_memory(batch["image"], sample["image"]) for sample in samples)
        assert_batch(batch, [slices[4 + place] for place in order])

    def test_samples_of_single_reads_make_the_same_batch(self, store):
        slices = SliceDataset(store("npz"))
        assert_batch(slices.collate([slices[n] for n in NUMBERS]), [slices[n] for n in NUMBERS])

    def test_arrays_of_the_user_are_not_part_of_a_batch(self, store):
        mine = np.zeros((20, 3, 3))
        whole = np.ones((1, 3, 3))

        def transform(sample: dict[str, Any]) -> dict[str, Any]:
            return sample | {"mine": mine[sample["slice_index"]], "whole": whole[0]}

        slices = SliceDataset(store("npz"), transform=transform)
        for numbers in (range(10), [0]):
            batch = slices.collate(slices.__getitems__(numbers))
            assert not np.shares_memory(batch["mine"], mine)
            assert not np.shares_memory(batch["whole"], whole)

    def test_what_a_transform_makes_of_samples_is_collated(self, store):
        def transform(sample: dict[str, Any]) -> dict[str, Any]:
            first, last = int(sample["slice_index"]), sample["image"][-1]
            name = f"{sample['case_id']}_{first}"
            return {"image": last, "name": name, "half": first / 2, "even": first % 2 == 0}

        slices = SliceDataset(store("npz"), transform=transform)
        for batch in (slices.read_batch([1, 2]), slices.collate(slices.__getitems__([1, 2]))):
            np.testing.assert_array_equal(batch["image"], [slices[1]["image"], slices[2]["image"]])
            assert batch["name"] == ["a_1", "a_2"]
            assert batch["half"].tolist() == [0.5, 1.0]
            assert batch["even"].tolist() == [False, True]

    def test_samples_may_be_no_dicts(self, store):
        slices = SliceDataset(store("npz"), transform=lambda sample: sample["image"])
        np.testing.assert_array_equal(slices.read_batch([1, 2]), [slices[1], slices[2]])
        pairs = SliceDataset(store("npz"), transform=lambda s: (s["slice_index"], s["case_id"]))
        assert pairs.read_batch([1, 2]) == [(1, "a"), (2, "a")]

    @pytest.mark.parametrize("name", STORES)
    def test_a_batch_that_is_read_at_once_is_that_of_its_samples(self, store, name):
        slices = SliceDataset(store(name))
        assert_batch(slices.read_batch(NUMBERS), [slices[number] for number in NUMBERS])

    def test_a_batch_is_read_into_memory_of_the_caller(self, store):
        slices = SliceDataset(store("zarr"))
        made = []

        def allocate(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
            made.append(np.empty(shape, dtype))
            return made[-1]

        batch = slices.read_batch(NUMBERS, allocate)
        assert [batch["image"] is made[0], batch["label"] is made[1]] == [True, True]

    def test_planes_are_named_where_there_are_several(self, store):
        path = store("zarr", plane=["axial", "coronal"])
        slices = SliceDataset(path, plane="coronal")
        batch = slices.read_batch([0, 1])
        assert batch["plane"] == ["coronal", "coronal"]
        assert_batch(batch, [slices[0], slices[1]])


def assert_batch(batch: dict[str, Any], samples: list[dict[str, Any]]) -> None:
    """Check that a batch without torch holds exactly the values of samples."""
    assert list(batch) == list(samples[0])
    for name, value in samples[0].items():
        values = [sample[name] for sample in samples]
        assert type(batch[name]) is (list if isinstance(value, str) else np.ndarray)
        if isinstance(value, np.ndarray):
            assert batch[name].dtype == value.dtype
        np.testing.assert_array_equal(batch[name], values)


class TestDamage:
    @pytest.mark.parametrize("name", ["npz", "zarr", "png"])
    def test_a_damaged_slice_is_named_and_others_can_be_read(self, store, tmp_path, name):
        path = shutil.copytree(store(name, window_size=0), tmp_path / "damaged")
        expected = list(SliceDataset(path, cases=["b"]))
        for pattern in ("a_*.npz", "a/image/c/0/0/0/0", "images/train/a_*.png"):
            for file in path.rglob(pattern):
                file.write_bytes(file.read_bytes()[:40])
        slices = SliceDataset(path)
        with pytest.raises(CorruptFile, match=r"case a, slice 3: .*--repair") as error:
            slices.__getitems__([12, 3, 4])
        assert "\n" not in str(error.value)
        for sample, wanted in zip(slices.__getitems__(range(10, 20)), expected, strict=True):
            assert_same(sample, wanted)


class TestThreads:
    def test_threads_share_a_dataset_of_more_cases_than_stay_open(self, store, monkeypatch):
        monkeypatch.setattr("dask_slicer.training.open_cases._most_open", lambda: 1)
        slices = SliceDataset(store("zarr as stored"))
        expected = [slices[number] for number in range(20)]

        def read(start: int) -> None:
            for number in range(start, start + 25):
                numbers = [number % 20, (number + 10) % 20]
                for sample, place in zip(slices.__getitems__(numbers), numbers, strict=True):
                    assert_same(sample, expected[place])

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(read, range(8)))

    def test_a_case_that_another_thread_closes_meanwhile_is_closed(self, store, monkeypatch):
        monkeypatch.setattr("dask_slicer.training.open_cases._most_open", lambda: 1)
        slices = SliceDataset(store("zarr"))
        closed = []

        class Readers(dict):  # the worst moment: the first is looked up, and then it is not there
            def __iter__(self) -> Iterator[int]:
                first = next(super().__iter__())
                closed.append(self.pop(first))
                return iter([first])

        slices._open_cases._readers = Readers()
        expected = SliceDataset(slices.output_dir)
        for number in (3, 13, 4, 5):
            assert_same(slices[number], expected[number])
        assert len(closed) == 2


class TestMemory:
    def test_memory_is_used_again_when_nothing_on_it_is_left(self):
        pool = ArrayPool(2)
        array = pool.empty((4, 3), np.float32)
        address, part = array.ctypes.data, array[1:, :2].T
        del array
        part[...] = 7
        assert pool.empty((4, 3), np.float32).ctypes.data != address
        assert (part == 7).all()
        del part
        assert address in {pool.empty((3, 4), np.int32).ctypes.data for _ in range(2)}

    def test_little_memory_waits(self):
        pool = ArrayPool(3)
        arrays = [pool.empty((10,), np.uint8) for _ in range(9)]
        assert len({array.ctypes.data for array in arrays}) == 9
        del arrays
        assert len(pool._free) == 3

    @pytest.mark.parametrize(("n", "fits"), [(50, True), (100, True), (49, False), (101, False)])
    def test_memory_fits_what_takes_half_of_it_or_more(self, n, fits):
        pool = ArrayPool(1)
        array = pool.empty((100,), np.uint8)
        address = array.ctypes.data
        del array
        other = pool.empty((n,), np.uint8)
        assert (other.ctypes.data == address) is fits
