"""Checks of a running scheduler's workers before the first case, given their answers."""

from __future__ import annotations

import importlib.resources
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import dask_slicer
from dask_slicer.cluster import local, probes, upload
from dask_slicer.cluster.client import SETTINGS, variable_of
from dask_slicer.cluster.preflight import (
    BETTER_SETTINGS,
    MUST_MATCH,
    SHOULD_MATCH,
    Preflight,
    Requirements,
    check_code,
    check_disks,
    check_settings,
    check_versions,
    check_workers,
)
from dask_slicer.cluster.preflight import run_preflight as check_of
from dask_slicer.errors import PreflightError

check = partial(check_of, module="dask_slicer.execution.tasks")

pytestmark = pytest.mark.versions

HERE = dict.fromkeys((*MUST_MATCH, *SHOULD_MATCH), "2.0.1") | {"python": "3.11.7"}
OWN = {"version": "0.1.0", "code": "abc", "fault": "", "process": "laptop 1"}
NEEDS = Requirements(
    output_dir=Path("/out"),
    temporary=".tmp",
    input_file="/scans/a.nii",
    least_bytes=300,
    most_bytes=900,
)
WORKER = "tcp://node1:38411"


def packages(**changes: str | None) -> dict[str, Any]:
    """Return versions like those here, but for some."""
    return {"packages": HERE | {"python": "3.11.9.final.0"} | changes}


def refused_versions(**there: Any) -> list[str]:
    findings = Preflight()
    check_versions(HERE, {"the scheduler": packages()} | there, findings)
    return findings.refusals


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"distributed": "1.9"}, "distributed is 2.0.1 here, 1.9 on 1 worker on node1; install the "
         "same version everywhere"),
        ({"python": "3.12.1.final.0"}, "Python is 3.11 here, 3.12 on 1 worker on node1; use the "
         "same version everywhere"),
        ({"isal": None}, "isal is missing on 1 worker on node1; install isal==2.0.1 there"),
    ],
)  # fmt: skip
def test_versions_that_graphs_or_results_would_break_on_are_refused(changes, said) -> None:
    assert refused_versions(**{WORKER: packages(**changes)}) == [said]


@pytest.mark.parametrize("changes", [{"numpy": "2.1"}, {"zarr": "3.2"}, {}])
def test_versions_that_may_change_a_digit_are_noted(changes) -> None:
    findings = Preflight()
    check_versions(HERE, {WORKER: packages(**changes)}, findings)
    assert findings.refusals == []
    assert findings.notes == [
        f"{name} is 2.0.1 here, {value} on 1 worker on node1: bytes or last digits of slices may "
        "differ"
        for name, value in changes.items()
    ]


def test_hosts_are_counted_and_the_scheduler_is_named() -> None:
    there = {f"tls://node{n % 2}:{n}": packages(dask="1") for n in range(5)}
    (line,) = refused_versions(**{"the scheduler": packages(dask="1")} | there)
    assert "1 on the scheduler, 3 workers on node0, 2 workers on node1;" in line


@pytest.mark.parametrize(
    ("raised", "said"),
    [(TimeoutError("no answer within 10 s"), "no answer within 10 s"),
     (ValueError("bad"), "ValueError: bad")],
)  # fmt: skip
def test_a_worker_that_does_not_answer_or_fails_is_named(raised, said) -> None:
    assert refused_versions(**{WORKER: raised}) == [
        f"1 worker on node1 cannot be used ({said}); stop or restart it"
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"version": "", "code": ""}, "dask_slicer is missing on 1 worker on node1; install "
         "dask_slicer==0.1.0 there, or add --upload_code"),
        ({"version": "0.0.9"}, "dask_slicer is 0.1.0 here, 0.0.9 on 1 worker on node1; install "
         "dask_slicer==0.1.0 there, or add --upload_code"),
        ({"code": "def"}, "dask_slicer 0.1.0 has other code on 1 worker on node1 than here; "
         "install dask_slicer==0.1.0 there, or add --upload_code"),
        ({"code": "", "fault": "ImportError:\n\nno libisal.so"}, "dask_slicer cannot be imported "
         "on 1 worker on node1 (ImportError: no libisal.so)"),
        ({"code": "", "fault": "ImportError: no dask_slicer.execution"}, "dask_slicer cannot be "
         "imported on 1 worker on node1 (ImportError: no dask_slicer.execution); install "
         "dask_slicer==0.1.0 there, or add --upload_code"),
    ],
    ids=["same", "missing", "other_version", "other_code", "broken", "other_modules"],
)  # fmt: skip
def test_workers_must_have_this_code(changes, said) -> None:
    findings = Preflight()
    check_code(OWN, {"the scheduler": OWN, WORKER: OWN | changes}, findings, uploaded=False)
    assert findings.refusals == ([] if said is None else [said])


def test_code_that_was_uploaded_is_not_uploaded_again() -> None:
    findings = Preflight()
    check_code(OWN, {WORKER: OWN | {"code": "def"}}, findings, uploaded=True)
    assert "--upload_code" not in findings.refusals[0]


def workers(**limits: int) -> dict[str, dict[str, Any]]:
    return {
        name: {"memory_limit": limit, "nthreads": 2, "nanny": "tcp://n:1"}
        for name, limit in limits.items()
    }


@pytest.mark.parametrize(
    ("infos", "refused", "noted"),
    [
        (workers(a=1800, b=2000), 0, 0),
        (workers(a=1800, b=600), 0, 1),  # memory counts for each thread
        (workers(a=500, b=590), 1, 0),
        (workers(a=500, b=0), 0, 1),  # 0: any amount
        (workers(a=0, b=0), 0, 0),
    ],
)
def test_memory_is_compared_with_the_smallest_and_the_largest_case(infos, refused, noted) -> None:
    findings = Preflight()
    check_workers(infos, NEEDS, findings)
    assert (len(findings.refusals), len(findings.notes)) == (refused, noted)


@pytest.mark.parametrize(("timeout", "noted"), [(None, 0), (5.0, 1)])
def test_a_case_can_be_stopped_only_where_there_is_a_nanny(timeout, noted) -> None:
    findings = Preflight()
    infos = {"tcp://a:1": {"memory_limit": 0, "nthreads": 1, "nanny": None}}
    check_workers(
        infos, Requirements(output_dir=Path("/out"), temporary="", timeout=timeout), findings
    )
    assert len(findings.notes) == noted
    assert all("1 worker without a nanny" in note for note in findings.notes)


LOOK = {"token": "x", "output_fault": "", "input_fault": ""}


@pytest.mark.parametrize(
    ("look", "said"),
    [
        (LOOK, []),
        (LOOK | {"output_fault": "another disk, at the same path"},
         ["1 worker on node1 cannot write to the same /out as this process "
         "(another disk, at the same path); the output must be on a disk that all workers share"]),
        (LOOK | {"output_fault": "Permission denied"},
         ["1 worker on node1 cannot write to the same /out as this process (permission denied); "
          "the output must be on a disk that all workers share"]),
        (LOOK | {"input_fault": "No such file or directory"},
         ["1 worker on node1 cannot read /scans/a.nii (no such file or directory); scans must be "
          "on a disk that all workers share"]),
        (TimeoutError("no answer within 10 s"), ["1 worker on node1 cannot be used (no answer "
         "within 10 s); stop or restart it"]),
    ],
    ids=["sound", "other_disk", "read_only", "no_scans", "silent"],
)  # fmt: skip
def test_a_disk_that_is_not_shared_is_refused(look, said) -> None:
    findings = Preflight()
    check_disks({WORKER: look, "tcp://node2:1": LOOK}, NEEDS, findings)
    assert findings.refusals == said


@pytest.mark.parametrize(
    ("saturation", "stealing", "failures", "said"),
    [
        (1.0, False, 3, ""),
        (1.0, "false", "5", ""),
        (1.1, True, 3, "other settings (worker-saturation, work-stealing), see docs/hpc"),
        (1.0, False, 0, "other settings (allowed-failures), see docs/hpc"),
    ],
)  # fmt: skip
def test_better_settings_for_the_scheduler_are_noted(saturation, stealing, failures, said) -> None:
    findings = Preflight()
    names = ("worker-saturation", "work-stealing", "allowed-failures")
    check_settings(dict(zip(names, (saturation, stealing, failures), strict=True)), findings)
    assert not findings.refusals
    assert (said in findings.notes[0]) if said else not findings.notes
    assert all(len(note) <= 120 for note in findings.notes)


def test_the_docs_have_the_better_settings_of_a_scheduler() -> None:
    text = (Path(__file__).parents[2] / "docs" / "hpc.md").read_text(encoding="utf-8")
    for name in (f"distributed.scheduler.{name}" for name in BETTER_SETTINGS):
        assert f"`{variable_of(name)}={SETTINGS[name]}`" in text


def test_a_process_describes_itself() -> None:
    found = probes.describe("dask_slicer.execution.tasks")
    assert found["fault"] == ""
    assert len(found["code"]) == 16
    assert found["version"]
    assert str(os.getpid()) in found["process"]


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """Return a copy of this package with modules in folders, which is taken for this package."""
    copy = tmp_path / "dask_slicer"
    shutil.copytree(Path(dask_slicer.__file__).parent, copy)
    (copy / "added" / "deep").mkdir(parents=True)
    (copy / "added" / "__init__.py").touch()
    (copy / "added" / "deep" / "__init__.py").touch()
    (copy / "added" / "deep" / "leaf.py").write_text("N = 1\n")
    monkeypatch.setattr(importlib.resources, "files", lambda name: copy)
    return copy


def test_an_archive_holds_every_module_and_the_files_that_they_read(package, tmp_path) -> None:
    upload.write_package(tmp_path / "sent.zip")
    with zipfile.ZipFile(tmp_path / "sent.zip") as archive:
        sent = {name: archive.read(name) for name in archive.namelist()}
    there = {
        path.relative_to(tmp_path).as_posix(): path.read_bytes()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "dask_slicer/added/deep/leaf.py" in there
    assert "dask_slicer/monitoring/run_page.html" in there
    assert {name for name in sent if ".dist-info/" not in name} == set(there)
    assert sent.items() >= there.items()


@pytest.mark.slow
def test_python_imports_every_module_from_an_archive(package, tmp_path) -> None:
    upload.write_package(tmp_path / "sent.zip")
    modules = sorted(
        ".".join(path.relative_to(tmp_path).with_suffix("").parts).removesuffix(".__init__")
        for path in package.rglob("*.py")
    )
    found = subprocess.run(
        [sys.executable, "-P", "-c", _IMPORT_ALL, tmp_path / "sent.zip", *modules],
        cwd=tmp_path.parent,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert len(found) == len(modules)
    assert all(file.startswith(str(tmp_path / "sent.zip")) for file in found)


_IMPORT_ALL = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    print(importlib.import_module(name).__file__)
"""


def test_an_archive_describes_itself_as_the_folder_that_it_was_made_of(
    package, tmp_path, monkeypatch
) -> None:
    own = probes.describe("dask_slicer.execution.tasks")
    upload.write_package(tmp_path / "sent.zip")
    sent = zipfile.Path(tmp_path / "sent.zip", "dask_slicer/")
    monkeypatch.setattr(importlib.resources, "files", lambda name: sent)
    assert probes.describe("dask_slicer.execution.tasks") == own


@pytest.mark.parametrize("file", ["errors.py", "added/__init__.py", "added/deep/leaf.py"])
def test_one_changed_line_in_any_folder_is_other_code(package, file) -> None:
    before = probes.describe("dask_slicer.execution.tasks")
    with (package / file).open("a") as module:
        module.write("# changed\n")
    after = probes.describe("dask_slicer.execution.tasks")
    assert after["fault"] == ""
    assert after["code"] != before["code"]


def test_a_module_in_another_folder_is_other_code(package) -> None:
    before = probes.describe("dask_slicer.execution.tasks")["code"]
    (package / "added" / "deep" / "leaf.py").rename(package / "added" / "leaf.py")
    assert probes.describe("dask_slicer.execution.tasks")["code"] != before


def test_neither_bytecode_nor_data_are_code(package) -> None:
    before = probes.describe("dask_slicer.execution.tasks")
    (package / "added" / "__pycache__").mkdir()
    (package / "added" / "__pycache__" / "leaf.py").touch()
    (package / "added" / "notes.txt").touch()
    assert probes.describe("dask_slicer.execution.tasks") == before


# -- on workers ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Return the client of workers that have settings of ours, and this code."""
    with local.local_client(2, memory_limit=2**30, dashboard_address="none") as found:
        yield found


def test_good_workers_give_no_notes_and_no_file_is_left_behind(client, tmp_path) -> None:
    notes: list[str] = []
    check(
        client,
        Requirements(output_dir=tmp_path, temporary=".tmp", input_file=__file__),
        notes.append,
        upload=False,
    )
    assert notes == []
    assert list(tmp_path.iterdir()) == []


def test_workers_started_on_demand_are_not_reported_missing(tmp_path) -> None:
    from distributed import Client, LocalCluster

    notes: list[str] = []
    with (
        LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as on_demand,
        Client(on_demand) as client,
    ):
        check(
            client,
            Requirements(output_dir=tmp_path, temporary=".tmp", least_bytes=2**40),
            notes.append,
            upload=False,
        )
    assert "no worker has started yet, so none could be checked" in notes


def test_workers_without_memory_for_any_case_are_refused(client, tmp_path) -> None:
    needs = Requirements(output_dir=tmp_path, temporary=".tmp", least_bytes=2**40, most_bytes=2**41)
    with pytest.raises(PreflightError, match=r"the smallest case needs 1.1 TB"):
        check(client, needs, print, upload=False)


def test_a_file_written_by_workers_must_be_visible_here(client, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda self: False)
    with pytest.raises(PreflightError, match="another disk, at the same path"):
        check(client, Requirements(output_dir=tmp_path, temporary=".tmp"), print, upload=False)


def test_no_code_is_uploaded_to_another_python_version(client, tmp_path, monkeypatch) -> None:
    def of_another_python(*args: object) -> dict[str, Any]:
        return {"the scheduler": packages(python="3.99.0.final.0")}

    monkeypatch.setattr("dask_slicer.cluster.rpc.versions", of_another_python)
    monkeypatch.setattr(
        "dask_slicer.cluster.rpc.send_by_value", lambda: pytest.fail("code was sent")
    )
    with pytest.raises(PreflightError, match=r"3\.99 on the scheduler"):
        check(client, Requirements(output_dir=tmp_path, temporary=".tmp"), print, upload=True)


def test_nothing_is_uploaded_to_the_same_process(client, tmp_path) -> None:
    notes: list[str] = []
    check(client, Requirements(output_dir=tmp_path, temporary=".tmp"), notes.append, upload=True)
    assert notes == [
        "--upload_code has no effect: the scheduler or a worker runs in this same process"
    ]
    assert not any("dask_slicer_code_" in path for path in sys.path)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="signals as on Linux")
def test_a_worker_that_is_frozen_is_named(tmp_path) -> None:
    with local.local_client(2, memory_limit=2**30, dashboard_address="none") as client:
        frozen, *_ = client.run(os.getpid).values()
        os.kill(frozen, signal.SIGSTOP)
        try:
            with pytest.raises(PreflightError, match=r"1 worker on 127\.0\.0\.1 cannot be used"):
                check(
                    client, Requirements(output_dir=tmp_path, temporary=".tmp"), print, upload=False
                )
        finally:
            os.kill(frozen, signal.SIGCONT)
