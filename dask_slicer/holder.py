"""Who holds an output directory at present, and where the scheduler of that run is.

A lock says which process holds an output, and, once there is one, the address of its scheduler:
who watches the run finds it so, without a look at any other file.

::

    node7 4711 0f3c…+91822 tcp://10.0.0.7:41873
"""

from __future__ import annotations

import json
import logging
import os
import socket
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from dask_slicer.errors import OutputError, SchedulerError
from dask_slicer.locks import is_alive, own_mark, read_lock
from dask_slicer.output import CONFIG, SUMMARY
from dask_slicer.shares import WHOLE, Share, files_of, journals_of_shares, shares_with_lock
from dask_slicer.words import count, some

# What the lock of a run without a scheduler says instead of its address.
IN_PROCESS = "-"
_LOOPBACK = ("127.", "localhost", "[::1]", "::1")

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
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


def holder_of(output_dir: Path) -> Holder | None:
    """Return who holds an output directory; None where nobody does.

    Raises
    ------
    SchedulerError
        If several shares of a run do.
    """
    names = [WHOLE.lock, *(files_of(share).lock for share in shares_with_lock(output_dir))]
    found = [one for name in names if (one := _holder(output_dir / name))]
    alive = [one for one in found if one.is_alive]
    seen = {one.scheduler for one in alive} - {"", IN_PROCESS}
    if len(alive) > 1 and len(seen) > 1:
        each = some([f"{one.scheduler} ({one})" for one in alive if one.scheduler in seen], 9)
        raise SchedulerError(
            f"{len(alive)} shares of a run are at work in {output_dir}; watch one of them by the "
            f"address of its scheduler: {each}"
        )
    if len(alive) > 1 and seen:  # on one scheduler: both are to be seen there
        return replace(alive[0], scheduler=seen.pop(), process="")
    return (*alive, *found, None)[0]


def _holder(lock: Path) -> Holder | None:
    found = read_lock(lock)
    try:
        host, process, _, scheduler = (*found.split(), "")[:4]
        int(process)
    except ValueError:  # it has just gone, or is no lock
        return None
    return Holder(host=host, process=process, scheduler=scheduler, is_alive=is_alive(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class Standstill:
    """That nothing is going on in an output, and what the last run left."""

    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where to look: a scheduler, and the process of the only run that is meant, if there is one.

    Attributes
    ----------
    address : str
    process : (str, str) or None
        Its host and number.
    """

    address: str
    process: tuple[str, str] | None = None


def place_of(output_dir: Path) -> Place | Standstill | None:
    """Return where the run that holds an output can be looked at.

    Returns
    -------
    Place, Standstill or None
        None while the run has not got that far.

    Raises
    ------
    OutputError
        If it is not ours.
    SchedulerError
        If the run cannot be watched, or not from here.
    """
    found = holder_of(output_dir)
    if found is None or not found.is_alive:
        if found is None and not (output_dir / CONFIG).exists():
            raise OutputError(f"{output_dir} is not an output of dask-slicer: nothing to watch")
        return Standstill(words=_what_is_left(output_dir, found))
    if found.scheduler == IN_PROCESS:
        raise SchedulerError(
            f"the run into {output_dir} ({found}) works in its own process, without a scheduler "
            "to watch; see what it prints, or run with --num_workers 1 or more"
        )
    place = found.scheduler.rpartition("://")[2]
    if found.host != socket.gethostname() and place.startswith(_LOOPBACK):
        raise SchedulerError(
            f"the run into {output_dir} is on {found.host}, and so is all that can reach its "
            f"scheduler ({found.scheduler}): ssh -t {found.host} dask-slicer watch {output_dir}"
        )
    if not found.scheduler:
        return None
    of_one = (found.host, found.process) if found.process else None
    return Place(address=found.scheduler, process=of_one)


def _what_is_left(output_dir: Path, died: Holder | None) -> str:
    """Return what the last run into an output left, in words."""
    begin = (
        f"No run is going on in {output_dir}"
        if died is None
        else f"The run into {output_dir} died ({died}); the same command continues"
    )
    try:
        info = json.loads((output_dir / SUMMARY).read_text(encoding="utf-8"))
        words = [
            count(info["num_cases"], "case"),
            count(info["num_slices"], "slice"),
            f"{info['num_failed']} failed",
        ]
    except (OSError, ValueError, KeyError, TypeError):
        if journals_of_shares(output_dir):
            return f"{begin}. Its shares are not merged yet: dask-slicer merge {output_dir}"
        return f"{begin}. There is no {SUMMARY} yet"
    return f"{begin}. {'There are' if died is None else 'Before, there were'} {', '.join(words)}"


def name_scheduler(output_dir: Path, share: Share | None, address: str) -> None:
    """Say in the lock that this process holds where the run's scheduler is, or IN_PROCESS."""
    lock = output_dir / files_of(share).lock
    aside = lock.with_name(f"{lock.name}.{uuid.uuid4().hex[:8]}")
    try:
        if read_lock(lock) == own_mark():
            aside.write_text(f"{own_mark()} {address}", encoding="utf-8")
            os.replace(aside, lock)
    except OSError:  # whoever watches must name the address, then
        _LOG.debug("the lock does not name the scheduler", exc_info=True)
        with suppress(OSError):
            aside.unlink(missing_ok=True)
