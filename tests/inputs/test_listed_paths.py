"""Listed paths lead to files whose names are spelled a little differently, if that is clear."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.listed_paths import ListedPaths


def _nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize(
    ("files", "text", "expected"),
    [
        pytest.param(["a.nii"], "./x/../a.nii", "a.nii", id="plain"),
        pytest.param([_nfd("Müller.nii")], "Müller.nii", _nfd("Müller.nii"), id="decomposed"),
        pytest.param(["Müller.nii"], _nfd("Müller.nii"), "Müller.nii", id="composed"),
        pytest.param(["Scan.NII"], "scan.nii", "Scan.NII", id="letters"),
        pytest.param(["A /Scan.nii"], "a/scan.nii", "A /Scan.nii", id="folder"),
        pytest.param(["a/b/c.nii"], "a\\b\\C.nii", "a/b/c.nii", id="backslashes"),
        pytest.param(["a\\b.nii"], "a\\b.nii", "a\\b.nii", id="a name with a backslash"),
        pytest.param([" a.nii"], "a.nii[3]", " a.nii[3]", id="blanks, one volume"),
        pytest.param(["a.nii", "A.nii"], "a.nii", "a.nii", id="exact"),
        pytest.param(["Ä.nii", _nfd("Ä.nii")], "ä.nii", "ä.nii", id="two that look alike"),
        pytest.param([], "no/such.nii", "no/such.nii", id="missing"),
        pytest.param([], "a\0.nii", "a\0.nii", id="no path"),
    ],
)
def test_a_listed_path_is_looked_up(
    tmp_path: Path, files: list[str], text: str, expected: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    if len(os.listdir(tmp_path)) < len(files):
        pytest.skip("this file system takes the names for one")
    paths = ListedPaths(tmp_path / "m.csv")
    assert paths.find(text) == os.path.join(tmp_path, expected)


@pytest.mark.skipif(os.sep == "\\", reason="this system has drives")
@pytest.mark.parametrize("text", ["C:\\scans\\a.nii", "d:/a.nii", "\\\\server\\scans\\a.nii"])
def test_a_drive_of_windows_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(DatasetError, match="on a drive of Windows"):
        ListedPaths(tmp_path / "m.csv").find(text)
