"""What Python code calls: `plan`, `run` and `submit` with each kind of argument, and in vain."""

from __future__ import annotations

import inspect
import logging
import pydoc
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import dask_slicer as ds
from dask_slicer.errors import ConfigError, OutputError, UsageError
from dask_slicer.execution import pipeline
from dask_slicer.inputs.phantom import write_dataset
from dask_slicer.monitoring.observer import Observer

pytestmark = pytest.mark.versions

NEVER = 240.0


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scans")
    write_dataset(root, n_cases=6, shape=(16, 14, 8))
    return root


@pytest.fixture
def places(scans: Path, tmp_path: Path) -> dict[str, object]:
    """Return settings that say where from and where to; in this process, which is quickest."""
    return {"input_dir": scans, "output_dir": tmp_path / "slices", "num_workers": 0}


@pytest.fixture
def local_client():
    """Return a client of workers in this process, which is the default client meanwhile."""
    distributed = pytest.importorskip("distributed")
    with distributed.Client(
        processes=False, n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as client:
        yield client


class Listener(Observer):
    """Keeps where a run ran; waits after its first case for as long as it is told to."""

    def __init__(self) -> None:
        self.where = ""

    def connected(self, where: str, **_: str) -> None:
        self.where = where


def as_config(places):
    return ds.RunConfig(**places), {}


def as_mapping(places):
    return places, {}


def as_settings(places):
    return None, places


def as_plan(places):
    return ds.plan(**places), {}


def as_name(places):
    return "ct_abdomen", places


def as_path(places):
    path = places["output_dir"].with_name("mine.yaml")
    path.write_text(f"input_dir: {places['input_dir']}\nplane: coronal\n")
    return path, {name: places[name] for name in ("output_dir", "num_workers")}


@pytest.mark.parametrize(
    "given",
    [as_config, as_mapping, as_settings, as_plan, as_name, as_path],
    ids=lambda f: f.__name__,
)
def test_plan_run_and_submit_take_every_kind_of_configuration(places, given) -> None:
    config, settings = given(places)
    plan = ds.plan(config, **settings)
    assert len(plan.cases) == 6
    report = ds.run(config, **settings, progress=False)
    assert (report.n_committed, report.n_slices) == (6, plan.n_slices)
    again = ds.submit(config, **settings).result(NEVER)
    assert (again.n_committed, again.n_skipped) == (0, 6)


def test_the_names_of_the_package_are_listed_and_loaded_on_first_use() -> None:
    program = """
import sys, dask_slicer as ds
assert "numpy" not in sys.modules and "pydantic" not in sys.modules
assert ds.run and "nibabel" not in sys.modules
for name in dir(ds):
    value = getattr(ds, name)
    assert vars(ds).get(name, value) is value
assert set(dir(ds)) - {"__version__"} <= set(vars(ds))
assert ds.run.__module__ == "dask_slicer.api"
assert ds.run.__doc__.startswith("Make slices")
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_help_on_settings_starts_with_their_names_defaults_and_meanings() -> None:
    text = pydoc.plain(pydoc.render_doc(ds.RunConfig))
    signature, _, described = text.partition("Parameters\n")
    shown = str(inspect.signature(ds.RunConfig))
    assert shown.startswith("(*, input_dir, output_dir, include_test=False, only=(), plane='axial'")
    assert "Annotated" not in signature
    settings = described.partition("Examples\n")[0]
    for name, field in ds.RunConfig.model_fields.items():
        assert f" {name} : " in settings
        assert field.description in settings


def test_settings_win_over_a_configuration(places) -> None:
    config = ds.RunConfig(**places, plane="sagittal")
    assert ds.plan(config, plane="coronal").config.plane == "coronal"
    assert ds.plan(ds.plan(config), window_size=0).config.plane == "sagittal"
    assert ds.plan(config, plane=None).config.plane == "sagittal"


@pytest.mark.parametrize("call", [ds.plan, ds.run, ds.submit], ids=lambda call: call.__name__)
@pytest.mark.parametrize(
    ("config", "settings", "error", "said"),
    [
        (None, {}, ConfigError, "input_dir is required"),
        (None, {"window_sise": 1}, ConfigError, "no setting window_sise; did you mean window_size"),
        ({"window_sise": 1}, {}, ConfigError, "no setting window_sise; did you mean window_size"),
        ("ct_abdomn", {}, ConfigError, "no configuration ct_abdomn; did you mean ct_abdomen?"),
        ("mine.yaml", {}, ConfigError, "cannot read the configuration mine.yaml"),
        (3, {}, UsageError, "config must be a RunPlan, a RunConfig, a mapping, .* got int"),
        (["a"], {}, UsageError, "config must be .* got list"),
    ],
)
def test_an_object_that_is_no_configuration_is_refused_in_one_line(
    call, config, settings, error, said, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=said) as raised:
        call(config, **settings)
    assert len(str(raised.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_outdated_plan_is_made_again(places) -> None:
    plan = ds.plan(**places)
    ds.run(plan, progress=False)
    write_dataset(places["input_dir"].with_name("more"), n_cases=7, shape=(16, 14, 8))
    more = ds.plan(plan, input_dir=places["input_dir"].with_name("more"))
    assert len(more.cases) == 7
    assert ds.run(plan, progress=False).n_skipped == 6


def test_outside_a_notebook_a_run_prints_what_the_command_prints(places, capsys) -> None:
    ds.run(**places)
    said = capsys.readouterr().out
    assert "Plan: 6 cases" in said
    assert "Wrote " in said
    ds.run(**places, overwrite=True, progress=False)
    assert capsys.readouterr().out == ""


def test_the_log_goes_to_the_log_file(places, tmp_path) -> None:
    ds.run(**places, log_file=tmp_path / "log.txt", progress=False)
    assert "case phantom_000: wrote 8 slices" in (tmp_path / "log.txt").read_text()
    with pytest.raises(UsageError, match="cannot write to log_file"):
        ds.run(**places, log_file=tmp_path / "missing" / "log.txt", progress=False)


def test_submitted_runs_write_logs_of_their_own(places, tmp_path) -> None:
    before = logging.getLogger("dask_slicer").level
    handles = [
        ds.submit(places, output_dir=tmp_path / name, log_file=tmp_path / f"{name}.txt")
        for name in ("one", "two")
    ]
    for handle in handles:
        handle.result(NEVER)
    for name in ("one", "two"):
        assert (tmp_path / f"{name}.txt").read_text().count(": wrote ") == 6
    assert logging.getLogger("dask_slicer").level == before


def test_a_run_that_is_cancelled_before_it_begins_has_a_report(places, monkeypatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "prepare_plan", interrupted)
    handle = ds.submit(**places)
    assert handle.result(NEVER).interrupted
    assert handle.status == "cancelled"


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({}, "on the workers of the given client"),
        ({"num_workers": 0}, "in this process"),
        ({"scheduler": None}, "on the workers of the given client"),
    ],
)
def test_a_run_uses_the_client_of_this_program_unless_a_place_is_named(
    places, local_client, settings, where
) -> None:
    del places["num_workers"]
    heard = Listener()
    assert ds.run(**places, **settings, observer=heard).n_committed == 6
    assert heard.where == where
    assert not local_client.futures


def test_a_given_client_wins_over_settings_and_stays_usable(places, local_client) -> None:
    heard = Listener()
    ds.run(places, local_client, observer=heard)
    assert heard.where == "on the workers of the given client"
    assert local_client.submit(sum, [1, 2]).result(NEVER) == 3


def test_an_unusable_client_is_refused_in_one_line(places, local_client) -> None:
    local_client.close()
    for call in (ds.run, ds.submit):
        with pytest.raises(UsageError, match=r"the client is closed .*make a new one"):
            call(places, local_client)
        with pytest.raises(UsageError, match=r"client must be a distributed\.Client, got tcp://a"):
            call(places, "tcp://a:1")
    assert not places["output_dir"].exists()


class Gate:
    """Holds the thread of a run after its first case, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from dask_slicer.monitoring import notebook

        self.reached, self._opened = threading.Event(), threading.Event()
        count = notebook.RunProgress.case_finished

        def case_finished(progress, record) -> None:
            count(progress, record)
            self.reached.set()
            assert self._opened.wait(NEVER)

        monkeypatch.setattr(notebook.RunProgress, "case_finished", case_finished)

    def open(self) -> None:
        self._opened.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch):
    gate = Gate(monkeypatch)
    yield gate
    gate.open()


def test_a_submitted_run_reports_its_progress_until_it_is_done(places, gate) -> None:
    handle = ds.submit(**places)
    assert gate.reached.wait(NEVER)
    assert handle.status == "running"
    assert "1 of 6 cases, 0 failed" in repr(handle)
    assert 'aria-valuenow="1"' in handle._repr_html_()
    with pytest.raises(TimeoutError, match="still running: 1 of 6 cases"):
        handle.result(timeout=0.01)
    gate.open()
    assert handle.result(NEVER).n_committed == 6
    assert handle.status == "done"
    handle.cancel()  # of what is over, nothing
    assert handle.status == "done"
    assert "Wrote " in handle._repr_html_()


def test_a_cancelled_run_leaves_what_the_next_one_completes(places, gate) -> None:
    handle = ds.submit(**places)
    assert gate.reached.wait(NEVER)
    handle.cancel(timeout=0)
    assert handle.status == "cancelling"
    with pytest.raises(TimeoutError, match=r"has not stopped in 0\.01 s"):
        handle.cancel(timeout=0.01)
    gate.open()
    handle.cancel()
    report = handle.result(0)
    assert handle.status == "cancelled"
    assert (report.interrupted, report.n_committed, report.remaining) == (True, 1, 5)
    assert not [path for path in places["output_dir"].iterdir() if path.name.startswith(".")]
    assert ds.run(**places, progress=False).n_committed == 5


def test_a_cancelled_run_leaves_its_client_usable(places, local_client, gate) -> None:
    handle = ds.submit(places, local_client)
    assert gate.reached.wait(NEVER)
    handle.cancel(timeout=0)
    gate.open()
    handle.cancel()
    assert handle.status == "cancelled"
    assert not local_client.futures
    assert local_client.submit(sum, [1, 2]).result(NEVER) == 3
    assert ds.run(places, local_client, progress=False).remaining == 0


def test_of_two_runs_into_one_output_the_second_is_refused(places, gate) -> None:
    first = ds.submit(**places)
    assert gate.reached.wait(NEVER)
    for call in (ds.submit, ds.run):
        with pytest.raises(OutputError, match="is in use by another run"):
            call(**places)
    gate.open()
    assert first.result(NEVER).n_committed == 6


def test_of_two_runs_that_are_submitted_at_once_the_second_is_refused(places) -> None:
    first = ds.submit(**places)
    with pytest.raises(OutputError, match="is in use by another run"):
        ds.submit(**places)
    assert first.result(NEVER).n_committed == 6
    assert ds.submit(**places).result(NEVER).n_skipped == 6


def test_of_two_runs_on_one_client_the_second_is_refused(
    places, local_client, gate, tmp_path
) -> None:
    first = ds.submit(places, local_client)
    assert gate.reached.wait(NEVER)
    others = places | {"output_dir": tmp_path / "others"}
    with pytest.raises(UsageError, match="another run of this program is using this client"):
        ds.run(others, local_client, progress=False)
    second = ds.submit(others, local_client)
    with pytest.raises(UsageError, match="wait until it is over"):
        second.result(NEVER)
    gate.open()
    assert first.result(NEVER).n_committed == 6
    assert ds.run(others, local_client, progress=False).n_committed == 6


def test_one_run_is_cancelled_and_not_the_other(places, gate, tmp_path) -> None:
    first = ds.submit(**places)
    second = ds.submit(places, output_dir=tmp_path / "others")
    assert gate.reached.wait(NEVER)
    first.cancel(timeout=0)
    gate.open()
    assert second.result(NEVER).n_committed == 6
    assert first.result(NEVER).interrupted


def test_an_error_of_a_submitted_run_is_raised_by_its_result(places, tmp_path) -> None:
    handle = ds.submit(places, input_dir=tmp_path / "<missing>")
    with pytest.raises(UsageError, match="<missing>"):
        handle.result(NEVER)
    assert handle.status == "failed"
    assert "&lt;missing&gt;" in handle._repr_html_()
    assert "<missing>" not in handle._repr_html_()


@pytest.mark.slow
def test_a_program_that_ends_cancels_what_it_has_submitted(tmp_path) -> None:
    write_dataset(tmp_path / "scans", n_cases=1, shape=(64, 60, 60))
    for number in range(1, 60):
        for path in (tmp_path / "scans" / "imagesTr", tmp_path / "scans" / "labelsTr"):
            (first,) = path.glob("phantom_000*")
            (path / first.name.replace("000", f"{number:03d}", 1)).hardlink_to(first)
    (tmp_path / "ends.py").write_text(
        "import time, pathlib, dask_slicer as ds\n"
        "if __name__ == '__main__':\n"
        "    ds.submit(input_dir='scans', output_dir='slices', num_workers=2,\n"
        "              compression_level=9, dashboard_address='none')\n"
        "    journal = pathlib.Path('slices/journal.jsonl')\n"
        "    while not (journal.exists() and journal.stat().st_size): time.sleep(0.01)\n"
    )
    ended = subprocess.run(
        [sys.executable, "ends.py"], cwd=tmp_path, capture_output=True, text=True, timeout=NEVER
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    left = {path.name for path in (tmp_path / "slices").iterdir()}
    assert not [name for name in left if name.startswith(".")]
    done = (tmp_path / "slices" / "journal.jsonl").read_bytes().count(b"\n")
    assert 1 <= done < 60
    settings = {"compression_level": 9, "num_workers": 0, "progress": False}
    report = ds.run(input_dir=tmp_path / "scans", output_dir=tmp_path / "slices", **settings)
    assert (report.n_skipped, report.remaining) == (done, 0)
