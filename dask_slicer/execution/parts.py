"""Tasks of a large case that several workers write: blocks of its slices, in parts.

Each part writes into a folder of its own, so a part may run twice, on two workers. The last task
takes the parts that it was given; what other tasks left is removed with the case's folder.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dask_slicer.core.shared import SharedStack, share
from dask_slicer.core.volume import Volume
from dask_slicer.errors import CaseError, DiskFull, WorkerLost
from dask_slicer.execution.tasks import (
    StepResult,
    Target,
    committed_case,
    entries_in,
    move_into_place,
    plane_folders_in,
    save_case,
    slice_case,
    temporary_folder,
    timed_step,
    without_frames,
)
from dask_slicer.output.formats.blocks import Block, BlockFormat, WrittenBlock, blocks_of
from dask_slicer.records import CommittedCase

# Dask repeats tasks whose results it has lost; what they wrote may then be moved or removed. The
# case runs again, as a whole.
_REPEATED = "a worker that ran a part of it was lost, and files of that part are gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedCase:
    """A sliced case that other workers can open, the blocks to write, and a folder for files."""

    stacks: tuple[SharedStack, ...]
    blocks: tuple[Block, ...]
    folder: str


Sliced = StepResult[SharedCase] | CommittedCase | CaseError


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenPart:
    """Written blocks, the folder that they are in, and the seconds that it took."""

    blocks: tuple[WrittenBlock, ...]
    folder: str
    seconds: float


def slice_to_share(
    loaded: StepResult[Volume], target: Target, *, n_parts: int, fewest: int
) -> StepResult[SharedCase] | CommittedCase:
    """Return a case's slices, in blocks for other workers, `fewest` slices in each at least.

    Arrays in memory are written to files for this. If the disk has no room for these, the case is
    saved at once.
    """
    sliced = slice_case(loaded, target)
    folder = Path(target.output_dir, target.temporary, uuid.uuid4().hex)
    try:
        with timed_step("slice", sliced.seconds, target.run_id) as seconds:
            temporary_folder(target)
            folder.mkdir(parents=True)
            stacks = share(sliced.result, str(folder))
    except DiskFull:
        shutil.rmtree(folder, ignore_errors=True)
        return save_case(sliced, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    blocks = tuple(blocks_of(sliced.result, target.settings, n_parts, fewest=fewest))
    return StepResult(
        case=sliced.case,
        result=SharedCase(stacks=stacks, blocks=blocks, folder=str(folder)),
        seconds=seconds,
        sources=sliced.sources,
        grid=sliced.grid,
    )


def save_part(
    sliced: Sliced, target: Target, *, number: int, n_parts: int
) -> WrittenPart | CaseError | None:
    """Write every n-th block of a case into a new folder, from block `number` on.

    Return its error as a result, so that the error is that of the case; None without blocks.
    """
    if not isinstance(sliced, StepResult):
        return None
    shared = sliced.result
    blocks = shared.blocks[number::n_parts]
    if not blocks:
        return None
    folder = Path(shared.folder, uuid.uuid4().hex)
    try:
        with timed_step("save", {}, target.run_id) as seconds, _in_folder_of(shared, target):
            folder.mkdir()
            form = _format(sliced, target)
            stacks = {number: shared.stacks[number].open() for number in {b.plane for b in blocks}}
            written = tuple(form.write(stacks[block.plane], block, folder) for block in blocks)
    except CaseError as error:
        shutil.rmtree(folder, ignore_errors=True)
        return without_frames(error)
    return WrittenPart(blocks=written, folder=str(folder), seconds=seconds["save"])


def save_parts(
    parts: Sequence[WrittenPart | CaseError | None], sliced: Sliced, target: Target
) -> CommittedCase:
    """Join the parts of a case, and move it into its split; raise the error of any task."""
    if isinstance(sliced, CommittedCase):
        return sliced
    if isinstance(sliced, CaseError):
        raise sliced
    shared, settings = sliced.result, target.settings
    written = [part for part in parts if isinstance(part, WrittenPart)]
    try:
        if error := next((part for part in parts if isinstance(part, CaseError)), None):
            raise error
        before = sliced.seconds | {"save": sum(part.seconds for part in written)}
        with timed_step("save", before, target.run_id) as seconds, _in_folder_of(shared, target):
            folder = Path(shared.folder, uuid.uuid4().hex)
            folders = plane_folders_in(folder, settings)
            stacks = [stack.open() for stack in shared.stacks]
            joined = _format(sliced, target).join(stacks, _claimed(written, shared), folders)
            files = (
                (plane.places.get(source) or own / source, entry)
                for plane, own in zip(joined, folders, strict=True)
                for source, entry in entries_in(plane.written, sliced.case, settings)
            )
            move_into_place(files, folder, target)
    finally:
        # Those of a task that ran twice are in the folder of the first run of the task before.
        for name in {shared.folder, *(str(Path(part.folder).parent) for part in written)}:
            shutil.rmtree(name, ignore_errors=True)
    planes = [plane.written for plane in joined]
    return committed_case(sliced, stacks[0], planes, seconds, target)


def _format(sliced: StepResult[SharedCase], target: Target) -> BlockFormat:
    return BlockFormat(
        case=sliced.case, settings=target.settings, names=target.names, fsync=target.fsync
    )


def _claimed(
    parts: Sequence[WrittenPart], shared: SharedCase
) -> Iterator[tuple[Path, WrittenBlock]]:
    """Yield blocks and the folders they are in, which no other task can find from now on."""
    for part in parts:
        own = Path(shared.folder, uuid.uuid4().hex)
        try:
            Path(part.folder).rename(own)
        except FileNotFoundError:
            raise WorkerLost(_REPEATED) from None
        yield from ((own, block) for block in part.blocks)


@contextmanager
def _in_folder_of(shared: SharedCase, target: Target) -> Iterator[None]:
    """Raise WorkerLost if a file is missing since an earlier try of the last task removed it."""
    temporary_folder(target)
    try:
        yield
    except FileNotFoundError:
        if Path(shared.folder).is_dir():
            raise
        raise WorkerLost(_REPEATED) from None
