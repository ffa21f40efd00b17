"""A real Slurm of one machine in a temporary folder, for tests: started, asked, stopped."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

_DAEMONS = ("munged", "slurmctld", "slurmd")
_PLACES = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
# Everything that wants privileges, a database or an init system is left out; CPUs and memory are
# more than there may be, and believed.
_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters={binding}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
MailProg=/bin/true
PropagateResourceLimits=NONE
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
KillWait=5
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 Port={node_port} CPUs=8 RealMemory=64000 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """A running Slurm with the partition `test`: one node, 8 CPUs, 64 GB."""

    folder: Path

    def run(self, *command: object) -> str:
        """Return what a command prints."""
        return subprocess.run(
            list(map(str, command)), check=True, capture_output=True, text=True, timeout=60
        ).stdout.strip()

    def submit(self, *arguments: object) -> str:
        """Submit a job with arguments of sbatch; return its number."""
        return self.run("sbatch", "--parsable", *arguments)

    def cancel(self, *job_ids: str) -> None:
        if job_ids:  # scancel fails without any
            self.run("scancel", *job_ids)

    def jobs(self) -> dict[str, str]:
        """Return the state of every job that is queued or runs, by number."""
        lines = self.run("squeue", "--noheader", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def processes(self, job_id: str | None = None) -> list[psutil.Process]:
        """Return the processes of a job, or of all, zombies left out."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
                is_zombie = process.status() == psutil.STATUS_ZOMBIE
            except psutil.Error:
                continue
            job = environment.get("SLURM_JOB_ID")
            is_ours = environment.get("SLURM_CONF") == f"{self.folder}/slurm.conf"
            if is_ours and not is_zombie and job is not None and job_id in (None, job):
                found.append(process)
        return found

    def wait_until_empty(self, *, within: float = 60) -> None:
        wait_until(lambda: not self.jobs(), "the queue is empty", within=within)


@contextmanager
def started_slurm() -> Iterator[Slurm]:
    """Start a Slurm, found by SLURM_CONF in the environment; stop it, its jobs first."""
    missing = [name for name in (*_DAEMONS, "sbatch") if not shutil.which(name, path=_PLACES)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (Debian: munge slurmctld slurmd)")
    if os.getuid() != 0:
        pytest.skip("this Slurm is started by root alone")
    # Not one of pytest's: paths of sockets must be short.
    folder = Path(tempfile.mkdtemp(prefix="slurm_"))
    folder.chmod(0o755)  # or munged refuses it
    slurm = Slurm(folder)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        configuration = _configure(folder)
        stack.enter_context(_environment(SLURM_CONF=str(configuration)))
        _start(
            stack,
            *("munged", "--foreground", f"--key-file={folder}/munge.key"),
            *(f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid"),
            *(f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"),
        )
        wait_until((folder / "munge.socket").exists, "munged listens")
        _start(stack, "slurmctld", "-D", "-i", "-f", configuration)
        _start(stack, "slurmd", "-D", "-N", socket.gethostname(), "-f", configuration)
        wait_until(
            lambda: "idle" in _said("sinfo", "--noheader", "--format=%t"), "the node is idle"
        )
        # Jobs are not their daemon's to end.
        stack.callback(slurm.wait_until_empty)
        stack.callback(_said, "scancel", f"--user={getpass.getuser()}")
        yield slurm


def _configure(folder: Path) -> Path:
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(1024))
    host = socket.gethostname()
    try:
        is_loopback = socket.gethostbyname(host) == "127.0.0.1"
    except OSError:
        is_loopback = False
    # They listen where the host's name leads; if that is elsewhere, nothing would reach them.
    binding = "NoInAddrAny,NoCtldInAddrAny" if is_loopback else "NoAddrCache"
    ports = {"controller_port": _free_port(), "node_port": _free_port()}
    configuration = folder / "slurm.conf"
    configuration.write_text(
        _CONFIGURATION.format(
            folder=folder, host=host, user=getpass.getuser(), binding=binding, **ports
        )
    )
    return configuration


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _start(stack: ExitStack, name: str, *arguments: object) -> None:
    """Start a daemon as a child; end it when the stack is unwound."""
    program = shutil.which(name, path=_PLACES)
    process = subprocess.Popen(
        [program, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    stack.callback(_end, process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _said(*command: str) -> str:
    """Return what a command prints, whether or not it works."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except subprocess.TimeoutExpired:
        return ""


def wait_until(condition: Callable[[], object], what: str, *, within: float = 60) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.1)


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """Start a Slurm for the tests that ask for it, or skip them."""
    with started_slurm() as started:
        yield started
