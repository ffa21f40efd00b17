"""A montage drawn with Matplotlib: panels on whole pixels, their titles, and a legend of labels.

No global state of Matplotlib's is touched: a program that draws its own figures does not notice.
"""

from __future__ import annotations

import io
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from dask_slicer.montage import fit, fit_label, n_columns, overlay
from dask_slicer.panels import Panel

Colours = dict[int, tuple[int, int, int]]

# All lengths are pixels.
_DPI = 100
_MARGIN, _GAP, _TILE_GAP = 18, 16, 2
_TEXT, _SMALL, _HEADING = 12, 11, 17
_LINE = 17
_WIDEST_TILE, _HIGHEST_PANEL, _NARROWEST_PANEL = 640, 900, 150
_NARROWEST_PICTURE = 420
# A tile smaller than this has no room for letters.
_ROOM_FOR_SIDES, _ROOM_FOR_OFFSET = 80, 26
_SWATCH, _MOST_LEGEND_LINES = 12, 3
# Of the font, on average, to its size.
_CHARACTER = 0.6


@dataclass(frozen=True, slots=True)
class _Theme:
    background: str
    text: str
    faint: str
    warning: str
    frame: str


_LIGHT = _Theme("#ffffff", "#1b1f24", "#59636e", "#9a4a00", "#d1242f")
_DARK = _Theme("#14171a", "#e6e8ea", "#9aa4ae", "#f0a04b", "#ff6b6b")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Where panels lie; y counts from the top."""

    columns: int
    cell_width: int
    cell_height: int
    title_lines: int
    width: int
    top: int

    def place(self, number: int) -> tuple[int, int]:
        row, column = divmod(number, self.columns)
        x = _MARGIN + column * (self.cell_width + _GAP)
        return x, self.top + row * self.pitch

    @property
    def pitch(self) -> int:
        return self.title_height + self.cell_height + _GAP

    @property
    def title_height(self) -> int:
        return self.title_lines * _LINE + 2


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
    facts: str,
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
    title, facts : str
        The heading, and what is said below it.
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
    head = _MARGIN + 26 + _LINE * (2 if warning else 1) + 10
    layout = _lay_out(panels, width=width, top=head)
    seen = sorted({value for panel in panels for value in _values(panel)} & set(palette))
    legend = _legend(seen, layout.width - 2 * _MARGIN)
    n_rows = -(-len(panels) // layout.columns)
    foot = len(legend) * (_LINE + 4) + (_MARGIN // 2 if legend else 0)
    height = head + n_rows * layout.pitch - _GAP + foot + _MARGIN
    figure = Montage(
        figsize=(layout.width / _DPI, height / _DPI), dpi=_DPI, facecolor=theme.background
    )
    page = _Page(figure, layout.width, height)
    usable = layout.width - 2 * _MARGIN
    page.text(_MARGIN, _MARGIN, title, size=_HEADING, room=usable, color=theme.text, weight="bold")
    page.text(_MARGIN, _MARGIN + 26, facts, size=_TEXT, room=usable, color=theme.faint)
    page.text(_MARGIN, _MARGIN + 26 + _LINE, warning, size=_TEXT, room=usable, color=theme.warning)
    for number, panel in enumerate(panels):
        _draw_panel(page, panel, palette, layout, layout.place(number), theme)
    y = height - _MARGIN - len(legend) * (_LINE + 4) + 6
    for line in legend:
        _draw_legend(page, line, palette, y, theme)
        y += _LINE + 4
    return figure


def _values(panel: Panel) -> list[int]:
    return [] if panel.label is None else np.unique(panel.label).tolist()


def _aspect(panel: Panel) -> float:
    """Return the width to the height of all tiles of a panel, in mm."""
    n_modalities, n_offsets, n_rows, n_columns = panel.image.shape
    per_row, per_column = panel.spacing
    return float(n_offsets * n_columns * per_column / (n_modalities * n_rows * per_row))


def _lay_out(panels: Sequence[Panel], *, width: int, top: int) -> _Layout:
    aspect = statistics.median(_aspect(panel) for panel in panels)
    usable = width - 2 * _MARGIN + _GAP
    columns = n_columns(
        len(panels),
        width=usable,
        aspect=aspect,
        extra=2 * _LINE + _GAP,
        narrowest=_NARROWEST_PANEL + _GAP,
    )
    n_offsets = max(panel.image.shape[1] for panel in panels)
    cell = min(usable // columns - _GAP, n_offsets * (_WIDEST_TILE + _TILE_GAP))
    cell_height = min(round(cell / aspect), _HIGHEST_PANEL)
    longest = max(len(" · ".join(_title(panel))) for panel in panels)
    return _Layout(
        columns=columns,
        cell_width=cell,
        cell_height=max(cell_height, 1),
        title_lines=1 if longest * _TEXT * (_CHARACTER + 0.05) < cell else 2,
        width=max(columns * (cell + _GAP) - _GAP + 2 * _MARGIN, min(width, _NARROWEST_PICTURE)),
        top=top,
    )


def _title(panel: Panel) -> tuple[str, str]:
    where = f"slice {panel.slice_index} of {panel.total_slices} · {panel.split}"
    return panel.case_id, where + (" · no label" if panel.label is None else "")


def tile_size(panel: Panel, width: int, height: int) -> tuple[int, int]:
    """Return the height and width of each tile of a panel, so that all of them fit into a cell."""
    n_modalities, n_offsets, n_rows, n_columns = panel.image.shape
    per_row, per_column = panel.spacing
    scale = min(
        (width - (n_offsets - 1) * _TILE_GAP) / n_offsets / (n_columns * per_column),
        (height - (n_modalities - 1) * _TILE_GAP) / n_modalities / (n_rows * per_row),
    )
    return max(round(n_rows * per_row * scale), 1), max(round(n_columns * per_column * scale), 1)


def compose(
    panel: Panel, palette: Colours, *, tile: tuple[int, int], background: str
) -> NDArray[np.uint8]:
    """Return a panel's tiles side by side, a row for every modality: (height, width, 3)."""
    height, width = tile
    n_modalities, n_offsets = panel.image.shape[:2]
    canvas = np.empty(
        (
            n_modalities * (height + _TILE_GAP) - _TILE_GAP,
            n_offsets * (width + _TILE_GAP) - _TILE_GAP,
            3,
        ),
        dtype=np.uint8,
    )
    canvas[:] = [int(background[start : start + 2], 16) for start in (1, 3, 5)]
    label = None if panel.label is None else fit_label(panel.label, height, width)
    for modality in range(n_modalities):
        for offset in range(n_offsets):
            grey = fit(panel.image[modality, offset], height, width)
            # The label is that of the slice in the middle, not of its neighbours.
            own = label if offset == n_offsets // 2 else None
            y, x = modality * (height + _TILE_GAP), offset * (width + _TILE_GAP)
            line = 2 if min(height, width) > 250 else 1
            canvas[y : y + height, x : x + width] = overlay(grey, own, palette, line=line)
    return canvas


@dataclass(frozen=True, slots=True)
class _Page:
    """A figure whose places are pixels, from the top left."""

    figure: Figure
    width: int
    height: int

    def text(self, x: float, y: float, text: str, *, size: float, room: float, **how: Any) -> None:
        """Write a line, cut in the middle where it is longer than its room."""
        most = max(int(room / (size * _CHARACTER)), 4)
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
    layout: _Layout,
    place: tuple[int, int],
    theme: _Theme,
) -> None:
    x, y = place
    first, second = _title(panel)
    room = layout.cell_width
    if layout.title_lines == 1:
        page.text(x, y, f"{first} · {second}", size=_TEXT, room=room, color=theme.text)
    else:
        page.text(x, y, first, size=_TEXT, room=room * 0.93, color=theme.text, weight="semibold")
        page.text(x, y + _LINE, second, size=_SMALL, room=room, color=theme.faint)
    y += layout.title_height
    tile = tile_size(panel, layout.cell_width, layout.cell_height)
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
    centre = x + middle * (width + _TILE_GAP)
    over: dict[str, Any] = {
        "size": _SMALL,
        "room": page.width,
        "color": "white",
        "path_effects": [withStroke(linewidth=2, foreground="black")],
    }
    if n_offsets > 1 and width >= _ROOM_FOR_OFFSET:
        for offset in range(n_offsets):
            shown = f"{offset - middle:+d}" if offset != middle else "0"
            page.text(x + offset * (width + _TILE_GAP) + 4, y + 3, shown, **over)
    if n_offsets > 1:
        all_rows = n_modalities * (height + _TILE_GAP) - _TILE_GAP
        page.rectangle(centre, y, width, all_rows, fill=False, ec=theme.frame, lw=1.5)
    if n_modalities > 1 and height >= _ROOM_FOR_SIDES:
        for modality in range(n_modalities):
            bottom = y + modality * (height + _TILE_GAP) + height - 4
            page.text(x + 4, bottom, f"modality {modality}", **over | {"va": "bottom"})
    if min(height, width) >= _ROOM_FOR_SIDES:
        at_left, at_right, at_top, at_bottom = panel.sides
        across, down = centre + width / 2, y + height / 2
        page.text(centre + 4, down, at_left, **over | {"va": "center"})
        page.text(centre + width - 4, down, at_right, **over | {"va": "center", "ha": "right"})
        page.text(across, y + 3, at_top, **over | {"ha": "center"})
        page.text(across, y + height - 4, at_bottom, **over | {"va": "bottom", "ha": "center"})


def _legend(values: Sequence[int], width: int) -> list[list[tuple[float, str, int | None]]]:
    """Return lines of entries, (x, text, value); the last says how many have no room."""
    if not values:
        return []
    lines: list[list[tuple[float, str, int | None]]] = [[(0, "label", None)]]
    x = 46.0
    for number, value in enumerate(values):
        wide = _SWATCH + 5 + len(str(value)) * _TEXT * 0.65 + 12
        is_last_line = len(lines) == _MOST_LEGEND_LINES
        if x + wide + (90 if is_last_line else 0) > width:
            if is_last_line:
                lines[-1].append((x, f"and {len(values) - number} more", None))
                break
            lines.append([])
            x = 46.0
        lines[-1].append((x, str(value), value))
        x += wide
    return lines


def _draw_legend(
    page: _Page,
    line: Sequence[tuple[float, str, int | None]],
    palette: Colours,
    y: float,
    theme: _Theme,
) -> None:
    for x, text, value in line:
        x += _MARGIN
        if value is None:
            page.text(x, y, text, size=_TEXT, room=page.width, color=theme.faint)
            continue
        colour = tuple(part / 255 for part in palette[value])
        page.rectangle(x, y + 2, _SWATCH, _SWATCH, fc=colour, ec=theme.faint, lw=0.5)
        page.text(x + _SWATCH + 5, y, text, size=_TEXT, room=page.width, color=theme.text)
