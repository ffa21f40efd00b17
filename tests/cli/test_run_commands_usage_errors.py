"""What cannot be done as asked: exit status 2, one line that says so, and nothing written."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.versions


@pytest.fixture
def refused(dataset, tmp_path, invoke):
    """Return a function that runs with options over sound ones, and returns the one error line.

    It checks that everything on disk stays as it was.
    """

    def call(
        *options: object, input_dir: Path | None = None, output_dir: Path | None = None
    ) -> str:
        if not dataset.root.exists() and input_dir is None:
            dataset.add("liver_001")
            dataset.add("liver_002")
        before = snapshot(tmp_path)
        result = invoke(
            *("run", "--input_dir", input_dir or dataset.root, "--num_workers", 0),
            *("--output_dir", output_dir or tmp_path / "slices", *options),
        )
        assert result.exit_code == 2
        assert result.stdout == ""
        *usage, line = result.stderr.splitlines()
        assert line.startswith("Error: ")
        # Errors in the options themselves are click's, which puts two lines about usage first.
        assert usage == [] or usage[0].startswith("Usage: ")
        assert sum(text.startswith("Error: ") for text in usage) == 0
        assert snapshot(tmp_path) == before
        return line

    return call


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Return every file and folder below a folder, with its size and mtime."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
    }


# -- options and configurations --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--num_workers", "-2"], "num_workers must be -1 or more, got -2"),
        (["--num_workers", "two"], "'two' is not a valid integer"),
        (["--window_size", "-1"], "window_size must be 0 or more, got -1"),
        (["--window_size", "1.5"], "'1.5' is not a valid integer"),
        (["--windw_size", "1"], "--window_size"),
        (["--plane", "oblique"], "'oblique' is not one of 'axial'"),
        (["--normalize", "z-score"], "did you mean zscore?"),
        (["--plane", "Axal"], "did you mean axial?"),
        (["--layout", "nonsense"], "'folder_per_case', 'one_folder'"),
        (["--layout", "nnunett"], "did you mean nnunet?"),
        (["--padding_mode", "wrap"], "'wrap' is not one of 'zero'"),
        (["--train_ratio", "0.8", "--val_ratio", "0.3"], "train_ratio + val_ratio must be 1"),
        (["--train_ratio", "1.1"], "train_ratio must be 1 or less, got 1.1"),
        (["--val_ratio", "-0.1"], "val_ratio must be 0 or more, got -0.1"),
        (["--train_ratio", "nan"], "train_ratio"),
        (["--clip_min", "5", "--clip_max", "5"], "clip_min must be less than clip_max"),
        (["--clip_min", "nan"], "clip_min must be a finite number"),
        (["--clip_max", "inf"], "clip_max must be a finite number"),
        (["--min_foreground", "1.5"], "min_foreground must be 1 or less"),
        (["--compression_level", "10"], "compression_level must be 9 or less"),
        (["--retries", "-1"], "retries must be 0 or more"),
        (["--group_regex", "(liver"], "group_regex is not a regular expression"),
        (["--group_regex", "liver"], "group_regex must have a group in parentheses"),
        (["--no_normalize", "--normalize", "minmax"], "contradicts"),
        (["--scheduler", "tcp://a:1", "--scheduler_file", "b"], "must not both be given"),
        (["--config", "ct_abdomn"], "did you mean ct_abdomen?"),
        (["--config", "nowhere.yaml"], "cannot read the configuration"),
        (["stray"], "'stray'"),
        (["--only", "liver_1"], "did you mean liver_001?"),
        (["--fold", "0"], "fold"),
        (["--log_file", "/nowhere/at/all.log"], "/nowhere/at/all.log"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_out_of_range_are_refused_with_field_rule_and_value(
    refused, options, words
) -> None:
    assert words in refused(*options)


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("windowsize: 3", "there is no setting windowsize; did you mean window_size?"),
        ("padding: zero", "did you mean padding_mode?"),
        ("window_size: -3", "window_size must be 0 or more, got -3"),
        ("window_size: two", "window_size"),
        ("window_size: true", "window_size"),
        ("plane: [axial, up]", "plane must be one of axial, coronal, sagittal, i, j, k, got up"),
        ("normalize: Z-score", "none, got z-score; did you mean zscore?"),
        ("overwrite: perhaps", "overwrite"),
        ("- a\n- list", "must be a mapping"),
        ("a: [1,", "is not YAML"),
        ("!!python/object/apply:os.system ['touch HACKED']", "is not YAML"),
        ("\x00", "is not YAML"),
    ],
    ids=lambda value: "" if " " in value and ":" not in value else value.replace("\n", " ")[:30],
)
def test_a_configuration_that_is_wrong_is_refused_by_name(refused, tmp_path, yaml, words) -> None:
    (tmp_path / "mine.yaml").write_text(yaml)
    assert words in refused("--config", tmp_path / "mine.yaml")


def test_all_wrong_settings_are_reported_at_once(refused) -> None:
    line = refused("--window_size", "-1", "--num_workers", "-2", "--train_ratio", "3")
    assert all(name in line for name in ("window_size", "num_workers", "train_ratio"))


@pytest.mark.parametrize("name", ["input_dir", "output_dir"])
def test_both_directories_are_required(dataset, tmp_path, invoke, name) -> None:
    other = {"input_dir": "output_dir", "output_dir": "input_dir"}[name]
    result = invoke("run", f"--{other}", tmp_path / "there")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"Error: {name} is required: give --{name}, or set it in the configuration file\n"
    )
    assert snapshot(tmp_path) == {}


# -- directories ---------------------------------------------------------------------------------


def test_an_output_directory_with_files_of_others_is_left_alone(refused, tmp_path) -> None:
    (tmp_path / "slices").mkdir()
    (tmp_path / "slices" / "thesis.tex").write_text("years of work")
    assert "thesis.tex" in refused()
    assert "thesis.tex" in refused("--overwrite")


def test_an_output_directory_may_hold_the_logs_of_the_command(dataset, tmp_path, invoke) -> None:
    dataset.add("liver_001")
    output = tmp_path / "slices"
    output.mkdir()
    for name in ("slurm-17.txt", "run.log", "nohup.out"):
        (output / name).write_text("started")
    result = invoke("run", "--input_dir", dataset.root, "--output_dir", output, "--num_workers", 0)
    assert result.exit_code == 0
    assert (output / "run.log").read_text() == "started"


def test_an_output_directory_that_is_a_file_is_refused(refused, tmp_path) -> None:
    (tmp_path / "file").write_text("precious")
    assert "is a file" in refused(output_dir=tmp_path / "file")
    assert "is a file" in refused("--overwrite", output_dir=tmp_path / "file")
    refused(output_dir=tmp_path / "file" / "below")


def test_nothing_is_written_among_the_scans(refused, dataset, tmp_path) -> None:
    dataset.add("liver_001")
    assert "must not be the input_dir" in refused(output_dir=dataset.root)
    (tmp_path / "link").symlink_to(dataset.root)
    assert "must not be the input_dir" in refused(output_dir=tmp_path / "link")
    assert "holds other files" in refused(output_dir=dataset.root / "imagesTr")


def test_an_input_that_is_missing_or_holds_no_case_says_what_was_searched(
    refused, tmp_path
) -> None:
    assert "does not exist" in refused(input_dir=tmp_path / "nowhere")
    (tmp_path / "loose").mkdir()
    assert "no case found" in refused(input_dir=tmp_path / "loose")
    (tmp_path / "loose" / "anna.nii.gz").write_bytes(b"")
    line = refused(input_dir=tmp_path / "loose")
    assert "--images " in line
    (tmp_path / "notes.txt").write_text("")
    assert "neither a folder nor" in refused(input_dir=tmp_path / "notes.txt")


def test_an_output_directory_of_a_newer_version_is_refused(refused, tmp_path) -> None:
    (tmp_path / "slices").mkdir()
    (tmp_path / "slices" / "config.yaml").write_text(
        "# Written by dask-slicer\ninput_dir: a\ntime_travel: true\n"
    )
    assert "was not written by this version of dask-slicer" in refused()


# -- cases and splits ------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("liver_003", "LIVER_003"), ("scan", "SCAN")], ids="-".join)
def test_case_ids_that_are_one_file_on_some_systems_are_refused(refused, dataset, names) -> None:
    for name in names:
        dataset.add(name)
    line = refused()
    assert all(repr(name) in line for name in names)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are Unicode")
def test_a_file_name_that_is_not_utf_8_is_refused(refused, dataset) -> None:
    dataset.add("liver_001")
    folder = os.fsencode(dataset.root / "imagesTr")
    os.link(dataset.image_path("liver_001"), folder + b"/liver_\xff_0000.nii.gz")
    assert "not a plain file name" in refused()


def test_two_files_for_one_image_are_refused(refused, dataset) -> None:
    dataset.add("liver_001")
    image = dataset.image_path("liver_001")
    image.with_suffix("").write_bytes(image.read_bytes())  # liver_001_0000.nii
    assert "liver_001_0000.nii" in refused()


@pytest.mark.parametrize(
    "case_id", ["../escaped", "a/b", "/tmp/x", "", "CON", "a\nb", ".hidden", "x" * 300]
)
def test_a_manifest_cannot_name_a_case_that_would_be_written_elsewhere(
    refused, dataset, tmp_path, case_id
) -> None:
    dataset.add("liver_001")
    image = str(dataset.image_path("liver_001"))
    (tmp_path / "cases.json").write_text(json.dumps([{"case_id": case_id, "image": image}]))
    refused(input_dir=tmp_path / "cases.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"train": ["liver_001", "liver_02"]}', "liver_02; did you mean liver_002?"),
        ('{"train": ["liver_001"], "val": ["liver_001"]}', "liver_001 into train and val"),
        ('{"train": ["liver_001"], "dev": ["liver_002"]}', "under train, val and test"),
        ('{"train": "liver_001"}', "a list of case ids under train"),
        ('{"train": ["liver_001"', "cannot read"),
        ("{}", "names none of the cases"),
        ('[{"train": ["liver_001"]}, {"train": ["liver_002"]}]', "choose one with --fold"),
        ("[]", "holds no folds"),
        ("3", "under train, val and test"),
        ("[" * 100_000, "cannot read"),
    ],
    ids=lambda value: value[:24],
)
def test_a_splits_file_that_does_not_fit_is_refused(refused, tmp_path, content, words) -> None:
    (tmp_path / "splits.json").write_text(content)
    assert words in refused("--splits", tmp_path / "splits.json")


def test_a_missing_splits_file_is_named_once(refused, tmp_path) -> None:
    message = refused("--splits", tmp_path / "none.json")
    assert message.strip().endswith(
        f"cannot read {tmp_path / 'none.json'}: No such file or directory"
    )


def test_a_missing_fold_is_refused(refused, tmp_path) -> None:
    (tmp_path / "splits.json").write_text('[{"train": ["liver_001"]}]')
    assert "--fold 3" in refused("--splits", tmp_path / "splits.json", "--fold", 3)
    (tmp_path / "splits.json").write_text('{"train": ["liver_001"]}')
    assert "--fold 0" in refused("--splits", tmp_path / "splits.json", "--fold", 0)


def test_a_splits_file_may_not_put_a_patient_into_two_splits(refused, tmp_path) -> None:
    (tmp_path / "splits.json").write_text('{"train": ["liver_001"], "val": ["liver_002"]}')
    line = refused("--splits", tmp_path / "splits.json", "--group_regex", "(liver)")
    assert "liver_001 in train, liver_002 in val" in line


def test_min_foreground_without_any_label_is_refused(refused, dataset) -> None:
    dataset.add("liver_001", label=None)
    assert "no case of this dataset has one" in refused("--min_foreground", "0.1")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_dataset_whose_images_all_vanished_is_a_failure_not_a_usage_error(
    dataset, tmp_path, invoke
) -> None:
    dataset.add("liver_001", np.zeros((4, 5, 6), np.int16))
    dataset.image_path("liver_001").unlink()
    dataset.image_path("liver_001").symlink_to("nowhere")
    result = invoke(
        *("run", "--input_dir", dataset.root, "--output_dir", tmp_path / "slices"),
        *("--num_workers", 0),
    )
    assert result.exit_code == 1
    assert "liver_001: MissingFile (plan)" in result.output


@pytest.mark.parametrize("format_", ["npz", "zarr"])
def test_a_run_without_workers_leaves_the_output_unchanged(
    dataset, tmp_path, invoke, slice_dataset, format_
) -> None:
    dataset.add("liver")
    output = slice_dataset(format=format_)
    before = snapshot(output)
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = server.getsockname()[1]
    result = invoke(
        *("run", "--input_dir", dataset.root, "--output_dir", output, "--overwrite"),
        *("--plane", "sagittal", "--scheduler", f"tcp://127.0.0.1:{nobody}"),
    )
    assert result.exit_code == 1
    assert "no Dask scheduler answers" in result.stderr
    assert snapshot(output) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--num_workers", "-2"], "num_workers must be -1 or more, got -2"),
        (["--dashboard_address", "here"], "dashboard_address must be host:port, or none, got here"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_verify_refuses_what_run_refuses(dataset, slice_dataset, invoke, options, words) -> None:
    dataset.add("liver")
    result = invoke("verify", slice_dataset(), *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
