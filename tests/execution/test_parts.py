"""Large cases are written in parts, by several workers, to the bytes of one task."""

from __future__ import annotations

import errno
import pickle
import shutil
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import nibabel as nib
import numpy as np
import pytest
from slice_formats import FILES

import dask_slicer
from dask_slicer.cluster.client import thread_addresses
from dask_slicer.config.schema import RunConfig
from dask_slicer.errors import CaseError, DiskFull, WorkerLost
from dask_slicer.execution import executor, graph, parts, tasks
from dask_slicer.execution.graph import (
    Batcher,
    case_graph,
    compute_here,
    n_useful_threads,
    parts_graph,
    target_of,
)
from dask_slicer.execution.tasks import Target
from dask_slicer.execution.verify import verify
from dask_slicer.inputs.case import Case
from dask_slicer.inputs.phantom import write_dataset
from dask_slicer.output.formats import zarr_writer
from dask_slicer.planning.plan import CasePlan
from dask_slicer.planning.planner import make_plan
from dask_slicer.records import CommittedCase

SHAPE = (46, 44, 30)
N_PARTS = 8
EACH_SLICE_IS_A_FILE = FILES | {"files": FILES["files"][:1], "file_lists": []}
SETTINGS: dict[str, dict[str, Any]] = {
    "npz": {},
    "npz, zeros outside": {"padding_mode": "zero"},
    "npz, mirrored": {"padding_mode": "mirror", "context_step": 3},
    "npz, labelled slices": {"min_foreground": 0.01},
    "npz, a size": {"size": "40,52"},
    "npz, a spacing": {"spacing": "1.5,1.5,1.5"},
    "npz, source": {"dtype": "float16", "normalize": "minmax"},
    "npz, planes": {"plane": ("axial", "sagittal", "coronal")},
    "npz, synced": {"fsync": True},
    "npz, no slice": {"slices": "1000:"},
    "zarr": {"format": "zarr"},
    "zarr, source": {"format": "zarr", "dtype": "source"},
    "zarr, labelled slices": {"format": "zarr", "min_foreground": 0.01},
    "zarr, planes": {"format": "zarr", "plane": ("axial", "k")},
    "zarr, synced": {"format": "zarr", "fsync": True},
    "png": {"format": "png"},
    "png, planes": {"format": "png", "plane": ("axial", "coronal")},
    "files": EACH_SLICE_IS_A_FILE,
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Return a dataset of one case, which is not compressed."""
    root = tmp_path_factory.mktemp("scans")
    write_dataset(root, n_cases=1, shape=SHAPE, seed=5)
    for path in sorted(root.rglob("*.nii.gz")):
        nib.save(nib.load(path), path.with_suffix(""))
        path.unlink()
    return root


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch) -> None:
    monkeypatch.setattr(graph, "_FEWEST_SLICES", 1)


def planned(scans: Path, output: Path, **settings: Any) -> tuple[CasePlan, Target]:
    """Return the case of a dataset, and the target of a run into a new output."""
    config = RunConfig(input_dir=scans, output_dir=output, **settings)
    plan = make_plan(config)
    output.mkdir()
    (case,) = plan.cases
    target = target_of(config, run_id="run", names=plan.names, steps=plan.steps)
    return case, replace(target, lock="")


def sliced_to_share(case: CasePlan, target: Target) -> Any:
    loaded = tasks.load_case(case, target)
    return parts.slice_to_share(loaded, target, n_parts=N_PARTS, fewest=1)


def write_parts(sliced: Any, target: Target) -> list[Any]:
    return [
        parts.save_part(sliced, target, number=number, n_parts=N_PARTS) for number in range(N_PARTS)
    ]


def contents(output: Path) -> dict[str, bytes]:
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file()
    }


def without_times(record: CommittedCase) -> CommittedCase:
    return replace(record, seconds=dict.fromkeys(record.seconds, 0.0), at=0.0)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_parts_become_the_files_and_the_record_of_one_task(scans, tmp_path, settings) -> None:
    case, target = planned(scans, tmp_path / "whole", **settings)
    whole = compute_here(case_graph(case, target))
    case, target = planned(scans, tmp_path / "parts", **settings)
    in_parts = compute_here(parts_graph(case, target, ["first", "second"]))
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert without_times(in_parts) == without_times(whole)
    assert (in_parts.n_slices > 0) == ("slices" not in settings)
    assert in_parts.seconds.keys() == {"load", "slice", "save"}
    assert [*(tmp_path / "parts" / target.temporary).iterdir()] == []


@pytest.mark.parametrize("n_planes_per_shard", [1, 4, 7, 1000])
def test_blocks_are_joined_to_the_shards_of_one_task(
    scans, tmp_path, monkeypatch, n_planes_per_shard
) -> None:
    bytes_per_plane = SHAPE[0] * SHAPE[1]  # of the label; the image has shards of its own
    monkeypatch.setattr(zarr_writer, "_SHARD_BYTES", n_planes_per_shard * bytes_per_plane)
    outputs = []
    for graph_of in (case_graph, lambda *arguments: parts_graph(*arguments, ["one", "two"])):
        outputs.append(tmp_path / str(len(outputs)))
        compute_here(graph_of(*planned(scans, outputs[-1], format="zarr")))
    shards = [name for name in contents(outputs[0]) if "/label/c/" in name]
    assert len(shards) == -(-SHAPE[2] // n_planes_per_shard)
    assert contents(outputs[0]) == contents(outputs[1])


def test_where_files_cannot_be_copied_by_the_system_shards_are_the_same(
    scans, tmp_path, monkeypatch
) -> None:
    def cannot(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "not on this disk")

    compute_here(case_graph(*planned(scans, tmp_path / "whole", format="zarr")))
    monkeypatch.setattr("os.copy_file_range", cannot, raising=False)
    compute_here(parts_graph(*planned(scans, tmp_path / "parts", format="zarr"), ["one", "two"]))
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


# -- what is sent from worker to worker ------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True], ids=["mapped", "inflated"])
@pytest.mark.parametrize(
    ("settings", "n_copied"),
    [
        pytest.param({}, (0, 2), id="one_plane"),
        # The label is copied if its slices are interleaved, and is then in memory.
        pytest.param({"plane": ("axial", "sagittal")}, (1, 3), id="planes"),
        pytest.param({"size": "90,90"}, (2, 2), id="a_size"),
    ],
)
def test_no_array_is_sent_to_other_workers(scans, tmp_path, compressed, settings, n_copied) -> None:
    if compressed:
        shutil.copytree(scans, tmp_path / "scans")
        for path in sorted((tmp_path / "scans").rglob("*.nii")):
            nib.save(nib.load(path), f"{path}.gz")
            path.unlink()
        scans = tmp_path / "scans"
    case, target = planned(scans, tmp_path / "out", **settings)
    sliced = sliced_to_share(case, target)
    assert len(pickle.dumps(sliced)) < np.prod(SHAPE) / 2
    expected = tasks.slice_case(tasks.load_case(case, target), target).result
    for shared, stack in zip(
        pickle.loads(pickle.dumps(sliced)).result.stacks, expected, strict=True
    ):
        opened = shared.open()
        assert (opened.image[0].stored == stack.image[0].stored).all()
        assert (opened.label == stack.label).all()
    # Views of one volume are copied once, and a volume that is mapped is not copied.
    copied = [*(tmp_path / "out" / target.temporary).rglob("array_*")]
    assert len(copied) == n_copied[compressed]


def test_a_case_is_saved_at_once_if_the_disk_has_no_room_to_share_it(
    scans, tmp_path, monkeypatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    whole = compute_here(case_graph(*planned(scans, tmp_path / "whole")))
    case, target = planned(scans, tmp_path / "parts")
    monkeypatch.setattr(parts, "share", full)
    record = compute_here(parts_graph(case, target, ["one", "two"]))
    assert without_times(record) == without_times(whole)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


# -- tasks that run twice, or fail -----------------------------------------------------------------


@pytest.mark.parametrize("format_", ["npz", "zarr", "png"])
def test_a_part_that_runs_twice_leaves_nothing(scans, tmp_path, format_) -> None:
    whole = compute_here(case_graph(*planned(scans, tmp_path / "whole", format=format_)))
    case, target = planned(scans, tmp_path / "parts", format=format_)
    sliced = sliced_to_share(case, target)
    first, second = write_parts(sliced, target), write_parts(sliced, target)
    record = parts.save_parts([*first[:3], *second[3:]], sliced, target)
    assert without_times(record) == without_times(whole)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.mark.parametrize("format_", ["npz", "zarr", "png"])
def test_parts_of_slices_that_were_made_twice_are_joined(scans, tmp_path, format_) -> None:
    whole = compute_here(case_graph(*planned(scans, tmp_path / "whole", format=format_)))
    case, target = planned(scans, tmp_path / "parts", format=format_)
    first, second = sliced_to_share(case, target), sliced_to_share(case, target)
    written = [*write_parts(first, target)[:3], *write_parts(second, target)[3:]]
    record = parts.save_parts(written, second, target)
    assert without_times(record) == without_times(whole)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.mark.parametrize("format_", ["npz", "zarr", "png"])
def test_parts_that_were_joined_before_are_lost(scans, tmp_path, format_) -> None:
    case, target = planned(scans, tmp_path / "out", format=format_)
    sliced = sliced_to_share(case, target)
    written = write_parts(sliced, target)
    parts.save_parts(written, sliced, target)
    before = contents(tmp_path / "out")
    with pytest.raises(WorkerLost, match="a part of it was lost"):
        parts.save_parts(written, sliced, target)
    late = parts.save_part(sliced, target, number=0, n_parts=N_PARTS)
    assert isinstance(late, WorkerLost)
    assert contents(tmp_path / "out") == before


def test_two_last_tasks_do_not_share_the_parts(scans, tmp_path, monkeypatch) -> None:
    case, target = planned(scans, tmp_path / "out", format="zarr")
    sliced = sliced_to_share(case, target)
    written = write_parts(sliced, target)
    join = parts.BlockFormat.join
    others: list[BaseException] = []

    def joined_at_the_same_time(*arguments: Any) -> Any:
        monkeypatch.setattr(parts.BlockFormat, "join", join)
        result = join(*arguments)
        with pytest.raises(WorkerLost) as caught:
            parts.save_parts(written, sliced, target)
        others.append(caught.value)
        return result

    monkeypatch.setattr(parts.BlockFormat, "join", joined_at_the_same_time)
    with pytest.raises(WorkerLost):  # the other one removed its files
        parts.save_parts(written, sliced, target)
    assert len(others) == 1
    assert contents(tmp_path / "out") == {}


@pytest.mark.parametrize(
    ("error", "kind"),
    [(OSError(errno.ENOSPC, "No space left on device"), DiskFull), (ValueError("x"), CaseError)],
    ids=["disk full", "unexpected"],
)
def test_an_error_of_a_part_is_that_of_its_case(scans, tmp_path, monkeypatch, error, kind) -> None:
    case, target = planned(scans, tmp_path / "out")
    write = parts.BlockFormat.write

    def failing(self: Any, stack: Any, block: Any, folder: Path) -> Any:
        if block.first > 10:
            raise error
        return write(self, stack, block, folder)

    monkeypatch.setattr(parts.BlockFormat, "write", failing)
    with pytest.raises(kind) as caught:
        compute_here(parts_graph(case, target, ["one", "two"]))
    assert caught.value.step == "save"
    assert caught.value.run_id == "run"
    assert contents(tmp_path / "out") == {}
    assert [*(tmp_path / "out" / target.temporary).iterdir()] == []


def test_an_error_of_loading_is_that_of_its_case(scans, tmp_path) -> None:
    case, target = planned(scans, tmp_path / "out")
    case = replace(case, case=replace(case.case, images=(str(tmp_path / "none.nii"),)))
    with pytest.raises(CaseError) as caught:
        compute_here(parts_graph(case, target, ["one", "two"]))
    assert caught.value.step == "load"


# -- which cases -----------------------------------------------------------------------------------

MB = 1_000_000


def case_of(size: int) -> CasePlan:
    return CasePlan(case=Case(case_id=str(size), images=()), voxel_bytes=size, shape=(64, 16, 16))


@pytest.mark.parametrize(
    ("sizes", "n_threads", "in_parts"),
    [
        pytest.param([2000], 2, [2000], id="alone"),
        pytest.param([2000], 1, [], id="one_thread"),
        pytest.param([200], 4, [], id="small"),
        pytest.param([2001, 2000], 2, [2000], id="the_last_of_two"),
        pytest.param([2001, 2000], 4, [2001, 2000], id="fewer_than_threads"),
        pytest.param([2002, 2001, 2000], 2, [2000], id="the_last_of_three"),
        pytest.param([9000, *[300] * 20], 2, [9000, 300], id="larger_than_all_others"),
        pytest.param([3000, *[300] * 20], 2, [300], id="smaller_than_all_others"),
    ],
)
def test_cases_are_in_parts_that_would_keep_other_threads_waiting(
    sizes: Sequence[int], n_threads, in_parts
) -> None:
    batcher = Batcher(deque(case_of(size * MB) for size in sizes), n_threads=n_threads)
    chosen = []
    while batch := batcher.next():
        chosen += [batch[0].voxel_bytes // MB] * batcher.in_parts(batch)
    assert chosen == in_parts


def test_a_case_that_may_have_killed_its_worker_is_retried_whole() -> None:
    batcher = Batcher(deque([case_of(2000 * MB)]), n_threads=4)
    batch = batcher.next()
    assert batcher.in_parts(batch)
    batcher.retry_isolated(batch[0])
    assert not batcher.in_parts(batcher.next())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 31),
        ({"format": "zarr"}, 31),
        ({"format": "png"}, 31),
        (EACH_SLICE_IS_A_FILE, 31),
        # A file of the whole case has one writer.
        (FILES | {"files": FILES["files"][1:], "file_lists": []}, 1),
    ],
    ids=["npz", "zarr", "png", "files of slices", "files of cases"],
)
def test_workers_are_started_for_parts(settings, expected) -> None:
    config = RunConfig(input_dir="scans", output_dir="out", **settings)
    split = "val" if settings.get("format") == "files" and expected == 1 else "train"
    large, small = case_of(2000 * MB), case_of(9 * MB)
    cases = [replace(case, split=split) for case in (large, small)]
    assert n_useful_threads(cases, config) == expected + 1


@pytest.mark.parametrize(
    ("file_bytes", "memory", "expected"),
    [
        pytest.param(2000 * MB, 64_000 * MB, 31, id="mapped"),
        # A part of a mapped volume needs little memory.
        pytest.param(2000 * MB, 2_000 * MB, 8, id="mapped_in_little_memory"),
        pytest.param(700 * MB, 8_000 * MB, 3, id="inflated"),
        pytest.param(700 * MB, 1_000 * MB, 1, id="inflated_in_little_memory"),
    ],
)
def test_workers_are_started_for_parts_as_far_as_memory_allows(
    monkeypatch, file_bytes, memory, expected
) -> None:
    monkeypatch.setattr("dask_slicer.utils.system.memory_bytes", lambda: memory)
    config = RunConfig(input_dir="scans", output_dir="out")
    case = replace(case_of(2000 * MB), file_bytes=file_bytes)
    assert executor._n_useful_workers([case], config) == expected
    in_jobs = config.model_copy(update={"cluster": "slurm"})
    assert executor._n_useful_workers([case], in_jobs) == 31


def test_threads_take_turns_by_their_workers() -> None:
    client: Any = SimpleNamespace(nthreads=lambda: {"b": 1, "a": 3, "c": 2})
    assert thread_addresses(client) == ["a", "b", "c", "a", "c", "a"]


# -- with workers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["npz", "zarr"])
def test_two_workers_write_what_this_process_does(scans, tmp_path, monkeypatch, format_) -> None:
    monkeypatch.setattr(graph, "LEAST_IN_PARTS", 1)
    monkeypatch.setattr(graph, "_LEAST_PER_THREAD", 1)
    addresses: list[list[str]] = []

    def counted(case: CasePlan, target: Target, workers: list[str]) -> Any:
        addresses.append(workers)
        return parts_graph(case, target, workers)

    monkeypatch.setattr(graph, "parts_graph", counted)
    told = {"dataset_info.json", "journal.jsonl", "config.yaml"}
    written = []
    for n_workers in (0, 1, 2):
        output = tmp_path / str(n_workers)
        report = dask_slicer.run(
            RunConfig(input_dir=scans, output_dir=output, format=format_, num_workers=n_workers),
            progress=False,
        )
        assert report.n_committed == 1
        written.append({k: v for k, v in contents(output).items() if k not in told})
        assert not (output / ".dask_slicer.tmp").exists()
    assert written[0] == written[1] == written[2]
    assert [len(set(workers)) for workers in addresses] == [2]
    assert verify(tmp_path / "2", num_workers=0).issues == ()


@pytest.mark.parametrize("n_gone", [0, 1], ids=["two", "one_that_is_gone"])
def test_each_worker_gets_its_parts_or_another_one_if_it_is_gone(scans, tmp_path, n_gone) -> None:
    from distributed import Client, LocalCluster

    whole = compute_here(case_graph(*planned(scans, tmp_path / "whole")))
    case, target = planned(scans, tmp_path / "parts")
    with (
        dask.config.set({"distributed.scheduler.work-stealing": False}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        client.get_task_stream()
        addresses = [*thread_addresses(client), *["tcp://127.0.0.1:1"] * n_gone][n_gone:]
        record = client.compute(parts_graph(case, target, addresses)).result(60)
        stream = client.get_task_stream()
    assert without_times(record) == without_times(whole)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    parts_of = Counter(task["worker"] for task in stream if len(task["key"]) == 3)
    assert parts_of.total() == N_PARTS
    if not n_gone:
        assert sorted(parts_of.values()) == [N_PARTS // 2] * 2
