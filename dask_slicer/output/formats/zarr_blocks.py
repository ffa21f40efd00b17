"""Blocks of a case's planes in Zarr: pieces of shards, which are then joined to a group."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dask_slicer.config.schema import SliceSettings
from dask_slicer.core.slices import SliceStack
from dask_slicer.output.formats.zarr_planes import one_thread
from dask_slicer.output.formats.zarr_shards import ShardPiece, ShardWriter, join_pieces, shard_path
from dask_slicer.output.formats.zarr_writer import arrays_of, create_arrays, group_content
from dask_slicer.planning.names import Names
from dask_slicer.planning.plan import CasePlan


class ZarrBlock(NamedTuple):
    """A written block: its first slice, and a piece of a shard of each array, by name."""

    first: int
    pieces: dict[str, ShardPiece]


def shard_ends(stack: SliceStack, settings: SliceSettings) -> set[int]:
    """Return the slices at which a shard of an array begins: no block reaches over them."""
    return {first for array in arrays_of(stack, settings) for first, _ in array.shards}


def write_block(
    stack: SliceStack, settings: SliceSettings, folder: Path, first: int, stop: int
) -> ZarrBlock:
    """Write the chunks of slices from `first` to before `stop` into files of an empty folder."""
    pieces = {}
    for array in arrays_of(stack, settings):
        with open(folder / array.name, "xb") as file, one_thread:
            writer = ShardWriter(file, array.per_shard)
            for chunk in array.chunks(first, stop):
                writer.append(chunk)
        pieces[array.name] = writer.piece()
    return ZarrBlock(first, pieces)


def join_group(
    stack: SliceStack,
    case: CasePlan,
    settings: SliceSettings,
    folder: Path,
    blocks: Sequence[tuple[Path, ZarrBlock]],
    *,
    names: Names,
    fsync: bool,
) -> dict[str, Any]:
    """Make a new group of blocks, whose files it takes; return its slices and files by name."""
    blocks = sorted(blocks, key=lambda block: block[1].first)
    written = {}
    for array in create_arrays(stack, case, settings, folder, names=names):
        for number, (first, stop) in enumerate(array.shards):
            pieces = [
                (place / array.name, block.pieces[array.name])
                for place, block in blocks
                if first <= block.first < stop
            ]
            path = shard_path(folder / array.name, number, len(array.shape))
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(pieces[0][0], path)
            pieces[0] = (path, pieces[0][1])
            written[path.relative_to(folder).as_posix()] = join_pieces(
                pieces, array.per_shard, fsync=fsync
            )
    slices, files = group_content(stack, folder, written, fsync=fsync)
    return {"slices": slices, "files": files}
