"""The words of the package and its documents: plain English, read once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from repository import ROOT

# Words of earlier messages that had to be read twice, each with what is written now.
AVOIDED = {
    "anew": "again",
    "somebody": "another user, another process",
    "someone": "another user, another process",
    "whoever": "the user, the next run",
    "told": "sent, printed, given; the name of the thing",
    "stands": "is; the name of the state",
    "unheard": "without a heartbeat",
    "said of": "about",
}
PATTERN = re.compile(rf"\b({'|'.join(AVOIDED)})\b", re.IGNORECASE)
SUFFIXES = {".html", ".in", ".ipynb", ".md", ".py", ".yaml", ".yml"}
FOLDERS = ("dask_slicer", "docs", "configs", "notebooks", ".github")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"] + [
    path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in SUFFIXES and "_build" not in path.parts
]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_page_is_without_words_that_have_to_be_read_twice(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert not [
        f"{number}: {line.strip()}: {AVOIDED[match[0].lower()]}"
        for number, line in enumerate(lines, start=1)
        if (match := PATTERN.search(line))
    ]
