"""Partitions of a run, the setting `shard`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Partition:
    """Partition `number`, counted from 1, `of` a run's partitions."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def cases(self, case_ids: Iterable[str]) -> list[str]:
        """Return every `of`-th of the sorted case ids: neighbours often have equal sizes."""
        return sorted(case_ids)[self.number - 1 :: self.of]


def parse_partition(setting: str | None) -> Partition | None:
    """Return the partition of the setting `shard`, I/N, which was checked before; None for None."""
    if setting is None:
        return None
    number, _, of = setting.partition("/")
    return Partition(int(number), int(of))
