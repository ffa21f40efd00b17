"""Codecs of a Zarr store, by what is stored."""

from __future__ import annotations

import numpy as np
import pytest

from dask_slicer.output.formats.zarr_writer import image_codec


@pytest.mark.parametrize(
    ("compression", "dtype", "name", "shuffle"),
    [
        ("auto", "int16", "lz4", "shuffle"),
        ("auto", "uint16", "lz4", "shuffle"),
        ("auto", "uint8", "zstd", None),
        ("auto", "float32", "zstd", None),
        ("auto", "float16", "zstd", "shuffle"),
        ("zstd", "int16", "zstd", "shuffle"),
        ("lz4", "float32", "lz4", "noshuffle"),
        ("auto", "source float32", "zstd", "shuffle"),
        ("auto", "source float64", "zstd", "shuffle"),
        ("none", "int16", None, None),
    ],
)
def test_codecs_are_chosen_by_the_stored_dtype(compression, dtype, name, shuffle):
    source = dtype.startswith("source") or "int" in dtype
    codec = image_codec(compression, np.dtype(dtype.split()[-1]), source=source)
    first = codec.zarr_codecs[0].to_dict()
    settings = first.get("configuration", {})
    assert (settings.get("shuffle"), settings.get("cname", first["name"])) == (
        shuffle,
        name or "crc32c",
    )
