"""Recipes of MedSAM, MedSAM2 and BraTS in 2D: their loaders read the files; values as documented.

Each reader here does what the class that its comment names does with a file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from glob import glob
from itertools import chain
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from scipy import ndimage

from dask_slicer import SliceDataset

_CT_LIMITS = -160.0, 240.0
# Of images resized in float32.
_TOLERANCE = 2e-6


Paths = dict[str, tuple[Path, Path]]  # image and label by case


@pytest.fixture
def sliced(dataset, invoke, tmp_path):
    """Return a function that runs a recipe on `dataset`."""

    def run(recipe: str, *options: object) -> Path:
        output = tmp_path / recipe
        folders = "--input_dir", dataset.root, "--output_dir", output
        result = invoke("run", "--config", recipe, *folders, "--num_workers", 0, *options)
        assert result.exit_code == 0, result.output
        assert invoke("verify", output, "--deep", 1).exit_code == 0
        return output

    return run


@pytest.fixture
def real_cases(dataset, real_scans):
    """Return a function that links real scans into `dataset`."""

    def link(*names: str) -> Paths:
        dataset.root.mkdir()
        for name in names:
            (dataset.root / name).symlink_to(real_scans / name)
        folders = {name: dataset.root / name for name in names}
        return {n: (f / "image.nii.gz", f / "label.nii.gz") for n, f in folders.items()}

    return link


def write_ct(dataset, case_id: str, *, shape: tuple[int, int, int] = (60, 52, 7)) -> None:
    """Write a case whose label has components above, at and below the sizes that are kept."""
    rng = np.random.default_rng(len(case_id))
    image = rng.integers(-1024, 1500, shape).astype(np.int16)
    label = np.zeros(shape, np.uint8)
    label[2:22, 3:28, 1:3] = 5  # 500 pixels in each of 2 slices: 1,000 voxels
    label[30:57, 3:40, 1] = 3  # 999 voxels
    label[30:57, 10:50, 2:6] = 2
    label[30:40, 10:20, 6] = 2  # 100 pixels
    label[42:51, 30:41, 6] = 2  # 99 pixels
    dataset.add(case_id, image, label)


def paths_of(dataset, *case_ids: str) -> Paths:
    return {name: (dataset.image_path(name), dataset.label_path(name)) for name in case_ids}


def scan_of(path: Path) -> tuple[SimpleITK.Image, np.ndarray]:
    image = SimpleITK.ReadImage(str(path))
    return image, SimpleITK.GetArrayFromImage(image)


def without_small_components(label: np.ndarray, *, voxels: int = 1000) -> np.ndarray:
    """Return a label, (z, y, x), without components of fewer voxels, then of under 100 pixels."""
    label = label.astype(np.uint8)
    for values, least in ((label[None], voxels), (label, 100)):
        for part in values:
            for value in np.unique(part[part > 0]):
                numbers, _ = ndimage.label(part == value, np.ones((3,) * part.ndim))
                small = np.bincount(numbers.ravel()) < least
                small[0] = False
                part[small[numbers]] = 0
    return label


def resized(plane: np.ndarray, size: int, largest: float) -> np.ndarray:
    """Return a plane that is enlarged with cubic splines, edges of pixels aligned."""
    factors = [size / n for n in plane.shape]
    sized = ndimage.zoom(plane, factors, order=3, mode="nearest", grid_mode=True)
    return sized.clip(0, largest)


def resized_label(plane: np.ndarray, size: int) -> np.ndarray:
    rows, columns = (((np.arange(size) + 0.5) * n / size).astype(int) for n in plane.shape)
    return plane[np.ix_(rows, columns)]


# -- MedSAM ----------------------------------------------------------------------------------------


def read_medsam(root: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return images and masks by name; NpyDataset of train_one_gpu.py, bowang-lab/MedSAM."""
    masks = sorted(glob(f"{root}/gts/**/*.npy", recursive=True))
    names = [name for name in map(os.path.basename, masks) if (root / "imgs" / name).is_file()]
    assert len(names) == len(masks) == len(glob(f"{root}/imgs/*"))
    samples = {}
    for name in names:
        image = np.load(root / "imgs" / name, "r", allow_pickle=True)
        mask = np.load(root / "gts" / name, "r", allow_pickle=True)
        channels = np.transpose(image, (2, 0, 1))
        assert channels.shape == (3, 1024, 1024)
        assert channels.dtype == np.float32
        assert channels.max() <= 1
        assert channels.min() >= 0
        assert (channels[0] == channels[1]).all()
        assert (channels[0] == channels[2]).all()
        assert (mask.dtype, mask.shape) == (np.uint8, (1024, 1024))
        values = np.unique(mask)[1:]
        assert values.size  # it draws one of them, here each is tried
        for value in values:
            chosen = (mask == value).astype(np.uint8)
            assert (chosen.min(), chosen.max()) == (0, 1)
            rows, columns = np.nonzero(chosen)
            assert columns.max() - columns.min() < 1024 > rows.max() - rows.min()
        samples[name] = channels[0], mask
    return samples


def medsam_case(image: Path, label: Path, *, is_ct: bool) -> dict[int, tuple[Any, Any]]:
    """Return image, [0, 1], and label of the slices with a label, before they are resized."""
    values = scan_of(image)[1].astype(np.float64)
    limits = _CT_LIMITS if is_ct else np.percentile(values[values > 0], [0.5, 99.5])
    values = values.clip(*limits)
    values = (values - values.min()) / (values.max() - values.min())
    kept = without_small_components(scan_of(label)[1])
    return {k: (values[k], kept[k]) for k in range(len(kept)) if kept[k].any()}


def check_medsam(output: Path, scans: Paths, *, is_ct: bool, stride: int = 1) -> None:
    splits = json.loads((output / "splits.json").read_text())
    assert splits["train"]
    for split, case_ids in splits.items():
        root = output / ("npy" if split == "train" else f"npy_{split}")
        samples = read_medsam(root) if case_ids else {}
        expected = {
            f"{case_id}-{k:03d}.npy": sample
            for case_id in case_ids
            for k, sample in medsam_case(*scans[case_id], is_ct=is_ct).items()
            if k % stride == 0
        }
        assert samples.keys() == expected.keys()
        for name, (image, mask) in samples.items():
            values, label = expected[name]
            np.testing.assert_allclose(image, resized(values, 1024, 1), atol=_TOLERANCE, rtol=0)
            np.testing.assert_array_equal(mask, resized_label(label, 1024))


@pytest.mark.slow
def test_medsam_reads_slices_with_a_label(dataset, sliced) -> None:
    case_ids = "a", "bb", "ccc"
    for case_id in case_ids:
        write_ct(dataset, case_id)
    output = sliced("medsam")
    paths = paths_of(dataset, *case_ids)
    check_medsam(output, paths, is_ct=True)


@pytest.mark.slow
def test_medsam_reads_slices_of_real_ct(real_cases, sliced) -> None:
    paths = real_cases("ct_torso_3mm_totalseg", "ct_sts001_ibsi", "ct_torso_sm_totalseg")
    check_medsam(sliced("medsam", "--stride", 10), paths, is_ct=True, stride=10)


@pytest.mark.slow
def test_medsam_reads_slices_of_real_mr(real_cases, sliced) -> None:
    paths = real_cases("mr_brain1_pyradiomics", "mr_stroke_flair", "mr_abdomen_totalseg")
    no_window = "--clip_min", "none", "--clip_max", "none"
    percentiles = "--percentiles", "0.5,99.5", "--foreground", "positive"
    output = sliced("medsam", "--stride", 5, *no_window, *percentiles)
    check_medsam(output, paths, is_ct=False, stride=5)


# -- MedSAM2 ---------------------------------------------------------------------------------------


def read_medsam2(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return the arrays of each case; NPZRawDataset of vos_raw_dataset.py, bowang-lab/MedSAM2.

    As RandomUniformSampler does, it must find 8 slices in a row, the first one with an object.
    """
    cases = {}
    for root, _, files in os.walk(folder):
        for path in (Path(root, name) for name in files if name.endswith(".npz")):
            with np.load(path) as arrays:
                case = dict(arrays)
            frames, masks = case["imgs"], case["gts"]
            assert frames.dtype == masks.dtype == np.uint8
            assert frames.shape == masks.shape == (len(masks), 512, 512)
            # The class divides by 255, and what makes pictures multiplies again.
            assert ((frames / 255.0 * 255.0).astype(np.uint8) == frames).all()
            assert len(masks) >= 8
            assert masks[: len(masks) - 7].any()
            cases[os.path.relpath(path, folder).removesuffix(".npz")] = case
    return cases


def check_medsam2(output: Path, scans: Paths, *, voxels: int = 1000) -> None:
    splits = json.loads((output / "splits.json").read_text())
    assert splits["train"]
    for split, case_ids in splits.items():
        cases = read_medsam2(output / split)
        assert sorted(cases) == sorted(case_ids)
        for case_id, case in cases.items():
            check_medsam2_case(case, *scans[case_id], voxels=voxels)


def check_medsam2_case(
    case: dict[str, np.ndarray], image: Path, label: Path, *, voxels: int
) -> None:
    assert [*case] == ["imgs", "gts", "spacing", "direction", "origin"]
    scan, values = scan_of(image)
    low, high = _CT_LIMITS
    values = (values.astype(np.float64).clip(low, high) - low) * 255 / (high - low)
    mask = without_small_components(scan_of(label)[1], voxels=voxels)
    if values.shape[1:] == (512, 512):
        np.testing.assert_array_equal(case["imgs"], np.rint(values))
        np.testing.assert_array_equal(case["gts"], mask)
    for plane, wanted, kept, wanted_mask in zip(
        case["imgs"], values, case["gts"], mask, strict=True
    ):
        # Rounding moves a number that lies in the middle, up to the digits of float32.
        np.testing.assert_allclose(plane, resized(wanted, 512, 255), atol=0.5 + 1e-3, rtol=0)
        np.testing.assert_array_equal(kept, resized_label(wanted_mask, 512))
    for name, shape in (("spacing", (3,)), ("direction", (9,)), ("origin", (3,))):
        assert (case[name].dtype, case[name].shape) == (np.float64, shape)
    written = SimpleITK.GetImageFromArray(case["imgs"])
    written.SetSpacing(case["spacing"].tolist())
    written.SetDirection(case["direction"].tolist())
    written.SetOrigin(case["origin"].tolist())
    width, height, depth = scan.GetSize()
    for x, y, z in ((0, 0, 0), (511, 511, depth - 1), (100, 37, 1)):
        index = (x + 0.5) * width / 512 - 0.5, (y + 0.5) * height / 512 - 0.5, float(z)
        np.testing.assert_allclose(
            written.TransformIndexToPhysicalPoint((x, y, z)),
            scan.TransformContinuousIndexToPhysicalPoint(index),
            atol=1e-3,  # mm; headers hold float32
        )
    # The scan, interpolated where the file says that its voxels are.
    window = SimpleITK.IntensityWindowing(
        SimpleITK.Cast(scan, SimpleITK.sitkFloat64), low, high, 0.0, 255.0
    )
    again = SimpleITK.Resample(window, written, SimpleITK.Transform(), SimpleITK.sitkBSpline)
    inside = np.s_[:, 100:-100, 100:-100]  # at the edge, its splines are others
    difference = SimpleITK.GetArrayFromImage(again).clip(0, 255)[inside] - case["imgs"][inside]
    assert np.abs(difference).max() < 0.51


@pytest.mark.slow
def test_medsam2_reads_volumes(dataset, sliced) -> None:
    for case_id, shape in (("a", (60, 52, 9)), ("bb", (512, 512, 10)), ("ccc", (64, 300, 9))):
        write_ct(dataset, case_id, shape=shape)
    paths = paths_of(dataset, "a", "bb", "ccc")
    check_medsam2(sliced("medsam2"), paths)


@pytest.mark.slow
def test_medsam2_reads_volumes_of_real_scans(real_cases, sliced) -> None:
    paths = real_cases("ct_chest_lung1_pyradiomics", "ct_sts001_ibsi", "ct_torso_3mm_totalseg")
    # The tumour of the first one has 837 voxels.
    check_medsam2(sliced("medsam2", "--min_component_voxels", 800), paths, voxels=800)


# -- BraTS in 2D -----------------------------------------------------------------------------------

_MODALITIES = ("t1", "t1ce", "t2", "flair")
# As in the files of BraTS.
_AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])


def write_brats(dataset, case_id: str, *, enhancing: int, names: Sequence[str]) -> None:
    """Write a case as BraTS has it, with a brain in zeros, and 0 in the brain of one modality."""
    rng = np.random.default_rng(enhancing)
    axes = np.ogrid[-1:1:240j, -1:1:240j, -1:1:6j]
    brain = sum(axis**2 for axis in axes) < 0.8
    label = np.zeros(brain.shape, np.uint8)
    for value, half in ((2, 0.5), (1, 0.3), (enhancing, 0.2)):
        label[sum(axis**2 for axis in axes) < half**2] = value
    for number, name in enumerate(names):
        image = np.where(brain, rng.normal(500 * (number + 1), 90, brain.shape), 0).astype(np.int16)
        image[100:110, 100:110] = 0 if number == 2 else image[100:110, 100:110]
        dataset.write(dataset.root / case_id / f"{case_id}_{name}.nii.gz", image, _AFFINE)
    dataset.write(dataset.root / case_id / f"{case_id}_seg.nii.gz", label, _AFFINE)


def read_brats(output: Path, split: str) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
    """Return image and label by case and slice.

    What BRATSDataset of bratsloader.py, JuliaWolleb/Diffusion-based-Segmentation, gives a network,
    but for values of image and label: T1, T1 with contrast, T2, FLAIR, and 224 × 224 pixels.
    """
    samples = {}
    for name in sorted(glob(f"{output}/{split}/*.npz")):
        with np.load(name) as arrays:
            image, label = arrays["image"], arrays["label"]
            metadata = json.loads(str(arrays["metadata"]))
        assert (image.dtype, image.shape) == (np.float32, (4, 224, 224))
        assert (label.dtype, label.shape) == (np.uint8, (224, 224))
        samples[metadata["case_id"], metadata["slice_index"]] = image, label
    return samples


def brats_case(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Return image, (modality, i, j, k), and label of a case; each modality by its own voxels."""
    *images, label = (np.moveaxis(scan_of(path)[1], 0, 2).swapaxes(0, 1) for path in files)
    normalised = []
    for image in images:
        values = image.astype(np.float64)
        brain = values[values != 0]
        normalised.append(np.where(values != 0, (values - brain.mean()) / brain.std(), 0))
    return np.stack(normalised), np.where(label == 4, 3, label)


def central(array: np.ndarray) -> np.ndarray:
    """Return (…, 224, 224) about the middle of rows and columns, padded with 0."""
    for axis in (-2, -1):
        pad = [(0, 0)] * array.ndim
        missing = max(224 - array.shape[axis], 0)
        pad[axis] = missing // 2, missing - missing // 2
        array = np.pad(array, pad)
        first = (array.shape[axis] - 224) // 2
        array = array.take(range(first, first + 224), axis)
    return array


def check_brats(output: Path, cases: dict[str, Sequence[Path]]) -> None:
    splits = json.loads((output / "splits.json").read_text())
    assert sorted(chain(*splits.values())) == sorted(cases)
    for split, case_ids in splits.items():
        samples = read_brats(output, split)
        for case_id in case_ids:
            image, label = brats_case(cases[case_id])
            assert [k for name, k in samples if name == case_id] == [*range(label.shape[2])]
            for k in range(label.shape[2]):
                own_image, own_label = samples[case_id, k]
                np.testing.assert_allclose(own_image, central(image[..., k]), atol=1e-5, rtol=0)
                np.testing.assert_array_equal(own_label, central(label[..., k]))
    info = json.loads((output / "dataset_info.json").read_text())
    assert {*info["label_voxels"]} <= {"0", "1", "2", "3"}
    loaded = SliceDataset(output, split=None)
    assert loaded[0]["image"].shape == (4, 224, 224)


@pytest.mark.parametrize(
    ("names", "enhancing"),
    [
        pytest.param(_MODALITIES, 4, id="2020"),
        pytest.param(_MODALITIES, 3, id="2020-3", marks=pytest.mark.slow),
        pytest.param(("t1n", "t1c", "t2w", "t2f"), 3, id="2023", marks=pytest.mark.slow),
    ],
)
def test_slices_of_brats(dataset, sliced, names, enhancing) -> None:
    for number in range(3):
        write_brats(dataset, f"BraTS_{number}", enhancing=enhancing, names=names)
    options = [] if names == _MODALITIES else ["--modalities", ",".join(names)]
    cases = {
        folder.name: [folder / f"{folder.name}_{name}.nii.gz" for name in (*names, "seg")]
        for folder in sorted(dataset.root.iterdir())
    }
    check_brats(sliced("brats_2d", *options), cases)


@pytest.mark.slow
def test_slices_of_brats_from_a_real_scan(dataset, real_scans, sliced) -> None:
    """MR as four modalities, smaller than 224 × 224."""
    folder, cases = real_scans / "mr_stroke_flair", {}
    scan, label = (nib.load(folder / f"{name}.nii.gz") for name in ("image", "label"))
    for case_id in ("a", "b", "c"):
        cases[case_id] = [dataset.root / case_id / f"{n}.nii.gz" for n in (*_MODALITIES, "seg")]
        for number, path in enumerate(cases[case_id][:4], start=1):
            values = np.asanyarray(scan.dataobj)[..., 60:75].astype(np.int16) * number
            dataset.write(path, values, scan.affine)
        values = np.asanyarray(label.dataobj)[..., 60:75].astype(np.uint8)
        dataset.write(cases[case_id][4], values, label.affine)
    check_brats(sliced("brats_2d"), cases)
