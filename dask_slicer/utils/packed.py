"""Lists of many records in little memory: most of them are kept packed."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from operator import attrgetter
from threading import RLock
from typing import Any, TypeVar, overload

T = TypeVar("T")

# Records that are packed together, and blocks that stay as they are: up to 2048 records are never
# packed. A record of 1 kB with much the same content as its neighbours takes about 50 bytes.
_BLOCK, _MOST_OPEN = 32, 64


def quick_to_pack(kind: type[T]) -> type[T]:
    """Let records of a dataclass be pickled, and made again, in a third of the time."""
    record_type: Any = kind
    names = [field.name for field in fields(record_type)]
    values_of = attrgetter(*names)

    def setstate(record: T, values: tuple[Any, ...]) -> None:
        for name, value in zip(names, values, strict=True):
            object.__setattr__(record, name, value)  # it may be frozen

    record_type.__getstate__ = lambda record: values_of(record)
    record_type.__setstate__ = setstate
    return kind


class PackedList(Sequence[T]):
    """A sequence of records; those that were not used for long are packed, and made again on use.

    It is equal to any sequence of equal records.

    Parameters
    ----------
    records : iterable
        Of any kind that can be pickled.

    Examples
    --------
    >>> numbers = PackedList(range(10_000))
    >>> len(numbers), numbers[-1], numbers[5:8], sum(numbers)
    (10000, 9999, (5, 6, 7), 49995000)
    """

    def __init__(self, records: Iterable[T] = ()) -> None:
        self._length = 0
        self._packed: list[bytes] = []  # empty: of an open block that has changed
        self._open: dict[int, list[T]] = {}  # by number, in the order in which they were opened
        self._lock = RLock()
        for record in records:
            self.append(record)

    def append(self, record: T) -> None:
        """Add a record at the end."""
        with self._lock:
            number = self._length // _BLOCK
            if number == len(self._packed):
                self._packed.append(b"")
                self._open[number] = []
                self._pack_oldest()
            block = self._block(number)
            self._packed[number] = b""
            block.append(record)
            self._length += 1

    def select(self, numbers: Sequence[int]) -> Sequence[T]:
        """Return the records with these numbers, all of them different; the list itself for all."""
        return self if len(numbers) == self._length else Selection(self, numbers)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, key: int) -> T: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[T, ...]: ...
    def __getitem__(self, key: int | slice) -> T | tuple[T, ...]:
        numbers = range(self._length)[key]
        if isinstance(numbers, range):
            return tuple(self[number] for number in numbers)
        with self._lock:
            return self._block(numbers // _BLOCK)[numbers % _BLOCK]

    def __iter__(self) -> Iterator[T]:
        for number in range(len(self._packed)):
            with self._lock:
                block = tuple(self._block(number))
            yield from block

    def __eq__(self, other: object) -> bool:
        return _are_equal(self, other)

    __hash__ = None  # type: ignore[assignment]  # as of a list, which may change

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (list(self),)

    def _block(self, number: int) -> list[T]:
        """Return a block of records, which is open then."""
        block = self._open.get(number)
        if block is None:
            block = self._open[number] = _unpack(self._packed[number])
            self._pack_oldest()
        return block

    def _pack_oldest(self) -> None:
        """Pack the blocks that have been open for longest, except for a few."""
        while len(self._open) > _MOST_OPEN:
            number = next(iter(self._open))
            block = self._open.pop(number)
            if not self._packed[number]:
                self._packed[number] = _pack(block)


class Packed(Iterable[T]):
    """Records that travel between processes in one piece, and are made again where they are used.

    A scheduler then neither makes them nor keeps them with its last messages.

    >>> list(Packed(["a", "b"]))
    ['a', 'b']
    """

    __slots__ = ("_content",)

    def __init__(self, records: Iterable[T]) -> None:
        self._content = _pack(list(records))

    def __iter__(self) -> Iterator[T]:
        return iter(_unpack(self._content))


class Selection(Sequence[T]):
    """Records of a sequence, by their numbers in it.

    >>> list(Selection("abcdef", [4, 0]))
    ['e', 'a']
    """

    def __init__(self, records: Sequence[T], numbers: Sequence[int]) -> None:
        self._records, self._numbers = records, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, key: int) -> T: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[T, ...]: ...
    def __getitem__(self, key: int | slice) -> T | tuple[T, ...]:
        if isinstance(key, slice):
            return tuple(self._records[number] for number in self._numbers[key])
        return self._records[self._numbers[key]]

    def __iter__(self) -> Iterator[T]:
        return (self._records[number] for number in self._numbers)

    def __eq__(self, other: object) -> bool:
        return _are_equal(self, other)

    __hash__ = None  # type: ignore[assignment]  # as of a list


def _are_equal(records: Sequence[object], other: object) -> bool:
    if not isinstance(other, Sequence) or isinstance(other, str | bytes):
        return False
    return len(records) == len(other) and all(
        own == their for own, their in zip(records, other, strict=True)
    )


def _pack(records: list[Any]) -> bytes:
    return zlib.compress(pickle.dumps(records, pickle.HIGHEST_PROTOCOL), 1)


def _unpack(content: bytes) -> list[Any]:
    return list(pickle.loads(zlib.decompress(content)))  # noqa: S301, by a process of the run
