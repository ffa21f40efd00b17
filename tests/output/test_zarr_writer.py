"""What the Zarr store is to others: readable without us, small, whole, and the same every time."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import warnings
import zlib
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import zarr

from dask_slicer import SliceDataset
from dask_slicer.inputs.phantom import write_dataset
from dask_slicer.output.formats import zarr_writer
from dask_slicer.output.journal import last_records
from dask_slicer.output.layout import INDEX, JOURNAL
from dask_slicer.records import CommittedCase

pytestmark = pytest.mark.versions

DTYPES = ["float32", "float16", "source"]


@pytest.fixture
def phantoms(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "scans", n_cases=3, shape=(20, 16, 8))
    return tmp_path / "scans"


class TestOtherReaders:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("compression", ["auto", "lz4", "zstd", "none"])
    def test_zarr_reads_every_array_and_attribute(self, dataset, slice_dataset, dtype, compression):
        dataset.add("a")
        npz = slice_dataset(output="npz", window_size=0)
        output = slice_dataset(format="zarr", dtype=dtype, compression=compression, clip_max=800)
        group = zarr.open_group(output / "slices.zarr", mode="r")["train/a"]
        image, label = group["image"], group["label"]
        assert image.metadata.dimension_names == ("slice", "modality", "row", "column")
        assert (image.shape, image.chunks, image.shards) == (
            (10, 1, 9, 8), (1, 1, 9, 8), (10, 1, 9, 8),
        )  # fmt: skip
        np.testing.assert_array_equal(group["slice_index"][:], range(10))
        for path in npz.rglob("*.npz"):
            with np.load(path) as members:
                metadata = json.loads(members["metadata"].item())
                np.testing.assert_array_equal(label[metadata["slice_index"]], members["label"])
        attributes = dict(group.attrs)
        for name in ("spacing", "affine", "plane", "source_file", "case_id", "split"):
            assert attributes[name] == metadata[name]
        if dtype == "source":
            assert image.dtype == np.int16
            assert image[:].max() == 800
        else:
            planes = [s["image"] for s in SliceDataset(output, None, channels="center")]
            np.testing.assert_array_equal(image[:], planes)

    @pytest.mark.parametrize("normalize", ["zscore", "minmax", "percentile", "none"])
    @pytest.mark.parametrize("dtype", [np.int16, np.float32])
    def test_source_is_normalised_by_what_the_attributes_say(
        self, dataset, slice_dataset, normalize, dtype
    ):
        rng = np.random.default_rng(4)
        affine = np.diag([1.0, 1.0, 1.0, 1.0])
        for channel, (slope, intercept) in enumerate([(-2.0, 100.0), (0.5, -7.0)]):
            stored = nib.Nifti1Image(rng.integers(-500, 900, (6, 5, 4)).astype(dtype), affine)
            stored.header.set_slope_inter(slope, intercept)
            path = dataset.image_path("a", channel)
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(stored, path)
        output = slice_dataset(
            format="zarr", dtype="source", normalize=normalize, clip_min=-300, clip_max=600
        )
        group = zarr.open_group(output / "slices.zarr", mode="r")["train/a"]
        read = SliceDataset(output, None, channels="center")
        for sample in read:
            for modality, plane in enumerate(sample["image"]):
                low, high = group.attrs["clip_range"][modality]
                values = group["image"][sample["slice_index"], modality].astype(np.float64)
                values = values.clip(low, high) * group.attrs["scale"][modality]
                values += group.attrs["offset"][modality]
                np.testing.assert_allclose(plane, values, rtol=1e-6, atol=1e-6)

    def test_dask_reads_it(self, dataset, slice_dataset):
        import dask.array as da

        dataset.add("a")
        output = slice_dataset(format="zarr")
        array = da.from_zarr(str(output / "slices.zarr" / "train" / "a" / "image"))
        plain = zarr.open_array(output / "slices.zarr" / "train" / "a" / "image", mode="r")[:]
        np.testing.assert_array_equal(array.compute(scheduler="sync"), plain)

    def test_xarray_reads_it(self, dataset, slice_dataset):
        xarray = pytest.importorskip("xarray", reason="xarray is not installed")
        dataset.add("a")
        output = slice_dataset(format="zarr")
        found = xarray.open_zarr(output / "slices.zarr", group="train/a", chunks=None)
        assert dict(found.sizes) == {"slice": 10, "modality": 1, "row": 9, "column": 8} | {
            "kept_slice": 10
        }
        assert found["label"].dims == ("slice", "row", "column")

    def test_consolidated_metadata_lists_all_that_is_there(self, dataset, slice_dataset):
        for case_id in ("b", "a", "c"):
            dataset.add(case_id)
        output = slice_dataset(format="zarr", train_ratio=0.4, val_ratio=0.3)
        store = output / "slices.zarr"
        root = zarr.open_group(store, mode="r", use_consolidated=True)
        walked = zarr.open_group(store, mode="r", use_consolidated=False)
        members = dict(root.members(max_depth=None))
        assert members.keys() == dict(walked.members(max_depth=None)).keys()
        assert len(members) == 3 + 3 * 4
        assert root["train"].metadata.consolidated_metadata is not None

    @pytest.mark.parametrize("most", [1, 2])
    def test_a_store_of_many_cases_is_not_consolidated_and_reads_the_same(
        self, dataset, invoke, monkeypatch, tmp_path, most
    ):
        for case_id in ("b", "a"):
            dataset.add(case_id)
        output = tmp_path / "out"
        command = ("run", "--input_dir", dataset.root, "--output_dir", output)
        options = ("--format", "zarr", "--num_workers", 0, "--train_ratio", 1)
        monkeypatch.setattr(zarr_writer, "MOST_CONSOLIDATED", most)
        shown = invoke(*command, *options).output
        assert ("its metadata is not consolidated" in shown) == (most == 1)
        root = zarr.open_group(output / "slices.zarr", mode="r")
        assert (root.metadata.consolidated_metadata is None) == (most == 1)
        assert sorted(root["train"].group_keys()) == ["a", "b"]
        assert root["train/a/image"][0].shape == (1, 9, 8)
        assert len(SliceDataset(output)) == 20
        assert invoke("verify", output, "--num_workers", 0).exit_code == 0
        assert invoke("report", output).exit_code == 0
        # A store that an earlier version consolidated stays valid.
        monkeypatch.setattr(zarr_writer, "MOST_CONSOLIDATED", 1)
        assert invoke("verify", output, "--num_workers", 0).exit_code == 0
        (output / "slices.zarr" / "zarr.json").write_text("{}")
        assert invoke("verify", output, "--num_workers", 0).exit_code == 1


class TestFiles:
    def test_a_case_is_seven_files_all_in_the_journal(self, dataset, slice_dataset):
        dataset.add("a")
        output = slice_dataset(format="zarr")
        (record,) = last_records(output / JOURNAL)
        assert isinstance(record, CommittedCase)
        folder = output / "slices.zarr" / "train" / "a"
        on_disk = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        assert len(on_disk) == 7
        assert {file.path: (file.size, file.crc32) for file in record.files} == {
            name: (len(data), zlib.crc32(data)) for name, data in on_disk.items()
        }

    def test_a_shard_that_would_be_too_large_is_split(self, dataset, slice_dataset, monkeypatch):
        dataset.add("a")
        whole = slice_dataset(output="whole", format="zarr")
        monkeypatch.setattr(zarr_writer, "_SHARD_BYTES", 3 * 9 * 8 * 4)
        output = slice_dataset(output="split", format="zarr")
        shards = sorted((output / "slices.zarr/train/a/image/c").iterdir())
        assert [path.name for path in shards] == ["0", "1", "2", "3"]
        read = [zarr.open_array(o / "slices.zarr/train/a/image")[:] for o in (whole, output)]
        np.testing.assert_array_equal(*read)
        for one, other in zip(SliceDataset(whole), SliceDataset(output), strict=True):
            np.testing.assert_array_equal(one["image"], other["image"])

    @pytest.mark.parametrize("num_workers", [1, 2])
    def test_any_number_of_workers_writes_the_same_store(
        self, phantoms, tmp_path, invoke, num_workers
    ):
        found = []
        for workers in (0, num_workers):
            output = tmp_path / f"out{workers}"
            result = invoke(
                "run", "--input_dir", phantoms, "--output_dir", output, "--format", "zarr",
                "--dtype", "source", "--num_workers", workers, "--dashboard_address", "none",
            )  # fmt: skip
            assert result.exit_code == 0, result.output
            files = [*(output / "slices.zarr").rglob("*"), output / INDEX, output / "splits.json"]
            found.append(
                {p.relative_to(output): p.read_bytes() for p in sorted(files) if p.is_file()}
            )
        assert found[0] == found[1]

    def test_slices_csv_names_the_group_and_the_row(self, dataset, slice_dataset):
        dataset.add("a")
        lines = (slice_dataset(format="zarr") / INDEX).read_text().splitlines()
        assert lines[1].startswith("a,train,0,slices.zarr/train/a,0,")
        assert lines[10].startswith("a,train,9,slices.zarr/train/a,9,")


class TestResume:
    def test_the_same_command_again_does_nothing(self, dataset, slice_dataset):
        dataset.add("a")
        output = slice_dataset(format="zarr")
        before = {p: p.stat().st_mtime_ns for p in output.rglob("c/*") if p.is_file()}
        slice_dataset(format="zarr")
        assert {p: p.stat().st_mtime_ns for p in output.rglob("c/*") if p.is_file()} == before

    @pytest.mark.parametrize("name", ["image/c/0/0/0/0", "label/zarr.json", "zarr.json"])
    def test_a_case_that_lost_a_file_is_written_again(self, dataset, slice_dataset, name):
        dataset.add("a")
        output = slice_dataset(format="zarr")
        path = output / "slices.zarr" / "train" / "a" / name
        data = path.read_bytes()
        path.unlink()
        slice_dataset(format="zarr")
        assert path.read_bytes() == data

    def test_a_case_with_a_file_of_another_size_is_written_again(self, dataset, slice_dataset):
        dataset.add("a")
        output = slice_dataset(format="zarr")
        path = output / "slices.zarr/train/a/image/c/0/0/0/0"
        data = path.read_bytes()
        path.write_bytes(data[:-1])
        slice_dataset(format="zarr")
        assert path.read_bytes() == data

    def test_compression_of_the_other_format_is_no_changed_setting(self, dataset, slice_dataset):
        dataset.add("a")
        output = slice_dataset(format="zarr", compression_level=1)
        before = (output / "slices.zarr/train/a/zarr.json").stat().st_mtime_ns
        slice_dataset(format="zarr", compression_level=6)
        assert (output / "slices.zarr/train/a/zarr.json").stat().st_mtime_ns == before

    def test_a_case_that_now_fails_is_removed(self, dataset, slice_dataset):
        dataset.add("a")
        dataset.add("b")
        output = slice_dataset(format="zarr", train_ratio=1.0)
        dataset.image_path("b").write_bytes(dataset.image_path("b").read_bytes()[:-40])
        slice_dataset(format="zarr", train_ratio=1.0)
        assert [
            path.name for path in (output / "slices.zarr/train").iterdir() if path.is_dir()
        ] == ["a"]
        group = zarr.open_group(output / "slices.zarr", mode="r")
        assert set(group["train"]) == {"a"}

    def test_overwrite_changes_the_format(self, dataset, slice_dataset):
        dataset.add("a")
        output = slice_dataset(format="zarr")
        slice_dataset(format="npz", overwrite=True)
        assert not (output / "slices.zarr").exists()
        slice_dataset(format="zarr", overwrite=True)
        assert not (output / "train").exists()
        assert len(list(output.rglob("image"))) == 1

    def test_source_needs_zarr(self, invoke, tmp_path):
        result = invoke(
            "run", "--input_dir", tmp_path, "--output_dir", tmp_path / "o", "--dtype", "source"
        )
        assert result.exit_code == 2
        assert "dtype source needs format zarr" in result.stderr


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_no_half_case_is_visible_after_a_kill_at_any_moment(tmp_path: Path):
    scans = tmp_path / "scans"
    write_dataset(scans, n_cases=8, shape=(256, 256, 30), varied=False)
    output = tmp_path / "out"
    command = [
        sys.executable, "-m", "dask_slicer", "run", "--input_dir", scans, "--output_dir", output,
        "--format", "zarr", "--num_workers", "0",
    ]  # fmt: skip
    seen: set[str] = set()
    for delay in (0.0, 0.02, 0.04, 0.06, 0.08):
        before = _n_lines(output / JOURNAL)
        process = subprocess.Popen([str(part) for part in command], stderr=subprocess.DEVNULL)
        while _n_lines(output / JOURNAL) == before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(delay)
        process.kill()
        process.wait()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = SliceDataset(output, None, window_size=0)
        slices = Counter(sample["case_id"] for sample in dataset)
        assert set(slices.values()) == {30}
        assert seen < slices.keys()  # nothing is lost, and something was done
        seen = set(slices)
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    assert len(SliceDataset(output, None)) == 8 * 30


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT between processes")
def test_a_stopped_run_reports_only_that(tmp_path: Path):
    scans = tmp_path / "scans"
    write_dataset(scans, n_cases=16, shape=(320, 320, 40), varied=False)
    command = [
        sys.executable, "-m", "dask_slicer", "run", "--input_dir", scans, "--output_dir",
        tmp_path / "out", "--format", "zarr", "--dtype", "source", "--num_workers", "2",
    ]  # fmt: skip
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while _n_lines(tmp_path / "out" / JOURNAL) == 0 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert (process.returncode, stderr) == (130, "")
    assert "Stopped. Finished cases are kept" in stdout


def _n_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
