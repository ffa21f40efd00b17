"""What an output directory holds, as the documentation promises it."""

from __future__ import annotations

import csv
import errno
import json
import os
import stat
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from slice_formats import FORMATS

import dask_slicer
from dask_slicer.errors import OutputError
from dask_slicer.inputs.phantom import write_dataset
from dask_slicer.output import directory, layout
from dask_slicer.output.directory import existing_config
from dask_slicer.planning.plan import FORMAT_VERSION


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def journal(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "journal.jsonl").read_text().splitlines()]


def test_the_directory_holds_the_documented_files_and_nothing_else(output) -> None:
    names = {path.name for path in output.iterdir()}
    assert names - {"train", "val", "test"} == {
        *("config.yaml", "dataset_info.json", "failures.csv", "journal.jsonl"),
        *("slices.csv", "splits.json"),
    }
    for path in output.glob("*/*"):
        assert path.suffix == ".npz"


def test_slices_csv_has_one_row_a_slice_in_order(output) -> None:
    found = rows(output / "slices.csv")
    columns = ["case_id", "split", "slice_index", "path", "row", "foreground", "labels"]
    assert list(found[0]) == columns
    places = [(row["case_id"], int(row["slice_index"])) for row in found]
    assert places == [(c, i) for c in ("ct_a", "ct_b", "ct_c", "ct_d") for i in range(9)]
    on_disk = {str(path.relative_to(output)) for path in output.rglob("*.npz")}
    assert {row["path"] for row in found} == on_disk
    assert len(on_disk) == len(found)
    splits = read_json(output / "splits.json")
    for row in found:
        assert row["case_id"] in splits[row["split"]]
        assert row["path"] == f"{row['split']}/{row['case_id']}_{int(row['slice_index']):03d}.npz"
        assert row["row"] == ""
        with np.load(output / row["path"]) as npz:
            if row["case_id"] == "ct_d":
                assert "label" not in npz
                assert row["foreground"] == row["labels"] == ""
                continue
            label = npz["label"]
        values, counts = np.unique(label[label > 0], return_counts=True)
        assert row["labels"] == ";".join(f"{v}:{n}" for v, n in zip(values, counts, strict=True))
        assert float(row["foreground"]) == pytest.approx((label > 0).mean(), rel=1e-5)


def test_splits_json_holds_every_planned_case_also_the_failed_one(output) -> None:
    splits = read_json(output / "splits.json")
    assert list(splits) == ["train", "val", "test"]
    assert all(names == sorted(names) for names in splits.values())
    everyone = [name for names in splits.values() for name in names]
    assert sorted(everyone) == ["ct_a", "ct_b", "ct_bad", "ct_c", "ct_d"]
    # 5 cases: shares of 2.5, 0.5 and 2; the tie goes to train, but no split stays empty.
    assert [len(names) for names in splits.values()] == [2, 1, 2]


def test_dataset_info_sums_up_what_was_written(output) -> None:
    info = read_json(output / "dataset_info.json")
    assert set(info) == {
        *("window_size", "total_channels", "padding_mode", "normalized", "clip_range"),
        *("num_cases", "num_slices", "case_names", "format", "format_version", "plane", "dtype"),
        *("splits", "num_failed", "failures", "label_voxels", "intensity", "elapsed_seconds"),
        *("slices_per_second", "bytes_written", "versions", "config"),
    }
    assert info["window_size"] == 1
    assert info["total_channels"] == 3
    assert info["clip_range"] == [-500.0, None]
    assert info["normalized"] is True
    assert (info["num_cases"], info["num_slices"], info["num_failed"]) == (4, 36, 1)
    assert info["case_names"] == ["ct_a", "ct_b", "ct_c", "ct_d"]
    assert (info["format"], info["plane"], info["dtype"]) == ("npz", "coronal", "float32")
    found = rows(output / "slices.csv")
    for split, counts in info["splits"].items():
        mine = [row for row in found if row["split"] == split]
        assert counts == {"cases": len({row["case_id"] for row in mine}), "slices": len(mine)}
    assert info["failures"] == rows(output / "failures.csv")
    assert info["bytes_written"] == sum(path.stat().st_size for path in output.rglob("*.npz"))
    assert {"dask_slicer", "dask", "numpy", "nibabel", "python"} <= set(info["versions"])
    assert info["elapsed_seconds"] > 0
    totals: dict[str, int] = {}
    for row in found:
        for value, count in (pair.split(":") for pair in row["labels"].split(";") if pair):
            totals[value] = totals.get(value, 0) + int(count)
    assert info["label_voxels"] == totals
    assert totals["7"] == 6
    assert totals["200"] == 1


def test_intensity_is_that_of_all_foreground_voxels_together(output, dataset) -> None:
    import nibabel as nib

    foreground, everything = [], []
    for case_id in ("ct_a", "ct_b", "ct_c", "ct_d"):
        image = nib.load(dataset.image_path(case_id)).get_fdata().clip(-500)
        foreground.append(image[image > image.min()])
        everything.append(image.ravel())
    pooled = np.concatenate(foreground)
    intensity = read_json(output / "dataset_info.json")["intensity"]
    assert intensity["mean"] == pytest.approx(pooled.mean())
    assert intensity["std"] == pytest.approx(pooled.std())
    assert intensity["min"] == -500
    assert intensity["max"] == np.concatenate(everything).max()


def test_a_constant_case_adds_its_own_std_to_that_of_all(dataset, slice_dataset) -> None:
    varied = np.random.default_rng(3).normal(0, 0.1, (6, 5, 4)).astype(np.float32)
    dataset.add("a", varied)
    dataset.add("b", np.full((6, 5, 4), 0.25, np.float32))
    output = slice_dataset(train_ratio=1.0)
    pooled = np.append(varied[varied > varied.min()], np.full(120, 0.25)).astype(np.float64)
    intensity = read_json(output / "dataset_info.json")["intensity"]
    assert intensity["std"] == pytest.approx(pooled.std(), rel=1e-6)
    # The metadata of a slice have what it was divided by.
    with np.load(output / "train" / "b_000.npz") as members:
        assert json.loads(members["metadata"].item())["norm_stats"]["std"] == 1
        assert not members["image"].any()


def test_failures_csv_exists_only_if_a_case_failed(output, dataset, invoke) -> None:
    (failure,) = rows(output / "failures.csv")
    assert list(failure) == ["case_id", "step", "kind", "message"]
    assert (failure["case_id"], failure["kind"]) == ("ct_bad", "UnsupportedImage")
    dataset.add("ct_bad")
    assert invoke("run", "--config", output / "config.yaml").exit_code == 0
    assert not (output / "failures.csv").exists()
    assert read_json(output / "dataset_info.json")["failures"] == []


def test_config_yaml_is_plain_complete_and_has_absolute_paths(output, dataset, chosen) -> None:
    config = yaml.safe_load((output / "config.yaml").read_text())
    assert config["input_dir"] == str(dataset.root)
    assert config["output_dir"] == str(output)
    assert config.items() >= chosen.items()
    assert {"seed", "padding_mode", "normalize", "num_workers"} <= set(config)
    assert not {"overwrite", "only", "prune", "fail_fast"} & set(config)


def test_the_journal_has_a_line_a_case_with_the_checksum_of_every_file(output) -> None:
    records = {record["case_id"]: record for record in journal(output)}
    assert len(journal(output)) == len(records) == 5
    assert records["ct_bad"]["status"] == "failed"
    for case_id in ("ct_a", "ct_b", "ct_c", "ct_d"):
        record = records[case_id]
        assert record["status"] == "committed"
        paths = sorted(output.glob(f"*/{case_id}_*.npz"))
        described = [(path.stat().st_size, zlib.crc32(path.read_bytes())) for path in paths]
        assert [tuple(written[1:3]) for written in record["slices"]] == described


def test_an_npz_holds_image_label_and_metadata_and_needs_no_pickle(output) -> None:
    (path,) = output.glob("*/ct_b_004.npz")
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["image.npy", "label.npy", "metadata.npy"]
        assert archive.testzip() is None
    with np.load(path, allow_pickle=False) as npz:
        image, label, metadata = npz["image"], npz["label"], npz["metadata"]
    assert (image.shape, image.dtype) == ((3, 10, 8), np.float32)
    assert (label.shape, label.dtype) == ((10, 8), np.uint8)
    assert metadata.shape == ()
    assert metadata.dtype.kind == "U"
    described = json.loads(str(metadata))
    assert set(described) == {
        *("source_file", "slice_index", "total_slices", "window_size", "padding_mode"),
        *("num_channels", "spacing", "normalized", "norm_stats", "shape", "case_id", "split"),
        *("plane", "affine"),
    }
    assert described["source_file"] == "imagesTr/ct_b_0000.nii.gz"
    assert (described["slice_index"], described["total_slices"]) == (4, 9)
    assert described["num_channels"] == 3
    assert described["shape"] == {"image": [3, 10, 8], "label": [10, 8]}
    assert set(described["norm_stats"]) == {"mean", "std", "min", "max"}
    assert described["norm_stats"]["min"] == -500
    assert described["spacing"] == pytest.approx([1.5, 3.0, 2.0])


# -- fsync -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", [None, "1/1"])
def test_the_files_that_a_run_needs_to_continue_are_always_forced_to_disk(
    dataset, tmp_path, monkeypatch, shard
) -> None:
    synced = set()
    monkeypatch.setattr(os, "fsync", lambda number: synced.add(os.fstat(number).st_ino))
    dataset.add("a")
    output = tmp_path / "out"
    dask_slicer.run(input_dir=dataset.root, output_dir=output, num_workers=0, shard=shard)
    for path in (output / "config.yaml", output / "splits.json", output):
        assert path.stat().st_ino in synced
    assert (output / "slices.csv").exists() == (shard is None)
    assert not {path.stat().st_ino for path in output.rglob("*.npz")} & synced  # without --fsync


@pytest.mark.skipif(os.name == "nt", reason="directories are never synced there")
def test_a_disk_that_cannot_sync_directories_is_no_reason_to_refuse_a_run(
    dataset, tmp_path, monkeypatch
) -> None:
    fsync = os.fsync

    def sync(descriptor: int) -> None:  # as some disks mounted over a network
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    dataset.add("a")
    output = tmp_path / "out"
    options = {"input_dir": dataset.root, "output_dir": output, "num_workers": 0, "fsync": True}
    assert dask_slicer.run(**options).n_committed == 1
    assert not list(output.glob("*.lock"))


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc what a descriptor stands for")
@pytest.mark.parametrize("format_", FORMATS)
def test_fsync_forces_every_file_of_a_case_and_every_directory_that_leads_to_it(
    tmp_path, monkeypatch, format_
) -> None:
    synced = set()
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.add(os.stat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write_dataset(tmp_path / "scans", n_cases=1, shape=(12, 10, 4), seed=0)
    output = tmp_path / "out"
    dask_slicer.run(
        dask_slicer.RunConfig(
            input_dir=tmp_path / "scans", output_dir=output, num_workers=0,
            fsync=True, train_ratio=1.0, val_ratio=0.0, **FORMATS[format_],
        )
    )  # fmt: skip
    top = {"zarr": ["slices.zarr/train"], "npz": ["train"], "files": ["tr"]}
    tops = [output / name for name in top.get(format_, ["images", "masks", "metadata"])]
    below = [path for place in tops for path in (place, *place.parents, *place.rglob("*"))]
    wanted = [*below, output / "journal.jsonl"]
    wanted = [path for path in wanted if path == output or output in path.parents]
    assert [path for path in wanted if path.stat().st_ino not in synced] == []


def test_a_config_yaml_of_the_user_in_other_letters_is_refused(tmp_path, monkeypatch) -> None:
    # As on a disk that ignores case: the name is listed as Config.yaml, and config.yaml opens it.
    (tmp_path / "config.yaml").write_text("learning_rate: 0.1\n")
    monkeypatch.setattr(layout, "names_in", lambda _: ["Config.yaml"])
    with pytest.raises(OutputError, match="that dask-slicer did not write"):
        existing_config(tmp_path)


def test_clearing_removes_all_files_of_the_output_and_no_other(output, monkeypatch) -> None:
    (output / "notes.txt").write_text("ours")
    removed: list[str] = []
    unlink = Path.unlink

    def record(path: Path, **options: bool) -> None:
        removed.append(path.name)
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", record)
    directory.clear(output)
    assert [path.name for path in output.iterdir()] == ["notes.txt"]
    # No process shall read an output that is half removed; the mark of the output goes last.
    assert removed[:2] == ["slices.csv", "journal.jsonl"]
    assert removed[-1] == "config.yaml"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("name", "read"),
    [
        (layout.SPLITS_FILE, directory.existing_splits),
        (layout.STRUCTURES_FILE, directory.existing_structures),
        (layout.CASES_FILE, directory.existing_table),
        (layout.FOLDS, directory.existing_folds),
    ],
)
def test_a_pipe_in_place_of_a_file_of_the_output_is_not_waited_for(tmp_path, name, read) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(OutputError, match="is damaged"):
        read(tmp_path)


def test_an_output_of_a_newer_version_is_refused(output, invoke) -> None:
    config = output / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace(f"(format {FORMAT_VERSION})", f"(format {FORMAT_VERSION + 1})"))
    result = invoke("run", "--config", config, "--output_dir", output)
    assert result.exit_code == 2
    assert "was written by a newer version of dask-slicer" in result.stderr
