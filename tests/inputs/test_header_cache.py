"""The cache of headers: used while nothing changed, and of no effect in any other case."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import dask_slicer
from dask_slicer.config.schema import RunConfig
from dask_slicer.inputs import cache_files, header_cache, readers
from dask_slicer.inputs.cache_files import CACHE_DIR
from dask_slicer.inputs.header_cache import RACY_NS, HeaderCache
from dask_slicer.inputs.layouts.base import InputOptions
from dask_slicer.inputs.readers import READERS, read_header
from dask_slicer.inputs.readers.base import VolumeHeader
from dask_slicer.planning import headers, planner
from dask_slicer.planning.plan import RunPlan

IMAGE = np.arange(8 * 9 * 10, dtype=np.int16).reshape(8, 9, 10)


@pytest.fixture
def cache_dir(monkeypatch, tmp_path) -> Path:
    """Return the folder of an empty cache, in which files of this moment count as settled."""
    monkeypatch.setenv(CACHE_DIR, str(tmp_path / "cache"))
    monkeypatch.setattr(header_cache, "RACY_NS", -(10**12))
    # Plans as a whole are cached too, in tests/planning/test_plan_cache.py.
    monkeypatch.setattr(planner.PlanCache, "recall", lambda _: None)
    return tmp_path / "cache" / "headers"


@dataclass
class Planned:
    plan: RunPlan
    n_read: int  # headers

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Planned) and self.plan.cases == other.plan.cases


@pytest.fixture
def plan(dataset, tmp_path, monkeypatch) -> Callable[..., Planned]:
    """Return a function that plans a run of three cases, one of them with its label off grid."""
    for case_id in ("a", "b"):
        dataset.add(case_id)
    dataset.add("off", label_affine=np.diag([1.0, 1.0, 1.0, 1.0]))
    n_read = 0

    def counted(path: str, **keywords: str) -> VolumeHeader:
        nonlocal n_read
        n_read += 1
        return read_header(path, **keywords)

    monkeypatch.setattr(headers, "read_header", counted)

    def call(input_dir: Path = dataset.root, **settings: object) -> Planned:
        nonlocal n_read
        n_read = 0
        config = RunConfig(input_dir=input_dir, output_dir=tmp_path / "slices", **settings)
        run_plan = planner.make_plan(config)
        return Planned(run_plan, n_read)

    return call


@pytest.fixture
def uncached(plan, monkeypatch) -> Callable[..., Planned]:
    def call(*arguments: object, **settings: object) -> Planned:
        with monkeypatch.context() as patch:
            patch.setenv(CACHE_DIR, "none")
            return plan(*arguments, **settings)

    return call


# -- nothing changed -------------------------------------------------------------------------------


@pytest.mark.usefixtures("cache_dir")
def test_a_second_plan_reads_no_header_and_is_the_same(plan, uncached) -> None:
    first, second = plan(), plan()
    assert (first.n_read, second.n_read) == (6, 0)
    assert first == second == uncached()
    assert [case.case_id for case in second.plan.runnable] == ["a", "b"]


@pytest.mark.usefixtures("cache_dir")
@pytest.mark.parametrize(
    "settings", [{"plane": "sagittal"}, {"plane": "k"}, {"window_size": 3}, {"retries": 0}], ids=str
)
def test_a_plan_with_other_settings_reads_no_header_and_is_right(plan, uncached, settings) -> None:
    plan()
    for _ in range(2):
        other = plan(**settings)
        assert other.n_read == 0
        assert other == uncached(**settings)
    assert plan() == uncached()


def test_a_plan_of_which_nothing_is_new_writes_nothing(plan, cache_dir) -> None:
    plan()
    (file,) = cache_dir.iterdir()
    before = file.stat().st_ino
    plan()
    assert [path.stat().st_ino for path in cache_dir.iterdir()] == [before]


def test_a_case_without_a_label_may_get_the_file_as_its_label(plan, uncached, cache_dir) -> None:
    first = plan(allow_missing_labels=True)
    label = Path(first.plan.cases[0].case.label)
    label.rename(label.with_suffix(".away"))
    without = plan(allow_missing_labels=True)
    assert without == uncached(allow_missing_labels=True)
    assert without.n_read == 0


def test_commands_share_the_cache(dataset, invoke, tmp_path, cache_dir, monkeypatch) -> None:
    dataset.add("a")
    options = ("--input_dir", dataset.root, "--output_dir", tmp_path / "out")
    first = json.loads(invoke("plan", "--json", *options).stdout)
    monkeypatch.setattr(headers, "read_header", lambda path, **_: pytest.fail(path))
    second = json.loads(invoke("plan", "--json", *options).stdout)
    assert second == first | {"disk_free_bytes": second["disk_free_bytes"]}
    assert not (tmp_path / "out").exists()
    assert invoke("run", "--num_workers", 0, *options).exit_code == 0


# -- something changed -----------------------------------------------------------------------------


def _write_again(path: Path, dataset) -> None:
    dataset.write(path, IMAGE[:-1], np.eye(4))


def _same_size_and_mtime(path: Path, dataset) -> None:
    """Change a byte, and set the mtime to what it was."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    time.sleep(0.01)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)


def _replace_by_older(path: Path, dataset) -> None:
    dataset.write(path.with_name("new.nii.gz"), IMAGE, np.diag([2.0, 2.0, 2.0, 1.0]))
    os.utime(path.with_name("new.nii.gz"), ns=(0, 0))
    path.with_name("new.nii.gz").replace(path)


def _link_elsewhere(path: Path, dataset) -> None:
    dataset.write(path.parents[2] / "elsewhere.nii.gz", IMAGE, np.eye(4))
    path.unlink()
    path.symlink_to(path.parents[2] / "elsewhere.nii.gz")


def _touch(path: Path, dataset) -> None:
    os.utime(path)


CHANGES = [_write_again, _same_size_and_mtime, _replace_by_older, _link_elsewhere, _touch]


@pytest.mark.usefixtures("cache_dir")
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__[1:])
def test_the_header_of_a_changed_file_is_read_again(plan, uncached, dataset, change) -> None:
    plan()
    change(dataset.image_path("a"), dataset)
    assert plan().n_read == 1
    assert plan() == uncached()
    assert plan().n_read == 0


@pytest.mark.usefixtures("cache_dir")
def test_files_that_come_go_and_come_again_are_planned_as_they_are(plan, uncached, dataset) -> None:
    plan()
    image = dataset.image_path("a")
    dataset.add("c")
    image.rename(image.with_suffix(".away"))
    assert plan() == uncached()
    image.with_suffix(".away").rename(image)
    assert plan() == uncached()
    assert plan().n_read == 0


def test_a_file_that_changed_just_now_is_not_cached(plan, cache_dir, monkeypatch) -> None:
    monkeypatch.setattr(header_cache, "RACY_NS", 2_000_000_000)
    assert (plan().n_read, plan().n_read) == (6, 6)
    assert not cache_dir.exists()


def test_a_file_from_the_future_is_not_cached(plan, dataset, cache_dir) -> None:
    ahead = time.time_ns() + 10**13
    os.utime(dataset.image_path("a"), ns=(ahead, ahead))
    assert (plan().n_read, plan().n_read) == (6, 1)


@pytest.mark.usefixtures("cache_dir")
def test_a_file_that_changes_while_it_is_planned_is_read_again(plan, uncached, dataset) -> None:
    counted = headers.read_header
    image = dataset.image_path("a")

    def changed_before_it_is_read(path: str, **keywords: str) -> VolumeHeader:
        if path == str(image):
            _write_again(image, dataset)
        return counted(path, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(headers, "read_header", changed_before_it_is_read)
        plan()
    _replace_by_older(image, dataset)
    assert plan() == uncached()


@pytest.mark.usefixtures("cache_dir")
def test_a_file_that_could_not_be_read_is_read_every_time(plan, uncached, dataset) -> None:
    dataset.image_path("a").write_bytes(b"noise")
    for _ in range(3):
        assert [failure.case_id for failure in plan().plan.failures] == ["a", "off"]
    assert plan().n_read == 1
    dataset.add("a")
    assert plan() == uncached()


@pytest.mark.usefixtures("cache_dir")
def test_a_file_beside_the_header_counts_too(tmp_path, monkeypatch, uncached) -> None:
    def read(path: str, **_: object) -> VolumeHeader:
        raw = Path(path).with_suffix(".raw")
        return VolumeHeader(
            path=path,
            shape=(raw.stat().st_size, 1, 1),
            dtype=np.dtype("u1"),
            affine=np.eye(4),
            oriented=True,
            slope=1.0,
            intercept=0.0,
            file_bytes=raw.stat().st_size,
            data_files=(path, str(raw)),
        )

    reader = SimpleNamespace(SUFFIXES=(".head",), read_header=read)
    monkeypatch.setattr(readers, "READERS", (*READERS, reader))
    monkeypatch.setattr(headers, "read_header", read)
    (tmp_path / "pairs" / "imagesTr").mkdir(parents=True)
    raw = tmp_path / "pairs" / "imagesTr" / "a_0000.raw"
    raw.with_suffix(".head").touch()
    config = RunConfig(input_dir=tmp_path / "pairs", output_dir=tmp_path / "out", plane="k")
    digests = set()
    for size in (3, 4, 4):
        if not raw.exists() or raw.stat().st_size != size:
            raw.write_bytes(bytes(size))
        (case,) = planner.make_plan(config).cases
        assert case.shape == (1, size, 1)
        digests.add(case.digest)
    assert len(digests) == 2
    monkeypatch.setattr(headers, "read_header", lambda path, **_: pytest.fail(path))
    assert planner.make_plan(config).cases == (case,)
    raw.unlink()
    monkeypatch.setattr(headers, "read_header", read)
    assert planner.make_plan(config).failures


# -- a cache that cannot be used -------------------------------------------------------------------


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _empty(content: bytes) -> bytes:
    return b""


def _noise(content: bytes) -> bytes:
    return random.Random(0).randbytes(1000)


def _of_another_version(content: bytes) -> bytes:
    about, _, rest = content.partition(b"\n")
    return json.dumps(json.loads(about) | {"program": "0"}).encode() + b"\n" + rest


def _bit_flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _end_missing(content: bytes) -> bytes:
    return content.removesuffix(b'"end"\n')


def _nested(content: bytes) -> bytes:
    return b"[" * 100_000


DAMAGES = [_cut, _empty, _noise, _of_another_version, _bit_flipped, _end_missing, _nested]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__[1:])
def test_a_damaged_cache_is_ignored_and_written_again(plan, uncached, cache_dir, damage) -> None:
    plan()
    (file,) = cache_dir.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    second = plan()
    assert second.n_read == 6
    assert second == uncached()
    assert plan().n_read == 0


def test_no_flipped_byte_of_a_cache_changes_a_plan(plan, uncached, cache_dir) -> None:
    plan()
    (file,) = cache_dir.iterdir()
    content, right = file.read_bytes(), uncached()
    rng = random.Random(1)
    for _ in range(100):
        damaged = bytearray(content)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        assert plan() == right


def test_code_that_changed_ignores_what_it_cached_before(plan, cache_dir, monkeypatch) -> None:
    plan()
    monkeypatch.setattr(header_cache.np, "__version__", "9.9")
    assert (plan().n_read, plan().n_read) == (6, 0)


@pytest.mark.parametrize("folder", ["/dev/null/cache", "file/cache", "file", "\0"])
def test_a_folder_that_cannot_be_written_has_no_effect(
    plan, uncached, monkeypatch, tmp_path, folder
) -> None:
    (tmp_path / "file").touch()
    if folder != "\0":
        monkeypatch.setenv(CACHE_DIR, str(tmp_path / folder))
    else:  # an environment cannot hold it, but a home folder may be odd
        monkeypatch.setattr(header_cache, "cache_file", lambda *_: Path("\0"))
    assert (plan().n_read, plan().n_read) == (6, 6)
    assert plan() == uncached()


@pytest.mark.parametrize("call", ["os.replace", "os.utime", "tempfile.mkstemp"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES, errno.EDQUOT, errno.ESTALE])
def test_an_error_of_the_disk_has_no_effect(
    plan, uncached, cache_dir, monkeypatch, call, error
) -> None:
    right = uncached()

    def fail(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(call, fail)
        assert plan() == right
        assert plan() == right
    if call != "os.utime":
        assert [*cache_dir.iterdir()] == []


def test_without_a_cache_nothing_is_written(plan, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv(CACHE_DIR, "none")
    monkeypatch.chdir(tmp_path)
    before = {*tmp_path.rglob("*")}
    assert (plan().n_read, plan().n_read) == (6, 6)
    assert {*tmp_path.rglob("*")} == before


def test_without_a_home_nothing_is_cached(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv(CACHE_DIR)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_, **__: "~/.cache/dask_slicer")
    assert header_cache.cache_file(tmp_path) is None


def test_by_default_it_is_in_the_cache_folder_of_the_user(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv(CACHE_DIR)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    file = header_cache.cache_file(tmp_path)
    assert file.name.endswith(".json")
    if sys.platform == "linux":
        assert file.parent == tmp_path / "caches" / "dask_slicer" / "headers"


@pytest.mark.parametrize("dtype", ["<i2", ">f8", "|u1"])
def test_a_cached_header_is_as_it_was_read(dtype) -> None:
    header = VolumeHeader(
        path="a.nii",
        shape=(2, 3, 4),
        dtype=np.dtype(dtype),
        affine=np.diag([1 / 3, -0.0, 5e-324, 1.0]).T,
        oriented=False,
        slope=0.1,
        intercept=-1e300,
        file_bytes=2**40,
        label_names={1: "liver"},
        notes=("the forms differ",),
        data_files=("a.nii", "a.raw"),
        other_affine=np.eye(4),
    )
    content = header_cache._with_tuples(json.loads(json.dumps(header_cache._content_of(header))))
    again = header_cache._header_of(content, "b.nii[1]", ["b.raw"])
    assert (again.path, again.data_files) == ("b.nii[1]", ("b.nii", "b.raw"))
    names = {field.name for field in dataclasses.fields(VolumeHeader)}
    for name in names - {"path", "data_files"}:
        ours, expected = getattr(again, name), getattr(header, name)
        assert type(ours) is type(expected)
        assert np.array_equal(ours, expected)
    assert again.affine.tobytes() == header.affine.tobytes()
    assert again.affine.flags.writeable


@pytest.mark.parametrize("value", [{1: "liver", 2: "spleen"}, {}, np.eye(3)[:2], np.dtype(">i2")])
def test_values_of_fields_survive_json(value) -> None:
    text = json.dumps(header_cache._encoded(value))
    decoded = header_cache._decoded(header_cache._with_tuples(json.loads(text)))
    assert type(decoded) is type(value)
    assert np.array_equal(decoded, value)


def test_what_json_cannot_hold_is_not_cached(cache_dir, dataset) -> None:
    dataset.add("a")
    case = planner.find_cases(dataset.root, InputOptions()).cases[0]
    for value in ({1: "liver"}, np.arange(3), float("nan"), [1, 2], {"a"}):
        for _ in range(2):
            cache = HeaderCache(dataset.root, dataset.root, plane="axial")
            _, facts = cache.facts(case, read_header, lambda _, value=value: {"value": value})
            assert type(facts["value"]) is type(value)
            cache.save()


# -- the files of the cache ------------------------------------------------------------------------


def test_only_the_user_can_read_it_and_it_names_no_folder(plan, cache_dir, dataset) -> None:
    plan()
    (file,) = cache_dir.iterdir()
    if os.name == "posix":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(cache_dir.stat().st_mode) == 0o700
    content = " ".join(_texts(file))
    assert str(dataset.root) not in content
    assert '"imagesTr/a_0000.nii.gz"' in content


def test_files_of_cases_that_are_gone_are_forgotten(plan, cache_dir, dataset) -> None:
    plan()
    dataset.image_path("a").unlink()
    dataset.label_path("a").unlink()
    dataset.add("c")
    plan()
    (file,) = cache_dir.iterdir()
    content = " ".join(_texts(file))
    assert "a_0000" not in content
    assert "b_0000" in content
    assert plan().n_read == 0


def test_each_manifest_has_its_own_cache(plan, cache_dir, dataset) -> None:
    for case_id in ("a", "b"):
        manifest = dataset.root / f"{case_id}.csv"
        manifest.write_text(f"case_id,image\n{case_id},imagesTr/{case_id}_0000.nii.gz\n")
    for n_read in (1, 0, 0):
        for case_id in ("a", "b"):
            assert plan(dataset.root / f"{case_id}.csv").n_read == n_read
    assert len([*cache_dir.iterdir()]) == 2


def test_caches_that_were_not_used_for_long_are_removed(plan, cache_dir) -> None:
    cache_dir.mkdir(parents=True)
    old, new, unfinished = (f"{digit}" * 32 for digit in "012")
    names = {f"{old}.json": 91, f"{new}.json": 89, f".{unfinished}.ab_12": 91, "of_the_user": 1000}
    for name, days in names.items():
        (cache_dir / name).touch()
        os.utime(cache_dir / name, (time.time() - days * 86_400,) * 2)
    plan()
    (used,) = {path.name for path in cache_dir.iterdir()} - {f"{new}.json", "of_the_user"}
    os.utime(cache_dir / used, (0, 0))
    plan()
    assert time.time() - (cache_dir / used).stat().st_mtime < 3600


def test_the_oldest_caches_are_removed_when_all_are_too_large(plan, cache_dir, monkeypatch) -> None:
    cache_dir.mkdir(parents=True)
    for number, name in enumerate("abc"):
        (cache_dir / f"{name * 32}.json").write_bytes(bytes(40_000))
        os.utime(cache_dir / f"{name * 32}.json", (time.time() - number - 1,) * 2)
    monkeypatch.setattr(cache_files, "_MOST_BYTES", 100_000)
    plan()
    assert {"a" * 32, "b" * 32} == {path.stem for path in cache_dir.iterdir()} & {
        name * 32 for name in "abc"
    }
    assert len([*cache_dir.iterdir()]) == 3


def test_plans_at_the_same_time_share_a_cache(dataset, tmp_path, cache_dir, uncached) -> None:
    planes = ["axial", "sagittal", "coronal", "i"] * 4
    right = {plane: uncached(plane=plane).plan.cases for plane in planes}

    def cases_of(plane: str) -> object:
        config = RunConfig(input_dir=dataset.root, output_dir=tmp_path / "out", plane=plane)
        return planner.make_plan(config).cases

    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            for plane, cases in zip(planes, threads.map(cases_of, planes), strict=True):
                assert cases == right[plane]
    assert [path.suffix for path in cache_dir.iterdir()] == [".json"]


@pytest.mark.slow
def test_processes_at_the_same_time_share_a_cache(dataset, cache_dir, tmp_path, plan) -> None:
    time.sleep(RACY_NS / 1e9 + 0.1)  # these processes cache no file that changed just before
    command = [sys.executable, "-m", "dask_slicer", "plan", "--json", "-i", str(dataset.root)]
    processes = [
        subprocess.Popen([*command, "-o", str(tmp_path / f"out{number}")], stdout=subprocess.PIPE)
        for number in range(6)
    ]
    shown = [json.loads(process.communicate()[0])["cases"] for process in processes]
    assert all(cases == shown[0] for cases in shown)
    assert {path.suffix for path in cache_dir.iterdir()} <= {".json"}  # no temporary file
    assert plan().n_read == 0


# -- a run -----------------------------------------------------------------------------------------


def _believe(file: Path, root: Path) -> None:
    """Let a cache take the files of now for those of which it holds the headers."""
    tables: dict[str, list[str]] = {}
    for name, texts in cache_files.read_cache(file):
        for text in texts:
            key, _, entry = text.partition("\t")
            stamps, value = json.loads(entry)
            for stamp in stamps:
                status = (root / stamp[0]).stat()
                stamp[1:] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
            tables.setdefault(name, []).append(f"{key}\t{json.dumps([stamps, value])}")
    cache_files.write_cache(file, tables)


def _texts(file: Path) -> list[str]:
    """Return the entries of a cache."""
    return [text for _, texts in cache_files.read_cache(file) for text in texts]


def _written(output: Path) -> dict[str, bytes]:
    """Return the content of the files that hold slices, and of their list."""
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and ({"train", "slices.zarr"} & {*path.parts} or path.suffix == ".csv")
    }


@pytest.mark.parametrize("format_", ["npz", "zarr"])
@pytest.mark.parametrize(
    ("shape", "affine"),
    [
        ((8, 9, 10), np.diag([1.0, 2.0, 3.0, 1.0])),
        ((8, 9, 10), np.diag([-1.0, 2.0, 3.0, 1.0])),
        ((12, 5, 7), np.array([[0, 0, 2.0, 0], [1.0, 0, 0, 0], [0, 3.0, 0, 0], [0, 0, 0, 1]])),
    ],
    ids=["the same grid", "flipped", "another grid"],
)
def test_a_run_makes_right_slices_of_files_that_the_cache_is_wrong_about(
    dataset, slice_dataset, cache_dir, monkeypatch, shape, affine, format_
) -> None:
    rng = np.random.default_rng(0)
    dataset.add("a", affine=np.diag([1.0, 2.0, 3.0, 1.0]))
    config = RunConfig(input_dir=dataset.root, output_dir=dataset.root.parent / "out")
    planner.make_plan(config)
    image = rng.integers(0, 1000, shape).astype(np.int16)
    dataset.add("a", image, affine=affine)
    (file,) = cache_dir.iterdir()
    _believe(file, dataset.root)
    with monkeypatch.context() as patch:
        patch.setattr(headers, "read_header", lambda path, **_: pytest.fail(path))
        misled = slice_dataset(output="misled", format=format_)
    monkeypatch.setenv(CACHE_DIR, "none")
    right = slice_dataset(output="right", format=format_)
    assert _written(misled) == _written(right)
    assert len(dask_slicer.SliceDataset(misled)) == shape[2 if affine[2, 2] else 1]


def test_a_run_fails_a_case_whose_label_no_longer_fits_whatever_the_cache_says(
    dataset, slice_dataset, cache_dir
) -> None:
    for case_id in ("a", "b"):
        dataset.add(case_id)
    config = RunConfig(input_dir=dataset.root, output_dir=dataset.root.parent / "out")
    planner.make_plan(config)
    dataset.write(dataset.label_path("a"), IMAGE.astype(np.uint8)[:-1], np.eye(4))
    (file,) = cache_dir.iterdir()
    _believe(file, dataset.root)
    output = slice_dataset()
    assert "GeometryMismatch" in (output / "failures.csv").read_text()
    assert {path.name[0] for path in output.rglob("*.npz")} == {"b"}
