"""What is said of somebody's workers before the first case, from what they answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dask_slicer import probes
from dask_slicer.preflight import (
    PACKAGES,
    Findings,
    Needs,
    judge_disks,
    judge_settings,
    judge_versions,
    judge_workers,
)

HERE: dict[str, Any] = {
    "host": "laptop",
    "versions": dict.fromkeys(PACKAGES, "2.0.1") | {"python": "3.11.7"},
    "code": "abc",
    "fault": "",
}
NEEDS = Needs(output_dir=Path("/out"), input_file="/scans/a.nii", least_bytes=300, most_bytes=900)


def there(**changes: Any) -> dict[str, Any]:
    """Return what a process answers that is like this one but for some packages, or else."""
    versions = {name: value for name, value in changes.items() if name in HERE["versions"]}
    rest = {name: value for name, value in changes.items() if name not in versions}
    return HERE | {"host": "node1", "versions": HERE["versions"] | versions} | rest


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dask_slicer": None}, "dask_slicer is missing on 1 worker on node1; install dask_slicer=="
         "2.0.1 there, or add --upload_code"),
        ({"dask_slicer": "2.0.0"}, "dask_slicer is 2.0.1 here, 2.0.0 on 1 worker on node1; install "
         "dask_slicer==2.0.1 there, or add --upload_code"),
        ({"code": "def"}, "dask_slicer 2.0.1 has other code on 1 worker on node1 than here"),
        ({"code": "", "fault": "ImportError: libisal.so"}, "dask_slicer cannot be imported on "
         "1 worker on node1 (ImportError: libisal.so)"),
        ({"distributed": "1.9"}, "distributed is 2.0.1 here, 1.9 on 1 worker on node1; install the "
         "same version in all places"),
        ({"python": "3.12.1"}, "Python is 3.11.7 here, 3.12.1 on 1 worker on node1; use Python 3.11"
         " in all places"),
        ({"isal": None}, "isal is missing on 1 worker on node1; install isal==2.0.1 there"),
    ],
)  # fmt: skip
def test_what_graphs_or_results_would_break_on_is_refused(changes, said) -> None:
    findings = Findings()
    found = {"the scheduler": there(), "worker tcp://a:1": there(**changes)}
    judge_versions(HERE, found, findings, uploaded=False)
    assert len(findings.refusals) == 1
    assert findings.refusals[0].startswith(said)


@pytest.mark.parametrize("changes", [{"numpy": "2.1"}, {"zarr": "3.2"}, {"python": "3.11.9"}])
def test_what_may_change_a_digit_is_told_or_passed_over(changes) -> None:
    findings = Findings()
    judge_versions(HERE, {"worker a": there(**changes)}, findings, uploaded=False)
    assert findings.refusals == []
    assert findings.notes == [
        f"{name} is 2.0.1 here, {value} on 1 worker on node1: digits or bytes may differ"
        for name, value in changes.items()
        if name != "python"
    ]


def test_hosts_are_counted_and_the_scheduler_is_named() -> None:
    findings = Findings()
    found = {
        "the scheduler": there(dask="1"),
        **{f"worker tcp://{n}": there(dask="1", host=f"node{n % 2}") for n in range(5)},
    }
    judge_versions(HERE, found, findings, uploaded=False)
    (line,) = findings.refusals
    assert "1 on the scheduler, 3 workers on node0, 2 workers on node1;" in line


def test_a_worker_that_does_not_answer_is_named() -> None:
    findings = Findings()
    judge_versions(HERE, {"worker tcp://a:1": TimeoutError("none")}, findings, uploaded=False)
    assert findings.refusals == [
        "no answer from worker tcp://a:1; remove or restart what hangs",
    ]


def test_what_was_sent_is_not_to_be_sent_again() -> None:
    findings = Findings()
    judge_versions(HERE, {"worker a": there(code="def")}, findings, uploaded=True)
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
def test_memory_is_held_against_the_smallest_and_the_largest_case(infos, refused, noted) -> None:
    findings = Findings()
    judge_workers(infos, NEEDS, findings)
    assert (len(findings.refusals), len(findings.notes)) == (refused, noted)


@pytest.mark.parametrize(("timeout", "noted"), [(None, 0), (5.0, 1)])
def test_a_case_can_be_stopped_only_where_there_is_a_nanny(timeout, noted) -> None:
    findings = Findings()
    infos = {"tcp://a:1": {"memory_limit": 0, "nthreads": 1, "nanny": None}}
    judge_workers(infos, Needs(output_dir=Path("/out"), timeout=timeout), findings)
    assert len(findings.notes) == noted
    assert all("1 worker without a nanny" in note for note in findings.notes)


LOOK = {"token": "x", "seen": "yes", "output_fault": "", "input_fault": ""}


@pytest.mark.parametrize(
    ("look", "said"),
    [
        (LOOK, []),
        (LOOK | {"seen": ""}, ["tcp://a:1 cannot write to /out as it is here (another disk, at the "
         "same path); the output must be on a disk that all workers share"]),
        (LOOK | {"seen": "", "output_fault": "Permission denied"},
         ["tcp://a:1 cannot write to /out as it is here (permission denied)"]),
        (LOOK | {"input_fault": "No such file or directory"},
         ["tcp://a:1 cannot read /scans/a.nii (no such file or directory); the scans must be on"]),
        (TimeoutError("none within 30 s"), ["tcp://a:1 cannot write to /out as it is here (no "
         "answer: none within 30 s)"]),
    ],
    ids=["sound", "other_disk", "read_only", "no_scans", "silent"],
)  # fmt: skip
def test_a_disk_that_is_not_shared_is_refused(look, said) -> None:
    findings = Findings()
    judge_disks({"tcp://a:1": look, "tcp://b:1": LOOK}, NEEDS, findings)
    assert len(findings.refusals) == len(said)
    assert all(line.startswith(start) for line, start in zip(findings.refusals, said, strict=True))


@pytest.mark.parametrize(
    ("saturation", "stealing", "failures", "said"),
    [
        (1.0, False, 3, ""),
        (1.0, "false", "5", ""),
        (1.1, True, 3, "DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION=1.0 "
         "DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING=False it holds"),
        (1.0, False, 0, "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=3"),
    ],
)  # fmt: skip
def test_a_scheduler_is_told_how_it_would_better_have_been_started(
    saturation, stealing, failures, said
) -> None:
    findings = Findings()
    names = ("worker-saturation", "work-stealing", "allowed-failures")
    settings = zip(names, (saturation, stealing, failures), strict=True)
    judge_settings({f"distributed.scheduler.{name}": value for name, value in settings}, findings)
    assert not findings.refusals
    assert (said in findings.notes[0]) if said else not findings.notes


def test_a_process_describes_itself() -> None:
    found = probes.describe(PACKAGES)
    assert found["fault"] == ""
    assert len(found["code"]) == 16
    assert None not in found["versions"].values()
    assert probes.describe(["no_such_package"])["versions"]["no_such_package"] is None
