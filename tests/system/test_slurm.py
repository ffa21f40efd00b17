"""Workers in jobs of a real Slurm: lost ones are replaced, and none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from linked_phantoms import write_many
from predicted import assemble, predict
from slurm import Slurm, wait_until

import dask_slicer
from dask_slicer.execution import watchdog
from dask_slicer.monitoring.observer import Observer

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

N_CASES = 24
SETTINGS = ("--window_size", "4", "--plane", "sagittal", "--compression_level", "9")
IN_JOBS = ("--cluster", "slurm", "--interface", "lo", "--memory", "1GB", "--walltime", "00:10:00")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset of many cases, all of them the same volume."""
    return write_many(tmp_path_factory.mktemp("scans"), n_cases=N_CASES, shape=(96, 96, 40))


@pytest.fixture(scope="module")
def in_this_process(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the output of a run in one process, in a format."""
    made: dict[str, Path] = {}

    def call(kind: str) -> Path:
        if kind not in made:
            output = tmp_path_factory.mktemp("here") / "slices"
            here = command(scans, output, "--num_workers", "0", "--format", kind)
            subprocess.run(here, check=True, capture_output=True)
            made[kind] = output
        return made[kind]

    return call


def command(scans: Path, output: Path, *options: object) -> list[str]:
    places = ("--input_dir", scans, "--output_dir", output)
    run = (sys.executable, "-m", "dask_slicer", "run", *places, *SETTINGS, *options)
    return [str(part) for part in run]


def contents(output: Path) -> dict[str, bytes]:
    """Return what must be the same, wherever it was made."""
    tops = ("train", "val", "test", "slices.zarr")
    paths = [path for top in tops for path in (output / top).rglob("*") if path.is_file()]
    paths += [output / "slices.csv", output / "splits.json"]
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


@pytest.fixture
def start(slurm: Slurm, scans: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Return a function that starts a run in jobs, in a session of its own; ends what is left."""
    started: list[subprocess.Popen[str]] = []

    def call(*options: object, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command(scans, tmp_path / "slices", *IN_JOBS, *options),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | environment,
        )
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()
    if slurm.jobs():
        slurm.cancel(*slurm.jobs())
    slurm.wait_until_empty()


def n_lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def wait_for_cases(n: int, output: Path, process: subprocess.Popen[str]) -> None:
    def are_done() -> bool:
        assert process.poll() is None, process.communicate()
        return n_lines(output / "journal.jsonl") >= n

    wait_until(are_done, f"{n} cases are done", within=120)


def assert_nothing_is_left(slurm: Slurm) -> None:
    slurm.wait_until_empty()
    wait_until(lambda: not slurm.processes(), "no process is left", within=30)


def log_of(output: Path, job: str) -> str:
    path = output / "logs" / f"dask-slicer-{job}.log"
    return path.read_text() if path.exists() else ""


def test_a_job_that_is_cancelled_is_replaced_and_the_slices_are_the_same(
    slurm, start, in_this_process, tmp_path, invoke
) -> None:
    output = tmp_path / "slices"
    run = start("--jobs", 2, "--dashboard_address", "127.0.0.1:0")
    wait_for_cases(2, output, run)
    wait_until(lambda: len(slurm.jobs()) == 2, "both jobs are there")
    first, second = slurm.jobs()
    wait_until(lambda: "Registered to" in log_of(output, second), "its worker is there")
    # The other one is held up, so that there is something to do for the one that comes.
    held = slurm.processes(second)
    for process in held:
        process.suspend()
    slurm.cancel(first)
    wait_until(lambda: slurm.jobs().keys() - {first, second}, "another job is submitted")
    (third,) = slurm.jobs().keys() - {first, second}
    wait_until(lambda: "Registered to" in log_of(output, third), "its worker has joined")
    listening = [*slurm.processes(), psutil.Process(run.pid)]
    addresses = {
        connection.laddr.ip
        for process in listening
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}
    for process in held:
        process.resume()
    stdout, stderr = run.communicate(timeout=240)
    assert (run.returncode, stderr) == (0, ""), stdout
    assert f"Job {first} ended; submitted a replacement" in stdout
    assert f"Run: {N_CASES} cases in 2 jobs of slurm" in stdout
    assert contents(output) == contents(in_this_process("npz"))
    assert_nothing_is_left(slurm)
    assert invoke("verify", output, "--num_workers", 0).exit_code == 0


def test_several_workers_in_a_job_make_the_same_store(
    slurm, start, in_this_process, tmp_path
) -> None:
    run = start("--jobs", 2, "--cores", 2, "--format", "zarr")
    stdout, stderr = run.communicate(timeout=240)
    assert (run.returncode, stderr) == (0, ""), stdout
    assert f"Run: {N_CASES} cases in 2 jobs of slurm, 2 workers each" in stdout
    assert contents(tmp_path / "slices") == contents(in_this_process("zarr"))
    assert_nothing_is_left(slurm)


def test_a_job_of_several_workers_is_replaced_too(slurm, start, in_this_process, tmp_path) -> None:
    output = tmp_path / "slices"
    run = start("--jobs", 1, "--cores", 2)
    wait_for_cases(1, output, run)
    slurm.cancel(*slurm.jobs())
    stdout, stderr = run.communicate(timeout=240)
    assert (run.returncode, stderr) == (0, ""), stdout
    assert "ended; submitted a replacement" in stdout
    assert contents(output) == contents(in_this_process("npz"))


def test_workers_whose_lifetime_is_over_are_replaced_and_nothing_is_lost(
    slurm, start, in_this_process, tmp_path
) -> None:
    output = tmp_path / "slices"
    run = start("--jobs", 2, "--lifetime", 10)
    wait_for_cases(1, output, run)
    # Held up until it is over, they are in the middle of a case when they find that out.
    held = slurm.processes()
    for process in held:
        process.suspend()
    time.sleep(12)
    for process in held:
        process.resume()
    stdout, stderr = run.communicate(timeout=240)
    assert (run.returncode, stderr) == (0, ""), stdout
    logs = [path.read_text() for path in (output / "logs").iterdir()]
    assert any("worker-lifetime-reached" in log for log in logs)
    assert contents(output) == contents(in_this_process("npz"))
    assert_nothing_is_left(slurm)


@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGINT, 130, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, 143, id="batch system"),
    ],
)
@pytest.mark.parametrize("n_cases", [0, 2])
def test_a_run_that_is_stopped_leaves_no_job_and_can_be_continued(
    slurm, start, scans, in_this_process, tmp_path, number, status, n_cases
) -> None:
    output = tmp_path / "slices"
    run = start("--jobs", 3)
    wait_until(lambda: slurm.jobs(), "there are jobs")
    wait_for_cases(n_cases, output, run)
    os.killpg(run.pid, number)
    stdout, stderr = run.communicate(timeout=60)
    assert (run.returncode, stderr) == (status, ""), stdout
    assert "run the same command again to continue" in stdout
    assert_nothing_is_left(slurm)
    again = command(scans, output, "--num_workers", "0")
    subprocess.run(again, check=True, capture_output=True)
    assert contents(output) == contents(in_this_process("npz"))


def test_a_run_that_fails_leaves_no_job(slurm, tmp_path, dataset) -> None:
    for number in range(6):
        dataset.add(f"case_{number}")
        image = dataset.image_path(f"case_{number}")
        image.write_bytes(image.read_bytes()[:-300])  # its header does not show it
    output = tmp_path / "slices"
    run = subprocess.run(
        command(dataset.root, output, *IN_JOBS, "--jobs", 2, "--retries", 0),
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.returncode, run.stderr) == (1, "")
    assert "Run: 6 cases in 2 jobs of slurm" in run.stdout
    assert "6 cases failed (6 CorruptFile)" in run.stdout
    assert_nothing_is_left(slurm)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--queue", "nowhere"), "invalid partition specified: nowhere"),
        (("--memory", "900GB"), "Memory specification can not be satisfied"),
        (("--job_extra", "--nonsense"), "unrecognized option '--nonsense'"),
    ],
)
def test_a_refusal_by_slurm_ends_the_run_with_its_message(
    slurm, start, tmp_path, options, said
) -> None:
    run = start("--jobs", 2, *options)
    _, stderr = run.communicate(timeout=60)
    assert run.returncode == 1
    (line,) = stderr.splitlines()
    assert line.startswith(f"Error: sbatch refused the job: {said}")
    assert not (tmp_path / "slices").exists()
    assert_nothing_is_left(slurm)


def test_jobs_that_fail_to_start_end_the_run_with_their_last_output(slurm, start, tmp_path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "jobqueue.yaml").write_text(
        "jobqueue: {slurm: {job-script-prologue: [echo no module of that name; exit 3]}}"
    )
    run = start("--jobs", 2, DASK_CONFIG=str(site))
    stdout, stderr = run.communicate(timeout=180)
    assert run.returncode == 1
    assert "submitted a replacement" in stdout
    (line,) = stderr.splitlines()
    assert "ended before its worker started" in line
    assert line.endswith("ends with: no module of that name")
    assert_nothing_is_left(slurm)


def test_a_run_waits_for_queued_jobs_and_reports_them(slurm, start, tmp_path) -> None:
    in_the_way = slurm.submit("--cpus-per-task=8", "--output=/dev/null", "--wrap=sleep 600")
    run = start("--only", "phantom_000")
    for line in run.stdout:
        if "waiting for workers" in line:
            break
    assert "1 job submitted, 1 queued (Resources), 0 running, " in line
    slurm.cancel(in_the_way)
    stdout, stderr = run.communicate(timeout=120)
    assert (run.returncode, stderr) == (0, ""), stdout
    assert (tmp_path / "slices" / "slices.csv").exists()


class _Notes(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_run_continues_after_all_its_jobs_are_lost_and_queued_again(
    slurm, scans, in_this_process, tmp_path, monkeypatch
) -> None:
    # Far less than the jobs have to wait.
    monkeypatch.setattr(watchdog, "_STALLED_SECONDS", 4.0)
    monkeypatch.setattr(watchdog, "_LOOK_SECONDS", 0.5)
    output = tmp_path / "slices"

    def take_the_node_away() -> None:
        deadline = time.monotonic() + 60
        while n_lines(output / "journal.jsonl") < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        lost = list(slurm.jobs())
        in_the_way = slurm.submit("--cpus-per-task=8", "--output=/dev/null", "--wrap=sleep 600")
        try:
            slurm.cancel(*lost)
            wait_until(
                lambda: len(slurm.jobs().keys() - {*lost, in_the_way}) == 2, "both are replaced"
            )
            time.sleep(6)
        finally:
            slurm.cancel(in_the_way)

    thread = threading.Thread(target=take_the_node_away)
    thread.start()
    observer = _Notes()
    config = dask_slicer.RunConfig(
        input_dir=scans,
        output_dir=output,
        window_size=4,
        plane="sagittal",
        compression_level=9,
        cluster="slurm",
        jobs=2,
        interface="lo",
        memory="1GB",
        dashboard_address="none",
    )
    report = dask_slicer.run(config, observer=observer)
    thread.join()
    assert report.remaining == 0
    assert sum(" ended; submitted a replacement" in note for note in observer.notes) >= 2
    assert contents(output) == contents(in_this_process("npz"))
    assert_nothing_is_left(slurm)


def test_predictions_are_assembled_in_jobs(slurm, in_this_process, tmp_path) -> None:
    output = in_this_process("zarr")
    predictions = predict(output, tmp_path / "predictions", whole=True)
    here = assemble(output, predictions, tmp_path / "here")
    assert (here.n_written, here.failures) == (N_CASES, ())
    words = ("assemble", output, "--predictions", predictions, "--output_dir", tmp_path / "jobs")
    line = [sys.executable, "-m", "dask_slicer", *words, *IN_JOBS, "--jobs", 2]
    done = subprocess.run([*map(str, line)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Wrote {N_CASES} volumes" in done.stdout
    written = [
        {path.name: path.read_bytes() for path in (tmp_path / place).glob("*.nii.gz")}
        for place in ("here", "jobs")
    ]
    assert written[0] == written[1]
