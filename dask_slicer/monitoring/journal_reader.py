"""Progress of a run from the journals in its output, without a scheduler."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dask_slicer.core.splits import SPLITS
from dask_slicer.monitoring.publisher import failure_event, with_failed, with_written
from dask_slicer.monitoring.snapshot import Snapshot
from dask_slicer.monitoring.state import FailureEvent, RunState, SplitState
from dask_slicer.output.directory import existing_splits
from dask_slicer.output.journal import read_line
from dask_slicer.output.layout import journals, locked_partitions, partition_files
from dask_slicer.output.lock import is_alive, read_lock
from dask_slicer.records import CaseRecord, CommittedCase, FailedCase
from dask_slicer.utils.formatting import escape_line, first_few

# Of a lock whose run has workers: host, process, its start, scheduler, cases to run, time.
_FIELDS = 6


class _Owner(NamedTuple):
    host: str
    process: str
    began: float
    n_cases: int | None


class JournalReader:
    """Follows the journals of a run, or of all partitions that run at present."""

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self._splits: dict[str, str] = {}
        self._start()

    def _start(self) -> None:
        self._offsets: dict[Path, int] = {}
        self._written_earlier: set[str] = set()
        self._failures: dict[str, FailureEvent] = {}
        self._state = RunState(
            run_id="", output_dir=escape_line(str(self.output_dir)), host="", process="",
            client="", n_cases=0, n_skipped=0,
            splits={split: SplitState() for split in (*SPLITS, "")},
        )  # fmt: skip

    def view(self) -> Snapshot | None:
        """Return the progress of the run so far, without workers; None if it is over."""
        names = [partition_files(part).lock for part in (None, *locked_partitions(self.output_dir))]
        owners = [owner for name in names if (owner := self._read_owner(name)) is not None]
        if not owners:
            return None
        began = min(owner.began for owner in owners)
        n_cases = [owner.n_cases for owner in owners if owner.n_cases is not None]
        self._splits = existing_splits(self.output_dir)
        for path in journals(self.output_dir):
            for record in self._new_records(path):
                self._add(record, began)
        state = replace(
            self._with_plan(sum(n_cases) if len(n_cases) == len(owners) else None),
            host=first_few([owner.host for owner in owners], 1),
            process=owners[0].process,
            seconds=max(time.time() - began, 0.0),
        )
        return Snapshot(runs=((state, 0.0),), failures=tuple(self._failures.values()))

    def _read_owner(self, name: str) -> _Owner | None:
        """Return what a lock says of its run, None if it is not held."""
        lock = self.output_dir / name
        text = read_lock(lock)
        if not is_alive(text):
            return None
        host, process, *_ = fields = text.split()
        try:
            if len(fields) == _FIELDS:
                return _Owner(host, process, float(fields[5]), int(fields[4]))
            # The run is starting. It writes its lock before its first case.
            return _Owner(host, process, lock.stat().st_mtime, None)
        except (FileNotFoundError, ValueError):  # just removed, or of another version
            return None

    def last_record_at(self) -> float:
        """Return when a journal was last written, as the file system has it; 0 if there is none."""
        return max((p.stat().st_mtime for p in journals(self.output_dir) if p.exists()), default=0)

    def _new_records(self, path: Path) -> Iterator[CaseRecord]:
        """Yield the records that were added to a journal since the last time."""
        if not path.exists():
            return
        size, offset = path.stat().st_size, self._offsets.get(path, 0)
        if size < offset:  # the run began with --overwrite
            self._start()
            offset = 0
        with path.open("rb") as file:
            while offset < size:
                record = read_line(file, offset)
                if record is None and file.tell() >= size:
                    break  # the rest of this line is still to come
                self._offsets[path] = offset = file.tell()
                if record is not None:
                    yield record

    def _add(self, record: CaseRecord, began: float) -> None:
        """Count a record of this run; remember cases that an earlier run wrote."""
        if isinstance(record, CommittedCase):
            if record.at < began:
                self._written_earlier.add(record.case_id)
            elif record.case_id not in self._written_earlier:
                self._state = with_written(self._state, record, split=record.split, work=1)
        elif isinstance(record, FailedCase):
            if record.at >= began:
                split = self._splits.get(record.case_id, "")
                self._state = with_failed(self._state, record, split=split)
                self._failures[record.case_id] = failure_event(record, "")
        else:
            self._written_earlier.discard(record.case_id)

    def _with_plan(self, n_todo: int | None) -> RunState:
        """Return the state with the cases that the run has to do; each counts as much work.

        Where `n_todo` of its lock are not all that is left of the splits (`--only`, partitions),
        nothing on disk says which they are.
        """
        state = self._state
        counts = Counter(
            split for case_id, split in self._splits.items() if case_id not in self._written_earlier
        )
        if n_todo is not None and n_todo != counts.total():
            return replace(
                state, n_cases=n_todo, n_skipped=0, work=n_todo - state.n_failed, splits={}
            )
        counts[""] = state.splits[""].n_failed  # cases that could not be planned
        return replace(
            state,
            n_cases=counts.total() + len(self._written_earlier),
            n_skipped=len(self._written_earlier),
            work=counts.total() - state.n_failed,
            splits={
                name: replace(split, n_todo=counts[name])
                for name, split in state.splits.items()
                if counts[name]
            },
        )
