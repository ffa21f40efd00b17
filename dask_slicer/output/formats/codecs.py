"""Compression of planes in a Zarr store.

`benchmarks/compressors.py` measures it. Shuffling groups bytes that vary little: the high bytes of
integers, sign and exponent of floats. It does not help integers that were normalised to float32,
which have few different values, nor labels, which are long runs of one value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numcodecs
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

if TYPE_CHECKING:
    from zarr.abc.codec import BytesBytesCodec


@dataclass(frozen=True, slots=True)
class Codec:
    """Compression of a chunk, and its description in the metadata of the store."""

    zarr_codecs: tuple[BytesBytesCodec, ...]
    encode: Callable[[NDArray[np.generic]], bytes]


def image_codec(compression: str, dtype: np.dtype[Any], *, source: bool) -> Codec:
    """Return the codec for planes of an image; `source`: with the scan's values, not normalised."""
    if compression == "auto":
        # lz4 is the fastest to read, and nearly as small for integers of several bytes.
        compression = "lz4" if dtype.kind in "iu" and dtype.itemsize > 1 else "zstd"
    if dtype.itemsize > 1 and (source or dtype == np.float16):
        if compression == "lz4":
            return _blosc("lz4", 5, dtype.itemsize, shuffled=True)
        if compression == "zstd":
            return _blosc("zstd", 1, dtype.itemsize, shuffled=True)
    return _UNSHUFFLED[compression]


def label_codec(compression: str) -> Codec:
    """Return the codec for planes of a label map; auto is zstd."""
    return _UNSHUFFLED["zstd" if compression == "auto" else compression]


def _blosc(name: Literal["lz4", "zstd"], level: int, itemsize: int, *, shuffled: bool) -> Codec:
    codec = BloscCodec(
        typesize=itemsize,
        cname=name,
        clevel=level,
        shuffle="shuffle" if shuffled else "noshuffle",
        blocksize=0,
    )
    shuffle = blosc.SHUFFLE if shuffled else blosc.NOSHUFFLE
    encode = partial(blosc.compress, cname=name.encode(), clevel=level, shuffle=shuffle)
    return Codec((codec, Crc32cCodec()), encode)


_UNSHUFFLED = {
    "zstd": Codec((ZstdCodec(level=3), Crc32cCodec()), numcodecs.Zstd(level=3).encode),
    "lz4": _blosc("lz4", 9, 1, shuffled=False),
    "none": Codec((Crc32cCodec(),), lambda plane: plane.tobytes()),
}
