"""Windows against tables written by hand, a naive loop, and numpy.pad."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_slicer.core.windows import PADDING_MODES, ZERO_SLICE, context_step, window_indices

Z = ZERO_SLICE
NUMPY_MODES = {"zero": "constant", "replicate": "edge", "mirror": "reflect"}

# Five slices, two neighbours on each side: slice_index, then what the window holds.
FIVE_SLICES = {
    "zero": {
        0: [Z, Z, 0, 1, 2],
        1: [Z, 0, 1, 2, 3],
        2: [0, 1, 2, 3, 4],
        3: [1, 2, 3, 4, Z],
        4: [2, 3, 4, Z, Z],
    },
    "replicate": {
        0: [0, 0, 0, 1, 2],
        1: [0, 0, 1, 2, 3],
        2: [0, 1, 2, 3, 4],
        3: [1, 2, 3, 4, 4],
        4: [2, 3, 4, 4, 4],
    },
    "mirror": {
        0: [2, 1, 0, 1, 2],
        1: [1, 0, 1, 2, 3],
        2: [0, 1, 2, 3, 4],
        3: [1, 2, 3, 4, 3],
        4: [2, 3, 4, 3, 2],
    },
}


@pytest.mark.parametrize(
    ("padding_mode", "slice_index", "expected"),
    [
        pytest.param(mode, slice_index, expected, id=f"{mode}-{slice_index}")
        for mode, table in FIVE_SLICES.items()
        for slice_index, expected in table.items()
    ],
)
def test_a_window_of_five_slices_is_what_the_table_says(
    padding_mode: str, slice_index: int, expected: list[int]
) -> None:
    found = window_indices(slice_index, n_slices=5, window_size=2, padding_mode=padding_mode)
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("padding_mode", "n_slices", "expected"),
    [
        pytest.param("zero", 1, [Z, Z, Z, 0, Z, Z, Z], id="zero-one_slice"),
        pytest.param("replicate", 1, [0, 0, 0, 0, 0, 0, 0], id="replicate-one_slice"),
        pytest.param("mirror", 1, [0, 0, 0, 0, 0, 0, 0], id="mirror-one_slice"),
        pytest.param("zero", 2, [Z, Z, Z, 0, 1, Z, Z], id="zero-two_slices"),
        pytest.param("replicate", 2, [0, 0, 0, 0, 1, 1, 1], id="replicate-two_slices"),
        pytest.param("mirror", 2, [1, 0, 1, 0, 1, 0, 1], id="mirror-two_slices"),
        pytest.param("mirror", 3, [1, 2, 1, 0, 1, 2, 1], id="mirror-three_slices"),
    ],
)
def test_a_window_may_reach_beyond_both_ends_of_the_volume(
    padding_mode: str, n_slices: int, expected: list[int]
) -> None:
    found = window_indices(0, n_slices=n_slices, window_size=3, padding_mode=padding_mode)
    assert found.tolist() == expected


@pytest.mark.parametrize("n_slices", [5, 6, 40], ids="{}_slices".format)
def test_mirror_puts_slice_1_below_the_first_and_slice_d_minus_2_above_the_last(
    n_slices: int,
) -> None:
    lowest = window_indices(0, n_slices=n_slices, window_size=1, padding_mode="mirror")
    highest = window_indices(n_slices - 1, n_slices=n_slices, window_size=1, padding_mode="mirror")
    assert lowest.tolist() == [1, 0, 1]
    assert highest.tolist() == [n_slices - 2, n_slices - 1, n_slices - 2]


def test_the_edge_slice_is_repeated_by_default() -> None:
    assert window_indices(0, n_slices=3, window_size=1).tolist() == [0, 0, 1]


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@given(n_slices=st.integers(1, 12), window_size=st.integers(0, 6))
def test_windows_are_those_of_a_volume_padded_by_numpy(
    padding_mode: str, n_slices: int, window_size: int
) -> None:
    volume = np.arange(1.0, n_slices + 1)  # one pixel a slice; 0 is left for padding
    padded = np.pad(volume, window_size, mode=NUMPY_MODES[padding_mode])
    for slice_index in range(n_slices):
        indices = window_indices(
            slice_index, n_slices=n_slices, window_size=window_size, padding_mode=padding_mode
        )
        expected = padded[slice_index : slice_index + 2 * window_size + 1]
        found = [0.0 if index == ZERO_SLICE else volume[index] for index in indices]
        assert found == expected.tolist()
        assert ((indices == ZERO_SLICE) | ((indices >= 0) & (indices < n_slices))).all()


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@given(n_slices=st.integers(1, 12), window_size=st.integers(0, 6))
def test_a_volume_turned_over_has_its_windows_turned_over(
    padding_mode: str, n_slices: int, window_size: int
) -> None:
    for slice_index in range(n_slices):
        here = window_indices(
            slice_index, n_slices=n_slices, window_size=window_size, padding_mode=padding_mode
        )
        there = window_indices(
            n_slices - 1 - slice_index,
            n_slices=n_slices,
            window_size=window_size,
            padding_mode=padding_mode,
        )
        turned = [Z if index == Z else n_slices - 1 - index for index in there[::-1].tolist()]
        assert here.tolist() == turned


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_a_window_has_its_own_slice_in_the_middle(padding_mode: str) -> None:
    for window_size in range(7):
        for slice_index in range(4):
            found = window_indices(
                slice_index, n_slices=4, window_size=window_size, padding_mode=padding_mode
            )
            assert found.shape == (2 * window_size + 1,)
            assert found[window_size] == slice_index


def test_an_unknown_padding_mode_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="zero, replicate, mirror, got wrap"):
        window_indices(0, n_slices=3, window_size=1, padding_mode="wrap")


@pytest.mark.parametrize(
    ("padding_mode", "step", "expected"),
    [
        ("zero", 2, [Z, 1, 3, 5, Z]),
        ("replicate", 2, [0, 1, 3, 5, 6]),
        ("mirror", 2, [1, 1, 3, 5, 5]),
        ("zero", 1, [1, 2, 3, 4, 5]),
        ("zero", 1.5, [0, 1, 3, 5, 6]),  # 1.5 and 3.0 slices: the farther one of two at 1.5
        ("zero", 0.4, [2, 3, 3, 3, 4]),  # 0.4 and 0.8 slices
        ("zero", 1e9, [Z, Z, 3, Z, Z]),
    ],
)
def test_neighbours_at_a_distance(padding_mode, step, expected) -> None:
    indices = window_indices(3, n_slices=7, window_size=2, padding_mode=padding_mode, step=step)
    assert indices.tolist() == expected


@given(spacing=st.floats(0.1, 10), mm=st.floats(0.1, 50), neighbour=st.integers(1, 5))
def test_neighbours_are_the_nearest_to_multiples_of_a_distance(spacing, mm, neighbour) -> None:
    step = context_step(spacing=spacing, mm=mm)
    window = window_indices(
        10_000, n_slices=20_000, window_size=5, padding_mode="replicate", step=step
    )
    found = abs(window[5 + neighbour] - 10_000) * spacing
    assert abs(found - neighbour * mm) <= spacing / 2 + 1e-6
    assert window[5 + neighbour] - 10_000 == 10_000 - window[5 - neighbour]
