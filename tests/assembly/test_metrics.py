"""Metrics against a plain implementation, and MONAI where it is installed."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from dask_slicer.assembly.metrics import hausdorff_distance, label_metrics
from dask_slicer.core.geometry import spacing

SPACING = (0.7, 1.3, 2.9)


def ball(shape, center, radius) -> np.ndarray:
    grid = np.indices(shape).astype(float)
    off = [(axis - middle) ** 2 for axis, middle in zip(grid, center, strict=True)]
    return sum(off) <= radius**2


def blobs(seed: int, shape=(14, 17, 11)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    masks = [ball(shape, rng.uniform(0, shape), rng.uniform(1, 5)) for _ in range(3)]
    return np.logical_or.reduce(masks)


def surface(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    inside = padded.copy()
    for axis in range(3):
        for step in (-1, 1):
            inside &= np.roll(padded, step, axis)
    return np.argwhere((padded & ~inside)[1:-1, 1:-1, 1:-1])


def naive(first: np.ndarray, second: np.ndarray, percentile: float) -> float | None:
    if not first.any() or not second.any():
        return 0.0 if first.any() == second.any() else None
    own, other = surface(first) * SPACING, surface(second) * SPACING
    distances = np.linalg.norm(own[:, None] - other[None], axis=2)
    return max(np.percentile(distances.min(axis=axis), percentile) for axis in (0, 1))


EMPTY = np.zeros((14, 17, 11), bool)
PAIRS = [(blobs(seed), blobs(seed + 100)) for seed in range(12)]
PAIRS += [(EMPTY, EMPTY), (EMPTY, blobs(1)), (blobs(1), EMPTY), (~EMPTY, blobs(2))]


@pytest.mark.parametrize("percentile", [95, 100])
@pytest.mark.parametrize("pair", PAIRS)
def test_hausdorff_distances_are_those_of_all_pairs_of_surface_voxels(pair, percentile) -> None:
    found = hausdorff_distance(*pair, spacing=SPACING, percentile=percentile)
    expected = naive(*pair, percentile)
    assert (found is None) == (expected is None)
    if expected is not None:
        assert found == pytest.approx(expected, abs=1e-9)


def check_with_monai(predicted: np.ndarray, reference: np.ndarray, spacing, label: int) -> None:
    monai = pytest.importorskip("monai.metrics")
    import torch

    first, second = (
        torch.from_numpy((values == label)[None, None].astype(np.float32))
        for values in (predicted, reference)
    )
    (metrics,) = label_metrics(
        predicted, reference, spacing=spacing, voxel_volume=1.0, labels=[label]
    )
    distance = monai.compute_hausdorff_distance(
        first, second, include_background=True, percentile=95, spacing=list(spacing)
    ).item()
    if metrics.hd95_mm is not None and (predicted == label).any():
        assert metrics.hd95_mm == pytest.approx(distance, abs=1e-6, rel=1e-6)
    dice = monai.compute_dice(first, second, include_background=True, ignore_empty=False).item()
    assert metrics.dice == pytest.approx(dice, abs=1e-6)


# MONAI warns of an argument of its own functions, and of empty masks.
of_monai = pytest.mark.filterwarnings(
    "ignore:monai.metrics:FutureWarning", "ignore:the (ground truth|prediction) of:UserWarning"
)


@of_monai
@pytest.mark.parametrize("pair", PAIRS)
def test_metrics_are_those_of_monai(pair) -> None:
    check_with_monai(pair[0].astype(int), pair[1].astype(int), SPACING, 1)


@of_monai
def test_metrics_of_real_labels_are_those_of_monai(real_scans) -> None:
    pytest.importorskip("monai.metrics")
    rng = np.random.default_rng(0)
    for path in sorted(real_scans.glob("*/label.nii.gz")):
        image = nib.load(path)
        reference = np.asarray(image.dataobj).astype(np.int32)
        if reference.size > 8_000_000:  # a minute each in MONAI
            continue
        predicted = np.roll(reference, (1, -1), axis=(0, 1))
        predicted[rng.random(reference.shape) < 0.001] = 0
        values, counts = np.unique(reference, return_counts=True)
        largest = [value for _, value in sorted(zip(counts, values, strict=True))[::-1] if value]
        for label in largest[:3]:
            check_with_monai(predicted, reference, spacing(image.affine), int(label))


def test_volumes_and_labels_that_only_one_has() -> None:
    predicted, reference = np.zeros((2, 3, 4), np.uint8), np.zeros((2, 3, 4), np.uint8)
    predicted[0], reference[:, :, 0] = 2, 7
    by_label = {
        each.label: each
        for each in label_metrics(
            predicted, reference, spacing=(1, 1, 1), voxel_volume=500.0, labels=[2, 7, 9]
        )
    }
    assert [by_label[label].dice for label in (2, 7, 9)] == [0, 0, 1]
    assert [by_label[label].hd95_mm for label in (2, 7, 9)] == [None, None, 0]
    assert [by_label[label].predicted_ml for label in (2, 7, 9)] == [6, 0, 0]
    assert [by_label[label].reference_ml for label in (2, 7, 9)] == [0, 3, 0]
