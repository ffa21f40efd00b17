"""Probing the address of a scheduler: reachable, TLS or not, Dask or not.

A Dask client that connects without TLS to a port that wants it, or to another kind of server,
waits long and then gives no reason. So the port is probed first: without TLS a scheduler sends the
first message, with TLS it waits for the client.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from dataclasses import dataclass
from json import JSONDecodeError, loads
from pathlib import Path

from dask_slicer.errors import ConfigError, SchedulerError

VARIABLE = "DASK_SCHEDULER_ADDRESS"
_CONNECT_SECONDS = 10.0
# How long a scheduler without TLS may take to send its first message.
_SPEAK_SECONDS = 3.0
# That message is short, and begins with its length in bytes.
_LENGTH_BYTES, _MOST_BYTES = 8, 1 << 20
_PLAIN, _TLS = "tcp", "tls"
# Dask's protocols that reach other hosts; only tcp and tls are probed.
_PROTOCOLS = (_PLAIN, _TLS, "ucx", "ucxx", "ws", "wss")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files: the authority to trust, the client's certificate, and its key."""

    ca: Path
    cert: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Return the context of a connection; raise a ConfigError if a file cannot be used."""
        for option, path in (("tls_ca", self.ca), ("tls_cert", self.cert), ("tls_key", self.key)):
            try:
                path.open("rb").close()
            except OSError as error:
                raise ConfigError(f"cannot read {option} {path}: {error.strerror}") from None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # as in Dask: nodes of a cluster share a certificate
        try:
            context.load_verify_locations(self.ca)
        except ssl.SSLError as error:
            raise ConfigError(
                f"tls_ca {self.ca} is no PEM certificate ({_reason(error)})"
            ) from None
        try:
            context.load_cert_chain(self.cert, self.key, password="")
        except ssl.SSLError as error:
            raise ConfigError(
                f"tls_cert {self.cert} and tls_key {self.key} are no certificate and its key "
                f"({_reason(error)})"
            ) from None
        return context


def scheduler_address(address: str | None, scheduler_file: Path | None) -> str:
    """Return the address in a scheduler file, else `address`, with its protocol.

    The address `env` is that in the variable DASK_SCHEDULER_ADDRESS.

    Examples
    --------
    >>> scheduler_address("node7:8786", None)
    'tcp://node7:8786'
    """
    source, text = "scheduler", address or ""
    if scheduler_file is not None:
        source, text = f"the scheduler_file {scheduler_file}", _address_in(scheduler_file)
    elif address == "env":
        source, text = VARIABLE, os.environ.get(VARIABLE, "")
        if not text:
            raise ConfigError(f"scheduler env needs the variable {VARIABLE}, which is not set")
    protocol, _, location = text.rpartition("://")
    host, _, port = location.rpartition(":")
    protocol = protocol or _PLAIN
    if protocol not in _PROTOCOLS or not (host and port.isdecimal() and int(port) < 1 << 16):
        raise ConfigError(f"{source} must be an address such as tcp://host:8786, got {text}")
    return f"{protocol}://{location}"


def _address_in(scheduler_file: Path) -> str:
    try:
        return str(loads(scheduler_file.read_text(encoding="utf-8"))["address"])
    except FileNotFoundError:
        raise SchedulerError(
            f"the scheduler_file {scheduler_file} does not exist; is the scheduler running?"
        ) from None
    except OSError as error:
        raise SchedulerError(
            f"cannot read the scheduler_file {scheduler_file}: {error.strerror}"
        ) from None
    except (JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise SchedulerError(
            f"the scheduler_file {scheduler_file} holds no address; "
            "it must be what `dask scheduler --scheduler-file` writes"
        ) from None


def check_reachable(
    address: str, tls: TlsFiles | None, default: ssl.SSLContext | None = None
) -> None:
    """Raise an error of one line if no Dask scheduler answers at a tcp or tls address.

    Other protocols are not probed. A tls address without files needs a default context.
    """
    protocol, _, location = address.partition("://")
    if protocol == _TLS:
        context = tls.context() if tls is not None else default
        if context is None:
            raise ConfigError(f"{address} needs tls_ca, tls_cert and tls_key")
        with _connected(address) as connection:
            _check_tls(address, connection, context)
    elif tls is not None:
        raise ConfigError(f"tls_ca, tls_cert and tls_key need a tls:// address, got {address}")
    elif protocol == _PLAIN:
        _check_plain(address, location)


def _check_plain(address: str, location: str) -> None:
    with _connected(address) as connection:
        received = _first_bytes(connection, _SPEAK_SECONDS)
    if received is None:
        with _connected(address) as connection:
            if _speaks_tls(connection):
                raise SchedulerError(
                    f"the scheduler at {address} uses TLS: give {_TLS}://{location} with --tls_ca, "
                    "--tls_cert and --tls_key"
                )
        with _connected(address) as connection:  # it may be far away, or busy
            received = _first_bytes(connection, _CONNECT_SECONDS)
    if received is None:  # Dask's client would wait for it without end
        raise SchedulerError(
            f"{address} accepts connections, but has sent nothing for {_CONNECT_SECONDS:.0f} s: a "
            "Dask scheduler that is stopped or very busy, or another program"
        )
    if not 0 < int.from_bytes(received, "little") <= _MOST_BYTES:
        raise SchedulerError(f"the program that listens at {address} is not a Dask scheduler")


def _connected(address: str) -> socket.socket:
    """Connect to the first IP address of a host that answers, within 10 s for all of them."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    deadline = time.monotonic() + _CONNECT_SECONDS
    reason = f"no answer within {_CONNECT_SECONDS:.0f} s"
    try:
        infos = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        infos, reason = [], f"{host}: {getattr(error, 'strerror', None) or 'not a host name'}"
    for *_, ip_address in infos:
        if (left := deadline - time.monotonic()) <= 0:
            break
        try:
            return socket.create_connection((str(ip_address[0]), int(port)), timeout=left)
        except TimeoutError:
            continue
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
    raise SchedulerError(
        f"no Dask scheduler answers at {address} ({reason}); is it running and reachable?"
    )


def _first_bytes(connection: socket.socket, seconds: float) -> bytes | None:
    """Return the first 8 bytes, fewer if the other side closes; None if it sends nothing."""
    connection.settimeout(seconds)
    received = b""
    try:
        while (missing := _LENGTH_BYTES - len(received)) and (more := connection.recv(missing)):
            received += more
    except TimeoutError:
        return received or None
    except OSError:
        return b""
    return received


def _speaks_tls(connection: socket.socket) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection.settimeout(_SPEAK_SECONDS)
    try:
        context.wrap_socket(connection).close()
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")  # a TLS server that refuses
    except OSError:
        return False
    return True


def _check_tls(address: str, connection: socket.socket, context: ssl.SSLContext) -> None:
    connection.settimeout(_CONNECT_SECONDS)
    try:
        with context.wrap_socket(connection) as secured:
            # In TLS 1.3 a server refuses a client's certificate only after the handshake.
            if secured.recv(1):
                return
        reason = "it closed the connection; check whether it accepts the certificate of --tls_cert"
    except ssl.SSLCertVerificationError as error:
        reason = f"its certificate cannot be verified with --tls_ca: {error.verify_message}"
    except ssl.SSLError as error:
        refused = "ALERT" in (error.reason or "")
        reason = (
            f"it does not accept the certificate of --tls_cert: {_reason(error)}"
            if refused
            else f"it does not use TLS ({_reason(error)}); try {_PLAIN}://"
        )
    except TimeoutError:
        reason = f"it does not use TLS, or has not answered within {_CONNECT_SECONDS:.0f} s"
    except OSError as error:
        reason = (
            f"it closed the connection ({error.strerror or error}); check whether it uses TLS, and "
            "accepts the certificate of --tls_cert"
        )
    raise SchedulerError(f"no connection to the Dask scheduler at {address}: {reason}")


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()
