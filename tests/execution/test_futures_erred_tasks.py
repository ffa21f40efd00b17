"""Failed cases stay on the scheduler as erred tasks while a run goes on, and hold no memory."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import faults
import nibabel as nib
import numpy as np
import pytest
from dask.delayed import delayed
from distributed import Client

import dask_slicer
from dask_slicer.cluster import local
from dask_slicer.config.schema import RunConfig
from dask_slicer.errors import SchedulerError, Unexpected
from dask_slicer.execution import futures
from dask_slicer.execution.graph import case_graph, target_of
from dask_slicer.inputs.phantom import write_dataset
from dask_slicer.monitoring.observer import Observer

pytestmark = pytest.mark.versions

N_CASES = 8


def tasks_there(dask_scheduler: Any) -> dict[Any, str]:
    """Return the state of each task that a scheduler knows; runs there."""
    return {key: task.state for key, task in dask_scheduler.tasks.items()}


def bytes_held(dask_scheduler: Any) -> int:
    return sum(task.nbytes for task in dask_scheduler.tasks.values() if task.who_has)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def scans(dataset) -> Path:
    folder = dataset.root
    write_dataset(folder, n_cases=N_CASES, shape=(40, 36, 12), varied=False)
    image = nib.load(folder / "imagesTr" / "phantom_002_0000.nii.gz")
    values = image.get_fdata(dtype=np.float32)
    values[3, 3, 3] = np.nan  # it loads, and cannot be sliced
    dataset.write(folder / "imagesTr" / "phantom_002_0000.nii.gz", values, image.affine)
    return folder


@pytest.fixture
def client() -> Iterator[Client]:
    # By their nannies: the process that workers are forked from may be there already.
    variables = faults.variables({"phantom_001": "raise", "phantom_003": "exit"})
    environment = dask.config.get("distributed.nanny.environ", {}) | variables
    with (
        dask.config.set({"distributed.nanny.environ": environment}),
        local.local_client(1, memory_limit=2**31, dashboard_address="none") as client,
    ):
        yield client


class AtTheLast(Observer):
    """Looks at the scheduler when all cases but one have ended."""

    def __init__(self, client: Client, n_cases: int) -> None:
        self.client, self.n_left = client, n_cases
        self.seen: dict[Any, str] = {}
        self.held = -1

    def case_finished(self, record) -> None:
        self.n_left -= 1
        if self.n_left == 0:
            # What was let go of a moment ago goes a moment later.
            wait_for(lambda: "memory" not in self.client.run_on_scheduler(tasks_there).values())
            self.seen = self.client.run_on_scheduler(tasks_there)
            self.held = self.client.run_on_scheduler(bytes_held)


def test_failed_tasks_stay_on_the_scheduler_until_the_run_ends(scans, tmp_path, client) -> None:
    config = RunConfig(input_dir=scans, output_dir=tmp_path / "slices", retries=1)
    observer = AtTheLast(client, N_CASES)
    report = dask_slicer.run(config, client, observer=observer)
    failed = ["phantom_001", "phantom_002", "phantom_003"]
    assert sorted(one.case_id for one in report.failures) == failed
    # Not those of the graphs in which they failed together with others.
    assert {key for key in observer.seen if key[0] == "save"} == {("save", name) for name in failed}
    assert set(observer.seen.values()) == {"erred", "released"}
    # One for each case, whatever its step; a killed worker leaves the error to all of its tasks.
    erred = Counter(name for (_, name), state in observer.seen.items() if state == "erred")
    assert erred == {"phantom_001": 1, "phantom_002": 1, "phantom_003": 3}
    assert {one.case_id: one.step for one in report.failures} == dict(
        zip(failed, ["load", "slice", "load"], strict=True)
    )
    assert observer.held == 0
    # Each death of a worker counts, also where the case that it had was written later.
    assert report.n_lost_workers >= 2
    assert report.notes[0].startswith(f"lost {report.n_lost_workers} workers that had a case")
    summary = json.loads((tmp_path / "slices" / "dataset_info.json").read_text())
    assert summary["lost_workers"] == report.n_lost_workers
    wait_for(lambda: not client.run_on_scheduler(tasks_there))
    assert not client.futures


def _fail(name: str) -> None:
    raise Unexpected(name)


def test_only_the_last_failed_tasks_stay_on_the_scheduler(client, monkeypatch) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(futures, "_MOST_ERRED", 3)
    names = list("abcdefgh")
    ended = futures.run_graphs(
        client,
        lambda _: names.pop(0) if names else None,
        lambda name: delayed(_fail)(name, dask_key_name=("save", name)),
        names_of=lambda name: [name],
    )
    order = [next(ended)[0] for _ in range(8)]
    kept = {("save", name) for name in order[-3:]}
    wait_for(lambda: set(client.run_on_scheduler(tasks_there)) <= kept)  # it is told a moment later
    assert set(client.run_on_scheduler(tasks_there)) == kept
    assert list(ended) == []
    wait_for(lambda: not client.run_on_scheduler(tasks_there))


@pytest.mark.parametrize("case_id", ["phantom_001", "phantom_003"], ids=["raises", "kills"])
def test_a_failed_task_of_another_run_is_not_taken_for_ours(
    scans, tmp_path, client, case_id
) -> None:
    config = RunConfig(input_dir=scans, output_dir=tmp_path / "slices", only=[case_id], retries=0)
    (case,) = dask_slicer.plan(config).selected
    with Client(client.scheduler.address, set_as_default=False) as others:
        theirs = others.compute(case_graph(case, target_of(config, run_id="theirs")))
        wait_for(lambda: theirs.status == "error")
        with pytest.raises(
            SchedulerError, match="another run on this scheduler has a case with the same id"
        ):
            dask_slicer.run(config, client)
