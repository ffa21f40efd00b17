"""Readers of volumes: one module for each family of file formats."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dask_slicer.inputs.readers import nifti
from dask_slicer.inputs.readers.base import Reader, VolumeHeader

READERS: tuple[Reader, ...] = (nifti,)


def volume_suffixes() -> tuple[str, ...]:
    """Return the suffixes of all readers, in lower case, the longest first."""
    suffixes = (suffix for reader in READERS for suffix in reader.SUFFIXES)
    return tuple(sorted(suffixes, key=len, reverse=True))


def read_header(path: str | Path) -> VolumeHeader:
    """Return a volume's header, without reading its voxels; see `Reader.read_header`."""
    return _reader_of(path).read_header(path)


def read_voxels(path: str | Path) -> tuple[VolumeHeader, NDArray[np.generic]]:
    """Return a volume's header and its voxels as stored; see `Reader.read_voxels`."""
    return _reader_of(path).read_voxels(path)


def _reader_of(path: str | Path) -> Reader:
    name = os.fspath(path).lower()
    for reader in READERS:
        if name.endswith(reader.SUFFIXES):
            return reader
    return nifti  # which recognises its files by their bytes, and says so of others
