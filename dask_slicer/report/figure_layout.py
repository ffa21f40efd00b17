"""Layout of a figure on whole pixels: tiles, panels, titles, legend."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dask_slicer.report.montage import Colours, fit, fit_label, overlay

# All lengths are pixels, before a figure is scaled.
MARGIN, GAP, TILE_GAP = 18, 16, 2
TEXT, LINE = 12, 17
SWATCH = 12
# Average width of a letter, as a share of the font size.
CHARACTER = 0.6
_WIDEST_TILE, _NARROWEST_TILE, _HIGHEST_PANEL, _NARROWEST_PANEL = 640, 72, 900, 150
_NARROWEST_PICTURE = 420
_BESIDE_LEGEND, _MOST_LEGEND_LINES = 46, 3
# On larger tiles, an outline of one pixel is too fine.
_LARGE_TILE = 250

# Of the legend: x, text, label value.
Entry = tuple[float, str, int | None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Panel:
    """One slice with its window, in greys of 0 to 1 that are the same in all slices of a case."""

    case_id: str
    split: str
    slice_index: int
    total_slices: int  # of the volume
    image: NDArray[np.float64]  # (modality, offset, row, column); the slice is the middle offset
    label: NDArray[np.integer] | None  # (row, column)
    has_label: bool  # of the case, shown or not
    spacing: tuple[float, float]  # mm per row, per column
    sides: tuple[str, str, str, str]  # of the patient, at the left, right, top and bottom


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Sizes and positions of panels, in pixels."""

    columns: int
    cell_width: int  # room of a panel
    title_lines: int  # of a panel
    width: int  # of the page
    tiles: tuple[tuple[int, int], ...]  # (height, width) of the tiles of each panel
    places: tuple[tuple[int, int], ...]  # (x, y) of each panel, y from the top of the first
    height: int  # of all panels

    @property
    def title_height(self) -> int:
        """Return the height of the title of a panel."""
        return self.title_lines * LINE + 2


def _aspect(panel: Panel) -> float:
    """Return the width of all tiles of a panel divided by their height, both in mm."""
    n_modalities, n_offsets, height, width = panel.image.shape
    per_row, per_column = panel.spacing
    return float(n_offsets * width * per_column / (n_modalities * height * per_row))


def lay_out(panels: Sequence[Panel], *, width: int, scale: int = 1) -> Layout:
    """Return the positions of panels: cells of one size, with tiles in the proportions in mm."""
    aspect = statistics.median(_aspect(panel) for panel in panels)
    n_offsets = max(panel.image.shape[1] for panel in panels)
    usable = width - 2 * MARGIN + GAP
    columns = n_columns(
        len(panels),
        width=usable,
        aspect=aspect,
        extra=2 * LINE + GAP,
        narrowest=max(_NARROWEST_PANEL, n_offsets * _NARROWEST_TILE) + GAP,
    )
    cell = min(usable // columns - GAP, n_offsets * (_WIDEST_TILE // scale + TILE_GAP))
    cell_height = max(min(round(cell / aspect), _HIGHEST_PANEL // scale), 1)
    longest = max(len(" · ".join(panel_title(panel))) for panel in panels)
    title_lines = 1 if longest * TEXT * (CHARACTER + 0.05) < cell else 2
    tiles = [tile_size(panel, cell, cell_height) for panel in panels]
    places: list[tuple[int, int]] = []
    y = 0
    for first in range(0, len(panels), columns):
        row = range(first, min(first + columns, len(panels)))
        places += [(MARGIN + place * (cell + GAP), y) for place in range(len(row))]
        # A row is as high as its highest panel: flat panels leave no gap.
        y += title_lines * LINE + 2 + max(_height(panels[n], tiles[n]) for n in row) + GAP
    return Layout(
        columns=columns,
        cell_width=cell,
        title_lines=title_lines,
        width=max(columns * (cell + GAP) - GAP + 2 * MARGIN, min(width, _NARROWEST_PICTURE)),
        tiles=tuple(tiles),
        places=tuple(places),
        height=y - GAP,
    )


def _height(panel: Panel, tile: tuple[int, int]) -> int:
    """Return the height of all tiles of a panel."""
    return int(panel.image.shape[0]) * (tile[0] + TILE_GAP) - TILE_GAP


def panel_title(panel: Panel) -> tuple[str, str]:
    """Return the case id of a panel, and a description of its slice."""
    description = f"slice {panel.slice_index} of 0–{panel.total_slices - 1} · {panel.split}"
    return panel.case_id, description + ("" if panel.has_label else " · no label")


def tile_size(panel: Panel, width: int, height: int) -> tuple[int, int]:
    """Return the largest (height, width) with which all tiles of a panel fit into a cell."""
    n_modalities, n_offsets, n_rows, n_columns = panel.image.shape
    per_row, per_column = panel.spacing
    scale = min(
        (width - (n_offsets - 1) * TILE_GAP) / n_offsets / (n_columns * per_column),
        (height - (n_modalities - 1) * TILE_GAP) / n_modalities / (n_rows * per_row),
    )
    return max(round(n_rows * per_row * scale), 1), max(round(n_columns * per_column * scale), 1)


def compose(
    panel: Panel, palette: Colours, *, tile: tuple[int, int], background: str, scale: int = 1
) -> NDArray[np.uint8]:
    """Return the tiles of a panel, (height, width, 3): a row per modality, a column per offset."""
    height, width, gap = tile[0] * scale, tile[1] * scale, TILE_GAP * scale
    n_modalities, n_offsets = panel.image.shape[:2]
    canvas = np.empty(
        (n_modalities * (height + gap) - gap, n_offsets * (width + gap) - gap, 3), dtype=np.uint8
    )
    canvas[:] = [int(background[start : start + 2], 16) for start in (1, 3, 5)]
    label = None if panel.label is None else fit_label(panel.label, height, width)
    for modality in range(n_modalities):
        for offset in range(n_offsets):
            grey = fit(panel.image[modality, offset], height, width)
            # The label belongs to the slice in the middle, not to its neighbours.
            shown_label = label if offset == n_offsets // 2 else None
            y, x = modality * (height + gap), offset * (width + gap)
            line = 2 if min(height, width) > _LARGE_TILE else 1
            canvas[y : y + height, x : x + width] = overlay(grey, shown_label, palette, line=line)
    return canvas


def n_columns(n: int, *, width: float, aspect: float, extra: float, narrowest: float) -> int:
    """Return the number of columns with which `n` panels make a picture a little wider than high.

    `aspect` is a panel's width divided by its height, `extra` the height of its title.

    Examples
    --------
    >>> n_columns(16, width=1600, aspect=1, extra=30, narrowest=150)
    4
    >>> n_columns(16, width=1600, aspect=5, extra=30, narrowest=150)
    2
    """
    best, best_miss = 1, math.inf
    for columns in range(1, n + 1):
        panel = width / columns
        if panel < narrowest and columns > 1:
            break
        height = math.ceil(n / columns) * (panel / aspect + extra)
        # Avoid a last row with empty cells.
        empty = -n % columns / columns
        miss = abs(math.log(width / height / 1.35)) + 0.3 * empty
        if miss < best_miss:
            best, best_miss = columns, miss
    return best


def legend_lines(values: Sequence[int], width: int) -> list[list[Entry]]:
    """Return the lines of a legend; its last entry counts the values without room."""
    if not values:
        return []
    lines: list[list[Entry]] = [[(0, "label", None)]]
    x = float(_BESIDE_LEGEND)
    for number, value in enumerate(values):
        wide = SWATCH + 5 + len(str(value)) * TEXT * 0.65 + 12
        is_last_line = len(lines) == _MOST_LEGEND_LINES
        if x + wide + (90 if is_last_line else 0) > width:
            if is_last_line:
                lines[-1].append((x, f"and {len(values) - number} more", None))
                break
            lines.append([])
            x = float(_BESIDE_LEGEND)
        lines[-1].append((x, str(value), value))
        x += wide
    return lines


def wrapped(facts: Sequence[str], room: float) -> list[str]:
    """Return facts in lines, as many on each line as have room."""
    lines: list[str] = []
    for fact in facts:
        longer = f"{lines[-1]} · {fact}" if lines else ""
        if longer and len(longer) * TEXT * CHARACTER < room:
            lines[-1] = longer
        else:
            lines.append(fact)
    return lines
