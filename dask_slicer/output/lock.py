"""Exclusive access to an output directory.

A run takes its own lock first and checks the other locks afterwards. So of two runs that exclude
each other, at most one continues.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from dask_slicer.errors import OutputError, SchedulerError
from dask_slicer.output.atomic import atomic_write, link, temporary_name
from dask_slicer.output.layout import WHOLE, locked_partitions, partition_files, unfinished_locks
from dask_slicer.planning.plan import Partition
from dask_slicer.utils.files import read_bytes
from dask_slicer.utils.formatting import first_few

_LOG = logging.getLogger(__name__)

# A run that ends with no output may remove the new directory that this run is about to use.
_TRIES = 100
# Text of a lock that was removed before it could be read.
_GONE = "it has just gone"
# Since 1970: more is damage.
_MOST_SECONDS = 1e11
# In the lock of a run without a scheduler, instead of an address.
IN_PROCESS = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class LockOwner:
    """A process that holds an output directory, or held it when it died."""

    host: str
    process: str
    scheduler: str  # address; empty until the run has a scheduler, IN_PROCESS if it needs none
    n_cases: int  # to run
    began: float  # when it began to run them, in seconds since 1970; 0 until then
    is_alive: bool  # it may still be running

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


# -- taking a lock ---------------------------------------------------------------------------------


@contextmanager
def locked(output_dir: Path, partition: Partition | None = None) -> Iterator[list[str]]:
    """Hold an output directory for a run, or a partition of one; yield notes for the user.

    Raise OutputError, with host and process, if another run excludes this one.
    """
    is_new = not output_dir.exists()
    lock = output_dir / partition_files(partition).lock
    try:
        _check_others(output_dir, partition)  # a run that is refused anyway takes no lock
        notes = _take(lock, partition)
    except OSError as error:
        raise OutputError(f"cannot write to output_dir {output_dir}: {error.strerror}") from None
    try:
        _check_others(output_dir, partition)
        yield notes
    finally:
        lock.unlink(missing_ok=True)
        if is_new:
            with suppress(OSError):
                output_dir.rmdir()  # succeeds only if the run left nothing


def check_free(output_dir: Path, partition: Partition | None = None) -> None:
    """Raise OutputError if the output is locked by a run that excludes this run or partition."""
    _check_others(output_dir, partition)
    _check_lock(output_dir, partition)


def remove_stale_locks(output_dir: Path) -> None:
    """Remove locks of partitions that died. Call it while holding the output."""
    for partition in locked_partitions(output_dir):
        lock = output_dir / partition_files(partition).lock
        text = read_lock(lock)
        if not is_alive(text):
            _remove_lock(lock, text)
    for unfinished in unfinished_locks(output_dir):
        if not is_alive(read_lock(unfinished)):
            unfinished.unlink(missing_ok=True)


def name_scheduler(
    output_dir: Path, partition: Partition | None, address: str, *, n_cases: int
) -> None:
    """Add to the lock of this process: the scheduler's address, or IN_PROCESS; cases to run; time.

    The time is by this host's clock, as in the journal; a file server may have another.
    """
    lock = output_dir / partition_files(partition).lock
    try:
        if read_lock(lock) == lock_text():
            with atomic_write(lock) as file:
                file.write(f"{lock_text()} {address} {n_cases} {time.time():.3f}".encode())
    except OSError:  # `watch` then needs the address of the scheduler
        _LOG.debug("Could not add the scheduler's address to the lock", exc_info=True)


def _take(lock: Path, partition: Partition | None) -> list[str]:
    notes: list[str] = []
    for number in range(_TRIES):
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_write(lock, exclusive=True, fsync=True) as file:
                file.write(lock_text().encode())
        except FileNotFoundError:
            if number == _TRIES - 1:
                raise
            continue
        except FileExistsError:
            pass
        else:
            return notes
        text = _check_lock(lock.parent, partition)
        if text == _GONE:
            continue
        if notes:
            break
        notes = [f"took over the lock of a run that died ({_owner(text) or 'unreadable'})"]
        _remove_lock(lock, text)
    raise OutputError(f"another run has just started in {lock.parent}; wait until it ends")


def _remove_lock(lock: Path, text: str) -> None:
    """Remove a stale lock, unless another process has taken it since `text` was read."""
    removed = temporary_name(lock)
    try:
        lock.rename(removed)
    except FileNotFoundError:
        return
    if read_lock(removed) not in (text, _GONE):  # gone: the run that holds the output removed it
        link(removed, lock)
    removed.unlink(missing_ok=True)


def _check_others(output_dir: Path, partition: Partition | None) -> None:
    """Raise OutputError if the lock of another run or partition excludes this one."""
    others = locked_partitions(output_dir)
    if partition is not None:
        _check_lock(output_dir, None)
        others = [other for other in others if other.of != partition.of]
    _check_partitions(output_dir, others)


def _check_lock(output_dir: Path, partition: Partition | None) -> str:
    """Return the text of the lock of a run or partition; raise OutputError if that is running."""
    lock = partition_files(partition).lock
    text = read_lock(output_dir / lock)
    owner = _owner(text)
    if owner is not None and owner.is_alive:
        of = "" if partition is None else f" of partition {partition}"
        raise _in_use(output_dir, f"another run{of}", owner, lock)
    return text


def _check_partitions(output_dir: Path, partitions: list[Partition]) -> None:
    owners = {p: _owner(read_lock(output_dir / partition_files(p).lock)) for p in partitions}
    alive = {p: owner for p, owner in owners.items() if owner is not None and owner.is_alive}
    if len(alive) == 1:
        ((partition, owner),) = alive.items()
        name = partition_files(partition).lock
        raise _in_use(output_dir, f"partition {partition} of a run", owner, name)
    if alive:
        shown = first_few([f"{partition} ({owner})" for partition, owner in alive.items()])
        locks = first_few([partition_files(partition).lock for partition in alive])
        raise OutputError(
            f"{output_dir} is in use by {len(alive)} partitions of a run: {shown}; wait for them, "
            f"or remove the locks of those that no longer run: {locks}"
        )


def _in_use(output_dir: Path, rival: str, owner: LockOwner, lock: str) -> OutputError:
    return OutputError(
        f"{output_dir} is in use by {rival} ({owner}); wait for it, or remove {lock} if it "
        "no longer runs"
    )


# -- the text of a lock ----------------------------------------------------------------------------


def lock_text() -> str:
    """Return the lock's text for this process: host, process id and start time."""
    return f"{socket.gethostname()} {os.getpid()} {_start_time(os.getpid())}"


def read_lock(lock: Path) -> str:
    """Return the text of a lock, which may have just been removed."""
    try:
        return read_bytes(lock).decode("utf-8", "replace")
    except FileNotFoundError:
        return _GONE


def is_alive(text: str) -> bool:
    """Return whether the process that a lock names may still be running."""
    owner = _owner(text)
    return owner is not None and owner.is_alive


def _owner(text: str) -> LockOwner | None:
    """Return the process that a lock names, None if the lock is damaged or was just removed."""
    try:
        host, process, started, *more = text.split()
        alive = _is_running(host, int(process), started)
    except (ValueError, OverflowError):
        return None
    n_cases, began = 0, 0.0
    # A run that is starting has not written these yet; another version may write others.
    with suppress(ValueError, IndexError):
        n_cases, began = max(int(more[1]), 0), float(more[2])
        began = began if 0 <= began < _MOST_SECONDS else 0.0
    return LockOwner(
        host=host,
        process=process,
        scheduler=more[0] if more else "",
        n_cases=n_cases,
        began=began,
        is_alive=alive,
    )


def _is_running(host: str, pid: int, started: str) -> bool:
    if host != socket.gethostname():  # nothing is known of processes on other hosts
        return True
    with suppress(psutil.Error):
        # A later process may have got the same number.
        return (
            psutil.pid_exists(pid)
            and _start_time(pid) == started
            and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        )
    return False


def lock_owner(output_dir: Path) -> LockOwner | None:
    """Return the process that holds an output directory, or None.

    Raise SchedulerError if several partitions hold it, on several schedulers.
    """
    owners = lock_owners(output_dir)
    alive = [owner for owner in owners if owner.is_alive]
    schedulers = {owner.scheduler for owner in alive} - {"", IN_PROCESS}
    if len(alive) > 1 and len(schedulers) > 1:
        names = [f"{owner.scheduler} ({owner})" for owner in alive if owner.scheduler in schedulers]
        raise SchedulerError(
            f"{len(alive)} partitions of a run write to {output_dir}; to watch one of them, give "
            f"the address of its scheduler: {first_few(names, 9)}"
        )
    if len(alive) > 1 and schedulers:  # that scheduler knows all of them
        return replace(alive[0], scheduler=schedulers.pop(), process="")
    return (*alive, *owners, None)[0]


def lock_owners(output_dir: Path) -> list[LockOwner]:
    """Return the processes of all locks of an output directory; some may have died."""
    locks = [WHOLE.lock, *(partition_files(p).lock for p in locked_partitions(output_dir))]
    return [owner for lock in locks if (owner := _owner(read_lock(output_dir / lock)))]


def _start_time(pid: int) -> str:
    """Return a process's start time, independent of changes of the system's clock."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        ticks = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, UnicodeDecodeError):  # not Linux
        return f"{psutil.Process(pid).create_time():.0f}"
    return f"{boot}+{ticks}"
