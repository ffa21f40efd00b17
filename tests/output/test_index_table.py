"""slices.csv and its columns as numbers: equal answers, and memory that does not grow with rows."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import shutil
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import slice_formats
from many_slices import committed, multiply

from dask_slicer import SliceDataset, open_output
from dask_slicer.config.file_settings import NPZ, PNG, FileTemplate
from dask_slicer.errors import OutputError
from dask_slicer.output import checks, directory, index, index_table, layout
from dask_slicer.output.formats import columns
from dask_slicer.output.index import IndexedCase, SliceIndex
from dask_slicer.output.index_table import open_index, write_index
from dask_slicer.output.journal import last_records
from dask_slicer.output.split import split_output
from dask_slicer.report.overview import overview

COLUMNS = ("case", "slice_index", "foreground", "label_ends", "label_values", "label_counts")
KINDS = {
    **slice_formats.FORMATS,
    "planes": {"plane": "axial,coronal"},
    "planes of a store": {"plane": "axial,sagittal", "format": "zarr"},
    "dropped": {"min_foreground": 0.25},
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch) -> None:
    """Let a few slices fill a block, so that there is a file with columns."""
    monkeypatch.setattr(index_table, "_ROWS_OF_BLOCK", 10)


@pytest.fixture
def cases(dataset) -> None:
    """Cases whose names need quotes, formats or nothing; one has no label, one an empty one."""
    rng = np.random.default_rng(1)
    for number, case_id in enumerate(("a", "b,c", "d {e}", "f%d_001", "gü")):
        label = rng.choice([0, 0, 1, 7], (8, 9, 6 + number)).astype(np.uint8)
        label = {1: None, 2: np.zeros_like(label)}.get(number, label)
        dataset.add(case_id, np.zeros((8, 9, 6 + number), np.int16), label)


@pytest.fixture
def output(cases, slice_dataset) -> Path:
    return slice_dataset(allow_missing_labels=True, train_ratio=0.6)


@pytest.fixture
def only_columns(monkeypatch) -> None:
    """Make reading slices.csv, row by row, an error."""

    def refuse(table: Path, _: object) -> None:
        raise AssertionError(f"{table} is read")

    monkeypatch.setattr(index_table, "_of_table", refuse)


def index_of(output: Path) -> SliceIndex:
    return open_index(output, directory.output_config(output)).whole()


def assert_same(one: SliceIndex, other: SliceIndex) -> None:
    assert one.cases == other.cases
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        assert getattr(one, name).dtype == getattr(other, name).dtype


@pytest.mark.parametrize("kind", KINDS)
def test_columns_give_the_index_that_slices_csv_gives(
    cases, slice_dataset, monkeypatch, kind
) -> None:
    output = slice_dataset(allow_missing_labels=True, **KINDS[kind])
    stored = open_index(output, directory.output_config(output))
    n_of_parts = [len(part) for part in stored]
    assert len(n_of_parts) > 1
    of_columns = stored.whole()
    (output / layout.INDEX_COLUMNS).unlink()
    of_table = index_of(output)
    assert_same(of_columns, of_table)
    assert sum(n_of_parts) == len(of_table)
    later = (output / layout.INDEX).stat().st_mtime_ns + 10**9
    os.utime(output / layout.JOURNAL, ns=(later, later))
    of_journal = index_of(output)
    assert_same(of_journal, of_table)
    assert (of_journal.n_committed, of_table.n_committed) == (5, None)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_slices_csv_are_those_of_the_csv_module(cases, slice_dataset, kind) -> None:
    output = slice_dataset(allow_missing_labels=True, **KINDS[kind])
    has_plane = "plane" in KINDS[kind]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(layout.COLUMNS_OF_PLANES if has_plane else layout.COLUMNS)
    config = directory.output_config(output)
    for record in committed(output):
        for part in record.parts:
            template = None if config.format == "zarr" else config.image_template(part.split)
            case = IndexedCase(part.case_id, part.split, 3, part.plane, template)
            for slice_index, _, _, labels in part.slices:
                share = counts = ""
                if labels is not None:
                    share = f"{sum(labels.values()) / (part.shape[2] * part.shape[3]):.6g}"
                    counts = ";".join(f"{value}:{n}" for value, n in labels.items())
                place = (part.case_id, part.split, part.plane)[: 2 + has_plane]
                row = slice_index if case.is_shared else ""
                path = case.path_of(slice_index)
                writer.writerow([*place, slice_index, path, row, share, counts])
    assert (output / layout.INDEX).read_text(encoding="utf-8") == text.getvalue()


TEMPLATES = [
    *(None, NPZ, PNG[0], PNG[2]),
    FileTemplate(path="a/{case_id}_{slice_index}.npy", holds="image"),
    FileTemplate(path="{split}/x_{slice_number:05d}_{case_id}.npy", holds="image"),
    FileTemplate(path="{case_id}.npy", holds="image"),
]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda each: getattr(each, "path", "zarr"))
@pytest.mark.parametrize("plane", ["", "coronal"])
def test_many_paths_are_those_of_each_slice(template, plane) -> None:
    for digits in (3, 5):
        case = IndexedCase("a {split}%s", "val", digits, plane, template)
        indices = [0, 7, 999, 12345]
        assert case.paths_of(indices) == [case.path_of(index) for index in indices]


def with_table(output: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Change members of the columns, all checksums sound."""
    path = output / layout.INDEX_COLUMNS
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def with_rows(name: str, value: int) -> Callable[[dict[str, bytes]], None]:
    """Return what sets a number of the third row."""

    def change(members: dict[str, bytes]) -> None:
        rows = np.frombuffer(members["000000.rows"], columns.ROW).copy()
        rows[name][2] = value
        members["000000.rows"] = rows.tobytes()

    return change


def repeat_block(members: dict[str, bytes]) -> None:
    table = members.pop("table.json")
    first = [*members.items()][:3]
    members |= {name.replace("000000", "000001"): content for name, content in first}
    members["table.json"] = table


def damaged_byte(output: Path) -> None:
    path = output / layout.INDEX_COLUMNS
    content = bytearray(path.read_bytes())
    content[content.index(b"000000.rows") + 40] ^= 1
    path.write_bytes(content)


def compressed(output: Path) -> None:
    path = output / layout.INDEX_COLUMNS
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def changed_table(output: Path, old: bytes, new: bytes) -> None:
    """Change slices.csv, and give it back its time."""
    path = output / layout.INDEX
    times = path.stat().st_mtime_ns
    content = path.read_bytes()
    path.write_bytes(content.replace(old, new, 1))
    assert path.read_bytes() != content
    os.utime(path, ns=(times, times))


UNTRUSTED: dict[str, Callable[[Path], object]] = {
    "absent": lambda output: (output / layout.INDEX_COLUMNS).unlink(),
    "a row less": lambda output: changed_table(
        output, (output / layout.INDEX).read_bytes().splitlines(keepends=True)[3], b""
    ),
    "another slice": lambda output: changed_table(output, b"a,val,1,", b"a,val,0,"),
    "same size": lambda output: changed_table(output, b"7:", b"3:"),
    "longer": lambda output: changed_table(output, b";7:", b";7:1"),
    "empty": lambda output: (output / layout.INDEX_COLUMNS).write_bytes(b""),
    "folder": lambda output: (
        (output / layout.INDEX_COLUMNS).unlink(),
        (output / layout.INDEX_COLUMNS).mkdir(),
    ),
    "cut": lambda output: os.truncate(output / layout.INDEX_COLUMNS, 300),
    "damaged": damaged_byte,
    "compressed": compressed,
    "case beyond": lambda output: with_table(output, with_rows("case", 99)),
    "case below": lambda output: with_table(output, with_rows("case", -1)),
    "negative slice": lambda output: with_table(output, with_rows("slice_index", -1)),
    "too many labels": lambda output: with_table(output, with_rows("n_labels", 50)),
    "negative labels": lambda output: with_table(output, with_rows("n_labels", -1)),
    "negative pixels": lambda output: with_table(
        output,
        lambda members: members.update({"000000.labels": b"\xff" * len(members["000000.labels"])}),
    ),
    "half a row": lambda output: with_table(
        output, lambda members: members.update({"000000.rows": members["000000.rows"][:-1]})
    ),
    "path above": lambda output: with_table(
        output,
        lambda members: members.update(
            {"000000.cases": members["000000.cases"].replace(b",val/a", b",../va/a")}
        ),
    ),
    "no row": lambda output: with_table(
        output,
        lambda members: members.update(
            {"000000.cases": members["000000.cases"].replace(b".npz,", b".npz,0")}
        ),
    ),
    "repeated": lambda output: with_table(output, repeat_block),
    "no table": lambda output: with_table(output, lambda members: members.pop("table.json")),
}


@pytest.mark.parametrize("kind", UNTRUSTED)
def test_columns_that_are_not_those_of_slices_csv_are_not_read(output, kind) -> None:
    assert index_of(output).labels(2)
    UNTRUSTED[kind](output)
    stored = open_index(output, directory.output_config(output))
    (part,) = stored  # all rows of slices.csv at once
    if (output / layout.INDEX_COLUMNS).is_dir():
        (output / layout.INDEX_COLUMNS).rmdir()
    (output / layout.INDEX_COLUMNS).unlink(missing_ok=True)
    assert_same(part, index_of(output))
    assert stored._parts.__qualname__.startswith("StoredIndex.of")


@pytest.mark.parametrize("seed", range(3))
def test_columns_with_any_damage_give_the_rows_of_slices_csv(output, seed) -> None:
    expected, path = index_of(output), output / layout.INDEX_COLUMNS
    whole = path.read_bytes()
    rng = np.random.default_rng(seed)
    for _ in range(60):
        start, n = int(rng.integers(len(whole))), int(rng.integers(1, 30))
        path.write_bytes(whole[:start] + rng.bytes(n * int(rng.integers(2))) + whole[start + n :])
        assert_same(index_of(output), expected)


def test_columns_are_read_whatever_the_time_of_slices_csv(output, only_columns) -> None:
    for seconds in (10**3, 10**9, 2 * 10**9):
        os.utime(output / layout.JOURNAL, (seconds, seconds))
        os.utime(output / layout.INDEX, (seconds, seconds))
        assert len(index_of(output)) == 40
    copied = output.with_name("copied")
    shutil.copytree(output, copied, copy_function=shutil.copyfile)
    os.utime(copied / layout.INDEX)
    assert len(SliceDataset(copied, None)) == 40


def test_columns_that_change_while_they_are_read_are_an_error(output) -> None:
    stored = open_index(output, directory.output_config(output))
    with_table(output, with_rows("case", 99))
    with pytest.raises(OutputError, match=r"slices\.columns changed while it was read"):
        stored.whole()


def test_columns_and_slices_csv_stay_as_they_were_if_writing_fails(output) -> None:
    before = {name: (output / name).read_bytes() for name in (layout.INDEX, layout.INDEX_COLUMNS)}

    def some() -> Iterator[object]:
        yield from list(committed(output))[:2]
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_index(output, some(), directory.output_config(output))
    assert before == {name: (output / name).read_bytes() for name in before}
    assert not list((output / layout.TEMPORARY).iterdir())


def test_the_same_cases_give_the_same_bytes(output) -> None:
    before = (output / layout.INDEX_COLUMNS).read_bytes()
    write_index(output, committed(output), directory.output_config(output))
    assert (output / layout.INDEX_COLUMNS).read_bytes() == before


def test_numbers_beyond_32_bit_are_kept(output) -> None:
    lines = [json.loads(line) for line in (output / layout.JOURNAL).read_text().splitlines()]
    first = next(line for line in lines if line["case_id"] == "a")
    first["slices"][0][3] = {"1": 2**40, str(-(2**50)): 3}
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (output / layout.JOURNAL).write_text(text)
    write_index(output, committed(output), directory.output_config(output))
    of_columns = index_of(output)
    assert of_columns.labels(0) == {1: 2**40, -(2**50): 3}
    assert of_columns.label_values.dtype == of_columns.label_counts.dtype == np.int64
    (output / layout.INDEX_COLUMNS).unlink()
    assert_same(index_of(output), of_columns)


def test_verify_finds_columns_that_differ_from_the_journal(output, invoke) -> None:
    verify = ("verify", output, "--num_workers", 0)
    assert invoke(*verify).exit_code == 0
    (output / layout.INDEX_COLUMNS).rename(output / "kept")
    assert invoke(*verify).exit_code == 0  # as of an earlier version
    for change in (damaged_byte, lambda output: with_table(output, with_rows("slice_index", 1))):
        shutil.copyfile(output / "kept", output / layout.INDEX_COLUMNS)
        change(output)
        result = invoke(*verify)
        assert result.exit_code == 1
        assert "slices.columns: differs from the journal; the same run command writes it" in (
            result.output
        )
    result = invoke("run", "--config", output / layout.CONFIG, "--num_workers", 0)
    assert result.exit_code == 0, result.output
    assert (output / layout.INDEX_COLUMNS).read_bytes() == (output / "kept").read_bytes()


# -- filters and weights ---------------------------------------------------------------------------


def some_index(n: int) -> SliceIndex:
    rng = np.random.default_rng(n)
    n_labels = rng.integers(0, 4, n).astype(np.int32)
    values = np.concatenate([rng.permutation(5)[:k] + 1 for k in n_labels] or [[]])
    return SliceIndex(
        cases=(IndexedCase("a", "train"), IndexedCase("b", "val"), IndexedCase("c", "val")),
        case=np.sort(rng.choice([0, 2], n)).astype(np.int32),
        slice_index=np.arange(n, dtype=np.int32),
        foreground=rng.random(n).astype(np.float32),
        label_ends=index.ends_of(n_labels),
        label_values=values.astype(np.int32),
        label_counts=np.arange(len(values), dtype=np.int32),
        n_committed=3,
    )


@pytest.mark.parametrize("n", [0, 1, 50])
@pytest.mark.parametrize("at_once", [7, 1000])
def test_rows_with_labels_and_balanced_weights_are_those_of_a_loop(monkeypatch, n, at_once) -> None:
    monkeypatch.setattr(index, "_ROWS_AT_ONCE", at_once)
    some = some_index(n)
    labels = [some.labels(row) for row in range(n)]
    for values in ((), (2,), (1, 5, 9)):
        assert some.rows_with(values).tolist() == [bool({*own} & {*values}) for own in labels]
    if n:
        n_of = {value: sum(value in own for own in labels) for value in range(1, 6)}
        n_empty = sum(not own for own in labels)
        weights = [sum(1 / n_of[v] for v in own) if own else 1 / n_empty for own in labels]
        np.testing.assert_allclose(some.balanced_weights(), np.divide(weights, sum(weights)))


def test_selected_rows_keep_their_cases_and_labels() -> None:
    some = some_index(50)
    rows = some.foreground > 0.5
    selected = some.select(rows)
    assert [case.case_id for case in selected.cases] == ["a", "c"]
    places = np.flatnonzero(rows).tolist()
    assert selected.slice_index.tolist() == places
    assert [selected.labels(row) for row in range(len(selected))] == [*map(some.labels, places)]
    cases = [selected.cases[number] for number in selected.case]
    assert cases == [some.cases[number] for number in some.case[rows]]
    assert selected.case.dtype == np.int32
    whole = some.of_cases(lambda case: True)
    assert (whole.n_committed, len(whole)) == (None, 50)


# -- memory ----------------------------------------------------------------------------------------


def _whole(output: Path) -> None:
    config = directory.output_config(output)
    checks.check_whole(output, config, last_records(output / layout.JOURNAL))


STREAMING: dict[str, Callable[[Path], object]] = {
    "write": lambda output: write_index(output, committed(output), directory.output_config(output)),
    "one case": lambda output: SliceDataset(output, "train", cases=["case_000001"]),
    "one label": lambda output: SliceDataset(output, "train", labels=[9]),
    "report": lambda output: overview(open_output(output)),
    "verify": _whole,
    "split": lambda output: split_output(output, folds=2, stratify="label"),
}


@pytest.fixture
def peaks(dataset, slice_dataset, monkeypatch) -> Callable[[Callable[[Path], object]], list[int]]:
    """Return a function that gives the peak memory of a call with 20,000 and with 40,000 rows."""
    monkeypatch.setattr(index_table, "_ROWS_OF_BLOCK", 2000)
    monkeypatch.setattr("dask_slicer.report.overview._SAMPLED_SLICES", 0)
    dataset.add("a")
    outputs = [slice_dataset(output=name) for name in ("fewer", "more")]
    for output, n_cases in zip(outputs, (20, 40), strict=True):
        multiply(output, n_cases, 1000)

    def call(use: Callable[[Path], object]) -> list[int]:
        found = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # slices are missing
            use(outputs[0])  # so that nothing is imported later
            for output in outputs:
                tracemalloc.start()
                try:
                    kept = use(output)
                    _, peak = tracemalloc.get_traced_memory()
                finally:
                    tracemalloc.stop()
                del kept
                found.append(peak)
        return found

    return call


@pytest.mark.parametrize("use", STREAMING)
def test_memory_does_not_grow_with_rows(peaks, use) -> None:
    fewer, more = peaks(STREAMING[use])
    assert more - fewer < 20_000 * 3, (fewer, more)


def test_a_dataset_takes_few_bytes_for_each_row(peaks) -> None:
    fewer, more = peaks(lambda output: SliceDataset(output, None))
    # Four columns of four bytes, and two for the labels in two of three rows; one column twice.
    assert more - fewer < 20_000 * (16 + 8 * 2 / 3 + 8), (fewer, more)


def test_a_dataset_is_pickled_in_few_bytes_for_each_row(dataset, slice_dataset) -> None:
    dataset.add("a")
    output, sizes = slice_dataset(), []
    for n_slices in (1000, 2000):
        multiply(output, 20, n_slices)
        sizes.append(len(pickle.dumps(SliceDataset(output, None))))
    fewer, more = sizes
    assert more - fewer < 20_000 * (16 + 8 * 2 / 3 + 1), sizes


def test_slices_csv_alone_takes_few_bytes_for_each_row(peaks) -> None:
    def use(output: Path) -> SliceDataset:
        (output / layout.INDEX_COLUMNS).unlink(missing_ok=True)
        return SliceDataset(output, None)

    fewer, more = peaks(use)
    assert more - fewer < 20_000 * 70, (fewer, more)


def test_memory_does_not_grow_with_files(dataset, slice_dataset) -> None:
    dataset.add("a")
    output = slice_dataset()
    config = directory.output_config(output)
    found = []
    for n_cases in (20, 40):
        multiply(output, n_cases, 100)
        records = last_records(output / layout.JOURNAL)
        for record in committed(output):
            for path in layout.case_files(record):
                (output / path).parent.mkdir(exist_ok=True)
                (output / path).touch()
        inventory, _ = checks.check_whole(output, config, records)
        tracemalloc.start()
        try:
            strays = [issue.path for issue in checks._strays(output, inventory)]
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        found.append(peak)
        assert len(strays) == 10  # of the case that the journal had before
    fewer, more = found
    assert more - fewer < 2000 * 20, found
