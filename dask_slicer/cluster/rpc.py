"""Calls to the scheduler and its workers, with timeouts."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from dask_slicer.cluster import probes
from dask_slicer.errors import SchedulerError
from dask_slicer.utils.formatting import escape_line

if TYPE_CHECKING:
    from distributed import Client


Note = Callable[[str], None]
_ANSWER_SECONDS = 10.0


def ask_scheduler(client: Client, ask: Callable[..., Any], *args: Any, **kw: Any) -> Any:
    """Return the answer to a method of a client; raise a SchedulerError without one in 10 s."""
    address = str(client.scheduler.address if client.scheduler else "an unknown address")
    try:
        return client.sync(ask, *args, **kw, callback_timeout=_ANSWER_SECONDS)
    except TimeoutError:
        raise SchedulerError(
            f"the Dask scheduler at {address} has not answered for {_ANSWER_SECONDS:.0f} s; is it "
            "busy, or stopped?"
        ) from None
    except Exception as error:  # Dask raises many types of errors when a connection is lost
        if isinstance(error, OSError | CancelledError) or client.status != "running":
            raise SchedulerError(
                f"the Dask scheduler at {address} was lost ({type(error).__name__}: "
                f"{escape_line(str(error))})"
            ) from error
        raise no_answer(address, error) from error


def no_answer(address: str, error: Exception) -> SchedulerError:
    """Return the error of a scheduler that is reached, but cannot answer."""
    return SchedulerError(
        f"the Dask scheduler at {address} cannot answer ({type(error).__name__}: "
        f"{escape_line(str(error))}); check that it has the same version of distributed as this "
        "program"
    )


def run_on_scheduler(client: Client, function: Callable[..., Any], *args: Any) -> Any:
    """Return what a function returns on the scheduler, or raise a SchedulerError."""
    send_by_value()
    return ask_scheduler(client, client.run_on_scheduler, function, *args)


def run_everywhere(client: Client, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """Return what a function returns on the scheduler and each worker, or the worker's error."""
    answers = {"the scheduler": run_on_scheduler(client, function, *args)}
    return answers | run_on_workers(client, function, *args)


def run_on_workers(client: Client, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """Return what a function returns on each worker, or the error, by worker address."""
    send_by_value()

    async def ask(workers: Sequence[str]) -> dict[str, Any]:
        call: Any = client.run(function, *args, workers=list(workers), on_error="return")
        try:
            answers = await asyncio.wait_for(call, _ANSWER_SECONDS)
        except Exception as error:
            if len(workers) != 1:  # one message for all is cheapest: now find out which is silent
                answers = {}
                for answer in await asyncio.gather(*(ask([worker]) for worker in workers)):
                    answers |= answer
                return answers
            if isinstance(error, TimeoutError):
                error = TimeoutError(f"no answer within {_ANSWER_SECONDS:.0f} s")
            answers = {workers[0]: error}
        return {worker: answers.get(worker, ConnectionError("it has gone")) for worker in workers}

    answers: dict[str, Any] = client.sync(ask, worker_addresses(client))
    if any(isinstance(answer, BaseException) for answer in answers.values()):
        present = worker_addresses(client)  # workers that left in the meantime do not matter
        return {worker: answer for worker, answer in answers.items() if worker in present}
    return answers


def versions(client: Client, packages: Sequence[str]) -> dict[str, Any]:
    """Return {"packages": {name: version}} of the scheduler and each worker, or the error.

    Dask's own function is sent by its name: our code must not be sent to another version of Python,
    which may crash. `Client.get_versions` would wait for a silent worker without a timeout.
    """
    from distributed.versions import get_versions

    return run_everywhere(client, get_versions, list(packages))


def worker_addresses(client: Client) -> list[str]:
    """Return the addresses of the present workers, or raise a SchedulerError."""
    return sorted(ask_scheduler(client, client.nthreads))


@contextmanager
def workers_ignore_sigint(client: Client) -> Iterator[None]:
    """Keep Ctrl-C in this terminal from killing workers started from it.

    A Jupyter server sends SIGINT to the process group of a kernel, a terminal to that of a command.
    """
    if not hasattr(os, "getpgrp"):  # Windows
        yield
        return
    group = (socket.gethostname(), os.getpgrp())
    answers = run_on_workers(client, probes.ignore_sigint, *group)
    try:
        yield
    finally:
        if any(answer is True for answer in answers.values()):
            with suppress(Exception):  # the scheduler may be lost
                run_on_workers(client, probes.restore_sigint)


@cache
def send_by_value() -> None:
    """Send functions of `probes` as code: the other process may lack this package."""
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[probes.__name__])
