"""Exclusive access to an output directory.

A run takes its own lock first and checks the other locks afterwards. So of two runs that exclude
each other, at most one continues. While it holds a lock, a run touches it every 30 s. A process of
another host, or of another container, cannot be checked: after 10 minutes without a touch, its lock
is stale, and another run may take it over. If the process was only frozen, it finds that its lock
has gone before it writes again, and stops.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from dask_slicer.config.partition import Partition
from dask_slicer.errors import LockLost, OutputError
from dask_slicer.output import lock_owner
from dask_slicer.output.atomic import atomic_write, link, temporary_name
from dask_slicer.output.layout import locked_partitions, partition_files, unfinished_locks
from dask_slicer.output.lock_owner import GONE, LockOwner, read_lock, read_owner, run_of, run_text
from dask_slicer.utils import signals
from dask_slicer.utils.formatting import first_few, format_time

_LOG = logging.getLogger(__name__)

# A run that ends with no output may remove the new directory that this run is about to use.
_TRIES = 100
# A run looks at its lock before it writes, but no more often than this.
_CHECK_SECONDS = 3.0
# Between two looks at the lock of a run that gives no sign of life.
_WAIT_SECONDS = 1.0
# A file server may not answer at the end.
_JOIN_SECONDS = 5.0

# When each run was last known to hold its lock, by two clocks: the monotonic one may not count the
# time in which a system was suspended, the other may be set.
_checked: dict[str, tuple[float, float]] = {}


class _Silent(OutputError):
    """The output is in use by a run that should have given a sign of life by now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldLock:
    """A lock, and the run that holds it."""

    path: Path
    run_id: str


# Of the run in this thread.
_held: ContextVar[HeldLock | None] = ContextVar("held", default=None)


# -- holding a lock --------------------------------------------------------------------------------


@contextmanager
def locked(
    output_dir: Path,
    partition: Partition | None = None,
    *,
    note: Callable[[str], None] = lambda _: None,
) -> Iterator[HeldLock]:
    """Hold an output directory for a run, or a partition of one; `note` gets texts for the user.

    Raise OutputError, with host and process, if another run excludes this one.
    """
    is_new = not output_dir.exists()
    held = HeldLock(path=output_dir / partition_files(partition).lock, run_id=uuid.uuid4().hex)
    try:
        _wait_for_silent(output_dir, partition, note)
        _take(held, partition, note)
    except OSError as error:
        raise OutputError(f"cannot write to output_dir {output_dir}: {error.strerror}") from None
    ended = threading.Event()
    # A daemon: it must not keep a process alive, and with it the lock.
    toucher = threading.Thread(
        target=_touch, args=(held, ended), name="dask-slicer-lock", daemon=True
    )
    try:
        _check_others(output_dir, partition)
        toucher.start()
        token = _held.set(held)
        try:
            yield held
        finally:
            _held.reset(token)
    finally:
        ended.set()
        if toucher.ident is not None:
            toucher.join(_JOIN_SECONDS)
        _checked.pop(held.run_id, None)
        _remove_if(held.path, lambda text: run_of(text) == held.run_id)
        if is_new:
            with suppress(OSError):
                output_dir.rmdir()  # succeeds only if the run left nothing


def still_held(*, now: bool = False) -> None:
    """Raise LockLost if the run in this thread no longer holds its lock. See `check_held`."""
    if (held := _held.get()) is not None:
        check_held(held.path, held.run_id, now=now)


def check_held(lock: Path, run_id: str, *, now: bool = False) -> None:
    """Raise LockLost if a lock is no longer that of a run, which may be one of another process.

    Without `now`, it looks only if some seconds have passed since the last time, by any clock.
    """
    clocks = time.monotonic(), time.time()
    before = _checked.get(run_id)
    if before is not None and not now:
        passed = [clock - last for clock, last in zip(clocks, before, strict=True)]
        if all(0 <= seconds < _CHECK_SECONDS for seconds in passed):
            return
    try:
        text = read_lock(lock)
        if text == GONE:
            # An NFS client may remember that there was none, unless it changes the directory.
            probe = temporary_name(lock)
            probe.touch()
            probe.unlink(missing_ok=True)
            text = read_lock(lock)
    except FileNotFoundError:  # with its directory
        text = GONE
    except OSError as error:  # what cannot be read now cannot be written either
        _LOG.debug("Could not read %s: %s", lock, error)
        return
    if run_of(text) != run_id:
        owner = None
        with suppress(OSError):
            _, owner = read_owner(lock)
        how = f"taken over by {owner}" if owner else "removed"
        raise LockLost(
            f"the lock {lock} of this run was {how}, perhaps while this run was frozen; it has "
            "stopped, and what it had finished stays"
        )
    _checked[run_id] = clocks


def name_scheduler(lock: Path, run_id: str, address: str, *, n_cases: int) -> None:
    """Add to the lock of a run: the scheduler's address, or IN_PROCESS; cases to run; the time.

    The time is by this host's clock, as in the journal; a file server may have another.
    """
    try:
        # Not a new file in its place, which may be another run's by now.
        with lock.open("r+b") as file:
            if run_of(file.read().decode("utf-8", "replace")) == run_id:
                file.write(f" {address} {n_cases} {time.time():.3f}".encode())
    except OSError:  # `watch` then needs the address of the scheduler
        _LOG.debug("Could not add the scheduler's address to the lock", exc_info=True)


def _touch(held: HeldLock, ended: threading.Event) -> None:
    """Touch a lock until the run has ended: a sign of life for runs on other hosts."""
    while not ended.wait(lock_owner.STALE_SECONDS / lock_owner.SIGNS_UNTIL_STALE):
        try:
            if run_of(read_lock(held.path)) == held.run_id:
                os.utime(held.path)
        except OSError as error:  # the next touch may succeed
            _LOG.debug("Could not touch the lock: %s", error)


# -- taking a lock ---------------------------------------------------------------------------------


def check_free(output_dir: Path, partition: Partition | None = None) -> None:
    """Raise OutputError if the output is locked by a run that excludes this run or partition."""
    _check_others(output_dir, partition)
    _check_lock(output_dir, partition)


def remove_stale_locks(output_dir: Path) -> None:
    """Remove locks of partitions that died. Call it while holding the output."""
    for partition in locked_partitions(output_dir):
        lock = output_dir / partition_files(partition).lock
        text, owner = read_owner(lock)
        if owner is None or not owner.is_alive:
            _remove_stale(lock, text)
    for unfinished in unfinished_locks(output_dir):
        _, owner = read_owner(unfinished)
        if owner is None or not owner.is_alive:
            unfinished.unlink(missing_ok=True)


def _wait_for_silent(
    output_dir: Path, partition: Partition | None, note: Callable[[str], None]
) -> None:
    """Wait while a run elsewhere gives no sign of life, until it does or its lock is stale."""
    is_noted = False
    while True:
        try:
            return check_free(output_dir, partition)  # a run that is refused anyway takes no lock
        except _Silent as error:
            if not is_noted:
                note(f"waiting: {error}")
                is_noted = True
        signals.raise_if_interrupted()
        time.sleep(_WAIT_SECONDS)


def _take(held: HeldLock, partition: Partition | None, note: Callable[[str], None]) -> None:
    lock = held.path
    is_noted = False
    for number in range(_TRIES):
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_write(lock, exclusive=True, fsync=True) as file:
                file.write(run_text(held.run_id).encode())
        except FileNotFoundError:
            if number == _TRIES - 1:
                raise
            continue
        except FileExistsError:
            pass
        else:
            return
        text, owner = _check_lock(lock.parent, partition)
        if text == GONE:
            continue
        if is_noted:
            break
        if _remove_stale(lock, text):
            note(f"took over the lock of a run that died ({owner or 'unreadable'})")
            is_noted = True
    raise OutputError(f"another run has just started in {lock.parent}; wait until it ends")


def _remove_stale(lock: Path, text: str) -> bool:
    """Remove a stale lock with this text; of several processes that try at once, one does.

    Only the process that has made the file of the claim may remove the lock.
    """
    name = f"{lock.name.partition('.lock')[0]}.lock.{zlib.crc32(text.encode()):08x}"
    claim = lock.with_name(name)
    try:
        with atomic_write(claim, exclusive=True) as file:
            file.write(run_text("").encode())
    except FileNotFoundError:  # with the directory, or by the run that holds it
        return False
    except FileExistsError:
        claim_text, claimer = read_owner(claim)
        if claim_text != GONE and (claimer is None or not claimer.is_alive):
            _remove_stale(claim, claim_text)
        return False
    try:
        _, owner = read_owner(lock)
        # It may have been touched, or taken over, since the text was read.
        is_alive = owner is not None and owner.is_alive
        return not is_alive and _remove_if(lock, lambda current: current == text)
    finally:
        claim.unlink(missing_ok=True)


def _remove_if(lock: Path, is_it: Callable[[str], bool]) -> bool:
    """Remove a lock if its text is the expected one, also if another run takes it meanwhile."""
    if not is_it(read_lock(lock)):
        return False
    removed = temporary_name(lock)
    try:
        lock.rename(removed)
    except FileNotFoundError:
        return False
    is_removed = is_it(read_lock(removed))
    if not is_removed:
        with suppress(FileNotFoundError):  # the run that holds the output removed it
            link(removed, lock)
    removed.unlink(missing_ok=True)
    return is_removed


def _check_others(output_dir: Path, partition: Partition | None) -> None:
    """Raise OutputError if the lock of another run or partition excludes this one."""
    others = locked_partitions(output_dir)
    if partition is not None:
        _check_lock(output_dir, None)
        others = [other for other in others if other.of != partition.of]
    _check_partitions(output_dir, others)


def _check_lock(output_dir: Path, partition: Partition | None) -> tuple[str, LockOwner | None]:
    """Return text and owner of a run's or partition's lock; raise OutputError if that is alive."""
    lock = partition_files(partition).lock
    text, owner = read_owner(output_dir / lock)
    if owner is not None and owner.is_alive:
        of = "" if partition is None else f" of partition {partition}"
        raise _in_use(output_dir, f"another run{of}", owner, lock)
    return text, owner


def _check_partitions(output_dir: Path, partitions: list[Partition]) -> None:
    owners = {p: read_owner(output_dir / partition_files(p).lock)[1] for p in partitions}
    alive = {p: owner for p, owner in owners.items() if owner is not None and owner.is_alive}
    if len(alive) == 1:
        ((partition, owner),) = alive.items()
        name = partition_files(partition).lock
        raise _in_use(output_dir, f"partition {partition} of a run", owner, name)
    if alive:
        shown = first_few([f"{partition} ({owner})" for partition, owner in alive.items()])
        locks = first_few([partition_files(partition).lock for partition in alive])
        error = _Silent if all(owner.is_overdue for owner in alive.values()) else OutputError
        raise error(
            f"{output_dir} is in use by {len(alive)} partitions of a run: {shown}; wait for them, "
            f"or remove the locks of those that no longer run: {locks}"
        )


def _in_use(output_dir: Path, rival: str, owner: LockOwner, lock: str) -> OutputError:
    stale = f", or until the lock is stale in {format_time(owner.left)}" if owner.left else ""
    return (_Silent if owner.is_overdue else OutputError)(
        f"{output_dir} is in use by {rival} ({owner}); wait for it{stale}, or remove {lock} if it "
        "no longer runs"
    )
