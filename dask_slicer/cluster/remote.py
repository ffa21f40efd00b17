"""Connecting to a running scheduler, and waiting for its workers.

A Dask client that connects without TLS to a port that wants it, or to another kind of server,
waits long and then gives no reason. So the port is probed first: without TLS a scheduler sends the
first message, with TLS it waits for the client.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask_slicer.cluster.client import client_timeouts
from dask_slicer.cluster.process_settings import IGNORED_WARNINGS
from dask_slicer.cluster.rpc import Note, no_answer, worker_addresses
from dask_slicer.config.run_settings import SchedulerSettings
from dask_slicer.errors import ConfigError, SchedulerError
from dask_slicer.utils import signals

if TYPE_CHECKING:
    from distributed import Client, Security


ADDRESS_VARIABLE = "DASK_SCHEDULER_ADDRESS"
_CONNECT_SECONDS = 10.0
_CLOSE_SECONDS = 3
# How long a scheduler that has just started may take to write its file.
_FILE_SECONDS = 10.0
_POLL_SECONDS, _NOTE_SECONDS = 0.2, 5.0
# How long a scheduler without TLS may take to send its first message.
_SPEAK_SECONDS = 3.0
# That message is short, and begins with its length in bytes.
_LENGTH_BYTES, _MOST_BYTES = 8, 1 << 20
_PLAIN, _TLS = "tcp", "tls"
# Dask's protocols that reach other hosts; only tcp and tls are probed.
_PROTOCOLS = (_PLAIN, _TLS, "ucx", "ucxx", "ws", "wss")


@contextmanager
def remote_client(settings: SchedulerSettings, note: Note) -> Iterator[Client]:
    """Connect to a running scheduler, wait for its workers, and yield the client."""
    address = _wait_for_address(settings)
    with connect(address, tls_security(settings)) as client:
        began, next_note = time.monotonic(), 0.0
        while (n_workers := len(worker_addresses(client))) < settings.wait_workers:
            signals.raise_if_interrupted()
            waited = time.monotonic() - began
            count = f"{n_workers} of {settings.wait_workers}"
            if waited > settings.wait_timeout:
                raise SchedulerError(
                    f"the scheduler at {address} has {count} workers after "
                    f"{settings.wait_timeout:g} s; start some with `dask worker {address}`, or "
                    "wait longer with --wait_timeout"
                )
            if waited >= next_note:
                next_note = waited + _NOTE_SECONDS
                note(f"waiting for workers: {count}, {waited:.0f} s")
            time.sleep(_POLL_SECONDS)
        yield client


@contextmanager
def connect(address: str, security: Security | None, **options: Any) -> Iterator[Client]:
    """Connect to a scheduler, which keeps running; yield a client with these options."""
    from distributed import Client

    check_reachable(address, security)
    options |= {"timeout": _CONNECT_SECONDS, "security": security, "set_as_default": False}
    with client_timeouts():
        try:
            with IGNORED_WARNINGS.changed({"Mismatched versions": True}):  # preflight reports them
                client = Client(address, **options)
        except TypeError as error:  # it does not know what this version asks for
            raise no_answer(address, error) from error
        except (OSError, ValueError, AssertionError, RuntimeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise _unreachable(address, reason) from error
        try:
            yield client
        finally:
            client.close(_CLOSE_SECONDS)


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


def tls_security(settings: SchedulerSettings) -> Security | None:
    """Return the TLS files of the settings, for Dask's client; None unless all are set."""
    ca, cert, key = settings.tls_ca, settings.tls_cert, settings.tls_key
    if not (ca and cert and key):
        return None
    from distributed import Security

    files = {"tls_ca_file": str(ca), "tls_client_cert": str(cert), "tls_client_key": str(key)}
    return Security(require_encryption=True, **files)


def _tls_context(security: Security) -> ssl.SSLContext:
    """Return the context of a connection; raise a ConfigError if a file cannot be used."""
    files = security.get_tls_config_for_role("client")
    ca, cert, key = files["ca_file"], files["cert"], files["key"]
    for option, path in (("tls_ca", ca), ("tls_cert", cert), ("tls_key", key)):
        try:
            Path(path).open("rb").close()
        except OSError as error:
            raise ConfigError(f"cannot read {option} {path}: {error.strerror}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # as in Dask: nodes of a cluster share a certificate
    problem = f"tls_ca {ca} is no PEM certificate"
    try:
        context.load_verify_locations(ca)
        problem = f"tls_cert {cert} and tls_key {key} are no certificate and its key"
        context.load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        raise ConfigError(f"{problem} ({_reason(error)})") from None
    return context


def scheduler_address(address: str | None, scheduler_file: Path | None) -> str:
    """Return the scheduler's address with its protocol, from its file, a variable or the text."""
    source, text = "scheduler", address or ""
    if scheduler_file is not None:
        source, text = f"the scheduler_file {scheduler_file}", _address_in(scheduler_file)
    elif address == "env":
        source, text = ADDRESS_VARIABLE, os.environ.get(ADDRESS_VARIABLE, "")
        if not text:
            raise ConfigError(f"scheduler env needs the variable {source}, which is not set")
    protocol, _, location = text.rpartition("://")
    host, _, port = location.rpartition(":")
    protocol = protocol or _PLAIN
    if protocol not in _PROTOCOLS or not (host and port.isdecimal() and int(port) < 1 << 16):
        raise ConfigError(f"{source} must be an address such as tcp://host:8786, got {text}")
    return f"{protocol}://{location}"


def _address_in(scheduler_file: Path) -> str:
    try:
        return str(json.loads(scheduler_file.read_text(encoding="utf-8"))["address"])
    except FileNotFoundError:
        problem = f"the scheduler_file {scheduler_file} does not exist; is the scheduler running?"
    except OSError as error:
        problem = f"cannot read the scheduler_file {scheduler_file}: {error.strerror}"
    except (ValueError, KeyError, TypeError):  # not UTF-8, no JSON, or JSON of another kind
        problem = (
            f"the scheduler_file {scheduler_file} holds no address; "
            "it must be what `dask scheduler --scheduler-file` writes"
        )
    raise SchedulerError(problem)


def check_reachable(address: str, security: Security | None) -> None:
    """Raise an error of one line if no Dask scheduler answers at a tcp or tls address."""
    protocol = address.partition("://")[0]
    if protocol == _TLS:
        from distributed import Security

        # Dask's own configuration may name TLS files, too.
        default = Security().get_connection_args("client").get("ssl_context")
        context = default if security is None else _tls_context(security)
        if context is None:
            raise ConfigError(f"{address} needs tls_ca, tls_cert and tls_key")
        _check_tls(address, context)
    elif security is not None:
        raise ConfigError(f"tls_ca, tls_cert and tls_key need a tls:// address, got {address}")
    elif protocol == _PLAIN:
        _check_plain(address)


def _check_plain(address: str) -> None:
    received = _first_bytes(address, _SPEAK_SECONDS)
    if received is None:
        if _speaks_tls(address):
            raise SchedulerError(
                f"the scheduler at {address} uses TLS: give "
                f"{address.replace(_PLAIN, _TLS, 1)} with --tls_ca, --tls_cert and --tls_key"
            )
        received = _first_bytes(address, _CONNECT_SECONDS)  # it may be far away, or busy
    if received is None:  # Dask's client would wait for it without end
        raise SchedulerError(
            f"{address} accepts connections, but has sent nothing for {_CONNECT_SECONDS:.0f} s: a "
            "Dask scheduler that is stopped or very busy, or another program"
        )
    if not 0 < int.from_bytes(received, "little") <= _MOST_BYTES:
        raise SchedulerError(f"the program that listens at {address} is not a Dask scheduler")


def _first_bytes(address: str, seconds: float) -> bytes | None:
    """Return the first 8 bytes, fewer if the server closes; None if it sends nothing."""
    received = b""
    with _connected(address) as connection:
        connection.settimeout(seconds)
        try:
            while (left := _LENGTH_BYTES - len(received)) and (more := connection.recv(left)):
                received += more
        except TimeoutError:
            return received or None
        except OSError:
            return b""
    return received


def _speaks_tls(address: str) -> bool:
    try:
        ssl.get_server_certificate(_host_and_port(address), timeout=_SPEAK_SECONDS)
    except ssl.SSLError as error:
        return _is_refusal(error)
    except OSError:
        return False
    return True


def _check_tls(address: str, context: ssl.SSLContext) -> None:
    connection = _connected(address)
    connection.settimeout(_CONNECT_SECONDS)
    try:
        with connection, context.wrap_socket(connection) as secured:
            # In TLS 1.3 a server refuses a client's certificate only after the handshake.
            if secured.recv(1):
                return
        reason = "it closed the connection; check whether it accepts the certificate of --tls_cert"
    except ssl.SSLCertVerificationError as error:
        reason = f"its certificate cannot be verified with --tls_ca: {error.verify_message}"
    except ssl.SSLError as error:
        reason = f"it does not use TLS ({_reason(error)}); try {_PLAIN}://"
        if _is_refusal(error):
            reason = f"it does not accept the certificate of --tls_cert: {_reason(error)}"
    except TimeoutError:
        reason = f"it does not use TLS, or has not answered within {_CONNECT_SECONDS:.0f} s"
    except OSError as error:
        reason = (
            f"it closed the connection ({error.strerror or error}); check whether it uses TLS, and "
            "accepts the certificate of --tls_cert"
        )
    raise SchedulerError(f"no connection to the Dask scheduler at {address}: {reason}")


def _connected(address: str) -> socket.socket:
    """Connect to the first IP address of a host that answers, within 10 s for all of them."""
    host, port = _host_and_port(address)
    deadline = time.monotonic() + _CONNECT_SECONDS
    reason = f"no answer within {_CONNECT_SECONDS:.0f} s"
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        infos, reason = [], f"{host}: {getattr(error, 'strerror', None) or 'not a host name'}"
    for *_, ip_address in infos:
        if (left := deadline - time.monotonic()) <= 0:
            break
        try:
            return socket.create_connection((str(ip_address[0]), port), timeout=left)
        except TimeoutError:
            continue
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
    raise _unreachable(address, reason)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not (port.isdecimal() and int(port) < 1 << 16):  # as a damaged lock may have it
        raise _unreachable(address, "the address has no port")
    return host.strip("[]"), int(port)


def _unreachable(address: str, reason: str) -> SchedulerError:
    return SchedulerError(
        f"no Dask scheduler answers at {address} ({reason}); is it running and reachable?"
    )


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()


def _is_refusal(error: ssl.SSLError) -> bool:
    """Return whether a TLS server sent this error."""
    return "ALERT" in (error.reason or "")
