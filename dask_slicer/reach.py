"""Whether a Dask scheduler can be reached at an address, and if not, why.

A Dask client that talks plainly to a port that wants TLS, or to something else altogether, gives up
after a long time and without a word. So the port is tried first: a scheduler that talks plainly
speaks first, one that talks TLS waits for the client to.
"""

from __future__ import annotations

import os
import socket
import ssl
from dataclasses import dataclass
from json import JSONDecodeError, loads
from pathlib import Path

from dask_slicer.errors import ConfigError, SchedulerError

VARIABLE = "DASK_SCHEDULER_ADDRESS"
_CONNECT_SECONDS = 10.0
# For a scheduler that talks plainly to begin to.
_SPEAK_SECONDS = 3.0
_PLAIN, _TLS = "tcp", "tls"


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
    if not (host and port.isdecimal() and int(port) < 1 << 16):
        raise ConfigError(f"{said} must be an address such as tcp://host:8786, got {found}")
    return found if found != place else f"{_PLAIN}://{place}"


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


def check_reachable(address: str, tls: TlsFiles | None) -> None:
    """Raise if no Dask scheduler answers at an address in the way that the address says.

    Protocols other than tcp and tls are left to Dask.

    Raises
    ------
    SchedulerError
        One line: what was tried, and what to do.
    ConfigError
        If TLS is asked for and its files are not given or cannot be used.
    """
    protocol, _, place = address.partition("://")
    host, _, port = place.rpartition(":")
    if protocol == _TLS:
        if tls is None:
            raise ConfigError(f"{address} needs tls_ca, tls_cert and tls_key")
        context = tls.context()
    elif tls is not None:
        raise ConfigError(f"tls_ca, tls_cert and tls_key need a tls:// address, got {address}")
    if protocol not in (_PLAIN, _TLS):
        return
    where = (host.strip("[]"), int(port))
    if protocol == _TLS:
        with _connected(address, where) as connection:
            _check_tls(address, connection, context)
    else:
        with _connected(address, where) as connection:
            speaks = _speaks_first(connection)
        if not speaks:
            with _connected(address, where) as connection:
                raise SchedulerError(
                    f"the scheduler at {address} talks TLS: use {_TLS}://{place} with --tls_ca, "
                    "--tls_cert and --tls_key"
                    if _speaks_tls(connection)
                    else f"what listens at {address} is no Dask scheduler"
                )


def _connected(address: str, where: tuple[str, int]) -> socket.socket:
    try:
        return socket.create_connection(where, timeout=_CONNECT_SECONDS)
    except TimeoutError:
        reason = f"no answer within {_CONNECT_SECONDS:.0f} s"
    except socket.gaierror as error:
        reason = f"{where[0]}: {error.strerror}"
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    raise SchedulerError(
        f"no Dask scheduler answers at {address} ({reason}); is it running and reachable?"
    )


def _speaks_first(connection: socket.socket) -> bool:
    connection.settimeout(_SPEAK_SECONDS)
    try:
        return bool(connection.recv(1))
    except OSError:
        return False


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
