"""The program around a run: configuration, logs, signals, environment, processes are as before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

from dask_slicer.inputs.phantom import write_dataset

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

# What a program of a user may have set up. Each import comes before the first snapshot: it has
# effects of its own, once in a process.
PROGRAM = '''
import logging, multiprocessing, os, signal, sys, threading, time, warnings
from multiprocessing import resource_tracker

import dask, distributed, distributed.dashboard.scheduler, psutil

import dask_slicer
import dask_slicer.execution.tasks
from dask_slicer.cluster.local import local_client
from dask_slicer.monitoring.observer import Observer
from process_state import changes, snapshot

SETTINGS = dict(input_dir="scans", num_workers=2, dashboard_address="none")


class WhenConnected(Observer):
    def __init__(self, act):
        self.connected = lambda *_, **__: act()


def fail():
    raise RuntimeError("of the program")


def forked():
    """Return the processes of fork servers: the servers and what they forked."""
    processes = psutil.Process().children(recursive=True)
    return [process for process in processes if "forkserver" in str(process.cmdline())]


def wait_for_workers():
    """Wait until two runs have two workers each, of one server."""
    deadline = time.monotonic() + 60
    while len(forked()) < 5:
        assert time.monotonic() < deadline, forked()
        time.sleep(0.01)


def variables(pipe):
    with open("/proc/self/environ") as file:
        pipe.send([os.getppid(), [line for line in file.read().split(chr(0)) if "THREADS" in line]])


def of_own_process():
    """Return parent and variables of a process of the program's own fork server."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=variables, args=(theirs,))
    process.start()
    process.join()
    return ours.recv()


def scenario():
SCENARIO


if __name__ == "__main__":
    dask.config.set({"distributed.scheduler.work-stealing": True, "jobqueue.mine": {"cores": 3}})
    dask.config.set({"distributed.worker.memory.spill": 0.65})
    logging.getLogger("distributed.nanny").setLevel(logging.INFO)
    logging.getLogger("distributed").addFilter(lambda record: True)
    warnings.filterwarnings("ignore", message="of the program")
    signal.signal(signal.SIGTERM, lambda *_: None)
    os.environ.update(OMP_NUM_THREADS="3", PYTHONHASHSEED="7")
    # One in a process for all that use it; it stays until the end.
    resource_tracker.ensure_running()
    before = snapshot()
    scenario()
    changed = changes(before)
    assert not changed, "\\n".join(f"{name}: {values}" for name, values in changed.items())
'''
RUN = 'dask_slicer.run(output_dir="out", progress=False, **SETTINGS)'
SUBMIT = 'dask_slicer.submit(output_dir="{name}", **SETTINGS)'
TWO = f"""
first = {SUBMIT.format(name="first")}
second = {SUBMIT.format(name="second")}
wait_for_workers()
"""
CLIENT = 'local_client(1, memory_limit=2**30, dashboard_address="none")'
SCENARIOS = {
    "run": RUN,
    "run here": RUN.replace("**SETTINGS", "**SETTINGS | dict(num_workers=0)"),
    "failed": f"""
try:
    {RUN.replace("progress=False", "observer=WhenConnected(fail)")}
except RuntimeError:
    pass
""",
    "interrupted": f"""
handler = signal.signal(signal.SIGINT, signal.default_int_handler)
interrupt = lambda: signal.raise_signal(signal.SIGINT)
try:
    {RUN.replace("progress=False", "observer=WhenConnected(interrupt)")}
except KeyboardInterrupt:
    pass
signal.signal(signal.SIGINT, handler)
""",
    "two, the first ends first": f"""
first, second = {CLIENT}, {CLIENT}
first.__enter__()
second.__enter__()
first.__exit__(None, None, None)
second.__exit__(None, None, None)
""",
    "two, the last ends first": f"""
with {CLIENT}, {CLIENT}:
    pass
""",
    "two submitted, the first ends first": f"{TWO}first.cancel()\nsecond.cancel()",
    "two submitted, the last ends first": f"{TWO}second.cancel()\nfirst.cancel()",
    "own fork server": f"""
multiprocessing.set_forkserver_preload(["json"])
expected = of_own_process()
assert expected[1] == ["OMP_NUM_THREADS=3"], expected
global before
before = snapshot()
with {CLIENT}:
    assert of_own_process() == expected
assert of_own_process() == expected
""",
    "own fork server later": f"""
{RUN}
multiprocessing.set_start_method("forkserver")
assert of_own_process()[1] == ["OMP_NUM_THREADS=3"]
multiprocessing.forkserver._forkserver._stop()
multiprocessing.set_start_method(None, force=True)
""",
    "the settings of the program during a run": f"""
def check():
    assert dask.config.get("distributed.scheduler.work-stealing") is True
    assert dask.config.get("distributed.worker.memory.spill") == 0.65
    assert os.environ["OMP_NUM_THREADS"] == "3"

{RUN.replace("progress=False", "observer=WhenConnected(check)")}
""",
    "own warnings": f"""
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    handle = {SUBMIT.format(name="out")}
    while not forked():
        time.sleep(0.01)
handle.result()
""",
}
QUICK = ("run",)


def run_program(folder: Path, scenario: str) -> None:
    lines = "\n".join(f"    {line}" for line in scenario.strip().splitlines())
    (folder / "program.py").write_text(PROGRAM.replace("SCENARIO", lines))
    write_dataset(folder / "scans", n_cases=6, shape=(160, 160, 40), seed=1)
    result = subprocess.run(
        [sys.executable, "program.py"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/helpers")])},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(SCENARIOS[name], id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name in SCENARIOS
    ],
)
def test_a_run_leaves_the_program_as_it_was(tmp_path, scenario) -> None:
    run_program(tmp_path, scenario)
