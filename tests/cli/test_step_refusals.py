"""Wrong combinations of steps: one line each, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dask_slicer.inputs.phantom import write_dataset

REFUSED = [
    ("--ct_windows lung --clip_min 0", "ct_windows have their own limits; leave out clip_min"),
    ("--ct_windows lung --percentiles 1,99", "ct_windows and percentiles both set the range"),
    ("--ct_windows lung --normalize zscore", "so normalize must be none, got zscore"),
    ("--ct_windows lungs", "must be LEVEL/WIDTH, such as 40/400, or one of abdomen, lung"),
    ("--ct_windows 40,400", "must be LEVEL/WIDTH, such as 40/400"),
    ("--size 256x256", "size must be one number, or rows,columns, such as 256,320, got 256x256"),
    ("--percentiles 0.005,0.995", "percentiles must be in percent, such as 0.5,99.5"),
    ("--slices 9:8", "slices must be A:B with A before B, got 9:8"),
    ("--dtype uint8 --normalize dataset", "so normalize must be none, got dataset"),
    ("--dtype uint8 --normalize zscore", "dtype uint8 maps limits to a fixed range"),
    ("--dtype source", "dtype source needs format zarr"),
    ("--dtype source --format zarr --spacing 1,1,1", "and spacing changes them"),
    ("--dtype source --format zarr --size 8 --fit resize", "and fit resize changes them"),
    ("--dtype source --format zarr --ct_windows lung", "and ct_windows changes them"),
    ("--normalize dataset --shard 1/2", "normalize dataset needs --statistics with --shard"),
    ("--normalize dataset --clip_min 0", "normalize dataset has its own limits"),
    ("--normalize dataset --train_ratio 0", "needs labels of training cases, and there are none"),
    ("--normalize dataset --statistics {tmp}/no.json", "no.json"),
    ("--normalize dataset --statistics {tmp}/two.json", "statistics of 2 channels, a case has 1"),
    ("--crop 0:4", "crop must be nonzero, label, or a box such as 0:256,0:256,10:90, got 0:4"),
    ("--clip_max 1,2", "a case of this dataset has 1 modality; give one value for all"),
    ("--context_step 2 --context_mm 3", "context_step and context_mm must not both be given"),
    ("--spacing none,none,none", "spacing must be given for at least one axis"),
    ("--label_map 1", "label_map must be pairs OLD:NEW"),
    ("--label_map 1:1,2:2", "label_map must be pairs OLD:NEW with blanks between"),
    ("--label_map 1:256", "label_map makes 256, which does not fit label_dtype uint8 (0 to 255)"),
    ("--label_map lever:1", "no label is named lever"),
    ("--slices 5", "slices must be A:B"),
    ("--slice_list {tmp}/no.csv", "cannot read the slice_list"),
    ("--slice_list {tmp}/other.csv", "names someone, but there is no such case"),
    ("--slice_list {tmp}/two.json", "must be a CSV table with the columns case_id and"),
    ("--slice_list {tmp}/none.csv", "(it names no axial slice)"),
    ("--like {tmp}", "there is no output of dask-slicer"),
]
UNLABELLED = [
    ("--crop label", "crop label needs labels, and no case of this dataset has one"),
    ("--size 8 --center label", "center label needs labels"),
    ("--percentiles 1,99 --foreground label --crop label", "crop label and foreground label need"),
    ("--min_foreground 0.1", "min_foreground needs labels"),
    ("--normalize dataset", "normalize dataset needs labels of training cases"),
]


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    write_dataset(folder, n_cases=3, shape=(12, 10, 6), spacing=(20.0, 24.0, 30.0))
    return folder


@pytest.fixture(scope="module")
def unlabelled(scans, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unlabelled")
    (folder / "imagesTr").symlink_to(scans / "imagesTr")
    return folder


def refused(invoke, command: str, scans: Path, output: Path, options: list[str]) -> str:
    """Return the only line of a refusal that writes nothing."""
    result = invoke(command, "-i", scans, "-o", output, "--num_workers", 0, *options)
    assert result.exit_code == 2, result.output
    (line,) = result.output.splitlines()
    assert not output.exists()
    return line


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_a_wrong_combination_is_one_line(
    scans, tmp_path, invoke, command, options, message
) -> None:
    (tmp_path / "other.csv").write_text("case_id,slice_index\nsomeone,1\n")
    (tmp_path / "none.csv").write_text("case_id,slice_index\n")
    numbers = {"mean": 1, "median": 1, "std": 1, "min": 0, "max": 2}
    numbers |= {"percentile_00_5": 0, "percentile_99_5": 2}
    channels = {"foreground_intensity_properties_per_channel": {"0": numbers, "1": numbers}}
    (tmp_path / "two.json").write_text(json.dumps(channels))
    given = options.format(tmp=tmp_path).split()
    line = refused(invoke, command, scans, tmp_path / "slices", given)
    assert line.startswith("Error: ")
    assert message in line


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(("options", "message"), UNLABELLED)
def test_a_step_that_needs_labels_is_refused_where_there_are_none(
    unlabelled, tmp_path, invoke, command, options, message
) -> None:
    line = refused(invoke, command, unlabelled, tmp_path / "slices", options.split())
    assert message in line


@pytest.mark.parametrize(
    "options", ["--size 8 --fit letterbox --center label", "--normalize minmax --foreground label"]
)
def test_a_step_without_effect_needs_no_labels(unlabelled, tmp_path, invoke, options) -> None:
    given = ("-i", unlabelled, "-o", tmp_path / "slices", "--num_workers", 0, *options.split())
    result = invoke("run", *given)
    assert result.exit_code == 0, result.output
    assert "has no effect" in result.output


def test_a_wrong_order_is_told(scans, tmp_path, invoke) -> None:
    result = invoke("plan", "-i", scans, "--spacing", "1,1,1", "--resample_order", "cubic")
    assert result.exit_code == 2
    assert "'cubic' is not one of '0', '1', '3'" in result.output


def test_statistics_need_a_label(unlabelled, tmp_path, invoke) -> None:
    file = tmp_path / "statistics.json"
    result = invoke("statistics", "-i", unlabelled, "--file", file, "--num_workers", 0)
    assert result.exit_code == 2
    assert "and no training case has a label" in result.output
    assert not file.exists()


def test_a_case_without_the_label_that_a_step_needs_is_in_the_plan(scans, tmp_path, invoke) -> None:
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / name).mkdir()
        for path in sorted((scans / name).iterdir())[: 3 if name == "imagesTr" else 2]:
            (tmp_path / name / path.name).symlink_to(path)
    result = invoke("plan", "-i", tmp_path, "--allow_missing_labels", "--crop", "label")
    assert result.exit_code == 1
    assert "--crop label needs a label, this case has none" in result.output


def test_a_rule_that_several_numbers_break_is_said_once(scans, tmp_path, invoke) -> None:
    line = refused(invoke, "plan", scans, tmp_path / "slices", ["--size", "0"])
    assert line == "Error: size must be 1 or more, got 0"
