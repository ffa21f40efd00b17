"""What a second run into an output directory keeps, makes again, refuses, and takes away."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

pytestmark = pytest.mark.versions

CASES = ("liver_001", "liver_002", "liver_003")
Slice = Callable[..., Result]


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "slices"


@pytest.fixture
def slice_again(dataset, output, invoke) -> Slice:
    """Return a function that slices the dataset, of three cases if it is empty, into `output`."""

    def call(*options: object, exit_code: int = 0) -> Result:
        if not dataset.root.exists():
            for case_id in CASES:
                dataset.add(case_id)
        result = invoke(
            *("run", "--input_dir", dataset.root, "--output_dir", output, "--num_workers", 0),
            *options,
        )
        assert result.exit_code == exit_code, result.output
        return result

    return call


def contents(output: Path) -> dict[str, bytes]:
    """Return what must be the same bytes however often a run was repeated."""
    paths = [*output.rglob("*.npz"), output / "slices.csv", output / "splits.json"]
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


def identities(output: Path) -> dict[str, tuple[int, int]]:
    """Return for every slice what changes when its file is written anew."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in npz(output)}


def npz(output: Path, case_id: str = "") -> list[Path]:
    return sorted(output.glob(f"*/{case_id}*.npz"))


def rewritten(before: dict, after: dict) -> set[str]:
    """Return the cases of which some slice was written anew."""
    return {name.rpartition("_")[0] for name in after if after[name] != before.get(name)}


def summary(output: Path) -> dict:
    return json.loads((output / "dataset_info.json").read_text())


# -- kept --------------------------------------------------------------------------------------


def test_a_second_run_writes_no_slice_and_says_so(slice_again, output) -> None:
    assert "Wrote 30 slices of 3 cases" in slice_again().stdout
    before, bytes_before = identities(output), contents(output)
    result = slice_again()
    assert "Skipped 3 cases" in result.stdout
    assert "Nothing to do" in result.stdout
    assert identities(output) == before
    assert contents(output) == bytes_before


@pytest.mark.parametrize(
    "options",
    [
        ["--retries", 0],
        ["--fsync"],
        ["--fail_fast"],
        ["--nonfinite", "zero"],
        ["--allow_missing_labels"],
        ["--val_ratio", 0.1],
        ["--dashboard_address", "none"],
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_settings_that_leave_the_slices_as_they_are_may_change(
    slice_again, output, options
) -> None:
    slice_again()
    before = identities(output)
    slice_again(*options)
    assert identities(output) == before


def test_a_moved_dataset_needs_no_new_run(slice_again, dataset, output) -> None:
    slice_again()
    before = identities(output)
    dataset.root = dataset.root.rename(dataset.root.with_name("elsewhere"))
    slice_again()
    assert identities(output) == before


def test_the_written_configuration_continues_from_anywhere(
    slice_again, dataset, output, invoke, tmp_path, monkeypatch
) -> None:
    slice_again("--window_size", 1, "--plane", "coronal", "--only", *CASES[:2])
    done = contents(output)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = invoke("run", "--config", output / "config.yaml")
    assert result.exit_code == 0
    assert "Wrote 9 slices of 1 case" in result.stdout
    assert contents(output).items() >= {name: done[name] for name in done if ".npz" in name}.items()
    assert summary(output)["window_size"] == 1


# -- made again ----------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("damage", [Path.unlink, cut, lengthen], ids=lambda how: how.__name__)
@pytest.mark.parametrize("which", [0, 4, 9])
def test_only_a_case_with_a_damaged_slice_is_written_again(
    slice_again, output, damage, which
) -> None:
    slice_again()
    before, bytes_before = identities(output), contents(output)
    damage(npz(output, CASES[1])[which])
    assert "Wrote 10 slices of 1 case" in slice_again().stdout
    assert rewritten(before, identities(output)) == {CASES[1]}
    assert contents(output) == bytes_before


def test_a_case_whose_scan_was_modified_is_written_again(slice_again, dataset, output) -> None:
    slice_again()
    before = identities(output)
    image, label = dataset.image_path(CASES[0]), dataset.label_path(CASES[2])
    for touched, path in [(CASES[0], image), (CASES[2], label)]:
        os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
        slice_again()
        assert rewritten(before, identities(output)) == {touched}
        before = identities(output)


def test_a_case_with_nan_stays_only_while_that_is_allowed(slice_again, dataset, output) -> None:
    image = np.zeros((8, 9, 10), np.float32)
    image[2:5], image[3, 3, 3] = 7, np.nan
    for case_id in CASES[:2]:
        dataset.add(case_id)
    dataset.add(CASES[2], image)
    slice_again("--nonfinite", "zero")
    assert "Skipped 3 cases" in slice_again("--nonfinite", "zero").stdout
    slice_again("--nonfinite", "error", exit_code=1)
    assert npz(output, CASES[2]) == []
    assert len(npz(output)) == 20
    slice_again("--nonfinite", "zero")
    assert len(npz(output)) == 30


def test_a_case_that_became_shorter_leaves_no_slice_of_the_longer_one(
    slice_again, dataset, output
) -> None:
    slice_again()
    dataset.add(CASES[1], np.zeros((8, 9, 4), np.int16))
    slice_again()
    assert len(npz(output, CASES[1])) == 4
    assert summary(output)["num_slices"] == 24


@pytest.mark.parametrize(
    "damage",
    [
        lambda journal: journal[:-20],
        lambda journal: journal[:-1],
        lambda journal: journal + b'{"case_id": "liver_0',
        lambda journal: journal + b"\0" * 512,
        lambda journal: journal.replace(b'"committed"', b'"comm\xff\xfeted"', 1),
        lambda journal: b"",
    ],
    ids=["torn", "no newline", "half a line", "zeros", "not UTF-8", "empty"],
)
def test_a_damaged_journal_costs_the_cases_it_lost_and_nothing_else(
    slice_again, output, damage
) -> None:
    slice_again()
    before = contents(output)
    journal = output / "journal.jsonl"
    journal.write_bytes(damage(journal.read_bytes()))
    slice_again()
    assert contents(output) == before
    assert "Skipped 3 cases" in slice_again().stdout


# -- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("window_size", 2, 1),
        ("padding_mode", "replicate", "zero"),
        ("plane", "axial", "i"),
        ("clip_min", "none", -160.0),
        ("clip_max", "none", 240.0),
        ("normalize", "zscore", "minmax"),
        ("dtype", "float32", "float16"),
        ("label_dtype", "uint8", "int32"),
        ("min_foreground", 0.0, 0.5),
        ("compression_level", 1, 6),
        ("train_ratio", 0.8, 0.5),
        ("val_ratio", 0.1, 0.2),
        ("seed", 42, 7),
        ("group_regex", "none", r"(\d)\d+"),
    ],
    ids=lambda value: str(value),
)
def test_a_changed_setting_is_refused_by_name(slice_again, output, name, old, new) -> None:
    slice_again()
    before, marks = contents(output), identities(output)
    result = slice_again(f"--{name}", new, exit_code=2)
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert f"{name} was {old}, is now {new}" in result.stderr
    assert "--overwrite" in result.stderr
    assert (contents(output), identities(output)) == (before, marks)


def test_every_setting_that_changed_is_listed(slice_again) -> None:
    slice_again()
    result = slice_again("--window_size", 1, "--seed", 1, "--plane", "k", exit_code=2)
    assert all(name in result.stderr for name in ("window_size", "seed", "plane"))


def test_another_assignment_to_splits_is_refused(slice_again, output, tmp_path) -> None:
    slice_again()
    splits = json.loads((output / "splits.json").read_text())
    splits["train"], splits["test"] = splits["test"], splits["train"]
    (tmp_path / "other.json").write_text(json.dumps(splits))
    result = slice_again("--splits", tmp_path / "other.json", exit_code=2)
    assert "was made with other splits" in result.stderr


def test_damaged_splits_are_refused_not_guessed(slice_again, output) -> None:
    slice_again()
    (output / "splits.json").write_text('{"train": ["liver')
    assert "splits.json is damaged" in slice_again(exit_code=2).stderr
    slice_again("--overwrite")


# -- started anew, taken away --------------------------------------------------------------------


def test_overwrite_removes_what_the_old_run_wrote_and_keeps_what_it_did_not(
    slice_again, dataset, output
) -> None:
    slice_again()
    (output / "README.md").write_text("ours")
    (output / "models").mkdir()
    (output / "models" / "best_000.npz").write_text("weights")
    dataset.image_path(CASES[2]).unlink()
    dataset.label_path(CASES[2]).unlink()
    settings = ("--window_size", 0, "--plane", "i", "--seed", 3)
    slice_again("--overwrite", *settings)
    assert len(npz(output, CASES[0])) == len(npz(output, CASES[1])) == 8
    assert npz(output, CASES[2]) == []
    assert set(summary(output)["case_names"]) == set(CASES[:2])
    assert (output / "README.md").read_text() == "ours"
    assert (output / "models" / "best_000.npz").read_text() == "weights"
    journal = (output / "journal.jsonl").read_text()
    assert CASES[2] not in journal + (output / "splits.json").read_text()
    assert "Skipped 2 cases" in slice_again(*settings).stdout


def test_a_case_that_fails_later_loses_its_files_until_it_is_repaired(
    slice_again, dataset, output
) -> None:
    slice_again()
    before = contents(output)
    path = dataset.image_path(CASES[1])
    sound, mtime = path.read_bytes(), path.stat().st_mtime_ns
    path.write_bytes(sound[:-100])
    slice_again(exit_code=1)
    assert npz(output, CASES[1]) == []
    assert CASES[1] not in (output / "slices.csv").read_text()
    assert summary(output)["num_failed"] == 1
    assert summary(output)["case_names"] == [CASES[0], CASES[2]]
    slice_again(exit_code=1)  # it is tried again, and fails again
    path.write_bytes(sound)
    os.utime(path, ns=(mtime, mtime))
    slice_again()
    assert contents(output) == before
    assert not (output / "failures.csv").exists()
