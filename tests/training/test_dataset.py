"""One contract for every format: the same windows, labels and choices, whatever is on disk."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import deflate
import numpy as np
import pytest

from dask_slicer import SliceDataset, open_output
from dask_slicer.errors import CorruptFile, OutputError, UsageError
from dask_slicer.output.layout import CONFIG, INDEX, JOURNAL, SUMMARY

pytestmark = pytest.mark.versions

FORMATS = [
    ("npz", "float32"),
    ("npz", "float16"),
    ("zarr", "float32"),
    ("zarr", "float16"),
    ("zarr", "source"),
]
Slice = Callable[..., Path]


def windows_of(output: Path) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """Return what numpy alone reads from .npz slices."""
    found = {}
    for path in sorted(output.glob("*/*.npz")):
        case_id, _, number = path.stem.rpartition("_")
        with np.load(path) as members:
            found[case_id, int(number)] = {name: members[name] for name in ("image", "label")}
    return found


@pytest.fixture
def cases(dataset) -> None:
    """Two cases of unequal sides, one stored flipped; the slices at one end have no label."""
    rng = np.random.default_rng(3)
    for case_id in ("a", "b"):
        image = rng.integers(-900, 1200, (9, 7, 6)).astype(np.int16)
        label = (rng.random(image.shape) > 0.6).astype(np.uint8) * 2
        label[..., :2] = 0
        affine = np.diag([1.5, -2.0, 3.0, 1.0])
        dataset.add(case_id, image, label, affine)


@pytest.mark.usefixtures("cases")
class TestContract:
    @pytest.mark.parametrize(("format_", "dtype"), FORMATS)
    @pytest.mark.parametrize("padding_mode", ["zero", "replicate", "mirror"])
    @pytest.mark.parametrize("plane", ["axial", "sagittal", "j"])
    def test_windows_and_labels_are_those_of_npz(
        self, slice_dataset: Slice, format_, dtype, padding_mode, plane
    ):
        settings = {"padding_mode": padding_mode, "plane": plane, "clip_max": 900.5}
        stored = "float32" if dtype == "source" else dtype
        reference = windows_of(slice_dataset(output="npz", dtype=stored, **settings))
        output = slice_dataset(output="tried", format=format_, dtype=dtype, **settings)
        samples = list(SliceDataset(output, split=None))
        assert {(s["case_id"], s["slice_index"]) for s in samples} == reference.keys()
        for sample in samples:
            wanted = reference[sample["case_id"], sample["slice_index"]]
            assert sample["image"].dtype == np.float32
            np.testing.assert_array_equal(sample["image"], wanted["image"].astype(np.float32))
            np.testing.assert_array_equal(sample["label"], wanted["label"])
            assert sample["label"].dtype == wanted["label"].dtype

    @pytest.mark.parametrize(("format_", "dtype"), FORMATS)
    def test_windows_see_the_neighbours_of_slices_that_were_dropped(
        self, slice_dataset: Slice, format_, dtype
    ):
        stored = "float32" if dtype == "source" else dtype
        whole = windows_of(slice_dataset(output="npz", dtype=stored))
        output = slice_dataset(output="tried", format=format_, dtype=dtype, min_foreground=0.2)
        samples = list(SliceDataset(output, split=None))
        assert 0 < len(samples) < len(whole)
        for sample in samples:
            wanted = whole[sample["case_id"], sample["slice_index"]]["image"]
            np.testing.assert_array_equal(sample["image"], wanted.astype(np.float32))

    @pytest.mark.parametrize(("format_", "dtype"), FORMATS)
    @pytest.mark.parametrize("normalize", ["minmax", "percentile", "none"])
    def test_source_reads_equal_npz_for_every_normalisation(
        self, slice_dataset, format_, dtype, normalize
    ):
        settings = {"normalize": normalize, "clip_min": -500.25}
        stored = "float32" if dtype == "source" else dtype
        reference = windows_of(slice_dataset(output="npz", dtype=stored, **settings))
        output = slice_dataset(output="tried", format=format_, dtype=dtype, **settings)
        for sample in SliceDataset(output, split=None):
            wanted = reference[sample["case_id"], sample["slice_index"]]["image"]
            np.testing.assert_array_equal(sample["image"], wanted.astype(np.float32))


@pytest.mark.parametrize(("format_", "dtype"), FORMATS)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        *[("i2", "u1"), ("i2", "u2"), ("f4", "i2"), (">i2", ">f8"), ("i4", "i4"), ("u1", "i1")],
        *[("f4", "i4"), ("f8", "f4"), ("u4", "i2")],
    ],
)
def test_source_reads_equal_npz_for_modalities_of_any_dtype(
    dataset, slice_dataset, format_, dtype, first, second
):
    rng = np.random.default_rng(1)
    for channel, name in enumerate((first, second)):
        low = 0 if np.dtype(name).kind == "u" else -100
        image = rng.integers(low, 120, (6, 5, 4)).astype(np.dtype(name))
        dataset.add("a", image, True if channel == 0 else None, channel=channel)
    stored = "float32" if dtype == "source" else dtype
    settings = {"clip_max": 99}
    reference = windows_of(slice_dataset(output="npz", dtype=stored, **settings))
    output = slice_dataset(output="tried", format=format_, dtype=dtype, **settings)
    for sample in SliceDataset(output, split=None):
        wanted = reference[sample["case_id"], sample["slice_index"]]["image"]
        np.testing.assert_array_equal(sample["image"], wanted.astype(np.float32))


@pytest.mark.parametrize(("format_", "dtype"), FORMATS)
@pytest.mark.parametrize("stored", ["int16", "float32"])
def test_minmax_reaches_0_and_1_and_nothing_beyond(dataset, slice_dataset, format_, dtype, stored):
    # By rounding, the largest voxels would reach 1.0000001: this limit is no float32.
    for largest in (200, 230, 300):
        image = np.linspace(-100, largest, 24).round().astype(stored).reshape(4, 3, 2)
        dataset.add(f"case_{largest}", image, None)
    settings = {"normalize": "minmax", "clip_min": -59.817, "window_size": 0}
    settings["allow_missing_labels"] = True
    output = slice_dataset(format=format_, dtype=dtype, train_ratio=1.0, **settings)
    images = [sample["image"] for sample in SliceDataset(output, None)]
    assert (np.min(images), np.max(images)) == (0, 1)


def test_nan_taken_as_zero_is_zero_in_source_too(dataset, slice_dataset):
    image = np.random.default_rng(0).normal(100, 20, (6, 5, 4)).astype(np.float32)
    image[2, 3, 1] = np.nan
    image[0, 0, 0] = np.inf
    dataset.add("a", image)
    reference = windows_of(slice_dataset(output="npz", nonfinite="zero"))
    output = slice_dataset(output="tried", format="zarr", dtype="source", nonfinite="zero")
    for sample in SliceDataset(output, split=None):
        wanted = reference["a", sample["slice_index"]]["image"]
        np.testing.assert_array_equal(sample["image"], wanted)


def test_windows_and_volumes_of_two_modalities(dataset, slice_dataset):
    rng = np.random.default_rng(2)
    for channel in (0, 1):
        image = rng.integers(0, 99, (6, 5, 4)).astype(np.int16)
        dataset.add("a", image, True if channel == 0 else None, channel=channel)
    outputs = [
        slice_dataset(output=format_, format=format_, window_size=2) for format_ in ("npz", "zarr")
    ]
    for sample in SliceDataset(outputs[1], None):
        (wanted,) = (
            one for one in SliceDataset(outputs[0], None)
            if one["slice_index"] == sample["slice_index"]
        )  # fmt: skip
        np.testing.assert_array_equal(sample["image"], wanted["image"])
    for window_size in (0, 1):
        for one, other in zip(
            *(SliceDataset(output, None, window_size=window_size) for output in outputs),
            strict=True,
        ):
            assert len(one["image"]) == 2 * (2 * window_size + 1)
            np.testing.assert_array_equal(one["image"], other["image"])
    volumes = [open_output(output).volume("a")[0] for output in outputs]
    np.testing.assert_array_equal(*volumes)
    centers = np.stack([s["image"] for s in SliceDataset(outputs[1], None, channels="center")])
    np.testing.assert_array_equal(volumes[0], centers.swapaxes(0, 1))


@pytest.fixture(params=["npz", "zarr", "source"])
def output(request, cases, slice_dataset: Slice) -> Path:
    """Return slices of two cases, all in train, as they may be stored."""
    stored = {"npz": {}, "zarr": {"format": "zarr"}}
    stored["source"] = {"format": "zarr", "dtype": "source"}
    return slice_dataset(output="out", train_ratio=1.0, **stored[request.param])


def test_few_cases_stay_open_and_all_can_be_read(output, monkeypatch):
    expected = [s["image"] for s in SliceDataset(output)]
    monkeypatch.setattr("dask_slicer.training.open_cases._most_open", lambda: 1)
    dataset = SliceDataset(output)
    for number in (0, 7, 1, 8, 0):
        np.testing.assert_array_equal(dataset[number]["image"], expected[number])
        assert list(dataset._open_cases._readers) == [int(dataset._index.case[number])]


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted as Linux does")
def test_reading_starts_no_thread(dataset, slice_dataset):
    image = np.random.default_rng(0).integers(0, 9999, (512, 512, 2)).astype(np.int16)
    dataset.add("a", image)  # a plane of several blocks
    read = SliceDataset(slice_dataset(format="zarr", dtype="source"), None, window_size=0)
    before = len(os.listdir("/proc/self/task"))
    read[0]
    assert len(os.listdir("/proc/self/task")) == before


@pytest.fixture
def inflated(monkeypatch) -> list[int]:
    """Return a list that gets the number of bytes of each array of .npz files that is inflated."""
    lengths, inflate = [], deflate.deflate_decompress
    monkeypatch.setattr(
        deflate, "deflate_decompress", lambda data, n: lengths.append(n) or inflate(data, n)
    )
    return lengths


def test_each_array_of_an_npz_file_is_inflated_once(cases, slice_dataset, inflated):
    sample = SliceDataset(slice_dataset(), None)[0]
    metadata_bytes, *others = inflated
    assert others == [128 + sample[name].nbytes for name in ("label", "image")]
    assert metadata_bytes not in others


@pytest.mark.parametrize("planes", ["axial", "axial,coronal"])
def test_of_an_npz_file_only_planes_that_are_wanted_are_inflated(
    cases, slice_dataset, inflated, planes
):
    output = slice_dataset(window_size=2, plane=planes)
    for has_journal in (True, False):
        for window_size in range(3):
            for sample in SliceDataset(output, None, window_size=window_size):
                plane_bytes = sample["image"][0].nbytes
                _, _, *of_image = inflated
                inflated.clear()
                if has_journal and window_size < 2:
                    assert of_image == [plane_bytes] * (2 * window_size + 1)
                else:
                    assert of_image == [128 + 5 * plane_bytes]
        if has_journal:  # with the checksums of the files
            (output / JOURNAL).unlink()


class TestAsASequence:
    def test_indices_count_from_both_ends(self, output):
        dataset = SliceDataset(output)
        assert dataset[-1]["slice_index"] == dataset[len(dataset) - 1]["slice_index"]
        assert dataset[np.int64(3)]["slice_index"] == 3
        for beyond in (len(dataset), -len(dataset) - 1):
            with pytest.raises(IndexError, match=f"there are {len(dataset)} slices"):
                dataset[beyond]

    def test_a_split_holds_its_own_cases(self, cases, slice_dataset):
        output = slice_dataset(output="split", format="zarr", train_ratio=0.5, val_ratio=0.5)
        splits = open_output(output).splits
        for split in ("train", "val"):
            assert {s["case_id"] for s in SliceDataset(output, split)} == set(splits[split])
        with pytest.warns(UserWarning, match="no slice of .* matches the selection"):
            assert len(SliceDataset(output, "test")) == 0

    def test_a_case_without_a_label_has_no_label(self, dataset, slice_dataset):
        dataset.add("a")
        dataset.add("b", label=None)
        for format_ in ("npz", "zarr"):
            output = slice_dataset(output=format_, format=format_, allow_missing_labels=True)
            has_label = {s["case_id"]: "label" in s for s in SliceDataset(output, None)}
            assert has_label == {"a": True, "b": False}

    def test_transform_is_applied_to_each_sample(self, output):
        shapes = SliceDataset(output, transform=lambda sample: sample["image"].shape)
        assert shapes[0] == (5, 7, 9)


class TestChoosing:
    @pytest.mark.parametrize("window_size", [0, 1, 2])
    def test_a_smaller_window_is_the_middle_of_the_larger(self, output, window_size):
        whole, smaller = SliceDataset(output), SliceDataset(output, window_size=window_size)
        outside = 2 - window_size
        for one, other in zip(whole, smaller, strict=True):
            np.testing.assert_array_equal(
                other["image"], one["image"][outside : len(one["image"]) - outside]
            )

    def test_the_center_is_the_slice_itself(self, output):
        for one, other in zip(
            SliceDataset(output), SliceDataset(output, channels="center"), strict=True
        ):
            np.testing.assert_array_equal(other["image"], one["image"][2:3])

    def test_a_zarr_store_gives_windows_larger_than_it_was_written_with(self, cases, slice_dataset):
        reference = windows_of(slice_dataset(output="npz", window_size=4))
        output = slice_dataset(output="zarr", format="zarr", window_size=1)
        for sample in SliceDataset(output, None, window_size=4):
            wanted = reference[sample["case_id"], sample["slice_index"]]["image"]
            np.testing.assert_array_equal(sample["image"], wanted)

    def test_npz_refuses_larger_windows(self, cases, slice_dataset):
        output = slice_dataset(window_size=1)
        with pytest.raises(UsageError, match="--window_size 1, so window_size 4 is too large"):
            SliceDataset(output, window_size=4)

    def test_slices_are_chosen_by_case_label_and_foreground(self, output):
        everything = list(SliceDataset(output))
        by_case = SliceDataset(output, cases=["b"])
        assert {s["case_id"] for s in by_case} == {"b"}
        by_label = SliceDataset(output, labels={2})
        assert len(by_label) == sum(2 in s["label"] for s in everything)
        with pytest.warns(UserWarning, match="no slice of .* matches the selection"):
            assert len(SliceDataset(output, labels={7})) == 0
        by_share = SliceDataset(output, min_foreground=0.35)
        assert len(by_share) == sum((s["label"] > 0).mean() >= 0.35 for s in everything)
        assert 0 < len(by_share) < len(everything)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"split": "training"}, "split must be one of train, val, test or None, got training"),
            ({"cases": ["c"]}, "no case c in"),
            (
                {"cases": ["a"], "split": "val"},
                "a is in train, not in val; choose split train, or none",
            ),
            ({"cases": "a"}, "cases must be a list, got 'a'"),
            ({"labels": 2}, "labels must be a list, got 2"),
            ({"labels": {0}}, "labels are values other than 0"),
            ({"channels": "all"}, "channels must be window or center, got all"),
            ({"window_size": -1}, "window_size must be an integer from 0 up, got -1"),
            ({"window_size": 1.5}, "window_size must be an integer from 0 up, got 1.5"),
        ],
    )
    def test_a_wrong_choice_is_refused(self, output, wrong, message):
        with pytest.raises(UsageError, match=message):
            SliceDataset(output, **wrong)

    def test_the_index_becomes_a_data_frame(self, output):
        pytest.importorskip("pandas", reason="pandas is not installed")
        dataset = SliceDataset(output, labels={2})
        frame = dataset.to_dataframe()
        assert len(frame) == len(dataset)
        for path in frame["path"]:
            assert (output / path).exists()
        assert frame["labels"][0] == {2: int((dataset[0]["label"] == 2).sum())}


class TestWeights:
    @pytest.fixture
    def few(self, dataset, slice_dataset) -> Path:
        """Return slices of which one in twenty has a label, without their pixels."""
        image = np.random.default_rng(0).integers(0, 99, (4, 4, 100)).astype(np.int16)
        label = np.zeros(image.shape, np.uint8)
        label[1, 1, :5] = 1
        label[2, 2, 4] = 2
        dataset.add("a", image, label)
        output = slice_dataset(train_ratio=1.0, window_size=0)
        shutil.rmtree(output / "train")
        return output

    def test_half_of_the_draws_have_foreground(self, few):
        dataset = SliceDataset(few)
        weights = dataset.weights(foreground=0.5)
        drawn = np.random.default_rng(0).choice(len(dataset), 10_000, p=weights)
        # In the order of the file's third axis, or against it.
        has_label = np.isin(drawn, np.flatnonzero(dataset._index.foreground > 0))
        assert abs(has_label.mean() - 0.5) < 0.02
        assert len(SliceDataset(few, labels={1, 2})) == 5

    def test_half_of_the_draws_have_a_label_of_choice(self, few):
        dataset = SliceDataset(few)
        weights = dataset.weights(foreground=0.5, labels={2})
        assert weights[dataset._index.rows_with({2})].tolist() == [0.5]
        assert weights.sum() == pytest.approx(1)

    def test_balanced_draws_have_every_label_value(self, few):
        dataset = SliceDataset(few)
        weights = dataset.weights(balanced=True)
        index = dataset._index
        share = {v: weights[index.rows_with({v})].sum() for v in (1, 2)}
        assert weights.sum() == pytest.approx(1)
        assert weights[index.foreground == 0].sum() == pytest.approx(1 / 3)
        assert share[2] >= 1 / 3

    def test_by_default_all_slices_have_equal_weight(self, few):
        np.testing.assert_allclose(SliceDataset(few).weights(), 1 / 100)

    def test_weights_that_cannot_be_met_are_refused(self, few):
        with (
            pytest.warns(UserWarning, match="no slice of"),
            pytest.raises(UsageError, match="50% of the draws should be slices with foreground"),
        ):
            SliceDataset(few, labels={1}, cases=[]).weights(foreground=0.5)
        with pytest.raises(UsageError, match=r"share of draws with these labels, such as 0\.5"):
            SliceDataset(few).weights(labels={1})
        with pytest.raises(
            UsageError, match="50% of the draws should be slices without foreground"
        ):
            SliceDataset(few, labels={1}).weights(foreground=0.5)
        with pytest.raises(UsageError, match="not both"):
            SliceDataset(few).weights(foreground=0.5, balanced=True)


def _read_all(dataset: SliceDataset, numbers: list[int], queue: multiprocessing.Queue) -> None:
    queue.put([float(dataset[number]["image"].sum()) for number in numbers])


# Python warns of a fork beside the threads of what wrote the output; reading needs none of them.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
class TestProcesses:
    @pytest.mark.parametrize("method", ["fork", "spawn"])
    @pytest.mark.slow
    def test_other_processes_read_the_same_also_after_this_one_has_read(self, output, method):
        if method not in multiprocessing.get_all_start_methods():
            pytest.skip(f"no {method} on this system")
        dataset = SliceDataset(output)
        here = [float(sample["image"].sum()) for sample in dataset]
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        processes = [
            context.Process(target=_read_all, args=(dataset, list(range(len(dataset))), queue))
            for _ in range(2)
        ]
        for process in processes:
            process.start()
        assert [queue.get(timeout=60) for _ in processes] == [here, here]
        for process in processes:
            process.join()

    def test_a_pickle_is_small_and_holds_nothing_open(self, output):
        dataset = SliceDataset(output)
        before = pickle.dumps(dataset)
        list(dataset)
        assert len(pickle.dumps(dataset)) == len(before) < 4_000
        assert not pickle.loads(before)._open_cases._readers

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_torch_draws_the_same_samples_in_every_epoch(self, output, method, num_workers):
        data = pytest.importorskip("torch.utils.data", reason="torch is not installed")
        dataset = SliceDataset(output)
        loader = data.DataLoader(
            dataset,
            batch_size=3,
            shuffle=True,
            num_workers=num_workers,
            multiprocessing_context=method if num_workers else None,
        )
        expected = Counter((s["case_id"], s["slice_index"]) for s in dataset)
        for _ in range(3):
            seen: Counter[tuple[str, int]] = Counter()
            for batch in loader:
                assert batch["image"].shape[1:] == (5, 7, 9)
                seen.update(zip(batch["case_id"], batch["slice_index"].tolist(), strict=True))
            assert seen == expected


class TestShuffled:
    def test_an_epoch_is_every_sample_once_in_another_order(self, output):
        dataset = SliceDataset(output)
        stream = dataset.shuffled(buffer_size=4, seed=1)
        epochs = [[(s["case_id"], s["slice_index"]) for s in stream] for _ in range(2)]
        in_order = [(s["case_id"], s["slice_index"]) for s in dataset]
        assert sorted(epochs[0]) == sorted(epochs[1]) == in_order
        assert epochs[0] != epochs[1] != in_order != epochs[0]
        again = dataset.shuffled(buffer_size=4, seed=1)
        assert [(s["case_id"], s["slice_index"]) for s in again] == epochs[0]

    def test_no_case_is_searched_among_all_slices(self, output):
        class Searched(np.ndarray):
            def __eq__(self, other):
                raise AssertionError(f"case {other} is searched among all slices")

        dataset = SliceDataset(output)
        n = len(dataset)
        dataset._index = replace(dataset._index, case=dataset._index.case.view(Searched))
        assert len(list(dataset.shuffled(buffer_size=4))) == n

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_torch_divides_the_cases_among_its_workers(self, output, num_workers):
        data = pytest.importorskip("torch.utils.data", reason="torch is not installed")
        dataset = SliceDataset(output)
        stream = dataset.shuffled(buffer_size=4)
        loader = data.DataLoader(stream, batch_size=None, num_workers=num_workers)
        seen = sorted((s["case_id"], s["slice_index"]) for s in loader)
        assert seen == [(s["case_id"], s["slice_index"]) for s in dataset]

    def test_torch_shuffles_every_epoch_differently(self, output):
        data = pytest.importorskip("torch.utils.data", reason="torch is not installed")
        stream = SliceDataset(output).shuffled(buffer_size=4)
        loader = data.DataLoader(stream, batch_size=None, num_workers=1)
        epochs = [[(s["case_id"], s["slice_index"]) for s in loader] for _ in range(2)]
        assert epochs[0] != epochs[1]
        assert sorted(epochs[0]) == sorted(epochs[1])

    def test_an_empty_shuffle_buffer_is_refused(self, output):
        with pytest.raises(UsageError, match="buffer_size must be 1 or more, got 0"):
            SliceDataset(output).shuffled(buffer_size=0)


class TestUnfinishedOutputs:
    def test_an_output_that_was_moved_still_works(self, output):
        samples = [s["image"] for s in SliceDataset(output)]
        moved = output.rename(output.with_name("moved"))
        for one, other in zip(SliceDataset(moved), samples, strict=True):
            np.testing.assert_array_equal(one["image"], other)

    def test_a_case_of_which_no_slice_was_kept_is_not_missing(self, dataset, slice_dataset):
        dataset.add("a")
        dataset.add("b", label=np.zeros((8, 9, 10), np.uint8))
        output = slice_dataset(format="zarr", train_ratio=1.0, min_foreground=0.01)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert {s["case_id"] for s in SliceDataset(output)} == {"a"}

    def test_samples_do_not_share_memory(self, output):
        dataset = SliceDataset(output)
        dataset[0]["image"][:] = 7
        dataset[0]["label"][:] = 7
        assert not (dataset[0]["image"] == 7).all()
        assert not (dataset[0]["label"] == 7).any()

    def test_a_missing_label_is_reported(self, output):
        for path in output.rglob("a/label"):  # of a Zarr store
            shutil.rmtree(path)
            with pytest.raises(CorruptFile, match="case a, slice 0: "):
                SliceDataset(output)[0]

    def test_failures_are_warned_about_once(self, dataset, slice_dataset):
        dataset.add("a")
        dataset.add("b")
        dataset.image_path("b").write_bytes(b"nothing")
        output = slice_dataset(format="zarr", train_ratio=1.0)
        with pytest.warns(UserWarning, match="slices of 1 of 2 cases: 1 failed, see failures"):
            read = SliceDataset(output)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            list(read)
            pickle.loads(pickle.dumps(read))

    def test_without_an_index_the_journal_is_read(self, output):
        whole = [s["image"] for s in SliceDataset(output)]
        (output / INDEX).unlink()
        assert len(SliceDataset(output)) == len(whole)
        # The last case was not committed when the run was killed.
        lines = (output / JOURNAL).read_text().splitlines(keepends=True)
        (output / JOURNAL).write_text(lines[0] + lines[1][:50])
        with pytest.warns(UserWarning, match="1 of 2 cases: 1 not run yet, repeat the run command"):
            assert len(SliceDataset(output)) == len(whole) / 2

    def test_a_journal_newer_than_the_index_is_used(self, output):
        (output / INDEX).write_text((output / INDEX).read_text().splitlines()[0] + "\n")
        later = (output / JOURNAL).stat().st_mtime_ns + 10**9
        os.utime(output / INDEX, ns=(later, later))
        with pytest.warns(UserWarning, match="no slice of"):
            assert len(SliceDataset(output)) == 0
        later = (output / INDEX).stat().st_mtime_ns + 10**9
        os.utime(output / JOURNAL, ns=(later, later))
        assert len(SliceDataset(output)) == 12


class TestDamage:
    @pytest.mark.parametrize("where", [0, 60, -30])
    def test_a_damaged_file_is_named_with_case_and_slice(self, output, where):
        files = sorted(output.rglob("a_*.npz")) or sorted(output.rglob("a/image/c/0/0/0/0"))
        data = bytearray(files[0].read_bytes())
        data[where] ^= 0xFF
        files[0].write_bytes(data)
        with pytest.raises(CorruptFile, match=r"case a, slice \d+: .*(npz|/image)") as caught:
            list(SliceDataset(output))
        assert "\n" not in str(caught.value)

    def test_a_damaged_file_is_named_from_torch_workers_too(self, output):
        data = pytest.importorskip("torch.utils.data", reason="torch is not installed")
        files = sorted(output.rglob("a_*.npz")) or sorted(output.rglob("a/image/c/0/0/0/0"))
        files[0].unlink()
        loader = data.DataLoader(SliceDataset(output), num_workers=1)
        with pytest.raises(CorruptFile, match=r"case a, slice 0: .*--repair"):
            list(loader)

    @pytest.mark.parametrize(
        ("name", "old", "new", "message"),
        [
            ("image/zarr.json", '"int16"', '"int32"', "has another dtype than its case: int32"),
            (
                "image/zarr.json",
                '"name": "blosc"',
                '"name": "gzip"',
                "codecs that dask-slicer does not",
            ),
            ("image/zarr.json", "6,", "5,", "has another shape than its case"),
            ("zarr.json", '"normalization"', '"n"', "lacks the normalisation of int16 images"),
        ],
    )
    def test_inconsistent_metadata_is_reported(self, cases, slice_dataset, name, old, new, message):
        output = slice_dataset(format="zarr", dtype="source", train_ratio=1.0)
        path = output / "slices.zarr" / "train" / "a" / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))
        with pytest.raises(CorruptFile, match=f"case a, slice 0: .*{message}"):
            SliceDataset(output)[0]
        with pytest.raises(CorruptFile, match=f"case a: .*{message}"):
            open_output(output).volume("a")

    def test_a_cut_file_is_named(self, output):
        for path in [*output.rglob("a_*.npz"), *output.rglob("a/image/c/0/0/0/0")]:
            path.write_bytes(path.read_bytes()[:40])
        with pytest.raises(CorruptFile, match="case a, slice 0: "):
            SliceDataset(output)[0]

    def test_a_missing_file_is_named(self, output):
        for path in [*output.rglob("a_*.npz"), *output.rglob("a/image/c/0/0/0/0")]:
            path.unlink()
        with pytest.raises(CorruptFile, match=r"case a, slice 0: .*no such file.*--repair"):
            SliceDataset(output)[0]

    def test_foreign_directories_are_refused(self, tmp_path, output):
        with pytest.raises(OutputError, match="is not an output of dask-slicer"):
            SliceDataset(tmp_path)
        with pytest.raises(OutputError, match="there is no such directory"):
            open_output(tmp_path / "nowhere")
        text = (output / CONFIG).read_text()
        (output / CONFIG).write_text(text.replace("(format 1)", "(format 99)"))
        with pytest.raises(OutputError, match="newer version"):
            SliceDataset(output)


class TestOpenOutput:
    def test_a_volume_is_returned_with_its_affine(self, dataset, output):
        import SimpleITK as sitk

        opened = open_output(output)
        volume, affine = opened.volume("a")
        image = sitk.GetArrayFromImage(
            sitk.DICOMOrient(sitk.ReadImage(str(dataset.image_path("a"))), "LPS")
        ).astype(np.float64)
        above = image[image > image.min()]
        np.testing.assert_allclose(volume, (image - above.mean()) / above.std(), atol=1e-5)
        oriented = sitk.DICOMOrient(sitk.ReadImage(str(dataset.image_path("a"))), "LPS")
        for index in ((0, 0, 0), (5, 3, 2)):
            left, posterior, superior = oriented.TransformIndexToPhysicalPoint(index[::-1])
            np.testing.assert_allclose(
                affine @ [*index, 1], [-left, -posterior, superior, 1], atol=1e-5
            )

    def test_the_repr_summarises_the_dataset(self, output):
        opened = open_output(output)
        assert opened.cases == ["a", "b"]
        assert opened.splits == {"train": ["a", "b"], "val": [], "test": []}
        assert opened.failures == []
        assert opened.summary["num_slices"] == 12
        assert "12" in repr(opened)
        assert "<table>" in opened._repr_html_()

    def test_an_unknown_case_is_refused_with_the_nearest_id(self, dataset, slice_dataset):
        dataset.add("liver_01")
        output = slice_dataset()
        with pytest.raises(UsageError, match=r"no slices of liver_1 in .*did you mean liver_01"):
            open_output(output).volume("liver_1")


@pytest.mark.parametrize("format_", ["npz", "zarr"])
class TestNames:
    def test_channels_of_a_window_have_the_names_of_the_modalities(
        self, dataset, slice_dataset, named, format_
    ):
        level_of = {"T1w": 100, "FLAIR": 700}
        for channel, level in enumerate(level_of.values()):
            image = np.arange(6 * 5 * 4).reshape(6, 5, 4) + level
            dataset.add(
                "a", image.astype(np.int16), True if channel == 0 else None, channel=channel
            )
        named(tuple(level_of), {1: "liver"})
        output = slice_dataset(format=format_, window_size=2, normalize="none")
        for window_size, n_offsets in ((None, 5), (1, 3), (0, 1)):
            sliced = pickle.loads(pickle.dumps(SliceDataset(output, None, window_size=window_size)))
            names = sliced.channel_names
            assert (names, sliced.label_names) == (("T1w", "FLAIR"), {1: "liver"})
            image = sliced[2]["image"]
            assert len(image) == n_offsets * len(names)
            for c, channel in enumerate(image):
                assert 0 <= channel.mean() - level_of[names[c % len(names)]] < 120
            assert open_output(output).channel_names == names

    def test_names_are_empty_where_unknown_and_before_the_first_run_has_ended(
        self, dataset, slice_dataset, named, format_
    ):
        dataset.add("a")
        output = slice_dataset(format=format_)
        assert SliceDataset(output, None).channel_names == ()
        named(("CT",), {1: "liver"})
        output = slice_dataset(format=format_, overwrite=True)
        names = SliceDataset(output, None).label_names
        names[1] = "changed by the caller"
        assert SliceDataset(output, None).label_names == {1: "liver"}
        (output / SUMMARY).unlink()
        dataset_of_killed_run = SliceDataset(output, None)
        assert dataset_of_killed_run.channel_names == ()
        assert dataset_of_killed_run.label_names == {}
