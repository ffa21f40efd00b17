"""Probing an address: a scheduler that is out of reach gives one line within seconds."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme
from distributed import Security

from dask_slicer.cluster.remote import (
    ADDRESS_VARIABLE,
    check_reachable,
    scheduler_address,
)
from dask_slicer.errors import ConfigError, DaskSlicerError, SchedulerError

pytestmark = pytest.mark.versions


class Certificates(NamedTuple):
    """PEM files of two authorities, and of a node of each."""

    ours: Security
    foreign: Security


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    return Certificates(*(_issued(folder, name) for name in ("ours", "foreign")))


def _issued(folder: Path, name: str) -> Security:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    ca, cert, key = folder / f"{name}_ca.pem", folder / f"{name}.pem", folder / f"{name}.key"
    authority.cert_pem.write_to_path(ca)
    issued.private_key_pem.write_to_path(key)
    for number, pem in enumerate(issued.cert_chain_pems):
        pem.write_to_path(cert, append=number > 0)
    return with_files(ca, cert, key)


def with_files(ca: str | Path, cert: str | Path, key: str | Path) -> Security:
    return Security(tls_ca_file=str(ca), tls_client_cert=str(cert), tls_client_key=str(key))


@contextmanager
def listening(serve: Callable[[socket.socket], object]) -> Iterator[str]:
    """Listen on loopback and serve each connection; yield host:port."""
    held = []

    def accept(server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:  # closed
                return
            held.append(connection)
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=accept, args=(server,), daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    for connection in held:
        connection.close()


def refusal(address: str, security: Security | None = None) -> str:
    with pytest.raises(DaskSlicerError) as caught:
        check_reachable(address, security)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- which address ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "address"),
    [
        ("tcp://host:8786", "tcp://host:8786"),
        ("host:8786", "tcp://host:8786"),
        ("node7:8786", "tcp://node7:8786"),
        ("tls://[::1]:8786", "tls://[::1]:8786"),
        ("ucx://host:13337", "ucx://host:13337"),
    ],
)
def test_an_address_has_a_protocol(said, address, monkeypatch, tmp_path) -> None:
    assert scheduler_address(said, None) == address
    monkeypatch.setenv(ADDRESS_VARIABLE, said)
    assert scheduler_address("env", None) == address
    (tmp_path / "scheduler.json").write_text(json.dumps({"address": said}))
    assert scheduler_address(None, tmp_path / "scheduler.json") == address


@pytest.mark.parametrize(
    "said",
    ["", "host", "tcp://host", "host:port", ":8786", "tcp://h:99999", "http://h:1", "TCP://h:1"],
)
def test_an_invalid_address_is_refused(said, monkeypatch) -> None:
    with pytest.raises(ConfigError, match="must be an address such as tcp://host:8786"):
        scheduler_address(said, None)


def test_the_environment_variable_of_env_must_be_set(monkeypatch) -> None:
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=f"{ADDRESS_VARIABLE}, which is not set"):
        scheduler_address("env", None)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "does not exist"), ("{", "holds no address"), ('{"id": 1}', "holds no address")],
)
def test_a_scheduler_file_must_hold_an_address(tmp_path, content, said) -> None:
    path = tmp_path / "scheduler.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SchedulerError, match=said):
        scheduler_address(None, path)


# -- servers at an address -------------------------------------------------------------------------


def test_a_closed_port() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    assert "(connection refused)" in refusal(f"tcp://127.0.0.1:{port}")


def test_an_unknown_host() -> None:
    assert "tcp://no.such.host.invalid:8786 (no.such.host.invalid: " in refusal(
        "tcp://no.such.host.invalid:8786"
    )


@pytest.mark.parametrize("host", ["a..b", f"{'a' * 64}.b"])
def test_an_invalid_host_name(host) -> None:
    assert f"({host}: not a host name)" in refusal(f"tcp://{host}:8786")


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH_9.2p1\r\n", b"220 mail.example.org\r\n", b""])
def test_a_server_that_is_not_dask_or_closes_the_connection(said) -> None:
    def serve(connection: socket.socket) -> None:
        with suppress(OSError):  # the reader closes the connection, too
            connection.sendall(said)
            connection.shutdown(socket.SHUT_RDWR)

    with listening(serve) as place:
        assert "is not a Dask scheduler" in refusal(f"tcp://{place}")


def test_a_server_that_sends_nothing(monkeypatch) -> None:
    monkeypatch.setattr("dask_slicer.cluster.remote._SPEAK_SECONDS", 0.3)
    monkeypatch.setattr("dask_slicer.cluster.remote._CONNECT_SECONDS", 1.0)
    with listening(lambda _: None) as place:
        assert "has sent nothing for 1 s" in refusal(f"tcp://{place}")


def sent_in_two_parts(first: bytes, rest: bytes) -> Callable[[socket.socket], None]:
    def serve(connection: socket.socket) -> None:
        with suppress(OSError):  # the reader closes the connection, too
            connection.sendall(first)
            time.sleep(0.2)
            connection.sendall(rest)

    return serve


def test_a_server_is_judged_by_eight_bytes_however_they_arrive() -> None:
    with listening(sent_in_two_parts(b"\0", b"\1" + b"\0" * 6)) as place:
        check_reachable(f"tcp://{place}", None)
    with listening(sent_in_two_parts(b"2", b"20 mail.example")) as place:
        assert "is not a Dask scheduler" in refusal(f"tcp://{place}")


def test_all_addresses_of_a_host_share_one_time_limit(monkeypatch) -> None:
    tried = []

    def never_answers(address: tuple[str, int], timeout: float) -> None:
        tried.append(timeout)
        time.sleep(min(timeout, 0.4))
        raise TimeoutError

    info = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("192.0.2.1", 8786))
    monkeypatch.setattr("dask_slicer.cluster.remote._CONNECT_SECONDS", 1.0)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [info] * 9)
    monkeypatch.setattr(socket, "create_connection", never_answers)
    assert "no answer within 1 s" in refusal("tcp://node7:8786")
    assert len(tried) <= 3
    assert tried[0] > tried[1] > tried[2]


def test_a_slow_scheduler(monkeypatch) -> None:
    monkeypatch.setattr("dask_slicer.cluster.remote._SPEAK_SECONDS", 0.3)

    def serve(connection: socket.socket) -> None:
        time.sleep(1)
        with suppress(OSError):
            connection.sendall((100).to_bytes(8, "little"))

    with listening(serve) as place:
        check_reachable(f"tcp://{place}", None)


def test_a_tcp_address_of_a_scheduler_with_tls(monkeypatch, certificates) -> None:
    monkeypatch.setattr("dask_slicer.cluster.remote._SPEAK_SECONDS", 1.0)
    with listening(_tls_server(certificates.ours)) as place:
        assert f"uses TLS: give tls://{place} with --tls_ca" in refusal(f"tcp://{place}")


def test_a_tls_address_of_a_scheduler_without_tls(certificates) -> None:
    def serve(connection: socket.socket) -> None:
        with suppress(OSError):
            connection.sendall(b"\0" * 64)

    with listening(serve) as place:
        assert "does not use TLS" in refusal(f"tls://{place}", certificates.ours)


def test_a_certificate_of_another_authority(certificates) -> None:
    with listening(_tls_server(certificates.foreign)) as place:
        assert "its certificate cannot be verified with --tls_ca" in refusal(
            f"tls://{place}", certificates.ours
        )


def test_a_client_of_another_authority(certificates) -> None:
    _, cert, key = _paths(certificates.foreign)
    mixed = with_files(certificates.ours.tls_ca_file, cert, key)
    with listening(_tls_server(certificates.ours)) as place:
        assert "the certificate of --tls_cert" in refusal(f"tls://{place}", mixed)


def test_right_certificates(certificates) -> None:
    with listening(_tls_server(certificates.ours)) as place:
        check_reachable(f"tls://{place}", certificates.ours)


def _tls_server(files: Security) -> Callable[[socket.socket], None]:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.tls_client_cert, files.tls_client_key)
    context.load_verify_locations(files.tls_ca_file)
    context.verify_mode = ssl.CERT_REQUIRED

    def serve(connection: socket.socket) -> None:
        try:
            with context.wrap_socket(connection, server_side=True) as secured:
                secured.sendall(b"hello")
                secured.recv(1)
        except OSError:
            pass

    return serve


# -- TLS files -------------------------------------------------------------------------------------


def test_tls_files_that_cannot_be_used_are_named(tmp_path, certificates) -> None:
    ca, cert, key = _paths(certificates.ours)
    _, _, foreign_key = _paths(certificates.foreign)
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("certificate")
    there_is_none = with_files(tmp_path / "none.pem", cert, key)
    assert "cannot read tls_ca" in refusal("tls://127.0.0.1:1", there_is_none)
    no_authority = with_files(nonsense, cert, key)
    assert "nonsense.pem is no PEM certificate" in refusal("tls://127.0.0.1:1", no_authority)
    for wrong_cert, wrong_key in ((cert, foreign_key), (key, cert), (nonsense, key)):
        mismatched = with_files(ca, wrong_cert, wrong_key)
        assert "are no certificate and its key" in refusal("tls://127.0.0.1:1", mismatched)


def _paths(files: Security) -> tuple[str, str, str]:
    return files.tls_ca_file, files.tls_client_cert, files.tls_client_key


def test_tls_takes_an_address_and_files(certificates) -> None:
    assert "tls://127.0.0.1:1 needs tls_ca, tls_cert and tls_key" in refusal("tls://127.0.0.1:1")
    assert "need a tls:// address" in refusal("tcp://127.0.0.1:1", certificates.ours)
