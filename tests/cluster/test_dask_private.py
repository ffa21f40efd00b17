"""Private and undocumented names of Dask that the package uses: they must exist.

A failure here names what a new version of Dask no longer has, and the feature that used it. The
private names are listed in CONTRIBUTING.md, under "Private names of Dask".
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import dask
import distributed
import pytest
from distributed import Client, LocalCluster, Nanny, as_completed
from distributed.scheduler import KilledWorker

from dask_slicer.cluster.client import SETTINGS
from dask_slicer.cluster.dask_private import (
    EXIT_EVENTS,
    local_nanny,
    remove_traces,
    run_batch_command,
)
from dask_slicer.cluster.local import local_client
from dask_slicer.utils.signals import no_signal_handlers

with no_signal_handlers():  # it would make Ctrl-C of pytest an error of one test
    import dask_jobqueue


def missing(package: Any, name: str, use: str) -> str:
    return f"{package.__name__} {package.__version__} no longer has {name}: used {use}"


# -- private names ---------------------------------------------------------------------------------


def test_nannies_have_the_method_that_is_called_when_their_worker_exits() -> None:
    message = missing(distributed, "Nanny._on_worker_exit_sync(exitcode)", "for exit codes")
    method = getattr(Nanny, "_on_worker_exit_sync", None)
    assert method is not None, message
    assert list(inspect.signature(method).parameters) == ["self", "exitcode"], message
    assert "_on_worker_exit_sync" in inspect.getsource(Nanny.instantiate), message


def test_our_nannies_log_the_exit_code_and_then_do_what_dask_does(monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(
        Nanny, "_on_worker_exit_sync", lambda self, exitcode: calls.append(exitcode)
    )
    nanny = object.__new__(local_nanny())
    nanny.name = "w-1"
    nanny.log_event = lambda topic, event: calls.append((topic, event))  # type: ignore[method-assign]
    nanny._on_worker_exit_sync(-9)
    assert calls == [(EXIT_EVENTS, {"name": "w-1", "exitcode": -9}), -9]


def test_our_nannies_log_no_exit_when_the_run_is_over(monkeypatch) -> None:
    events = []
    monkeypatch.setattr(local_nanny(), "log_event", lambda *event: events.append(event))
    with local_client(1, memory_limit=2**30, dashboard_address="none"):
        pass
    assert not events


def test_jobs_run_the_commands_of_a_batch_system() -> None:
    message = missing(dask_jobqueue, "Job._call(command)", "to list batch jobs")
    job_class = dask_jobqueue.SLURMCluster.job_cls
    assert hasattr(job_class, "_call"), message
    command = [sys.executable, "-c", "print('7 PD')"]
    assert asyncio.run(run_batch_command(job_class, command)) == "7 PD\n"
    command = [sys.executable, "-c", "import sys; sys.exit('slurm is away')"]
    with pytest.raises(RuntimeError, match=r"stdout:\n\nstderr:\nslurm is away"):
        asyncio.run(run_batch_command(job_class, command))


def local_cluster() -> LocalCluster:
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    nannies = {"worker_class": local_nanny(), "process_method": "spawn", "worker_log_level": 50}
    return LocalCluster(**options, **nannies, silence_logs=False)


def test_schedulers_and_nannies_have_what_is_removed_when_they_are_closed() -> None:
    message = missing(distributed, "Server._deque_handler, _updated_sys_path", "to tidy up")
    with local_cluster() as cluster:
        servers = [cluster.scheduler, *cluster.workers.values()]
        for server in servers:
            assert hasattr(server, "_deque_handler"), message
            assert hasattr(server, "_updated_sys_path"), message
            assert hasattr(server, "local_directory"), message
    remove_traces(servers)
    assert not {server.local_directory for server in servers} & set(sys.path)
    for name in ("scheduler", "nanny"):
        handlers = logging.getLogger(f"distributed.{name}").handlers
        assert not {server._deque_handler for server in servers} & set(handlers)


def test_nannies_of_local_workers_set_no_variable_where_they_are_started() -> None:
    before = dict(os.environ)
    with local_cluster():
        assert dict(os.environ) == before, (
            f"distributed {distributed.__version__} sets other environment variables in the "
            "process of the user"
        )


# -- undocumented names ----------------------------------------------------------------------------

# By type: the attributes that functions of ours read where they run, and what for.
UNDOCUMENTED = {
    "Scheduler": (
        "for timeouts, preflight, `watch` and the run page",
        ("workers", "clients", "tasks", "queued", "unrunnable", "get_events", "identity"),
    ),
    "WorkerState": (
        "for timeouts, `watch` and the run page",
        (
            *("address", "name", "host", "pid", "nanny", "nthreads", "memory_limit", "metrics"),
            *("last_seen", "status", "processing", "executing"),
        ),
    ),
    "TaskState": ("to tell runs on one scheduler apart", ("key", "who_wants")),
    "ClientState": ("to tell runs on one scheduler apart", ("client_key",)),
    "Worker": ("to wait for cases that cannot be stopped", ("state",)),
    "WorkerStateMachine": ("to wait for cases that cannot be stopped", ("all_running_tasks",)),
    "Nanny": (
        "to start and kill workers",
        ("name", "pid", "log_event", "instantiate", "status", "silence_logs", "pre_spawn_env"),
    ),
    "Client": (
        "to call schedulers with a timeout",
        ("sync", "scheduler", "id", "loop", "status", "asynchronous", "futures", "cluster"),
    ),
    "Scheduler connection": ("for messages", ("address",)),
    "as_completed": ("to yield finished cases", ("has_ready", "thread_condition", "add", "update")),
    "LocalCluster": (
        "for batch jobs and local workers",
        ("workers", "worker_spec", "plan", "scheduler", "loop", "sync", "scale", "scale_down"),
    ),
}


@pytest.fixture(scope="module")
def objects() -> Iterator[dict[str, Any]]:
    """Return an object of each type, of a cluster that runs here."""
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(processes=False, **options) as cluster, Client(cluster) as client:
        future = client.submit(int, 7, key=("load", "case"))
        assert future.result() == 7
        scheduler, worker = cluster.scheduler, cluster.workers[0]
        yield {
            "Scheduler": scheduler,
            "WorkerState": next(iter(scheduler.workers.values())),
            "TaskState": scheduler.tasks[("load", "case")],
            "ClientState": scheduler.clients[client.id],
            "Worker": worker,
            "WorkerStateMachine": worker.state,
            "Nanny": SimpleNamespace(
                **dict.fromkeys([*dir(Nanny), *Nanny.__init__.__code__.co_names])
            ),
            "Client": client,
            "Scheduler connection": client.scheduler,
            "as_completed": as_completed([], loop=client.loop),
            "LocalCluster": cluster,
        }


@pytest.mark.parametrize("name", UNDOCUMENTED)
def test_dask_has_the_undocumented_attributes(name: str, objects: dict[str, Any]) -> None:
    use, attributes = UNDOCUMENTED[name]
    absent = [attribute for attribute in attributes if not hasattr(objects[name], attribute)]
    assert not absent, missing(distributed, f"{name}.{', '.join(absent)}", use)


def test_a_scheduler_pauses_a_worker(objects: dict[str, Any]) -> None:
    message = missing(
        distributed, "Scheduler.handle_worker_status_change(status, worker, stimulus_id)",
        "to give no case to a worker that is stopped",
    )  # fmt: skip
    method = getattr(objects["Scheduler"], "handle_worker_status_change", None)
    assert method is not None, message
    assert list(inspect.signature(method).parameters) == ["status", "worker", "stimulus_id"], (
        message
    )


def test_an_error_of_a_killed_worker_names_task_and_worker() -> None:
    message = missing(distributed, "KilledWorker.task, .last_worker", "to say why a case was lost")
    assert {"task", "last_worker"} <= set(inspect.signature(KilledWorker).parameters), message


def test_calls_to_a_scheduler_and_its_workers_can_have_a_timeout(objects: dict[str, Any]) -> None:
    client = objects["Client"]
    message = missing(distributed, "Client.sync(callback_timeout=…)", "to notice lost schedulers")
    assert "callback_timeout" in inspect.signature(client.sync).parameters, message
    assert client.sync(client.run_on_scheduler, os.getpid, callback_timeout=10) == os.getpid()
    for call in (client.run_on_scheduler, client.run):
        with pytest.raises(TimeoutError):
            client.sync(call, _sleep, callback_timeout=0.1)


async def _sleep() -> None:
    await asyncio.sleep(2)


def test_settings_of_dask_exist() -> None:
    defaults = dask.config.merge(*dask.config.defaults)
    names = [*SETTINGS, "distributed.worker.multiprocessing-method",
             "distributed.deploy.lost-worker-timeout", "distributed.scheduler.http.routes",
             "distributed.nanny.pre-spawn-environ"]  # fmt: skip
    absent = [name for name in names if dask.config.get(name, _ABSENT, config=defaults) is _ABSENT]
    assert not absent, missing(distributed, f"the settings {', '.join(absent)}", "for workers")


_ABSENT = object()


def test_a_nanny_logs_that_it_stops_a_worker_for_its_memory() -> None:
    from distributed import worker_memory

    source = inspect.getsource(worker_memory)
    message = missing(distributed, "the event worker-restart-memory", "to say why a case was lost")
    assert "worker-restart-memory" in source, message
    assert all(f'"{key}":' in source for key in ("worker", "pid")), message
