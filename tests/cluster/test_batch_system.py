"""What batch systems print of their jobs."""

from __future__ import annotations

import pytest

from dask_slicer.cluster.batch_system import SYSTEMS, error_text, lifetime, listed_jobs
from dask_slicer.config.run_settings import JobSettings


@pytest.fixture(autouse=True)
def _no_settings_of_a_site(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LSF_ENVDIR", "LSF_CONFDIR", "PBS_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"walltime": "01:00:00"}, (3240, 0)),
        ({"walltime": "00:01:00"}, (30, 0)),
        ({"walltime": "1-00:00:00", "jobs": 8}, (85800, 300)),
        ({"walltime": "01:00:00", "jobs": 2}, (3240, 180)),
        ({"walltime": "00:05:00", "jobs": 2}, (240, 24)),
        ({"walltime": "00:01:00", "jobs": 2}, (30, 3)),
        ({"walltime": "2-00:00:00", "jobs": 2}, (172200, 300)),
        ({"walltime": "01:00:00", "jobs": 2, "lifetime": 3598}, (3598, 1)),
    ],
)
def test_workers_end_before_their_job_would_be_ended(settings, expected) -> None:
    assert lifetime(JobSettings(**settings)) == expected


SAID = {
    "slurm": "101 R None\n102 PD Resources\n103 PD (ReqNodeNotAvail, UnavailableNodes:n1)\n"
    "104 CG None\n105 CA None\n106 CF None\n",
    "pbs": "\nserver:\n"
    "                                                            Req'd  Req'd   Elap\n"
    "Job ID          Username Queue    Jobname    SessID NDS TSK Memory Time  S Time\n"
    "--------------- -------- -------- ---------- ------ --- --- ------ ----- - -----\n"
    "101.server      me       workq    dask-slice   1234   1   1    4gb 01:00 R 00:01\n"
    "102.server      me       workq    dask-slice    --    1   1    4gb 01:00 Q   -- \n"
    "103.server      me       workq    dask-slice    --    1   1    4gb 01:00 H   -- \n"
    "104.server      me       workq    dask-slice   1235   1   1    4gb 01:00 E 00:02\n"
    "105.server      me       workq    dask-slice   1236   1   1    4gb 01:00 C 00:02\n",
    "sge": "job-ID  prior   name       user  state submit/start at     queue   slots ja-task-ID\n"
    "-----------------------------------------------------------------------------------\n"
    "    101 0.55500 dask-slice me    r     11/25/2026 15:00:00 all.q@n1    1\n"
    "    102 0.00000 dask-slice me    qw    11/25/2026 15:00:01             1\n"
    "    103 0.00000 dask-slice me    hqw   11/25/2026 15:00:01             1\n"
    "    104 0.55500 dask-slice me    dr    11/25/2026 15:00:00 all.q@n1    1\n"
    "    105 0.00000 dask-slice me    Eqw   11/25/2026 15:00:01             1\n",
    "lsf": "101 RUN\n102 PEND\n103 PSUSP\n104 USUSP\n105 EXIT\n",
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_listing_says_which_jobs_are_queued_and_which_run(system: str) -> None:
    found = listed_jobs(SYSTEMS[system], SAID[system])
    assert [job for job, one in found.items() if one.is_queued] == ["102", "103"]
    running = [job for job, one in found.items() if not one.is_queued]
    assert running == ["101", "104", *(["106"] if system == "slurm" else [])]
    if system == "slurm":
        assert found["102"].reason == "Resources"
        assert found["103"].reason == "(ReqNodeNotAvail, UnavailableNodes:n1)"


@pytest.mark.parametrize(
    ("stdout", "stderr", "words"),
    [
        (
            "",
            "sbatch: error: invalid partition: x\nsbatch: error: no\n",
            "invalid partition: x; no",
        ),
        ("", "qsub: Unknown queue\n", "Unknown queue"),
        ("", "sbatch: error: no queue\nsbatch: error: failed\n", "no queue; failed"),
        ("Request aborted by esub.\n", "", "Request aborted by esub."),
    ],
)
def test_a_refusal_quotes_the_words_of_the_batch_system(stdout, stderr, words) -> None:
    said = f"Command exited\nExit code: 1\nCommand:\nx\nstdout:\n{stdout}\nstderr:\n{stderr}\n"
    assert error_text(RuntimeError(said)) == words
