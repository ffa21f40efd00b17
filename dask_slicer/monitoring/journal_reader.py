"""Progress of a run from the journals in its output, without a scheduler."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dask_slicer.monitoring.snapshot import Snapshot
from dask_slicer.monitoring.state import RunState
from dask_slicer.monitoring.watcher import find_scheduler
from dask_slicer.output.directory import existing_splits
from dask_slicer.output.journal import read_line
from dask_slicer.output.layout import journals, locked_partitions, partition_files
from dask_slicer.output.lock_owner import LockOwner, lock_owners, read_owner
from dask_slicer.records import CaseRecord, CommittedCase, FailedCase
from dask_slicer.utils.files import open_file
from dask_slicer.utils.formatting import escape_line, first_few, format_time

_EVERY_SECONDS = 2.0
# A journal that was not written for so long is worth a word.
_OLD_SECONDS = 60.0


class JournalReader:
    """Follows the journals of a run, or of all partitions that run at present."""

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self._start()

    def _start(self) -> None:
        self._offsets: dict[Path, int] = {}
        self._written_earlier: set[str] = set()
        self._n_ended: Counter[str] = Counter()  # cases of this run in each journal
        self._state = RunState(output_dir=escape_line(str(self.output_dir)))

    @property
    def title(self) -> str:
        """Return the heading of a picture: where it comes from, and if it may be old."""
        times = [path.stat().st_mtime for path in journals(self.output_dir) if path.exists()]
        age = time.time() - max(times, default=time.time())
        old = f", last record {format_time(age)} ago" if age > _OLD_SECONDS else ""
        return f"progress as of the journal in {self.output_dir}{old}"

    def views(self) -> Iterator[Snapshot]:
        """Yield the progress of the run until it is over, then raise NotRunning."""
        while (view := self.view()) is not None:
            yield view
            time.sleep(_EVERY_SECONDS)
        find_scheduler(self.output_dir)

    def view(self) -> Snapshot | None:
        """Return the progress of the run so far, without workers; None if it is over."""
        owners = [owner for owner in lock_owners(self.output_dir) if owner.is_alive]
        if not owners:
            return None
        # Before its first case, a run writes to its lock that it begins.
        began = min((owner.began for owner in owners if owner.began), default=time.time())
        splits = existing_splits(self.output_dir)
        for path in journals(self.output_dir):
            for record in self._new_records(path):
                before = self._state.n_ended
                self._add(record, splits.get(record.case_id, ""), began)
                self._n_ended[path.name] += self._state.n_ended - before
        state = replace(
            self._with_plan(splits, owners),
            host=first_few([owner.host for owner in owners], 1),
            process=owners[0].process,
            seconds=max(time.time() - began, 0.0),
        )
        return Snapshot(runs=(state,))

    def _new_records(self, path: Path) -> Iterator[CaseRecord]:
        """Yield the records that were added to a journal since the last time."""
        if not path.exists():
            return
        size, offset = path.stat().st_size, self._offsets.get(path, 0)
        if size < offset:  # the run began with --overwrite
            self._start()
            offset = 0
        with open_file(path) as file:
            while offset < size:
                record = read_line(file, offset)
                if record is None and file.tell() >= size:
                    break  # the rest of this line is still to come
                self._offsets[path] = offset = file.tell()
                if record is not None:
                    yield record

    def _add(self, record: CaseRecord, split: str, began: float) -> None:
        """Count a record of this run; remember cases that an earlier run wrote."""
        if isinstance(record, CommittedCase):
            if record.at < began:
                self._written_earlier.add(record.case_id)
            elif record.case_id not in self._written_earlier:
                self._state = self._state.with_written(record, work=1)
        elif isinstance(record, FailedCase):
            if record.at >= began:
                self._state = self._state.with_failed(record, split=split)
        else:
            self._written_earlier.discard(record.case_id)

    def _n_ended_partitions(self) -> int:
        """Return the number of cases of this run in journals of partitions that have ended."""
        running = {
            files.journal
            for files in map(partition_files, (None, *locked_partitions(self.output_dir)))
            if (owner := read_owner(self.output_dir / files.lock)[1]) and owner.is_alive
        }
        return sum(n for journal, n in self._n_ended.items() if journal not in running)

    def _with_plan(self, splits: Mapping[str, str], owners: Sequence[LockOwner]) -> RunState:
        """Return the state with the cases that the run has to do; each counts as much work.

        If they are not all that is left of the splits (`--only`, partitions), no file names them.
        """
        state = self._state
        counts = Counter(
            split for case_id, split in splits.items() if case_id not in self._written_earlier
        )
        # Partitions that have ended since hold no lock with their number of cases.
        n_todo = sum(owner.n_cases for owner in owners) + self._n_ended_partitions()
        if all(owner.began for owner in owners) and n_todo != counts.total():
            return replace(state, n_cases=n_todo, work=n_todo - state.n_failed, splits={})
        if uncounted := state.splits.get(""):
            counts[""] = uncounted.n_failed  # cases that could not be planned
        return state.with_plan(
            counts, n_skipped=len(self._written_earlier), work=counts.total() - state.n_failed
        )
