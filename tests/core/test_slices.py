"""Slices of a volume: what is kept, and what a volume is refused for."""

from __future__ import annotations

import numpy as np
import pytest

from dask_slicer.core.geometry import voxel_volume
from dask_slicer.core.slices import slice_volume
from dask_slicer.core.volume import Volume, Voxels
from dask_slicer.errors import LabelValues, NonFinite

IMAGE = np.arange(60, dtype=np.float64).reshape(5, 4, 3)


def volume_of(*images: np.ndarray, label: np.ndarray | None = None) -> Volume:
    return Volume(
        image=tuple(Voxels(stored=image) for image in images),
        label=None if label is None else Voxels(stored=label),
        affine=np.eye(4),
    )


@pytest.mark.parametrize(
    ("least", "kept"),
    [(0.0, (0, 1, 2, 3, 4)), (0.25, (1, 2, 4)), (0.26, (2, 4)), (0.5, (2, 4)), (0.51, ())],
)
def test_slices_with_the_least_share_of_labels_or_more_are_kept(least, kept) -> None:
    label = np.zeros((5, 4, 3), np.uint8)
    for slice_index, n_labelled in ((1, 3), (2, 6), (4, 6)):
        label[slice_index].reshape(-1)[:n_labelled] = 7
    stack = slice_volume(volume_of(IMAGE, label=label), min_foreground=least)
    assert stack.kept == kept
    assert stack.label_counts == ({}, {7: 3}, {7: 6}, {}, {7: 6})
    assert slice_volume(volume_of(IMAGE), min_foreground=least).kept == (0, 1, 2, 3, 4)


def test_an_intensity_that_the_dtype_cannot_hold_is_refused_in_any_modality() -> None:
    volume = volume_of(IMAGE, IMAGE * 2000)
    for dtype, normalize in (("float32", "none"), ("float16", "zscore")):
        slice_volume(volume, normalize=normalize, dtype=dtype)
    with pytest.raises(NonFinite, match="over the largest float16"):
        slice_volume(volume, normalize="none", dtype="float16")


def test_nan_is_refused_or_taken_as_0() -> None:
    image = IMAGE.copy()
    image[2, 1, 1] = np.nan
    with pytest.raises(NonFinite, match="1 of 60 voxels"):
        slice_volume(volume_of(image))
    stack = slice_volume(volume_of(image), nonfinite="zero", normalize="none")
    ((_, (plane,)),) = stack.planes({2})
    assert plane[1, 1] == 0


def test_a_label_value_that_the_dtype_cannot_hold_is_refused() -> None:
    label = np.full((5, 4, 3), 300, np.int16)
    with pytest.raises(LabelValues, match="--label_dtype uint16"):
        slice_volume(volume_of(IMAGE, label=label))
    assert slice_volume(volume_of(IMAGE, label=label), label_dtype="uint16").label.max() == 300


def test_each_modality_has_its_own_settings() -> None:
    stack = slice_volume(
        volume_of(IMAGE, IMAGE),
        normalize=("none", "minmax"),
        clip_min=(10, None),
        clip_max=(None, 29.5),
    )
    (first, last) = (next(stack.planes({index}))[1] for index in (0, 4))
    assert (first[0].min(), last[0].max()) == (10, 59)
    assert (first[1].min(), last[1].max()) == (0, 1)
    assert stack.shape == (5, 4, 3)


def test_a_voxel_of_a_mirrored_grid_has_a_volume_too() -> None:
    assert voxel_volume(np.diag([-1.0, 2.0, 3.0, 1.0])) == pytest.approx(6)
