"""Steps from the command line to the files: shapes, values, metadata, continuing, messages."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from step_settings import EVERY_STEP, EVERY_STEP_TWICE

import dask_slicer
from dask_slicer import SliceDataset
from dask_slicer.core.foreground import IntensityProperties
from dask_slicer.core.steps.grid import GridSteps
from dask_slicer.errors import UsageError
from dask_slicer.execution.partitions import merge
from dask_slicer.execution.verify import verify
from dask_slicer.inputs.phantom import write_dataset
from dask_slicer.output.output import open_output

STATISTICS = {"mean": 40.0, "median": 35.0, "std": 30.0, "min": -100.0, "max": 300.0}
STATISTICS |= {"percentile_00_5": -60.0, "percentile_99_5": 210.0}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    write_dataset(folder, n_cases=5, shape=(36, 32, 14), spacing=(8.0, 8.0, 12.0))
    return folder


def run(scans: Path, output: Path, **settings: object) -> Path:
    settings = {"num_workers": 0, "dashboard_address": "none"} | settings
    report = dask_slicer.run({"input_dir": scans, "output_dir": output, **settings}, progress=False)
    assert not report.failures, report.failures
    return output


def contents(output: Path) -> dict[str, bytes]:
    names = ("slices.csv", "splits.json", "statistics.json")
    paths = [*output.glob("*/*.npz"), *(output / "slices.zarr").rglob("*")]
    paths += [output / name for name in names if (output / name).exists()]
    return {
        path.relative_to(output).as_posix(): path.read_bytes() for path in paths if path.is_file()
    }


def samples(output: Path) -> list[dict]:
    return list(SliceDataset(output, split=None))


def rows_of(output: Path) -> list[dict[str, str]]:
    with (output / "slices.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_both_formats_hold_the_same_slices(scans, tmp_path, dtype) -> None:
    settings = EVERY_STEP | {"dtype": dtype}
    npz = samples(run(scans, tmp_path / "npz", **settings))
    zarr = samples(run(scans, tmp_path / "zarr", format="zarr", **settings))
    assert len(npz) == len(zarr) > 10
    for one, other in zip(npz, zarr, strict=True):
        assert (one["case_id"], one["slice_index"]) == (other["case_id"], other["slice_index"])
        assert one["image"].shape == (5, 40, 48)
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])
        assert set(np.unique(one["label"])) <= {0, 1, 2}
    for output in (tmp_path / "npz", tmp_path / "zarr"):
        report = verify(output, deep=5, num_workers=0)
        assert not report.issues, report.issues


@pytest.mark.parametrize("format_", [pytest.param("npz", marks=pytest.mark.slow), "zarr"])
def test_the_same_bytes_on_any_number_of_workers(scans, tmp_path, format_) -> None:
    settings = EVERY_STEP_TWICE | {"format": format_}
    here = contents(run(scans, tmp_path / "0", **settings))
    assert "statistics.json" in here
    for n in (1, 2, 4):
        assert contents(run(scans, tmp_path / f"{n}", num_workers=n, **settings)) == here


@pytest.mark.parametrize("format_", ["npz", "zarr"])
@pytest.mark.parametrize("steps", [EVERY_STEP, EVERY_STEP_TWICE], ids=["one pass", "two"])
def test_partitions_write_the_same(scans, tmp_path, format_, steps) -> None:
    settings = steps | {"format": format_}
    whole = run(scans, tmp_path / "whole", **settings)
    if "normalize" in steps:
        settings["statistics"] = whole / "statistics.json"
    for number in (1, 2):
        run(scans, tmp_path / "parts", shard=f"{number}/2", **settings)
    merge(tmp_path / "parts")
    assert contents(tmp_path / "parts") == contents(whole)
    assert not verify(tmp_path / "parts", deep=10, num_workers=0).issues


def test_metadata_leads_back_to_the_scan(scans, tmp_path) -> None:
    output = run(scans, tmp_path / "slices", **EVERY_STEP)
    plain = run(scans, tmp_path / "plain", normalize="none")
    for row in rows_of(output):
        with np.load(output / row["path"]) as arrays:
            metadata = json.loads(str(arrays["metadata"]))
            label = arrays["label"]
        assert metadata["spacing_requested"] == [5.0, 3.0, 3.0]
        assert metadata["context_mm"] == 7.0
        assert metadata["shape"] == {"image": [5, 40, 48], "label": [40, 48]}
        assert (
            sum(map(int, row["labels"].replace(";", ":").split(":")[1::2]))
            == label.astype(bool).sum()
            if row["labels"]
            else not label.any()
        )
        grid = GridSteps.parse(metadata["steps"]["grid"])
        assert grid.shape == (metadata["total_slices"], 40, 48)
        first = json.loads(
            str(np.load(next(plain.glob(f"*/{row['case_id']}_000.npz")))["metadata"])
        )
        assert list(grid.full) == [first["total_slices"], *first["shape"]["label"]]
        np.testing.assert_allclose(grid.affine(np.array(first["affine"])), metadata["affine"])
        np.testing.assert_allclose(grid.spacing(first["spacing"]), metadata["spacing"])


def test_volumes_of_distant_neighbours(scans, tmp_path) -> None:
    settings = {"context_mm": 30.0, "stride": 3, "window_size": 1}
    outputs = [
        open_output(run(scans, tmp_path / format_, format=format_, **settings))
        for format_ in ("npz", "zarr")
    ]
    for case_id in outputs[0].cases:
        (some, affine), (whole, same) = (output.volume(case_id) for output in outputs)
        known = ~np.isnan(some[:, 0, 0])
        assert known[::3].all()
        assert 0 < (~known).sum() < len(known)
        np.testing.assert_array_equal(some[known], whole[known])
        np.testing.assert_array_equal(affine, same)


def test_windows_are_channels(scans, tmp_path) -> None:
    plain = samples(run(scans, tmp_path / "plain", normalize="none", window_size=1))
    output = run(scans, tmp_path / "windows", ct_windows="40/400,lung", window_size=1)
    info = json.loads((output / "dataset_info.json").read_text())
    assert (info["total_channels"], info["normalized"]) == (6, True)
    for before, after in zip(plain, samples(output), strict=True):
        for offset in range(3):
            for number, (low, high) in enumerate([(-160, 240), (-1350, 150)]):
                expected = (before["image"][offset].clip(low, high) - low) / (high - low)
                found = after["image"][2 * offset + number]
                np.testing.assert_allclose(found, expected, atol=1e-6)
    center = SliceDataset(output, split=None, channels="center")[0]["image"]
    np.testing.assert_array_equal(center, samples(output)[0]["image"][2:4])


def test_empty_slices_are_thinned_in_train_alone(scans, tmp_path) -> None:
    settings = {"label_map": "2:1 *:0", "train_ratio": 0.6, "val_ratio": 0.2}
    before = rows_of(run(scans, tmp_path / "all", **settings))
    after = rows_of(run(scans, tmp_path / "thin", keep_empty=0.0, **settings))
    everywhere = rows_of(
        run(scans, tmp_path / "thinner", keep_empty=0.0, keep_empty_in="all", **settings)
    )
    is_empty = [row["labels"] == "" for row in before]
    assert any(is_empty)
    assert after == [
        row for row, empty in zip(before, is_empty, strict=True)
        if not empty or row["split"] != "train"
    ]  # fmt: skip
    assert everywhere == [row for row, empty in zip(before, is_empty, strict=True) if not empty]


def test_listed_slices(scans, tmp_path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("case_id,slice_index\nphantom_001,3\nphantom_001,5\nphantom_002,0\n")
    output = run(scans, tmp_path / "slices", slice_list=table)
    found = [(row["case_id"], row["slice_index"]) for row in rows_of(output)]
    assert found == [("phantom_001", "3"), ("phantom_001", "5"), ("phantom_002", "0")]
    # Another list makes only the cases anew whose slices it changes.
    table.write_text("case_id,slice_index\nphantom_001,3\nphantom_001,5\nphantom_002,1\n")
    report = dask_slicer.run(
        {"input_dir": scans, "output_dir": output, "slice_list": table, "num_workers": 0},
        progress=False,
    )
    assert (report.n_committed, report.n_skipped) == (1, 4)
    table.write_text("case_id,slice_index\nphantom_001,99\n")
    plan = dask_slicer.plan({"input_dir": scans, "slice_list": table})
    assert [failure.kind for failure in plan.failures] == ["GeometryMismatch"]
    for text, message in (
        ("case_id,slice_index\nphantom_9,1\n", "names phantom_9, but there is no such case"),
        ("case,slice\na,1\n", "must be a CSV table with the columns case_id and slice_index"),
        ("case_id,slice_index\nphantom_001,-1\n", "must be a CSV table"),
    ):
        table.write_text(text)
        with pytest.raises(UsageError, match=message):
            dask_slicer.plan({"input_dir": scans, "slice_list": table})


def test_statistics_of_the_training_cases(scans, tmp_path) -> None:
    output = run(scans, tmp_path / "slices", normalize="dataset", train_ratio=0.8)
    (properties,) = (
        IntensityProperties.parse(content)
        for content in json.loads((output / "statistics.json").read_text())[
            "foreground_intensity_properties_per_channel"
        ].values()
    )
    info = json.loads((output / "dataset_info.json").read_text())
    assert info["foreground_intensity_properties_per_channel"]["0"] == properties.as_json()
    opened = open_output(run(scans, tmp_path / "plain", normalize="none"))
    train = json.loads((output / "splits.json").read_text())["train"]
    voxels = [opened.volume(case)[0][opened.label(case)[0] > 0] for case in train]
    means = [values.mean() for values in voxels]
    assert properties.mean == pytest.approx(np.mean(means), abs=3)
    assert properties.percentile_99_5 == pytest.approx(
        np.percentile(np.concatenate(voxels), 99.5), rel=0.1
    )
    sample = SliceDataset(output, split=None, channels="center")[7]
    raw = SliceDataset(tmp_path / "plain", split=None, channels="center")[7]
    clipped = raw["image"].clip(properties.percentile_00_5, properties.percentile_99_5)
    np.testing.assert_allclose(
        sample["image"], (clipped - properties.mean) / properties.std, atol=1e-5
    )
    # Frozen: the same command again does nothing.
    report = dask_slicer.run(
        {"input_dir": scans, "output_dir": output, "normalize": "dataset", "num_workers": 0},
        progress=False,
    )
    assert (report.n_committed, report.n_skipped) == (0, 5)


def test_statistics_of_elsewhere(scans, tmp_path) -> None:
    file = tmp_path / "statistics.json"
    channels = {"foreground_intensity_properties_per_channel": {"0": STATISTICS}}
    file.write_text(json.dumps(channels))
    settings = {"normalize": "dataset", "statistics": file}
    output = run(scans, tmp_path / "slices", **settings)
    images = [sample["image"] for sample in samples(output)]
    assert min(image.min() for image in images) == pytest.approx((-60 - 40) / 30)
    for number in (1, 2):
        run(scans, tmp_path / "parts", shard=f"{number}/2", **settings)
    other = channels["foreground_intensity_properties_per_channel"]["0"] | {"mean": 41.0}
    file.write_text(json.dumps({"foreground_intensity_properties_per_channel": {"0": other}}))
    with pytest.raises(UsageError, match="was made with other statistics"):
        run(scans, output, **settings)
    file.write_text("{}")
    with pytest.raises(UsageError, match="so it holds no statistics"):
        run(scans, tmp_path / "new", **settings)
    with pytest.raises(UsageError, match="needs --statistics with --shard"):
        run(scans, tmp_path / "new", normalize="dataset", shard="1/2")


def test_a_plan_knows_what_steps_make(scans) -> None:
    plan = dask_slicer.plan(
        {"input_dir": scans, "crop": "2:34,1:31,0:8", "spacing": "6,4,none", "slices": "2:-2"}
    )
    for case in plan.runnable:
        assert case.slice_shape == (16, 60, 32)
        assert case.most_slices == 12
    assert plan.n_slices == 12 * len(plan.runnable)
    plan = dask_slicer.plan({"input_dir": scans, "crop": "0:4,0:4,50:60"})
    assert {failure.kind for failure in plan.failures} == {"GeometryMismatch"}


def test_a_label_map_by_name(scans, tmp_path) -> None:
    (scans / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "CT"},
                "labels": {"background": 0, "liver": 1, "left kidney": 2, "spine": 4},
                "numTraining": 5,
                "file_ending": ".nii.gz",
            }
        )
    )
    try:
        output = run(scans, tmp_path / "slices", label_map="liver:2 spine:1 *:0")
        info = json.loads((output / "dataset_info.json").read_text())
        assert info["label_names"] == {"1": "spine", "2": "liver"}
        assert set(info["label_voxels"]) == {"1", "2"}
        with pytest.raises(UsageError, match="no label is named lever; did you mean"):
            dask_slicer.plan({"input_dir": scans, "label_map": "lever:1 *:0"})
    finally:
        (scans / "dataset.json").unlink()


def test_other_steps_are_other_settings(scans, tmp_path) -> None:
    output = run(scans, tmp_path / "slices", size=32)
    with pytest.raises(UsageError, match="size was 32,32, is now 48,48"):
        run(scans, output, size=48)


def test_a_case_of_which_no_slice_is_selected_is_noted(scans, tmp_path, invoke) -> None:
    result = invoke(
        *("run", "-i", scans, "-o", tmp_path / "slices", "--num_workers", 0),
        *("--slices", "100:", "--stride", 3),
    )
    assert result.exit_code == 0, result.output
    assert result.output.count("no slice is selected") == 1
    assert (
        "no slice is selected (--slices 100:, --stride 3) in 5 cases, none is written: phantom_000,"
        in result.output
    )


def test_lost_and_removed_labels_are_told(scans, tmp_path, invoke) -> None:
    result = invoke(
        *("run", "-i", scans, "-o", tmp_path / "slices", "--num_workers", 0),
        *("--size", 16, "--label_map", "1:1 77:2 *:*"),
    )
    assert result.exit_code == 0, result.output
    assert "labelled voxels were cut off or vanished in 5 cases" in result.output
    assert "no case has the label value 77 of --label_map" in result.output


def test_the_same_again_for_new_scans(scans, tmp_path, invoke) -> None:
    first = run(
        scans, tmp_path / "first", spacing="8,4,4", normalize="dataset", crop="nonzero", size=48
    )
    new = tmp_path / "new" / "imagesTr"
    new.mkdir(parents=True)
    for path in sorted((scans / "imagesTr").iterdir())[:2]:
        (new / path.name).write_bytes(path.read_bytes())
    result = invoke(
        *("run", "--like", first, "-i", new.parent, "-o", tmp_path / "second"),
        *("--num_workers", 0),
    )
    assert result.exit_code == 0, result.output
    second = tmp_path / "second"
    assert (second / "statistics.json").read_bytes() == (first / "statistics.json").read_bytes()
    splits = json.loads((second / "splits.json").read_text())
    assert splits == {"train": [], "val": [], "test": ["phantom_000", "phantom_001"]}
    expected = {
        (sample["case_id"], sample["slice_index"]): sample["image"] for sample in samples(first)
    }
    for sample in samples(second):
        assert "label" not in sample
        image = expected[sample["case_id"], sample["slice_index"]]
        np.testing.assert_array_equal(sample["image"], image)
    again = invoke("run", "--config", second / "config.yaml", "-o", second, "--num_workers", 0)
    assert again.exit_code == 0, again.output
    assert "2 cases skipped" in again.output or "nothing" in again.output.lower()
    other = invoke("run", "--like", first, "-i", new.parent, "-o", tmp_path / "x", "--size", 32)
    assert other.exit_code == 2
    assert f"like {first} has size 48,48, so it cannot be 32,32" in other.output
    missing = invoke("run", "--like", tmp_path, "-i", new.parent, "-o", tmp_path / "x")
    assert missing.exit_code == 2
    assert "there is no output of dask-slicer" in missing.output
