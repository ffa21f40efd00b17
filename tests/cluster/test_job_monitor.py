"""Replacing jobs, and giving up, on a simulated cluster."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from dask_slicer.cluster import job_monitor
from dask_slicer.cluster.batch_system import SYSTEMS
from dask_slicer.cluster.job_monitor import JobMonitor


class Cluster:
    """Jobs and workers as a test wants them; every look happens at once."""

    def __init__(self, *, n_jobs: int, n_workers: int = 1, logs: Path = Path("/nowhere")) -> None:
        self.workers: dict[str, SimpleNamespace] = {}
        self.worker_spec: dict[str, dict[str, object]] = {}
        self.scheduler = SimpleNamespace(workers={})
        self.job_cls = self
        self.listing = ""
        self.refusal = ""
        self.cancelled: list[str] = []
        self.notes: list[str] = []
        self._numbers = itertools.count(1)
        self._group = {"group": [f"-{n}" for n in range(n_workers)]} if n_workers > 1 else {}
        self.monitor = JobMonitor(
            self, system=SYSTEMS["slurm"], n_jobs=n_jobs, logs=logs, note=self.notes.append
        )

    def look(self, *, times: int = 1) -> None:
        for _ in range(times):
            asyncio.run(self.monitor._check())

    def list(self, *lines: str) -> None:
        self.listing = "\n".join(lines)

    def join(self, *names: str) -> None:
        self.scheduler.workers |= {name: SimpleNamespace(name=name) for name in names}

    def leave(self, *names: str) -> None:
        for name in names:
            del self.scheduler.workers[name]

    # The methods of a dask-jobqueue cluster that the monitor calls.

    def scale(self, *, jobs: int) -> None:
        while len(self.worker_spec) < jobs:
            number = next(self._numbers)
            self.worker_spec[f"job-{number}"] = self._group
            self.workers[f"job-{number}"] = SimpleNamespace(
                job_id=None if self.refusal else str(number),
                refusal=self.refusal,
                has_joined=False,
                n_times_unlisted=0,
                last_seen=time.monotonic(),
            )

    async def scale_down(self, names: list[str]) -> None:
        for name in list(names):
            del self.worker_spec[name]
            self.cancelled.append(self.workers.pop(name).job_id)

    async def _call(self, command: list[str]) -> str:
        assert command[0] == "squeue"
        if self.listing.startswith("!"):
            raise RuntimeError(f"Command\nstdout:\n\nstderr:\nsqueue: error: {self.listing[1:]}\n")
        return self.listing


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_LIST_SECONDS", "_URGENT_LIST_SECONDS", "_RETRY_SECONDS"):
        monkeypatch.setattr(job_monitor, name, 0.0)


@pytest.mark.parametrize(
    ("refusal", "has_joined", "silent_seconds", "n_times_unlisted", "end"),
    [
        ("no such queue", False, 0, 0, "no such queue"),
        ("", False, 1e6, 0, ""),  # queued for days
        ("", False, 30, 1, ""),  # it may not be listed yet
        ("", False, 30, 2, "Job 7 ended before its worker started; it left no log file in "),
        ("", True, 30, 0, ""),  # its nanny starts another worker
        ("", True, 5, 2, "Job 7 ended"),
        ("", True, 61, 0, "Job 7 ended"),  # its node is frozen, or cut off
    ],
)
def test_a_job_without_a_worker_is_refused_or_over_or_may_have_one_again(
    tmp_path, refusal, has_joined, silent_seconds, n_times_unlisted, end
) -> None:
    job = SimpleNamespace(
        job_id="7",
        refusal=refusal,
        has_joined=has_joined,
        n_times_unlisted=n_times_unlisted,
        last_seen=time.monotonic() - silent_seconds,
    )
    found = Cluster(n_jobs=1, logs=tmp_path).monitor._end_of(job)
    assert found.removesuffix(str(tmp_path)) == end


def test_queued_jobs_are_never_replaced() -> None:
    cluster = Cluster(n_jobs=2)
    cluster.look()
    cluster.list("1 PD Priority", "2 PD Resources")
    cluster.look(times=100)
    assert list(cluster.workers) == ["job-1", "job-2"]
    assert cluster.monitor.summary() == (
        "2 jobs submitted, 2 queued (Priority, Resources), 0 running"
    )
    assert (cluster.notes, cluster.monitor.failure) == ([], "")


@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_job_that_is_no_longer_listed_is_replaced(n_workers: int) -> None:
    cluster = Cluster(n_jobs=1, n_workers=n_workers)
    cluster.look()
    cluster.list("1 R None")
    names = ["job-1"] if n_workers == 1 else ["job-1-0", "job-1-1"]
    cluster.join(*names)
    cluster.look()
    assert cluster.monitor.n_joined == 1
    cluster.leave(*names)
    cluster.look(times=3)
    assert cluster.notes == []  # a nanny may be starting another worker
    cluster.list()
    cluster.look(times=2)
    assert cluster.notes == ["Job 1 ended; submitted a replacement"]
    assert (list(cluster.workers), cluster.monitor.n_joined) == (["job-2"], 0)
    assert cluster.monitor.failure == ""


def test_a_job_of_several_workers_is_kept_while_one_of_them_is_there() -> None:
    cluster = Cluster(n_jobs=1, n_workers=2)
    cluster.look()
    cluster.join("job-1-0", "job-1-1")
    cluster.look()
    cluster.leave("job-1-0")
    cluster.look(times=5)
    assert list(cluster.workers) == ["job-1"]


def test_a_job_that_runs_without_a_worker_for_long_is_cancelled_and_replaced() -> None:
    cluster = Cluster(n_jobs=1)
    cluster.look()
    cluster.list("1 R None")
    cluster.join("job-1")
    cluster.look()
    cluster.leave("job-1")
    cluster.workers["job-1"].last_seen -= 3600
    cluster.look()
    assert cluster.cancelled == ["1"]
    assert list(cluster.workers) == ["job-2"]


def test_a_run_ends_when_its_first_jobs_are_refused() -> None:
    cluster = Cluster(n_jobs=2)
    cluster.refusal = "sbatch refused the job: no such partition"
    cluster.look(times=2)
    assert cluster.monitor.failure == "sbatch refused the job: no such partition"
    assert cluster.notes == []


def test_later_refusals_are_tried_again_a_few_times() -> None:
    cluster = Cluster(n_jobs=1)
    cluster.look()
    cluster.join("job-1")
    cluster.look()
    cluster.leave("job-1")
    cluster.refusal = "sbatch refused the job: maintenance"
    cluster.look(times=2)
    cluster.look(times=2)
    assert cluster.monitor.failure == ""
    assert cluster.notes[-1] == f"{cluster.refusal}; submitted a replacement"
    cluster.look(times=3)
    assert cluster.monitor.failure == cluster.refusal


def test_a_refusal_does_not_end_a_run_that_has_workers() -> None:
    cluster = Cluster(n_jobs=2)
    cluster.look()
    cluster.list("1 R None", "2 R None")
    cluster.join("job-1", "job-2")
    cluster.look()
    cluster.leave("job-2")
    cluster.list("1 R None")
    cluster.refusal = "sbatch refused the job: too many"
    cluster.look(times=20)
    assert cluster.monitor.failure == ""
    assert cluster.monitor.n_joined == 1


def test_a_run_ends_after_three_jobs_that_failed_to_start(tmp_path: Path) -> None:
    (tmp_path / "dask-slicer-13.log").write_text("of another job")
    (tmp_path / "dask-slicer-3.log").write_text("first\nno module of that name\n\n")
    cluster = Cluster(n_jobs=1, logs=tmp_path)
    for _ in range(3):
        assert cluster.monitor.failure == ""
        cluster.look(times=2)
    cluster.look()
    assert cluster.notes[0] == (
        f"Job 1 ended before its worker started; it left no log file in {tmp_path}; submitted a "
        "replacement"
    )
    assert cluster.monitor.failure == (
        f"Job 3 ended before its worker started; {tmp_path}/dask-slicer-3.log ends with: "
        "no module of that name"
    )


def test_jobs_are_left_alone_while_the_batch_system_does_not_answer() -> None:
    cluster = Cluster(n_jobs=1)
    cluster.look()
    cluster.list("!Unable to contact slurm controller")
    cluster.look(times=10)
    assert list(cluster.workers) == ["job-1"]
    assert cluster.monitor.summary() == (
        "1 job submitted (squeue: Unable to contact slurm controller)"
    )


def test_no_job_is_submitted_at_the_end_of_a_run() -> None:
    cluster = Cluster(n_jobs=1)
    cluster.monitor.is_over.set()
    cluster.look(times=3)
    assert cluster.workers == {}
