"""Arrays in .npy, .npz and .h5 files: HDF5 plane by plane, and reading for comparisons."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dask_slicer.errors import CorruptFile, UsageError
from dask_slicer.output.formats import png
from dask_slicer.utils.files import read_bytes

if TYPE_CHECKING:
    import h5py

# Shape, dtype, and parts in the order of the file.
Volume = tuple[tuple[int, ...], Any, Iterable[NDArray[Any]]]


def h5_bytes(contents: dict[str, Volume], *, level: int) -> bytes:
    """Return an HDF5 file of arrays, in chunks of their parts: planes, or the array itself.

    It is made in memory: HDF5 crashes the process if it cannot write to a disk that is full.
    """
    options = {"compression": "gzip", "compression_opts": level} if level else {}
    h5py = import_h5py()
    with h5py.File("slices.h5", "w", driver="core", backing_store=False) as file:
        for name, content in contents.items():
            _write_dataset(file, name, content, options)
        file.flush()
        return bytes(file.id.get_file_image())


def _write_dataset(file: h5py.File, name: str, content: Volume, options: dict[str, Any]) -> None:
    shape, dtype, parts = content
    for number, part in enumerate(parts):
        outer = shape[: len(shape) - part.ndim]
        if number == 0:
            chunks = (*(1,) * len(outer), *part.shape)
            dataset = file.create_dataset(name, shape, dtype, chunks=chunks, **options)
        dataset[np.unravel_index(number, outer) if outer else ...] = part


def import_h5py() -> Any:
    """Return h5py; raise UsageError if it is not installed."""
    try:
        import h5py
    except ImportError:
        raise UsageError(
            "files with the ending .h5 need h5py: python -m pip install 'dask_slicer[h5]'"
        ) from None
    return h5py


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays in a file by name, without metadata; raise CorruptFile if damaged."""
    try:
        match path.suffix:
            case ".h5":
                with import_h5py().File(path, "r") as file:
                    return {name: dataset[()] for name, dataset in file.items()}
            case ".npz":
                with np.load(path, allow_pickle=False) as archive:
                    return {name: archive[name] for name in archive if archive[name].ndim}
            case ".npy":
                return {"": np.load(path, allow_pickle=False)}
            case ".png":
                return {"": png.decode(read_bytes(path))}
        return {}
    except (FileNotFoundError, PermissionError, UsageError):
        raise
    except Exception as error:  # libraries raise errors of many kinds for damaged files
        raise CorruptFile(f"{path} is damaged ({error})") from None


def same_arrays(path: Path, other: Path, *, tolerance: float) -> bool:
    """Return whether two files hold the same arrays; floats may differ by a tolerance."""
    stored, derived = read_arrays(path), read_arrays(other)
    return stored.keys() == derived.keys() and all(
        _same(array, derived[name], tolerance) for name, array in stored.items()
    )


def _same(array: NDArray[Any], other: NDArray[Any], tolerance: float) -> bool:
    if array.shape != other.shape or array.dtype != other.dtype:
        return False
    if array.dtype.kind != "f":
        return bool((array == other).all())
    return bool(np.allclose(array, other, rtol=tolerance, atol=tolerance, equal_nan=True))
