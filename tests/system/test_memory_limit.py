"""Volumes larger than the memory that the system gives: the same slices as without a limit."""

from __future__ import annotations

import csv
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="limits as on Linux"),
]

MB = 1_000_000
# Anonymous memory beside what the program has taken before its first case; voxels take 210 MB.
ROOM = 60 * MB
# Sets the limit once everything is imported, and makes the program believe it has little memory.
PROGRAM = """
import atexit, resource, sys, threading
threading.stack_size(1 << 20)  # of threads that zarr-python starts
import cc3d, numpy, dask, dask.delayed
from dask_slicer.cli.main import main
from dask_slicer.utils import system
import dask_slicer.execution.pipeline, dask_slicer.inputs.phantom
import dask_slicer.output.formats.zarr_writer, dask_slicer.core.steps.label_map
room, limit = map(int, sys.argv[1:3])

def in_status(name):
    return int(open("/proc/self/status").read().split(name + ":")[1].split()[0]) * 1024

before = in_status("VmRSS")
atexit.register(lambda: print("grown by", in_status("VmHWM") - before))
if limit:
    system.memory_bytes = lambda: limit
if room:
    resource.setrlimit(resource.RLIMIT_DATA, (in_status("VmData") + room,) * 2)
main(sys.argv[3:])
"""


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder for each of: int16 and float32, gzipped and not."""
    root = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(1)
    noise = rng.integers(-200, 200, (512, 512, 50), np.int16)
    noise[:90] = -1000
    label = np.zeros((512, 512, 400), np.uint8, order="F")
    label[200:300, 150:320, 40:200] = 1
    label[210:250, 160:220, 90:300] = 2
    affine = np.diag([-0.5, -0.5, 1.0, 1.0])
    for dtype, n in (("int16", 8), ("float32", 4)):
        image = np.asfortranarray(np.concatenate([noise] * n, axis=2).astype(dtype))
        image += np.arange(50 * n, dtype=dtype) % 40
        for suffix in (".nii", ".nii.gz"):
            for folder, name, array in (
                ("imagesTr", "ct_0000", image),
                ("labelsTr", "ct", label[..., : 50 * n]),
            ):
                path = root / f"{dtype}{suffix}" / folder / f"{name}{suffix}"
                path.parent.mkdir(parents=True)
                nib.save(nib.Nifti1Image(array, affine), path)
    yield root
    for path in root.rglob("*.nii*"):
        if path.is_file():
            path.unlink()


def run(scans: Path, output: Path, *options: str, room: int, limit: int) -> tuple[int, int]:
    """Return the exit status, and the bytes by which the process grew, with mapped pages."""
    result = subprocess.run(
        [
            *(sys.executable, "-c", PROGRAM, str(room), str(limit), "run", "--quiet"),
            *("--input_dir", str(scans), "--output_dir", str(output), "--num_workers", "0"),
            *("--train_ratio", "1", "--val_ratio", "0", "--window_size", "0", *options),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    print(result.stdout, result.stderr)  # noqa: T201, for a test that fails
    return result.returncode, int(result.stdout.rpartition("grown by")[2])


def slices_of(output: Path) -> dict[str, bytes]:
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for folder in ("train", "slices.zarr")
        for path in (output / folder).rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("int16.nii", ""),
        ("int16.nii.gz", ""),
        ("int16.nii.gz", "--plane sagittal --stride 4"),
        ("int16.nii", "--format zarr"),
        ("int16.nii.gz", "--format zarr --plane sagittal --normalize percentile"),
        ("float32.nii", "--normalize percentile --label_map '1:2 *:0' --stride 4"),
        ("float32.nii.gz", "--plane coronal --percentiles 1,99 --stride 4"),
        ("int16.nii", "--foreground otsu --crop label --stride 4"),
        ("int16.nii", "--size 300 --format zarr --plane sagittal"),
    ],
)
def test_slices_are_the_same_bytes_with_a_quarter_of_the_memory(
    scans: Path, tmp_path: Path, kind: str, options: str
) -> None:

    arguments = shlex.split(options)
    limited, free = tmp_path / "limited", tmp_path / "free"
    status, growth = run(scans / kind, limited, *arguments, room=ROOM, limit=420 * MB)
    assert (status, growth < 150 * MB) == (0, True)
    status, growth = run(scans / kind, free, *arguments, room=0, limit=0)
    assert (status, growth > 200 * MB) == (0, True)
    expected = slices_of(free)
    assert len(expected) >= 10
    assert slices_of(limited) == expected


@pytest.mark.parametrize(
    "options", ["--spacing 0.7,0.7,0.7 --format zarr", "--size 300 --fit resize --stride 4"]
)
def test_volumes_are_resampled_within_the_memory_that_is_planned(
    scans: Path, tmp_path: Path, options: str
) -> None:
    """Buffers of splines take more than planes do."""
    kind, arguments = scans / "int16.nii.gz", options.split()
    status, growth = run(kind, tmp_path / "limited", *arguments, room=220 * MB, limit=600 * MB)
    assert (status, growth < 350 * MB) == (0, True)
    assert run(kind, tmp_path / "free", *arguments, room=0, limit=0)[0] == 0
    assert slices_of(tmp_path / "limited") == slices_of(tmp_path / "free")


def test_without_files_the_memory_would_not_be_enough(scans: Path, tmp_path: Path) -> None:
    assert run(scans / "int16.nii.gz", tmp_path / "out", room=ROOM, limit=0)[0] == 1
    with open(tmp_path / "out" / "failures.csv", encoding="utf-8", newline="") as lines:
        (row,) = csv.DictReader(lines)
    assert row["kind"] == "OutOfMemory"
