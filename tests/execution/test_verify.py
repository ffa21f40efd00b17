"""`verify` finds whatever is not as it was written, and lets the next run mend it."""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr
from slice_formats import FOLDERS, FORMATS

import dask_slicer
from dask_slicer.execution.verify import VerifyReport, verify
from dask_slicer.inputs.phantom import write_dataset
from dask_slicer.output.formats import png
from dask_slicer.records import CommittedCase

WRITTEN = (*FOLDERS, "slices.csv", "splits.json")


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("scans")
    write_dataset(root, n_cases=6, shape=(20, 18, 7), seed=11, varied=False)
    return root


@pytest.fixture(scope="module")
def outputs(scans, tmp_path_factory) -> dict[str, Path]:
    made = {}
    for format_ in FORMATS:
        made[format_] = tmp_path_factory.mktemp(format_) / "out"
        slice_scans(scans, made[format_], format_)
    return made


def slice_scans(scans: Path, output: Path, format_: str) -> None:
    dask_slicer.run(
        dask_slicer.RunConfig(
            input_dir=scans, output_dir=output, num_workers=0, train_ratio=0.5, val_ratio=0.25,
            **FORMATS[format_],
        )
    )  # fmt: skip


@pytest.fixture(params=FORMATS)
def output(request, outputs, tmp_path) -> Path:
    """Return a copy of an output, to be damaged."""
    # At the same place as the original in its configuration: --deep reads the scans.
    return Path(shutil.copytree(outputs[request.param], tmp_path / "out"))


def check(output: Path, **options: object) -> VerifyReport:
    return verify(output, num_workers=0, **options)


def paths_of(report: VerifyReport) -> str:
    return " ".join(map(str, report.issues))


def files_of(output: Path) -> list[Path]:
    found = (path for name in WRITTEN for path in [output / name, *(output / name).rglob("*")])
    return sorted(path for path in found if path.is_file())


def contents(output: Path) -> dict[str, bytes]:
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in files_of(output)}


def a_slice_file(output: Path) -> Path:
    """Return a file that holds pixels."""
    return slice_files(output)[0]


def slice_files(output: Path) -> list[Path]:
    patterns = ("*.npz", "image/c/*/*/*/0", "images/**/*.png")
    return sorted(path for pattern in patterns for path in output.rglob(pattern))


def flips(output: Path, n: int) -> Iterator[tuple[Path, int]]:
    """Yield files and bits of them, at random, of every kind of file as often."""
    by_kind: dict[str, list[Path]] = {}
    for path in files_of(output):
        by_kind.setdefault(path.suffix + path.parent.name, []).append(path)
    chosen = random.Random(5)
    for number in range(n):
        kind = sorted(by_kind)[number % len(by_kind)]
        path = chosen.choice(by_kind[kind])
        yield path, chosen.randrange(path.stat().st_size * 8)


def test_an_undamaged_output_has_no_problems(output) -> None:
    report = check(output, deep=1000)
    assert report.issues == ()
    assert (report.n_cases, report.n_slices, report.n_derived) == (6, 42, 42)


@pytest.mark.parametrize("n", [15, pytest.param(100, marks=pytest.mark.slow)])
def test_one_flipped_bit_is_found_wherever_it_is(output, n) -> None:
    for path, bit in flips(output, n):
        written = path.read_bytes()
        damaged = bytearray(written)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        name = path.relative_to(output).as_posix()
        report = check(output)
        assert name in [finding.path for finding in report.issues], (name, bit)
        path.write_bytes(written)
    assert check(output).issues == ()


def remove(output: Path) -> str:
    path = a_slice_file(output)
    path.unlink()
    return f"{path.relative_to(output).as_posix()}: is missing"


def add(output: Path) -> str:
    path = a_slice_file(output)
    shutil.copy(path, path.with_name(path.name.replace("_00", "_09") + ".x"))
    return ".x: is not in the journal; remove it"


def add_one_more_slice(output: Path) -> str:
    path = a_slice_file(output)
    more = path.with_name(f"{path.stem[:-3]}099{path.suffix}")
    more = more if path.suffix else path.with_name("1")
    shutil.copy(path, more)
    return f"{more.name}: is not in the journal; remove it"


def swap(output: Path) -> str:
    one, other = slice_files(output)[:2]
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    return one.relative_to(output).as_posix()


def edit_the_index(output: Path) -> str:
    path = output / "slices.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], lines[3].replace(",2,", ",5,", 1), *lines[4:]]))
    return "slices.csv: line 4 differs from the journal"


def drop_a_row_of_the_index(output: Path) -> str:
    path = output / "slices.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    return "slices.csv: line 43 differs from the journal: it is missing"


def move_a_case_to_another_split(output: Path) -> str:
    moves = ("slices.zarr/train", "val"), ("images/train", "val"), ("vol/val", "test")
    pairs = [(output / place, other) for place, other in moves if (output / place).exists()]
    folder, other = [*pairs, (output / "train", "val")][0]
    case_id = sorted(folder.glob("phantom*"))[0].name[:11]
    for path in sorted(folder.glob(f"{case_id}*")):
        path.rename(folder.with_name(other) / path.name)
    return f"{folder.name}/phantom"


def edit_the_summary(output: Path) -> str:
    path = output / "dataset_info.json"
    path.write_text(path.read_text().replace('"num_slices": 42', '"num_slices": 41'))
    return "dataset_info.json: num_slices"


def a_case_in_two_splits(output: Path) -> str:
    path = output / "splits.json"
    splits = json.loads(path.read_text())
    splits["val"].append(splits["train"][0])
    path.write_text(json.dumps(splits, indent=2) + "\n")
    return "splits.json: has a case in more than one split"


@pytest.mark.parametrize(
    "damage",
    [
        remove, add, add_one_more_slice, swap, edit_the_index, drop_a_row_of_the_index,
        move_a_case_to_another_split, edit_the_summary, a_case_in_two_splits,
    ],
)  # fmt: skip
def test_damage_is_named_and_mended_by_repair_and_the_same_run(scans, output, damage) -> None:
    undisturbed = contents(output)
    said = damage(output)
    assert said in paths_of(check(output))
    check(output, repair=True)
    slice_scans_again(scans, output)
    for path in output.rglob("*.x"):  # a file of nobody's is left alone
        path.unlink()
    assert contents(output) == undisturbed
    assert check(output).issues == ()


def slice_scans_again(scans: Path, output: Path) -> None:
    (format_,) = (name for name in FORMATS if f"format: {name}\n" in text_of(output))
    slice_scans(scans, output, format_)


def text_of(output: Path) -> str:
    return (output / "config.yaml").read_text()


def change_a_pixel(output: Path) -> tuple[Path, str, str, int | str]:
    """Change one, and its file's own checksums; return file, case, words, and name in a record."""
    words = "slice 3 differs by up to 0.5 from what its scan now gives"
    if (output / "slices.zarr").exists():
        path = sorted(output.glob("slices.zarr/*/*/image/c/*/*/*/*"))[2]
        image = zarr.open_array(path.parents[4])
        image[3, 0, 5, 5] += 0.5
        return path, path.parents[5].name, words, path.relative_to(path.parents[5]).as_posix()
    path = next(path for path in slice_files(output) if path.stem.endswith("003"))
    place = path.relative_to(output).as_posix()
    if path.suffix == ".png":
        pixels = png.decode(path.read_bytes())
        pixels[5, 5] ^= 1
        path.write_bytes(b"".join([png.encode(pixels, level=1)]))
        return path, path.stem[:-4], words.replace("0.5", "1"), place
    with np.load(path) as members:
        arrays = {name: members[name] for name in members.files}
    arrays["image"][..., 5, 5] += 0.5
    np.savez_compressed(path, **arrays)
    if place.startswith("tr/"):
        words = f"{place}: differs from what its scan now gives"
        return path, path.stem[: -len("_slice003")], words, place
    return path, path.stem[:-4], words, 3


def test_only_deep_finds_pixels_changed_together_with_their_checksum(output) -> None:
    path, case_id, words, name = change_a_pixel(output)
    journal = output / "journal.jsonl"
    now = path.stat().st_size, zlib.crc32(path.read_bytes())
    grown = 0
    lines = []
    for line in journal.read_text().splitlines():
        record = json.loads(line)
        if record["case_id"] == case_id:
            listed = record["files"] or record.get("output_files") or record["slices"]
            one = next(one for one in listed if one[0] == name)
            grown = now[0] - one[1]
            one[1:3] = now
        lines.append(json.dumps(record) + "\n")
    journal.write_text("".join(lines))
    summary = json.loads((output / "dataset_info.json").read_text())
    summary["bytes_written"] += grown
    (output / "dataset_info.json").write_text(json.dumps(summary))
    assert check(output).issues == ()
    (finding,) = check(output, deep=1000).issues
    assert words in str(finding)


@pytest.mark.slow
def test_one_record_is_in_memory_at_a_time(output) -> None:
    def n_records() -> int:
        return sum(isinstance(thing, CommittedCase) for thing in gc.get_objects())

    before, counts = n_records(), []
    verify(output, num_workers=0, on_case=lambda *_: counts.append(n_records() - before))
    assert len(counts) == 6
    assert max(counts) <= 2


def test_a_group_in_two_splits_is_found(output) -> None:
    journal = output / "journal.jsonl"
    text = journal.read_text()
    records = [json.loads(line) for line in text.splitlines()]
    for record in records:
        record["group"] = "patient"
    journal.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert "splits.json: has the cases of group patient in" in paths_of(check(output))


def test_deep_says_when_the_scans_have_changed(scans, output, tmp_path) -> None:
    config = output / "config.yaml"
    moved = tmp_path / "scans"
    shutil.copytree(scans, moved)
    for path in moved.glob("*/*"):
        os.utime(path, (0, 0))
    config.write_text(config.read_text().replace(str(scans), str(moved)))
    report = check(output, deep=1)
    assert "cannot be compared with its scan: the scan or the settings have changed" in paths_of(
        report
    )


class TestCommand:
    def test_exit_status_and_what_is_printed(self, output, invoke):
        quiet = ("--num_workers", 0)
        result = invoke("verify", output, *quiet)
        assert result.exit_code == 0
        assert "Checked 42 slices of 6 cases" in result.stdout
        path = a_slice_file(output)
        path.unlink()
        result = invoke("verify", output, *quiet)
        assert result.exit_code == 1
        assert f"Wrong: {path.relative_to(output).as_posix()}: is missing" in result.stdout
        assert "with --repair, the next run writes them again" in result.stdout
        result = invoke("verify", output, *quiet, "--repair")
        assert "Marked 1 case for rewriting" in result.stdout
        assert invoke("verify", output, *quiet).exit_code == 1  # the index still has it

    def test_verify_refuses_what_is_no_output_in_one_line(self, tmp_path, invoke):
        result = invoke("verify", tmp_path)
        assert result.exit_code == 2
        assert "is not an output of dask-slicer" in result.stderr

    def test_an_output_that_is_being_written_is_left_alone(self, output, invoke):
        from dask_slicer.output.lock import locked

        with locked(output):
            result = invoke("verify", output)
        assert result.exit_code == 2
        assert "is in use by another run" in result.stderr

    @pytest.mark.slow
    def test_verify_runs_on_workers(self, output, invoke):
        options = ("--num_workers", 2, "--dashboard_address", "none", "--deep", 5)
        assert invoke("verify", output, *options).exit_code == 0
        a_slice_file(output).unlink()
        assert invoke("verify", output, *options).exit_code == 1


def test_an_output_without_a_slice_can_be_checked(scans, tmp_path) -> None:
    settings = {"slices": "900:901", "num_workers": 0, "dashboard_address": "none"}
    places = {"input_dir": scans, "output_dir": tmp_path / "out"}
    dask_slicer.run(places | settings, progress=False)
    report = verify(tmp_path / "out", deep=5)
    assert not report.issues


def test_a_case_whose_name_ends_like_a_slice_is_not_taken_for_a_slice(tmp_path) -> None:
    write_dataset(tmp_path / "scans", n_cases=3, shape=(12, 10, 8))  # phantom_001, …
    files = [{"path": "{split}/{case_id}.npz", "holds": {"imgs": "image"}, "channels": "none"}]
    config = {"input_dir": tmp_path / "scans", "output_dir": tmp_path / "out", "num_workers": 0}
    settings = {"format": "files", "window_size": 0, "files": files}
    dask_slicer.run(settings, **config, progress=False)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.npz")}
    assert len(before) == 3
    assert not verify(tmp_path / "out", repair=True, num_workers=0).issues
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.npz")}


def test_deep_compares_arrays_and_not_names_in_metadata(dataset, slice_dataset, named) -> None:
    dataset.add("a")
    named(("CT",), {1: "liver"})
    files = [
        {"path": "x/{stem}.npz", "holds": {"image": "image", "about": "metadata"}},
        {"path": "x/{case_id}.json", "holds": "metadata"},
        {"path": "y/{stem}.npy", "holds": "label"},
    ]
    output = slice_dataset(format="files", files=files)
    assert "liver" in (output / "x" / "a.json").read_text()
    assert check(output, deep=5).issues == ()
