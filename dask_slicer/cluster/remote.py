"""Connecting to a running scheduler, and waiting for its workers."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dask_slicer.cluster.address import TlsFiles, check_reachable, scheduler_address
from dask_slicer.cluster.client import client_timeouts
from dask_slicer.cluster.rpc import worker_addresses
from dask_slicer.config.run_settings import SchedulerSettings
from dask_slicer.errors import SchedulerError
from dask_slicer.utils import signals

if TYPE_CHECKING:
    from distributed import Client


_CONNECT_SECONDS = 10
_CLOSE_SECONDS = 3
# How long a scheduler that has just started may take to write its file.
_FILE_SECONDS = 10.0
_POLL_SECONDS, _NOTE_SECONDS = 0.2, 5.0


@contextmanager
def remote_client(settings: SchedulerSettings, note: Callable[[str], None]) -> Iterator[Client]:
    """Connect to a running scheduler, wait for its workers, and yield the client.

    Raises a SchedulerError if it does not answer within 10 s, or has too few workers in time.
    """
    address = _wait_for_address(settings)
    with client_timeouts(), connect(address, tls_files(settings)) as client:
        _wait_for_workers(client, address, settings, note)
        yield client


@contextmanager
def connect(address: str, tls: TlsFiles | None, **options: Any) -> Iterator[Client]:
    """Connect to a running scheduler; yield a client with these options.

    Raises a SchedulerError if it does not answer within 10 s. The scheduler keeps running.
    """
    from distributed import Client, Security

    # Dask's own configuration may name TLS files, too.
    default = Security().get_connection_args("client").get("ssl_context")
    check_reachable(address, tls, default)
    security = None
    if tls is not None:
        security = Security(
            tls_ca_file=str(tls.ca),
            tls_client_cert=str(tls.cert),
            tls_client_key=str(tls.key),
            require_encryption=True,
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # preflight reports other versions
            client = Client(
                address,
                timeout=_CONNECT_SECONDS,
                security=security,
                set_as_default=False,
                **options,
            )
    except (OSError, ValueError, TypeError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SchedulerError(
            f"no Dask scheduler answers at {address} ({reason}); is it running and reachable?"
        ) from error
    try:
        yield client
    finally:
        client.close(_CLOSE_SECONDS)


def tls_files(settings: SchedulerSettings) -> TlsFiles | None:
    """Return the TLS files of the settings; None unless all are set."""
    ca, cert, key = settings.tls_ca, settings.tls_cert, settings.tls_key
    return TlsFiles(ca=ca, cert=cert, key=key) if ca and cert and key else None


def _wait_for_address(settings: SchedulerSettings) -> str:
    """Return the address of the scheduler, which may not have written its file yet."""
    deadline = time.monotonic() + (_FILE_SECONDS if settings.scheduler_file else 0.0)
    while True:
        try:
            return scheduler_address(settings.scheduler, settings.scheduler_file)
        except SchedulerError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_POLL_SECONDS)


def _wait_for_workers(
    client: Client, address: str, settings: SchedulerSettings, note: Callable[[str], None]
) -> None:
    began, next_note = time.monotonic(), 0.0
    while (n_workers := len(worker_addresses(client))) < settings.wait_workers:
        signals.raise_if_interrupted()
        waited = time.monotonic() - began
        count = f"{n_workers} of {settings.wait_workers}"
        if waited > settings.wait_timeout:
            raise SchedulerError(
                f"the scheduler at {address} has {count} workers after "
                f"{settings.wait_timeout:g} s; start some with `dask worker {address}`, or wait "
                "longer with --wait_timeout"
            )
        if waited >= next_note:
            next_note = waited + _NOTE_SECONDS
            note(f"waiting for workers: {count}, {waited:.0f} s")
        time.sleep(_POLL_SECONDS)
