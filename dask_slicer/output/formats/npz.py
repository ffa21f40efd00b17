"""Slices as .npz files: writing."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_slicer.config.file_settings import NPZ, Content, FileTemplate
from dask_slicer.config.schema import SliceSettings
from dask_slicer.core.slices import SliceStack
from dask_slicer.output.formats.base import Windows, case_metadata, grid_array, step_of
from dask_slicer.output.formats.npz_archive import (
    Piece,
    archive,
    npy_header,
    npy_of_text,
    piece,
    write_parts,
)
from dask_slicer.output.layout import slice_name
from dask_slicer.planning.names import NO_NAMES, Names
from dask_slicer.planning.plan import CasePlan
from dask_slicer.records import WrittenSlice


def write_slices(
    stack: SliceStack,
    case: CasePlan,
    settings: SliceSettings,
    folder: Path,
    *,
    names: Names = NO_NAMES,
    fsync: bool,
) -> tuple[WrittenSlice, ...]:
    """Write the slices of a case into an empty folder, one file each."""
    writer = NpzWriter(stack, case, settings, names)
    n_slices = stack.shape[0]
    written = []
    for slice_index in stack.kept:
        parts, crc32 = writer.archive(slice_index)
        path = folder / slice_name(case.case_id, slice_index, n_slices)
        size = write_parts(path, parts, fsync=fsync)
        labels = stack.label_counts[slice_index] if stack.label_counts else None
        written.append(WrittenSlice(slice_index, size, crc32, labels))
    return tuple(written)


class NpzWriter:
    """Makes archives of ascending slices, from planes that are deflated once.

    `template` says which contents have which names. The channels of an image come first, or there
    is only one.
    """

    def __init__(
        self,
        stack: SliceStack,
        case: CasePlan,
        settings: SliceSettings,
        names: Names = NO_NAMES,
        *,
        template: FileTemplate = NPZ,
    ) -> None:
        self._stack = stack
        self._settings = settings
        self._piece = partial(piece, level=settings.compression_level)
        self._metadata = case_metadata(stack, case, settings, names)
        self._template = template
        _, height, width = stack.shape
        if template.transpose:
            height, width = width, height
        channels = self._metadata["num_channels"] * template.copies
        shape = (height, width) if template.channels == "none" else (channels, height, width)
        self._image_header = self._piece(npy_header(shape, settings.dtype))
        self._windows = Windows(
            stack,
            settings,
            step=step_of(self._metadata),
            make=partial(_plane, piece=self._piece, template=template, dtype=settings.dtype),
            zeros=self._piece(np.zeros((height, width), dtype=settings.dtype)),
        )
        self._label_header = self._piece(npy_header((height, width), settings.label_dtype))

    def archive(self, slice_index: int) -> tuple[list[bytes], int]:
        """Return the file of one slice, in parts, and its CRC-32."""
        members = [
            (f"{name}.npy", pieces)
            for name, content in self._template.holds.items()
            if (pieces := self._content(content, slice_index)) is not None
        ]
        return archive(members, level=self._settings.compression_level)

    def _content(self, content: Content, slice_index: int) -> list[Piece] | None:
        """Return what is in a member; None if there is no label."""
        match content:
            case "image":
                return self._image(slice_index)
            case "label":
                return self._label(slice_index)
            case "metadata":
                text = json.dumps({"slice_index": slice_index} | self._metadata, ensure_ascii=False)
                return [self._piece(npy_of_text(text))]
        values = grid_array(self._stack, content, transpose=self._template.transpose)
        return [self._piece(npy_header(values.shape, "<f8") + values.tobytes())]

    def _image(self, slice_index: int) -> list[Piece]:
        return [self._image_header, *self._windows.of(slice_index) * self._template.copies]

    def _label(self, slice_index: int) -> list[Piece] | None:
        if self._stack.label is None:
            return None
        if not self._stack.label_counts[slice_index]:
            return [self._label_header, self._empty_label]
        plane = turned(self._stack.label_plane(slice_index), self._template)
        return [self._label_header, self._piece(np.ascontiguousarray(plane))]

    @cached_property
    def _empty_label(self) -> Piece:
        return self._piece(np.zeros(self._stack.shape[1:], dtype=self._settings.label_dtype))


def turned(plane: NDArray[Any], template: FileTemplate) -> NDArray[Any]:
    """Return a plane with rows and columns exchanged if a template says so."""
    return plane.T if template.transpose else plane


# No method: the writer would refer to itself, and the volume stay in memory for a while.
def _plane(
    plane: NDArray[np.float32], *, piece: Callable[[Any], Piece], template: FileTemplate, dtype: str
) -> Piece:
    return piece(np.ascontiguousarray(turned(plane, template), dtype=dtype))
