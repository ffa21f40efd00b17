"""Drawing a montage with Matplotlib.

No global state of Matplotlib's is touched: a program that draws its own figures does not notice.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from dask_slicer.report.figure_layout import (
    CHARACTER,
    LINE,
    MARGIN,
    SWATCH,
    TEXT,
    TILE_GAP,
    Entry,
    Layout,
    Panel,
    compose,
    lay_out,
    legend_lines,
    panel_title,
    wrapped,
)
from dask_slicer.report.montage import Colours

_DPI = 100
# Pixels, as all lengths.
_SMALL, _HEADING, _BELOW_HEADING = 11, 17, 26
# A tile smaller than this has no room for letters: right and left come first.
_ROOM_FOR_SIDES, _ROOM_FOR_LEFT_AND_RIGHT, _ROOM_FOR_OFFSET = 80, 30, 26


@dataclass(frozen=True, slots=True)
class _Theme:
    background: str
    text: str
    faint: str
    warning: str
    frame: str


_LIGHT = _Theme("#ffffff", "#1b1f24", "#59636e", "#9a4a00", "#d1242f")
_DARK = _Theme("#14171a", "#e6e8ea", "#9aa4ae", "#f0a04b", "#ff6b6b")


class Montage(Figure):
    """A figure that a notebook shows, also where Matplotlib is not set up for notebooks."""

    def _repr_png_(self) -> bytes:
        return to_bytes(self)


def to_bytes(figure: Figure, *, suffix: str = "png") -> bytes:
    """Return a figure as a file of some format, pixel for pixel."""
    written = io.BytesIO()
    with warnings.catch_warnings():
        # A case id in a script that the font lacks is shown as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(
            written, format=suffix, dpi=_DPI, bbox_inches=None, facecolor=figure.get_facecolor()
        )
    return written.getvalue()


def draw(
    panels: Sequence[Panel],
    palette: Colours,
    *,
    title: str,
    facts: Sequence[str],
    warning: str = "",
    width: int = 1600,
    dark: bool = False,
) -> Montage:
    """Return a figure of panels in rows.

    Parameters
    ----------
    panels : sequence of Panel
        One at least.
    palette : dict
        Colours of label values; the legend has those that are to be seen.
    title : str
    facts : sequence of str
        What is said below it.
    warning : str
        What is missing, if anything.
    width : int
        Of the figure, pixels; less if there is not so much to show.
    dark : bool

    Returns
    -------
    Montage
    """
    theme = _DARK if dark else _LIGHT
    layout = lay_out(panels, width=width)
    usable = layout.width - 2 * MARGIN
    notes = [(line, theme.faint) for line in wrapped(facts, usable)]
    notes += [(line, theme.warning) for line in wrapped([warning], usable) if warning]
    head = MARGIN + _BELOW_HEADING + LINE * len(notes) + 10
    seen = sorted({value for panel in panels for value in _values(panel)} & set(palette))
    legend = legend_lines(seen, usable)
    foot = len(legend) * (LINE + 4) + (MARGIN // 2 if legend else 0)
    height = head + layout.height + foot + MARGIN
    figure = Montage(
        figsize=(layout.width / _DPI, height / _DPI), dpi=_DPI, facecolor=theme.background
    )
    page = _Page(figure, layout.width, height)
    page.text(MARGIN, MARGIN, title, size=_HEADING, room=usable, color=theme.text, weight="bold")
    for number, (line, colour) in enumerate(notes):
        y = MARGIN + _BELOW_HEADING + number * LINE
        page.text(MARGIN, y, line, size=TEXT, room=usable, color=colour)
    for panel, tile, (x, y) in zip(panels, layout.tiles, layout.places, strict=True):
        _draw_panel(page, panel, palette, layout, tile, (x, head + y), theme)
    y = head + layout.height + MARGIN // 2 + 6
    for number, entries in enumerate(legend):
        _draw_legend(page, entries, palette, y + number * (LINE + 4), theme)
    return figure


def _values(panel: Panel) -> list[int]:
    return [] if panel.label is None else np.unique(panel.label).tolist()


@dataclass(frozen=True, slots=True)
class _Page:
    """A figure whose places are pixels, from the top left."""

    figure: Figure
    width: int
    height: int

    def text(self, x: float, y: float, text: str, *, size: float, room: float, **how: Any) -> None:
        """Write a line, cut in the middle where it is longer than its room."""
        most = max(int(room / (size * CHARACTER)), 4)
        if len(text) > most:
            text = f"{text[: most // 2]}…{text[len(text) - (most - most // 2 - 1) :]}"
        self.figure.text(
            x / self.width,
            1 - y / self.height,
            text,
            fontsize=size * 72 / _DPI,
            parse_math=False,
            **{"ha": "left", "va": "top"} | how,
        )

    def box(
        self, x: float, y: float, width: float, height: float
    ) -> tuple[float, float, float, float]:
        """Return a rectangle as Matplotlib wants it."""
        return (
            x / self.width,
            1 - (y + height) / self.height,
            width / self.width,
            height / self.height,
        )

    def rectangle(self, x: float, y: float, width: float, height: float, **how: Any) -> None:
        left, bottom, wide, high = self.box(x, y, width, height)
        self.figure.add_artist(
            Rectangle((left, bottom), wide, high, transform=self.figure.transFigure, **how)
        )


def _draw_panel(
    page: _Page,
    panel: Panel,
    palette: Colours,
    layout: Layout,
    tile: tuple[int, int],
    place: tuple[int, int],
    theme: _Theme,
) -> None:
    x, y = place
    first, second = panel_title(panel)
    room = layout.cell_width
    if layout.title_lines == 1:
        page.text(x, y, f"{first} · {second}", size=TEXT, room=room, color=theme.text)
    else:
        page.text(x, y, first, size=TEXT, room=room * 0.93, color=theme.text, weight="bold")
        page.text(x, y + LINE, second, size=_SMALL, room=room, color=theme.faint)
    y += layout.title_height
    canvas = compose(panel, palette, tile=tile, background=theme.background)
    axes = page.figure.add_axes(
        page.box(x, y, canvas.shape[1], canvas.shape[0]),
        label=f"{panel.case_id} {panel.slice_index}",
    )
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    _annotate(page, panel, tile, (x, y), theme)


def _annotate(
    page: _Page, panel: Panel, tile: tuple[int, int], place: tuple[int, int], theme: _Theme
) -> None:
    """Say which tile is which, and where right and left, front and back, top and bottom are."""
    (height, width), (x, y) = tile, place
    n_modalities, n_offsets = panel.image.shape[:2]
    middle = n_offsets // 2
    centre = x + middle * (width + TILE_GAP)
    over: dict[str, Any] = {
        "size": _SMALL,
        "room": page.width,
        "color": "white",
        "path_effects": [withStroke(linewidth=2, foreground="black")],
    }
    if n_offsets > 1 and width >= _ROOM_FOR_OFFSET:
        for offset in range(n_offsets):
            shown = f"{offset - middle:+d}" if offset != middle else "0"
            page.text(x + offset * (width + TILE_GAP) + 4, y + 3, shown, **over)
    if n_offsets > 1:
        all_rows = n_modalities * (height + TILE_GAP) - TILE_GAP
        page.rectangle(centre, y, width, all_rows, fill=False, ec=theme.frame, lw=1.5)
    if n_modalities > 1 and height >= _ROOM_FOR_SIDES:
        for modality in range(n_modalities):
            bottom = y + modality * (height + TILE_GAP) + height - 4
            page.text(x + 4, bottom, f"modality {modality}", **over | {"va": "bottom"})
    at_left, at_right, at_top, at_bottom = panel.sides
    across, down = centre + width / 2, y + height / 2
    if min(height, width) >= _ROOM_FOR_LEFT_AND_RIGHT:
        page.text(centre + 4, down, at_left, **over | {"va": "center"})
        page.text(centre + width - 4, down, at_right, **over | {"va": "center", "ha": "right"})
    if min(height, width) >= _ROOM_FOR_SIDES:
        page.text(across, y + 3, at_top, **over | {"ha": "center"})
        page.text(across, y + height - 4, at_bottom, **over | {"va": "bottom", "ha": "center"})


def _draw_legend(
    page: _Page,
    line: Sequence[Entry],
    palette: Colours,
    y: float,
    theme: _Theme,
) -> None:
    for x, text, value in line:
        x += MARGIN
        if value is None:
            page.text(x, y, text, size=TEXT, room=page.width, color=theme.faint)
            continue
        colour = tuple(part / 255 for part in palette[value])
        page.rectangle(x, y + 2, SWATCH, SWATCH, fc=colour, ec=theme.faint, lw=0.5)
        page.text(x + SWATCH + 5, y, text, size=TEXT, room=page.width, color=theme.text)
