"""A run in a real Jupyter kernel: what it shows, and what an interrupted cell leaves behind."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from linked_phantoms import write_many

from dask_slicer.config.schema import RunConfig
from dask_slicer.execution import pipeline

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="POSIX signals"),
    # Of zmq and ipykernel.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning"),
]

N_CASES = 40
SETTINGS = {"compression_level": 9, "window_size": 1, "dashboard_address": "127.0.0.1:0"}
NEVER = 240.0


@dataclass
class Said:
    """What a cell said."""

    html: list[str] = field(default_factory=list)
    text: str = ""
    error: str = ""


@dataclass
class Kernel:
    """A kernel, whose cells are run one after another."""

    manager: Any
    client: Any

    def run(self, code: str, *, interrupt_when: Callable[[], bool] | None = None) -> Said:
        """Return what a cell said; interrupt it, as Jupyter's button does, when it is so far."""
        request = self.client.execute(code)
        said = Said()
        deadline = time.monotonic() + NEVER
        while time.monotonic() < deadline:
            if interrupt_when is not None and interrupt_when():
                interrupt_when = None
                self.manager.interrupt_kernel()
            message = self._next()
            if message is None or message["parent_header"].get("msg_id") != request:
                continue
            content = message["content"]
            match message["msg_type"]:
                case "stream":
                    said.text += content["text"]
                case "error":
                    said.error = "\n".join(content["traceback"])
                case "display_data" | "execute_result" | "update_display_data":
                    said.html.append(content["data"].get("text/html", ""))
                case "status" if content["execution_state"] == "idle":
                    assert interrupt_when is None, f"it was over before: {said}"
                    return said
        raise AssertionError(f"the kernel does not answer: {said}")

    def _next(self) -> Any:
        from queue import Empty

        try:
            return self.client.get_iopub_msg(timeout=0.05)
        except Empty:
            return None

    def value(self, expression: str) -> str:
        said = self.run(f"print({expression})")
        assert not said.error, said.error
        return said.text.strip()


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    jupyter_client = pytest.importorskip("jupyter_client")
    pytest.importorskip("ipykernel")
    manager = jupyter_client.KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(tmp_path))
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=NEVER)
    try:
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset of many cases, all of them the same volume."""
    return write_many(tmp_path_factory.mktemp("many"), n_cases=N_CASES, shape=(64, 60, 16))


@pytest.fixture(scope="module")
def undisturbed(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return what a run that nobody disturbs writes."""
    output = tmp_path_factory.mktemp("undisturbed") / "slices"
    pipeline.run(RunConfig(input_dir=scans, output_dir=output, num_workers=0, **SETTINGS))
    return contents(output)


def contents(output: Path) -> dict[str, bytes]:
    paths = [*output.rglob("*.npz"), output / "slices.csv", output / "splits.json"]
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


def n_done(output: Path) -> int:
    journal = output / "journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


OWN_CLIENT = """
from distributed import Client, LocalCluster
cluster = LocalCluster(
    n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
)
client = Client(cluster)
"""
PLACES = [
    pytest.param("", ", num_workers=0", id="in the kernel"),
    pytest.param("", ", num_workers=2", id="on workers that the run starts"),
    pytest.param(OWN_CLIENT, "", id="on the notebook's client"),
    pytest.param(OWN_CLIENT, ", client=client, num_workers=2", id="on a given client"),
]


@pytest.mark.parametrize(("before", "place"), PLACES)
def test_an_interrupted_cell_leaves_what_the_same_cell_completes(
    kernel, scans, undisturbed, tmp_path, before, place
) -> None:
    output = tmp_path / "slices"
    said = kernel.run(
        f"import dask_slicer as ds\nsettings = dict(input_dir={str(scans)!r}, **{SETTINGS!r})"
        + before
    )
    assert not said.error
    cell = f"report = ds.run(output_dir='slices'{place}, **settings)\nreport"
    stopped = kernel.run(cell, interrupt_when=lambda: n_done(output) >= 3)
    assert stopped.error == (
        "KeyboardInterrupt: stopped; finished cases are kept, and the same call continues"
    )
    assert "Stopped. Finished cases are kept" in stopped.html[-1]
    assert "Traceback" not in stopped.text
    assert 3 <= n_done(output) < N_CASES
    assert not [path.name for path in output.iterdir() if path.name.startswith(".")]
    if before:
        assert kernel.value("client.submit(sum, [1, 2]).result(60), len(client.nthreads())") == (
            "3 2"
        )
        assert kernel.value("client.futures") == "{}"
    else:
        assert no_worker_is_left(kernel)
    completed = kernel.run(cell)
    assert not completed.error
    assert f"of {N_CASES - int(kernel.value('report.n_skipped'))} cases" in completed.html[-1]
    assert kernel.value("report.n_skipped + report.n_committed, report.remaining") == "40 0"
    assert contents(output) == undisturbed


def no_worker_is_left(kernel: Kernel) -> bool:
    """Return whether the kernel ends up with no process but what serves multiprocessing."""
    driver = psutil.Process(kernel.manager.provisioner.pid)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        # The server that workers are forked from, and the tracker, stay for the next run.
        workers = [
            child
            for child in driver.children(recursive=True)
            if child.parent() != driver and child.status() != psutil.STATUS_ZOMBIE
        ]
        if not workers:
            return True
        time.sleep(0.1)
    return False


def test_a_cell_shows_a_bar_and_then_the_report(kernel, scans) -> None:
    said = kernel.run(
        "import dask_slicer as ds\n"
        f"ds.run(input_dir={str(scans)!r}, output_dir='slices', num_workers=2, **{SETTINGS!r})"
    )
    *drawn, report = said.html
    assert not said.error
    assert not said.text
    assert all('role="progressbar"' in block for block in drawn)
    assert "reading headers" in drawn[0]  # before there are workers
    assert re.search(r'<a href="http://127.0.0.1:\d+/status"', "".join(drawn[1:3]))
    assert any("40 cases, 0 failed, " in block for block in drawn[:-1])
    assert "Wrote 640 slices of 40 cases" in drawn[-1]
    assert "<td" in report
    assert "640 slices of 40 cases" in report


def test_a_configuration_error_is_one_line_below_the_cell(kernel) -> None:
    said = kernel.run("import dask_slicer as ds\nds.run('ct_abdomn')")
    assert said.error == (
        "ConfigError: there is no configuration ct_abdomn; did you mean ct_abdomen?; "
        "dask-slicer configs lists the shipped ones, or give a YAML file"
    )


def test_a_submitted_run_survives_an_interrupted_cell_and_can_be_cancelled(
    kernel, scans, undisturbed, tmp_path
) -> None:
    output = tmp_path / "slices"
    cell = (
        "import dask_slicer as ds, time\n"
        f"settings = dict(input_dir={str(scans)!r}, num_workers=2, **{SETTINGS!r})\n"
        "handle = ds.submit(output_dir='slices', **settings)\n"
    )
    assert not kernel.run(cell).error
    waited = kernel.run("time.sleep(1000)", interrupt_when=lambda: n_done(output) >= 2)
    assert "KeyboardInterrupt" in waited.error
    done_then = n_done(output)
    kernel.run(
        "import pathlib\n"
        "journal = pathlib.Path('slices/journal.jsonl')\n"
        f"while len(journal.read_bytes().splitlines()) <= {done_then}: time.sleep(0.01)\n"
        "handle.cancel()"
    )
    assert kernel.value("handle.status, handle.result().interrupted") == "cancelled True"
    assert not (output / ".dask_slicer.lock").exists()
    assert no_worker_is_left(kernel)
    assert not kernel.run("handle = ds.submit(output_dir='slices', **settings)").error
    assert kernel.value("handle.result().remaining, handle.status") == "0 done"
    assert contents(output) == undisturbed
