"""Every voxel that is written, against SimpleITK's reading of the scans and plain numpy."""

from __future__ import annotations

import csv
import gzip
import json
import struct
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

# -- the oracle: slow, plain, and written from the definitions -------------------------------------


def stack_of(path: Path, plane: str) -> np.ndarray:
    """Return a volume as (slice, row, column) ndarray of float64."""
    if plane in "ijk":
        return np.moveaxis(nib.load(path).get_fdata(), "ijk".index(plane), 0)
    oriented = sitk.DICOMOrient(sitk.ReadImage(str(path), sitk.sitkFloat64), "LPS")
    z_y_x = sitk.GetArrayFromImage(oriented)
    match plane:
        case "axial":
            return z_y_x
        case "coronal":  # index A→P is y, rows S→I are z backwards, columns R→L are x
            return z_y_x.transpose(1, 0, 2)[:, ::-1, :]
        case _:  # sagittal: index R→L is x, rows S→I are z backwards, columns A→P are y
            return z_y_x.transpose(2, 0, 1)[:, ::-1, :]


def normalised(
    stack: np.ndarray, *, normalize="zscore", clip_min=-np.inf, clip_max=np.inf
) -> np.ndarray:
    stack = stack.clip(clip_min, clip_max)
    if normalize == "none":
        return stack
    if normalize == "minmax":
        return (stack - stack.min()) / ((stack.max() - stack.min()) or 1)
    is_foreground = stack > stack.min()
    if not is_foreground.any():
        is_foreground[:] = True
    if normalize == "percentile":
        stack = stack.clip(*np.percentile(stack[is_foreground], (0.5, 99.5)))
    foreground = stack[is_foreground]
    return (stack - foreground.mean()) / (foreground.std() or 1)


def windowed(stack: np.ndarray, slice_index: int, size: int, padding_mode: str) -> np.ndarray:
    planes = []
    last = len(stack) - 1
    for wanted in range(slice_index - size, slice_index + size + 1):
        if 0 <= wanted <= last:
            planes.append(stack[wanted])
        elif padding_mode == "zero":
            planes.append(np.zeros_like(stack[0]))
        elif padding_mode == "replicate":
            planes.append(stack[0] if wanted < 0 else stack[last])
        else:
            planes.append(stack[-wanted] if wanted < 0 else stack[2 * last - wanted])
    return np.stack(planes)


# -- what was written -------------------------------------------------------------------------


def slices_of(output: Path, case_id: str) -> list[Path]:
    return sorted(output.glob(f"*/{case_id}_[0-9][0-9][0-9].npz"))


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as npz:
        return dict(npz)


def metadata(path: Path) -> dict:
    return json.loads(str(arrays(path)["metadata"]))


def assert_case_is(output, case_id: str, image, label, window_size: int, padding: str) -> None:
    """Compare every slice of a case of one modality."""
    paths = slices_of(output, case_id)
    assert len(paths) == len(image)
    for slice_index, path in enumerate(paths):
        found = arrays(path)
        expected = windowed(image, slice_index, window_size, padding)
        assert found["image"].dtype == np.float32
        np.testing.assert_allclose(found["image"], expected, 1e-5, 1e-5, err_msg=path.name)
        np.testing.assert_array_equal(found["label"], label[slice_index], err_msg=path.name)


# -- real scans -------------------------------------------------------------------------------

_4D = "mr_breast_dce4d_ucsfbr06"


def as_nnunet(scans: Path, root: Path) -> Path:
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir(parents=True)
    for scan in sorted(path for path in scans.iterdir() if path.is_dir()):
        (root / "imagesTr" / f"{scan.name}_0000.nii.gz").symlink_to(scan / "image.nii.gz")
        (root / "labelsTr" / f"{scan.name}.nii.gz").symlink_to(scan / "label.nii.gz")
    return root


QUICK = ("axial", 0)


@pytest.mark.parametrize(
    ("plane", "window_size", "padding_mode"),
    [
        pytest.param(plane, *window, marks=() if (plane, window[0]) == QUICK else pytest.mark.slow)
        for plane in ("axial", "coronal", "sagittal")
        for window in [(2, "replicate"), (1, "mirror"), (0, "zero")]
    ]
    # Zeros only show where a window reaches over the edge.
    + [pytest.param(plane, 2, "zero", marks=pytest.mark.slow) for plane in ("axial", "sagittal")],
)
def test_slices_of_real_scans_equal_those_of_simpleitk(
    real_scans, tmp_path, invoke, plane, window_size, padding_mode
) -> None:
    root, output = as_nnunet(real_scans, tmp_path / "scans"), tmp_path / "slices"
    result = invoke(
        *("run", "--input_dir", root, "--output_dir", output, "--num_workers", 0),
        *("--plane", plane, "--window_size", window_size, "--padding_mode", padding_mode),
    )
    assert result.exit_code == 1
    failures = list(csv.DictReader((output / "failures.csv").open()))
    assert [(row["case_id"], row["kind"]) for row in failures] == [(_4D, "UnsupportedImage")]
    for scan in sorted(path for path in real_scans.iterdir() if path.is_dir() and path.name != _4D):
        image = normalised(stack_of(scan / "image.nii.gz", plane))
        label = stack_of(scan / "label.nii.gz", plane)
        assert_case_is(output, scan.name, image, label, window_size, padding_mode)
        assert_affine_is_simpleitk_s(slices_of(output, scan.name)[0], scan / "image.nii.gz")


def assert_affine_is_simpleitk_s(path: Path, source: Path) -> None:
    """Compare where voxels lie in the world: at two corners and in the middle of the volume."""
    described = metadata(path)
    plane, affine = described["plane"], np.array(described["affine"])
    oriented = sitk.DICOMOrient(sitk.ReadImage(str(source)), "LPS")
    size = np.array(oriented.GetSize())
    for x, y, z in [(0, 0, 0), size // 2, size - 1]:
        upside_down = size[2] - 1 - z
        by_plane = {
            "axial": (z, y, x),
            "coronal": (y, upside_down, x),
            "sagittal": (x, upside_down, y),
        }
        lps = oriented.TransformIndexToPhysicalPoint((int(x), int(y), int(z)))
        ras = affine @ (*by_plane[plane], 1)
        np.testing.assert_allclose(ras[:3], (-lps[0], -lps[1], lps[2]), atol=1e-2)
    order = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}[plane]
    np.testing.assert_allclose(
        described["spacing"], np.array(oriented.GetSpacing())[list(order)], rtol=1e-4
    )


# -- settings -----------------------------------------------------------------------------------


def ct(shape: tuple[int, int, int] = (10, 9, 8)) -> np.ndarray:
    """Return noise with a background of air, as int16."""
    rng = np.random.default_rng(7)
    image = rng.normal(40, 300, shape).astype(np.int16)
    image[:3] = -1024
    return image


def add_two(dataset) -> None:
    dataset.add("ct_a", ct())
    dataset.add("ct_b", ct((7, 11, 6)).astype(np.float32) + 0.25)


@pytest.mark.parametrize("plane", ["axial", "sagittal", "i", "j", "k"])
@pytest.mark.parametrize(
    "how",
    [
        pytest.param({}, id="zscore"),
        pytest.param({"normalize": "none"}, id="none"),
        pytest.param({"normalize": "none", "clip_min": -200}, id="clip_min alone"),
        pytest.param({"clip_max": 100}, id="zscore, clip_max alone"),
        pytest.param({"normalize": "minmax"}, id="minmax"),
        pytest.param({"normalize": "minmax", "clip_min": -160, "clip_max": 240}, id="clip, minmax"),
        pytest.param({"normalize": "percentile"}, id="percentile"),
        pytest.param({"normalize": "percentile", "clip_min": -160.5}, id="clip, percentile"),
        pytest.param({"clip_min": 5000, "clip_max": 6000}, id="zscore, all clipped to one value"),
        pytest.param({"normalize": "minmax", "clip_max": -2000}, id="minmax, all to one value"),
    ],
)
def test_intensities_and_planes_are_those_of_numpy(dataset, slice_dataset, plane, how) -> None:
    add_two(dataset)
    output = slice_dataset(plane=plane, padding_mode="zero", **how)
    for case_id in ("ct_a", "ct_b"):
        image = normalised(stack_of(dataset.image_path(case_id), plane), **how)
        label = stack_of(dataset.label_path(case_id), plane)
        assert_case_is(output, case_id, image, label, 2, "zero")


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "u2", "<i4", "u4", ">f4", "<f8", "i8"])
@pytest.mark.parametrize(
    ("slope", "intercept"), [(1.0, 0.0), (0.5, -100.0), (-2.0, 7.0), (0.0, 0.0)]
)
def test_stored_numbers_are_scaled_as_simpleitk_scales_them(
    dataset, slice_dataset, dtype, slope, intercept
) -> None:
    stored = np.random.default_rng(3).integers(0, 100, (5, 6, 7)).astype(dtype)
    dataset.add("scaled", stored, label=np.ones((5, 6, 7), np.uint8))
    path = dataset.image_path("scaled")
    order = dtype[0] if dtype[0] in "<>" else "<"
    image = nib.Nifti1Image(
        stored, nib.load(path).affine, nib.Nifti1Header(endianness=order), dtype=stored.dtype
    )
    file = bytearray(image.to_bytes())
    struct.pack_into(f"{order}2f", file, 112, slope, intercept)  # scl_slope, scl_inter
    path.write_bytes(gzip.compress(bytes(file)))
    output = slice_dataset(normalize="none", window_size=0)
    image = stack_of(path, "axial")
    assert_case_is(output, "scaled", image, np.ones_like(image), 0, "zero")


def test_channels_are_ordered_by_offset_and_then_by_modality(dataset, slice_dataset) -> None:
    first, second = ct(), np.random.default_rng(8).normal(9, 2, ct().shape).astype(np.float32)
    dataset.add("mr", first)
    image = nib.Nifti1Image(second, nib.load(dataset.image_path("mr")).affine)
    turned = image.as_reoriented(np.array([[2, 1], [0, -1], [1, -1]]))
    dataset.add("mr", np.asarray(turned.dataobj), affine=turned.affine, label=None, channel=1)
    output = slice_dataset(window_size=1, padding_mode="mirror")

    one, two = (normalised(stack_of(dataset.image_path("mr", n), "axial")) for n in (0, 1))
    paths = slices_of(output, "mr")
    assert len(paths) == 8
    for slice_index, path in enumerate(paths):
        expected = np.empty((6, *one.shape[1:]))
        expected[0::2] = windowed(one, slice_index, 1, "mirror")
        expected[1::2] = windowed(two, slice_index, 1, "mirror")
        np.testing.assert_allclose(arrays(path)["image"], expected, rtol=1e-5, atol=1e-5)
    described = metadata(paths[0])
    assert described["num_channels"] == 6
    assert described["source_file"] == [f"imagesTr/mr_000{n}.nii.gz" for n in (0, 1)]
    assert described["norm_stats"]["min"] == pytest.approx([first.min(), second.min()])
    assert described["norm_stats"]["mean"] == pytest.approx(
        [first[first > first.min()].mean(), second[second > second.min()].mean()]
    )


def test_dropped_slices_are_still_in_the_windows_of_others(dataset, slice_dataset) -> None:
    label = np.zeros((10, 9, 8), np.uint8)
    label[:, :, 3] = 1
    label[:2, 0, 5] = 1  # 2 of 90 pixels
    label[0, 0, 6] = 1  # 1 of 90
    dataset.add("sparse", ct(), label)
    output = slice_dataset(min_foreground=2 / 90, window_size=2)
    image = normalised(stack_of(dataset.image_path("sparse"), "axial"))
    paths = slices_of(output, "sparse")
    assert [path.name for path in paths] == ["sparse_003.npz", "sparse_005.npz"]
    for slice_index, path in zip((3, 5), paths, strict=True):
        expected = windowed(image, slice_index, 2, "replicate")
        np.testing.assert_allclose(arrays(path)["image"], expected, rtol=1e-5, atol=1e-5)
        assert metadata(path)["total_slices"] == 8


def test_float16_is_the_nearest_to_the_float64_result(dataset, slice_dataset) -> None:
    add_two(dataset)
    output = slice_dataset(dtype="float16", window_size=0)
    image = normalised(stack_of(dataset.image_path("ct_a"), "axial"))
    for path, plane in zip(slices_of(output, "ct_a"), image, strict=True):
        assert arrays(path)["image"].dtype == np.float16
        np.testing.assert_allclose(arrays(path)["image"][0], plane, rtol=2**-10, atol=1e-5)


@pytest.mark.parametrize(
    ("label_dtype", "largest"), [("uint8", 255), ("uint16", 65_535), ("int32", 2**31 - 1)]
)
@pytest.mark.parametrize("stored_as", [np.int32, np.float64])
def test_the_largest_value_of_a_label_dtype_is_kept(
    dataset, slice_dataset, label_dtype, largest, stored_as
) -> None:
    label = np.zeros((10, 9, 8), stored_as)
    label[4, 4, 4] = largest
    dataset.add("labelled", ct(), label)
    output = slice_dataset(label_dtype=label_dtype, window_size=0)
    expected = stack_of(dataset.label_path("labelled"), "axial")
    for path, plane in zip(slices_of(output, "labelled"), expected, strict=True):
        assert arrays(path)["label"].dtype == label_dtype
        np.testing.assert_array_equal(arrays(path)["label"], plane)


@pytest.mark.parametrize("level", range(10))
def test_compression_changes_nothing_in_an_archive(dataset, slice_dataset, level) -> None:
    add_two(dataset)
    output = slice_dataset(compression_level=level, padding_mode="mirror", window_size=3)
    image = normalised(stack_of(dataset.image_path("ct_a"), "axial"))
    label = stack_of(dataset.label_path("ct_a"), "axial")
    assert_case_is(output, "ct_a", image, label, 3, "mirror")
    for path in slices_of(output, "ct_b"):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
