"""Slices as .npz files: reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from dask_slicer.errors import CorruptFile
from dask_slicer.output.formats.base import Planes, Scaling, Slice
from dask_slicer.output.formats.npz_members import Arrays, WrittenArrays, ZipArrays
from dask_slicer.utils.files import open_file, parse_json


def _unknown(_: int) -> None:
    """Return that the CRC-32 of a file is not known."""


class NpzReader:
    """Reads a case of .npz files; raises CorruptFile or OSError, which name the file.

    Parameters
    ----------
    path_of : callable
        Returns the path of a slice.
    crc32_of : callable
        Returns the CRC-32 of the file of a slice, as it was written, or None if it is not known. Of
        a file that has it, only the planes that are wanted are inflated.
    """

    def __init__(
        self,
        path_of: Callable[[int], Path],
        crc32_of: Callable[[int], int | None] = _unknown,
    ) -> None:
        self._path_of = path_of
        self._crc32_of = crc32_of

    def window(self, slice_index: int, window_size: int | None) -> ArrayWindow | WrittenWindow:
        """Return a window, or its middle part, and its label."""
        by_zipfile = partial(self._by_zipfile, slice_index, window_size)
        with suppress(Exception):  # zipfile then reads the file, or says what is wrong with it
            return WrittenWindow.of(self._written(slice_index), window_size, by_zipfile)
        return by_zipfile()

    def read(self, slice_index: int, window_size: int | None) -> Slice:
        """Return a window, or its middle part, and its label."""
        window = self.window(slice_index, window_size)
        image = np.empty(window.shape, np.float32)
        window.read_image(image, {})
        return image, window.label

    def stored(self, slice_index: int) -> tuple[str, NDArray[np.integer] | None]:
        """Return dtype and shape of the image, which is not inflated, and the label."""
        with _opened(self._path_of(slice_index)) as archive:
            arrays = ZipArrays(archive)
            shape, _, dtype, _ = arrays.header("image")
            label = _label(arrays, shape)
        return f"{dtype} {shape}", label

    def metadata(self, slice_index: int) -> dict[str, Any]:
        """Return the metadata of a slice."""
        with suppress(Exception):
            return _read(self._written(slice_index), None).metadata
        with _opened(self._path_of(slice_index)) as archive:
            return _read(ZipArrays(archive), None).metadata

    def _written(self, slice_index: int) -> WrittenArrays:
        return WrittenArrays(self._path_of(slice_index), partial(self._crc32_of, slice_index))

    def _by_zipfile(self, slice_index: int, window_size: int | None) -> ArrayWindow:
        with _opened(self._path_of(slice_index)) as archive:
            members = _read(ZipArrays(archive), window_size)
        return ArrayWindow(members.image, members.label)


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

    def whole_image(self) -> None:
        """Return None: the array may not be one of its own."""

    def read_label(self, out: NDArray[Any]) -> None:
        """Read the label map."""
        if self.label is None:
            raise LookupError("the slice has no label")
        out[...] = self.label

    def scaling(self) -> Scaling:
        """Return what turns the stored numbers into intensities."""
        return Scaling.of_intensities(len(self.image), offset=-float(self.offset))


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenWindow:
    """A window in a file that `npz_archive` wrote, inflated into the array that is given.

    `by_zipfile` reads it where that fails.
    """

    arrays: WrittenArrays
    planes: slice
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    is_whole: bool  # all planes of the file are wanted
    label: NDArray[np.integer] | None
    by_zipfile: Callable[[], ArrayWindow]

    @classmethod
    def of(
        cls, arrays: WrittenArrays, window_size: int | None, by_zipfile: Callable[[], ArrayWindow]
    ) -> Self:
        """Return a window, or its middle part, whose image is not read yet."""
        metadata = parse_json(arrays.array("metadata").item())
        (n_channels, height, width), _, dtype, _ = arrays.image_header()
        planes = middle(n_channels, metadata["window_size"], window_size)
        return cls(
            arrays=arrays,
            planes=planes,
            shape=(planes.stop - planes.start, height, width),
            dtype=dtype,
            is_whole=planes == slice(0, n_channels),
            label=_label_of(arrays, (n_channels, height, width), metadata),
            by_zipfile=by_zipfile,
        )

    @property
    def label_dtype(self) -> np.dtype[Any] | None:
        """Return the dtype of the label map, None without one."""
        return None if self.label is None else self.label.dtype

    def read_image(self, out: NDArray[np.float32], planes: Planes) -> None:
        """Read the intensities."""
        self.read_stored(out, planes)

    def read_stored(self, out: NDArray[Any], planes: Planes) -> None:
        """Read the stored numbers."""
        with suppress(Exception):
            self.arrays.read_planes(self.planes, out)
            return
        self.by_zipfile().read_stored(out, planes)

    def whole_image(self) -> NDArray[np.float32] | None:
        """Return the image if all of it is wanted: it is inflated at once."""
        if self.dtype == np.float32 and self.is_whole:
            with suppress(Exception):
                return self.arrays.array("image")
        return None

    def read_label(self, out: NDArray[Any]) -> None:
        """Read the label map."""
        if self.label is None:
            raise LookupError("the slice has no label")
        out[...] = self.label

    def scaling(self) -> Scaling:
        """Return what turns the stored numbers into intensities."""
        return Scaling.of_intensities(self.shape[0])


class Members(NamedTuple):
    """Image (channel, row, column), label (row, column) and metadata of a slice."""

    image: NDArray[Any]
    label: NDArray[np.integer] | None
    metadata: dict[str, Any]


def middle(n_channels: int, written: Any, window_size: int | None) -> slice:
    """Return which channels of a window, written with so many neighbours, are its middle part.

    >>> middle(10, 2, 1)  # two modalities
    slice(2, 8, None)
    """
    if type(written) is not int or written < 0 or not n_channels or n_channels % (2 * written + 1):
        raise ValueError(f"{n_channels} channels are no window of {written} neighbours")
    outside = 0
    if window_size is not None:
        outside = max(written - window_size, 0) * (n_channels // (2 * written + 1))
    return slice(outside, n_channels - outside)


def _read(arrays: Arrays, window_size: int | None) -> Members:
    metadata = parse_json(arrays.array("metadata").item())
    written = metadata["window_size"]
    image = arrays.planes(lambda n_planes: middle(n_planes, written, window_size))
    return Members(image, _label_of(arrays, image.shape, metadata), metadata)


def _label_of(
    arrays: Arrays, shape: tuple[int, ...], metadata: dict[str, Any]
) -> NDArray[np.integer] | None:
    """Return the label map of an image of this shape, None if it was written without one."""
    label, shapes = _label(arrays, shape), metadata.get("shape")
    if label is None and isinstance(shapes, dict) and shapes.get("label"):
        raise ValueError("its label is missing")
    return label


def _label(arrays: Arrays, shape: tuple[int, ...]) -> NDArray[np.integer] | None:
    """Return the label map of an image of this shape, None without one."""
    if "label" not in arrays:
        return None
    label = arrays.array("label")
    if label.shape != shape[1:]:
        raise ValueError("label and image have other shapes")
    return label


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
