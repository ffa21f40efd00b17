"""Where panels, legend and facts lie in a picture."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dask_slicer.report.figure import (
    compose,
    lay_out,
    legend_entries,
    legend_text,
    tile_size,
    wrapped,
)
from dask_slicer.report.panels import Panel


def _panel(
    shape: tuple[int, int, int, int] = (1, 1, 20, 30),
    spacing: tuple[float, float] = (1.0, 1.0),
    label: np.ndarray | None = None,
) -> Panel:
    return Panel(
        case_id="case",
        split="train",
        slice_index=3,
        total_slices=9,
        image=np.random.default_rng(0).random(shape),
        modalities=tuple(f"modality {number}" for number in range(shape[0])),
        label=label,
        spacing=spacing,
        sides=("R", "L", "A", "P"),
    )


@pytest.mark.parametrize(
    ("spacing", "shape"),
    [((1.0, 1.0), (20, 30)), ((5.0, 0.7), (48, 512)), ((0.5, 4.0), (300, 40))],
)
def test_tiles_have_the_proportions_that_the_spacing_gives(
    spacing: tuple[float, float], shape: tuple[int, int]
) -> None:
    height, width = tile_size(_panel((1, 1, *shape), spacing), 400, 300)
    assert height <= 300
    assert width <= 400
    in_mm = shape[0] * spacing[0] / (shape[1] * spacing[1])
    assert height / width == pytest.approx(in_mm, rel=0.02)


def test_the_label_overlays_only_the_middle_slice_of_a_window_in_every_modality() -> None:
    panel = _panel((2, 5, 10, 10), label=np.ones((10, 10), np.uint8))
    canvas = compose(panel, {1: (0, 0, 255)}, tile=(10, 10), background="#ffffff")
    assert canvas.shape == (22, 58, 3)
    coloured = canvas[..., 2] > canvas[..., 0]
    for modality in range(2):
        for offset in range(5):
            tile = coloured[modality * 12 : modality * 12 + 10, offset * 12 : offset * 12 + 10]
            assert tile.all() if offset == 2 else not tile.any()


@pytest.mark.parametrize("n", [1, 2, 5, 16, 61])
@pytest.mark.parametrize("shape", [(1, 1, 20, 30), (2, 5, 90, 30), (1, 21, 512, 512)])
@pytest.mark.parametrize("width", [200, 800, 1600])
def test_panels_lie_within_the_page_and_do_not_overlap(
    n: int, shape: tuple[int, int, int, int], width: int
) -> None:
    panels = [_panel(shape)] * (n - 1) + [_panel((1, 1, 50, 7))]
    layout = lay_out(panels, width=width)
    taken = np.zeros((layout.height, layout.width), dtype=int)
    for panel, (height, wide), (x, y) in zip(panels, layout.tiles, layout.places, strict=True):
        n_modalities, n_offsets = panel.image.shape[:2]
        bottom = y + n_modalities * (height + 2) - 2
        right = x + n_offsets * (wide + 2) - 2
        assert y >= 36  # room for the title
        assert bottom <= layout.height
        assert right <= layout.width
        taken[y - 36 : bottom, x:right] += 1
    assert taken.max() == 1
    assert layout.width <= max(width, 420)


@pytest.mark.parametrize(
    ("n", "shape", "columns"),
    [
        (16, (1, 1, 50, 50), 4),
        (16, (1, 5, 50, 50), 2),
        (9, (1, 1, 50, 50), 3),
        (1, (1, 1, 50, 50), 1),
    ],
)
def test_a_figure_is_a_little_wider_than_high_and_its_last_row_is_full(
    n: int, shape: tuple[int, int, int, int], columns: int
) -> None:
    layout = lay_out([_panel(shape)] * n, width=800)
    assert len({x for x, _ in layout.places}) == columns


def test_a_legend_names_all_values_or_says_how_many_it_has_no_room_for() -> None:
    few = legend_entries([1, 2, 70_000], {}, 800)
    assert [entry for _, _, entry in few] == [1, 2, 70_000]
    assert {line for _, line, _ in few} == {0}
    many = legend_entries(range(1, 3001), {}, 800)
    *named, text = [entry for _, _, entry in many]
    assert named == list(range(1, len(named) + 1))
    assert text == f"and {3000 - len(named)} more"
    assert all(x < 800 for x, _, _ in many)
    assert len({(x, line) for x, line, _ in many}) == len(many)
    assert legend_entries([], {}, 800) == []


@pytest.mark.parametrize("width", [384, 764, 1564])
def test_named_entries_of_a_legend_do_not_overlap_and_end_within_the_picture(width: int) -> None:
    names = {value: f"vertebra_of_the_spine_{value}" for value in range(1, 118)}
    entries = legend_entries([*names], names, width)
    *named, text = [entry for _, _, entry in entries]
    assert named == list(range(1, len(named) + 1))
    assert text == f"and {117 - len(named)} more"
    assert len(named) >= 11
    longest = len("117 vertebra_of_the_spine_117")
    columns = sorted({x for x, _, _ in entries})
    assert all(after - x > longest * 7.2 + 17 for x, after in itertools.pairwise(columns))
    assert columns[-1] + longest * 7.2 + 17 < width


def test_an_entry_of_a_legend_is_on_one_line() -> None:
    assert legend_text(3, {3: "left\nkidney\x1b"}) == "3 left kidney\\x1b"
    assert legend_text(4, {3: "left kidney"}) == "4"


def test_facts_are_wrapped_between_not_within() -> None:
    assert wrapped(["axial", "window_size 2", "npz"], 1000) == ["axial · window_size 2 · npz"]
    assert wrapped(["axial", "window_size 2", "npz"], 150) == ["axial", "window_size 2 · npz"]
