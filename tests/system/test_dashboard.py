"""What listens during a run: the dashboard where its link says, and nothing beyond loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dask_slicer.inputs.phantom import write_dataset


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def wait_until(condition: Callable[[], object], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def busy_run(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts a run which will not end by itself soon; killed afterwards."""
    write_dataset(tmp_path / "scans", n_cases=1, shape=(128, 120, 30))
    for folder in (tmp_path / "scans" / "imagesTr", tmp_path / "scans" / "labelsTr"):
        (first,) = folder.iterdir()
        for number in range(1, 100):
            (folder / first.name.replace("000", f"{number:03d}", 1)).hardlink_to(first)
    started = []

    def call(*options: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "dask_slicer", "run", "--num_workers", "2"]
        directories = ["--input_dir", "scans", "--output_dir", "slices"]
        process = subprocess.Popen(
            [*command, *directories, "--compression_level", "9", *map(str, options)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        wait_until(lambda: has_a_line(tmp_path / "slices" / "journal.jsonl"))
        return process

    yield call
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def has_a_line(path: Path) -> bool:
    return path.exists() and b"\n" in path.read_bytes()


def listening(process: subprocess.Popen[str]) -> dict[tuple[str, int], int]:
    """Return on which addresses a process and its descendants listen, and how many of them do."""
    parent = psutil.Process(process.pid)
    family = [parent, *parent.children(recursive=True)]
    return {
        (socket_.laddr.ip, socket_.laddr.port): member.pid
        for member in family
        for socket_ in member.net_connections("inet")
        if socket_.status == psutil.CONN_LISTEN
    }


def answer_of(link: str) -> int:
    with urllib.request.urlopen(link, timeout=10) as response:
        return response.status


@pytest.mark.slow
def test_the_first_line_is_the_dashboard_link_and_only_loopback_is_bound(busy_run) -> None:
    port = free_port()
    process = busy_run("--dashboard_address", f"127.0.0.1:{port}")
    assert process.stdout is not None
    assert process.stdout.readline() == f"Dashboard: http://127.0.0.1:{port}/status\n"
    found = listening(process)
    assert ("127.0.0.1", port) in found
    assert len(set(found.values())) >= 3  # driver and two workers at least: psutil sees them
    assert {address for address, _ in found} == {"127.0.0.1"}
    assert answer_of(f"http://127.0.0.1:{port}/status") == 200


@pytest.mark.slow
def test_without_a_dashboard_only_loopback_is_bound(busy_run) -> None:
    process = busy_run("--dashboard_address", "none")
    assert process.stdout is not None
    assert "Dashboard" not in process.stdout.readline()
    assert {address for address, _ in listening(process)} == {"127.0.0.1"}


@pytest.mark.slow
def test_a_busy_port_falls_back_to_a_free_one_and_the_link_works(busy_run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = busy_run("--dashboard_address", f"127.0.0.1:{port}")
        assert process.stdout is not None
        first = process.stdout.readline().strip()
        link = first.removeprefix("Dashboard: ")
        assert link != first
        assert f":{port}/" not in link
        assert answer_of(link) == 200
        assert {address for address, _ in listening(process)} == {"127.0.0.1"}


def test_an_address_that_the_dashboard_cannot_have_is_one_line(tmp_path) -> None:
    scans = tmp_path / "scans"
    write_dataset(scans, n_cases=1, shape=(8, 8, 4))
    directories = ["--input_dir", scans, "--output_dir", tmp_path / "slices"]
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "dask_slicer",
            "run",
            *directories,
            "--dashboard_address",
            "no:where",
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode in (1, 2)
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert not list(tmp_path.glob("slices/.dask_slicer*"))
