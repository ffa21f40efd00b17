"""CPUs, memory and disk available to this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import psutil

_CGROUPS = Path("/sys/fs/cgroup")


def cpu_count() -> int:
    """Return the number of CPUs that this process may use, by affinity and cgroup quota."""
    from dask.system import CPU_COUNT

    return int(CPU_COUNT)


def cpu_share_in_use(seconds: float = 1.0) -> float:
    """Return the share of this machine's CPUs that all programs use, measured for some seconds."""
    return float(psutil.cpu_percent(seconds)) / 100


def cpu_wait_seconds(pid: int) -> float:
    """Return the seconds for which threads of a process were ready but had no CPU; 0 if unknown."""
    waited = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError, ValueError, IndexError):
            waited += int(path.read_text(encoding="ascii").split()[1])
    return waited / 1e9


def memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or the cgroup's limit."""
    limit = int(psutil.virtual_memory().total)
    for path in _cgroup_limits():
        with suppress(OSError):
            text = path.read_text(encoding="ascii").strip()
            if text.isdigit():  # "max" means no limit
                limit = min(limit, int(text))
    return limit


def _cgroup_limits() -> Iterator[Path]:
    """Yield the files with the limits of this process's control group and of its parents."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        path = PurePosixPath(group.lstrip("/"))
        for part in (path, *path.parents):
            if not controllers:  # version 2
                yield _CGROUPS / part / "memory.max"
            elif "memory" in controllers.split(","):
                yield _CGROUPS / "memory" / part / "memory.limit_in_bytes"


def n_oom_kills() -> int:
    """Return how many processes Linux has killed for lack of memory, 0 if unknown."""
    with suppress(OSError):
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return 0


def free_bytes(directory: Path) -> int:
    """Return the bytes free to this user where a directory is, or will be created."""
    return int(psutil.disk_usage(str(_existing(directory))).free)


def is_rotational(directory: Path) -> bool:
    """Return whether a directory lies on a spinning disk, False if unknown."""
    if os.name == "nt":
        return False
    device = _existing(directory).stat().st_dev
    block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    for folder in (block, block.parent):  # the queue of a disk partition is that of its disk
        with suppress(OSError):
            return (folder / "queue" / "rotational").read_text(encoding="ascii").strip() == "1"
    return False


def _existing(directory: Path) -> Path:
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return directory
