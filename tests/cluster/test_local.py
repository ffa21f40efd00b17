"""Workers on this machine: how they start."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import cloudpickle
import psutil
import pytest

from dask_slicer.cluster import local


def _environment_at_start() -> set[str]:
    """Return what the C library saw, whatever Python has set since."""
    return set(Path("/proc/self/environ").read_text(encoding="utf-8").split("\0"))


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_workers_start_with_an_environment_of_their_own() -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    before = dict(os.environ)
    with local.local_client(1, memory_limit=2**30, dashboard_address="none") as client:
        (found,) = client.run(_environment_at_start).values()
    assert {"OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1", "MALLOC_ARENA_MAX=1"} <= found
    assert not any(entry.startswith("MALLOC_TRIM_THRESHOLD_") for entry in found)
    assert dict(os.environ) == before


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_workers_are_forked_from_a_process_that_has_imported_what_they_need() -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with local.local_client(1, memory_limit=2**30, dashboard_address="none") as client:
        (parent,) = client.run(os.getppid).values()
        (imported,) = client.run(lambda: "dask_slicer.execution.tasks" in sys.modules).values()
    assert parent != os.getpid()
    assert psutil.Process(parent).ppid() == os.getpid()
    assert imported


def test_where_no_socket_can_be_made_workers_are_spawned(monkeypatch) -> None:
    def no_socket() -> None:
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr("multiprocessing.forkserver.ensure_running", no_socket)
    assert local.start_forkserver() == "spawn"
    with local.local_client(1, memory_limit=2**30, dashboard_address="none") as client:
        (parent,) = client.run(os.getppid).values()
    assert parent == os.getpid()


def test_variables_are_as_before_when_the_last_of_overlapping_runs_ends(monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    environment = local._Environment()
    first, second = (environment.restored(["OMP_NUM_THREADS"]) for _ in range(2))
    first.__enter__()
    os.environ["OMP_NUM_THREADS"] = "1"
    environment.note()
    second.__enter__()
    first.__exit__(None, None, None)
    assert os.environ["OMP_NUM_THREADS"] == "1"
    second.__exit__(None, None, None)
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_variable_that_the_program_sets_during_a_run_is_kept(monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    environment = local._Environment()
    with environment.restored(["OMP_NUM_THREADS"]):
        os.environ["OMP_NUM_THREADS"] = "1"
        environment.note()
        monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert os.environ["OMP_NUM_THREADS"] == "8"
