"""Steps in plans, in the last lines of runs, in summaries and in reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import dask_slicer
from dask_slicer.inputs.phantom import write_dataset

STEPS = {
    **{"label_map": "1:1 77:2 *:*", "min_component_voxels": 30, "crop": "nonzero"},
    **{
        "ct_windows": ["abdomen", "lung"],
        "spacing": [None, 4, 4],
        "size": [24, 20],
        "slices": "1:",
    },
}
OPTIONS = (
    *("--label_map", "1:1 77:2 *:*", "--min_component_voxels", 30, "--crop", "nonzero"),
    *("--ct_windows", "abdomen,lung", "--spacing", "none,4,4", "--size", "24,20", "--slices", "1:"),
)


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Return cases of two shapes and spacings."""
    folder = tmp_path_factory.mktemp("scans")
    write_dataset(folder, n_cases=2, shape=(36, 32, 10), spacing=(8.0, 8.0, 12.0))
    other = tmp_path_factory.mktemp("other")
    write_dataset(other, n_cases=1, shape=(24, 20, 8), spacing=(12.0, 12.0, 15.0))
    for path in other.glob("*/*.nii.gz"):
        path.rename(folder / path.parent.name / path.name.replace("phantom", "small"))
    return folder


@pytest.fixture(scope="module")
def output(scans, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "slices"
    settings = {"input_dir": scans, "output_dir": folder, "num_workers": 0} | STEPS
    dask_slicer.run(settings, progress=False)
    return folder


def test_a_plan_shows_each_case_before_and_after(scans, invoke) -> None:
    result = invoke("plan", "-i", scans, *OPTIONS)
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    rows = {line.split()[0]: line for line in lines if line.startswith(("phantom_", "small_"))}
    assert "10 → 9 32×36 → 24×20 12 × 8 × 8 → 12 × 4 × 4" in rows["phantom_000"]
    assert "8 → 7 20×24 → 24×20 15 × 12 × 12 → 15 × 4 × 4" in rows["small_000"]
    assert rows["small_000"].endswith("kB")
    steps = [line.removeprefix("Step: ") for line in lines if line.startswith("Step: ")]
    assert "spacing 12×8×8 to 15×12×12 → same×4×4 mm, order 3" in steps
    assert "windows 40/400, -600/1500 (level/width, HU), a channel each, from 0 to 1" in steps
    content = json.loads(invoke("plan", "-i", scans, "--json", *OPTIONS).output)
    assert content["steps"] == steps
    case = content["cases"][-1]
    assert case["slice_shape"] == [8, 24, 20]
    assert case["slice_spacing"] == pytest.approx([15, 4, 4])
    assert case["slices_at_most"] == 7
    assert 0 < case["output_bytes_estimate"] <= case["output_bytes_at_most"]
    page = dask_slicer.plan({"input_dir": scans} | STEPS)._repr_html_()
    assert "32×36 → 24×20" in page
    assert "crop to what is not 0" in page
    plain = invoke("plan", "-i", scans).output
    assert "Step:" not in plain
    assert "→" not in plain
    assert "steps" not in json.loads(invoke("plan", "-i", scans, "--json").output)


def test_steps_without_effect_have_no_line(scans, invoke) -> None:
    given = ("--context_mm", 4, "--window_size", 0, "--foreground", "otsu", "--normalize", "none")
    output = invoke("plan", "-i", scans, *given).output
    assert "Step:" not in output
    assert "--context_mm has no effect with --window_size 0" in output
    output = invoke("plan", "-i", scans, "--keep_empty", 0.1, "--min_foreground", 0.1).output
    assert "without a label in train" not in output


def test_a_plan_says_that_slices_are_enlarged_with_cubic_splines(scans, invoke) -> None:
    given = ("plan", "-i", scans, "--size", 64, "--size_order", 3)
    assert (
        "Step: rows × columns 64×64, resize, order 3\n" in invoke(*given, "--fit", "resize").output
    )
    assert "Step: rows × columns 64×64, crop_pad\n" in invoke(*given).output


@pytest.mark.parametrize(
    ("share", "words"), [(0.125, "12.5% of"), (0.005, "0.5% of"), (1 / 3, "33.3% of"), (0, "0% of")]
)
def test_a_share_of_empty_slices_is_not_rounded_away(scans, invoke, share, words) -> None:
    assert f": {words} those without" in invoke("plan", "-i", scans, "--keep_empty", share).output


def test_intensities_alone_are_steps_of_a_plan_in_json(scans, invoke) -> None:
    result = invoke("plan", "-i", scans, "--json", "--dtype", "uint8", "--percentiles", "1,99")
    assert json.loads(result.output)["steps"] == [
        "clip to the percentiles 1 and 99",
        "the limits become 0 and 255",
    ]
    (step,) = json.loads(invoke("plan", "-i", scans, "--json", "--dtype", "uint8").output)["steps"]
    assert step == "the 0.5 and 99.5 percentiles become 0 and 255"


def test_a_plan_says_which_cases_have_slices_too_far_apart_for_neighbours(scans, invoke) -> None:
    line = "Step: neighbours in a window are 7 mm apart, to the nearest slice"
    few = "; in 1 of 3 cases this is the slice itself, because slices are over 14 mm apart"
    assert f"{line}{few}\n" in invoke("plan", "-i", scans, "--context_mm", 7).output
    spaced = invoke("plan", "-i", scans, "--context_mm", 7, "--spacing", "8,none,none")
    assert f"{line}\n" in spaced.output


def test_a_run_says_what_steps_made_of_labels(scans, tmp_path, invoke) -> None:
    said = invoke("run", "-i", scans, "-o", tmp_path / "o", "--num_workers", 0, *OPTIONS).output
    assert "Note: small components of labels:" in said
    assert "by --size or --spacing:" in said
    assert "Note: no case has the label value 77 of --label_map" in said


def test_the_summary_and_the_report_hold_it(scans, output) -> None:
    changes = json.loads((output / "dataset_info.json").read_text())["label_changes"]
    cases = ["phantom_000", "phantom_001", "small_000"]
    assert changes["cases_with_lost_voxels"] == cases
    assert changes["removed_voxels"] > 0
    assert changes["lost_voxels"]["1"] > 0
    assert "77" not in changes["mapped_voxels"]
    opened = dask_slicer.open_output(output)
    assert opened.channel_names == ("40/400", "-600/1500")
    assert dask_slicer.SliceDataset(output).channel_names == opened.channel_names
    assert "crop to what is not 0" in opened._repr_html_()
    from dask_slicer.report.html_report import write_report

    page = write_report(output, say=print).read_text()
    assert "as they are stored: limits become 0 and 1" in page
    assert "the journal, which is missing" not in page
    assert "<h3>-600/1500</h3>" in page
    assert "Steps: small components of labels" in page
    assert "<li>crop to what is not 0, found for each case</li>" in page


def test_an_output_needs_the_statistics_of_elsewhere_only_once(scans, tmp_path, invoke) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    settings = {"input_dir": scans, "output_dir": first, "normalize": "dataset"}
    dask_slicer.run({**settings, "num_workers": 0}, progress=False)
    like = ("-i", scans, "-o", second, "--num_workers", 0)
    assert invoke("run", "--like", first, *like).exit_code == 0
    moved = first.rename(tmp_path / "moved")
    for again in (("--config", second / "config.yaml"), ("--like", moved, *like)):
        result = invoke("run", *again)
        assert result.exit_code == 0, result.output
        assert "Nothing to do" in result.output
    assert invoke("verify", second, "--deep", 1, "--num_workers", 0).exit_code == 0


def test_without_steps_nothing_is_added(scans, tmp_path) -> None:
    settings = {"input_dir": scans, "output_dir": tmp_path / "o", "num_workers": 0}
    dask_slicer.run(settings, progress=False)
    assert "label_changes" not in json.loads((tmp_path / "o" / "dataset_info.json").read_text())


def test_the_same_again_leaves_out_the_choice_of_slices_by_label(scans, tmp_path, invoke) -> None:
    table = tmp_path / "list.csv"
    table.write_text("case_id,slice_index\nphantom_000,3\n")
    first = tmp_path / "first"
    settings = {"slice_list": table, "min_foreground": 0.001, "keep_empty": 0.0, "size": 16}
    settings |= {"keep_empty_in": "all", "num_workers": 0, "input_dir": scans}
    dask_slicer.run({"output_dir": first, **settings}, progress=False)
    new = tmp_path / "new"
    new.mkdir()
    (new / "imagesTr").symlink_to(scans / "imagesTr")
    fewer = ("--like", first, "-i", new, "--slices", ":4")
    assert "slices 27 → 12 at most: range :4" in invoke("plan", *fewer).output
    second = tmp_path / "second"
    result = invoke("run", "--like", first, "-i", new, "-o", second, "--num_workers", 0)
    assert result.exit_code == 0, result.output
    dataset = dask_slicer.SliceDataset(second, split="test")
    assert len(dataset) == 10 + 9 + 8
    assert dataset[0]["image"].shape == (5, 16, 16)
