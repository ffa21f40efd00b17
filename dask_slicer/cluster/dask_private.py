"""Private names of Dask that have no public counterpart; no other module uses any.

Each has its reason here, and a test in `tests/cluster/test_dask_private.py` that fails when a new
version of Dask no longer has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import dask

if TYPE_CHECKING:
    from distributed import Nanny

# Topic of the events by which our nannies report how their workers ended.
EXIT_EVENTS = "dask-slicer-worker-exit"


@cache
def exit_reporting_nanny() -> type[Nanny]:
    """Return a class of nannies that log the exit code of their worker as an event."""
    from distributed import Nanny

    class ExitReportingNanny(Nanny):
        # Dask logs that a worker has gone, but not its exit code, which says whether it exited or
        # was killed, and by which signal. Plugins of a nanny are not called then.
        def _on_worker_exit_sync(self, exitcode: int) -> None:
            # By name: a nanny learns its worker's address later than the scheduler does.
            event = {"name": self.name, "exitcode": exitcode}
            self.log_event(EXIT_EVENTS, event)  # type: ignore[no-untyped-call]
            super()._on_worker_exit_sync(exitcode)  # type: ignore[no-untyped-call]

    return ExitReportingNanny


def nanny_variables() -> list[str]:
    """Return the environment variables that nannies set in the process that starts them."""
    # Dask leaves them set: the user's program would have OMP_NUM_THREADS=1 after a run.
    configured = dask.config.get("distributed.nanny.pre-spawn-environ")
    return ["PYTHONHASHSEED", "DASK_PARENT", "__DASK_PARENT_PID", *configured]


async def run_batch_command(job_class: Any, command: Sequence[str]) -> str:
    """Return what a command of a batch system prints; `error_text` finds its words in an error."""
    # dask-jobqueue submits and cancels with it: one way to run commands, one form of their errors.
    return str(await job_class._call(list(command)))
