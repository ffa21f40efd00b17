"""How worker processes start: forked from a process that has imported what they need.

That process is a fresh one, not ours: nothing but imports has happened in it, no thread runs.
Workers that import everything themselves take twice as long to start.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from dask_slicer import interrupts

_LOG = logging.getLogger(__name__)

_IMPORTED = ["distributed", "dask_slicer.tasks", "distributed.dashboard.worker"]
# What works only in a process that has it from its start. Dask would set MALLOC_TRIM_THRESHOLD_
# too, with which glibc gives every plane's memory back to be mapped anew: a third of the CPU time.
# One arena, since one thread allocates: the others grow by mapping and unmapping as well.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
}


def prepare(imported: Sequence[str] = ()) -> str:
    """Start the process that workers will be forked from, if it does not run yet.

    It imports in the background, while this process imports what it needs itself.

    Parameters
    ----------
    imported : sequence of str
        Modules that workers will need, beside those that all need.

    Returns
    -------
    str
        How workers are to be started: forkserver, or spawn where it cannot be had.
    """
    if sys.platform != "linux":
        return "spawn"
    from multiprocessing import forkserver

    # Blosc's lock is left behind by a worker that is stopped; Python's resource tracker, which
    # is started here too, removes it, and there is no need to tell.
    ignored = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker"]))
    with _environment(ENVIRONMENT | {"PYTHONWARNINGS": ignored}), interrupts.deferred():
        multiprocessing.set_forkserver_preload([*_IMPORTED, *imported])
        try:
            forkserver.ensure_running()
        except OSError as error:  # the path of its socket, below TMPDIR, may be too long
            _LOG.info("workers are spawned, not forked: %s", error)
            return "spawn"
    return "forkserver"


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
