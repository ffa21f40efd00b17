"""Preview pictures of an output, with label overlays."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask_slicer.errors import UsageError
from dask_slicer.output.output import Output, open_output
from dask_slicer.report.panels import Panel, read_panels
from dask_slicer.report.selection import choose_few, choose_rows
from dask_slicer.training.dataset import SliceDataset

if TYPE_CHECKING:
    from dask_slicer.report.figure import Montage

N_SLICES = 16
# More slices would be too small to see.
_MOST_SLICES = 400
# Notebooks show a figure about 900 pixels wide: at this scale, its text stays legible.
_WIDTH, _SCALE = 1600, 2
# Windows of many slices need a wider figure for two side by side; the text is 9 pixels high there.
_MANY_SLICES, _WIDTH_OF_MANY = 7, 2200
SUFFIXES = (".png", ".jpg", ".pdf", ".svg")


def show_slices(
    output: str | Path | Output | SliceDataset,
    *,
    cases: Collection[str] | None = None,
    split: str | None = None,
    slices: Collection[int] | None = None,
    n_slices: int = N_SLICES,
    labels: bool = True,
    dark: bool = False,
) -> Montage:
    """Return a figure of slices with their labels, spread over splits and cases.

    A notebook shows it as the last value of a cell. Greys are the same in all slices of a case,
    pixels have the proportions of the spacing, letters mark the patient's right and left. The
    channels of a window are side by side, the slice itself in a frame.

    Parameters
    ----------
    output : str, Path, Output or SliceDataset
        An output of `dask-slicer run`, finished or not; or a dataset, whose selected slices are
        shown before its transform.
    cases : collection of str, optional
        Only these case ids, each at least once.
    split : {"train", "val", "test"}, optional
        Only this split.
    slices : collection of int, optional
        These slices of every shown case.
    n_slices : int
        Number of slices, 1 to 400.
    labels : bool
        Draw the labels.
    dark : bool
        Use a dark background.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    UsageError
        If there is no such case, split or slice, or if Matplotlib is not installed.
    OutputError
        If the directory is not an output, or its partitions are not merged yet.
    CorruptFile
        If a slice cannot be read.

    Examples
    --------
    >>> import tempfile, dask_slicer as ds
    >>> from dask_slicer.inputs.phantom import write_dataset
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_dataset(Path(folder, "scans"), n_cases=2, shape=(24, 20, 12))
    ...     config = ds.RunConfig(input_dir=f"{folder}/scans", output_dir=f"{folder}/slices",
    ...                           num_workers=0, window_size=0)
    ...     _ = ds.run(config, progress=False)
    ...     figure = ds.show_slices(config.output_dir, n_slices=6)
    >>> len(figure.axes)
    6
    """
    if not 1 <= n_slices <= _MOST_SLICES:
        raise UsageError(f"n_slices must be 1 to {_MOST_SLICES}, got {n_slices}")
    window_size = None
    if isinstance(output, SliceDataset):
        index, window_size = output.index, output.window_size
        output = open_output(output.output_dir)
    else:
        output = output if isinstance(output, Output) else open_output(output)
        index = output.index
    rows = choose_rows(output, index, cases=cases, split=split, slices=slices, n=n_slices)
    if len(rows) > _MOST_SLICES:
        raise UsageError(f"{len(rows)} slices are too many; choose at most {_MOST_SLICES}")
    panels = read_panels(output, index, rows, window_size=window_size, whole=output.index)
    is_wide = max(panel.image.shape[1] for panel in panels) >= _MANY_SLICES
    width = _WIDTH_OF_MANY if is_wide else _WIDTH
    return _draw(output, panels, labels=labels, dark=dark, width=width, scale=_SCALE)


def picture(
    output: Output, *, n_slices: int, width: int, dark: bool, window_size: int | None = None
) -> bytes:
    """Return a PNG of slices of an output, about `width` pixels wide."""
    index, rows = choose_few(output, n=n_slices)
    panels = read_panels(output, index, rows, window_size=window_size)
    return _draw(output, panels, dark=dark, width=width).to_bytes()


def _draw(output: Output, panels: Sequence[Panel], **options: Any) -> Montage:
    try:
        from dask_slicer.report.figure import draw
    except ImportError as error:
        raise UsageError(
            f"pictures need Matplotlib ({error}): pip install 'dask_slicer[plot]'"
        ) from None
    return draw(output, panels, **options)


def parse_slices(text: str) -> list[int]:
    """Parse numbers and ranges with commas between them; raise UsageError for other texts.

    >>> parse_slices("3,10-12")
    [3, 10, 11, 12]
    """
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (not dash or last.isdecimal())):
            raise UsageError(f"--slices must be a list such as 3,10,20-30, got {text}")
        start, end = int(first), int(last or first)
        if not 0 <= end - start < _MOST_SLICES:
            raise UsageError(
                f"--slices {part.strip()} must be a range from low to high, of at most "
                f"{_MOST_SLICES} slices"
            )
        numbers.update(range(start, end + 1))
    return sorted(numbers)
