"""Several planes in one run: the bytes of each alone, committed together, and read by all."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from affines import oblique

import dask_slicer
from dask_slicer import SliceDataset, open_output
from dask_slicer.errors import OutputError, UsageError
from dask_slicer.execution import tasks
from dask_slicer.execution.partitions import merge
from dask_slicer.execution.verify import verify
from dask_slicer.output.layout import JOURNAL

PLANES = ("axial", "coronal", "sagittal")
# Every step that several planes allow.
STEPS = {
    "label_map": "1:2 *:0",
    "min_component_voxels": 2,
    "crop": "nonzero",
    "spacing": "1.5,1.5,1.5",
    "size": "9,8",
    "center": "label",
    "slices": "10%:90%",
    "keep_empty": 0.5,
    "window_size": 1,
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset of unequal sides, stored in several orders, flipped and oblique."""
    root = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(3)
    axes = [np.diag([-1, -1, 1]), np.eye(3)[[2, 0, 1]], np.diag([1, -1, -1])[[1, 2, 0]]]
    dtypes = (np.int16, np.float32, np.uint8)
    for number, (rotation, dtype) in enumerate(zip(axes, dtypes, strict=True)):
        shape = (9, 7 + number, 6)
        affine = oblique(spacing=(1.5, 2.0, 3.0)) if number else np.diag([1.0, 2.0, 3.0, 1.0])
        affine[:3, :3] = affine[:3, :3] @ rotation
        image = rng.integers(1, 200, shape).astype(dtype)
        image[:2] = 0
        label = np.zeros(shape, np.uint8)
        label[3:7, 2:5, 2:4] = 1
        for folder, name, array in (("imagesTr", "_0000", image), ("labelsTr", "", label)):
            (root / folder).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(array, affine), root / folder / f"c{number}{name}.nii.gz")
    return root


def run(scans: Path, output: Path, **settings: object) -> Path:
    defaults = {"num_workers": 0, "dashboard_address": "none", "plane": PLANES}
    settings = {"input_dir": scans, "output_dir": output} | defaults | settings
    report = dask_slicer.run(settings, progress=False)
    assert not report.failures, report.failures
    return output


@pytest.fixture(scope="module", params=["npz", "zarr"])
def output(request, scans, tmp_path_factory) -> Path:
    return run(scans, tmp_path_factory.mktemp(request.param) / "out", format=request.param)


@pytest.fixture
def copy(output, tmp_path) -> Path:
    return Path(shutil.copytree(output, tmp_path / "copy"))


def contents(output: Path) -> dict[str, bytes]:
    """Return all files but those that have times in them."""
    timed = ("journal.jsonl", "dataset_info.json", "config.yaml")
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and path.name not in timed
    }


def of_plane(files: dict[str, bytes], plane: str) -> dict[str, bytes]:
    """Return the files in the folders of a plane, by their names without it."""
    place = f"/{plane}/"
    return {name.replace(place, "/"): data for name, data in files.items() if place in name}


@pytest.mark.parametrize("format_", ["npz", "zarr"])
@pytest.mark.parametrize("settings", [{}, STEPS, {"size": 12, "fit": "resize", "stride": 2}])
def test_each_plane_has_the_bytes_of_a_run_with_it_alone(scans, tmp_path, format_, settings):
    together = contents(run(scans, tmp_path / "all", format=format_, **settings))
    for plane in PLANES:
        alone = run(scans, tmp_path / plane, format=format_, plane=plane, **settings)
        files = {
            name: data
            for name, data in contents(alone).items()
            if "/" in name and name != "slices.zarr/zarr.json"
        }
        assert of_plane(together, plane) == files
        assert files


def test_a_scan_is_read_once(scans, tmp_path, monkeypatch) -> None:
    read = []
    load_volume = tasks.load_volume
    monkeypatch.setattr(
        tasks,
        "load_volume",
        lambda case, plane, **_: read.append(case.case_id) or load_volume(case, plane),
    )
    run(scans, tmp_path / "out")
    assert sorted(read) == ["c0", "c1", "c2"]


@pytest.mark.parametrize(
    "settings", [{}, STEPS | {"size": None, "center": "volume", "slices": None}]
)
def test_a_voxel_has_the_same_numbers_in_every_plane(scans, tmp_path, settings) -> None:
    opened = open_output(run(scans, tmp_path / "out", format="zarr", **settings))
    image, affine = opened.volume("c1", plane="axial")
    label, _ = opened.label("c1", plane="axial")
    places = np.argwhere(label >= 0)
    world = places @ affine[:3, :3].T + affine[:3, 3]
    for plane in PLANES[1:]:
        other, other_affine = opened.volume("c1", plane=plane)
        to_other = np.linalg.inv(other_affine)
        there = np.rint(world @ to_other[:3, :3].T + to_other[:3, 3]).astype(int)
        np.testing.assert_array_equal(other[tuple(there.T)], image[tuple(places.T)])
        other_label, _ = opened.label("c1", plane=plane)
        np.testing.assert_array_equal(other_label[tuple(there.T)], label[tuple(places.T)])


def test_the_index_has_a_column_for_the_plane(output) -> None:
    with (output / "slices.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0])[:4] == ["case_id", "split", "plane", "slice_index"]
    keys = [(row["case_id"], PLANES.index(row["plane"]), int(row["slice_index"])) for row in rows]
    assert keys == sorted(keys)
    for row in rows:
        assert f"{row['split']}/{row['plane']}/{row['case_id']}" in row["path"]
        assert (output / row["path"]).exists()
    info = json.loads((output / "dataset_info.json").read_text())
    assert info["num_slices"] == len(rows) == (9 + 7 + 6) + (9 + 8 + 6) + (9 + 9 + 6)
    assert info["plane"] == [*PLANES]
    assert info["num_cases"] == 3
    assert info["label_voxels"] == {"1": 3 * 24}  # in every plane


def test_samples_of_all_planes_or_of_one(output) -> None:
    dataset = SliceDataset(output, split=None)
    samples = list(dataset)
    assert {sample["plane"] for sample in samples} == {*PLANES}
    mixed = list(dataset.shuffled(buffer_size=5))
    assert sorted((s["case_id"], s["plane"], s["slice_index"]) for s in mixed) == sorted(
        (s["case_id"], s["plane"], s["slice_index"]) for s in samples
    )
    for plane in PLANES:
        alone = SliceDataset(output, split=None, plane=plane)
        shapes = {sample["image"].shape[1:] for sample in alone if sample["case_id"] == "c0"}
        assert {sample["plane"] for sample in alone} == {plane}
        assert shapes == {{"axial": (7, 9), "coronal": (6, 9), "sagittal": (6, 7)}[plane]}
    assert "of 3 cases" in repr(dataset)
    with pytest.raises(UsageError, match="has slices of axial, coronal, sagittal, not of k"):
        SliceDataset(output, plane="k")


def test_volumes_of_a_plane(output) -> None:
    opened = open_output(output)
    assert opened.cases == ["c0", "c1", "c2"]
    shapes = [opened.volume("c0", plane=plane)[0].shape for plane in PLANES]
    assert shapes == [(6, 7, 9), (7, 6, 9), (9, 6, 7)]
    assert opened.label("c0", plane="coronal")[0].sum() == 24
    with pytest.raises(UsageError, match="has slices of axial, coronal, sagittal; give plane"):
        opened.volume("c0")
    assert "plane axial, coronal, sagittal" in repr(opened)


def test_without_an_index_the_journal_has_the_planes(copy) -> None:
    expected = [
        (s["case_id"], s["plane"], s["slice_index"]) for s in SliceDataset(copy, split=None)
    ]
    (copy / "slices.csv").unlink()
    again = [(s["case_id"], s["plane"], s["slice_index"]) for s in SliceDataset(copy, split=None)]
    assert sorted(again) == sorted(expected)


@pytest.mark.parametrize(
    ("row", "other"),
    [(",axial,", ",../..,"), (",axial,", ",coronal,"), ("/axial/", "/../"), (",axial,", ",,")],
)
def test_a_path_that_leads_elsewhere_is_damage(copy, row, other) -> None:
    table = copy / "slices.csv"
    table.write_text(table.read_text().replace(row, other, 1))
    with pytest.raises(OutputError, match="is damaged"):
        SliceDataset(copy, split=None)


@pytest.mark.parametrize(
    ("name", "value"),
    [("plane", "../axial"), ("plane", "coronal"), ("spacing", [0, 1, 1]), ("shape", [1, 2, 3, -4])],
)
def test_a_journal_line_that_no_run_writes_is_ignored(copy, name, value) -> None:
    journal = copy / JOURNAL
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    lines[0]["planes"][0][name] = value
    journal.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (copy / "slices.csv").unlink()
    assert len(open_output(copy).cases) == 2


def test_verify_finds_a_file_of_the_second_plane(copy, scans) -> None:
    report = verify(copy, num_workers=0, deep=100)
    assert not report.issues
    assert report.n_derived == report.n_slices == 69
    removed = next(
        path
        for path in sorted(copy.rglob("coronal/**/*"))
        if path.suffix != ".json" and path.is_file()
    )
    removed.unlink()
    stray = removed.parents[1] / "coronal" / "x_001.npz"
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"")
    report = verify(copy, num_workers=0)
    messages = {issue.path: issue.message for issue in report.issues}
    assert messages[removed.relative_to(copy).as_posix()] == "is missing"
    assert messages[stray.relative_to(copy).as_posix()] == "is not in the journal; remove it"
    assert len(messages) == 2
    report = verify(copy, num_workers=0, repair=True)
    assert len(report.to_rewrite) == 1


def test_a_repaired_output_is_written_again_as_it_was(copy, scans) -> None:
    before = contents(copy)
    for path in sorted(copy.rglob("sagittal/c*"))[-1:]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert len(verify(copy, num_workers=0, repair=True).to_rewrite) == 1
    config = open_output(copy).config
    run(scans, copy, format=config.format)
    assert contents(copy) == before
    assert not verify(copy, num_workers=0).issues


@pytest.mark.parametrize("format_", ["npz", "zarr"])
def test_a_case_is_committed_in_all_planes_or_in_none(scans, tmp_path, format_) -> None:
    """A process that dies between two planes leaves a case that the next run writes again."""
    expected = contents(run(scans, tmp_path / "whole", format=format_))
    program = (
        "import os, dask_slicer\n"
        "from dask_slicer.execution import tasks\n"
        "move = tasks.move\n"
        "def stop(source, target):\n"
        "    if 'coronal' in target.parts and 'c1' in target.name: os._exit(9)\n"
        "    move(source, target)\n"
        "tasks.move = stop\n"
        f"dask_slicer.run({{'input_dir': {str(scans)!r}, 'output_dir': {str(tmp_path / 'out')!r}, "
        f"'plane': 'axial,coronal,sagittal', 'format': {format_!r}, 'num_workers': 0, "
        "'dashboard_address': 'none'}, progress=False)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], check=False)
    assert ended.returncode == 9
    assert list((tmp_path / "out").rglob("axial/c1*"))
    with pytest.warns(UserWarning, match="has slices of"):
        written = {sample["case_id"] for sample in SliceDataset(tmp_path / "out", split=None)}
    assert "c1" not in written
    assert contents(run(scans, tmp_path / "out", format=format_)) == expected


def test_a_case_that_fails_leaves_no_plane(scans, tmp_path, monkeypatch) -> None:
    move = tasks.move

    def fail(source: Path, target: Path) -> None:
        if "sagittal" in target.parts and "c1" in target.name:
            raise PermissionError(13, "Permission denied", str(target))
        move(source, target)

    monkeypatch.setattr(tasks, "move", fail)
    settings = {"input_dir": scans, "output_dir": tmp_path / "out", "plane": PLANES}
    report = dask_slicer.run(settings | {"num_workers": 0, "retries": 0}, progress=False)
    assert [failure.case_id for failure in report.failures] == ["c1"]
    assert not list((tmp_path / "out").rglob("*c1*"))


def test_from_one_plane_to_three_and_back(scans, tmp_path, copy) -> None:
    format_ = open_output(copy).config.format
    one = contents(run(scans, tmp_path / "one", format=format_, plane="coronal"))
    three = contents(copy)
    with pytest.raises(OutputError, match="plane was axial,coronal,sagittal, is now coronal"):
        run(scans, copy, format=format_, plane="coronal")
    assert contents(run(scans, copy, format=format_, plane="coronal", overwrite=True)) == one
    assert not list(copy.rglob("coronal"))
    assert contents(run(scans, copy, format=format_, overwrite=True)) == three
    assert not list((copy / "train").glob("*.npz"))


def test_planes_may_be_given_in_any_order(scans, tmp_path) -> None:
    run(scans, tmp_path / "out", plane="sagittal,Axial")
    report = dask_slicer.run(
        input_dir=scans, output_dir=tmp_path / "out", plane=["axial", "sagittal"], num_workers=0
    )
    assert report.n_skipped == 3


@pytest.mark.parametrize("format_", ["npz", "zarr"])
def test_partitions_write_the_same(scans, tmp_path, format_) -> None:
    whole = contents(run(scans, tmp_path / "whole", format=format_, **STEPS))
    for shard in ("2/2", "1/2"):
        run(scans, tmp_path / "parts", format=format_, shard=shard, **STEPS)
    merge(tmp_path / "parts")
    assert contents(tmp_path / "parts") == whole


def test_a_case_with_the_name_of_a_plane_is_a_case(scans, tmp_path) -> None:
    named = Path(shutil.copytree(scans, tmp_path / "named"))
    for path in named.rglob("c1*"):
        path.rename(path.with_name(path.name.replace("c1", "axial")))
    one = run(named, tmp_path / "out", format="zarr", plane="axial")
    assert not verify(one, num_workers=0, repair=True).issues
    assert (
        dask_slicer.run(
            input_dir=named, output_dir=one, format="zarr", prune=True, num_workers=0
        ).n_skipped
        == 3
    )
    three = run(named, one, format="zarr", overwrite=True)
    assert not verify(three, num_workers=0, repair=True).issues
    assert open_output(three).cases == ["axial", "c0", "c2"]


def test_the_store_opens_with_all_planes(output) -> None:
    zarr = pytest.importorskip("zarr")
    if not (output / "slices.zarr").exists():
        pytest.skip("npz")
    group = zarr.open_group(output / "slices.zarr", mode="r", use_consolidated=True)
    splits = json.loads((output / "splits.json").read_text())
    for split, cases in splits.items():
        for case in cases:
            for plane in PLANES:
                assert group[f"{split}/{plane}/{case}/image"].ndim == 4


def test_commands_that_read_an_output_know_the_planes(copy, invoke) -> None:
    pytest.importorskip("matplotlib")
    for command in (
        ("preview", copy, "--n_slices", 6),
        ("preview", copy, "--case", "c0", "--slices", 8),  # which one plane has
        ("report", copy),
        ("watch", copy, "--once"),
        ("split", copy, "--folds", 2),
        ("verify", copy, "--num_workers", 0),
    ):
        result = invoke(*command)
        assert result.exit_code == 0, result.output
    page = (copy / "report.html").read_text()
    assert "axial, coronal, sagittal" in page
    assert "Coronal, between slices" in page
    folds = [SliceDataset(copy, fold=0, part=part) for part in ("train", "val")]
    cases = [{sample["case_id"] for sample in fold} for fold in folds]
    assert not cases[0] & cases[1]
    assert {sample["plane"] for sample in folds[0]} == {*PLANES}


def test_a_preview_shows_every_plane(output) -> None:
    pytest.importorskip("matplotlib")
    figure = dask_slicer.show_slices(output, n_slices=6)
    shown = {plane for axes in figure.axes for plane in PLANES if plane in axes.get_label()}
    assert shown == {*PLANES}


def test_a_plan_shows_the_slices_of_each_plane(scans, invoke) -> None:
    planes = ("--plane", "axial,coronal,sagittal")
    options = ((), ("--spacing", "2,2,2", "--slices", "0%:50%"))
    for steps, shapes in zip(options, ("6 7×9 7 6×9 9 6×7", "6 → 7 → 9 →"), strict=True):
        result = invoke("plan", "-i", scans, *planes, *steps)
        assert result.exit_code == 0, result.output
        rows = [line.split() for line in result.output.splitlines() if line.startswith("c0")]
        assert [row[2] for row in rows] == [*PLANES]
        assert [text for row in rows for text in row[3:5]] == shapes.split()
    plan = dask_slicer.plan(input_dir=scans, plane=PLANES, window_size=0)
    assert plan.n_slices == 69
    alone = [dask_slicer.plan(input_dir=scans, plane=plane) for plane in PLANES]
    each = ", ".join(f"{one.n_slices} {one.config.plane}" for one in alone)
    assert f"69 ({each})" in plan._repr_html_()
    content = json.loads(invoke("plan", "-i", scans, *planes, "--json").output)
    assert content["num_slices"] == content["output_files"] == 69
    assert content["cases"][0]["planes"]["sagittal"]["shape"] == [9, 6, 7]
    again = dask_slicer.plan(input_dir=scans, plane=PLANES, window_size=0)
    assert again == plan  # from the cache


def test_the_bytes_of_a_plan_are_the_sum_over_planes(scans, tmp_path, invoke) -> None:
    def needs(plane: str) -> dict[str, int]:
        options = ("--plane", plane, "--format", "zarr", "--json")
        return json.loads(invoke("plan", "-i", scans, *options).output)

    together, each = needs("axial,coronal,sagittal"), [needs(plane) for plane in PLANES]
    for name in ("output_files", "output_bytes_at_most", "output_bytes_estimate", "num_slices"):
        assert together[name] == sum(one[name] for one in each)
    most = max(one["peak_bytes_per_worker"] for one in each)
    assert most <= together["peak_bytes_per_worker"] < most + 4 * 9 * 9 * 6


def test_an_index_of_several_planes_lists_the_slices_of_the_plane(scans, tmp_path) -> None:
    index = run(scans, tmp_path / "all", slices="30%:70%") / "slices.csv"
    listed = run(scans, tmp_path / "one", plane="coronal", slice_list=index)
    alone = run(scans, tmp_path / "alone", plane="coronal", slices="30%:70%")
    assert contents(listed) == contents(alone)


def test_the_same_again_in_all_planes(scans, output, tmp_path, invoke) -> None:
    result = invoke("run", "--like", output, "-i", scans, "-o", tmp_path / "o", "--num_workers", 0)
    assert result.exit_code == 0, result.output
    assert open_output(tmp_path / "o").config.planes == PLANES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--spacing", "1,2,2"),
            "spacing must be three equal numbers, such as 1,1,1, with several",
        ),
        (("--spacing", "none,2,2"), "spacing must be three equal numbers"),
        (("--slices", "3:-2"), "slices must be in percent, such as 10%:90%, with several planes"),
        (("--slice_list", "l.csv"), "slice_list counts the slices of one plane; give one plane"),
        (
            ("--min_component_pixels", "5"),
            "min_component_pixels would give each plane another label",
        ),
    ],
)
def test_what_fits_one_plane_alone_is_refused(scans, tmp_path, invoke, options, message) -> None:
    command = ("run", "-i", scans, "-o", tmp_path / "o", "--plane", "axial,coronal", *options)
    result = invoke(*command)
    assert result.exit_code == 2
    assert message in result.output
    assert result.output.count("\n") == 1
    assert not (tmp_path / "o").exists()
