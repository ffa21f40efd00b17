"""Slices of PNG images and masks, and the metadata of their case: reading."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_slicer.errors import CorruptFile
from dask_slicer.output.formats import png
from dask_slicer.output.formats.base import read_json
from dask_slicer.output.formats.npz_reader import ArrayWindow, Members, NpzReader, middle
from dask_slicer.utils.files import read_bytes


class PngReader(NpzReader):
    """Reads a case of PNG files; raises CorruptFile or OSError, which name the file."""

    def __init__(
        self,
        path_of: Callable[[int], Path],
        mask_of: Callable[[int], Path],
        metadata_path: Path,
    ) -> None:
        super().__init__(path_of)
        self._mask_of = mask_of
        self._metadata_path = metadata_path

    def window(self, slice_index: int, window_size: int | None) -> ArrayWindow:
        """Return a window, or its middle part, and its label."""
        image, label, _ = self._members(slice_index, window_size)
        return ArrayWindow(image, label, offset=int(self._case.get("offset", 0)))

    def stored(self, slice_index: int) -> tuple[str, NDArray[np.integer] | None]:
        """Return dtype and shape of the image, and the label."""
        image, label, _ = self._members(slice_index)
        return f"{image.dtype} {image.shape}", label

    def metadata(self, slice_index: int) -> dict[str, Any]:
        """Return the metadata of a slice."""
        return {"slice_index": slice_index} | self._case

    @cached_property
    def _case(self) -> dict[str, Any]:
        return read_json(self._metadata_path)

    def _members(self, slice_index: int, window_size: int | None = None) -> Members:
        channels, height, width = self._case["shape"]["image"]
        image = _pixels(self._path_of(slice_index))
        image = np.moveaxis(image, -1, 0) if image.ndim == 3 else image[None]
        if image.shape != (channels, height, width):
            raise CorruptFile(f"{self._path_of(slice_index)} has shape {image.shape}")
        label = None
        if self._case["shape"]["label"] is not None:
            label = _pixels(self._mask_of(slice_index))
            if label.shape != (height, width):
                raise CorruptFile(f"{self._mask_of(slice_index)} has shape {label.shape}")
        wanted = middle(channels, self._case["window_size"], window_size)
        return Members(np.ascontiguousarray(image[wanted]), label, self.metadata(slice_index))


def _pixels(path: Path) -> NDArray[Any]:
    try:
        return png.decode(read_bytes(path))
    except ValueError as error:
        raise CorruptFile(f"{path} is damaged ({error})") from None
