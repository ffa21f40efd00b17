"""The process that workers are forked from, and the private names of `multiprocessing` it needs."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import signal
import sys

import psutil
import pytest

from dask_slicer.cluster import forkserver

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")


def test_multiprocessing_has_the_private_names_that_are_used() -> None:
    from multiprocessing import context, popen_forkserver, resource_tracker
    from multiprocessing import forkserver as pythons
    from multiprocessing.process import BaseProcess

    assert isinstance(context._concrete_contexts, dict)
    assert "_Popen" in inspect.getsource(BaseProcess.start)
    assert "_start_method" in inspect.getsource(BaseProcess._bootstrap)
    launch = popen_forkserver.Popen._launch
    assert "forkserver" in launch.__code__.co_names
    assert not launch.__code__.co_freevars
    assert {"_forkserver_pid", "_forkserver_alive_fd"} <= vars(pythons._forkserver).keys()
    assert callable(pythons._forkserver._stop)
    assert {"_fd", "_pid"} <= vars(resource_tracker.ResourceTracker()).keys()
    assert "resource_tracker.getfd()" in inspect.getsource(pythons.ForkServer)


def _describe(pipe) -> None:
    with open("/proc/self/environ") as file:
        pipe.send((os.getppid(), "OF_A_TEST=1" in file.read().split("\0")))


def test_processes_come_from_a_server_that_ends_with_the_last_user() -> None:
    from multiprocessing import forkserver as pythons

    before = pythons._forkserver._forkserver_pid, pythons._forkserver._preload_modules
    with forkserver.running(["json"], {"OF_A_TEST": "1"}), forkserver.running(["csv"], {}):
        context = multiprocessing.get_context(forkserver.METHOD)
        ours, theirs = context.Pipe()
        process = context.Process(target=_describe, args=(theirs,))
        process.start()
        server, has_variable = ours.recv()
        process.join()
        assert has_variable
        assert psutil.Process(server).ppid() == os.getpid()
    assert not psutil.pid_exists(server)
    assert "OF_A_TEST" not in os.environ
    assert before == (pythons._forkserver._forkserver_pid, pythons._forkserver._preload_modules)
    with pytest.raises(OSError, match="the run is over"):
        context.Process(target=_describe, args=(theirs,)).start()


def test_a_server_can_be_started_again() -> None:
    for _ in range(2):
        with forkserver.running([], {}):
            context = multiprocessing.get_context(forkserver.METHOD)
            process = context.Process(target=int)
            process.start()
            process.join()
            assert process.exitcode == 0


def test_a_server_can_be_started_again_where_the_program_waits_for_no_child() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        for _ in range(2):
            with forkserver.running([], {}):
                pass
    finally:
        signal.signal(signal.SIGCHLD, before)
