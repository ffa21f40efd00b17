"""Calls to the scheduler and its workers, with timeouts."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from dask_slicer.cluster import probes
from dask_slicer.errors import SchedulerError
from dask_slicer.utils.formatting import escape_line

if TYPE_CHECKING:
    from distributed import Client


Ask = Callable[[Sequence[str]], Awaitable[Mapping[str, Any]]]

_ANSWER_SECONDS = 10.0


def ask_scheduler(client: Client, ask: Callable[..., Awaitable[Any]], *args: Any, **kw: Any) -> Any:
    """Return what a scheduler answers.

    Parameters
    ----------
    client : Client
    ask : callable
        A method of the client's, or of its connection, that asks.
    *args, **kw
        For it.

    Raises
    ------
    SchedulerError
        If it does not answer within 10 seconds, or is lost.
    """
    address = client.scheduler.address if client.scheduler is not None else "an unknown address"
    try:
        return client.sync(ask, *args, **kw, callback_timeout=_ANSWER_SECONDS)
    except TimeoutError:
        raise SchedulerError(
            f"the Dask scheduler at {address} has not answered for {_ANSWER_SECONDS:.0f} s; is it "
            "busy, or stopped?"
        ) from None
    except Exception as error:  # Dask has many ways to say that it is gone
        raise SchedulerError(
            f"the Dask scheduler at {address} was lost ({type(error).__name__}: "
            f"{escape_line(str(error))})"
        ) from error


def run_on_scheduler(client: Client, function: Callable[..., Any], *args: Any) -> Any:
    """Return what one of the `probes` returns on the scheduler.

    Raises
    ------
    SchedulerError
    """
    send_by_value()
    return ask_scheduler(client, client._run_on_scheduler, function, *args)


def run_on_workers(client: Client, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """Return what one of the `probes` returns on each worker, by its address.

    What it raised, or that there was no answer, stands in the place of an answer.
    """

    async def ask(workers: Sequence[str]) -> Mapping[str, Any]:
        found: Mapping[str, Any] = await client._run(
            function, *args, workers=list(workers), on_error="return"
        )
        return found

    send_by_value()
    return _ask_workers(client, ask)


@contextmanager
def workers_ignore_sigint(client: Client) -> Iterator[None]:
    """Let no worker hear Ctrl-C that would hear it along with this process; it would end.

    A Jupyter server sends it to the process group of a kernel, a terminal to that of a command: the
    driver is to stop, and workers that somebody started from a notebook are to stay.
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
            with suppress(Exception):  # the scheduler may be what was lost
                run_on_workers(client, probes.hear_ctrl_c_again)


def versions(client: Client, packages: Sequence[str]) -> dict[str, Any]:
    """Return Dask's own account of versions, {"packages": {name: version}}, by who gave it.

    No code is sent for it: code of another Python would end the process that runs it.

    Raises
    ------
    SchedulerError
    """
    connection: Any = client.scheduler

    async def ask(workers: Sequence[str]) -> Mapping[str, Any]:
        found: Mapping[str, Any] = await connection.broadcast(
            msg={"op": "versions", "packages": list(packages)},
            workers=list(workers),
            on_error="return",
        )
        return found

    scheduler = ask_scheduler(client, connection.versions, packages=list(packages))
    return {SCHEDULER: scheduler} | _ask_workers(client, ask)


SCHEDULER = "the scheduler"


def worker_addresses(client: Client) -> list[str]:
    """Return the workers that a scheduler has at present.

    Raises
    ------
    SchedulerError
    """
    return sorted(ask_scheduler(client, client.scheduler.ncores))  # type: ignore[union-attr]


def _ask_workers(client: Client, ask: Ask) -> dict[str, Any]:
    """Return the answers of all workers; of those that have left meanwhile none is missed."""

    async def ask_one(worker: str) -> Any:
        try:
            found = await asyncio.wait_for(ask([worker]), _ANSWER_SECONDS)
        except TimeoutError:
            return TimeoutError(f"no answer within {_ANSWER_SECONDS:.0f} s")
        except Exception as error:  # whatever it is, it is that worker's
            return error
        return found.get(worker, ConnectionError("it has gone"))

    async def ask_all(workers: Sequence[str]) -> Mapping[str, Any]:
        try:  # one message for all is cheapest
            return await asyncio.wait_for(ask(workers), _ANSWER_SECONDS)
        except Exception:  # somebody does not answer; who?
            answers = await asyncio.gather(*map(ask_one, workers))
            return dict(zip(workers, answers, strict=True))

    found = client.sync(ask_all, worker_addresses(client))
    if not any(isinstance(one, BaseException) for one in found.values()):
        return dict(found)
    still_there = set(worker_addresses(client))
    return {worker: one for worker, one in found.items() if worker in still_there}


@cache
def send_by_value() -> None:
    """Let functions of `probes` be sent whole: where they go, this package may be missing."""
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[probes.__name__])
