"""Shards of a Zarr store: one writer each, and chunks that are checked when they are read."""

from __future__ import annotations

import os

import pytest

from dask_slicer.errors import CorruptFile
from dask_slicer.output.formats import zarr_writer
from dask_slicer.output.formats.zarr_shards import ShardReader, ShardWriter


class TestShards:
    def test_one_shard_has_one_writer(self, dataset, slice_dataset, monkeypatch):
        dataset.add("a")
        monkeypatch.setattr(
            zarr_writer, "_SHARD_BYTES", 3 * 9 * 8 * 4
        )  # several, all of them here:
        monkeypatch.setattr(zarr_writer, "shard_path", lambda folder, *_: folder / "c" / "0")
        failures = (slice_dataset(format="zarr") / "failures.csv").read_text()
        assert "a,save,Unexpected," in failures
        assert "FileExistsError" in failures

    def test_chunks_are_read_back_and_missing_ones_are_reported(self, tmp_path):
        with (tmp_path / "shard").open("xb") as file:
            writer = ShardWriter(file, 3)
            writer.append(b"one")
            writer.append(b"")
            writer.finish(fsync=True)
        reader = ShardReader(tmp_path / "shard", 3)
        assert [bytes(reader.chunk(number)) for number in (0, 1)] == [b"one", b""]
        with pytest.raises(CorruptFile, match="chunk 2 is damaged"):
            reader.chunk(2)

    def test_all_of_a_shard_is_with_the_system_when_it_is_synced(self, tmp_path, monkeypatch):
        synced = []
        monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
        with (tmp_path / "shard").open("xb") as file:
            writer = ShardWriter(file, 1)
            writer.append(b"one")
            size, _ = writer.finish(fsync=True)
        assert synced == [size]

    @pytest.mark.parametrize(
        ("cut", "message"), [(0, "cut"), (1, "cut"), (10, "cut"), (26, "index fails its checksum")]
    )
    def test_a_truncated_shard_is_reported(self, tmp_path, cut, message):
        path = tmp_path / "shard"
        with path.open("xb") as file:
            writer = ShardWriter(file, 1)
            writer.append(b"one")
            writer.finish(fsync=False)
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(CorruptFile, match=message):
            ShardReader(path, 1)
