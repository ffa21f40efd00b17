"""Volumes that memory does not hold: the same slices as of those that it does."""

from __future__ import annotations

import csv
import weakref
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from affines import oblique

import dask_slicer
from dask_slicer.core import ranks, volume
from dask_slicer.errors import UsageError
from dask_slicer.inputs.case import Case, Mask
from dask_slicer.inputs.load import load_volume
from dask_slicer.inputs.readers import files
from dask_slicer.planning import memory
from dask_slicer.utils import mapped, system

# Less than a worker takes with any case, and more than these cases need.
LIMIT = 50_000_000
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "window": {"window_size": 2, "padding_mode": "zero"},
    "coronal": {"plane": "coronal"},
    "sagittal": {"plane": "sagittal", "window_size": 1},
    "planes": {"plane": "axial,sagittal"},
    "percentile": {"normalize": "percentile", "plane": "sagittal"},
    "minmax clipped": {"normalize": "minmax", "clip_min": -50, "clip_max": 150},
    "percentiles": {"normalize": "zscore", "percentiles": "1,99"},
    "otsu": {"foreground": "otsu", "percentiles": "5,95"},
    "zero background": {"foreground": "nonzero", "zero_background": True},
    "label": {"foreground": "label", "crop": "label", "crop_margin": 2},
    "spacing": {"spacing": "1.5,1.1,1.3", "plane": "coronal", "drop_blank": True},
    "spacing of planes": {"spacing": "2,2,2", "plane": "axial,sagittal", "size": 8},
    "coarse": {"spacing": "3,3,3", "resample_order": 1, "crop": "nonzero"},
    "padded": {"size": 14, "plane": "sagittal"},
    "resized": {"size": "7,16", "fit": "resize", "size_order": 3},
    "letterbox": {"size": "12,10", "fit": "letterbox", "crop": "nonzero", "center": "label"},
    "label map": {"label_map": "1:2 *:0", "label_dtype": "int32", "keep_empty": 0.5},
    "components": {"min_component_voxels": 3, "min_component_pixels": 2},
    "dataset": {"normalize": "dataset"},
    "foreground": {"min_foreground": 0.01, "plane": "i"},
    "zarr": {"format": "zarr"},
    "zarr of source": {"format": "zarr", "dtype": "source", "plane": "sagittal"},
    "zarr, resampled": {"format": "zarr", "spacing": "1.5,1.5,1.5", "size": 9, "plane": "j"},
    "png": {"format": "png", "bits": 16, "plane": "coronal"},
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return cases stored in several orders and types, gzipped or not, with NaN in one."""
    root = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(3)
    axes = [np.diag([-1, -1, 1]), np.eye(3)[[2, 0, 1]], np.diag([1, -1, -1])[[1, 2, 0]], np.eye(3)]
    dtypes = (np.int16, np.float32, np.uint8, ">i4")
    for number, (rotation, dtype) in enumerate(zip(axes, dtypes, strict=True)):
        shape = (13, 11 + number, 9)
        affine = oblique(spacing=(1.5, 2.0, 3.0)) if number else np.diag([1.0, 2.0, 3.0, 1.0])
        affine[:3, :3] = affine[:3, :3] @ rotation
        image = rng.integers(1, 200, shape).astype(dtype)
        image[:2] = 0
        label = np.zeros(shape, np.int16 if number % 2 else np.uint8)
        label[3:7, 2:5, 2:7] = 1
        label[10, 8, 3] = 2
        for folder, name, array in (("imagesTr", "_0000", image), ("labelsTr", "", label)):
            (root / folder).mkdir(exist_ok=True)
            written = nib.Nifti1Image(array.astype(array.dtype.newbyteorder("=")), affine)
            gz = "" if number % 2 and folder == "imagesTr" else ".gz"
            nib.save(written, root / folder / f"c{number}{name}.nii{gz}")
    return root


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume, "_AT_ONCE", 1000)
    monkeypatch.setattr(files, "_TO_SCRATCH", 100)
    monkeypatch.setattr(ranks, "_FEW", 10)


def slices_of(output: Path) -> dict[str, bytes]:
    """Return slices by their place in an output."""
    folders = [path for path in output.iterdir() if path.is_dir() and path.name[0] != "."]
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run(scans: Path, output: Path, **settings: Any) -> dict[str, bytes]:
    config = dask_slicer.RunConfig(
        **{"input_dir": scans, "output_dir": output, "num_workers": 0, "allow_missing_labels": True}
        | settings
    )
    assert dask_slicer.run(config).failures == ()
    return slices_of(output)


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_slices_are_the_same_bytes_with_arrays_in_files(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    expected = run(scans, tmp_path / "in_memory", **settings)
    sizes = []
    scratch_file = mapped.scratch_file

    def counted(n_bytes: int, folder: str, **options: Any) -> Any:
        sizes.append(n_bytes)
        return scratch_file(n_bytes, folder, **options)

    for module in (mapped, files):
        monkeypatch.setattr(module, "scratch_file", counted)
    monkeypatch.setattr(system, "memory_bytes", lambda: LIMIT)
    found = run(scans, tmp_path / "in_files", **settings)
    assert len(expected) >= 4
    assert found == expected
    assert len(sizes) >= 6  # at least what was gzipped
    assert not list((tmp_path / "in_files").glob(".*tmp*"))


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("name", ["spacing", "spacing of planes", "coarse", "zarr, resampled"])
def test_files_take_no_more_room_than_is_planned(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    sizes: dict[int, int] = {}
    totals = []
    scratch_file = mapped.scratch_file

    def counted(n_bytes: int, folder: str, **options: Any) -> Any:
        array = scratch_file(n_bytes, folder, **options)
        number = len(totals)
        sizes[number] = n_bytes
        weakref.finalize(mapped.mapping_of(array), sizes.pop, number)
        totals.append(sum(sizes.values()))
        return array

    for module in (mapped, files):
        monkeypatch.setattr(module, "scratch_file", counted)
    monkeypatch.setattr(system, "memory_bytes", lambda: LIMIT)
    config = dask_slicer.RunConfig(
        input_dir=scans, output_dir=tmp_path / "out", num_workers=0, **SETTINGS[name]
    )
    plan = dask_slicer.plan(config)
    assert dask_slicer.run(config).failures == ()
    assert 0 < max(totals) <= max(memory.scratch_bytes(case, config) for case in plan.runnable)


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_masks_and_missing_images_are_loaded_alike(tmp_path: Path, plane: str) -> None:
    rng = np.random.default_rng(4)
    image = tmp_path / "t1.nii.gz"
    nib.save(nib.Nifti1Image(rng.integers(0, 90, (9, 10, 11), np.int16), np.eye(4)), image)
    masks = []
    for value, name in enumerate(("liver", "spleen"), start=1):
        array = np.zeros((9, 10, 11), np.uint8)
        array[value:6, 3:8, 3 + value : 9] = 1
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / f"{name}.nii")
        masks.append(Mask(structure=name, path=str(tmp_path / f"{name}.nii"), value=value))
    case = Case(case_id="a", images=(str(image), ""), masks=tuple(masks), overlap="first")
    expected = load_volume(case, plane)
    loaded = load_volume(case, plane, scratch_dir=str(tmp_path))
    assert loaded.n_overlapping == expected.n_overlapping > 0
    assert expected.label is not None
    assert loaded.label is not None
    for voxels, same in zip(
        (*loaded.image, loaded.label), (*expected.image, expected.label), strict=True
    ):
        assert np.array_equal(voxels.stored, same.stored)
        assert voxels.stored.strides == same.stored.strides
        assert mapped.scratch_dir_of(voxels.stored) == str(tmp_path)


def test_a_damaged_stream_is_named_though_it_is_inflated_into_a_file(
    dataset: Any, slice_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for case_id in ("a", "b", "c"):
        dataset.add(case_id)
    image = dataset.image_path("a")
    data = bytearray(image.read_bytes())
    data[-6] ^= 1  # of the checksum
    image.write_bytes(data)
    image = dataset.image_path("b")
    image.write_bytes(image.read_bytes()[:-100])
    monkeypatch.setattr(system, "memory_bytes", lambda: LIMIT)
    output = slice_dataset()
    rows = list(csv.DictReader((output / "failures.csv").open(encoding="utf-8")))
    kinds = {row["case_id"]: row["kind"] for row in rows}
    assert kinds == {"a": "CorruptFile", "b": "CorruptFile"}
    assert list(output.rglob("c_*.npz"))


def test_the_scratch_directory_is_a_setting_of_the_run_and_not_of_slices(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = set()
    scratch_file = mapped.scratch_file
    monkeypatch.setattr(
        files, "scratch_file", lambda n, folder: folders.add(folder) or scratch_file(n, folder)
    )
    monkeypatch.setattr(system, "memory_bytes", lambda: LIMIT)
    monkeypatch.chdir(tmp_path)
    expected = run(scans, tmp_path / "out", scratch_dir="scratch")
    assert folders == {str(tmp_path / "scratch")}
    assert list((tmp_path / "scratch").iterdir()) == []
    settings = (tmp_path / "out" / "config.yaml").read_text(encoding="utf-8")
    assert f"scratch_dir: {tmp_path / 'scratch'}" in settings
    journal = tmp_path / "out"
    folders.clear()
    assert run(scans, journal) == expected
    assert not folders  # nothing was left to do


def test_what_memory_holds_is_in_no_file(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (mapped, files):
        monkeypatch.setattr(module, "scratch_file", lambda *_, **__: pytest.fail("in a file"))
    monkeypatch.setattr(mapped, "release", lambda *_: pytest.fail("pages are given back"))
    monkeypatch.setattr(volume, "release", lambda array: mapped.scratch_dir_of(array) and 1 / 0)
    run(scans, tmp_path / "out", plane="sagittal", spacing="2,2,2")


def test_a_case_is_refused_if_not_even_its_planes_fit(
    dataset: Any, slice_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset.add("large", np.zeros((200, 200, 60), np.int16))
    monkeypatch.setattr(memory, "_BLOCK_BYTES", 100_000)
    monkeypatch.setattr(memory, "WORKER_BASE_BYTES", 1_000_000)
    monkeypatch.setattr(system, "memory_bytes", lambda: 5_000_000)
    output = slice_dataset()
    (row,) = csv.DictReader((output / "failures.csv").open(encoding="utf-8"))
    assert (row["case_id"], row["step"], row["kind"]) == ("large", "load", "OutOfMemory")
    assert row["message"].startswith(
        "needs 12.0 MB of memory, or 6.3 MB with its voxels in files, a worker may use 5.0 MB"
    )
    monkeypatch.setattr(system, "memory_bytes", lambda: 7_000_000)
    assert list(slice_dataset().rglob("large_*.npz"))


def test_a_scratch_dir_that_is_a_file_is_refused(dataset, tmp_path) -> None:
    dataset.add("a")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"scratch_dir .*file is a file; name a folder"):
        dask_slicer.run(
            input_dir=dataset.root,
            output_dir=tmp_path / "out",
            scratch_dir=tmp_path / "file",
            num_workers=0,
        )
