"""How records look in a notebook: everything escaped, long lists cut, no colour of their own."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dask_slicer.config.schema import RunConfig
from dask_slicer.inputs.case import Case
from dask_slicer.monitoring.notebook import RunProgress
from dask_slicer.monitoring.observer import RunReport
from dask_slicer.planning.plan import CasePlan, RunPlan
from dask_slicer.records import FailedCase

EVIL = "<script>alert('x')</script>&"


def case_plan(case_id: str = EVIL, *, problem: FailedCase | None = None) -> CasePlan:
    return CasePlan(
        case=Case(case_id=case_id, images=(f"/{EVIL}.nii",), label=f"/{EVIL}_label.nii"),
        split="train",
        group=EVIL + "p",
        shape=(40, 64, 72),
        spacing=(6.0, 4.0, 4.0),
        orientation="LPS",
        dtypes=(EVIL,),
        problem=problem,
    )


def failure(case_id: str = EVIL) -> FailedCase:
    return FailedCase(case_id=case_id, step="load", kind="CorruptFile", message=EVIL)


def plan(n_cases: int = 3) -> RunPlan:
    cases = tuple(case_plan(f"{EVIL}{number}") for number in range(n_cases))
    return RunPlan(
        config=RunConfig(input_dir=f"/{EVIL}", output_dir=f"/{EVIL}2"),
        layout=EVIL,
        reason=EVIL,
        cases=(*cases, case_plan("bad", problem=failure())),
        splits={"train": [], EVIL: []},
        notes=(EVIL,),
        problems=(EVIL,),
    )


def report(n_failed: int = 1) -> RunReport:
    return RunReport(
        output_dir=EVIL,
        n_committed=2,
        n_skipped=1,
        n_slices=80,
        n_bytes=1_000_000,
        remaining=n_failed,
        failures=tuple(failure(f"{EVIL}{number}") for number in range(n_failed)),
        elapsed_seconds=2.0,
        share="1/3",
        stopped=EVIL,
    )


def progress(n_failed: int = 1) -> RunProgress:
    shown = RunProgress(EVIL)
    shown.connected(EVIL, dashboard=f'http://a/"onclick="{EVIL}')
    shown.planned(plan(), todo=plan().cases, skipped=1)
    shown.note(EVIL)
    for one in report(n_failed).failures:
        shown.case_finished(one)
    return shown


def html_of(shown: object) -> str:
    return shown.html() if isinstance(shown, RunProgress) else shown._repr_html_()


RECORDS = [
    pytest.param(case_plan(), id="planned case"),
    pytest.param(case_plan(problem=failure()), id="planned case with a problem"),
    pytest.param(plan(), id="plan"),
    pytest.param(report(), id="report"),
    pytest.param(replace(report(), interrupted=True), id="interrupted"),
    pytest.param(
        RunConfig(input_dir=f"/{EVIL}", output_dir="/o", group_regex=f"({EVIL})"), id="config"
    ),
    pytest.param(progress(), id="progress"),
]


class Strict(HTMLParser):
    """Keeps what is open, and what has been seen."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag, attrs) -> None:
        self.open.append(tag)
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("record", RECORDS)
def test_html_is_complete_and_escaped(record) -> None:
    parser = Strict()
    parser.feed(html_of(record))
    parser.close()
    assert not parser.open
    assert "script" not in parser.seen
    assert not [name for name in parser.attributes if name.startswith("on")]
    assert "&lt;script&gt;" in html_of(record)


@pytest.mark.parametrize("record", RECORDS)
def test_html_names_no_colour(record) -> None:
    styles = re.findall(r'style="([^"]*)"', html_of(record))
    assert not [one for one in styles if re.search(r"#[0-9a-f]{3}|rgb|white|black", one)]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        pytest.param(plan(1000), "… and 980 more cases", id="plan"),
        pytest.param(report(1000), "… and 980 more failed cases", id="report"),
        pytest.param(progress(1000), "… and 990 more failed cases", id="progress"),
        pytest.param(
            CasePlan(case=Case(case_id="a", images=tuple(map(str, range(100))))),
            "… and 80 more images",
            id="planned case",
        ),
    ],
)
def test_a_long_list_is_cut_and_says_so(record, said) -> None:
    assert said in html_of(record)
    assert html_of(record).count("<tr>") < 60


def test_a_configuration_shows_what_was_changed_before_what_was_not() -> None:
    shown = RunConfig(input_dir="/i", output_dir="/o", plane="coronal")._repr_html_()
    changed, _, rest = shown.partition("<details>")
    assert "coronal" in changed
    assert "padding_mode" not in changed
    assert "padding_mode" in rest
    assert str(Path("/i")) in changed


def test_the_dashboard_is_linked_only_where_it_is_a_page() -> None:
    shown = RunProgress("out")
    shown.connected("here", dashboard="javascript:alert(1)")
    assert "<a " not in shown.html()
    shown.connected("here", dashboard="http://127.0.0.1:8787/status")
    assert '<a href="http://127.0.0.1:8787/status"' in shown.html()


def test_plan_and_report_are_short_where_there_is_no_html() -> None:
    report = RunReport(
        output_dir="out", n_committed=3, n_skipped=2, n_slices=40, n_bytes=1, remaining=1,
        failures=(), elapsed_seconds=1.0, interrupted=True,
    )  # fmt: skip
    assert repr(report) == (
        "RunReport(40 slices of 3 cases written, 2 skipped, 1 remaining, interrupted, to 'out')"
    )
    assert repr(plan(3)).startswith("RunPlan(4 cases, 1 case cannot be run, 120 axial slices, to ")
    assert len(repr(plan(1000))) < 200


def test_the_block_describes_the_tunnel_and_links_the_run_page(
    monkeypatch,
) -> None:
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/me/")
    shown = RunProgress("out")
    server = "http://127.0.0.1:8787"
    shown.connected("here", dashboard=f"{server}/status", run_page=f"{server}/dask-slicer")
    assert "/user/me/proxy/8787/status" in shown.html()
    assert '<a href="/user/me/proxy/8787/status"' in shown.html()
    assert '<a href="/user/me/proxy/8787/dask-slicer"' in shown.html()
