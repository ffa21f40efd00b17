"""Private names of Dask that have no public counterpart; no other module uses any.

Each has its reason here, and a test in `tests/cluster/test_dask_private.py` that fails when a new
version of Dask no longer has it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from dask_slicer.cluster.process_settings import DASK, VARIABLES, start_method_left_open

if TYPE_CHECKING:
    from distributed import Nanny

_LOCK = threading.Lock()
# Topic of the events by which our nannies report how their workers ended.
EXIT_EVENTS = "dask-slicer-worker-exit"


def local_nanny() -> type[Nanny]:
    """Return a class of nannies for workers of this machine, which change nothing around them.

    They log the exit code of their worker as an event.
    """
    with _LOCK:  # runs in two threads must not have two classes
        return _local_nanny()


@cache
def _local_nanny() -> type[Nanny]:
    from distributed import Nanny

    class LocalNanny(Nanny):
        # At the end of a run, a worker that was killed is not replaced, and no event is logged: the
        # scheduler may close first, of which asyncio would print an error.
        is_over = False

        def __init__(
            self, *arguments: Any, process_method: str, worker_log_level: int, **options: Any
        ) -> None:
            super().__init__(*arguments, **options)
            self.process_method = process_method
            # Given to Dask's nanny, it would be the level of this process, too.
            self.silence_logs = worker_log_level
            if process_method != "spawn":  # the server that workers are forked from has its own
                self.pre_spawn_env = {}

        async def instantiate(self) -> Any:
            if self.is_over:
                return self.status
            # Dask leaves its variables set, and asks for the process method also when a worker
            # is replaced.
            variables = {**self.pre_spawn_env, "__DASK_PARENT_PID": str(os.getpid())}
            method = {"distributed.worker.multiprocessing-method": self.process_method}
            with VARIABLES.changed(variables), DASK.changed(method), start_method_left_open():
                return await super().instantiate()

        async def close(self, *arguments: Any, **options: Any) -> Any:
            self.is_over = True
            return await super().close(*arguments, **options)

        # Dask logs that a worker has gone, but not its exit code, which says whether it exited or
        # was killed, and by which signal. Plugins of a nanny are not called then.
        def _on_worker_exit_sync(self, exitcode: int) -> None:
            # By name: a nanny learns its worker's address later than the scheduler does.
            event = {"name": self.name, "exitcode": exitcode}
            if not self.is_over:
                self.log_event(EXIT_EVENTS, event)  # type: ignore[no-untyped-call]
            super()._on_worker_exit_sync(exitcode)  # type: ignore[no-untyped-call]

    return LocalNanny


def remove_traces(servers: Iterable[Any]) -> None:
    """Remove what closed schedulers and nannies leave in the log and in the path of modules."""
    for server in servers:
        # Caches of Dask keep schedulers alive, and with them their handlers.
        for name in ("distributed.scheduler", "distributed.nanny"):
            logging.getLogger(name).removeHandler(server._deque_handler)
        # Dask removes its folder only if it is the first, as it is not if clusters overlap.
        if server._updated_sys_path and server.local_directory in sys.path:
            sys.path.remove(server.local_directory)


async def run_batch_command(job_class: Any, command: Sequence[str]) -> str:
    """Return what a command of a batch system prints; `error_text` finds its words in an error."""
    # dask-jobqueue submits and cancels with it: one way to run commands, one form of their errors.
    return str(await job_class._call(list(command)))
