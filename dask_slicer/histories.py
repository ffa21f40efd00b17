"""What all journals of an output say of a case: its own, and those of shares not merged yet.

The output's own journal is always the oldest: it is not written while shares run, and whoever
writes it next takes over what they left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dask_slicer.journal import (
    CaseRecord,
    CommittedCase,
    FailedCase,
    RemovedCase,
    lines,
    read_line,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What became of a case, time after time.

    Attributes
    ----------
    records : tuple of CaseRecord
        All that shares wrote, the newest first, then the last one of the output's own journal.
    own : CaseRecord or None
        That last one, if there is one.
    """

    records: tuple[CaseRecord, ...]
    own: CaseRecord | None

    @property
    def case_id(self) -> str:
        """Return the id of the case."""
        return self.records[0].case_id

    @property
    def committed(self) -> tuple[CommittedCase, ...]:
        """Return commits of which the files were not taken away since, the newest first."""
        since = takewhile(lambda record: not isinstance(record, RemovedCase), self.records)
        return tuple(record for record in since if isinstance(record, CommittedCase))

    @property
    def failure(self) -> FailedCase | None:
        """Return how the case failed, if that is the last that became of it."""
        newest = self.records[0]
        return newest if isinstance(newest, FailedCase) else None


def histories(journals: Sequence[Path]) -> Iterator[History]:
    """Yield what journals say of each case; one case is in memory at a time.

    Parameters
    ----------
    journals : sequence of Path
        The first is the output's own. They need not exist.
    """
    places: defaultdict[str, list[_Place]] = defaultdict(list)
    for number, path in enumerate(journals):
        found = lines(path)
        for case_id, line in found if number else dict(found).items():
            places[case_id].append(_Place(number > 0, line.at, number, line.offset))
    by_case = [sorted(ones, reverse=True) for ones in places.values()]
    # By journal: most cases are in one alone, which is then read from its start to its end.
    by_case.sort(key=lambda ones: ones[0][2:])
    with closing(_Reader(journals)) as reader:
        for newest_first in by_case:
            records = [reader.read(place) for place in newest_first]
            yield History(
                records=tuple(record for record in records if record is not None),
                own=None if newest_first[-1].is_of_share else records[-1],
            )


class _Place(NamedTuple):
    """A line of a journal; they sort by age."""

    is_of_share: bool
    at: float
    journal: int
    offset: int


class _Reader:
    """Reads lines of several journals, of which one is open at a time."""

    def __init__(self, journals: Sequence[Path]) -> None:
        self._journals = journals
        self._number = -1
        self._file: BinaryIO | None = None

    def read(self, place: _Place) -> CaseRecord | None:
        if self._file is None or place.journal != self._number:
            self.close()
            self._number, self._file = place.journal, self._journals[place.journal].open("rb")
        return read_line(self._file, place.offset)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
