"""Blocks of a case's slices, written apart and joined to the files that are written at once.

::

    slices      0  1  2  3  4  5  6  7        window_size = 1, two blocks
    first       ■  ■  ■  ■  ·                 · is read for the windows of the block beside
    second               ·  ■  ■  ■  ■
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from dask_slicer.config.file_settings import FileTemplate
from dask_slicer.config.schema import SliceSettings
from dask_slicer.core.geometry import spacing
from dask_slicer.core.slices import SliceStack
from dask_slicer.core.windows import context_step
from dask_slicer.output.formats import written_plane
from dask_slicer.output.formats.base import unsized_slices
from dask_slicer.output.formats.npz import write_slices
from dask_slicer.output.layout import section, slice_name
from dask_slicer.planning.names import NO_NAMES, Names
from dask_slicer.planning.plan import CasePlan
from dask_slicer.records import OutputFile, WrittenPlane


class Block(NamedTuple):
    """Slices of a plane, given by its number, from `first` to before `stop`."""

    plane: int
    first: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenBlock:
    """A written block: its place below the folder of its part, and content that is joined."""

    block: Block
    folder: str
    content: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedPlane:
    """A plane of a case: record, and the files that are elsewhere than in its own folder."""

    written: WrittenPlane
    places: dict[str, Path]


def is_divisible(settings: SliceSettings, split: str) -> bool:
    """Return whether a case can be written in blocks: no file holds a volume of it."""
    if settings.format in ("npz", "zarr"):
        return True
    return settings.format in ("png", "files") and all(
        template.is_per_slice or {*template.contents} == {"metadata"}
        for template in settings.templates_of(split)
    )


def blocks_of(
    stacks: Sequence[SliceStack], settings: SliceSettings, n_blocks: int, *, fewest: int
) -> list[Block]:
    """Return about `n_blocks` blocks of a case, alternately of each plane.

    They are fewer if they would have less than `fewest` slices, and as many again for each slice
    that is read for their windows alone.
    """
    per_plane = max(n_blocks // len(stacks), 1)
    planes = [
        [Block(number, *ends) for ends in _ranges(stack, settings, per_plane, fewest)]
        for number, stack in enumerate(stacks)
    ]
    longest = max(map(len, planes))
    return [plane[i] for i in range(longest) for plane in planes if i < len(plane)]


def _ranges(
    stack: SliceStack, settings: SliceSettings, n_blocks: int, fewest: int
) -> Iterable[tuple[int, int]]:
    n_slices = stack.shape[0]
    if settings.format == "zarr":  # all slices, and none for the windows of others
        from dask_slicer.output.formats.zarr_blocks import shard_ends

        return _even(sorted(shard_ends(stack, settings)), n_slices, n_blocks, fewest)
    step = context_step(
        spacing=spacing(stack.affine)[0], step=settings.context_step, mm=settings.context_mm
    )
    fewest *= 1 + 2 * ceil(settings.window_size * step)
    numbers = _even([0], len(stack.kept), n_blocks, fewest)
    ends = [*stack.kept, n_slices]
    return [(ends[first], ends[stop]) for first, stop in numbers]


def _even(starts: Sequence[int], stop: int, n_ranges: int, fewest: int) -> list[tuple[int, int]]:
    """Return about `n_ranges` ranges up to `stop`, of about one length; some begin at `starts`.

    >>> _even([0, 30, 60], 66, 5, 1)
    [(0, 15), (15, 30), (30, 45), (45, 60), (60, 66)]
    """
    length = max(stop / n_ranges, fewest)
    ends: list[int] = []
    for first, last in pairwise([*starts, stop]):
        n_here = max(round((last - first) / length), 1)
        ends += [first + (last - first) * number // n_here for number in range(n_here)]
    return list(pairwise([*ends, stop]))


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFormat:
    """Writes blocks of a case, and joins them, in the format of its settings."""

    case: CasePlan
    settings: SliceSettings
    names: Names = NO_NAMES
    fsync: bool = False

    def write(self, stack: SliceStack, block: Block, folder: Path) -> WrittenBlock:
        """Write a block of a plane into a new folder in `folder`."""
        name = f"{block.plane}_{block.first}"
        (folder / name).mkdir()
        return WrittenBlock(
            block=block, folder=name, content=self._write(stack, block, folder / name)
        )

    def _write(self, stack: SliceStack, block: Block, folder: Path) -> Any:
        settings = self._settings(block.plane)
        if settings.format == "zarr":
            from dask_slicer.output.formats.zarr_blocks import write_block

            return write_block(stack, settings, folder, block.first, block.stop)
        bounds = (bisect_left(stack.kept, end) for end in (block.first, block.stop))
        part = replace(stack, kept=stack.kept[slice(*bounds)])
        if settings.format == "npz":
            return write_slices(
                part, self.case, settings, folder, names=self.names, fsync=self.fsync
            )
        from dask_slicer.output.formats.files import case_templates

        return {
            template.path: self._files(part, block.plane, folder, template)
            for template in case_templates(part, self.case, settings)
            if template.is_per_slice
        }

    def join(
        self,
        stacks: Sequence[SliceStack],
        blocks: Iterable[tuple[Path, WrittenBlock]],
        folders: Sequence[Path],
    ) -> list[JoinedPlane]:
        """Join all blocks, each given with the folder that it was written to.

        `folders` are empty, one for each plane. What is not of single slices is written there.
        """
        in_order = sorted(blocks, key=lambda item: item[1].block)
        joined = []
        for number, (stack, folder) in enumerate(zip(stacks, folders, strict=True)):
            contents = [
                (place / written.folder, written.content)
                for place, written in in_order
                if written.block.plane == number
            ]
            content, places = self._joined(stack, number, contents, folder)
            plane = self.settings.planes[number]
            joined.append(JoinedPlane(written=written_plane(plane, stack, content), places=places))
        return joined

    def _joined(
        self,
        stack: SliceStack,
        plane: int,
        blocks: Sequence[tuple[Path, Any]],
        folder: Path,
    ) -> tuple[dict[str, Any], dict[str, Path]]:
        """Return slices and files of a plane, as `WrittenPlane`, and where files are."""
        settings, case_id = self._settings(plane), self.case.case_id
        if settings.format == "zarr":
            from dask_slicer.output.formats.zarr_blocks import join_group

            group = folder / case_id
            content = join_group(
                stack, self.case, settings, group, blocks, names=self.names, fsync=self.fsync
            )
            return content, {}
        if settings.format == "npz":
            slices = tuple(chain.from_iterable(content for _, content in blocks))
            places = {
                name: place / name
                for place, content in blocks
                for each in content
                for name in (slice_name(case_id, each.slice_index, stack.shape[0]),)
            }
            return {"slices": slices}, places
        from dask_slicer.output.formats.files import case_templates

        files: list[OutputFile] = []
        for template in case_templates(stack, self.case, settings):
            if template.is_per_slice:
                files += chain.from_iterable(
                    content.get(template.path, ()) for _, content in blocks
                )
            else:
                files += self._files(stack, plane, folder, template)
        places = {
            file.path: place / file.path
            for place, content in blocks
            for file in chain.from_iterable(content.values())
        }
        return {"slices": unsized_slices(stack), "output_files": tuple(files)}, places

    def _settings(self, plane: int) -> SliceSettings:
        return self.settings.model_copy(update={"plane": self.settings.planes[plane]})

    def _files(
        self, stack: SliceStack, plane: int, folder: Path, template: FileTemplate
    ) -> tuple[OutputFile, ...]:
        from dask_slicer.output.formats.files import write_template

        plane_folder = self.settings.planes[plane] if self.settings.plane_folders else ""
        return write_template(
            stack,
            self.case,
            self._settings(plane),
            folder,
            template,
            names=self.names,
            fsync=self.fsync,
            section=section(self.case.split, plane_folder),
        )
