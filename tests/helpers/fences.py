"""Fenced code blocks of README and documentation: run by tests, or marked as examples.

The word after the language of a fence marks it: ```` ```sh example ```` is not run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from repository import ROOT

README = ROOT / "README.md"
PAGES = (
    README,
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/recipes").glob("*.md")),
)
_FENCE = re.compile(r"^(?P<ticks>```+)(?P<info>.*)\n(?P<code>(?:.*\n)*?)(?P=ticks)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """A fenced block."""

    page: str
    line: int
    language: str
    is_example: bool
    code: str


def fences(page: Path) -> Iterator[Fence]:
    """Yield the fenced blocks of a page, without directives of MyST."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        language, _, mark = found["info"].partition(" ")
        if language.startswith("{"):
            continue
        assert mark in ("", "example"), found["info"]
        yield Fence(
            page=page.relative_to(ROOT).as_posix(),
            line=text.count("\n", 0, found.start()) + 1,
            language=language,
            is_example=mark == "example",
            code=found["code"],
        )


def code_of(page: Path, language: str) -> list[str]:
    """Return the blocks of a language that are run."""
    return [
        fence.code for fence in fences(page) if fence.language == language and not fence.is_example
    ]
