"""The cache of decoded planes and label maps, alone and in a dataset."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from dask_slicer import SliceDataset
from dask_slicer.errors import UsageError
from dask_slicer.output.formats.zarr_planes import PlaneReader
from dask_slicer.training.cache import PlaneCache

PLANE = np.arange(12, dtype=np.int16).reshape(1, 3, 4)


def test_planes_are_copied_until_the_bytes_are_used_up() -> None:
    cache = PlaneCache(2 * PLANE.nbytes + 1)
    memory = PLANE.copy()
    for index in range(4):
        cache.planes_of("image", 7)[index] = memory
    memory[...] = 0
    assert cache.n_used == 2 * PLANE.nbytes
    later = cache.planes_of("image", 7)
    assert [index in later for index in range(4)] == [True, True, False, False]
    np.testing.assert_array_equal(later[1], PLANE)
    assert 1 not in cache.planes_of("image", 8)
    assert 1 not in cache.planes_of("label", 7)


def test_planes_of_a_batch_are_shared_without_room_in_the_cache() -> None:
    planes = PlaneCache(0).planes_of("image", 0)
    planes[3] = PLANE
    assert 3 in planes
    assert planes[3] is PLANE


def test_a_pickle_holds_no_planes() -> None:
    cache = PlaneCache(1_000_000)
    cache.planes_of("image", 0)[0] = PLANE
    copy = pickle.loads(pickle.dumps(cache))
    assert (copy.n_bytes, copy.planes) == (1_000_000, {})


@pytest.fixture
def store(dataset, slice_dataset):
    rng = np.random.default_rng(0)
    for case_id in "ab":
        dataset.add(case_id, rng.integers(-1000, 1000, (9, 8, 7)).astype(np.int16))
    return slice_dataset(format="zarr", dtype="source", window_size=1, train_ratio=1.0)


@pytest.mark.parametrize("output", ["float32", "source"])
@pytest.mark.parametrize("size", ["1kB", "1MB"])
def test_a_dataset_with_a_cache_reads_the_same(store, output, size) -> None:
    plain = SliceDataset(store, output=output)
    cached = SliceDataset(store, output=output, cache=size)
    for _ in range(2):
        for number in range(len(plain)):
            for name in ("image", "label"):
                np.testing.assert_array_equal(cached[number][name], plain[number][name])
    for batch in cached.loader(3, threads=2):
        for image, case_id, index in zip(
            batch["image"], batch["case_id"], batch["slice_index"], strict=True
        ):
            row = next(
                s for s in plain if (s["case_id"], s["slice_index"]) == (case_id, int(index))
            )
            np.testing.assert_array_equal(np.asarray(image), row["image"])


def test_planes_in_the_cache_are_not_decoded_again(store, monkeypatch) -> None:
    decoded = []
    decode = PlaneReader._decode_into
    monkeypatch.setattr(
        PlaneReader,
        "_decode_into",
        lambda self, *rest: decoded.append(self.path.parent.name) or decode(self, *rest),
    )
    cached = SliceDataset(store, output="source", cache=10**6)
    first = list(cached)
    assert (decoded.count("image"), decoded.count("label")) == (2 * 7, 2 * 7)
    again = list(cached)
    assert (decoded.count("image"), decoded.count("label")) == (2 * 7, 2 * 7)
    for name in ("image", "label"):
        np.testing.assert_array_equal(
            [sample[name] for sample in first], [sample[name] for sample in again]
        )


def test_a_cache_needs_a_size_and_a_zarr_store(store, slice_dataset) -> None:
    with pytest.raises(UsageError, match="cache must be a size such as 8GB, got much"):
        SliceDataset(store, cache="much")
    files = slice_dataset(output="files", train_ratio=1.0)
    with pytest.raises(UsageError, match="cache needs an output with --format zarr"):
        SliceDataset(files, cache="1GB")
