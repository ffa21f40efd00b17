"""A scheduler that already runs: the same bytes, also over TLS, and refusals before any case."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

import dask_slicer
from dask_slicer.execution import tasks
from dask_slicer.inputs.phantom import write_dataset

N_CASES = 6
# The settings that preflight wants of a scheduler.
SETTINGS = {
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION": "1.0",
    "DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING": "False",
}
# Makes a process believe that this package is not installed, or another version, until it is sent.
WITHOUT_PACKAGE = """
import importlib.metadata, os, sys
wanted = os.environ["PRETENDED_VERSION"]
def is_sent():
    return any("dask_slicer_code_" in path for path in sys.path)
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "dask_slicer" and not wanted and not is_sent():
            raise ModuleNotFoundError("No module named 'dask_slicer'")
sys.meta_path.insert(0, Missing())
version_of = importlib.metadata.version
def version(name):
    if name != "dask_slicer" or is_sent():
        return version_of(name)
    if not wanted:
        raise importlib.metadata.PackageNotFoundError(name)
    return wanted
importlib.metadata.version = version
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "scans"
    write_dataset(root, n_cases=N_CASES, shape=(24, 22, 9), seed=5)
    return root


@pytest.fixture(scope="module")
def written_here(scans, tmp_path_factory) -> Callable[[str], dict[str, bytes]]:
    """Return what a run in this process writes, by format."""
    outputs = {}
    for format_ in ("npz", "zarr"):
        outputs[format_] = tmp_path_factory.mktemp("here") / "slices"
        dask_slicer.run(
            dask_slicer.RunConfig(
                input_dir=scans, output_dir=outputs[format_], num_workers=0, format=format_
            )
        )
    return lambda format_: contents(outputs[format_])


def contents(output: Path) -> dict[str, bytes]:
    not_compared = {"dataset_info.json", "journal.jsonl", "config.yaml"}
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and path.name not in not_compared
    }


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Callable[[str], list[object]]:
    """Return a function that makes options of Dask's commands of an authority's files."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("ours", "foreign"):
        authority = trustme.CA()
        issued = authority.issue_cert("localhost", "127.0.0.1")
        authority.cert_pem.write_to_path(folder / f"{name}_ca.pem")
        issued.private_key_pem.write_to_path(folder / f"{name}_key.pem")
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}_cert.pem")
    return lambda name: [folder / f"{name}_{kind}.pem" for kind in ("ca", "cert", "key")]


def named(names: list[str], values: list[object]) -> list[object]:
    return [part for pair in zip(names, values, strict=True) for part in pair]


def of_dask(files: list[object]) -> list[object]:
    return named(["--tls-ca-file", "--tls-cert", "--tls-key"], files)


def of_ours(files: list[object]) -> list[object]:
    return named(["--tls_ca", "--tls_cert", "--tls_key"], files)


@pytest.fixture
def run(scans, tmp_path, invoke):
    """Return a function that runs the command on a scheduler, into tmp_path/slices."""

    def call(*options: object, output: Path = tmp_path / "slices"):
        return invoke(
            *("run", "--input_dir", scans, "--output_dir", output, "--dashboard_address", "none"),
            *options,
        )

    return call


def refused(result, *said: str) -> None:
    """Hold a result against a refusal of one line for each finding, before any case."""
    assert result.exit_code == 1, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == len(said), result.stderr
    for line, words in zip(lines, said, strict=True):
        assert line.startswith("Error: ")
        assert words in line
    assert "Run:" not in result.stdout


# -- the same bytes --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_workers(started_scheduler, tmp_path_factory) -> Iterator[Any]:
    """Start a scheduler with two workers that several runs share."""
    from distributed import Client

    folder = tmp_path_factory.mktemp("two_workers")
    with started_scheduler(folder, n_workers=2, everywhere=SETTINGS) as started:
        with Client(started.address, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=120)
        yield started


@pytest.mark.parametrize("format_", ["npz", "zarr"])
@pytest.mark.parametrize("where", ["address", "file", "env"])
def test_the_same_bytes_as_in_this_process(
    run, written_here, two_workers, tmp_path, monkeypatch, format_, where
) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", two_workers.address)
    chosen = {
        "address": ["--scheduler", two_workers.address],
        "file": ["--scheduler_file", two_workers.file],
        "env": ["--scheduler", "env"],
    }[where]
    result = run(*chosen, "--format", format_, "--wait_workers", 2)
    assert result.exit_code == 0, result.output
    assert two_workers.process.poll() is None
    assert f"on 2 threads of {two_workers.address}" in result.stdout
    assert "it then gives a worker one volume at a time" not in result.stdout
    assert contents(tmp_path / "slices") == written_here(format_)


def test_the_same_bytes_over_tls(
    run, invoke, written_here, started_scheduler, certificates, tmp_path
) -> None:
    ours, foreign = certificates("ours"), certificates("foreign")
    with started_scheduler(tmp_path, n_workers=2, options=of_dask(ours)) as started:
        assert started.address.startswith("tls://")
        result = run("--scheduler", started.address, *of_ours(ours))
        assert result.exit_code == 0, result.output
        assert "works better with other settings (worker-saturation" in result.stdout
        assert contents(tmp_path / "slices") == written_here("npz")
        verified = invoke("verify", tmp_path / "slices", "--scheduler", started.address,
                          *of_ours(ours))  # fmt: skip
        assert verified.exit_code == 0, verified.output
        other = tmp_path / "other"
        plain = started.address.replace("tls", "tcp", 1)
        refused(run("--scheduler", plain, output=other), "uses TLS: give tls://")
        refused(
            run("--scheduler", started.address, *of_ours(foreign), output=other),
            "its certificate cannot be verified with --tls_ca",
        )
        refused(
            run("--scheduler", started.address, *of_ours([ours[0], *foreign[1:]]), output=other),
            "the certificate of --tls_cert",
        )
        result = run("--scheduler", started.address, output=other)
        assert result.exit_code == 2
        assert "needs tls_ca, tls_cert and tls_key" in result.stderr
    assert not other.exists()


# -- workers ---------------------------------------------------------------------------------------


def test_a_run_waits_for_workers_until_a_timeout(run, started_scheduler, tmp_path) -> None:
    with started_scheduler(tmp_path, n_workers=0) as started:
        result = run("--scheduler", started.address, "--wait_timeout", 1)
    assert "waiting for workers: 0 of 1" in result.stdout
    refused(result, "has 0 of 1 workers after 1 s; start some with `dask worker tcp://")


def test_fewer_workers_than_asked_for_are_not_enough(run, two_workers) -> None:
    result = run("--scheduler", two_workers.address, "--wait_workers", 3, "--wait_timeout", 1)
    refused(result, "has 2 of 3 workers after 1 s")


@pytest.mark.skipif(sys.platform != "linux", reason="signals as on Linux")
def test_a_scheduler_that_is_frozen_is_one_line(run, started_scheduler, tmp_path) -> None:
    with started_scheduler(tmp_path, n_workers=1) as started:
        started.process.send_signal(signal.SIGSTOP)
        try:
            result = run("--scheduler", started.address)
        finally:
            started.process.send_signal(signal.SIGCONT)
    refused(result, "has sent nothing for 10 s: a Dask scheduler that is stopped")


def test_no_code_is_uploaded_while_the_scheduler_has_tasks(
    run, started_scheduler, pretending, tmp_path
) -> None:
    from distributed import Client

    with (
        started_scheduler(tmp_path, n_workers=1, everywhere=pretending("")) as started,
        Client(started.address) as other,
    ):
        held = other.submit(int, 7)
        assert held.result() == 7
        result = run("--scheduler", started.address, "--upload_code")
        refused(result, "would replace dask_slicer while the scheduler has 1 task;")


def test_workers_that_join_later_are_used(run, started_scheduler, written_here, tmp_path) -> None:
    with started_scheduler(tmp_path, n_workers=0) as started:
        late: list[subprocess.Popen[bytes]] = []

        def start() -> None:
            time.sleep(1.5)
            command = [
                *(sys.executable, "-m", "distributed.cli.dask_worker", started.address),
                *("--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard"),
                *("--dashboard-address", "127.0.0.1:0"),
            ]
            late.append(subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL))

        starter = threading.Thread(target=start)
        starter.start()
        try:
            result = run("--scheduler", started.address)
        finally:
            starter.join()
            late[0].terminate()
            late[0].wait(30)
    assert result.exit_code == 0, result.output
    assert contents(tmp_path / "slices") == written_here("npz")


@pytest.fixture
def pretending(tmp_path) -> Callable[[str], dict[str, str]]:
    """Return a function that returns the environment of a process with another version of us."""
    (tmp_path / "pretending").mkdir()
    (tmp_path / "pretending" / "sitecustomize.py").write_text(WITHOUT_PACKAGE)
    path = os.pathsep.join(
        filter(None, [str(tmp_path / "pretending"), os.environ.get("PYTHONPATH")])
    )
    return lambda version: {"PYTHONPATH": path, "PRETENDED_VERSION": version}


def test_workers_without_this_package_are_refused_unless_code_is_uploaded(
    run, started_scheduler, written_here, pretending, tmp_path
) -> None:
    with started_scheduler(tmp_path, n_workers=2, everywhere=pretending("")) as started:
        chosen = ("--scheduler", started.address, "--wait_workers", 2)
        refused(run(*chosen), "dask_slicer is missing on the scheduler, 2 workers on ")
        result = run(*chosen, "--upload_code", output=tmp_path / "sent")
        assert result.exit_code == 0, result.output
        assert contents(tmp_path / "sent") == written_here("npz")
        # Restarted workers have it too, so it need not be sent again.
        _restart_workers(started.address)
        result = run(*chosen, output=tmp_path / "again")
        assert result.exit_code == 0, result.output
    assert contents(tmp_path / "again") == written_here("npz")


def _restart_workers(address: str) -> None:
    from distributed import Client

    with Client(address) as client:
        client.restart_workers(sorted(client.nthreads()))


def test_workers_with_another_version_are_refused(
    run, started_scheduler, pretending, tmp_path
) -> None:
    with started_scheduler(tmp_path, n_workers=1, **pretending("0.0.9")) as started:
        refused(
            run("--scheduler", started.address),
            f"dask_slicer is {dask_slicer.__version__} here, 0.0.9 on 1 worker on ",
        )


# -- modules in folders ----------------------------------------------------------------------------


@pytest.fixture
def copied_package(tmp_path) -> Callable[[str], dict[str, str]]:
    """Return a function that makes a copy of this package whose tasks need a module in a folder.

    Of its name and the line that the module ends with; returns the environment of a process that
    has this copy.
    """

    def copy(name: str, line: str) -> dict[str, str]:
        package = tmp_path / name / "dask_slicer"
        own = Path(dask_slicer.__file__).parent
        shutil.copytree(own, package, ignore=shutil.ignore_patterns("__pycache__"))
        deep = package / "added" / "deep"
        deep.mkdir(parents=True)
        (deep.parent / "__init__.py").touch()
        (deep / "__init__.py").touch()
        (deep / "leaf.py").write_text(f"N = 7\n{line}\n")
        with (package / Path(tasks.__file__).relative_to(own)).open("a") as module:
            module.write("from dask_slicer.added.deep.leaf import N  # noqa\nassert N == 7\n")
        path = os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")])
        return {"PYTHONPATH": path.rstrip(os.pathsep), "PYTHONSAFEPATH": "1"}

    return copy


@pytest.fixture
def run_with(scans, tmp_path):
    """Return a function that runs the command of a copy on a scheduler."""

    def call(
        environment: dict[str, str], output: str, *options: object
    ) -> subprocess.CompletedProcess[str]:
        command = [
            *(sys.executable, "-m", "dask_slicer", "run", "--input_dir", scans),
            *("--output_dir", tmp_path / output, "--dashboard_address", "none", *options),
        ]
        return subprocess.run(
            [str(part) for part in command],
            env=os.environ | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return call


def test_a_package_with_subfolders_is_uploaded_whole(
    run_with, copied_package, started_scheduler, written_here, pretending, tmp_path
) -> None:
    ours = copied_package("ours", "")
    without = pretending("") | {"PYTHONSAFEPATH": "1"}
    with started_scheduler(tmp_path, n_workers=2, everywhere=without) as started:
        chosen = ("--scheduler", started.address, "--wait_workers", 2)
        sent = run_with(ours, "sent", *chosen, "--upload_code")
        assert sent.returncode == 0, sent.stderr
        files = _files_of_workers(started.address, "dask_slicer.added.deep.leaf")
        # Workers that are started later have it too.
        _restart_workers(started.address)
        again = run_with(ours, "again", *chosen)
        assert again.returncode == 0, again.stderr
        files += _files_of_workers(started.address, "dask_slicer.added.deep.leaf")
    assert len(files) == 4
    assert all("dask_slicer_code_" in file for file in files), files
    assert contents(tmp_path / "sent") == contents(tmp_path / "again") == written_here("npz")


def test_workers_with_other_code_in_a_subfolder_are_refused_unless_code_is_uploaded(
    run_with, copied_package, started_scheduler, written_here, tmp_path
) -> None:
    ours, theirs = copied_package("ours", "A = 1"), copied_package("theirs", "A = 2")
    with started_scheduler(tmp_path, n_workers=1, everywhere=ours, **theirs) as started:
        chosen = ("--scheduler", started.address)
        other = run_with(ours, "other", *chosen)
        assert other.returncode == 1
        assert "has other code on 1 worker on 127.0.0.1 than here" in other.stderr
        assert not (tmp_path / "other").exists()
        sent = run_with(ours, "sent", *chosen, "--upload_code")
        assert sent.returncode == 0, sent.stderr
        (file,) = _files_of_workers(started.address, "dask_slicer.added.deep.leaf")
    assert "dask_slicer_code_" in file
    assert contents(tmp_path / "sent") == written_here("npz")


def _files_of_workers(address: str, module: str) -> list[str]:
    """Return where each worker has imported a module from; nothing where it has not."""
    from distributed import Client

    with Client(address) as client:
        found = client.run(lambda: getattr(sys.modules.get(module), "__file__", ""))
    return list(found.values())


# -- disks -----------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="other hosts are made of mount namespaces")
@pytest.mark.parametrize(
    ("hidden", "said"),
    [
        ("slices", ["cannot write to", "the output must be on a disk that all workers share"]),
        ("scans", ["cannot read", "scans must be on a disk that all workers share"]),
    ],
)
def test_hosts_that_do_not_share_a_disk_are_refused_before_any_case(
    run, scans, started_scheduler, tmp_path, hidden, said
) -> None:
    folder = tmp_path / "slices" if hidden == "slices" else scans
    folder.mkdir(exist_ok=True)
    elsewhere = (
        *("unshare", "--mount", "sh", "-c"),
        f'mount -t tmpfs tmpfs "{folder}" && exec "$0" "$@"',
    )
    if subprocess.run([*elsewhere, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user cannot make a mount namespace")
    with started_scheduler(tmp_path, n_workers=2, host_of_workers=elsewhere) as started:
        result = run("--scheduler", started.address, "--wait_workers", 2)
    refused(result, said[0])
    assert said[1] in result.stderr
    assert str(folder) in result.stderr
    assert not (tmp_path / "slices" / "journal.jsonl").exists()
    assert not list((tmp_path / "slices").glob(".dask_slicer*"))
