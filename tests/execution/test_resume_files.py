"""Runs into PNG and files of other layouts again: nothing lost, nothing left, as with .npz."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from slice_formats import FOLDERS, FORMATS, options

from dask_slicer.execution import tasks
from dask_slicer.execution.verify import verify

CASES = ("a", "a_001", "b.c d_slice001")
# The kind of the files of slices, and how many a case has.
KINDS = {"png": ("images/train/{}_{}.png", 21), "files": ("tr/{}_slice{}.npz", 10)}
Slice = Callable[..., Result]


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "slices"


@pytest.fixture(params=KINDS)
def format_(request) -> str:
    return request.param


@pytest.fixture
def slice_again(dataset, output, tmp_path, invoke) -> Slice:
    """Return a function that slices three cases, all for training, into `output`."""
    for case_id in CASES:
        dataset.add(case_id)

    def call(format_: str, *more: object, exit_code: int = 0) -> Result:
        result = invoke(
            *("run", "--input_dir", dataset.root, "--output_dir", output, "--num_workers", 0),
            *("--train_ratio", 1, *options(format_, tmp_path), *more),
        )
        assert result.exit_code == exit_code, result.output
        return result

    return call


def contents(output: Path) -> dict[str, bytes]:
    """Return the files of slices, and lists, by path."""
    found = (path for name in FOLDERS for path in (output / name).rglob("*") if path.is_file())
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in found}


def of_case(format_: str, case_id: str) -> set[str]:
    """Return the paths of a case of ten slices, all for training."""
    if format_ == "files":
        return {f"tr/{case_id}_slice{index:03d}.npz" for index in range(10)}
    kinds = ("images", "masks")
    pixels = {f"{kind}/train/{case_id}_{i:03d}.png" for kind in kinds for i in range(10)}
    return pixels | {f"metadata/train/{case_id}.json"}


def stamps(output: Path) -> dict[str, tuple[int, int]]:
    """Return what changes when a file is written again."""
    stats = {name: (output / name).stat() for name in contents(output) if "lists" not in name}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def test_a_second_run_writes_nothing(slice_again, output, format_) -> None:
    slice_again(format_)
    before = stamps(output)
    assert len(before) == 3 * KINDS[format_][1]
    assert "Skipped 3 cases" in slice_again(format_).stdout
    assert stamps(output) == before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def add(path: Path) -> None:
    path.with_name(path.name.replace("009", "010")).write_bytes(b"a slice of an older scan")


@pytest.mark.parametrize("damage", [Path.unlink, cut, add], ids=lambda how: how.__name__)
@pytest.mark.parametrize("case_id", CASES[:2])
def test_only_a_case_with_a_damaged_file_is_written_again(
    slice_again, output, format_, damage, case_id
) -> None:
    slice_again(format_)
    before, times = contents(output), stamps(output)
    damage(output / KINDS[format_][0].format(case_id, "009"))
    assert "Wrote 10 slices of 1 case" in slice_again(format_).stdout
    assert contents(output) == before
    after = stamps(output)
    rewritten = {name for name in after if after[name] != times[name]}
    assert rewritten == of_case(format_, case_id)


def test_a_case_that_fails_leaves_no_file(slice_again, dataset, output, format_) -> None:
    slice_again(format_)
    before = contents(output)
    path = dataset.image_path("a")
    sound = path.read_bytes()
    path.write_bytes(sound[:-100])
    slice_again(format_, exit_code=1)
    left = contents(output)
    lists = {name for name in before if name.startswith("lists/")}
    assert left.keys() - lists == before.keys() - lists - of_case(format_, "a")
    for name in lists:
        assert b"a_slice" not in left[name].replace(b"_001_slice", b"")
    assert not list(output.rglob("*tmp*"))
    path.write_bytes(sound)
    slice_again(format_)
    assert contents(output) == before


def test_prune_removes_the_files_of_cases_that_left(slice_again, dataset, output, format_) -> None:
    slice_again(format_)
    before = contents(output)
    dataset.image_path("a").unlink()
    dataset.label_path("a").unlink()
    slice_again(format_, "--prune")
    lists = {name for name in before if name.startswith("lists/")}
    assert contents(output).keys() - lists == before.keys() - lists - of_case(format_, "a")
    assert verify(output, num_workers=0).issues == ()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(*pair, marks=() if "npz" in pair else pytest.mark.slow)
        for pair in itertools.permutations(FORMATS, 2)
        if {*pair} & {*KINDS}
    ],
)
def test_overwrite_with_another_format_leaves_no_file_of_the_old_one(
    slice_again, output, invoke, tmp_path, old, new
) -> None:
    slice_again(new)
    alone = contents(output)
    slice_again(old, "--overwrite")
    own = ["notes.png", "images/logo.png", "masks/train/readme.txt", "tr/mine.npz", "lists/my.txt"]
    for name in own:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("ours")
    slice_again(new, "--overwrite")
    assert all((output / name).read_text() == "ours" for name in own)
    assert contents(output).keys() - {*own} == alone.keys()
    for name in own:
        (output / name).unlink()
    assert contents(output) == alone
    assert verify(output, num_workers=0).issues == ()


def test_another_format_needs_overwrite(slice_again, output, format_) -> None:
    slice_again(format_)
    before = contents(output)
    message = slice_again("npz", exit_code=2).stderr
    assert f"format was {format_}, is now npz" in message
    assert contents(output) == before


@pytest.mark.parametrize("n_moved", [0, 11, 21, 35])
def test_a_run_stopped_between_two_files_leaves_whole_cases_and_completes(
    slice_again, output, monkeypatch, format_, n_moved
) -> None:
    moved: list[Path] = []
    move = tasks.move

    def stopped(source: Path, target: Path) -> None:
        if len(moved) == n_moved:
            raise KeyboardInterrupt
        moved.append(target)
        move(source, target)

    n_files = KINDS[format_][1]
    with monkeypatch.context() as stop:
        stop.setattr(tasks, "move", stopped)
        slice_again(format_, exit_code=130 if n_moved < 3 * n_files else 0)
    slices = {name for name in contents(output) if not name.startswith("lists/")}
    assert len(slices) == min(n_moved // n_files, 3) * n_files
    slice_again(format_)
    assert len(stamps(output)) == 3 * n_files
    assert verify(output, num_workers=0, deep=30).issues == ()


FULL = """
import json, resource, sys
import dask_slicer
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
report = dask_slicer.run(json.loads(sys.argv[1]), progress=False)
print(report.n_committed, *(failure.kind for failure in report.failures))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
@pytest.mark.parametrize("path", ["v/{case_id}.h5", "v/{case_id}.npy", "v/{case_id}.npz"])
def test_a_disk_that_is_full_fails_the_case_and_not_the_process(dataset, output, path) -> None:
    rng = np.random.default_rng(0)
    dataset.add("large", rng.integers(-1000, 1000, (40, 40, 40)).astype(np.int16), None)
    dataset.add("small")
    place = {"input_dir": str(dataset.root), "output_dir": str(output), "num_workers": 0}
    holds = "image" if path.endswith(".npy") else {"image": "image"}
    files = {"format": "files", "files": [{"path": path, "holds": holds}], "window_size": 0}
    chosen = json.dumps(place | files | {"allow_missing_labels": True})
    program = [sys.executable, "-c", FULL, chosen]
    result = subprocess.run(program, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == "DiskFull", result.stdout
    assert not list(output.rglob("large*"))
    assert not (output / ".dask_slicer.tmp").exists()


@pytest.mark.parametrize("path", ["{stem}.npz", "a/{stem}.npz"])
def test_files_at_the_top_that_are_of_no_case_stay(dataset, output, tmp_path, invoke, path) -> None:
    for case_id in CASES:
        dataset.add(case_id)
    file = {"path": path, "holds": {"image": "image"}}
    (tmp_path / "top.yaml").write_text(json.dumps({"format": "files", "files": [file]}))
    command = ("run", "-i", dataset.root, "-o", output, "--num_workers", 0)
    command += ("--config", tmp_path / "top.yaml")
    assert invoke(*command).exit_code == 0
    (output / "weights_001.npz").write_text("ours")
    (output / "b_100.npz").write_text("ours")  # of no case: there is none with this id
    dataset.image_path("a").write_bytes(b"")
    for more in ([], ["--prune"], ["--overwrite"]):
        assert invoke(*command, *more).exit_code == 1, more
        assert (output / "weights_001.npz").read_text() == "ours", more
        assert (output / "b_100.npz").read_text() == "ours", more
    assert not list(output.rglob("a_000.npz"))
    # But a loader would take this one for a slice.
    extra = path.replace("{stem}", "a_001_099")
    (output / extra).write_text("of an older scan")
    issues = verify(output, num_workers=0, repair=True).issues
    assert [str(issue) for issue in issues] == [f"{extra}: is not in the journal; remove it"]
    assert not (output / extra).exists()
    assert (output / "weights_001.npz").read_text() == "ours"
