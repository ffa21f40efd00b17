"""Exclusive access to an output directory.

Each takes its own lock first and looks at those of others then, so that of two that exclude each
other never both go on.
"""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from dask_slicer.errors import OutputError, SchedulerError
from dask_slicer.output.atomic import _link, write_first
from dask_slicer.output.layout import (
    WHOLE,
    locked_partitions,
    partition_files,
    unfinished_locks,
)
from dask_slicer.planning.plan import Partition
from dask_slicer.utils.formatting import first_few

_LOG = logging.getLogger(__name__)

# A run that came to nothing may take away the new directory that this one is about to use.
_TRIES = 100
# Read of a lock that has just been given back.
_GONE = "it has just gone"


@contextmanager
def locked(output_dir: Path, share: Partition | None = None) -> Iterator[list[str]]:
    """Hold an output directory for one run, or a share of one; yield notes about the taking.

    Raises
    ------
    OutputError
        If a run holds it that excludes this one, naming the host and process.
    """
    is_new = not output_dir.exists()
    lock = output_dir / partition_files(share).lock
    try:
        _check_others(output_dir, share)  # one that is refused anyway disturbs nobody
        notes = _take(lock, _rival(share))
    except OSError as error:
        raise OutputError(f"cannot write to output_dir {output_dir}: {error.strerror}") from None
    try:
        _check_others(output_dir, share)
        yield notes
    finally:
        lock.unlink(missing_ok=True)
        if is_new:
            with suppress(OSError):
                output_dir.rmdir()  # nothing came of it


def check_not_in_use(output_dir: Path) -> None:
    """Raise if a run, or a share of one, holds an output directory.

    Raises
    ------
    OutputError
        Naming the host and process.
    """
    _check_whole(output_dir)
    _check_shares(output_dir, locked_partitions(output_dir))


def check_free(output_dir: Path, share: Partition | None) -> None:
    """Raise if a run holds an output that excludes a run of the whole, or of a share.

    Raises
    ------
    OutputError
        Naming the host and process.
    """
    _check_others(output_dir, share)
    own = partition_files(share).lock
    found = read_lock(output_dir / own)
    if is_alive(found):
        raise _in_use(output_dir, _rival(share), found, own)


def remove_stale_locks(output_dir: Path) -> None:
    """Remove what shares left that died; for whoever holds the output."""
    for share in locked_partitions(output_dir):
        lock = output_dir / partition_files(share).lock
        found = read_lock(lock)
        if not is_alive(found):
            _remove_lock(lock, found)
    for aside in unfinished_locks(output_dir):
        if not is_alive(read_lock(aside)):
            aside.unlink(missing_ok=True)


def _rival(share: Partition | None) -> str:
    return "another run" + ("" if share is None else f" of share {share}")


def _check_others(output_dir: Path, share: Partition | None) -> None:
    """Raise if a run holds the output that excludes this one."""
    others = locked_partitions(output_dir)
    if share is None:
        _check_shares(output_dir, others)
    else:
        _check_whole(output_dir)
        _check_shares(output_dir, [other for other in others if other.of != share.of])


def _check_whole(output_dir: Path) -> None:
    found = read_lock(output_dir / WHOLE.lock)
    if is_alive(found):
        raise _in_use(output_dir, "another run", found, WHOLE.lock)


def _check_shares(output_dir: Path, shares: list[Partition]) -> None:
    found = {share: read_lock(output_dir / partition_files(share).lock) for share in shares}
    alive = {share: holder for share, holder in found.items() if is_alive(holder)}
    if len(alive) == 1:
        ((share, holder),) = alive.items()
        raise _in_use(output_dir, f"share {share} of a run", holder, partition_files(share).lock)
    if alive:
        who = first_few([f"{share} ({_who(holder)})" for share, holder in alive.items()])
        raise OutputError(
            f"{output_dir} is in use by {len(alive)} shares of a run: {who}; wait for them, or "
            "remove of those that are gone "
            f"{first_few([partition_files(share).lock for share in alive])}"
        )


def _take(lock: Path, rival: str) -> list[str]:
    notes: list[str] = []
    for number in range(_TRIES):
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_first(lock, lock_text())
        except FileNotFoundError:
            if number == _TRIES - 1:
                raise
        except FileExistsError:
            found = read_lock(lock)
            if found == _GONE:
                continue
            if is_alive(found):
                raise _in_use(lock.parent, rival, found, lock.name) from None
            if notes:
                break
            notes = [f"took over the lock of a run that died ({_who(found)})"]
            _remove_lock(lock, found)
        else:
            return notes
    raise OutputError(f"another run took {lock.parent} at the same moment")


def _in_use(output_dir: Path, by: str, found: str, lock: str) -> OutputError:
    return OutputError(
        f"{output_dir} is in use by {by} ({_who(found)}); wait for it, or remove {lock} if it is "
        "gone"
    )


def read_lock(lock: Path) -> str:
    """Return what a lock says."""
    try:
        return lock.read_text(encoding="utf-8")
    except FileNotFoundError:
        return _GONE


def _remove_lock(lock: Path, found: str) -> None:
    """Remove the lock that was found stale, and not one that somebody else has taken since."""
    aside = lock.with_name(f"{lock.name}.{uuid.uuid4().hex[:8]}")
    try:
        lock.rename(aside)
    except FileNotFoundError:
        return
    if read_lock(aside) not in (found, _GONE):  # gone: whoever holds the output has tidied up
        _link(aside, lock)
    aside.unlink(missing_ok=True)


def _who(found: str) -> str:
    """Return who a lock names."""
    try:
        host, pid, _, *_ = found.split()
    except ValueError:
        return "unreadable"
    return f"process {pid} on {host}"


def is_alive(found: str) -> bool:
    """Return whether whom a lock names may still be running."""
    try:
        host, pid, birth, *_ = found.split()  # the rest is for whoever watches
        number = int(pid)
    except ValueError:
        return False
    if host != socket.gethostname():  # of another host nothing can be known
        return True
    with suppress(psutil.Error):
        # A later process may have been given the same number.
        return (
            psutil.pid_exists(number)
            and _birth(number) == birth
            and psutil.Process(number).status() != psutil.STATUS_ZOMBIE
        )
    return False


def lock_text() -> str:
    """Return what a lock says of this process: host, number and birth."""
    return f"{socket.gethostname()} {os.getpid()} {_birth(os.getpid())}"


def _birth(pid: int) -> str:
    """Return when a process began, however often the system's clock has been set since."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        ticks = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, UnicodeDecodeError):  # not Linux
        return f"{psutil.Process(pid).create_time():.0f}"
    return f"{boot}+{ticks}"


# What the lock of a run without a scheduler says instead of its address.
IN_PROCESS = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class LockOwner:
    """A process that holds an output directory, or did when it died.

    Attributes
    ----------
    host, process : str
    scheduler : str
        Address; empty until the run has one, IN_PROCESS if it needs none.
    is_alive : bool
        Whether it may still be running.
    """

    host: str
    process: str
    scheduler: str
    is_alive: bool

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


def lock_owner(output_dir: Path) -> LockOwner | None:
    """Return who holds an output directory; None where nobody does.

    Raises
    ------
    SchedulerError
        If several shares of a run do.
    """
    names = [WHOLE.lock, *(partition_files(share).lock for share in locked_partitions(output_dir))]
    found = [one for name in names if (one := _holder(output_dir / name))]
    alive = [one for one in found if one.is_alive]
    seen = {one.scheduler for one in alive} - {"", IN_PROCESS}
    if len(alive) > 1 and len(seen) > 1:
        each = first_few([f"{one.scheduler} ({one})" for one in alive if one.scheduler in seen], 9)
        raise SchedulerError(
            f"{len(alive)} shares of a run are at work in {output_dir}; watch one of them by the "
            f"address of its scheduler: {each}"
        )
    if len(alive) > 1 and seen:  # on one scheduler: both are to be seen there
        return replace(alive[0], scheduler=seen.pop(), process="")
    return (*alive, *found, None)[0]


def _holder(lock: Path) -> LockOwner | None:
    found = read_lock(lock)
    try:
        host, process, _, scheduler = (*found.split(), "")[:4]
        int(process)
    except ValueError:  # it has just gone, or is no lock
        return None
    return LockOwner(host=host, process=process, scheduler=scheduler, is_alive=is_alive(found))


def name_scheduler(output_dir: Path, share: Partition | None, address: str) -> None:
    """Say in the lock that this process holds where the run's scheduler is, or IN_PROCESS."""
    lock = output_dir / partition_files(share).lock
    aside = lock.with_name(f"{lock.name}.{uuid.uuid4().hex[:8]}")
    try:
        if read_lock(lock) == lock_text():
            aside.write_text(f"{lock_text()} {address}", encoding="utf-8")
            os.replace(aside, lock)
    except OSError:  # whoever watches must name the address, then
        _LOG.debug("the lock does not name the scheduler", exc_info=True)
        with suppress(OSError):
            aside.unlink(missing_ok=True)
