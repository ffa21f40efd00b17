"""The same patient, however the voxels are stored: in 48 axis orders, or on a grid that is off."""

from __future__ import annotations

import csv
import json
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dask_slicer.inputs.phantom import make_phantom

# nibabel's (3, 2) orientations: to which output axis, and whether flipped.
ALL_48 = [
    np.array(list(zip(order, flips, strict=True)))
    for order in permutations(range(3))
    for flips in product((1, -1), repeat=3)
]
SPACING = (2.0, 1.5, 3.0)


def tilted_phantom() -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Return image and label of a body off the origin and tilted, so that no two axes are alike."""
    cosine, sine = np.cos(0.3), np.sin(0.3)
    tilt = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    phantom = make_phantom(
        (14, 12, 9), spacing=SPACING, directions=tilt, rng=np.random.default_rng(1)
    )
    affine = phantom.affine.copy()
    affine[:3, 3] += (31.0, -12.0, 400.0)
    return nib.Nifti1Image(phantom.image, affine), nib.Nifti1Image(phantom.label, affine)


def add_stored_as(dataset, case_id: str, image, label, how: np.ndarray, label_how: np.ndarray):
    image, label = image.as_reoriented(how), label.as_reoriented(label_how)
    dataset.add(
        case_id,
        np.asarray(image.dataobj),
        np.asarray(label.dataobj),
        image.affine,
        label_affine=label.affine,
    )


def case_arrays(output: Path, case_id: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all images, all labels, and the affine that is the same for all slices."""
    images, labels, affines = [], [], []
    for path in sorted(output.glob(f"*/{case_id}_[0-9][0-9][0-9].npz")):
        with np.load(path) as npz:
            images.append(npz["image"])
            labels.append(npz["label"])
            affines.append(json.loads(str(npz["metadata"]))["affine"])
    assert all(affine == affines[0] for affine in affines)
    return np.stack(images), np.stack(labels), np.array(affines[0])


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_all_48_ways_to_store_a_volume_give_the_same_slices(dataset, slice_dataset, plane) -> None:
    image, label = tilted_phantom()
    for number, how in enumerate(ALL_48):
        add_stored_as(dataset, f"way_{number:02d}", image, label, how, ALL_48[number - 7])
    output = slice_dataset(plane=plane, window_size=1, padding_mode="mirror")
    images, labels, affine = case_arrays(output, "way_00")
    assert len(np.unique(labels)) > 3
    assert images.shape[0] == {"axial": 9, "coronal": 12, "sagittal": 14}[plane]
    for number, how in enumerate(ALL_48):
        other_images, other_labels, other_affine = case_arrays(output, f"way_{number:02d}")
        np.testing.assert_array_equal(other_images, images, err_msg=str(how))
        np.testing.assert_array_equal(other_labels, labels, err_msg=str(how))
        np.testing.assert_allclose(other_affine, affine, atol=1e-4, err_msg=str(how))


@pytest.mark.parametrize("number", [0, 13, 47])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_label_that_is_one_voxel_off_is_refused_with_the_distance_in_mm(
    dataset, tmp_path, invoke, axis, number
) -> None:
    image, label = tilted_phantom()
    step = np.zeros(4)
    step[axis] = 1
    moved = label.affine.copy()
    moved[:, 3] += label.affine @ step
    off = nib.Nifti1Image(np.asarray(label.dataobj), moved)
    add_stored_as(dataset, "off", image, off, ALL_48[number], ALL_48[5])
    output = tmp_path / "slices"
    result = invoke(
        *("run", "--input_dir", dataset.root, "--output_dir", output, "--num_workers", 0),
        *("--plane", "coronal"),
    )
    assert result.exit_code == 1
    (failure,) = csv.DictReader((output / "failures.csv").open())
    assert (failure["step"], failure["kind"]) == ("plan", "GeometryMismatch")
    assert f" {SPACING[axis]:g} mm" in failure["message"]


@pytest.mark.parametrize(("off_by", "exit_code"), [(0.09, 0), (0.11, 1)], ids=["within", "over"])
def test_a_tenth_of_a_voxel_is_the_most_that_a_label_may_be_off(
    dataset, tmp_path, invoke, off_by, exit_code
) -> None:
    image, label = tilted_phantom()
    moved = label.affine.copy()
    moved[:3, 3] += label.affine[:3, 2] * off_by
    off = nib.Nifti1Image(np.asarray(label.dataobj), moved)
    add_stored_as(dataset, "near", image, off, ALL_48[0], ALL_48[40])
    result = invoke(
        *("run", "--input_dir", dataset.root, "--output_dir", tmp_path / "slices"),
        *("--num_workers", 0),
    )
    assert result.exit_code == exit_code


def test_a_rotation_that_only_moves_the_far_corner_is_refused(dataset, tmp_path, invoke) -> None:
    image, label = tilted_phantom()
    # About the first voxel, by so little that only far voxels move over a tenth of a voxel.
    cosine, sine = np.cos(0.02), np.sin(0.02)
    turn = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    turned = label.affine.copy()
    turned[:3, :3] = turn @ turned[:3, :3]
    off = nib.Nifti1Image(np.asarray(label.dataobj), turned)
    add_stored_as(dataset, "turned", image, off, ALL_48[0], ALL_48[0])
    result = invoke(
        *("run", "--input_dir", dataset.root, "--output_dir", tmp_path / "slices"),
        *("--num_workers", 0),
    )
    assert result.exit_code == 1
    assert "turned: GeometryMismatch (plan)" in result.output
