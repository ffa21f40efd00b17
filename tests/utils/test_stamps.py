"""Sizes and times of files."""

from __future__ import annotations

import pytest

from dask_slicer.utils.stamps import Stamp, Stamps


def test_a_stamp_is_what_the_system_says(tmp_path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"123")
    status = path.stat()
    assert Stamp.of(str(path)) == (3, status.st_mtime_ns, status.st_ctime_ns)
    with pytest.raises(FileNotFoundError):
        Stamp.of(str(tmp_path / "b"))


def test_stamps_keep_all_digits_and_their_order() -> None:
    stamps = Stamps()
    for number, path in enumerate("cab"):
        stamps[path] = Stamp(number, 2**62 + number, -number)
    assert [*stamps.items()] == [(path, (n, 2**62 + n, -n)) for n, path in enumerate("cab")]
    assert stamps.get("x") is None
    assert ("a" in stamps, "x" in stamps, len(stamps)) == (True, False, 3)
