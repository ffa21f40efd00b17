"""Slurm, PBS, SGE and LSF: options of jobs, and parsing of their queues.

dask-jobqueue writes the job scripts, and submits and cancels jobs; this module runs no command.
"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import dask

from dask_slicer.cluster.client import ENVIRONMENT, SETTINGS, variable_of
from dask_slicer.config.fields import walltime_seconds
from dask_slicer.config.run_settings import JobSettings
from dask_slicer.errors import UsageError
from dask_slicer.utils.formatting import escape_line

# Name of jobs; with a number, of their workers.
NAME = "dask-slicer"
# A job ends by itself before its walltime: a tenth of it before, within these seconds, and at the
# earliest at half of it.
_SHORTEST_MARGIN, _LONGEST_MARGIN = 60.0, 600.0
# Dask's nannies set the first one, unless it is set, so low that glibc maps fresh memory for every
# plane. Once it is set, glibc no longer raises the second one by itself. These are the values up to
# which glibc would raise both.
_GLIBC = {"MALLOC_TRIM_THRESHOLD_": 64 << 20, "MALLOC_MMAP_THRESHOLD_": 32 << 20}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSystem:
    """What distinguishes a batch system from the others."""

    account: str  # keyword of dask-jobqueue for the account that pays for a job
    listing: tuple[str, ...]  # command that lists the jobs of a {user}, their numbers first
    state: int  # column of the state in that list
    queued: str  # pattern of states; a job runs in a state that is neither queued nor ended
    ended: str
    log: str = ""  # name of a job's log file; empty: the batch system makes one up
    directives: tuple[str, ...] = ()  # lines of every job script
    reason: int | None = None  # column of the reason why a job is queued, to the end of the line


SYSTEMS = {
    "slurm": BatchSystem(
        account="account",
        listing=("squeue", "--noheader", "--user={user}", "--format=%i %t %r"),
        state=1,
        queued="PD|R[DHQSV]|SE",
        ended="BF|CA|CD|DL|F|NF|OOM|PR|TO",
        reason=2,
        log=f"{NAME}-%j.log",
    ),
    "pbs": BatchSystem(
        account="account",
        listing=("qstat", "-u", "{user}"),
        state=9,
        queued="[HQTW]",
        ended="[CFX]",
        # The script needs bash, whatever the user's own shell.
        directives=("-S /bin/bash", "-j oe"),
    ),
    "sge": BatchSystem(
        account="project",
        listing=("qstat", "-u", "{user}"),
        state=4,
        queued=".*w.*",
        ended=".*E.*",  # Eqw: it never runs
        directives=("-S /bin/bash",),
    ),
    "lsf": BatchSystem(
        account="project",
        listing=("bjobs", "-noheader", "-o", "jobid stat"),
        state=1,
        queued="PEND|PSUSP|WAIT",
        ended="DONE|EXIT|ZOMBI",
        log=f"{NAME}-%J.log",
    ),
}


class ListedJob(NamedTuple):
    """A job in the list of a batch system: whether it is queued, and the reason, if listed."""

    is_queued: bool
    reason: str = ""


def check_job_settings(settings: JobSettings) -> None:
    """Raise a UsageError if settings make no valid job."""
    if settings.cluster is None:
        raise UsageError("a job script needs --cluster, such as --cluster slurm")
    if settings.lifetime is not None and settings.lifetime >= walltime_seconds(settings.walltime):
        raise UsageError(
            f"lifetime must be less than walltime, {settings.walltime}, got {settings.lifetime:g} s"
        )
    has_environment = any(line.split()[:1] == ["-pe"] for line in settings.job_extra)
    if settings.cluster == "sge" and settings.cores > 1 and not has_environment:
        raise UsageError(
            f"a job with {settings.cores} cores needs a parallel environment of the site's sge: "
            f"give one, such as --job_extra '-pe smp {settings.cores}'"
        )


def lifetime(settings: JobSettings) -> tuple[float, float]:
    """Return the seconds after which workers stop cleanly, and how far they vary at random."""
    # Before the walltime, so that no case is cut off; at random, so that not all jobs end together.
    walltime = walltime_seconds(settings.walltime)
    margin = min(max(walltime / 10, _SHORTEST_MARGIN), _LONGEST_MARGIN, walltime / 2)
    seconds = walltime - margin if settings.lifetime is None else settings.lifetime
    stagger = min(walltime - seconds, seconds / 5) / 2 if settings.jobs > 1 else 0.0
    return float(seconds), stagger


def job_keywords(settings: JobSettings, *, logs: Path) -> dict[str, Any]:
    """Return the keywords of dask-jobqueue; lines of its own configuration come first."""
    system = SYSTEMS[str(settings.cluster)]
    seconds, stagger = lifetime(settings)
    # Nothing uses the HTTP servers of workers, which listen on all interfaces by default.
    arguments = ["--dashboard-address", "127.0.0.1:0", "--lifetime", f"{seconds:.0f}s"]
    if stagger:
        arguments += ["--lifetime-stagger", f"{stagger:.0f}s"]
    log = f"{logs}/{system.log}"
    # Workers in jobs get Dask's settings as variables only.
    variables: dict[str, object] = {**ENVIRONMENT, **_GLIBC}
    for name, value in SETTINGS.items():
        if not name.startswith("distributed.scheduler."):
            variables[variable_of(name)] = value
    lines = {
        "worker_extra_args": arguments,
        "job_extra_directives": [
            *system.directives,
            f'-o "{log}"' if re.search(r"\s", log) else f"-o {log}",
            *settings.job_extra,
        ],
        "job_script_prologue": [
            *(f"export {name}={shlex.quote(str(value))}" for name, value in variables.items()),
            # TMPDIR may be that of the machine that submitted the job.
            '[ -d "$TMPDIR" ] && [ -w "$TMPDIR" ] || export TMPDIR=/tmp',
        ],
    }
    for name, ours in lines.items():
        configured = dask.config.get(f"jobqueue.{settings.cluster}.{name}", None) or []
        lines[name] = [*configured, *ours]
    return lines | {
        "cores": settings.cores,
        "processes": settings.cores,
        "memory": int(settings.memory),
        "walltime": _walltime(settings),
        "queue": settings.queue,
        system.account: settings.account,
        "job_name": NAME,
        "interface": settings.interface,
        # exec: otherwise a cancelled job may leave Python behind.
        "python": f"exec {shlex.quote(sys.executable)}",
        "nanny": True,
        # Seconds to reach the scheduler: Python may need 60 to start from a network disk.
        "death_timeout": 120,
        # On the node: a shared disk is slow.
        "local_directory": '"$TMPDIR"',
    }


def _walltime(settings: JobSettings) -> str:
    minutes, seconds = divmod(walltime_seconds(settings.walltime), 60)
    if settings.cluster == "lsf":  # it takes no seconds
        minutes += seconds > 0
        return f"{minutes // 60:02d}:{minutes % 60:02d}"
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"


def listed_jobs(system: BatchSystem, text: str) -> dict[str, ListedJob]:
    """Return the jobs of a list, by number, without those that have ended."""
    jobs = {}
    for line in text.splitlines():
        fields = line.split()
        number = re.match(r"\d+", line.strip())
        if number is None or len(fields) <= system.state:
            continue  # a heading
        state = fields[system.state]
        if re.fullmatch(system.ended, state):
            continue
        is_queued = re.fullmatch(system.queued, state) is not None
        reason = "" if system.reason is None else " ".join(fields[system.reason :])
        jobs[number[0]] = ListedJob(is_queued, "" if reason == "None" else reason)
    return jobs


def error_text(error: Exception) -> str:
    """Return the batch system's own words in an error of dask-jobqueue for a failed command."""
    text = str(error)
    _, _, words = text.partition("stderr:\n")
    if not words.strip():  # some systems print errors to stdout
        words = text.partition("stdout:\n")[2].partition("stderr:\n")[0]
    lines = [re.sub(r"^\w+: (error: )?", "", line.strip()) for line in words.splitlines()]
    return escape_line("; ".join(dict.fromkeys(filter(None, lines))) or text)
