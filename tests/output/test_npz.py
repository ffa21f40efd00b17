"""Slices as .npz files: their arrays and metadata, and that each plane is deflated once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_slicer.config.schema import SliceSettings
from dask_slicer.core.slices import SliceStack, slice_volume
from dask_slicer.core.volume import Volume, Voxels
from dask_slicer.inputs.case import Case
from dask_slicer.output.formats import npz, npz_archive
from dask_slicer.output.formats.npz import write_slices
from dask_slicer.output.formats.npz_archive import piece
from dask_slicer.planning.plan import CasePlan

pytestmark = pytest.mark.versions

PROGRAMS = (["unzip", "-tqq"], ["7z", "t"])
LEVELS = (0, 1, 2, 6, 9)
NUMPY_PADDING = {"zero": "constant", "replicate": "edge", "mirror": "reflect"}
AFFINE = np.array([[0.0, 0, -2, 9], [0, -1.5, 0, 7], [3, 0, 0, 5], [0, 0, 0, 1]])


def stack_of(
    shape: tuple[int, int, int] = (5, 4, 3),
    *,
    n_modalities: int = 1,
    stored: str = "int16",
    label_dtype: str | None = "uint8",
    kept: tuple[int, ...] | None = None,
) -> SliceStack:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, shape).astype(label_dtype or "uint8")
    if kept is not None:
        label[:] = 0
        label[list(kept)] = 1
    images = [rng.integers(0, 100, shape).astype(stored) for _ in range(n_modalities)]
    volume = Volume(
        image=tuple(Voxels(stored=image) for image in images),
        label=Voxels(stored=label) if label_dtype else None,
        affine=AFFINE,
    )
    return slice_volume(volume, label_dtype=label_dtype or "uint8", min_foreground=0.5 * bool(kept))


def plan_of(stack: SliceStack) -> CasePlan:
    sources = tuple(f"imagesTr/liver_{channel:04d}.nii.gz" for channel in range(len(stack.image)))
    return CasePlan(case=Case(case_id="liver", images=sources), split="val", sources=sources)


def written(stack: SliceStack, folder: Path, **chosen: object) -> list[Path]:
    """Write a stack; return its files, after holding them against what was said of them."""
    said = write_slices(stack, plan_of(stack), SliceSettings(**chosen), folder, fsync=False)
    files = [folder / f"liver_{index:03d}.npz" for index in stack.kept]
    assert sorted(folder.iterdir()) == files
    assert [slice_.slice_index for slice_ in said] == list(stack.kept)
    assert [slice_.size for slice_ in said] == [path.stat().st_size for path in files]
    assert [slice_.crc32 for slice_ in said] == [zlib.crc32(path.read_bytes()) for path in files]
    return files


def naive_windows(stack: SliceStack, window_size: int, padding_mode: str) -> np.ndarray:
    """Return (n_slices, channels, height, width): all planes, padded by numpy, cut apart."""
    images = [
        np.stack([how.apply(plane) for plane in voxels.stored])
        for how, voxels in zip(stack.normalization, stack.image, strict=True)
    ]
    outside = [(window_size, window_size), (0, 0), (0, 0), (0, 0)]
    padded = np.pad(np.stack(images, axis=1), outside, mode=NUMPY_PADDING[padding_mode])
    n_slices, *plane = stack.shape
    windows = [padded[index : index + 2 * window_size + 1] for index in range(n_slices)]
    return np.stack([window.reshape(-1, *plane) for window in windows])


@settings(max_examples=150)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5)),
    n_modalities=st.integers(1, 3),
    stored=st.sampled_from(["uint8", ">i2", "int32", "float32", "float64"]),
    label_dtype=st.sampled_from(["uint8", "uint16", "int32", None]),
    chosen=st.fixed_dictionaries(
        {
            "window_size": st.integers(0, 8),
            "padding_mode": st.sampled_from(sorted(NUMPY_PADDING)),
            "compression_level": st.sampled_from(LEVELS),
            "dtype": st.sampled_from(["float32", "float16"]),
        }
    ),
)
def test_slices_are_the_windows_of_a_volume_padded_by_numpy(
    shape, n_modalities, stored, label_dtype, chosen
) -> None:
    stack = stack_of(shape, n_modalities=n_modalities, stored=stored, label_dtype=label_dtype)
    windows = naive_windows(stack, chosen["window_size"], chosen["padding_mode"])
    arrays = ["image", "label", "metadata"] if label_dtype else ["image", "metadata"]
    with tempfile.TemporaryDirectory() as folder:
        files = written(stack, Path(folder), label_dtype=label_dtype or "uint8", **chosen)
        for index, path in enumerate(files):
            with zipfile.ZipFile(path) as members:
                assert members.testzip() is None
            with np.load(path, allow_pickle=False) as found:
                assert found.files == arrays
                assert found["image"].dtype == chosen["dtype"]
                np.testing.assert_array_equal(
                    found["image"], windows[index].astype(chosen["dtype"])
                )
                if label_dtype is not None:
                    assert found["label"].dtype == label_dtype
                    np.testing.assert_array_equal(found["label"], stack.label[index])


@pytest.mark.parametrize("n_modalities", [1, 2])
@pytest.mark.parametrize("label_dtype", ["uint8", None])
def test_the_metadata_are_those_that_readers_rely_on(tmp_path, n_modalities, label_dtype) -> None:
    stack = stack_of(n_modalities=n_modalities, label_dtype=label_dtype)
    for index, path in enumerate(written(stack, tmp_path, window_size=1, plane="coronal")):
        with np.load(path, allow_pickle=False) as found:
            assert (found["metadata"].shape, found["metadata"].dtype.kind) == ((), "U")
            described = json.loads(str(found["metadata"]))
        one = n_modalities == 1
        statistics = {
            name: [getattr(found, name) for found in stack.statistics]
            for name in ("mean", "std", "min", "max")
        }
        assert described == {
            "source_file": "imagesTr/liver_0000.nii.gz" if one else list(plan_of(stack).sources),
            "slice_index": index,
            "total_slices": 5,
            "window_size": 1,
            "padding_mode": "replicate",
            "num_channels": 3 * n_modalities,
            "spacing": [3.0, 1.5, 2.0],
            "normalized": True,
            "norm_stats": {k: v[0] if one else v for k, v in statistics.items()},
            "shape": {"image": [3 * n_modalities, 4, 3], "label": [4, 3] if label_dtype else None},
            "case_id": "liver",
            "split": "val",
            "plane": "coronal",
            "affine": AFFINE.tolist(),
        }


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("command", PROGRAMS, ids=lambda command: command[0])
def test_other_programs_read_the_archive(tmp_path, command, level) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    for path in written(stack_of((3, 40, 30)), tmp_path, compression_level=level):
        subprocess.run([*command, path], check=True, capture_output=True)


def test_the_same_input_gives_the_same_bytes(tmp_path) -> None:
    found = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        found.append([path.read_bytes() for path in written(stack_of(), folder)])
    assert found[0] == found[1]


# -- how little is done and held -----------------------------------------------------------------


class Held(dict):
    """Planes by index, and the most that there were at any time."""

    most = 0

    def __setitem__(self, index: int, pieces: object) -> None:
        super().__setitem__(index, pieces)
        self.most = max(self.most, len(self))


@pytest.mark.parametrize("padding_mode", sorted(NUMPY_PADDING))
@pytest.mark.parametrize("window_size", [0, 1, 3, 30])
@pytest.mark.parametrize("kept", [None, (0, 1, 12, 19), (7,)], ids=["all", "some", "one"])
def test_only_planes_that_a_window_still_needs_stay_in_memory(
    kept, window_size, padding_mode
) -> None:
    stack = stack_of((20, 4, 3), kept=kept)
    chosen = SliceSettings(window_size=window_size, padding_mode=padding_mode)
    writer = npz.NpzWriter(stack, plan_of(stack), chosen)
    writer._windows._made = Held()
    for slice_index in stack.kept:
        writer.archive(slice_index)
    assert writer._windows._made.most <= 2 * window_size + 1


def test_every_plane_is_deflated_once(tmp_path, monkeypatch) -> None:
    planes = []

    def counted(content: object, *, level: int) -> npz_archive.Piece:
        planes.extend([content.dtype] if isinstance(content, np.ndarray) else [])
        return piece(content, level=level)

    monkeypatch.setattr(npz, "piece", counted)
    written(stack_of((20, 4, 3), n_modalities=2), tmp_path, window_size=4)
    assert planes.count(np.dtype("float32")) <= 20 * 2 + 1  # and one of zeros
    assert planes.count(np.dtype("uint8")) == 20


def test_every_file_is_synced_to_disk_if_asked(tmp_path, monkeypatch) -> None:
    forced = []
    monkeypatch.setattr(os, "fsync", forced.append)
    stack = stack_of()
    write_slices(stack, plan_of(stack), SliceSettings(), tmp_path, fsync=True)
    assert len(forced) == 5
