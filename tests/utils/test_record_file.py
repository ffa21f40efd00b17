"""Files of short texts in tables: read as written, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dask_slicer.utils import record_file
from dask_slicer.utils.record_file import read_records, write_records

TABLES = {"few": ["[1]"], "none": [], "many": [f'"{number} é \udcff"' for number in range(300)]}


@pytest.fixture
def file(tmp_path) -> Path:
    """Return a file with some tables."""
    path = tmp_path / "folder" / "records.json"
    write_records(path, {"of": "a test"}, TABLES)
    return path


def read(file: Path) -> dict[str, list[str]]:
    """Return the tables of a file."""
    tables: dict[str, list[str]] = {}
    for name, texts in read_records(file, lambda about: about == {"of": "a test"}):
        tables.setdefault(name, []).extend(texts)
    return tables


def test_tables_are_read_as_they_were_written(file) -> None:
    assert read(file) == TABLES


def test_tables_are_read_a_few_texts_at_a_time(file) -> None:
    blocks = [len(texts) for _, texts in read_records(file, bool)]
    assert sum(blocks) == 301
    assert max(blocks) <= record_file._BLOCK


def test_a_file_of_something_else_has_no_tables(file) -> None:
    assert [*read_records(file, lambda about: about["of"] == "another")] == []


@pytest.mark.parametrize("part", [0.0, 0.3, 0.7, 0.95])
def test_a_file_that_was_cut_is_damaged(file, part) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(part * (len(content)))])
    with pytest.raises((ValueError, TypeError)):
        read(file)


def test_no_flipped_bit_is_read(file) -> None:
    content = file.read_bytes()
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        file.write_bytes(damaged)
        try:
            tables = read(file)
        except Exception:  # as readers of a cache take it
            continue
        assert tables in (TABLES, {})  # without tables, what the file is has changed


def test_a_block_that_inflates_to_more_than_ours_is_refused(file, monkeypatch) -> None:
    write_records(file, {"of": "a test"}, {"large": ["x" * 100_000]})
    assert file.stat().st_size < 1000
    assert read(file) == {"large": ["x" * 100_000]}
    monkeypatch.setattr(record_file, "_MOST_INFLATED", 99_999)
    with pytest.raises(ValueError, match="too large"):
        read(file)


def test_what_was_there_stays_if_writing_fails(file) -> None:
    def texts():
        yield "[]"
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_records(file, {}, {"few": texts()})
    assert read(file) == TABLES
    assert os.listdir(file.parent) == [file.name]
