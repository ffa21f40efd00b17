"""Codecs for the chunks of a Zarr array: how small planes become, how long it takes, and back."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numcodecs
import numpy as np
from datasets import ct
from numcodecs import blosc
from numpy.typing import NDArray

from dask_slicer.output.formats.zarr_planes import one_thread

_Plane = NDArray[np.generic]
_SHUFFLES = {
    "": blosc.NOSHUFFLE,
    " shuffle": blosc.SHUFFLE,
    " bitshuffle": blosc.BITSHUFFLE,
}


def compressors(work: Path, *, shape: tuple[int, int, int], repeats: int) -> dict[str, Any]:
    """Return, by codec and by what a plane holds, share of raw bytes and milliseconds a plane.

    Parameters
    ----------
    work : Path
    shape : tuple of int
        Of the CT phantom whose planes are compressed.
    repeats : int
        The fastest of which is taken.
    """
    of_kind = _planes(ct(work, 1, shape))
    found: dict[str, dict[str, Any]] = {}
    with one_thread:
        for name, (encode, decode) in _codecs().items():
            found[name] = {
                kind: _measured(planes, encode, decode, repeats) for kind, planes in of_kind.items()
            }
    return {"shape": list(shape), "repeats": repeats, "codecs": found}


def _codecs() -> dict[str, tuple[Callable[[_Plane], bytes], Callable[[bytes, _Plane], object]]]:
    """Return functions from a plane to its chunk and back, by name."""
    found = {
        f"zstd {level}": (numcodecs.Zstd(level=level).encode, numcodecs.zstd.decompress)
        for level in (1, 3, 5)
    }
    for name, levels in {"lz4": (5, 9), "zstd": (1, 3)}.items():
        for level in levels:
            for said, shuffle in _SHUFFLES.items():
                encode = partial(_blosc, name.encode(), level, shuffle)
                found[f"Blosc {name} {level}{said}"] = encode, blosc.decompress
    return found


def _blosc(name: bytes, level: int, shuffle: int, plane: _Plane) -> bytes:
    return bytes(blosc.compress(plane, name, level, shuffle))


def _planes(scans: Path) -> dict[str, list[_Plane]]:
    """Return planes as each --dtype stores them, and of the label."""

    def volume(pattern: str) -> NDArray[Any]:
        loaded = nib.load(next(scans.glob(pattern)))
        return np.ascontiguousarray(np.moveaxis(np.asanyarray(loaded.dataobj), -1, 0))

    image = volume("imagesTr/*")
    height = np.linspace(0, 1, image.shape[1])[:, None]
    normalized = ((image - image.mean()) / image.std()).astype(np.float32)
    return {
        "int16": list(image),
        "float32": list(normalized),
        "float16": list(normalized.astype(np.float16)),
        # Between slices, at another height in every row: as scans moved onto an oblique grid.
        "resampled": list((image[1:] * height + image[:-1] * (1 - height)).astype(np.float32)),
        "label": list(volume("labelsTr/*")),
    }


def _measured(
    planes: list[_Plane],
    encode: Callable[[_Plane], bytes],
    decode: Callable[[bytes, _Plane], object],
    repeats: int,
) -> dict[str, float]:
    into = np.empty_like(planes[0])
    chunks: list[bytes] = []
    encoded, decoded = [], []
    for _ in range(repeats):
        started = time.process_time()
        chunks = [encode(plane) for plane in planes]
        encoded.append(time.process_time() - started)
        started = time.process_time()
        for chunk in chunks:
            decode(chunk, into)
        decoded.append(time.process_time() - started)
    np.testing.assert_array_equal(into, planes[-1])
    return {
        "share": sum(map(len, chunks)) / sum(plane.nbytes for plane in planes),
        "encode_ms": 1e3 * min(encoded) / len(planes),
        "decode_ms": 1e3 * min(decoded) / len(planes),
    }
