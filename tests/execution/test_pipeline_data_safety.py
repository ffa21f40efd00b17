"""What is written and committed stays, whatever else goes wrong beside it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from slice_formats import FORMATS, options

import dask_slicer
from dask_slicer.cluster import local
from dask_slicer.errors import CaseError, OutputError, Timeout
from dask_slicer.execution import tasks, watchdog
from dask_slicer.execution import verify as verify_module
from dask_slicer.execution.graph import case_graph, compute_here, target_of
from dask_slicer.execution.verify import verify
from dask_slicer.inputs.phantom import write_dataset
from dask_slicer.monitoring.observer import Observer
from dask_slicer.output import directory
from dask_slicer.output.formats import zarr_writer
from dask_slicer.output.journal import Journal, last_records
from dask_slicer.planning import headers
from dask_slicer.planning.planner import make_plan
from dask_slicer.records import CommittedCase, RemovedCase


@pytest.fixture
def scans(tmp_path) -> Path:
    root = tmp_path / "scans"
    write_dataset(root, n_cases=3, shape=(20, 18, 7), seed=11, varied=False)
    return root


@pytest.fixture(params=FORMATS)
def config(request, scans, tmp_path) -> dask_slicer.RunConfig:
    return dask_slicer.RunConfig(
        input_dir=scans, output_dir=tmp_path / "out", num_workers=0, **FORMATS[request.param]
    )


def slices_of(output: Path) -> dict[str, bytes]:
    patterns = ("*.npz", "*.png", "*.h5", "metadata/*/*", "slices.zarr/*/*/**/*")
    paths = [path for pattern in patterns for path in output.rglob(pattern)]
    return {str(path.relative_to(output)): path.read_bytes() for path in paths if path.is_file()}


def fate_of(output: Path, case_id: str) -> type:
    (record,) = (one for one in last_records(output / "journal.jsonl") if one.case_id == case_id)
    return type(record)


# -- a writer that was thought dead ----------------------------------------------------------------


def test_a_late_writer_does_not_replace_committed_files(config, monkeypatch) -> None:
    dask_slicer.run(config)
    written = slices_of(config.output_dir)
    plan = make_plan(config)
    graph = case_graph(plan.cases[0], target_of(config, run_id="of an earlier run"))

    def tidied_away(function, at: int):
        calls = iter(range(1000))

        def call(*args, **options):
            result = function(*args, **options) if next(calls) != at else None
            shutil.rmtree(config.output_dir / ".dask_slicer.tmp")
            return result

        return call

    if config.format == "zarr":
        monkeypatch.setattr(zarr_writer, "_write_array", tidied_away(zarr_writer._write_array, 9))
    else:
        at = 0 if config.format == "files" and plan.cases[0].split != "train" else 3
        monkeypatch.setattr(tasks, "move", tidied_away(tasks.move, at))
    with pytest.raises((CaseError, FileNotFoundError)):
        compute_here(graph)
    assert slices_of(config.output_dir) == written


# -- verify ----------------------------------------------------------------------------------------


def test_repair_keeps_slices_that_cannot_be_compared_with_their_scan(config, monkeypatch) -> None:
    dask_slicer.run(config)
    written = slices_of(config.output_dir)
    first, second, _ = sorted(config.input_dir.glob("imagesTr/*"))
    first.unlink()
    os.utime(second, (0, 0))
    report = verify(config.output_dir, num_workers=0, deep=1000, repair=True)
    assert len(report.issues) == 2
    assert report.to_rewrite == ()
    assert slices_of(config.output_dir) == written

    def stale(*_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr("dask_slicer.output.checks._check_bytes", stale)
    report = verify(config.output_dir, num_workers=0, repair=True)
    assert ["could not be checked" in str(finding) for finding in report.issues] == [True] * 3
    assert slices_of(config.output_dir) == written


def test_repair_locks_the_output(config) -> None:
    dask_slicer.run(config)
    refused = []

    def run_too(*_: object) -> None:
        with pytest.raises(OutputError, match="in use"):
            dask_slicer.run(config)
        refused.append(1)

    verify(config.output_dir, num_workers=0, repair=True, on_case=run_too)
    assert len(refused) == 3


def test_verifying_two_outputs_at_once_uses_separate_tasks(config, monkeypatch) -> None:
    dask_slicer.run(config)
    keys = []
    graph = verify_module.verify_graph
    monkeypatch.setattr(
        verify_module, "verify_graph", lambda name, check: keys.append(name) or graph(name, check)
    )
    verify(config.output_dir, num_workers=0)
    verify(config.output_dir, num_workers=0)
    assert len(set(keys)) == 6


def test_a_failed_case_that_left_the_dataset_is_no_damage_once_it_is_pruned(config) -> None:
    (broken, *_) = sorted(config.input_dir.glob("imagesTr/*"))
    broken.write_bytes(b"no volume")
    assert dask_slicer.run(config).failures
    broken.unlink()
    (config.input_dir / "labelsTr" / broken.name.replace("_0000", "")).unlink()
    dask_slicer.run(config.model_copy(update={"prune": True}))
    assert verify(config.output_dir, num_workers=0).issues == ()
    lines = (config.output_dir / "journal.jsonl").read_text()
    dask_slicer.run(config.model_copy(update={"prune": True}))
    assert (config.output_dir / "journal.jsonl").read_text() == lines


def test_pruning_removes_the_files_of_a_case_at_the_top_of_the_output(scans, tmp_path) -> None:
    output = tmp_path / "out"
    top = [{"path": "{stem}.npz", "holds": {"image": "image"}}]
    chosen = {"format": "files", "files": top, "num_workers": 0, "prune": True}
    config = dask_slicer.RunConfig(input_dir=scans, output_dir=output, **chosen)
    dask_slicer.run(config)
    (output / "phantom_009_000.npz").write_bytes(b"of the user")
    for path in scans.glob("*/phantom_001*"):
        path.unlink()
    dask_slicer.run(config)
    stems = {path.stem.rpartition("_")[0] for path in output.glob("*.npz")}
    assert stems == {"phantom_000", "phantom_002", "phantom_009"}


def test_overwriting_removes_files_at_the_top_also_without_splits(scans, tmp_path) -> None:
    output = tmp_path / "out"
    top = [{"path": "{stem}.npz", "holds": {"image": "image"}}]
    chosen = {"format": "files", "files": top, "num_workers": 0}
    dask_slicer.run(input_dir=scans, output_dir=output, **chosen)
    (output / "splits.json").unlink()
    for path in scans.glob("*/phantom_001*"):
        path.unlink()
    dask_slicer.run(input_dir=scans, output_dir=output, overwrite=True, **chosen)
    assert not [*output.glob("phantom_001*")]


def test_files_and_lists_of_a_recipe_are_ignored_with_another_format(scans, tmp_path) -> None:
    place = {"input_dir": scans, "output_dir": tmp_path / "out", "num_workers": 0}
    dask_slicer.run({**place, **FORMATS["files"], "format": "npz"})
    assert not (tmp_path / "out" / "lists").exists()
    assert verify(tmp_path / "out", num_workers=0).issues == ()
    again = dask_slicer.run(**place, format="npz", window_size=0)
    assert again.n_skipped == 3


def test_slices_in_files_of_several_kinds_are_checked_in_those_that_can_be_read(
    scans, tmp_path
) -> None:
    names = {"image": "image", "label": "label", "metadata": "metadata"}
    files = [
        {"path": "png/{split}/{stem}.png", "holds": "image"},
        {"path": "npz/{split}/{stem}.npz", "holds": names},
    ]
    chosen = {"format": "files", "files": files, "dtype": "uint8", "window_size": 0}
    output = tmp_path / "out"
    dask_slicer.run(input_dir=scans, output_dir=output, num_workers=0, **chosen)
    assert verify(output, num_workers=0).issues == ()
    assert len(dask_slicer.SliceDataset(output, None))
    assert dask_slicer.SliceDataset(output, None)[0]["image"].dtype == np.float32


@pytest.mark.parametrize(("n_bad", "n_failures"), [(1, 2), (3, 3)])
def test_cases_without_all_their_images_do_not_make_the_summary_wrong(
    dataset, tmp_path, n_bad, n_failures
):
    rows = ["case_id,image,image_2,image_3"]
    for number in range(3):
        dataset.add(f"c{number}", label=None)
        name = dataset.image_path(f"c{number}").relative_to(dataset.root)
        third = name if number < n_bad else ""
        second = "nowhere.nii" if n_bad == 3 else name
        rows.append(f"c{number},{name},{second},{third if n_bad == 1 else ''}")
    manifest = dataset.root / "cases.csv"
    manifest.write_text("\n".join(rows))
    output = tmp_path / "out"
    report = dask_slicer.run(
        dask_slicer.RunConfig(input_dir=manifest, output_dir=output, num_workers=0)
    )
    assert len(report.failures) == n_failures
    assert verify(output, num_workers=0).issues == ()


# -- a run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 1000])
def test_a_header_that_could_not_be_read_is_read_again_and_costs_no_slice(
    config, monkeypatch, times
) -> None:
    dask_slicer.run(config)
    written = slices_of(config.output_dir)
    read = headers.read_header
    failures = iter(range(times))

    def stale_at_first(path: str, **settings: str):
        if "phantom_000" in path and next(failures, None) is not None:
            raise OSError(errno.ESTALE, "Stale file handle", path)
        return read(path, **settings)

    monkeypatch.setattr(headers, "read_header", stale_at_first)
    report = dask_slicer.run(config)
    assert len(report.failures) == (times > 1)
    assert slices_of(config.output_dir) == written


class FullScreen(Observer):
    """Cannot say what has ended."""

    def case_finished(self, record) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_an_error_in_a_display_does_not_lose_a_case(config) -> None:
    with pytest.raises(OSError, match="No space"):
        dask_slicer.run(config, observer=FullScreen())
    (committed,) = last_records(config.output_dir / "journal.jsonl")
    assert isinstance(committed, CommittedCase)
    assert any(committed.case_id in name for name in slices_of(config.output_dir))
    assert dask_slicer.run(config).n_skipped == 1
    assert verify(config.output_dir, num_workers=0).issues == ()


class Thief(Observer):
    """Takes a scan away once the run has begun."""

    def __init__(self, scan: Path) -> None:
        self.scan = scan

    def planned(self, *_: object, **__: object) -> None:
        self.scan.unlink()


def test_a_scan_that_vanishes_during_the_run_fails_its_case_alone(config) -> None:
    scan = sorted(config.input_dir.glob("imagesTr/*"))[1]
    report = dask_slicer.run(config, observer=Thief(scan))
    ((case_id, step, kind, message),) = (
        (one.case_id, one.step, one.kind, one.message) for one in report.failures
    )
    assert (case_id, step, kind) == ("phantom_001", "load", "MissingFile")
    assert str(scan) in message
    assert report.n_committed == 2


def test_a_link_to_nothing_that_is_named_like_a_slice_stops_no_run(config) -> None:
    dask_slicer.run(config)
    (config.output_dir / "train").mkdir(exist_ok=True)
    (config.output_dir / "train" / "phantom_000_099.npz").symlink_to("nowhere")
    assert dask_slicer.run(config).failures == ()


def test_lines_that_did_not_fit_do_not_spoil_the_next_that_does(tmp_path, monkeypatch) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append(RemovedCase(case_id="a"))
        write, journal._file = journal._file.write, _HalfFull(journal._file)
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                journal.append(RemovedCase(case_id="b"))
        journal._file.write = write
        journal.append(RemovedCase(case_id="c"))
        journal.append(RemovedCase(case_id="d"))
    assert [json.loads(line)["case_id"] for line in path.read_text().splitlines()] == list("acd")


class _HalfFull:
    """A file of which each line's first half is written."""

    def __init__(self, file) -> None:
        self._file = file

    def __getattr__(self, name: str):
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        if len(data) < 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(data[: len(data) // 2])


# -- a worker that is gone -------------------------------------------------------------------------


def test_a_retried_graph_has_its_full_timeout() -> None:
    of_scheduler = {"address": "tcp://127.0.0.1:8786"}
    client = SimpleNamespace(scheduler_info=lambda **_: of_scheduler)
    watched = watchdog.Watchdog(client, timeout=4)
    watched._began = {("liver", "tcp://a"): 0.0, ("lung", "tcp://a"): 1.0}
    key = ("slice", "liver")
    watched.stopped[key] = Timeout("took longer")
    watched.resolve(SimpleNamespace(key=key), None)
    assert watched._began == {("lung", "tcp://a"): 1.0}


@pytest.mark.timeout(60)
def test_stopping_a_worker_that_has_gone_or_hangs_does_not_hang_or_raise(monkeypatch) -> None:
    monkeypatch.setattr(watchdog, "_TRY_SECONDS", 1)
    with local.local_client(1, memory_limit=2**30, dashboard_address="none") as client:
        watched = watchdog.Watchdog(client, timeout=1)
        watched._stop("tcp://127.0.0.1:1", [])
        assert watched._try(client.run_on_scheduler, _sleep) is None


async def _sleep() -> str:
    import asyncio

    await asyncio.sleep(20)
    return "it was waited for"


# -- a disk that is too full for what is said of the whole -----------------------------------------


@pytest.mark.parametrize("missing", ["slices.csv", "failures.csv", "dataset_info.json"])
def test_no_temporary_file_is_left_if_the_index_does_not_fit_on_disk(
    config, invoke, missing
) -> None:
    write_lines = directory.write_lines

    def does_not_fit(output_dir, name, lines, **options) -> None:
        if name == missing:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_lines(output_dir, name, lines, **options)

    command = ("run", "--input_dir", config.input_dir, "--output_dir", config.output_dir)
    command += ("--num_workers", 0, *options(config.format, config.input_dir.parent))
    with pytest.MonkeyPatch.context() as full:
        full.setattr(directory, "write_lines", does_not_fit)
        result = invoke(*command)
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert slices_of(config.output_dir)
    assert not list(config.output_dir.glob("*.tmp"))
    assert invoke(*command).exit_code == 0
    assert (config.output_dir / "slices.csv").exists()
