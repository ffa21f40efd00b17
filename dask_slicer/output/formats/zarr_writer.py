"""Cases as groups of a Zarr v3 store: every plane once, one shard per array.

    slices.zarr/<split>/<case_id>/     group; its attributes are the metadata of the case
        image/        (n_slices, modalities, height, width), chunks of one slice
        label/        (n_slices, height, width), chunks of one slice
        slice_index/  (n_kept,)

zarr-python writes the metadata, so plain Zarr readers can open the store; `zarr_shards` writes the
shards.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numcodecs
import numpy as np
import zarr
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec

from dask_slicer.config.schema import SliceSettings
from dask_slicer.core.slices import SliceStack
from dask_slicer.core.splits import SPLITS
from dask_slicer.core.volume import iterate_planes
from dask_slicer.errors import CorruptFile, Unexpected, UnsupportedImage
from dask_slicer.output.formats.base import case_metadata, read_json, unsized_slices
from dask_slicer.output.formats.zarr_planes import one_thread
from dask_slicer.output.formats.zarr_reader import source_attributes
from dask_slicer.output.formats.zarr_shards import ShardWriter, shard_path
from dask_slicer.output.layout import ZARR_METADATA, section
from dask_slicer.planning.names import NO_NAMES, Names
from dask_slicer.planning.plan import FORMAT_VERSION, CasePlan
from dask_slicer.records import WrittenFile, WrittenSlice

# Raw bytes of one shard, at most.
_SHARD_BYTES = 1 << 30
_GROUP = {"zarr_format": 3, "node_type": "group", "attributes": {}}
# Of each split, and of the root before the store is complete.
GROUP_TEXT = json.dumps(_GROUP, indent=2) + "\n"
# Above this number of cases, metadata is not consolidated: the file would take longer to write, and
# to open, than the folders of the cases to be listed.
MOST_CONSOLIDATED = 2000
# Bytes of the largest number in a Zarr array.
_MOST_ITEM_BYTES = 8


def write_group(
    stack: SliceStack,
    case: CasePlan,
    settings: SliceSettings,
    folder: Path,
    *,
    names: Names = NO_NAMES,
    fsync: bool,
) -> tuple[tuple[WrittenSlice, ...], tuple[WrittenFile, ...]]:
    """Write a case as a new Zarr group; return its slices and its files."""
    written: dict[str, tuple[int, int]] = {}
    for array in create_arrays(stack, case, settings, folder, names=names):
        written |= _write_array(array, folder, fsync=fsync)
    return group_content(stack, folder, written, fsync=fsync)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShardedArray:
    """An array of a case, one chunk per plane, in shards of several chunks.

    `planes(first, stop)` are the slices from `first` to before `stop`, as they are stored.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    codec: Codec
    dimension_names: tuple[str, ...]
    planes: Callable[[int, int], Iterable[NDArray[np.generic]]]

    @property
    def per_shard(self) -> int:
        """Return the number of chunks of a shard, of which the last may have fewer."""
        chunk_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        return min(self.shape[0], max(_SHARD_BYTES // chunk_bytes, 1))

    @property
    def shards(self) -> list[tuple[int, int]]:
        """Return the first slice of each shard, and the one after the last."""
        n_slices, per_shard = self.shape[0], self.per_shard
        return [
            (first, min(first + per_shard, n_slices)) for first in range(0, n_slices, per_shard)
        ]

    def chunks(self, first: int, stop: int) -> Iterator[bytes]:
        """Yield the chunks of slices, encoded except for their checksum."""
        for plane in self.planes(first, stop):
            yield self.codec.encode(np.ascontiguousarray(plane, dtype=self.dtype))


def arrays_of(stack: SliceStack, settings: SliceSettings) -> list[ShardedArray]:
    """Return the arrays of a case that have a chunk per plane: image, and label if it has one."""
    n_slices, height, width = stack.shape
    dtype = _image_dtype(stack, settings)
    image = ShardedArray(
        name="image",
        shape=(n_slices, len(stack.image), height, width),
        dtype=dtype,
        codec=image_codec(settings.compression, dtype, source=settings.dtype == "source"),
        dimension_names=("slice", "modality", "row", "column"),
        planes=partial(_image_planes, stack, settings, dtype),
    )
    if (label := stack.label) is None:
        return [image]
    return [
        image,
        ShardedArray(
            name="label",
            shape=stack.shape,
            dtype=label.dtype.newbyteorder("<"),
            codec=label_codec(settings.compression),
            dimension_names=("slice", "row", "column"),
            planes=lambda first, stop: iterate_planes(label[first:stop]),
        ),
    ]


def _write_array(array: ShardedArray, folder: Path, *, fsync: bool) -> dict[str, tuple[int, int]]:
    """Write the shards of an array into its group; return size and CRC-32 by path."""
    written = {}
    chunks = array.chunks(0, array.shape[0])
    for number, (first, stop) in enumerate(array.shards):
        path = shard_path(folder / array.name, number, len(array.shape))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file, one_thread:
            shard = ShardWriter(file, array.per_shard)
            for chunk in islice(chunks, stop - first):
                shard.append(chunk)
            written[path.relative_to(folder).as_posix()] = shard.finish(fsync=fsync)
    return written


def create_arrays(
    stack: SliceStack, case: CasePlan, settings: SliceSettings, folder: Path, *, names: Names
) -> list[ShardedArray]:
    """Create the group of a case, complete but for its shards; return the arrays that have some."""
    arrays = arrays_of(stack, settings)
    attributes = case_metadata(stack, case, settings, names) | _reading(stack, settings)
    group = zarr.create_group(folder, attributes=attributes, zarr_format=3)
    for array in arrays:
        group.create_array(
            array.name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=(1, *array.shape[1:]),
            shards=(array.per_shard, *array.shape[1:]),
            serializer=BytesCodec(endian="little"),
            compressors=array.codec.zarr_codecs,
            filters=None,
            fill_value=0,
            dimension_names=array.dimension_names,
        )
    group.create_array(
        "slice_index",
        data=np.array(stack.kept, dtype=np.int32),
        chunks=(max(len(stack.kept), 1),),
        compressors=None,
        dimension_names=("kept_slice",),
    )
    return arrays


def group_content(
    stack: SliceStack, folder: Path, shards: dict[str, tuple[int, int]], *, fsync: bool
) -> tuple[tuple[WrittenSlice, ...], tuple[WrittenFile, ...]]:
    """Return slices and files of a group on disk; `shards` are size and CRC-32 by path."""
    return unsized_slices(stack), tuple(_files(folder, shards, fsync=fsync))


def _image_dtype(stack: SliceStack, settings: SliceSettings) -> np.dtype[Any]:
    if settings.dtype != "source":
        return np.dtype(settings.dtype)
    dtype = np.result_type(*(voxels.stored.dtype for voxels in stack.image)).newbyteorder("<")
    if dtype.itemsize > _MOST_ITEM_BYTES:
        raise UnsupportedImage(f"--dtype source cannot hold {dtype.name}; use --dtype float32")
    return dtype


def _image_planes(
    stack: SliceStack, settings: SliceSettings, dtype: np.dtype[Any], first: int, stop: int
) -> Iterator[NDArray[np.generic]]:
    """Yield (modality, height, width) for slices, also dropped ones: windows need them."""
    if settings.dtype == "source":
        for stored in stack.stored_planes(first, stop):
            clipped = [
                normalization.clip_stored(plane)
                for normalization, plane in zip(stack.normalization, stored, strict=True)
            ]
            yield np.stack(clipped, dtype=dtype)
    else:
        for _, planes in stack.planes(range(first, stop)):
            # Numbers that become uint8 are whole, and fit.
            yield np.stack(planes, dtype=dtype, casting="unsafe")


def _reading(stack: SliceStack, settings: SliceSettings) -> dict[str, Any]:
    """Return the attributes of a group that its readers need."""
    attributes: dict[str, Any] = {"format_version": FORMAT_VERSION}
    if settings.dtype == "uint8":  # else it would need a normalisation
        attributes["image_dtype"] = "uint8"
    if settings.dtype != "source":
        return attributes
    own = [voxels.stored.dtype.name for voxels in stack.image]
    return attributes | source_attributes(stack.normalization) | {"stored_dtype": own}


def _files(
    folder: Path, known: dict[str, tuple[int, int]], *, fsync: bool
) -> Iterator[WrittenFile]:
    # Another run may have removed files, if it took the lock because this run seemed dead.
    for name in (ZARR_METADATA, *known):
        if not (folder / name).is_file():
            raise Unexpected(f"{folder / name} was removed while its case was being written")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name in known:
            yield WrittenFile(name, *known[name])
            continue
        data = path.read_bytes()
        if fsync:
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        yield WrittenFile(name, len(data), zlib.crc32(data))


# -- compression of planes -------------------------------------------------------------------------

# Measured by `benchmarks/compressors.py`. Shuffling groups bytes that vary little: the high bytes
# of integers, sign and exponent of floats. It does not help integers that were normalised to
# float32, which have few different values, nor labels, which are long runs of one value.


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
            return _blosc("lz4", 5, dtype.itemsize)
        if compression == "zstd":
            return _blosc("zstd", 1, dtype.itemsize)
    return _UNSHUFFLED[compression]


def label_codec(compression: str) -> Codec:
    """Return the codec for planes of a label map; auto is zstd."""
    return _UNSHUFFLED["zstd" if compression == "auto" else compression]


def _blosc(name: Literal["lz4", "zstd"], level: int, itemsize: int) -> Codec:
    shuffle: Literal["shuffle", "noshuffle"] = "shuffle" if itemsize > 1 else "noshuffle"
    codec = BloscCodec(typesize=itemsize, cname=name, clevel=level, shuffle=shuffle, blocksize=0)
    mode = blosc.SHUFFLE if itemsize > 1 else blosc.NOSHUFFLE
    encode = partial(blosc.compress, cname=name.encode(), clevel=level, shuffle=mode)
    return Codec((codec, Crc32cCodec()), encode)


_UNSHUFFLED = {
    "zstd": Codec((ZstdCodec(level=3), Crc32cCodec()), numcodecs.Zstd(level=3).encode),
    "lz4": _blosc("lz4", 9, 1),
    "none": Codec((Crc32cCodec(),), lambda plane: plane.tobytes()),
}


# -- the store as a whole --------------------------------------------------------------------------


def root_text(store: Path, split_of: Mapping[str, str], planes: Sequence[str] = ()) -> str:
    """Return the root's metadata, consolidated unless there are many cases."""
    if len(split_of) > MOST_CONSOLIDATED:
        return GROUP_TEXT
    return consolidated(store, split_of, planes)


def consolidated(store: Path, split_of: Mapping[str, str], planes: Sequence[str] = ()) -> str:
    """Return the root's metadata, which includes that of all groups and arrays.

    zarr-python's own function lists directories in no order, and takes minutes for thousands of
    cases. The structure is its convention. `planes` are those that have a folder.
    """
    folders = [section(split, plane) for split in SPLITS for plane in ("", *planes)]
    nodes: dict[str, Any] = {folder: dict(_GROUP) for folder in folders}
    cases = [
        f"{section(split, plane)}/{case_id}"
        for case_id, split in split_of.items()
        for plane in planes or ("",)
    ]
    for group in sorted(cases):
        for name in (group, *(f"{group}/{array}" for array in ("image", "label", "slice_index"))):
            # Without a label, or damaged: then its readers report it.
            with suppress(FileNotFoundError, CorruptFile):
                nodes[name] = read_json(store / name / ZARR_METADATA)
    for node in nodes.values():
        if node.get("node_type") == "group":
            node["consolidated_metadata"] = _inline({})
    return json.dumps({**_GROUP, "consolidated_metadata": _inline(nodes)}) + "\n"


def _inline(metadata: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "inline", "must_understand": False, "metadata": metadata}
