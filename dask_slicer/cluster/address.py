"""Probing the address of a scheduler: reachable, TLS or not, Dask or not.

A Dask client that talks plainly to a port that wants TLS, or to something else altogether, gives up
after a long time and without a word. So the port is tried first: a scheduler that talks plainly
speaks first, one that talks TLS waits for the client to.
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
# For a scheduler that talks plainly to begin to.
_SPEAK_SECONDS = 3.0
# Its first message is short, and begins with its length in bytes.
_LENGTH_BYTES, _MOST_BYTES = 8, 1 << 20
_PLAIN, _TLS = "tcp", "tls"
# Of Dask's, as far as they reach another host; those but tcp and tls are left to it.
_PROTOCOLS = (_PLAIN, _TLS, "ucx", "ucxx", "ws", "wss")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files: the authority to trust, the certificate to show, and its key."""

    ca: Path
    cert: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Return what a TLS connection is made with.

        Raises
        ------
        ConfigError
            If one of the files cannot be used.
        """
        for option, path in (("tls_ca", self.ca), ("tls_cert", self.cert), ("tls_key", self.key)):
            try:
                path.open("rb").close()
            except OSError as error:
                raise ConfigError(f"cannot read {option} {path}: {error.strerror}") from None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # nodes of a cluster share a certificate, as Dask has it
        try:
            context.load_verify_locations(self.ca)
        except ssl.SSLError as error:
            raise ConfigError(f"tls_ca {self.ca} is no PEM certificate ({_why(error)})") from None
        try:
            context.load_cert_chain(self.cert, self.key, password="")
        except ssl.SSLError as error:
            raise ConfigError(
                f"tls_cert {self.cert} and tls_key {self.key} are no certificate and its key "
                f"({_why(error)})"
            ) from None
        return context


def scheduler_address(address: str | None, scheduler_file: Path | None) -> str:
    """Return the address that the options amount to, with its protocol.

    Parameters
    ----------
    address : str, optional
        env stands for the variable DASK_SCHEDULER_ADDRESS.
    scheduler_file : Path, optional
        Where a scheduler left its address.

    Raises
    ------
    ConfigError
        If the variable is not set, or it is no address.
    SchedulerError
        If the file holds none.

    Examples
    --------
    >>> scheduler_address("node7:8786", None)
    'tcp://node7:8786'
    """
    said, found = "scheduler", address or ""
    if scheduler_file is not None:
        said, found = f"the scheduler_file {scheduler_file}", _address_in(scheduler_file)
    elif address == "env":
        said, found = VARIABLE, os.environ.get(VARIABLE, "")
        if not found:
            raise ConfigError(f"scheduler env needs the variable {VARIABLE}, which is not set")
    place = found.rpartition("://")[2]
    host, _, port = place.rpartition(":")
    protocol = found.rpartition("://")[0] or _PLAIN
    if protocol not in _PROTOCOLS or not (host and port.isdecimal() and int(port) < 1 << 16):
        raise ConfigError(f"{said} must be an address such as tcp://host:8786, got {found}")
    return f"{protocol}://{place}"


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
    address: str, tls: TlsFiles | None, otherwise: ssl.SSLContext | None = None
) -> None:
    """Raise if no Dask scheduler answers at an address in the way that the address says.

    Protocols other than tcp and tls are left to Dask.

    Parameters
    ----------
    address : str
    tls : TlsFiles, optional
    otherwise : SSLContext, optional
        For an address of TLS without files.

    Raises
    ------
    SchedulerError
        One line: what was tried, and what to do.
    ConfigError
        If TLS is asked for and its files are not given or cannot be used.
    """
    protocol, _, place = address.partition("://")
    if protocol == _TLS:
        context = tls.context() if tls is not None else otherwise
        if context is None:
            raise ConfigError(f"{address} needs tls_ca, tls_cert and tls_key")
        with _connected(address, place) as connection:
            _check_tls(address, connection, context)
        return
    if tls is not None:
        raise ConfigError(f"tls_ca, tls_cert and tls_key need a tls:// address, got {address}")
    if protocol == _PLAIN:
        _check_plain(address, place)


def _check_plain(address: str, place: str) -> None:
    with _connected(address, place) as connection:
        said = _first_words(connection, _SPEAK_SECONDS)
    if said is None:
        with _connected(address, place) as connection:
            if _speaks_tls(connection):
                raise SchedulerError(
                    f"the scheduler at {address} talks TLS: use {_TLS}://{place} with --tls_ca, "
                    "--tls_cert and --tls_key"
                )
        with _connected(address, place) as connection:  # it may be far away, or busy
            said = _first_words(connection, _CONNECT_SECONDS)
    if said is None:  # Dask's client would wait for it without end
        raise SchedulerError(
            f"what listens at {address} has said nothing for {_CONNECT_SECONDS:.0f} s: a Dask "
            "scheduler that is stopped or very busy, or something else"
        )
    if not 0 < int.from_bytes(said, "little") <= _MOST_BYTES:
        raise SchedulerError(f"what listens at {address} is no Dask scheduler")


def _connected(address: str, place: str) -> socket.socket:
    """Connect, to one after another of the addresses that a name has, within 10 s together."""
    host, _, port = place.rpartition(":")
    deadline = time.monotonic() + _CONNECT_SECONDS
    reason = f"no answer within {_CONNECT_SECONDS:.0f} s"
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        found, reason = [], f"{host}: {getattr(error, 'strerror', None) or 'not a host name'}"
    for *_, where in found:
        if (left := deadline - time.monotonic()) <= 0:
            break
        try:
            return socket.create_connection((str(where[0]), int(port)), timeout=left)
        except TimeoutError:
            continue
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
    raise SchedulerError(
        f"no Dask scheduler answers at {address} ({reason}); is it running and reachable?"
    )


def _first_words(connection: socket.socket, seconds: float) -> bytes | None:
    """Return the first bytes that come, fewer where the other side closes; None for silence."""
    connection.settimeout(seconds)
    said = b""
    try:
        while len(said) < _LENGTH_BYTES and (more := connection.recv(_LENGTH_BYTES - len(said))):
            said += more
    except TimeoutError:
        return said or None
    except OSError:
        return b""
    return said


def _speaks_tls(connection: socket.socket) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection.settimeout(_SPEAK_SECONDS)
    try:
        context.wrap_socket(connection).close()
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")  # it knows TLS well enough to refuse
    except OSError:
        return False
    return True


def _check_tls(address: str, connection: socket.socket, context: ssl.SSLContext) -> None:
    connection.settimeout(_CONNECT_SECONDS)
    try:
        with context.wrap_socket(connection) as secured:
            # That it takes our certificate shows after the handshake only, with TLS 1.3.
            if secured.recv(1):
                return
        reason = "it closed the connection: does it take the certificate of --tls_cert?"
    except ssl.SSLCertVerificationError as error:
        reason = f"its certificate is not one of --tls_ca: {error.verify_message}"
    except ssl.SSLError as error:
        refused = "ALERT" in (error.reason or "")
        reason = (
            f"it does not take the certificate of --tls_cert: {_why(error)}"
            if refused
            else f"it does not talk TLS ({_why(error)}): is it {_PLAIN}://?"
        )
    except TimeoutError:
        reason = f"it does not talk TLS, or not within {_CONNECT_SECONDS:.0f} s"
    except OSError as error:
        reason = (
            f"it closed the connection ({error.strerror or error}): does it talk TLS, and take "
            "the certificate of --tls_cert?"
        )
    raise SchedulerError(f"no connection to the Dask scheduler at {address}: {reason}")


def _why(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()
