"""Workers on this machine: how they start."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import cloudpickle
import dask
import psutil
import pytest

from dask_slicer.cluster import forkserver, local
from dask_slicer.cluster.client import SETTINGS, run_page_link, scheduler_setting
from dask_slicer.cluster.process_settings import DASK


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
    assert not psutil.pid_exists(parent)


def test_where_no_socket_can_be_made_workers_are_spawned(monkeypatch) -> None:
    def no_socket() -> None:
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr(forkserver._server(), "ensure_running", no_socket)
    with local.process_method() as method:
        assert method == "spawn"
    with local.local_client(1, memory_limit=2**30, dashboard_address="none") as client:
        (parent,) = client.run(os.getppid).values()
    assert parent == os.getpid()


def test_a_scheduler_has_settings_that_the_process_has_only_while_it_starts() -> None:
    saturation = "distributed.scheduler.worker-saturation"
    with local.local_client(1, memory_limit=2**30, dashboard_address="127.0.0.1:0") as client:
        assert dask.config.get(saturation) == DASK.before(saturation) != SETTINGS[saturation]
        assert scheduler_setting(client, saturation) == SETTINGS[saturation]
        assert SETTINGS[saturation] == client.cluster.scheduler.WORKER_SATURATION
        settings = {name: value for name, value in SETTINGS.items() if ".worker." in name}
        (found,) = client.run(lambda: {name: dask.config.get(name) for name in settings}).values()
        assert found == settings
        assert run_page_link(client, client.dashboard_link).endswith("/dask-slicer")
