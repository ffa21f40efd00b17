"""Montage of slices, drawn with Matplotlib but without its global state."""

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
# In pixels, like all lengths.
_SMALL, _HEADING, _BELOW_HEADING = 11, 17, 26
# Smaller tiles have no room for letters, or only for those of right and left.
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
    """A figure that a notebook shows even if Matplotlib is not set up for notebooks."""

    def _repr_png_(self) -> bytes:
        return to_bytes(self)


def to_bytes(figure: Figure, *, suffix: str = "png") -> bytes:
    """Return a figure as the content of a file, pixel for pixel."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        # Characters that the font lacks are shown as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(
            content, format=suffix, dpi="figure", bbox_inches=None, facecolor=figure.get_facecolor()
        )
    return content.getvalue()


def draw(
    panels: Sequence[Panel],
    palette: Colours,
    *,
    title: str,
    facts: Sequence[str],
    warning: str = "",
    width: int = 1600,
    dark: bool = False,
    scale: int = 1,
) -> Montage:
    """Return a figure of panels in rows, at most `width` pixels wide, with a legend of its labels.

    `facts` and `warning` are lines below the title. `scale` multiplies all lengths, text included.
    """
    theme = _DARK if dark else _LIGHT
    layout = lay_out(panels, width=width // scale, scale=scale)
    usable = layout.width - 2 * MARGIN
    notes = [(line, theme.faint) for line in wrapped(facts, usable)]
    notes += [(line, theme.warning) for line in wrapped([warning], usable) if warning]
    head = MARGIN + _BELOW_HEADING + LINE * len(notes) + 10
    visible = sorted({value for panel in panels for value in _values(panel)} & set(palette))
    legend = legend_lines(visible, usable)
    foot = len(legend) * (LINE + 4) + (MARGIN // 2 if legend else 0)
    height = head + layout.height + foot + MARGIN
    figure = Montage(
        figsize=(layout.width / _DPI, height / _DPI), dpi=_DPI * scale, facecolor=theme.background
    )
    page = _Page(figure, layout.width, height, scale)
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
    """A figure addressed in pixels (before they are scaled) from its top left corner."""

    figure: Figure
    width: int
    height: int
    scale: int

    def text(
        self, x: float, y: float, text: str, *, size: float, room: float, **style: Any
    ) -> None:
        """Write a line of text, shortened in the middle if it is longer than `room`."""
        most = max(int(room / (size * CHARACTER)), 4)
        if len(text) > most:
            text = f"{text[: most // 2]}…{text[len(text) - (most - most // 2 - 1) :]}"
        self.figure.text(
            x / self.width,
            1 - y / self.height,
            text,
            fontsize=size * 72 / _DPI,
            parse_math=False,
            **{"ha": "left", "va": "top"} | style,
        )

    def box(
        self, x: float, y: float, width: float, height: float
    ) -> tuple[float, float, float, float]:
        """Return left, bottom, width and height as shares of the figure."""
        return (
            x / self.width,
            1 - (y + height) / self.height,
            width / self.width,
            height / self.height,
        )

    def rectangle(self, x: float, y: float, width: float, height: float, **style: Any) -> None:
        left, bottom, wide, high = self.box(x, y, width, height)
        self.figure.add_artist(
            Rectangle((left, bottom), wide, high, transform=self.figure.transFigure, **style)
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
    canvas = compose(panel, palette, tile=tile, background=theme.background, scale=page.scale)
    axes = page.figure.add_axes(
        page.box(x, y, canvas.shape[1] // page.scale, canvas.shape[0] // page.scale),
        label=f"{panel.case_id} {panel.slice_index}",
    )
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    _annotate(page, panel, tile, (x, y), theme)


def _annotate(
    page: _Page, panel: Panel, tile: tuple[int, int], place: tuple[int, int], theme: _Theme
) -> None:
    """Write the offset and modality of each tile, and the patient's sides, on a panel."""
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
            caption = f"{offset - middle:+d}" if offset != middle else "0"
            page.text(x + offset * (width + TILE_GAP) + 4, y + 3, caption, **over)
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
