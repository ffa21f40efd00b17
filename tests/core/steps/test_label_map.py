"""Label maps and small components, against loops over voxels and scikit-image's rules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_slicer.core.steps.label_map import LabelMap, map_labels, remove_small_components
from dask_slicer.errors import LabelValues


@pytest.mark.parametrize(
    ("text", "pairs", "others"),
    [
        ("1,2:1 3:2", {"1": 1, "2": 1, "3": 2}, "fail"),
        ("1:1 *:0", {"1": 1}, "zero"),
        ("*:*  4:2", {"4": 2}, "keep"),
        ("*:0", {}, "zero"),
        ("liver , tumor : 1", {"liver": 1, "tumor": 1}, "fail"),
        ("0:5 1:0", {"0": 5, "1": 0}, "fail"),
        ("-1:255", {"-1": 255}, "fail"),
    ],
)
def test_parse(text, pairs, others) -> None:
    label_map = LabelMap.parse(text)
    assert (dict(label_map.pairs), label_map.others) == (pairs, others)
    assert LabelMap.parse(str(label_map)) == label_map


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1:",
        ":1",
        "1:a",
        "1,:2",
        "1:1 1:2",
        "*:1",
        "*,1:0",
        "*:0 *:*",
        "1:-1",
        "1:9999999999",
    ],
)
def test_no_label_map(text) -> None:
    with pytest.raises(ValueError, match=r"must be pairs|two new values"):
        LabelMap.parse(text)


def test_names() -> None:
    names = {0: "background", 1: "Kidney", 2: "tumor", 3: "cyst"}
    label_map = LabelMap.parse("kidney:1 2:1 *:*")
    assert label_map.values(names) == {1: 1, 2: 1}
    assert label_map.names(names) == {0: "background", 1: "Kidney+tumor", 3: "cyst"}
    assert LabelMap.parse("3:1 *:0").names(names) == {0: "background", 1: "cyst"}


def test_names_with_blanks_and_the_background() -> None:
    names = {0: "background", 1: "Kidney right", 2: "liver"}
    label_map = LabelMap.parse("background:0 kidney_right:1 *:0")
    assert label_map.values(names) == {0: 0, 1: 1}
    assert LabelMap.parse("0:0 1:1").values({}) == {0: 0, 1: 1}


@pytest.mark.parametrize("text", ["0:1 *:0", "0,5:1 *:0", "background:2 *:0"])
def test_the_background_stays_0(text) -> None:
    with pytest.raises(ValueError, match=r"label_map gives the background .* but it stays 0"):
        LabelMap.parse(text).values({0: "background", 5: "liver"})


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="no label is named tumour; did you mean tumor"):
        LabelMap.parse("tumour:1").values({1: "tumor"})
    with pytest.raises(ValueError, match="no label is named liver; names of this dataset: a, b"):
        LabelMap.parse("liver:1").values({1: "a", 2: "b"})
    with pytest.raises(ValueError, match="no label is named liver; give its value"):
        LabelMap.parse("liver:1").values({})
    with pytest.raises(ValueError, match=r"label_map gives 1 \(a\) two new values"):
        LabelMap.parse("1:2 a:3").values({1: "a"})


@pytest.mark.parametrize("largest", [9, 70_000, 2**30])
def test_values_are_replaced(largest) -> None:
    rng = np.random.default_rng(1)
    label = rng.choice([0, 1, 2, largest], size=(3, 4, 5))
    mapped, counts = map_labels(label, {1: 7, largest: 1}, others="keep", source="a.nii")
    expected = [{1: 7, largest: 1}.get(value, value) for value in label.ravel().tolist()]
    assert mapped.ravel().tolist() == expected
    assert counts == {value: int((label == value).sum()) for value in np.unique(label).tolist()}


def test_an_unlisted_value_fails() -> None:
    with pytest.raises(
        LabelValues, match=r"does not list 5, which a\.nii holds; list it, or add \*:0"
    ):
        map_labels(np.array([[[0, 1, 5]]]), {1: 1}, others="fail", source="a.nii")
    mapped, _ = map_labels(np.array([[[0, 1, 5]]]), {1: 1}, others="zero", source="a.nii")
    assert mapped.tolist() == [[[0, 1, 0]]]


def test_background_can_be_replaced() -> None:
    mapped, _ = map_labels(np.array([[[0, 1]]]), {0: 2}, others="zero", source="a.nii")
    assert mapped.tolist() == [[[2, 0]]]


def test_small_components_in_3d() -> None:
    label = np.zeros((3, 5, 5), dtype=np.uint8)
    label[0, 0, 0] = label[1, 1, 1] = label[2, 2, 2] = 1  # connected by corners
    label[0, 4, 4] = 1
    label[2, 0, 0] = 2
    label[2, 4, 3:] = 2
    result, n_removed = remove_small_components(label, voxels=2)
    assert n_removed == 2
    assert result[0, 4, 4] == result[2, 0, 0] == 0
    assert (result == 1).sum() == 3
    assert (result == 2).sum() == 2
    assert label[0, 4, 4] == 1  # the input is not changed


def test_small_components_of_a_slice() -> None:
    label = np.zeros((3, 5, 5), dtype=np.int32)
    label[:, 0, 0] = 1  # a column: one pixel in each slice
    label[1, 2:4, 2:4] = 100_000
    result, n_removed = remove_small_components(label, pixels=2)
    assert n_removed == 3
    assert np.unique(result).tolist() == [0, 100_000]


@given(seed=st.integers(0, 1000), voxels=st.integers(0, 9), pixels=st.integers(0, 4))
def test_components_that_stay_are_large(seed, voxels, pixels) -> None:
    rng = np.random.default_rng(seed)
    label = rng.choice([0, 0, 0, 1, 2], size=(4, 5, 6)).astype(np.uint8)
    result, n_removed = remove_small_components(label, voxels=voxels, pixels=pixels)
    assert n_removed == np.count_nonzero(result != label)
    assert ((result == label) | (result == 0)).all()
    if voxels < 2 and pixels < 2:
        assert n_removed == 0
    for plane in result if pixels >= 2 else []:
        for size in _component_sizes(plane[None]):
            assert size >= pixels
    if pixels < 2:
        assert all(size >= voxels for size in _component_sizes(result))


def _component_sizes(label: np.ndarray) -> list[int]:
    """Return the sizes of the components, by a search from voxel to voxel."""
    left = {tuple(place): label[tuple(place)] for place in np.argwhere(label)}
    sizes = []
    while left:
        place, value = left.popitem()
        waiting, size = [place], 0
        while waiting:
            z, y, x = waiting.pop()
            size += 1
            for neighbour in np.ndindex(3, 3, 3):
                other = (z + neighbour[0] - 1, y + neighbour[1] - 1, x + neighbour[2] - 1)
                if left.get(other) == value:
                    del left[other]
                    waiting.append(other)
        sizes.append(size)
    return sizes
