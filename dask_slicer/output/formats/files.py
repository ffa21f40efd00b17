"""A case as files by templates: PNG images and masks, and layouts that other projects read.

A template names a file for each slice, or one for the case, and says what is in it; see
`config.file_settings`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from dask_slicer.config.file_settings import Content, FileTemplate, stem_digits
from dask_slicer.config.schema import SliceSettings
from dask_slicer.core.slices import SliceStack
from dask_slicer.core.volume import iterate_planes
from dask_slicer.output.formats import png
from dask_slicer.output.formats.array_files import Volume, h5_bytes
from dask_slicer.output.formats.base import (
    Windows,
    case_metadata,
    grid_array,
    step_of,
    unsized_slices,
)
from dask_slicer.output.formats.npz import NpzWriter, turned
from dask_slicer.output.formats.npz_archive import (
    Piece,
    archive,
    npy_header,
    npy_of_text,
    piece,
    write_parts,
)
from dask_slicer.planning.names import Names
from dask_slicer.planning.plan import CasePlan
from dask_slicer.records import OutputFile, WrittenSlice

_Array = NDArray[Any]


def write_files(
    stack: SliceStack,
    case: CasePlan,
    settings: SliceSettings,
    folder: Path,
    *,
    names: Names,
    fsync: bool,
    section: str,
) -> tuple[tuple[WrittenSlice, ...], tuple[OutputFile, ...]]:
    """Write the files of a case below an empty folder; return its slices and files, images first.

    A case without a kept slice has no files.
    """
    templates = case_templates(stack, case, settings)
    write = partial(
        write_template, stack, case, settings, folder, names=names, fsync=fsync, section=section
    )
    return unsized_slices(stack), tuple(chain.from_iterable(map(write, templates)))


def case_templates(
    stack: SliceStack, case: CasePlan, settings: SliceSettings
) -> tuple[FileTemplate, ...]:
    """Return the templates of which a case has files, those with images first."""
    templates = settings.templates_of(case.split) if stack.kept else ()
    if stack.label is None:
        templates = tuple(each for each in templates if {*each.contents} != {"label"})
    return tuple(sorted(templates, key=lambda template: "image" not in template.contents))


def write_template(
    stack: SliceStack,
    case: CasePlan,
    settings: SliceSettings,
    folder: Path,
    template: FileTemplate,
    *,
    names: Names,
    fsync: bool,
    section: str,
) -> tuple[OutputFile, ...]:
    """Write the files of one template, of each kept slice or of the case; return them."""
    digits = stem_digits(stack.shape[0])
    (folder / template.folder(section)).mkdir(parents=True, exist_ok=True)
    writer = _Writer(stack, case, settings, names, template, fsync)
    write = writer.slices if template.is_per_slice else writer.volume
    files = []
    for slice_index in stack.kept if template.is_per_slice else (0,):
        path = template.file(case.case_id, section, slice_index, digits=digits)
        size, crc32 = write(os.path.join(folder, path), slice_index)
        files.append(OutputFile(path, size, crc32))
    return tuple(files)


@dataclass
class _Writer:
    """Writes the files of one template, slices in ascending order."""

    stack: SliceStack
    case: CasePlan
    settings: SliceSettings
    names: Names
    template: FileTemplate
    fsync: bool

    @cached_property
    def _metadata(self) -> dict[str, Any]:
        return case_metadata(self.stack, self.case, self.settings, self.names)

    # -- a file for each slice ---------------------------------------------------------------------

    def slices(self, path: str, slice_index: int) -> tuple[int, int]:
        """Write the file of a slice; return its size and CRC-32."""
        if self.template.suffix == ".npz":
            parts, crc32 = self._npz_slice(slice_index)
            return write_parts(Path(path), parts, fsync=self.fsync), crc32
        if self.template.suffix == ".json":
            return self._write(path, [_json({"slice_index": slice_index} | self._metadata)])
        arrays = {
            name: array
            for name, content in self.template.holds.items()
            if (array := self._slice_content(content, slice_index)) is not None
        }
        if self.template.suffix == ".h5":
            contents: dict[str, Volume]
            contents = {name: (a.shape, a.dtype, [a]) for name, a in arrays.items()}
            return self._write_h5(path, contents)
        (array,) = arrays.values()
        if self.template.suffix == ".png":
            return self._write(path, [self._png(array)])
        return self._write(path, [npy_header(array.shape, array.dtype), array.data])

    def _png(self, pixels: _Array) -> bytes:
        is_empty = pixels.ndim == 2 and not pixels.any()
        return self._empty_png if is_empty else png.encode(pixels, level=self._level)

    @cached_property
    def _empty_png(self) -> bytes:
        """Return the file of an image or a mask of zeros, as most masks of a case may be."""
        (content,) = self.template.contents
        dtype = self.settings.dtype if content == "image" else self.settings.label_dtype
        height, width = self.stack.shape[1:]
        zeros = turned(np.zeros((height, width), dtype), self.template)
        return png.encode(zeros, level=self._level)

    @property
    def _level(self) -> int:
        return self.settings.compression_level

    def _npz_slice(self, slice_index: int) -> tuple[list[bytes], int]:
        if self.template.channels != "last":
            return self._npz.archive(slice_index)
        members = [
            (f"{name}.npy", self._npy_pieces(array))
            for name, content in self.template.holds.items()
            if (array := self._slice_content(content, slice_index)) is not None
        ]
        return archive(members, level=self._level)

    @cached_property
    def _npz(self) -> NpzWriter:
        return NpzWriter(self.stack, self.case, self.settings, self.names, template=self.template)

    def _npy_pieces(self, array: _Array) -> list[Piece]:
        level = self._level
        if array.dtype.kind == "U":
            return [piece(npy_of_text(str(array)), level=level)]
        return [
            piece(npy_header(array.shape, array.dtype), level=level),
            piece(np.ascontiguousarray(array), level=level),
        ]

    def _slice_content(self, content: Content, slice_index: int) -> _Array | None:
        """Return what a file of a slice holds; None if there is no label."""
        match content:
            case "image":
                planes = self._windows.of(slice_index)
                return np.ascontiguousarray(self._laid_out(planes), dtype=self.settings.dtype)
            case "label":
                if self.stack.label is None:
                    return None
                return np.ascontiguousarray(
                    turned(self.stack.label_plane(slice_index), self.template)
                )
            case "metadata":
                metadata = {"slice_index": slice_index} | self._metadata
                return np.array(json.dumps(metadata, ensure_ascii=False))
        return grid_array(self.stack, content, transpose=self.template.transpose)

    @cached_property
    def _windows(self) -> Windows[_Array]:
        zero = self.settings.offset or 0 if self.settings.is_exact else 0
        zeros = turned(np.full(self.stack.shape[1:], zero, np.float32), self.template)
        step = step_of(self._metadata)
        # No method: the writer would refer to itself, and the volume stay in memory for a while.
        make = partial(turned, template=self.template)
        return Windows(self.stack, self.settings, step=step, make=make, zeros=zeros)

    def _laid_out(self, planes: list[_Array]) -> _Array:
        """Return planes as one array, with channels where the template has them."""
        planes = planes * self.template.copies
        if self.template.suffix == ".png":
            return planes[0] if len(planes) == 1 else np.stack(planes, axis=-1)
        match self.template.channels:
            case "none":
                return planes[0]
            case "last":
                return np.stack(planes, axis=-1)
        return np.stack(planes)

    # -- a file for the case -----------------------------------------------------------------------

    def volume(self, path: str, _: int) -> tuple[int, int]:
        """Write the file of a whole case; return its size and CRC-32."""
        suffix, level = self.template.suffix, self._level
        if suffix == ".json":
            return self._write(path, [_json(self._metadata)])
        if suffix == ".h5":
            return self._write_h5(path, self._contents())
        if suffix == ".npy":
            ((shape, dtype, parts),) = self._contents().values()
            return self._write(path, chain([npy_header(shape, dtype)], parts))
        members = []
        for name, (shape, dtype, parts) in self._contents().items():
            if np.dtype(dtype).kind == "U":
                text = json.dumps(self._metadata, ensure_ascii=False)
                pieces = [piece(npy_of_text(text), level=level)]
            else:
                pieces = [piece(npy_header(shape, dtype), level=level)]
                pieces += [piece(part, level=level) for part in parts]
            members.append((f"{name}.npy", pieces))
        archived, crc32 = archive(members, level=level)
        return write_parts(Path(path), archived, fsync=self.fsync), crc32

    def _contents(self) -> dict[str, Volume]:
        contents = {n: self._volume_content(c) for n, c in self.template.holds.items()}
        return {name: content for name, content in contents.items() if content is not None}

    def _volume_content(self, content: Content) -> Volume | None:
        """Return shape, dtype and parts, plane by plane, of what the file of a case holds."""
        n_slices, height, width = self.stack.shape
        if self.template.transpose:
            height, width = width, height
        match content:
            case "image":
                n = len(self.stack.image) * self.template.copies
                shape = {
                    "none": (n_slices, height, width),
                    "first": (n, n_slices, height, width),
                    "last": (n_slices, height, width, n),
                }[self.template.channels]
                return shape, self.settings.dtype, self._image_parts()
            case "label":
                if self.stack.label is None:
                    return None
                planes = (
                    np.ascontiguousarray(turned(plane, self.template))
                    for plane in iterate_planes(self.stack.label)
                )
                return (n_slices, height, width), self.stack.label.dtype, planes
            case "metadata":
                return (), "<U1", ()
        values = grid_array(self.stack, content, transpose=self.template.transpose)
        return values.shape, values.dtype, [values]

    def _image_parts(self) -> Iterator[_Array]:
        wanted = range(self.stack.shape[0])
        if self.template.channels == "first":
            for number in [*range(len(self.stack.image))] * self.template.copies:
                for _, planes in self.stack.planes(wanted):
                    yield self._stored(turned(planes[number], self.template))
            return
        for _, planes in self.stack.planes(wanted):
            yield self._stored(self._laid_out([turned(plane, self.template) for plane in planes]))

    def _stored(self, array: _Array) -> _Array:
        return np.ascontiguousarray(array, dtype=self.settings.dtype)

    # -- writing -----------------------------------------------------------------------------------

    def _write_h5(self, path: str, contents: dict[str, Volume]) -> tuple[int, int]:
        return self._write(path, [h5_bytes(contents, level=self._level)])

    def _write(self, path: str, parts: Iterable[Any]) -> tuple[int, int]:
        size = crc32 = 0
        # Without a buffer: opening it takes longer than writing a mask.
        with open(path, "xb", buffering=0) as file:
            for part in parts:
                data = part if isinstance(part, bytes) else memoryview(part).cast("B")
                written = 0
                while written < len(data):  # a disk that is nearly full takes a part
                    written += file.write(data[written:] if written else data)
                crc32 = isal_zlib.crc32(data, crc32)
                size += len(data)
            if self.fsync:
                os.fsync(file.fileno())
        return size, crc32


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()
