"""Slices as .npz files: writing and reading."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any, NamedTuple
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np
from numpy.typing import NDArray

from dask_slicer.config.file_settings import NPZ, Content, FileTemplate
from dask_slicer.config.schema import SliceSettings
from dask_slicer.core.slices import SliceStack
from dask_slicer.errors import CorruptFile
from dask_slicer.output.formats.base import (
    Planes,
    Scaling,
    Slice,
    Windows,
    case_metadata,
    grid_array,
    step_of,
)
from dask_slicer.output.formats.npz_archive import (
    MOST_DEFLATED,
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
from dask_slicer.utils.files import open_file, parse_json

_PIECE_BYTES = 1 << 18
# Number of axes and kinds of dtype of each array.
_ARRAYS = {"image": (3, "fiu"), "label": (2, "iu"), "metadata": (0, "U")}


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
            make=self._plane,
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
        plane = np.ascontiguousarray(self._turned(self._stack.label[slice_index]))
        return [self._label_header, self._piece(plane)]

    def _turned(self, plane: NDArray[Any]) -> NDArray[Any]:
        return plane.T if self._template.transpose else plane

    @cached_property
    def _empty_label(self) -> Piece:
        return self._piece(np.zeros(self._stack.shape[1:], dtype=self._settings.label_dtype))

    def _plane(self, plane: NDArray[np.float32]) -> Piece:
        return self._piece(np.ascontiguousarray(self._turned(plane), dtype=self._settings.dtype))


class NpzReader:
    """Reads a case of .npz files; raises CorruptFile or OSError, which name the file."""

    def __init__(self, path_of: Callable[[int], Path]) -> None:
        self._path_of = path_of

    def window(self, slice_index: int, window_size: int | None) -> ArrayWindow:
        """Return a window, or its middle part, and its label."""
        members = self._members(slice_index)
        image = members.image
        if window_size is not None:
            written = members.metadata["window_size"]
            outside = max(written - window_size, 0) * (len(image) // (2 * written + 1))
            image = image[outside : len(image) - outside]
        return ArrayWindow(image, members.label, self._offset)

    def read(self, slice_index: int, window_size: int | None) -> Slice:
        """Return a window, or its middle part, and its label."""
        window = self.window(slice_index, window_size)
        image = window.image.astype(np.float32, copy=False)
        if window.offset:
            image = image - np.float32(window.offset)
        return image, window.label

    @property
    def _offset(self) -> int:
        """Return what was added to intensities."""
        return 0

    def stored(self, slice_index: int) -> tuple[str, NDArray[np.integer] | None]:
        """Return dtype and shape of the image, which is not inflated, and the label."""
        with _opened(self._path_of(slice_index)) as archive:
            with archive.open("image.npy") as member:
                shape, _, dtype = _header(member, "image")
            label = _label(archive, shape)
        return f"{dtype} {shape}", label

    def metadata(self, slice_index: int) -> dict[str, Any]:
        """Return the metadata of a slice."""
        return self._members(slice_index).metadata

    def _members(self, slice_index: int) -> Members:
        with _opened(self._path_of(slice_index)) as archive:
            metadata = parse_json(_array(archive, "metadata").item())
            image = _array(archive, "image")
            w = metadata["window_size"]
            if type(w) is not int or w < 0 or not len(image) or len(image) % (2 * w + 1):
                raise ValueError(f"{len(image)} channels are no window of {w} neighbours")
            return Members(image, _label(archive, image.shape), metadata)


@dataclass(frozen=True, slots=True)
class ArrayWindow:
    """A window that is decoded, see `base.Window`; `offset` was added to intensities."""

    image: NDArray[Any]
    label: NDArray[np.integer] | None
    offset: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (channel, row, column)."""
        n_channels, height, width = self.image.shape
        return n_channels, height, width

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the dtype of the stored numbers."""
        return self.image.dtype

    @property
    def label_dtype(self) -> np.dtype[Any] | None:
        """Return the dtype of the label map, None without one."""
        return None if self.label is None else self.label.dtype

    def read_image(self, out: NDArray[np.float32], _: Planes) -> None:
        """Read the intensities."""
        out[...] = self.image
        if self.offset:
            out -= np.float32(self.offset)

    def read_stored(self, out: NDArray[Any], _: Planes) -> None:
        """Read the stored numbers."""
        out[...] = self.image

    def read_label(self, out: NDArray[Any]) -> None:
        """Read the label map."""
        if self.label is None:
            raise LookupError("the slice has no label")
        out[...] = self.label

    def scaling(self) -> Scaling:
        """Return what turns the stored numbers into intensities."""
        return Scaling.of_intensities(len(self.image), offset=-float(self.offset))


class Members(NamedTuple):
    """Image (channel, row, column), label (row, column) and metadata of a slice."""

    image: NDArray[Any]
    label: NDArray[np.integer] | None
    metadata: dict[str, Any]


@contextmanager
def _opened(path: Path) -> Iterator[ZipFile]:
    """Open an archive; raise CorruptFile, with the path, for whatever zipfile and numpy raise."""
    try:
        with open_file(path) as file, ZipFile(file) as archive:
            yield archive
    except Exception as error:  # they raise errors of many kinds for damaged files
        if isinstance(error, OSError) and error.filename:
            raise
        raise CorruptFile(f"{path} is damaged ({str(error) or type(error).__name__})") from None


def _label(archive: ZipFile, shape: tuple[int, ...]) -> NDArray[np.integer] | None:
    """Return the label map of an image of this shape, None without one."""
    if "label.npy" not in archive.namelist():
        return None
    label = _array(archive, "label")
    if label.shape != shape[1:]:
        raise ValueError("label and image have other shapes")
    return label


def _array(archive: ZipFile, name: str) -> NDArray[Any]:
    """Return an array; memory is reserved only as far as the file can hold it."""
    info = archive.getinfo(f"{name}.npy")
    # Other compressions are not ours, and could pack any number of bytes into a few.
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise ValueError(f"its {name} is neither stored nor deflated")
    with archive.open(info) as member:
        shape, is_fortran, dtype = _header(member, name)
        n_bytes = math.prod(shape) * dtype.itemsize
        if n_bytes != info.file_size - member.tell():
            raise ValueError(f"its {name} holds less or more than {dtype} {shape}")
        if info.file_size > MOST_DEFLATED * (archive.start_dir + 1):
            raise ValueError(f"the file is too small for {n_bytes} bytes of {name}")
        content = np.empty(n_bytes, np.uint8)
        for start in range(0, n_bytes, _PIECE_BYTES):  # faster than at once
            content.data[start : start + _PIECE_BYTES] = member.read(_PIECE_BYTES)
    return content.view(dtype).reshape(shape, order="F" if is_fortran else "C")


def _header(member: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether it is in Fortran order, and dtype; raise if it is no such array."""
    n_axes, kinds = _ARRAYS[name]
    read = np.lib.format.read_array_header_2_0
    if np.lib.format.read_magic(member) == (1, 0):
        read = np.lib.format.read_array_header_1_0
    shape, is_fortran, dtype = read(member)
    if len(shape) != n_axes or dtype.kind not in kinds:
        raise ValueError(f"its {name} holds {dtype} {shape}")
    return shape, is_fortran, dtype
