"""Steps together: an independent, slow implementation, and laws that hold for all of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from affines import oblique
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from dask_slicer.core.geometry import plane_orientation, reorient, spacing
from dask_slicer.core.slices import slice_volume
from dask_slicer.core.steps.grid import GridSteps
from dask_slicer.core.steps.selection import SliceRange
from dask_slicer.core.steps.steps import NO_STEPS, Steps
from dask_slicer.core.volume import Volume, Voxels
from dask_slicer.errors import GeometryMismatch, LabelValues, MissingLabel

SHAPE = (9, 12, 14)
SCAN = (12, 13, 14)  # of world coordinates
AFFINE = np.diag([3.0, 1.0, 1.5, 1.0])


def volume_of(
    image: np.ndarray, label: np.ndarray | None = None, affine: np.ndarray = AFFINE
) -> Volume:
    return Volume(
        image=(Voxels(stored=image),),
        label=None if label is None else Voxels(stored=label, source="label.nii"),
        affine=affine,
    )


def scan(seed: int = 1, shape: tuple[int, int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Return an image with zeros around it, and a label of three blobs."""
    rng = np.random.default_rng(seed)
    image = np.zeros(shape, np.int16)
    inside = tuple(slice(1, n - 1) for n in shape)
    image[inside] = rng.integers(1, 1000, size=image[inside].shape)
    label = np.zeros(shape, np.uint8)
    label[2:6, 3:8, 3:9] = 1
    label[4:7, 5:9, 6:11] = 2
    label[3, 4, 4] = 3
    return image, label


def planes_of(stack) -> np.ndarray:
    planes = stack.planes(range(stack.shape[0]))
    return np.stack([channels for _, channels in planes], axis=1)


def test_no_steps_change_nothing() -> None:
    image, label = scan()
    stack = slice_volume(volume_of(image, label), normalize="none")
    np.testing.assert_array_equal(planes_of(stack)[0], image)
    np.testing.assert_array_equal(stack.label, label)
    assert stack.changes() == {}
    assert stack.kept == tuple(range(9))


def test_label_map_comes_before_the_crop() -> None:
    image, label = scan()
    steps = Steps(label_values={2: 7}, other_labels="zero", crop="label")
    stack = slice_volume(volume_of(image, label), normalize="none", steps=steps)
    where = np.nonzero(label == 2)
    box = tuple(slice(axis.min(), axis.max() + 1) for axis in where)
    np.testing.assert_array_equal(planes_of(stack)[0], image[box])
    np.testing.assert_array_equal(stack.label, np.where(label[box] == 2, 7, 0))
    corner = AFFINE @ [*(part.start for part in box), 1]
    np.testing.assert_allclose(stack.affine[:, 3], corner)
    assert stack.changes()["mapped_voxels"] == {
        str(value): int((label == value).sum()) for value in range(4)
    }


def test_statistics_are_those_of_the_crop() -> None:
    image, label = scan()
    stack = slice_volume(volume_of(image, label), steps=Steps(crop="label"))
    inside = image[2:7, 3:9, 3:11].astype(np.float64)
    foreground = inside[inside > inside.min()]
    assert stack.statistics[0].mean == pytest.approx(foreground.mean())
    assert stack.statistics[0].std == pytest.approx(foreground.std())


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal", "i", "j", "k"])
@pytest.mark.parametrize("signs", [*itertools.product((1, -1), repeat=3)])
@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_a_box_counts_voxels_of_the_file(order, signs, plane) -> None:
    """The same box of the file's axes is cut out, whatever the orientation: all 48, six planes."""
    rng = np.random.default_rng(1)
    stored = rng.integers(0, 1000, size=(7, 8, 9)).astype(np.int16)
    directions = np.eye(3)[list(order)].T * signs
    affine = np.eye(4)
    affine[:3, :3] = directions * (1.0, 2.0, 3.0)
    orientation = plane_orientation(affine, plane)
    box = ((1, 4), (2, 7), (3, 5))
    volume = Volume(
        image=(Voxels(stored=reorient(stored, orientation)),),
        label=None,
        affine=np.eye(4),
        orientation=orientation,
    )
    stack = slice_volume(volume, normalize="none", steps=Steps(crop=box))
    expected = reorient(stored[1:4, 2:7, 3:5], orientation)
    np.testing.assert_array_equal(planes_of(stack)[0], expected)


def test_normalised_intensities_are_resampled() -> None:
    image, label = scan()
    steps = Steps(spacing=(2.0, None, 1.0), resample_order=1)
    stack = slice_volume(volume_of(image, label), steps=steps)
    foreground = image[image > 0].astype(np.float64)
    scaled = (image - foreground.mean()) / foreground.std()
    shape = (round(9 * 3 / 2), 12, 21)
    assert stack.shape == shape
    expected = ndimage.zoom(
        scaled, np.divide(shape, SHAPE), order=1, mode="nearest", grid_mode=True
    )
    np.testing.assert_allclose(planes_of(stack)[0], expected, atol=1e-5)
    np.testing.assert_allclose(spacing(stack.affine), np.multiply((3, 1, 1.5), SHAPE) / shape)


def test_8_bit_after_resampling_is_whole_and_in_its_range() -> None:
    image, label = scan()
    steps = Steps(spacing=(1.0, 0.7, 0.7))
    stack = slice_volume(volume_of(image, label), dtype="uint8", clip_max=700.0, steps=steps)
    planes = planes_of(stack)
    assert (planes == np.rint(planes)).all()
    assert (planes.min(), planes.max()) == (0, 255)


def test_windows_come_before_modalities() -> None:
    image, _ = scan()
    volume = Volume(
        image=(Voxels(stored=image), Voxels(stored=image, intercept=100.0)),
        label=None,
        affine=AFFINE,
    )
    stack = slice_volume(
        volume, normalize="none", steps=Steps(ct_windows=((0.0, 500.0), (200.0, 900.0)))
    )
    expected = [
        (np.clip(values.astype(float), low, high) - low) / (high - low)
        for low, high in ((0, 500), (200, 900))
        for values in (image, image + 100)
    ]
    np.testing.assert_allclose(planes_of(stack), expected, atol=1e-6)


@pytest.mark.parametrize(("clip_min", "slope"), [(None, 1.0), (50.0, 1.0), (None, -1.0)])
def test_padding_has_the_lowest_value_after_clipping(clip_min, slope) -> None:
    image, label = scan()
    volume = Volume(
        image=(Voxels(stored=image, slope=slope),),
        label=Voxels(stored=label),
        affine=AFFINE,
    )
    steps = Steps(size=(20, 10))
    stack = slice_volume(volume, normalize="none", clip_min=clip_min, steps=steps)
    planes = planes_of(stack)[0]
    lowest = (image * slope).clip(clip_min, None).min()
    assert (planes[:, :4] == lowest).all()
    assert (planes[:, 16:] == lowest).all()
    np.testing.assert_array_equal(planes[:, 4:16], (image * slope).clip(clip_min, None)[:, :, 2:12])
    assert not stack.label[:, :4].any()
    assert stack.image[0].stored.dtype == np.int16  # integers stay integers


def test_lost_labels_are_counted() -> None:
    image, label = scan()
    stack = slice_volume(volume_of(image, label), steps=Steps(size=(4, 14)))
    cut = label.copy()
    cut[:, 4:8] = 0
    assert stack.changes()["lost_voxels"] == {
        str(value): int((cut == value).sum()) for value in (1, 2, 3) if (cut == value).any()
    }
    coarse = slice_volume(volume_of(image, label), steps=Steps(spacing=(9.0, 4.0, 6.0)))
    assert coarse.changes()["lost_voxels"]["3"] == 1


def test_the_middle_of_the_label() -> None:
    image, label = scan()
    for steps in (
        Steps(size=(5, 5), center="label"),
        Steps(crop="nonzero", size=(5, 5), center="label"),
    ):
        stack = slice_volume(volume_of(image, label), normalize="none", steps=steps)
        first = np.linalg.inv(AFFINE) @ stack.affine[:, 3]
        # The label is in rows 3 to 8 and columns 3 to 10.
        assert first[1:3].round(6).tolist() == [3, 4]


def test_what_needs_a_label_fails_without_one() -> None:
    image, _ = scan()
    for steps in (
        Steps(crop="label"),
        Steps(size=(4, 4), center="label"),
        Steps(foreground="label"),
    ):
        with pytest.raises(MissingLabel):
            slice_volume(volume_of(image), steps=steps)


def test_new_label_values_must_fit() -> None:
    image, label = scan()
    with pytest.raises(LabelValues, match=r"does not list 2, 3, which label\.nii holds"):
        slice_volume(volume_of(image, label), steps=Steps(label_values={1: 1}))
    with pytest.raises(LabelValues, match="label_dtype"):
        slice_volume(
            volume_of(image, label), steps=Steps(label_values={1: 300}, other_labels="keep")
        )


def test_a_box_outside_the_scan() -> None:
    image, _ = scan()
    with pytest.raises(GeometryMismatch, match="holds no voxel"):
        slice_volume(volume_of(image), steps=Steps(crop=((9, 12), (0, 4), (0, 4))))


def test_blank_slices() -> None:
    image, _ = scan()
    image[4] = 7
    stack = slice_volume(volume_of(image), clip_max=500.0, steps=Steps(drop_blank=True))
    assert stack.kept == (1, 2, 3, 5, 6, 7)
    image[5] = 600  # all of it is clipped
    stack = slice_volume(volume_of(image), clip_max=500.0, steps=Steps(drop_blank=True))
    assert stack.kept == (1, 2, 3, 6, 7)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("order", [3, 1])
@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        pytest.param({"spacing": (1.5, None, None)}, range(23, 57), id="resampled"),
        pytest.param({"spacing": (None, 0.7, 0.7)}, range(12, 28), id="rows and columns"),
        pytest.param({"size": (12, 10)}, range(12, 28), id="padded"),
        pytest.param({"size": (12, 10), "fit": "letterbox"}, range(12, 28), id="letterbox"),
        pytest.param({"spacing": (1.5, None, None), "size": (9, 9)}, range(23, 57), id="both"),
    ],
)
def test_a_slice_between_blank_ones_is_blank(steps, kept, order, dtype) -> None:
    image = np.full((40, 6, 8), -3, np.int16)
    image[12:28] = np.random.default_rng(2).integers(0, 1000, (16, 6, 8))
    image[20, 0, 0] = -1000  # what is padded
    settings = Steps(**steps, drop_blank=True, resample_order=order)
    stack = slice_volume(volume_of(image), dtype=dtype, steps=settings)
    assert stack.kept == tuple(kept)


def test_a_slice_with_nan_is_not_blank() -> None:
    image = np.zeros((3, 4, 5), np.float32)
    image[1, 2], image[1, 0, 0], image[2, 0] = 9, np.nan, np.nan
    stack = slice_volume(volume_of(image), nonfinite="zero", steps=Steps(drop_blank=True))
    assert stack.kept == (1,)


RNG = np.random.default_rng(5)
NOISE = RNG.normal(size=(4, 5, 6)).astype(np.float32)
ODD_IMAGES = {
    "one slice": NOISE[:1],
    "one row": NOISE[:, :1],
    "one column": NOISE[:, :, :1],
    "one voxel": np.full((1, 1, 1), 7, np.int16),
    "constant": np.full((4, 5, 6), 7, np.int16),
    "zeros": np.zeros((4, 5, 6), np.float32),
    "other byte order": (100 * NOISE).astype(">i2"),
    "uint16": RNG.integers(0, 60_000, (4, 5, 6)).astype(np.uint16),
    "int64": RNG.integers(-(2**40), 2**40, (4, 5, 6)),
    "far from zero": 1e6 + NOISE.astype(np.float64),
    "nan": np.where(NOISE > 0.5, np.nan, NOISE),
    "nothing but nan": np.full((4, 5, 6), np.nan, np.float32),
    "inf": np.where(NOISE > 0.5, np.inf, NOISE).astype(">f8"),
}


@pytest.mark.parametrize("image", ODD_IMAGES.values(), ids=ODD_IMAGES)
def test_odd_images(image) -> None:
    labels = (np.zeros(image.shape, np.uint8), (np.arange(image.size) % 3 > 1).astype(np.uint8))
    combinations = itertools.product(
        [label.reshape(image.shape) for label in labels],
        ["float32", "uint8"],
        [None, (0.7, 0.3, 0.4), (99.0, 99.0, 99.0)],
        [None, (4, 11)],
        ["min", "nonzero", "label", "otsu"],
        [None, (0.5, 99.5)],
    )
    # One in five: all values of any two settings are among them.
    for label, dtype, spacing_wanted, size, foreground, percentiles in [*combinations][::5]:
        steps = Steps(
            spacing=spacing_wanted,
            size=size,
            crop="label" if foreground == "label" else "nonzero",
            foreground=foreground,
            percentiles=percentiles,
            center="label",
            drop_blank=True,
        )
        stack = slice_volume(
            volume_of(image, label), dtype=dtype, nonfinite="zero", label_dtype="uint8", steps=steps
        )
        planes = planes_of(stack)[0]
        assert planes.shape == stack.label.shape
        assert np.isfinite(planes).all()
        if dtype == "uint8":
            assert np.isin(planes, np.arange(256)).all()


def test_selection_after_the_other_steps() -> None:
    image, label = scan()
    steps = Steps(
        spacing=(1.5, None, None), slices=SliceRange.parse("2:-2"), stride=3, keep_empty=0.0
    )
    stack = slice_volume(volume_of(image, label), steps=steps)
    assert stack.shape[0] == 18
    labelled = [index for index in range(2, 16, 3) if stack.label[index].any()]
    assert list(stack.kept) == labelled
    listed = slice_volume(volume_of(image, label), steps=Steps(listed=frozenset({8, 2})))
    assert listed.kept == (2, 8)
    with pytest.raises(GeometryMismatch, match="names slice 9, but there are 9 slices"):
        slice_volume(volume_of(image, label), steps=Steps(listed=frozenset({9})))


# -- laws ------------------------------------------------------------------------------------------


@st.composite
def any_steps(draw: st.DrawFn) -> Steps:
    size = draw(st.none() | st.tuples(st.integers(1, 20), st.integers(1, 20)))
    fit = draw(st.sampled_from(["crop_pad", "resize", "letterbox"]))
    return Steps(
        label_values=draw(st.none() | st.just({1: 2, 3: 1})),
        other_labels="keep",
        min_component_voxels=draw(st.integers(0, 5)),
        crop=draw(st.sampled_from([None, "nonzero", "label", ((1, 7), (0, 11), (2, 14))])),
        crop_margin=draw(st.sampled_from([0.0, 2.5])),
        percentiles=draw(st.none() | st.just((1.0, 99.0))),
        foreground=draw(st.sampled_from(["min", "all", "nonzero", "label", "otsu"])),
        spacing=draw(st.none() | st.tuples(*[st.none() | st.floats(0.4, 6.0)] * 3).filter(any)),
        resample_order=draw(st.sampled_from([3, 1, 0])),
        size=size,
        fit=fit,
        center=draw(st.sampled_from(["volume", "label"])) if fit == "crop_pad" else "volume",
        slices=draw(st.none() | st.just(SliceRange.parse("10%:90%"))),
        stride=draw(st.integers(1, 3)),
        keep_empty=draw(st.sampled_from([1.0, 0.5, 0.0])),
        drop_blank=draw(st.booleans()),
        case_id="a",
    )


@settings(max_examples=60)
@given(steps=any_steps(), dtype=st.sampled_from(["float32", "uint8"]), seed=st.integers(0, 9))
def test_laws(steps, dtype, seed) -> None:
    image, label = scan(seed)
    affine = oblique()
    stack = slice_volume(
        volume_of(image, label, affine), dtype=dtype, normalize="zscore", steps=steps
    )
    planes = planes_of(stack)[0]
    assert planes.shape == stack.shape == stack.label.shape
    assert np.isfinite(planes).all()
    assert set(np.unique(stack.label)) <= {0, 1, 2, 3}
    assert list(stack.kept) == sorted(set(stack.kept))
    assert all(0 <= index < stack.shape[0] for index in stack.kept)
    for counts, plane in zip(stack.label_counts, stack.label, strict=True):
        values, n = np.unique(plane[plane > 0], return_counts=True)
        assert counts == dict(zip(values.tolist(), n.tolist(), strict=True))
    # The grid is the one that its record gives, and leads back to that of the scan.
    grid = stack.grid
    assert GridSteps.parse(grid.as_json()) == grid
    np.testing.assert_allclose(grid.affine(affine), stack.affine)
    np.testing.assert_allclose(grid.spacing(spacing(affine)), spacing(stack.affine))
    restored = grid.restored_label(stack.label)
    assert restored.shape == SHAPE
    assert grid.restored_image(planes).shape == SHAPE
    if not grid.interpolates and steps.label_values is None and not steps.min_component_voxels:
        assert ((restored == label) | (restored == 0)).all()


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"full": [4, 5]},
        {"full": [4, 5, 6], "box": [[0, 4]]},
        {"full": [4, 5, 6], "resampled": 4},
        {"full": [4, 5, 6], "size": [8, 8]},
    ],
    ids=str,
)
def test_a_damaged_record_of_the_grid_is_refused(content) -> None:
    with pytest.raises(ValueError, match="damaged"):
        GridSteps.parse(content)


@settings(max_examples=40)
@example(target=(1.0, 3.0, 1.0), size=(4, 4), fit="resize", degrees=1.0)
@given(
    target=st.tuples(*[st.floats(0.5, 5.0)] * 3),
    size=st.none() | st.tuples(st.integers(4, 24), st.integers(4, 24)),
    fit=st.sampled_from(["crop_pad", "resize", "letterbox"]),
    degrees=st.floats(-60, 60),
)
def test_world_coordinates_stay(target, size, fit, degrees) -> None:
    """A volume whose values are its own world coordinates keeps them away from the edges."""
    affine = oblique(degrees)
    index = np.indices(SCAN).reshape(3, -1)
    world = (affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *SCAN)
    for axis in range(3):
        volume = volume_of(world[axis].astype(np.float32), affine=affine)
        steps = Steps(spacing=target, size=size, fit=fit, resample_order=1)
        stack = slice_volume(volume, normalize="none", steps=steps)
        found = planes_of(stack)[0]
        index = np.indices(stack.shape).reshape(3, -1)
        places = stack.affine[:3, :3] @ index + stack.affine[:3, 3:]
        expected = places[axis].reshape(stack.shape)
        stored = np.linalg.inv(affine)[:3, :3] @ (places - affine[:3, 3:])
        # Away from the edges of the scan: linear functions are interpolated exactly there, but
        # means over several voxels, and the nearest slice, are not.
        margin = np.maximum(1.5, np.divide(spacing(stack.affine), spacing(affine)) + 1)[:, None]
        inside = ((stored > margin) & (stored < np.array([[11], [12], [13]]) - margin)).all(axis=0)
        inside = inside.reshape(stack.shape)
        error = np.abs(found - expected)[inside]
        if not error.size:
            continue
        slack = 0.02
        sized = stack.grid.in_plane
        if sized is not None and any(np.less(sized.resized, sized.shape)):
            # A filter against aliasing, whose weights are cut to whole pixels: 0.09 of a pixel.
            mm = np.multiply(spacing(affine), SCAN) / (stack.grid.resampled or SCAN)
            slack += 0.09 * mm[1:].sum()
        if stack.grid.nearest_axis is not None:
            slack += max(spacing(affine)) / 2 + max(spacing(stack.affine)) / 2
        assert error.max() < slack


def test_no_steps_are_the_default() -> None:
    assert Steps() == NO_STEPS
