"""Somebody's scheduler: how to get to it, wait for its workers, and send this package along."""

from __future__ import annotations

import importlib.resources
import logging
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask_slicer import probes
from dask_slicer.cluster import settings_of_clients
from dask_slicer.errors import SchedulerError
from dask_slicer.events import Observer
from dask_slicer.preflight import OURS, PACKAGES, ask_workers, sent_by_value
from dask_slicer.reach import TlsFiles, check_reachable, scheduler_address
from dask_slicer.runsettings import SchedulerSettings
from dask_slicer.words import count

if TYPE_CHECKING:
    from distributed import Client

_LOG = logging.getLogger(__name__)

_CONNECT_SECONDS = 10
_CLOSE_SECONDS = 3
# For a scheduler that has just been started to write its file.
_FILE_SECONDS = 10.0
_LOOK_SECONDS, _TELL_SECONDS = 0.2, 5.0
_PLUGIN = "dask-slicer-code"


@contextmanager
def remote_client(settings: SchedulerSettings, observer: Observer) -> Iterator[Client]:
    """Connect to a running scheduler that has workers; yield its client, leave it running.

    Parameters
    ----------
    settings : SchedulerSettings
    observer : Observer
        Is told how long workers are waited for.

    Raises
    ------
    SchedulerError
        If it does not answer within 10 seconds, or has too few workers within `wait_timeout`.
    ConfigError
        If address or TLS files cannot be used.
    """
    _wait_for_file(settings.scheduler_file)
    address = scheduler_address(settings.scheduler, settings.scheduler_file)
    with (
        settings_of_clients(),
        connected(address, tls_files(settings)) as client,
    ):
        _wait_for_workers(client, address, settings, observer)
        yield client


@contextmanager
def connected(address: str, tls: TlsFiles | None, **options: Any) -> Iterator[Client]:
    """Connect to a running scheduler; yield its client, leave it running.

    Parameters
    ----------
    address : str
    tls : TlsFiles, optional
    **options
        Of the client.

    Raises
    ------
    SchedulerError
        If it does not answer within 10 seconds.
    ConfigError
        If the TLS files cannot be used.
    """
    from distributed import Client, Security

    check_reachable(address, tls)
    security = None
    if tls is not None:
        security = Security(
            tls_ca_file=str(tls.ca),
            tls_client_cert=str(tls.cert),
            tls_client_key=str(tls.key),
            require_encryption=True,
        )
    try:
        client = Client(address, timeout=_CONNECT_SECONDS, security=security, **options)
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
    """Return the files of TLS that the settings name, all or none."""
    ca, cert, key = settings.tls_ca, settings.tls_cert, settings.tls_key
    return TlsFiles(ca=ca, cert=cert, key=key) if ca and cert and key else None


def _wait_for_file(path: Path | None) -> None:
    deadline = time.monotonic() + _FILE_SECONDS
    while path is not None and not path.exists() and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)


def _wait_for_workers(
    client: Client, address: str, settings: SchedulerSettings, observer: Observer
) -> None:
    began = told = time.monotonic()
    while (found := len(client.scheduler_info(n_workers=-1)["workers"])) < settings.wait_workers:
        now = time.monotonic()
        wanted = f"{found} of {settings.wait_workers}"
        if now - began > settings.wait_timeout:
            raise SchedulerError(
                f"the scheduler at {address} has {wanted} workers after "
                f"{settings.wait_timeout:g} s; start some with `dask worker {address}`, or wait "
                "longer with --wait_timeout"
            )
        if now - told > _TELL_SECONDS or told == began:
            told = now
            observer.note(f"waiting for workers: {wanted}, {now - began:.0f} s")
        time.sleep(_LOOK_SECONDS)


# -- sending the package ---------------------------------------------------------------------------


def send_package(client: Client) -> None:
    """Send this package to a scheduler and its workers, later ones too, in place of theirs.

    Raises
    ------
    SchedulerError
        If it cannot be unpacked or imported there.
    """
    from distributed.diagnostics.plugin import SchedulerUploadFile, UploadFile

    code = probes.describe(PACKAGES)["code"]
    with sent_by_value():
        client.run_on_scheduler(probes.forget_package, code, PACKAGES)
        ask_workers(client, probes.forget_package, lambda _: (code, PACKAGES))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*overwriting.*")  # what was sent before
        path = Path(folder, f"{OURS}_code_{code}.zip")
        write_package(path)
        try:
            # One after the other: a worker that comes late must find the scheduler's.
            client.register_plugin(SchedulerUploadFile(str(path)), name=f"{_PLUGIN}-scheduler")
            client.register_plugin(UploadFile(str(path)), name=_PLUGIN)
        except Exception as error:  # whatever the other side makes of it
            raise SchedulerError(f"--upload_code: {OURS} cannot be sent ({error})") from error
    _LOG.info("sent %s to %s", OURS, count(len(client.nthreads()), "worker"))


def write_package(path: Path) -> None:
    """Write this package, with what says its version, into a zip file that Python imports from."""
    own = version(OURS)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in importlib.resources.files(OURS).iterdir():
            if file.name.endswith(".py"):
                archive.writestr(f"{OURS}/{file.name}", file.read_bytes())
        archive.writestr(
            f"{OURS}-{own}.dist-info/METADATA",
            f"Metadata-Version: 2.1\nName: {OURS}\nVersion: {own}\n",
        )
