"""How a case's slices are written as .npz files, one deflated plane serving many windows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from dask_slicer.config import SliceSettings
from dask_slicer.journal import WrittenSlice
from dask_slicer.metadata import case_metadata
from dask_slicer.npz import Piece, archive, npy_header, npy_of_text, piece, write_parts
from dask_slicer.plans import CasePlan
from dask_slicer.slices import SliceStack, planes_needed
from dask_slicer.windows import ZERO_SLICE


def slice_name(case_id: str, slice_index: int, n_slices: int) -> str:
    """Return the file name of a slice; all slices of a case sort in their order.

    Examples
    --------
    >>> slice_name("liver_007", 12, 100), slice_name("liver_007", 12, 1200)
    ('liver_007_012.npz', 'liver_007_0012.npz')
    """
    width = max(3, len(str(n_slices - 1)))
    return f"{case_id}_{slice_index:0{width}d}.npz"


def write_slices(
    stack: SliceStack, case: CasePlan, settings: SliceSettings, folder: Path, *, fsync: bool
) -> tuple[WrittenSlice, ...]:
    """Write the slices of a case into a folder, one file each.

    Parameters
    ----------
    stack : SliceStack
    case : CasePlan
        For the names and the metadata.
    settings : SliceSettings
    folder : Path
        Exists, and holds nothing.
    fsync : bool
        Force each file to disk.

    Returns
    -------
    tuple of WrittenSlice
    """
    writer = _Writer(stack, case, settings)
    n_slices = stack.shape[0]
    written = []
    for slice_index in stack.kept:
        parts, crc32 = writer.archive(slice_index)
        path = folder / slice_name(case.case_id, slice_index, n_slices)
        size = write_parts(path, parts, fsync=fsync)
        labels = stack.label_counts[slice_index] if stack.label_counts else None
        written.append(WrittenSlice(slice_index, size, crc32, labels))
    return tuple(written)


class _Writer:
    """Makes archives for ascending slices; holds the deflated planes that windows still need."""

    def __init__(self, stack: SliceStack, case: CasePlan, settings: SliceSettings) -> None:
        self._stack = stack
        self._settings = settings
        self._level = settings.compression_level
        self._windows = stack.windows(
            window_size=settings.window_size, padding_mode=settings.padding_mode
        )
        self._planes = stack.planes(planes_needed(self._windows))
        self._pieces: dict[int, list[Piece]] = {}
        _, height, width = stack.shape
        self._metadata = case_metadata(stack, case, settings)
        channels = self._metadata["num_channels"]
        self._image_header = self._piece(npy_header((channels, height, width), settings.dtype))
        zeros = self._piece(np.zeros((height, width), dtype=settings.dtype))
        self._zeros = [zeros] * len(stack.image)
        self._label_header: Piece | None = None
        self._empty_label: Piece | None = None
        if stack.label is not None:
            self._label_header = self._piece(npy_header((height, width), settings.label_dtype))

    def archive(self, slice_index: int) -> tuple[list[bytes], int]:
        """Return the file of one slice, in parts, and its CRC-32."""
        window = self._windows[slice_index]
        # Neither this window nor a later one reaches further down.
        for passed in [i for i in self._pieces if i < slice_index - self._settings.window_size]:
            del self._pieces[passed]
        image = [self._image_header]
        for index in window:
            image += self._plane(index)
        members = [("image.npy", image)]
        if self._stack.label is not None and self._label_header is not None:
            members.append(
                ("label.npy", [self._label_header, self._label(self._stack.label, slice_index)])
            )
        text = json.dumps({"slice_index": slice_index} | self._metadata, ensure_ascii=False)
        members.append(("metadata.npy", [self._piece(npy_of_text(text))]))
        return archive(members, level=self._level)

    def _label(self, label: np.ndarray[Any, Any], slice_index: int) -> Piece:
        if self._stack.label_counts[slice_index]:
            return self._piece(np.ascontiguousarray(label[slice_index]))
        if self._empty_label is None:  # the same for every slice that has none
            self._empty_label = self._piece(np.zeros_like(label[0], order="C"))
        return self._empty_label

    def _plane(self, index: int) -> list[Piece]:
        if index == ZERO_SLICE:
            return self._zeros
        while index not in self._pieces:
            made, planes = next(self._planes)
            self._pieces[made] = [
                self._piece(plane.astype(self._settings.dtype, copy=False)) for plane in planes
            ]
        return self._pieces[index]

    def _piece(self, content: bytes | np.ndarray[Any, Any]) -> Piece:
        return piece(content, level=self._level)
