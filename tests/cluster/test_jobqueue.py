"""Workers in batch jobs: their scripts, and a run on simulated batch systems."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from dask_slicer.cluster.batch_system import SYSTEMS
from dask_slicer.cluster.jobqueue import dashboard_link, job_script
from dask_slicer.config.run_settings import JobSettings
from dask_slicer.config.schema import RunConfig
from dask_slicer.errors import UsageError

ASKED = {
    "cores": 2,
    "memory": "3GB",
    "walltime": "1-02:00:30",
    "queue": "short",
    "account": "lab",
    "interface": "ib0",
}
# The directives of the same job for each system.
DIRECTIVES = {
    "slurm": [
        "#SBATCH -J dask-slicer",
        "#SBATCH -p short",
        "#SBATCH -A lab",
        "#SBATCH -n 1",
        "#SBATCH --cpus-per-task=2",
        "#SBATCH --mem=3G",
        "#SBATCH -t 26:00:30",
        "#SBATCH -o /out/logs/dask-slicer-%j.log",
        "#SBATCH --qos=high",
    ],
    "pbs": [
        "#PBS -N dask-slicer",
        "#PBS -q short",
        "#PBS -A lab",
        "#PBS -l select=1:ncpus=2:mem=2862MB",
        "#PBS -l walltime=26:00:30",
        "#PBS -S /bin/bash",
        "#PBS -j oe",
        "#PBS -o /out/logs/",
        "#PBS --qos=high",
    ],
    "sge": [
        "#$ -N dask-slicer",
        "#$ -q short",
        "#$ -P lab",
        "#$ -l h_rt=26:00:30",
        "#$ -cwd",
        "#$ -j y",
        "#$ -S /bin/bash",
        "#$ -o /out/logs/",
        "#$ -pe smp 2",
        "#$ --qos=high",
    ],
    "lsf": [
        "#BSUB -J dask-slicer",
        "#BSUB -q short",
        '#BSUB -P "lab"',
        "#BSUB -n 2",
        '#BSUB -R "span[hosts=1]"',
        "#BSUB -M 3000000",
        "#BSUB -W 26:01",
        "#BSUB -o /out/logs/dask-slicer-%J.log",
        "#BSUB --qos=high",
    ],
}


@pytest.fixture(autouse=True)
def _no_settings_of_a_site(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LSF_ENVDIR", "LSF_CONFDIR", "PBS_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_job_is_described_as_its_batch_system_wants_it(system: str) -> None:
    extra = ["-pe smp 2"] if system == "sge" else []
    settings = JobSettings(cluster=system, job_extra=(*extra, "--qos=high"), **ASKED)
    script = job_script(settings, Path("/out"))
    directives = [line for line in script.splitlines() if line.startswith("#") and "#!" not in line]
    assert directives == DIRECTIVES[system]


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_job_is_as_many_workers_as_cores_that_end_before_it_and_listen_where_they_should(
    system: str,
) -> None:
    extra = ("-pe smp 2",) if system == "sge" else ()
    script = job_script(JobSettings(cluster=system, job_extra=extra, **ASKED), Path("/out"))
    assert script.startswith("#!/usr/bin/env bash\n")
    *_, command = script.splitlines()
    assert command.startswith(f"exec {sys.executable} -m distributed.cli.dask_worker ")
    for said in (
        "--nthreads 1 ",
        "--nworkers 2 ",
        "--nanny ",
        "--memory-limit 1.40GiB ",
        "--dashboard-address 127.0.0.1:0",
        "--interface ib0",
        "--lifetime 93030s",
        '--local-directory "$TMPDIR"',
        "--death-timeout 120",
    ):
        assert said in f"{command} "
    for said in (
        "export OMP_NUM_THREADS=1",
        "export MALLOC_ARENA_MAX=1",
        "export DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=False",
    ):
        assert said in script.splitlines()
    assert "SCHEDULER__WORKER" not in script


def test_paths_with_spaces_are_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/my env/bin/python")
    script = job_script(JobSettings(cluster="slurm"), Path("/my out"))
    assert '#SBATCH -o "/my out/logs/dask-slicer-%j.log"' in script
    assert "exec '/my env/bin/python' -m" in script


def test_site_settings_of_dask_jobqueue_take_precedence(tmp_path) -> None:
    (tmp_path / "jobqueue.yaml").write_text(
        "jobqueue: {slurm: {queue: night, log-directory: /elsewhere, "
        "job-script-prologue: [module load python], job-extra-directives: [--qos=low]}}"
    )
    code = (
        "from pathlib import Path; from dask_slicer.cluster.jobqueue import job_script; "
        "from dask_slicer.config.run_settings import JobSettings; "
        "print(job_script(JobSettings(cluster='slurm', job_extra=('--qos=high',)), Path('/out')))"
    )
    script = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"DASK_CONFIG": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "#SBATCH -p night" in script
    assert script.index("--qos=low") < script.index("--qos=high")
    assert script.index("module load python") < script.index("export OMP_NUM_THREADS")
    assert "/elsewhere" not in script


def test_importing_dask_jobqueue_keeps_the_sigint_handler() -> None:
    code = (
        "import signal; from pathlib import Path; "
        "from dask_slicer.cluster.jobqueue import job_script; "
        "from dask_slicer.config.run_settings import JobSettings; "
        "before = signal.getsignal(signal.SIGINT); "
        "job_script(JobSettings(cluster='slurm'), Path('/out')); "
        "assert signal.getsignal(signal.SIGINT) is before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_thread_can_be_the_first_to_import_dask_jobqueue() -> None:
    code = (
        "import signal, sys, threading; from pathlib import Path; "
        "from dask_slicer.cluster.jobqueue import job_script; "
        "from dask_slicer.config.run_settings import JobSettings; "
        "before = [signal.signal, signal.getsignal(signal.SIGINT)]; "
        "settings = JobSettings(cluster='slurm'); scripts = []; "
        "thread = threading.Thread(target=lambda: scripts.append(job_script(settings, Path()))); "
        "assert 'dask_jobqueue' not in sys.modules; thread.start(); thread.join(); "
        "assert scripts; assert before == [signal.signal, signal.getsignal(signal.SIGINT)]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_batch_system_that_is_not_installed_is_refused_in_one_line(
    dataset, tmp_path, invoke, monkeypatch
) -> None:
    dataset.add("a")
    command = ["run", "--input_dir", dataset.root, "--output_dir", tmp_path / "out", "-q"]
    monkeypatch.setenv("PATH", str(tmp_path))
    result = invoke(*command, "--cluster", "lsf")
    assert result.exit_code == 2
    assert result.stderr == "Error: bsub is not on this machine: run where lsf jobs are submitted\n"
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    result = invoke(*command, "--cluster", "lsf")
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: cluster lsf needs dask-jobqueue: pip install 'dask_slicer[hpc]'\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cluster": "sge", "cores": 4}, "--job_extra '-pe smp 4'"),
        ({"cluster": "slurm", "lifetime": 3600}, "lifetime must be less than walltime, 01:00:00"),
        ({}, "a job script needs --cluster"),
    ],
)
def test_settings_without_a_possible_job_are_refused(settings, said) -> None:
    with pytest.raises(UsageError, match=said):
        job_script(JobSettings(**settings), Path("/out"))


def test_print_job_script_prints_a_script_and_does_nothing(dataset, tmp_path, invoke) -> None:
    dataset.add("a")
    command = ["run", "--input_dir", dataset.root, "--output_dir", tmp_path / "out"]
    result = invoke(*command, "--cluster", "pbs", "--print-job-script")
    assert result.exit_code == 0
    assert result.stdout.startswith("#!")
    assert "#PBS -l walltime=01:00:00\n" in result.stdout
    assert not (tmp_path / "out").exists()


def test_job_extra_may_be_in_a_configuration_file(tmp_path, invoke) -> None:
    (tmp_path / "site.yaml").write_text("{cluster: slurm, job_extra: ['--qos=high', '--x']}")
    command = ["run", "--config", tmp_path / "site.yaml", "--print_job_script"]
    result = invoke(*command, "--input_dir", "scans", "--output_dir", tmp_path / "out")
    assert "#SBATCH --qos=high\n#SBATCH --x\n" in result.stdout
    result = invoke(
        *command, "--input_dir", "scans", "--output_dir", tmp_path / "out", "--job_extra", "--y"
    )
    assert "#SBATCH --y\n" in result.stdout
    assert "--qos" not in result.stdout


def test_the_shipped_configurations_of_batch_systems_make_jobs() -> None:
    from dask_slicer.config.loader import build_config

    for name in ("slurm", "pbs"):
        config = build_config({"input_dir": "in", "output_dir": "out"}, base=name)
        assert isinstance(config, RunConfig)
        assert config.cluster == name
        assert "dask_worker" in job_script(config, Path("/out"))


def test_an_output_made_by_jobs_is_verified_without_jobs(
    dataset, slice_dataset, invoke, monkeypatch, tmp_path
) -> None:
    dataset.add("a")
    output = slice_dataset()
    with (output / "config.yaml").open("a") as file:
        file.write("cluster: slurm\n")
    (output / "logs").mkdir()
    (output / "logs" / "dask-slicer-1.log").write_text("Registered")
    monkeypatch.setenv("PATH", str(tmp_path))
    result = invoke("verify", output, "--num_workers", 0)
    assert result.exit_code == 0, result.output


def test_job_logs_do_not_make_a_directory_foreign(dataset, tmp_path, slice_dataset) -> None:
    dataset.add("a")
    (tmp_path / "slices" / "logs").mkdir(parents=True)
    assert (slice_dataset() / "slices.csv").exists()


# Its commands that submit, cancel and list jobs.
_COMMANDS = {
    "pbs": ("qsub", "qdel", "qstat"),
    "sge": ("qsub", "qdel", "qstat"),
    "lsf": ("bsub", "bkill", "bjobs"),
}
# A program in place of a batch system's commands: a job is a process of this machine, its number is
# the process's, and a file remembers it.
_MADE_UP = """\
#!PYTHON
import os, signal, subprocess, sys
from pathlib import Path

jobs, system, name = Path('JOBS'), 'SYSTEM', Path(sys.argv[0]).name
if name in ("qsub", "bsub"):
    script = Path(sys.argv[1]).read_text() if name == "qsub" else sys.stdin.read()
    if "-q nowhere" in script:
        sys.exit(f"{name}: Unknown queue")
    job = subprocess.Popen(
        ["bash", "-c", script],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ).pid
    (jobs / str(job)).touch()
    answers = {"pbs": "%s.server", "sge": "Your job %s is here", "lsf": "Job <%s> is here"}
    print(answers[system] % job)
elif name in ("qdel", "bkill"):
    for job in sys.argv[1:]:
        os.killpg(int(job), signal.SIGTERM)
else:
    lines = {"pbs": "%s.a me q n 1 1 1 4gb 1:00 R 0:01", "sge": "%s 0 n me r", "lsf": "%s RUN"}
    for job in jobs.iterdir():
        try:
            state = Path("/proc", job.name, "stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            continue
        if state != "Z":
            print(lines[system] % job.name)
"""


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """Return a function that puts the commands of a made-up batch system on the path."""
    jobs = tmp_path / "jobs"

    def call(system: str) -> Path:
        folder = tmp_path / "bin"
        for made in (jobs, folder):
            made.mkdir()
        for command in _COMMANDS[system]:
            script = _MADE_UP.replace("PYTHON", sys.executable).replace("JOBS", str(jobs))
            (folder / command).write_text(script.replace("SYSTEM", system))
            (folder / command).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return jobs

    yield call
    for job in jobs.glob("*"):
        try:
            os.killpg(int(job.name), signal.SIGKILL)
        except ProcessLookupError:
            continue


def _runs(job: Path) -> bool:
    try:
        return psutil.Process(int(job.name)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the made-up systems read /proc")
@pytest.mark.parametrize("system", ["pbs", "sge", "lsf"])
def test_a_run_in_jobs_of_a_made_up_batch_system(
    system, made_up, dataset, tmp_path, invoke, slice_dataset
) -> None:
    for number in range(4):
        dataset.add(f"case_{number}")
    expected = slice_dataset(output="here")
    jobs = made_up(system)
    command = ["run", "--input_dir", dataset.root, "--cluster", system, "--interface", "lo"]
    command += ["--memory", "1GB", "--dashboard_address", "none"]
    refused = invoke(*command, "--output_dir", tmp_path / "refused", "--queue", "nowhere")
    assert refused.exit_code == 1
    assert refused.stderr == f"Error: {_COMMANDS[system][0]} refused the job: Unknown queue\n"
    assert not (tmp_path / "refused").exists()
    result = invoke(*command, "--output_dir", tmp_path / "out", "--jobs", 2)
    assert result.exit_code == 0, result.output
    assert f"Run: 4 cases in 2 jobs of {system}" in result.stdout
    for path in (*expected.glob("*/*.npz"), expected / "slices.csv"):
        assert (tmp_path / "out" / path.relative_to(expected)).read_bytes() == path.read_bytes()
    deadline = time.monotonic() + 30
    while any(map(_runs, jobs.iterdir())):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(list(jobs.iterdir())) == 2


@pytest.mark.parametrize(
    ("address", "services", "link"),
    [
        ("127.0.0.1:0", {"dashboard": 33195}, "http://127.0.0.1:33195/status"),
        ("0.0.0.0:0", {"dashboard": 33195}, "http://node7:33195/status"),
        (":8787", {"dashboard": 33195}, "http://node7:33195/status"),
        ("127.0.0.1:0", {}, "http://node7:33195/status"),
    ],
)
def test_the_dashboard_link_has_the_host_on_which_it_listens(address, services, link) -> None:
    client = SimpleNamespace(
        scheduler_info=lambda n_workers: {"services": services},
        dashboard_link="http://node7:33195/status",  # of the scheduler's host
    )
    assert dashboard_link(client, address) == link
