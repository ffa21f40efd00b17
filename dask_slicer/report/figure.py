"""Figure of slices on whole pixels, drawn with Matplotlib but without its global state."""

from __future__ import annotations

import io
import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Affine2D, Transform
from numpy.typing import NDArray

from dask_slicer.output.output import Output
from dask_slicer.report.panels import Panel
from dask_slicer.report.pixels import Colours, colours, fit, fit_label, overlay
from dask_slicer.utils.formatting import escape_line, format_value, plural

_DPI = 100
# All lengths are pixels, before a figure is scaled.
_MARGIN, _GAP, _TILE_GAP = 18, 16, 2
_HEADING, _TEXT, _SMALL, _LINE = 17, 12, 11, 17
_BELOW_HEADING, _PANEL_TITLE = 26, 36
# Average width of a letter, and of a digit, as a share of the font size.
_CHARACTER, _DIGIT = 0.6, 0.65
_WIDEST_TILE, _NARROWEST_TILE, _HIGHEST_PANEL, _NARROWEST_PANEL = 640, 72, 900, 150
# Enough for a window of any length, so that two fit side by side.
_NARROWEST_WINDOW = 490
_NARROWEST_PICTURE = 420
_BESIDE_LEGEND, _SWATCH, _LEGEND_LINE = 46, 12, 21
# Entries with names are wide, so they get more lines; in letters, the longest entry, and the
# longest that is narrower than "and 10 more".
_MOST_LEGEND_LINES, _MOST_NAMED_LINES, _LONGEST_ENTRY, _NARROW_ENTRY = 4, 12, 32, 8
# On larger tiles, an outline of one pixel is too fine.
_LARGE_TILE = 250
# Smaller tiles have no room for letters, or only for offsets and the sides at left and right.
_ROOM_FOR_ALL, _ROOM_FOR_SOME = 80, 26


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

    def to_bytes(self, suffix: str = "png") -> bytes:
        """Return the figure as the content of a file, pixel for pixel."""
        content = io.BytesIO()
        with warnings.catch_warnings():
            # Characters that the font lacks are shown as boxes.
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            self.savefig(
                content,
                format=suffix,
                dpi="figure",
                bbox_inches=None,
                facecolor=self.get_facecolor(),
            )
        return content.getvalue()

    _repr_png_ = to_bytes


# -- layout ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Sizes and positions of the panels of a figure, each below its title."""

    cell_width: int  # room of a panel
    width: int  # of the figure
    height: int  # of all panels
    tiles: tuple[tuple[int, int], ...]  # (height, width) of the tiles of each panel
    places: tuple[tuple[int, int], ...]  # (x, y) of each panel, y from the title of the first


def lay_out(panels: Sequence[Panel], *, width: int, scale: int = 1) -> Layout:
    """Return the positions of panels: cells of one width, with tiles in the proportions in mm."""
    n = len(panels)
    aspect = statistics.median(map(_aspect, panels))
    n_offsets = max(panel.image.shape[1] for panel in panels)
    usable = width - 2 * _MARGIN + _GAP
    narrowest = min(max(_NARROWEST_PANEL, n_offsets * _NARROWEST_TILE), _NARROWEST_WINDOW)
    most = usable // (narrowest + _GAP)
    # A figure, with the titles of its panels, is a little wider than high.
    columns = max(min(round(math.sqrt(2 * n / aspect)), most), 1)
    # Avoid a last row with empty cells.
    columns = math.ceil(n / math.ceil(n / columns))
    cell = min(usable // columns - _GAP, n_offsets * (_WIDEST_TILE // scale + _TILE_GAP))
    cell_height = max(min(round(cell / aspect), _HIGHEST_PANEL // scale), 1)
    tiles = [tile_size(panel, cell, cell_height) for panel in panels]
    places: list[tuple[int, int]] = []
    y = 0
    for first in range(0, n, columns):
        row = range(first, min(first + columns, n))
        y += _PANEL_TITLE
        places += [(_MARGIN + place * (cell + _GAP), y) for place in range(len(row))]
        # A row is as high as its highest panel: flat panels leave no gap.
        y += max(panels[number].image.shape[0] * (tiles[number][0] + _TILE_GAP) for number in row)
        y += _GAP - _TILE_GAP
    return Layout(
        cell_width=cell,
        width=max(columns * (cell + _GAP) - _GAP + 2 * _MARGIN, min(width, _NARROWEST_PICTURE)),
        height=y - _GAP,
        tiles=tuple(tiles),
        places=tuple(places),
    )


def _aspect(panel: Panel) -> float:
    """Return the width of all tiles of a panel divided by their height, both in mm."""
    n_modalities, n_offsets, height, width = panel.image.shape
    per_row, per_column = panel.spacing
    return float(n_offsets * width * per_column / (n_modalities * height * per_row))


def tile_size(panel: Panel, width: int, height: int) -> tuple[int, int]:
    """Return the largest (height, width) with which all tiles of a panel fit into a cell."""
    n_modalities, n_offsets, n_rows, n_columns = panel.image.shape
    per_row, per_column = panel.spacing
    scale = min(
        (width - (n_offsets - 1) * _TILE_GAP) / n_offsets / (n_columns * per_column),
        (height - (n_modalities - 1) * _TILE_GAP) / n_modalities / (n_rows * per_row),
    )
    return max(round(n_rows * per_row * scale), 1), max(round(n_columns * per_column * scale), 1)


def wrapped(facts: Sequence[str], room: float) -> list[str]:
    """Return facts in lines, as many on each line as have room."""
    lines: list[str] = []
    for fact in facts:
        longer = f"{lines[-1]} · {fact}" if lines else ""
        if longer and len(longer) * _TEXT * _CHARACTER < room:
            lines[-1] = longer
        else:
            lines.append(fact)
    return lines


def legend_text(value: int, names: Mapping[int, str]) -> str:
    """Return a label value with its name, if it has one."""
    return escape_line(f"{value} {names.get(value, '')}")


def legend_entries(
    values: Sequence[int], names: Mapping[int, str], width: float
) -> list[tuple[float, int, int | str]]:
    """Return (x, line, label value) of a legend; the last may be a text on those without room."""
    longest = max((len(legend_text(value, names)) for value in values), default=0)
    character = _TEXT * (_CHARACTER if names else _DIGIT)
    wide = _SWATCH + 16 + min(longest, _LONGEST_ENTRY) * character
    per_line = max(int((width - _BESIDE_LEGEND) / wide), 1)
    most = per_line * (_MOST_NAMED_LINES if names else _MOST_LEGEND_LINES)
    entries: list[int | str] = [*values]
    if len(values) > most:
        # The text is as wide as up to three values.
        most -= 1 if longest > _NARROW_ENTRY else 3
        entries[most:] = [f"and {len(values) - most} more"]
    return [
        (_BESIDE_LEGEND + number % per_line * wide, number // per_line, entry)
        for number, entry in enumerate(entries)
    ]


def compose(
    panel: Panel, palette: Colours, *, tile: tuple[int, int], background: str, scale: int = 1
) -> NDArray[np.uint8]:
    """Return the tiles of a panel, (height, width, 3): a row per modality, a column per offset."""
    height, width, gap = tile[0] * scale, tile[1] * scale, _TILE_GAP * scale
    n_modalities, n_offsets = panel.image.shape[:2]
    canvas = np.empty(
        (n_modalities * (height + gap) - gap, n_offsets * (width + gap) - gap, 3), dtype=np.uint8
    )
    canvas[:] = np.rint(np.multiply(to_rgb(background), 255))
    label = None if panel.label is None else fit_label(panel.label, height, width)
    line = 2 if min(height, width) > _LARGE_TILE else 1
    for modality, offset in np.ndindex(n_modalities, n_offsets):
        grey = fit(panel.image[modality, offset], height, width)
        # The label belongs to the slice in the middle, not to its neighbours.
        shown_label = label if offset == n_offsets // 2 else None
        y, x = modality * (height + gap), offset * (width + gap)
        canvas[y : y + height, x : x + width] = overlay(grey, shown_label, palette, line=line)
    return canvas


# -- drawing ---------------------------------------------------------------------------------------


def draw(
    output: Output,
    panels: Sequence[Panel],
    *,
    width: int,
    dark: bool,
    labels: bool = True,
    scale: int = 1,
) -> Montage:
    """Return a figure of panels in rows, at most `width` pixels wide, with a legend."""
    theme = _DARK if dark else _LIGHT
    # The colours of an output do not depend on the slices that are shown.
    palette = colours(output.stored_index.label_values) if labels else {}
    layout = lay_out(panels, width=width // scale, scale=scale)
    room = layout.width - 2 * _MARGIN
    notes = [(line, theme.faint) for line in wrapped(_facts(output, panels), room)]
    if output.shortfall:
        warning = escape_line(output.shortfall.removeprefix(f"{output.path} has "))
        notes.append((warning, theme.warning))
    top = _MARGIN + _BELOW_HEADING + _LINE * len(notes) + 10
    shown: set[int] = set()
    for panel in panels:
        if panel.label is not None:
            shown.update(np.unique(panel.label).tolist())
    names = output.label_names
    legend = legend_entries(sorted(shown & palette.keys()), names, room)
    legend_height = _MARGIN // 2 + (legend[-1][1] + 1) * _LEGEND_LINE if legend else 0
    page = _Page(layout.width, top + layout.height + legend_height + _MARGIN, theme, scale)
    name = escape_line(output.path.name)
    page.write(_MARGIN, _MARGIN, name, size=_HEADING, room=room, weight="bold")
    for number, (line, colour) in enumerate(notes):
        y = _MARGIN + _BELOW_HEADING + number * _LINE
        page.write(_MARGIN, y, line, room=room, color=colour)
    for panel, tile, (x, y) in zip(panels, layout.tiles, layout.places, strict=True):
        page.draw_panel(panel, palette, tile, x, top + y, room=layout.cell_width)
    page.draw_legend(legend, palette, names, top + layout.height + _MARGIN // 2 + 6)
    return page.figure


def _facts(output: Output, panels: Sequence[Panel]) -> list[str]:
    config, index = output.config, output.index
    n_cases = len({panel.case_id for panel in panels})
    return [
        ", ".join(config.planes),
        f"window_size {config.window_size}",
        f"ct_windows {format_value(config.ct_windows)}"
        if config.ct_windows
        else f"normalize {format_value(config.normalize)}",
        f"{config.format} {config.dtype}",
        f"{len(panels)} of {plural(len(index), 'slice')}",
        f"{n_cases} of {plural(len(index.case_ids), 'written case')}",
    ]


class _Page:
    """A figure addressed in pixels (before they are scaled) from its top left corner."""

    def __init__(self, width: int, height: int, theme: _Theme, scale: int) -> None:
        self.width, self.height, self.theme, self.scale = width, height, theme, scale
        self.figure = Montage(
            figsize=(width / _DPI, height / _DPI), dpi=_DPI * scale, facecolor=theme.background
        )
        to_shares = Affine2D().scale(1 / width, -1 / height).translate(0, 1)
        self.pixels: Transform = to_shares + self.figure.transFigure

    def write(
        self, x: float, y: float, text: str, *, room: float = 0, size: float = _TEXT, **style: Any
    ) -> None:
        """Write a line of text, shortened in the middle if it is longer than `room`, if given."""
        most = max(int((room or self.width) / (size * _CHARACTER)), 4)
        if len(text) > most:
            text = f"{text[: most // 2]}…{text[len(text) - (most - most // 2 - 1) :]}"
        style = {"ha": "left", "va": "top", "color": self.theme.text} | style
        self.figure.text(
            x, y, text, fontsize=size * 72 / _DPI, parse_math=False, transform=self.pixels, **style
        )

    def draw_box(self, x: float, y: float, width: float, height: float, **style: Any) -> None:
        """Draw a rectangle."""
        self.figure.add_artist(Rectangle((x, y), width, height, transform=self.pixels, **style))

    def draw_panel(
        self, panel: Panel, palette: Colours, tile: tuple[int, int], x: int, y: int, *, room: int
    ) -> None:
        """Draw a panel below its title."""
        faint, background = self.theme.faint, self.theme.background
        about = f"{panel.plane} slice {panel.slice_index}".lstrip()
        about += f" of 0–{panel.total_slices - 1} · {panel.split}"
        about += " · no label" if panel.label is None else ""
        title_y = y - _PANEL_TITLE
        self.write(x, title_y, panel.case_id, room=room * 0.93, weight="bold")
        self.write(x, title_y + _LINE, about, size=_SMALL, room=room, color=faint)
        canvas = compose(panel, palette, tile=tile, background=background, scale=self.scale)
        height, width = (length / self.scale for length in canvas.shape[:2])
        left, bottom = x / self.width, 1 - (y + height) / self.height
        axes = self.figure.add_axes(
            (left, bottom, width / self.width, height / self.height),
            label=" ".join([panel.case_id, *panel.plane.split(), str(panel.slice_index)]),
        )
        axes.imshow(canvas, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        self._annotate(panel, tile, x, y)

    def _annotate(self, panel: Panel, tile: tuple[int, int], x: int, y: int) -> None:
        """Write the offset and modality of each tile, and the patient's sides, on a panel."""
        height, width = tile
        n_modalities, n_offsets = panel.image.shape[:2]
        middle = n_offsets // 2
        centre = x + middle * (width + _TILE_GAP)
        outline = [withStroke(linewidth=2, foreground="black")]
        write = partial(self.write, size=_SMALL, color="white", path_effects=outline)
        if n_offsets > 1:
            all_rows = n_modalities * (height + _TILE_GAP) - _TILE_GAP
            self.draw_box(centre, y, width, all_rows, fill=False, ec=self.theme.frame, lw=1.5)
        if n_offsets > 1 and width >= _ROOM_FOR_SOME:
            for offset in range(n_offsets):
                caption = f"{offset - middle:+d}" if offset != middle else "0"
                write(x + offset * (width + _TILE_GAP) + 4, y + 3, caption)
        if n_modalities > 1 and height >= _ROOM_FOR_ALL:
            for modality in range(n_modalities):
                bottom = y + modality * (height + _TILE_GAP) + height - 4
                name = escape_line(panel.modalities[modality])
                write(x + 4, bottom, name, room=width - 4, va="bottom")
        at_left, at_right, at_top, at_bottom = panel.sides
        if min(height, width) >= _ROOM_FOR_SOME:
            write(centre + 4, y + height / 2, at_left, va="center")
            write(centre + width - 4, y + height / 2, at_right, va="center", ha="right")
        if min(height, width) >= _ROOM_FOR_ALL:
            write(centre + width / 2, y + 3, at_top, ha="center")
            write(centre + width / 2, y + height - 4, at_bottom, va="bottom", ha="center")

    def draw_legend(
        self,
        entries: Sequence[tuple[float, int, int | str]],
        palette: Colours,
        names: Mapping[int, str],
        top: float,
    ) -> None:
        """Draw the colours, values and names of labels."""
        if entries:
            self.write(_MARGIN, top, "label", color=self.theme.faint)
        for x, line, entry in entries:
            x, y = x + _MARGIN, top + line * _LEGEND_LINE
            if isinstance(entry, str):
                self.write(x, y, entry, color=self.theme.faint)
                continue
            colour = tuple(part / 255 for part in palette[entry])
            self.draw_box(x, y + 2, _SWATCH, _SWATCH, fc=colour, ec=self.theme.faint, lw=0.5)
            room = _LONGEST_ENTRY * _TEXT * _CHARACTER
            self.write(x + _SWATCH + 5, y, legend_text(entry, names), room=room)
