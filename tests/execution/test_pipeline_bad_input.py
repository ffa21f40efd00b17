"""A bad case is a result, not a crash: it is named with its kind, and the healthy case is done."""

from __future__ import annotations

import csv
import ctypes
import gzip
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

# Of the bad case: noise of more than the 16 kB that are read for a header.
SHAPE = (24, 25, 26)
RUN = [sys.executable, "-m", "dask_slicer", "run"]


# -- one way each to damage a case that was sound ------------------------------------------------


def truncate(dataset) -> None:
    path = dataset.image_path("bad")
    path.write_bytes(path.read_bytes()[:-300])


def break_crc(dataset) -> None:
    path = dataset.image_path("bad")
    data = bytearray(path.read_bytes())
    data[-8] ^= 0xFF
    path.write_bytes(data)


def flip_a_bit_in_the_middle(dataset) -> None:
    path = dataset.image_path("bad")
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 0x10
    path.write_bytes(data)


def empty(dataset) -> None:
    dataset.image_path("bad").write_bytes(b"")


def empty_label(dataset) -> None:
    dataset.label_path("bad").write_bytes(b"")


def text(dataset) -> None:
    dataset.image_path("bad").write_text("<html>404: the file was not found</html>" * 40)


def gzipped_text(dataset) -> None:
    dataset.image_path("bad").write_bytes(gzip.compress(b"not a volume" * 100))


def promise_the_sky(dataset) -> None:
    _patch_header(dataset.image_path("bad"), offset=40, values=struct.pack("<4h", 3, *[30_000] * 3))


def promise_a_negative_shape(dataset) -> None:
    _patch_header(dataset.image_path("bad"), offset=40, values=struct.pack("<4h", 3, -5, 25, 26))


def promise_one_slice_more(dataset) -> None:
    for path in (dataset.image_path("bad"), dataset.label_path("bad")):
        _patch_header(path, offset=40, values=struct.pack("<4h", 3, 24, 25, 27))


def hold_more_than_promised(dataset) -> None:
    path = dataset.image_path("bad")
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(50_000_000)))


def name_no_dtype(dataset) -> None:
    _patch_header(dataset.image_path("bad"), offset=70, values=struct.pack("<h", 9999))


def be_rgb(dataset) -> None:
    rgb = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    dataset.write(dataset.image_path("bad"), rgb, np.eye(4))


def be_complex(dataset) -> None:
    dataset.write(dataset.image_path("bad"), np.ones(SHAPE, np.complex64), np.eye(4))


def other_shape(dataset) -> None:
    dataset.write(dataset.label_path("bad"), np.zeros((24, 25, 27), np.uint8), affine_of(dataset))


def shift_label(dataset) -> None:
    affine = affine_of(dataset)
    affine[:3, 3] += 2.0
    dataset.write(dataset.label_path("bad"), np.zeros(SHAPE, np.uint8), affine)


def flip_label(dataset) -> None:
    affine = affine_of(dataset)
    affine[:3, 0] *= -1
    dataset.write(dataset.label_path("bad"), np.zeros(SHAPE, np.uint8), affine)


def singular(dataset) -> None:
    affine = affine_of(dataset)
    affine[:3, 1] = affine[:3, 0]
    # sform alone: nibabel cannot make a qform of it.
    path = dataset.image_path("bad")
    _patch_header(path, offset=252, values=struct.pack("<2h", 0, 1))
    _patch_header(path, offset=280, values=affine[:3].astype("<f4").tobytes())


def nan_affine(dataset) -> None:
    _patch_header(dataset.image_path("bad"), offset=280, values=struct.pack("<f", np.nan))


def fractional_label(dataset) -> None:
    label = np.zeros(SHAPE, np.float32)
    label[4, 4, 4] = 0.4
    dataset.write(dataset.label_path("bad"), label, affine_of(dataset))


def large_label(dataset) -> None:
    label = np.zeros(SHAPE, np.int16)
    label[4, 4, 4] = 300
    dataset.write(dataset.label_path("bad"), label, affine_of(dataset))


def negative_label(dataset) -> None:
    dataset.write(dataset.label_path("bad"), np.full(SHAPE, -1, np.int16), affine_of(dataset))


def nan_image(dataset) -> None:
    image = np.ones(SHAPE, np.float32)
    image[1, 2, 3:5] = np.nan, np.inf
    dataset.write(dataset.image_path("bad"), image, affine_of(dataset))


def four_dimensions(dataset) -> None:
    dataset.write(dataset.image_path("bad"), np.zeros((*SHAPE, 2), np.int16), affine_of(dataset))


def two_dimensions(dataset) -> None:
    dataset.write(dataset.image_path("bad"), np.zeros(SHAPE[:2], np.int16), affine_of(dataset))


def no_label(dataset) -> None:
    dataset.label_path("bad").unlink()


def directory(dataset) -> None:
    dataset.image_path("bad").unlink()
    dataset.image_path("bad").mkdir()


def fifo(dataset) -> None:
    dataset.image_path("bad").unlink()
    os.mkfifo(dataset.image_path("bad"))


def dangling_link(dataset) -> None:
    dataset.image_path("bad").unlink()
    dataset.image_path("bad").symlink_to(dataset.root / "nowhere.nii.gz")


def noise() -> np.ndarray:
    return np.random.default_rng(5).integers(-1000, 1000, SHAPE).astype(np.int16)


def affine_of(dataset) -> np.ndarray:
    return nib.load(dataset.image_path("healthy")).affine.copy()


def _patch_header(path: Path, *, offset: int, values: bytes) -> None:
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[offset : offset + len(values)] = values
    path.write_bytes(gzip.compress(bytes(data)))


# What is done to the case, the step and kind it fails with, and a word of the message.
DAMAGE = [
    (truncate, "load", "CorruptFile", "ends early"),
    (break_crc, "load", "CorruptFile", "damaged"),
    (flip_a_bit_in_the_middle, "load", "CorruptFile", "bad_0000.nii.gz"),
    (empty, "plan", "CorruptFile", "zero bytes"),
    (empty_label, "plan", "CorruptFile", "zero bytes"),
    (text, "plan", "CorruptFile", "web page"),
    (gzipped_text, "plan", "CorruptFile", "NIfTI"),
    (promise_the_sky, "plan", "CorruptFile", "30000×30000×30000"),
    (promise_a_negative_shape, "plan", "CorruptFile", "-5"),
    (promise_one_slice_more, "load", "CorruptFile", "ends before"),
    (hold_more_than_promised, "load", "CorruptFile", "more than"),
    (name_no_dtype, "plan", "CorruptFile", "9999"),
    (be_rgb, "plan", "UnsupportedImage", "RGB"),
    (be_complex, "plan", "UnsupportedImage", "complex"),
    (other_shape, "plan", "GeometryMismatch", "shape"),
    (shift_label, "plan", "GeometryMismatch", "mm"),
    (flip_label, "plan", "GeometryMismatch", "mm"),
    (singular, "plan", "GeometryMismatch", "singular"),
    (nan_affine, "plan", "GeometryMismatch", "NaN"),
    (fractional_label, "slice", "LabelValues", "0.4"),
    (large_label, "slice", "LabelValues", "--label_dtype uint16"),
    (negative_label, "slice", "LabelValues", "-1"),
    (nan_image, "slice", "NonFinite", "2 of 15600 voxels"),
    (four_dimensions, "plan", "UnsupportedImage", "4D"),
    (two_dimensions, "plan", "UnsupportedImage", "2D"),
    (no_label, "plan", "MissingLabel", "--allow_missing_labels"),
    (directory, "plan", "UnsupportedImage", "directory"),
    (fifo, "plan", "UnsupportedImage", "pipe"),
    (dangling_link, "plan", "MissingFile", "bad_0000.nii.gz"),
]


@pytest.mark.parametrize(
    ("damage", "step", "kind", "word"), [pytest.param(*row, id=row[0].__name__) for row in DAMAGE]
)
def test_a_bad_case_is_named_and_the_good_one_is_written(
    dataset, tmp_path, invoke, damage: Callable[..., None], step, kind, word
) -> None:
    dataset.add("healthy")
    dataset.add("bad", noise())
    damage(dataset)
    output = tmp_path / "slices"
    result = invoke("run", "--input_dir", dataset.root, "--output_dir", output, "--num_workers", 0)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    (failure,) = failures(output)
    assert (failure["case_id"], failure["step"], failure["kind"]) == ("bad", step, kind)
    assert word in failure["message"]
    assert "\n" not in failure["message"]
    assert f"bad: {kind} ({step}): {failure['message']}" in result.output
    assert written(output) == {f"healthy_{index:03d}.npz" for index in range(10)}
    assert {entry.name for entry in output.iterdir()} - {"train", "val", "test"} == {
        *("config.yaml", "dataset_info.json", "failures.csv", "journal.jsonl"),
        *("slices.csv", "splits.json"),
    }


def failures(output: Path) -> list[dict[str, str]]:
    with (output / "failures.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def written(output: Path) -> set[str]:
    return {path.name for path in output.rglob("*.npz")}


def test_a_file_that_this_user_may_not_read_is_permission_denied(dataset, tmp_path) -> None:
    dataset.add("healthy")
    dataset.add("bad")
    dataset.image_path("bad").chmod(0)
    output = tmp_path / "slices"
    result = subprocess.run(
        [*RUN, "--num_workers", "0", "--input_dir", dataset.root, "--output_dir", output],
        preexec_fn=_respect_file_modes if os.geteuid() == 0 else None,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    (failure,) = failures(output)
    assert (failure["case_id"], failure["kind"]) == ("bad", "PermissionDenied")
    assert "bad_0000.nii.gz" in failure["message"]
    assert len(written(output)) == 10


@pytest.mark.slow
def test_a_directory_that_this_user_may_not_write_to_fails_its_cases_alone(
    dataset, tmp_path
) -> None:
    for name in ("a", "b", "c", "d"):
        dataset.add(name)
    output = tmp_path / "slices"
    command = [
        *(*RUN, "--num_workers", "0", "--input_dir", dataset.root, "--output_dir", output),
        *("--train_ratio", "0.5", "--val_ratio", "0.5"),
    ]

    def run() -> subprocess.CompletedProcess[str]:
        as_any_user = _respect_file_modes if os.geteuid() == 0 else None
        return subprocess.run(command, preexec_fn=as_any_user, capture_output=True, text=True)

    tmp_path.chmod(0o555)
    try:
        refused = run()
        assert refused.returncode in (1, 2)
        assert refused.stderr.startswith("Error: ")
        assert refused.stderr.count("\n") == 1
        assert "ermission denied" in refused.stderr
    finally:
        tmp_path.chmod(0o755)
    (output / "val").mkdir(parents=True)
    assert run().returncode == 2  # not ours: it holds what no run put there
    (output / "val").rmdir()
    assert run().returncode == 0
    whole = sorted(output.rglob("*.npz"))
    sorted((output / "val").iterdir())[0].unlink()
    (output / "val").chmod(0o555)
    stopped = run()
    assert stopped.returncode == 1
    assert "Traceback" not in stopped.stdout + stopped.stderr
    ((_, *fate),) = ([*row.values()][:3] for row in failures(output))
    assert fate == ["save", "PermissionDenied"]
    (output / "val").chmod(0o755)
    assert run().returncode == 0
    assert sorted(output.rglob("*.npz")) == whole
    assert not (output / "failures.csv").exists()


def _respect_file_modes() -> None:
    """Make root like any other user: what it executes next may not read what modes forbid."""
    drop, dac_override, dac_read_search = 24, 1, 2  # PR_CAPBSET_DROP, CAP_…: see capabilities(7)
    for capability in (dac_override, dac_read_search):
        if ctypes.CDLL(None, use_errno=True).prctl(drop, capability, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")


@pytest.mark.slow
def test_many_bad_cases_on_two_workers_all_fail_by_name(dataset, tmp_path) -> None:
    dataset.add("healthy")
    for damage, *_ in DAMAGE:
        dataset.add("bad", noise())
        damage(dataset)
        for path in [dataset.image_path("bad"), dataset.label_path("bad")]:
            if path.exists() or path.is_symlink():
                path.rename(path.with_name(path.name.replace("bad", damage.__name__)))
    output = tmp_path / "slices"
    result = subprocess.run(
        [*RUN, "--num_workers", "2", "--input_dir", dataset.root, "--output_dir", output],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr == ""
    assert "Traceback" not in result.stdout
    found = [(row["case_id"], row["step"], row["kind"]) for row in failures(output)]
    assert found == sorted((damage.__name__, step, kind) for damage, step, kind, _ in DAMAGE)
    assert len(written(output)) == 10
