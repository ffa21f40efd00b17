"""Tasks that run on a worker: load, slice and save a case."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Generic, ParamSpec, TypeVar

from dask_slicer.config.schema import SliceSettings
from dask_slicer.core.slices import SliceStack, slice_volume
from dask_slicer.core.volume import Volume
from dask_slicer.errors import CaseError, MissingFile, as_case_error
from dask_slicer.execution import faults
from dask_slicer.inputs.load import load_volume
from dask_slicer.output.atomic import move, remove_whole
from dask_slicer.output.formats import write_case
from dask_slicer.output.layout import entry_names, split_folder
from dask_slicer.planning.plan import CasePlan
from dask_slicer.records import CommittedCase

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where slices go, and how: the same for all cases of a run."""

    output_dir: str
    settings: SliceSettings
    run_id: str = ""
    fsync: bool = False
    temporary: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Timed(Generic[T]):
    """What a step made, and the seconds that it and the steps before it took."""

    made: T
    seconds: dict[str, float]


def load_case(case: CasePlan, target: Target) -> Timed[Volume]:
    """Return a case's voxels, as stored, seen in the order of the plane.

    Raises
    ------
    MissingFile, PermissionDenied, CorruptFile, UnsupportedImage, GeometryMismatch
    """
    seconds: dict[str, float] = {}
    with _step("load", seconds, target.run_id):
        faults.inject(case.case_id)
        volume = load_volume(case.case, target.settings.plane)
    return Timed(made=volume, seconds=seconds)


def slice_case(loaded: Timed[Volume], target: Target) -> Timed[SliceStack]:
    """Return a case's slices: normalisation decided, label checked, empty slices dropped.

    Raises
    ------
    NonFinite, LabelValues
    """
    settings = target.settings
    seconds = dict(loaded.seconds)
    with _step("slice", seconds, target.run_id):
        stack = slice_volume(
            loaded.made,
            normalize=settings.normalize,
            clip_min=settings.clip_min,
            clip_max=settings.clip_max,
            nonfinite=settings.nonfinite,
            # What source is normalised to when it is read.
            dtype="float32" if settings.dtype == "source" else settings.dtype,
            label_dtype=settings.label_dtype,
            min_foreground=settings.min_foreground,
        )
    return Timed(made=stack, seconds=seconds)


def save_case(sliced: Timed[SliceStack], case: CasePlan, target: Target) -> CommittedCase:
    """Write a case's slices aside, move them into their split once all are there, and list them.

    Doing it twice, even at the same time, leaves the same files.

    Raises
    ------
    DiskFull, PermissionDenied
    """
    stack = sliced.made
    seconds = dict(sliced.seconds)
    output_dir = Path(target.output_dir)
    aside = output_dir / target.temporary / _own_name(os.getpid(), threading.get_ident())
    with _step("save", seconds, target.run_id):
        if not output_dir.is_dir():
            raise MissingFile(
                f"{output_dir}: the output directory is not to be seen from {socket.gethostname()}"
            )
        place = output_dir / split_folder(case, target.settings)
        aside.mkdir(parents=True, exist_ok=True)
        place.mkdir(parents=True, exist_ok=True)
        moved: list[Path] = []
        try:
            slices, files = write_case(stack, case, target.settings, aside, fsync=target.fsync)
            for name in entry_names(case, target.settings, [one.slice_index for one in slices]):
                moved.append(place / name)
                move(aside / name, moved[-1])
            if not target.run_id:  # no run tidies up after this
                aside.rmdir()
                with suppress(OSError):
                    aside.parent.rmdir()
            if target.fsync:
                _fsync_names(moved, output_dir)
        except BaseException:  # Ctrl-C too
            if not target.run_id:  # a run removes what is not in its journal
                for path in moved:
                    remove_whole(path, aside)
            shutil.rmtree(aside, ignore_errors=True)
            raise
    if faults.is_nonsense(case.case_id):
        return None  # type: ignore[return-value]
    return CommittedCase(
        case_id=case.case_id,
        split=case.split,
        group=case.group,
        digest=case.digest,
        shape=(len(stack.image), *stack.shape),
        spacing=case.spacing,
        statistics=stack.statistics,
        slices=slices,
        files=files,
        seconds=seconds,
        run_id=target.run_id,
    )


def load_batch(cases: CaseBatch, target: Target) -> list[Timed[Volume] | CaseError]:
    """Return what `load_case` returns for each case, or raises: the others go on."""
    return [_or_failure(load_case, case, target) for case in cases]


def slice_batch(
    loaded: list[Timed[Volume] | CaseError], target: Target
) -> list[Timed[SliceStack] | CaseError]:
    """Return what `slice_case` makes of each case that could be loaded."""
    return [
        one if isinstance(one, CaseError) else _or_failure(slice_case, one, target)
        for one in loaded
    ]


def save_batch(
    sliced: list[Timed[SliceStack] | CaseError], cases: CaseBatch, target: Target
) -> list[CommittedCase | CaseError]:
    """Return what `save_case` makes of each case that could be sliced."""
    return [
        one if isinstance(one, CaseError) else _or_failure(save_case, one, case, target)
        for one, case in zip(sliced, cases, strict=True)
    ]


def _or_failure(step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | CaseError:
    try:
        return step(*args, **kwargs)
    except CaseError as failure:
        return failure


@cache
def _own_name(process_id: int, thread_id: int) -> str:
    """Return a name that no other thread of any process on any machine has."""
    return uuid.uuid4().hex


@contextmanager
def _step(name: str, seconds: dict[str, float], run_id: str) -> Iterator[None]:
    """Time a step, and turn whatever goes wrong in it into one of the named failures."""
    started = time.perf_counter()
    try:
        yield
    except Exception as error:
        failure = as_case_error(error, step=name)
        failure.details = traceback.format_exc()
        failure.run_id = run_id
        raise failure from None
    seconds[name] = round(time.perf_counter() - started, 4)


def _fsync_names(paths: Iterable[Path], output_dir: Path) -> None:
    """Force to disk the names of files and directories that were moved into an output."""
    if os.name == "nt":  # there, a directory cannot be opened, and needs no sync
        return
    folders: set[Path] = set()
    for path in paths:
        folders.update(one for one in (path, *path.rglob("*")) if one.is_dir())
        folders.update(takewhile(lambda one: one != output_dir.parent, path.parents))
    for folder in sorted(folders, reverse=True):  # what a name stands for before the name
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


CaseBatch = tuple[CasePlan, ...]
