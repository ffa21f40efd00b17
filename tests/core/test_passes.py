"""Passes over arrays that memory does not hold: the same results as over those in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dask_slicer.core import ranks, volume
from dask_slicer.core.foreground import foreground_mask, foreground_statistics, sample_intensities
from dask_slicer.core.intensity import normalization
from dask_slicer.core.labels import convert_label, looks_like_labels
from dask_slicer.core.masks import merge_masks
from dask_slicer.core.ranks import values_at
from dask_slicer.core.statistics import statistics
from dask_slicer.core.steps.cropping import label_box, nonzero_box
from dask_slicer.core.steps.label_map import map_labels, remove_small_components
from dask_slicer.core.steps.operators import antialiased, apply_operators, interpolation
from dask_slicer.core.steps.resampling import count_voxels, resample_label
from dask_slicer.core.steps.sizing import fit_in_plane, size_image, size_label
from dask_slicer.core.volume import (
    Voxels,
    extremes,
    in_memory_order,
    iterate_planes,
    laid_out,
    planes_to_write,
    slabs,
    zeros_like,
)
from dask_slicer.errors import LabelValues, NonFinite
from dask_slicer.utils.mapped import mapping_of, scratch_dir_of, scratch_file

Array = NDArray[Any]
SHAPE = (9, 11, 13)
VIEWS: dict[str, Callable[[Array], Array]] = {
    "as in memory": lambda stored: stored,
    "interleaved": lambda stored: stored.transpose(2, 0, 1),
    "in between": lambda stored: stored.transpose(1, 0, 2)[::-1],
    "flipped": lambda stored: stored[::-1, :, ::-1],
    "cropped": lambda stored: stored[1:7, 2:, 3:-2],
    "cropped and interleaved": lambda stored: stored[1:7, 2:, 3:-2].transpose(2, 1, 0)[::-1],
    "a line": lambda stored: stored[:, :1, :1],
    "a plane": lambda stored: stored[2:3],
}
each_view = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume, "_AT_ONCE", 700)


@pytest.fixture
def in_scratch(tmp_path: Path) -> Callable[[Array], Array]:
    """Return a function that copies an array into a scratch file."""

    def copied(array: Array) -> Array:
        target = scratch_file(array.nbytes, str(tmp_path)).view(array.dtype).reshape(array.shape)
        target[...] = array
        return target

    return copied


def numbers(dtype: str) -> Array:
    rng = np.random.default_rng(5)
    values = rng.normal(40, 300, SHAPE).clip(-900, 900)
    values[values < -200] = -200
    return values.astype(dtype)


def label_of(dtype: str = "uint8") -> Array:
    label = np.zeros(SHAPE, dtype)
    label[2:7, 3:9, 2:6] = 1
    label[3:6, 2:5, 7:12] = 2
    label[8, 10, 12] = 3
    return label


@each_view
def test_every_plane_is_read_once_in_order(
    in_scratch: Callable[[Array], Array], view: Callable[[Array], Array]
) -> None:
    small = view(numbers("int16"))
    large = view(in_scratch(numbers("int16")))
    for planes in (iterate_planes(large), planes_to_write(large)):
        assert np.array_equal(np.stack([plane.copy() for plane in planes]), small)


@each_view
@pytest.mark.parametrize("size", [1, 10, 64, 5000])
def test_slabs_are_those_of_an_array_in_memory(
    in_scratch: Callable[[Array], Array], view: Callable[[Array], Array], size: int
) -> None:
    expected = [slab.tolist() for slab in slabs(view(numbers("int16")), size)]
    assert [slab.tolist() for slab in slabs(view(in_scratch(numbers("int16"))), size)] == expected
    flat = in_memory_order(view(numbers("int16"))).reshape(-1).tolist()
    assert [number for slab in expected for number in slab] == flat
    assert all(len(slab) == size for slab in expected[:-1])


@each_view
def test_what_is_written_to_planes_stays(
    in_scratch: Callable[[Array], Array], view: Callable[[Array], Array]
) -> None:
    large = view(in_scratch(numbers("int16")))
    for index, plane in enumerate(planes_to_write(large)):
        plane[...] = index
    assert all((plane == index).all() for index, plane in enumerate(large))


@each_view
def test_slices_are_laid_out_one_after_another(
    in_scratch: Callable[[Array], Array], view: Callable[[Array], Array]
) -> None:
    large = view(in_scratch(numbers("int16")))
    result = laid_out(large)
    assert np.array_equal(result, view(numbers("int16")))
    assert abs(result.strides[0]) == max(map(abs, result.strides))
    assert scratch_dir_of(result)


@each_view
def test_zeros_have_the_order_of_the_array(
    in_scratch: Callable[[Array], Array], view: Callable[[Array], Array]
) -> None:
    small, large = view(numbers("int16")), view(in_scratch(numbers("int16")))
    expected, zeros = zeros_like(small, np.uint8), zeros_like(large, np.uint8)
    assert zeros.strides == expected.strides
    assert zeros.shape == small.shape
    assert not zeros.any()
    assert scratch_dir_of(zeros)


@each_view
@pytest.mark.parametrize("dtype", ["uint8", ">i2", "int32", "float32", ">f8"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"clip_min": -100, "clip_max": 150},
        {"percentiles": (0.5, 99.5)},
        {"percentiles": (3.0, 70.0), "clip_max": 100},
        {"percentiles": (10.0, 90.0), "all_voxels": True},
    ],
    ids=str,
)
def test_statistics_are_the_same_to_the_last_bit(
    in_scratch: Callable[[Array], Array],
    view: Callable[[Array], Array],
    dtype: str,
    settings: dict[str, Any],
) -> None:
    stored = numbers("float64").clip(0, 250).astype(dtype) if dtype == "uint8" else numbers(dtype)
    for slope, intercept in ((1.0, 0.0), (-0.5, 3.0)):
        small, large = (
            Voxels(stored=view(array), slope=slope, intercept=intercept)
            for array in (stored, in_scratch(stored))
        )
        assert statistics(large, **settings) == statistics(small, **settings)
        for which in ("nonzero", "positive", "otsu"):
            masks = [foreground_mask(voxels, which) for voxels in (small, large)]
            assert np.array_equal(*masks)
            assert scratch_dir_of(masks[1])
            clip = {key: value for key, value in settings.items() if key != "all_voxels"}
            assert foreground_statistics(large, masks[1], **clip) == foreground_statistics(
                small, masks[0], **clip
            )


def test_nan_is_refused_or_counts_as_0(in_scratch: Callable[[Array], Array]) -> None:
    stored = numbers("float32")
    stored[3, 4, 5] = np.nan
    stored[3, 4, 6] = np.inf
    small, large = Voxels(stored=stored), Voxels(stored=in_scratch(stored))
    with pytest.raises(NonFinite, match="2 of 1287"):
        statistics(large)
    settings: dict[str, Any] = {"zero_nonfinite": True, "percentiles": (1.0, 99.0)}
    assert statistics(large, **settings) == statistics(small, **settings)


@pytest.mark.parametrize("few", [0, 3, 1 << 19])
@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(1).normal(size=3000),
        np.random.default_rng(2).integers(-3, 4, 3000).astype(float),
        np.array([0.0, -0.0, 5e-324, -5e-324, 1e308, -1e308, 1.0]),
        np.full(50, 7.25),
        np.array([-1.0]),
        1 + np.arange(300) * 2.0**-52,
    ],
    ids=["normal", "integers", "extremes", "constant", "single", "neighbours"],
)
def test_values_of_ranks_are_those_of_a_sorted_array(
    monkeypatch: pytest.MonkeyPatch, values: NDArray[np.float64], few: int
) -> None:
    monkeypatch.setattr(ranks, "_FEW", few)
    wanted = sorted({0, len(values) // 3, len(values) // 2, len(values) - 1})
    ordered = np.sort(values)
    result = values_at(lambda: np.array_split(values, 4), wanted)
    assert list(result) == wanted
    assert [result[rank] for rank in wanted] == [ordered[rank] for rank in wanted]
    assert not any(np.signbit(value) and value == 0 for value in result.values())


@each_view
def test_extremes_are_those_of_all_voxels(
    in_scratch: Callable[[Array], Array], view: Callable[[Array], Array]
) -> None:
    small = view(numbers("int16"))
    assert extremes(view(in_scratch(numbers("int16")))) == (small.min(), small.max())
    assert extremes(small) == (small.min(), small.max())


@each_view
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
def test_labels_are_the_same(
    in_scratch: Callable[[Array], Array], view: Callable[[Array], Array], dtype: str
) -> None:
    for stored in (label_of(), label_of("float32"), label_of(">i4")):
        small, large = (Voxels(stored=view(array)) for array in (stored, in_scratch(stored)))
        expected, label = convert_label(small, dtype), convert_label(large, dtype)
        assert label.dtype == expected.dtype
        assert np.array_equal(label, expected)
        assert scratch_dir_of(label)
        assert count_voxels(label) == count_voxels(expected)
        assert label_box(label) == label_box(expected)
        assert nonzero_box([large]) == nonzero_box([small])


@each_view
def test_changed_labels_are_the_same(
    in_scratch: Callable[[Array], Array], view: Callable[[Array], Array]
) -> None:
    for top in (3, 900_000):
        stored = label_of("int32")
        stored[stored == 3] = top
        small, large = view(stored), view(in_scratch(stored))
        new_of = {1: 5, 2: 5}
        expected, n_voxels = map_labels(small, new_of, others="keep", source="a")
        mapped, same = map_labels(large, new_of, others="keep", source="a")
        assert np.array_equal(mapped, expected)
        assert same == n_voxels
        assert scratch_dir_of(mapped)
        for kwargs in ({"voxels": 3}, {"pixels": 12}):
            expected_label, n_removed = remove_small_components(small, **kwargs)
            label, n = remove_small_components(large, **kwargs)
            assert np.array_equal(label, expected_label)
            assert n == n_removed


def test_masks_are_merged_into_the_same_label(in_scratch: Callable[[Array], Array]) -> None:
    masks = [(label_of() == value).astype(np.uint8) * 255 for value in (1, 2)]
    masks[1][4:6, 4:6, 4:6] = 255
    for view in VIEWS.values():
        results = [
            merge_masks(
                ((value + 1, Voxels(stored=view(copy(mask)))) for value, mask in enumerate(masks)),
                like=view(copy(numbers("int16"))),
                largest=2,
            )
            for copy in (np.copy, in_scratch)
        ]
        assert np.array_equal(results[0][0], results[1][0])
        assert results[0][1] == results[1][1]
        assert results[0][0].strides == results[1][0].strides
        assert scratch_dir_of(results[1][0])
    with pytest.raises(LabelValues, match="found 0, 1, 2, 3"):
        merge_masks([(1, Voxels(stored=in_scratch(label_of())))], like=label_of(), largest=1)


@pytest.mark.parametrize("seed", range(6))
def test_samples_are_the_same(in_scratch: Callable[[Array], Array], seed: int) -> None:
    label = (np.random.default_rng(seed).random(SHAPE) < seed / 5).astype(np.uint8)
    image = numbers("float32")
    for view in VIEWS.values():
        small, large = (
            sample_intensities(
                [Voxels(stored=view(copy(image)), slope=2.0)],
                view(copy(label)),
                n=500,
                case_id=f"case {seed}",
            )
            for copy in (np.copy, in_scratch)
        )
        assert np.array_equal(small, large)
        labelled = view(image)[view(label) != 0] * 2
        digest = hashlib.sha256(f"case {seed}".encode()).digest()
        rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))
        n = 500 if labelled.size else 0
        expected = labelled[(rng.random(n) * labelled.size).astype(int)]
        assert np.array_equal(large, [expected])


@each_view
@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("factors", [(2, 1, 1), (0.5, 1.5, 1), (1, 0.7, 2), (1.4, 0.6, 1.7)])
def test_volumes_are_resampled_to_the_same_numbers(
    in_scratch: Callable[[Array], Array],
    view: Callable[[Array], Array],
    order: int,
    factors: tuple[float, float, float],
) -> None:
    small, large = view(numbers("float32")), view(in_scratch(numbers("float32")))
    shape = [max(round(n * f), 1) for n, f in zip(small.shape, factors, strict=True)]
    operators = [interpolation(n, m, order=order) for n, m in zip(small.shape, shape, strict=True)]
    result = apply_operators(large, operators)
    assert result.tobytes() == apply_operators(small, operators).tobytes()
    assert scratch_dir_of(result)
    operators = [None, *(antialiased(n, m) for n, m in zip(small.shape[1:], (8, 6), strict=True))]
    assert (
        apply_operators(large, operators).tobytes() == apply_operators(small, operators).tobytes()
    )
    label, large_label = view(label_of()), view(in_scratch(label_of()))
    expected, lost = resample_label(label, shape)
    result_label, same = resample_label(large_label, shape)
    assert np.array_equal(result_label, expected)
    assert lost == same


@each_view
@pytest.mark.parametrize("fit", ["crop_pad", "resize", "letterbox"])
def test_planes_get_the_same_size(
    in_scratch: Callable[[Array], Array], view: Callable[[Array], Array], fit: str
) -> None:
    small, large = view(numbers("int16")), view(in_scratch(numbers("int16")))
    in_plane = fit_in_plane(small.shape[1:], (8, 12), fit=fit)
    result = size_image(large, in_plane, fill=-200)
    assert result.tobytes() == size_image(small, in_plane, fill=-200).tobytes()
    assert scratch_dir_of(result)
    label, large_label = view(label_of()), view(in_scratch(label_of()))
    sized, lost = size_label(large_label, in_plane)
    expected, same = size_label(label, in_plane)
    assert np.array_equal(sized, expected)
    assert lost == same


def test_what_is_in_memory_stays_there() -> None:
    stored, label = numbers("float32"), label_of()
    voxels = Voxels(stored=stored)
    arrays = [
        foreground_mask(voxels, "otsu"),
        convert_label(Voxels(stored=label), "int32"),
        apply_operators(stored, [interpolation(9, 4, order=3), None, None]),
        laid_out(stored.T),
        zeros_like(stored, np.uint8),
        resample_label(label, (4, 5, 6))[0],
    ]
    assert [mapping_of(array) for array in arrays] == [None] * len(arrays)


@pytest.mark.parametrize("kind", ["blobs", "noise", "smooth", "stripes", "constant planes"])
def test_what_looks_like_labels_does_so_in_a_file(
    in_scratch: Callable[[Array], Array], kind: str
) -> None:
    rng = np.random.default_rng(8)
    grid = np.indices((20, 21, 22)).sum(axis=0)
    stored = {
        "blobs": grid // 8,
        "noise": rng.integers(0, 40, grid.shape),
        "smooth": grid,
        "stripes": np.arange(22) * 100 + np.zeros((20, 21, 1), int),
        "constant planes": np.arange(20)[:, None, None] % 3 + np.zeros((1, 21, 22), int),
    }[kind].astype(np.int16)
    for view in VIEWS.values():
        assert looks_like_labels(view(in_scratch(stored))) == looks_like_labels(view(stored))


def test_a_normalisation_is_the_same(in_scratch: Callable[[Array], Array]) -> None:
    small, large = numbers("int16"), in_scratch(numbers("int16"))
    for method in ("zscore", "minmax", "percentile", "uint8"):
        assert normalization(Voxels(stored=small), method, label=label_of()) == normalization(
            Voxels(stored=large), method, label=in_scratch(label_of())
        )
