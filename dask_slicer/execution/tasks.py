"""Tasks that run on a worker: load, slice and save a case."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
import time
import traceback
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from dask_slicer.config.schema import SliceSettings
from dask_slicer.core.planes import in_plane
from dask_slicer.core.slices import SliceStack, slice_views
from dask_slicer.core.steps.steps import NO_STEPS, Steps, labelled_sample
from dask_slicer.core.volume import Volume
from dask_slicer.errors import CaseError, MissingFile, as_case_error
from dask_slicer.inputs.load import load_volume
from dask_slicer.inputs.readers import stored_header
from dask_slicer.inputs.readers.base import split_volume
from dask_slicer.inputs.readers.files import checksum
from dask_slicer.output.atomic import fsync_folder, move, remove_whole
from dask_slicer.output.formats import write_case
from dask_slicer.output.layout import case_entries
from dask_slicer.output.lock import check_held
from dask_slicer.planning.memory import needs_scratch
from dask_slicer.planning.names import NO_NAMES, Names
from dask_slicer.planning.plan import CasePlan
from dask_slicer.planning.steps import steps_of
from dask_slicer.records import CommittedCase, SourceFile, SourceGrid, WrittenPlane
from dask_slicer.utils.formatting import as_utf8

S = TypeVar("S")
T = TypeVar("T")

CaseBatch = tuple[CasePlan, ...]
Stacks = tuple[SliceStack, ...]  # one for each plane


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where and how slices are written: the same for all cases of a run.

    Of a case that needs more than `memory_limit` bytes, arrays are in files in `scratch_dir`, or by
    default among the temporary files.
    """

    output_dir: str
    settings: SliceSettings
    run_id: str = ""
    fsync: bool = False
    temporary: str
    lock: str = ""  # of the run; "" without one
    input_root: str = ""
    names: Names = NO_NAMES
    steps: Steps = NO_STEPS
    memory_limit: int | None = None
    scratch_dir: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepResult(Generic[T]):
    """The result of a step, and the seconds that it and the steps before it took."""

    case: CasePlan
    result: T
    seconds: dict[str, float]
    sources: tuple[SourceFile, ...]
    grid: SourceGrid


def load_case(case: CasePlan, target: Target) -> StepResult[Volume]:
    """Return a case's voxels as stored, with the axes in the order of the first plane."""
    with timed_step("load", {}, target.run_id) as seconds:
        volume = load_volume(
            case.case, target.settings.planes[0], scratch_dir=_scratch_dir(case, target)
        )
        sources = _sources(case, target.input_root)
        grid = _source_grid(case, volume)
    return StepResult(case=case, result=volume, seconds=seconds, sources=sources, grid=grid)


def slice_case(loaded: StepResult[Volume], target: Target) -> StepResult[Stacks]:
    """Return a case's slices in each plane: normalised, label checked, empty slices dropped."""
    settings = target.settings
    with timed_step("slice", loaded.seconds, target.run_id) as seconds:
        _, *others = settings.planes
        stacks = slice_views(
            [loaded.result, *(in_plane(loaded.result, plane) for plane in others)],
            normalize=settings.normalize,
            clip_min=settings.clip_min,
            clip_max=settings.clip_max,
            nonfinite=settings.nonfinite,
            # Readers normalise "source" to float32.
            dtype="float32" if settings.dtype == "source" else settings.dtype,
            offset=settings.offset if settings.is_exact else None,
            label_dtype=settings.label_dtype,
            min_foreground=settings.min_foreground,
            steps=_steps(loaded.case, target),
        )
    return StepResult(
        case=loaded.case,
        result=stacks,
        seconds=seconds,
        sources=loaded.sources,
        grid=loaded.grid,
    )


def sample_case(
    loaded: StepResult[Volume], target: Target, *, n_voxels: int
) -> NDArray[np.float32]:
    """Return intensities of labelled voxels of a case, (n_modalities, n), after label map and crop.

    The second size is `n_voxels`, or 0 if no voxel is labelled.
    """
    steps, settings = _steps(loaded.case, target), target.settings
    with timed_step("slice", {}, target.run_id):
        return labelled_sample(
            loaded.result,
            settings.label_dtype,
            steps,
            n_voxels=n_voxels,
            nonfinite=settings.nonfinite,
        )


def _scratch_dir(case: CasePlan, target: Target) -> str:
    """Return the folder for the arrays of a case; empty if memory holds them."""
    if not needs_scratch(case, target.settings, target.memory_limit):
        return ""
    if target.scratch_dir:
        Path(target.scratch_dir).mkdir(parents=True, exist_ok=True)
        return target.scratch_dir
    if not Path(target.output_dir).is_dir():  # statistics have no output
        return tempfile.gettempdir()
    folder = Path(target.output_dir, target.temporary)
    folder.mkdir(exist_ok=True)
    return str(folder)


def _steps(case: CasePlan, target: Target) -> Steps:
    return steps_of(
        target.steps, target.settings, case_id=case.case_id, split=case.split, listed=case.listed
    )


def save_case(sliced: StepResult[Stacks], target: Target) -> CommittedCase:
    """Write a case's slices to a temporary folder, move them into their split, and list them.

    All planes are written before the first is moved. Two workers that do this at the same time
    leave the same files.
    """
    case, settings = sliced.case, target.settings
    with timed_step("save", sliced.seconds, target.run_id) as seconds:
        temporary = temporary_folder(target) / _unique_name(os.getpid(), threading.get_ident())
        folders = plane_folders_in(temporary, settings)
        try:
            written = write_case(
                sliced.result, case, settings, folders, names=target.names, fsync=target.fsync
            )
            files = (
                (folder / source, entry)
                for plane, folder in zip(written, folders, strict=True)
                for source, entry in entries_in(plane, case, settings)
            )
            move_into_place(files, temporary, target)
        except BaseException:  # Ctrl-C too
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return committed_case(sliced, sliced.result[0], written, seconds, target)


def temporary_folder(target: Target) -> Path:
    """Return the folder of unfinished files; raise a CaseError if this run may not write there."""
    output_dir = Path(target.output_dir)
    if not output_dir.is_dir():
        raise MissingFile(
            f"{socket.gethostname()} cannot find the output directory {output_dir}; "
            "it must be on a disk that all workers share"
        )
    _check_lock(target)
    return output_dir / target.temporary


def _check_lock(target: Target) -> None:
    if target.lock:  # another run may have taken over while this process was frozen
        check_held(Path(target.output_dir) / target.lock, target.run_id)


def plane_folders_in(temporary: Path, settings: SliceSettings) -> list[Path]:
    """Return the folder of each plane of a case in its temporary folder, created if missing."""
    folders = [temporary / plane for plane in settings.plane_folders] or [temporary]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    return folders


def entries_in(
    written: WrittenPlane, case: CasePlan, settings: SliceSettings
) -> list[tuple[str, str]]:
    """Return what is to be moved: path below the temporary folder of a plane, and the output."""
    name = written.plane if settings.plane_folders else ""
    return case_entries(case, settings, written, plane=name)


def move_into_place(files: Iterable[tuple[Path, str]], temporary: Path, target: Target) -> None:
    """Move files and folders of a case to their entries in the output."""
    output_dir = Path(target.output_dir)
    parent: str | None = None
    moved: list[Path] = []
    try:
        for source, entry in files:
            path = output_dir / entry
            if entry.rpartition("/")[0] != parent:
                parent = entry.rpartition("/")[0]
                path.parent.mkdir(parents=True, exist_ok=True)
            _check_lock(target)
            moved.append(path)
            move(source, path)
        if not target.run_id:  # there is no run that tidies up later
            shutil.rmtree(temporary, ignore_errors=True)
            with suppress(OSError):
                temporary.parent.rmdir()
        if target.fsync:
            _fsync_names(moved, output_dir)
    except BaseException:
        if not target.run_id:  # a run removes what is not in its journal
            for path in moved:
                remove_whole(path, temporary)
        raise


def committed_case(
    sliced: StepResult[Any],
    stack: SliceStack,
    written: Sequence[WrittenPlane],
    seconds: dict[str, float],
    target: Target,
) -> CommittedCase:
    """Return the record of a case whose files are in their place; `stack` is its first plane."""
    case, first, is_one = sliced.case, written[0], len(written) == 1
    return CommittedCase(
        case_id=case.case_id,
        split=case.split,
        group=case.group,
        digest=case.digest,
        shape=first.shape,
        spacing=first.spacing,
        statistics=stack.statistics,
        slices=first.slices if is_one else (),
        files=first.files if is_one else (),
        output_files=first.output_files if is_one else (),
        steps=first.steps if is_one else {},
        planes=() if is_one else tuple(written),
        seconds=seconds,
        run_id=target.run_id,
        n_overlapping=stack.n_overlapping,
        header_notes=case.header_notes,
        structures={mask.structure: mask.value for mask in case.case.masks}
        if case.case.merges_masks
        else {},
        voxel_volume=first.voxel_volume,
        sources=sliced.sources,
        grid=sliced.grid,
    )


def run_batch(
    step: Callable[[S, Target], T], inputs: Iterable[S | CaseError], target: Target
) -> list[T | CaseError]:
    """Return the result or the error of a step for each case of a batch."""
    return [run_early(step, item, target) for item in inputs]


def run_early(step: Callable[[S, Target], T], item: S | CaseError, target: Target) -> T | CaseError:
    """Return the result of a step or its error, or the error of the step before."""
    try:
        return item if isinstance(item, CaseError) else step(item, target)
    except CaseError as error:
        return without_frames(error)


def without_frames(error: CaseError) -> CaseError:
    """Return an error without the frames of its traceback, which hold the arrays of the case.

    Their text is in its details.
    """
    error.__context__ = None
    return error.with_traceback(None)


def run_last(step: Callable[[S, Target], T], item: S | CaseError, target: Target) -> T:
    """Return the result of the last step of a case; raise its error, or that of a step before."""
    if isinstance(item, CaseError):
        raise item
    return step(item, target)


def _sources(case: CasePlan, input_root: str) -> tuple[SourceFile, ...]:
    """Return the files of a case as they were planned, with the checksums that they have now."""
    sources = []
    crc32_of = cache(checksum)  # volumes of a 4D image are in one file
    for path, size, mtime_ns in case.files:
        crc32 = None
        if path:  # of a missing image, it is empty
            with suppress(OSError):
                crc32 = crc32_of(os.path.join(input_root, split_volume(path)[0]))
        sources.append(SourceFile(as_utf8(path), size, mtime_ns, crc32))
    return tuple(sources)


def _source_grid(case: CasePlan, volume: Volume) -> SourceGrid:
    """Return the grid of the first image of a loaded case."""
    assert volume.orientation is not None  # noqa: S101  # of a file
    assert volume.stored_affine is not None  # noqa: S101
    first, second, third = (
        volume.image[0].stored.shape[int(axis)] for axis in volume.orientation[:, 0]
    )
    return SourceGrid(
        shape=(first, second, third),
        affine=tuple(map(tuple, volume.stored_affine.tolist())),
        header=b64encode(stored_header(case.case.image_files[0])).decode(),
    )


@cache
def _unique_name(process_id: int, thread_id: int) -> str:
    """Return a name that no other thread of any process on any machine uses."""
    return uuid.uuid4().hex


@contextmanager
def timed_step(name: str, before: dict[str, float], run_id: str) -> Iterator[dict[str, float]]:
    """Add the time of a step to that `before`; turn any error into one of the named failures."""
    started = time.perf_counter()
    seconds = dict(before)
    try:
        yield seconds
    except Exception as error:
        failure = as_case_error(error, step=name)
        failure.details = traceback.format_exc()
        failure.run_id = run_id
        raise failure from None
    seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - started, 4)


def _fsync_names(paths: Iterable[Path], output_dir: Path) -> None:
    """Force to disk the names of files and directories that were moved into an output."""
    folders: set[Path] = set()
    for path in paths:
        folders.update(folder for folder in (path, *path.rglob("*")) if folder.is_dir())
        folders.update(takewhile(lambda folder: folder != output_dir.parent, path.parents))
    for folder in sorted(folders, reverse=True):  # contents before the names of the folders
        fsync_folder(folder)
