"""Which cases a share of a run takes, and what its own files in the output are called.

Shares run side by side, on machines that need not know of each other: whoever knows all case ids
and I/N knows which cases are theirs.

    a  b  c  d  e  f  g        sorted case ids
    1  2  3  1  2  3  1        of 3 shares
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_JOURNAL = re.compile(r"journal\.(\d+)of(\d+)\.jsonl")
_ASIDE = re.compile(r"\.dask_slicer\.(.+\.)?(lock|json)\.[0-9a-f]{8}")
_LOCK = re.compile(r"\.dask_slicer\.(\d+)of(\d+)\.lock")
_TEMPORARY = re.compile(r"\.dask_slicer\.(\d+of\d+\.)?tmp")


class OwnFiles(NamedTuple):
    """What a run, or a share of one, writes alone, at the top of the output."""

    journal: str
    lock: str
    temporary: str


WHOLE = OwnFiles("journal.jsonl", ".dask_slicer.lock", ".dask_slicer.tmp")


@dataclass(frozen=True, slots=True, order=True)
class Share:
    """The `number`-th, from 1, `of` so many shares of a run.

    Examples
    --------
    >>> share = Share(2, 3)
    >>> str(share)
    '2/3'
    """

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def cases(self, case_ids: Iterable[str]) -> list[str]:
        """Return every `of`-th of the sorted case ids: neighbours are often of one size.

        Examples
        --------
        >>> Share(2, 3).cases("gfedcba")
        ['b', 'e']
        """
        return sorted(case_ids)[self.number - 1 :: self.of]


def share_of(setting: str | None) -> Share | None:
    """Return the share that I/N stands for, as the configuration has checked it.

    Examples
    --------
    >>> share_of("2/3"), share_of(None)
    (Share(number=2, of=3), None)
    """
    if setting is None:
        return None
    number, _, of = setting.partition("/")
    return Share(int(number), int(of))


def files_of(share: Share | None) -> OwnFiles:
    """Return what a share writes alone, or a run of the whole.

    Examples
    --------
    >>> files_of(Share(2, 3)).journal
    'journal.2of3.jsonl'
    """
    if share is None:
        return WHOLE
    name = f"{share.number}of{share.of}"
    return OwnFiles(
        f"journal.{name}.jsonl", f".dask_slicer.{name}.lock", f".dask_slicer.{name}.tmp"
    )


def journals_of_shares(output_dir: Path) -> list[Path]:
    """Return the journals that shares left, by share: what they did is not merged yet."""
    return [output_dir / files_of(share).journal for share in _found(output_dir, _JOURNAL)]


def journals(output_dir: Path) -> list[Path]:
    """Return where records of cases are: the output's own journal, then those of shares."""
    return [output_dir / WHOLE.journal, *journals_of_shares(output_dir)]


def shares_with_lock(output_dir: Path) -> list[Share]:
    """Return the shares that hold the output, or did when they died."""
    return _found(output_dir, _LOCK)


def asides(output_dir: Path) -> list[Path]:
    """Return locks and agreements that are being written, or were when their writer died."""
    return [output_dir / name for name in _names(output_dir) if _ASIDE.fullmatch(name)]


def temporaries(output_dir: Path) -> list[Path]:
    """Return what holds, or held, unfinished writing of a run or its shares."""
    return [output_dir / name for name in _names(output_dir) if _TEMPORARY.fullmatch(name)]


def _found(output_dir: Path, pattern: re.Pattern[str]) -> list[Share]:
    matches = filter(None, map(pattern.fullmatch, _names(output_dir)))
    return sorted(Share(int(match[1]), int(match[2])) for match in matches)


def _names(output_dir: Path) -> list[str]:
    try:
        return sorted(os.listdir(output_dir))
    except FileNotFoundError:
        return []
