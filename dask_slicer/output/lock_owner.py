"""Owners of locks: the text of a lock, and whether its process may still be running.

A lock names host, process id and start time, then by name: the boot and PID namespace (place), the
run, and after how many seconds without a sign of life it is stale. Scheduler, number of cases and
time follow when the run has them. Locks of earlier versions lack what has a name.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from dask_slicer.errors import SchedulerError
from dask_slicer.output.atomic import temporary_name
from dask_slicer.output.layout import WHOLE, locked_partitions, partition_files
from dask_slicer.utils.files import open_file
from dask_slicer.utils.formatting import first_few, format_time

# Text of a lock that was removed before it could be read.
GONE = "it has just gone"
# In the lock of a run without a scheduler, instead of an address.
IN_PROCESS = "-"
# A lock without a sign of life for so long is stale; its run gives one 20 times as often.
STALE_SECONDS = 600.0
# Since 1970: more is damage.
_MOST_SECONDS = 1e11
SIGNS_UNTIL_STALE = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LockOwner:
    """A process that holds an output directory, or held it when it died."""

    host: str
    process: str
    scheduler: str  # address; empty until the run has a scheduler, IN_PROCESS if it needs none
    n_cases: int  # to run
    began: float  # when it began to run them, in seconds since 1970; 0 until then
    is_alive: bool  # it may still be running
    # Of a process that cannot be checked: seconds since its last sign of life, and those left until
    # its lock is stale; None if its lock shows no signs.
    silent: float | None = None
    left: float | None = None

    @property
    def is_overdue(self) -> bool:
        """Return whether the process should have given a sign of life by now."""
        if self.silent is None or self.left is None:
            return False
        return self.silent > 2 * (self.silent + self.left) / SIGNS_UNTIL_STALE

    def __str__(self) -> str:
        sign = ""
        if self.silent is not None:
            # In another container of this name, or from before this host was started.
            is_namesake = self.host == socket.gethostname()
            elsewhere = ", which cannot be checked from here" if is_namesake else ""
            sign = f"{elsewhere}, last sign of life {format_time(self.silent)} ago"
        return f"process {self.process} on {self.host}{sign}"


# -- text ------------------------------------------------------------------------------------------


def lock_text() -> str:
    """Return the lock's text for this process: host, process id and start time."""
    return f"{socket.gethostname()} {os.getpid()} {_start_time(os.getpid())}"


def run_text(run_id: str) -> str:
    """Return the lock's text for a run of this process."""
    return f"{lock_text()} place={_place()} run={run_id} stale={STALE_SECONDS:g}"


def run_of(text: str) -> str:
    """Return the run that a lock names; empty for locks of earlier versions."""
    return _named(text).get("run", "")


def read_lock(lock: Path) -> str:
    """Return the text of a lock, which may have just been removed."""
    return _read(lock)[0]


def _read(lock: Path) -> tuple[str, float]:
    """Return the text of a lock, and when it was touched by the clock of its disk."""
    try:
        with open_file(lock) as file:  # the status of an open file is not a cached one
            return file.read().decode("utf-8", "replace"), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return GONE, 0.0


def _named(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in text.split()[3:] if "=" in part)


# -- owners ----------------------------------------------------------------------------------------


def read_owner(lock: Path) -> tuple[str, LockOwner | None]:
    """Return a lock's text and the process that it names; None if it is damaged or has gone."""
    text, touched = _read(lock)
    try:
        host, process, started, *more = text.split()
        named = _named(text)
        pid = int(process)
        is_here = host == socket.gethostname() and named.get("place", _place()) == _place()
        is_running = _is_running(pid, started) if is_here else None
        stale_after = float(named["stale"]) if "stale" in named else None
        if stale_after is not None and not 0 <= stale_after < _MOST_SECONDS:
            return text, None
    except (ValueError, OverflowError):
        return text, None
    silent = None
    if is_running is None and stale_after is not None:
        silent = _seconds_since(touched, lock)
    left = None if silent is None or stale_after is None else max(stale_after - silent, 0.0)
    n_cases, began = 0, 0.0
    more = [part for part in more if "=" not in part]
    # A run that is starting has not written these yet; another version may write others.
    with suppress(ValueError, IndexError):
        n_cases, began = max(int(more[1]), 0), float(more[2])
        began = began if 0 <= began < _MOST_SECONDS else 0.0
    return text, LockOwner(
        host=host,
        process=process,
        scheduler=more[0] if more else "",
        n_cases=n_cases,
        began=began,
        is_alive=left != 0.0 if is_running is None else is_running,
        silent=silent,
        left=left,
    )


def _seconds_since(touched: float, lock: Path) -> float | None:
    """Return the seconds since a lock was touched, by the clock of its disk; None if unknown.

    The clocks of two hosts differ: only that of the disk has set both times.
    """
    probe = temporary_name(lock)
    try:
        probe.touch(exist_ok=False)
        os.utime(probe)
        return max(probe.stat().st_mtime - touched, 0.0)
    except OSError:  # the directory may be read-only
        return None
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def _is_running(pid: int, started: str) -> bool | None:
    """Return whether a process of this system runs; None if the system hides it."""
    with suppress(psutil.Error, OverflowError):
        if psutil.pid_exists(pid):
            # A later process may have got the same number.
            is_same = _start_time(pid) == started
            return is_same and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    if os.name == "posix":
        with suppress(ProcessLookupError, OverflowError):
            try:
                os.kill(pid, 0)
            except PermissionError:  # of another user
                return None
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
    return [owner for lock in locks if (owner := read_owner(output_dir / lock)[1])]


# -- this process ----------------------------------------------------------------------------------


def _place() -> str:
    """Return the boot of the system and the PID namespace of this process, where there are any.

    Process ids mean nothing in another one, such as another container.
    """
    with suppress(OSError):
        return f"{_boot()}:{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116
    return "-"


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _start_time(pid: int) -> str:
    """Return a process's start time, independent of changes of the system's clock."""
    try:
        boot = _boot()
        ticks = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, UnicodeDecodeError):  # not Linux
        return f"{psutil.Process(pid).create_time():.0f}"
    return f"{boot}+{ticks}"
