"""Cases whose files stay open while slices are drawn from many cases."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from pathlib import Path

from dask_slicer.output.formats.base import CaseReader
from dask_slicer.output.index import SliceIndex, case_reader

# Opening a case takes as long as reading a window. One in a Zarr store has two or four mapped
# files, each with a descriptor, and others need some, too.
_MOST_OPEN, _DESCRIPTORS_OF_CASE = 1024, 8


class OpenCases:
    """Readers of the cases of an index, by number; those used last stay open.

    Open files are not pickled. Threads may share them.
    """

    def __init__(self, output_dir: Path, index: SliceIndex) -> None:
        self._output_dir, self._index = output_dir, index
        self._readers: dict[int, CaseReader] = {}

    def __getitem__(self, case_number: int) -> CaseReader:
        """Return the reader of a case; raise CorruptFile or OSError if it cannot be opened."""
        reader = self._readers.pop(case_number, None)
        if reader is None:
            reader = case_reader(self._output_dir, self._index.cases[case_number])
        self._readers[case_number] = reader  # at the end: the one that was used last
        while len(self._readers) > _most_open():
            with suppress(KeyError, RuntimeError):  # another thread closes one, too
                del self._readers[next(iter(self._readers), -1)]
        return reader

    def __reduce__(self) -> tuple[type[OpenCases], tuple[Path, SliceIndex]]:
        return OpenCases, (self._output_dir, self._index)


@cache
def _most_open() -> int:
    """Return how many cases may stay open."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return _MOST_OPEN
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_OPEN if soft < 0 else max(1, min(_MOST_OPEN, soft // _DESCRIPTORS_OF_CASE))
