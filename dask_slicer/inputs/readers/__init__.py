"""Readers of volumes: one module for each family of file formats.

A path may end in the number of one volume of a 4D file, as AFNI writes it: ``scan.nii.gz[2]`` is
the third.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dask_slicer.errors import CaseError, as_case_error
from dask_slicer.inputs.readers import metaimage, mgh, nifti, nrrd
from dask_slicer.inputs.readers.base import Reader, VolumeHeader, split_volume

READERS: tuple[Reader, ...] = (nifti, mgh, nrrd, metaimage)


def volume_suffixes() -> tuple[str, ...]:
    """Return the suffixes of all readers, in lower case, the longest first."""
    return _longest_first(*[reader.SUFFIXES for reader in READERS])


@lru_cache(maxsize=1)  # the same for thousands of files
def _longest_first(*suffixes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(chain.from_iterable(suffixes), key=len, reverse=True))


def read_header(path: str | Path, *, orientation_from: str = "sform") -> VolumeHeader:
    """Return a volume's header, without reading its voxels; see `Reader.read_header`."""
    path = os.fspath(path)
    file, volume = split_volume(path)
    with _naming(path):
        header = _reader_of(file).read_header(
            file, volume=volume, orientation_from=orientation_from
        )
    return header if volume is None else replace(header, path=path)


def read_voxels(
    path: str | Path, *, orientation_from: str = "sform", scratch_dir: str = ""
) -> tuple[VolumeHeader, NDArray[np.generic]]:
    """Return a volume's header and its voxels as stored; see `Reader.read_voxels`."""
    return read_volumes([path], orientation_from=orientation_from, scratch_dir=scratch_dir)[0]


def read_volumes(
    paths: Sequence[str | Path], *, orientation_from: str = "sform", scratch_dir: str = ""
) -> list[tuple[VolumeHeader, NDArray[np.generic]]]:
    """Return headers and stored voxels of volumes; a file of several is inflated once."""
    headers = [read_header(path, orientation_from=orientation_from) for path in paths]
    files = [split_volume(os.fspath(path))[0] for path in paths]
    voxels: dict[int, NDArray[np.generic]] = {}
    for file in dict.fromkeys(files):
        numbers = [number for number, other in enumerate(files) if other == file]
        with _naming(file):
            arrays = _reader_of(file).read_voxels(
                [headers[number] for number in numbers], scratch_dir=scratch_dir
            )
        voxels.update(zip(numbers, arrays, strict=True))
    return [(header, voxels[number]) for number, header in enumerate(headers)]


def stored_header(path: str | Path) -> bytes:
    """Return the header of a NIfTI file as it is stored; empty for other formats."""
    file, _ = split_volume(os.fspath(path))
    with _naming(file):
        return nifti.stored_header(file) if _reader_of(file) is nifti else b""


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Put the path before the message of an error."""
    try:
        yield
    except CaseError as error:
        raise type(error)(f"{path}: {error}") from None
    except (OSError, MemoryError) as error:
        raise as_case_error(error, step="load") from error


def _reader_of(path: str) -> Reader:
    name = path.lower()
    for reader in READERS:
        if name.endswith(reader.SUFFIXES):
            return reader
    return nifti  # which recognises its files by their bytes, and says so of others
