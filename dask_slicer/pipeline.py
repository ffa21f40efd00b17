"""How a run goes: plan, take the output directory, run what is not done yet, say what was made."""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dask_slicer import interrupts, output, stores
from dask_slicer.config import RunConfig
from dask_slicer.errors import (
    CaseError,
    DatasetError,
    DiskFull,
    SchedulerError,
    as_case_error,
)
from dask_slicer.events import Observer, RunReport
from dask_slicer.execution import Execute, check_report_place, executor
from dask_slicer.journal import (
    CommittedCase,
    FailedCase,
    Journal,
    RemovedCase,
    last_records,
)
from dask_slicer.planning import make_plan
from dask_slicer.plans import CasePlan, RunPlan, output_bytes
from dask_slicer.slices_csv import IndexWriter
from dask_slicer.summary import Tally, dataset_info
from dask_slicer.telling import Telling
from dask_slicer.words import count, size, some

if TYPE_CHECKING:
    from distributed import Client

# Failures that say nothing about what an earlier run wrote.
_OUT_OF_REACH = {"MissingFile", "MissingLabel", "PermissionDenied", "Unexpected"}

_LOG = logging.getLogger(__name__)


def run(
    config: RunConfig, client: Client | None = None, *, observer: Observer | None = None
) -> RunReport:
    """Make slices of a dataset; what an earlier run completed is kept.

    Parameters
    ----------
    config : RunConfig
    client : distributed.Client, optional
        Run there; without, where `config` says.
    observer : Observer, optional
        Is told what happens.

    Returns
    -------
    RunReport

    Raises
    ------
    UsageError
        Nothing was written.
    SchedulerError
        The scheduler cannot be reached. One that is lost during the run ends it, with a report.
    KeyboardInterrupt
        After what was done has been made usable and reported; the same call continues.
    """
    telling = Telling(observer or Observer())
    started = time.monotonic()
    check_report_place(config.performance_report)
    output.existing_config(config.output_dir)  # no lock is put into what is not ours
    with output.locked(config.output_dir) as notes:
        plan = make_plan(config)
        if plan.problems:
            raise DatasetError("; ".join(plan.problems))
        for note in notes:
            telling.note(note)
        return _Run(plan, client, telling, started).execute()


@dataclass(slots=True)
class _Run:
    """One run into an output directory that it holds."""

    plan: RunPlan
    client: Client | None
    observer: Telling
    started: float
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    has_started: bool = False
    out_of_reach: set[str] = field(default_factory=set)
    unjournaled: list[FailedCase] = field(default_factory=list)
    n_skipped: int = 0
    n_committed: int = 0
    n_slices: int = 0
    n_bytes: int = 0

    def execute(self) -> RunReport:
        try:
            self._settle_and_run()
            report = self._finish()
        except KeyboardInterrupt:
            self.observer.finished(self._finish(interrupted=True))
            raise
        except SchedulerError as error:
            if not self.has_started:
                raise
            report = self._finish()
            if not self.n_committed:
                raise
            self.observer.note(f"{error}; the same command continues")
        except Exception:
            with suppress(OSError):  # whatever it was, what is done stays usable
                self._finish()
            raise
        self.observer.finished(report)
        return report

    def _settle_and_run(self) -> None:
        config = self.plan.config
        path = config.output_dir / output.JOURNAL
        done = set() if config.overwrite else self._done_already(path)
        todo = [case for case in self.plan.selected if case.case_id not in done]
        self.n_skipped = len(self.plan.selected) - len(todo)
        queue = deque(case for case in todo if case.problem is None)
        # Nothing of an earlier run is touched before there is something to run on.
        with executor(
            self.plan, len(queue), run_id=self.run_id, client=self.client, observer=self.observer
        ) as execute:
            self.has_started = True
            if config.overwrite:
                self._tell_what_is_lost(path)
                output.clear(config.output_dir)
            output.start(config, self.plan.splits)
            with Journal(path, fsync=config.fsync) as journal:
                stuck = self._clear_away(todo, journal)
                self.observer.planned(self.plan, todo=len(todo), skipped=self.n_skipped)
                self._run_cases(todo, queue, stuck, execute, journal)

    def _tell_what_is_lost(self, journal: Path) -> None:
        selected = {case.case_id for case in self.plan.selected}
        lost = sum(
            isinstance(record, CommittedCase) and record.case_id not in selected
            for record in last_records(journal)
        )
        if lost:
            self.observer.note(
                f"--overwrite removed {count(lost, 'case')} that this command does not write"
            )

    def _done_already(self, journal: Path) -> set[str]:
        """Return the cases that are written as this plan would write them."""
        planned = {case.case_id: case for case in self.plan.selected}
        on_disk = stores.find_entries(self.plan.config.output_dir)
        return {
            record.case_id
            for record in last_records(journal)
            if isinstance(record, CommittedCase)
            and record.case_id in planned
            and self._stands(record, planned[record.case_id], on_disk.get(record.case_id, {}))
        }

    def _clear_away(self, todo: list[CasePlan], journal: Journal) -> dict[str, CaseError]:
        """Take away what is to be written anew; note, or prune, what is no longer planned.

        What was written of a case whose scans are out of reach at present stays. Returns why
        something could not be taken away, by case.
        """
        config = self.plan.config
        planned = {case.case_id for case in self.plan.cases}
        known = {
            record.case_id: isinstance(record, CommittedCase)
            for record in last_records(journal.path)
            if not isinstance(record, RemovedCase)
        }
        committed = {case_id for case_id, is_committed in known.items() if is_committed}
        self.out_of_reach = {
            case.case_id
            for case in todo
            if case.case_id in committed and case.problem and case.problem.kind in _OUT_OF_REACH
        }
        on_disk = stores.find_entries(config.output_dir)
        left_over = sorted(committed - planned)
        gone = {case.case_id for case in todo} - self.out_of_reach
        if left_over and config.prune:
            # Files of no known case are what a killed run left of one that is gone since.
            gone = gone | set(left_over) | (on_disk.keys() - planned)
            self.observer.note(f"removed {count(len(left_over), 'case')} not in the dataset")
        elif left_over:
            self.observer.note(
                f"{count(len(left_over), 'case')} of earlier runs not in this dataset: "
                f"{some(left_over)}; kept, --prune removes them"
            )
        forgotten = gone & committed
        if config.prune:
            forgotten |= known.keys() - planned  # that it failed, too
        for case_id in sorted(forgotten):
            journal.append(RemovedCase(case_id=case_id))
        return {
            case_id: failure
            for case_id in gone & on_disk.keys()
            if (failure := self._remove(on_disk[case_id]))
        }

    def _remove(self, entries: Iterable[str]) -> CaseError | None:
        """Remove entries of a case; return why that is not possible."""
        try:
            stores.remove_entries(self.plan.config.output_dir, entries)
        except OSError as error:
            _LOG.warning("cannot remove: %s", error)
            return as_case_error(error, step="save")
        return None

    def _stands(self, record: CommittedCase, case: CasePlan, entries: dict[str, int]) -> bool:
        """Return whether a case is written as this plan would write it."""
        if record.digest != case.digest:
            return False
        if self.plan.config.nonfinite == "error" and any(
            found.n_nonfinite for found in record.statistics
        ):
            return False
        return stores.is_whole(self.plan.config.output_dir, record, entries)

    def _run_cases(
        self,
        todo: list[CasePlan],
        queue: deque[CasePlan],
        stuck: Mapping[str, CaseError],
        execute: Execute,
        journal: Journal,
    ) -> None:
        """Run cases, and journal what became of each."""
        config = self.plan.config
        attempts: Counter[str] = Counter()
        without_room: list[CasePlan] = []
        for case in todo:
            if case.problem is not None:
                if case.case_id in self.out_of_reach:
                    self.unjournaled.append(case.problem)  # what was written still counts
                    self.observer.ended(case.problem)
                else:
                    self._record(case.problem, journal)
            elif case.case_id in stuck:
                queue.remove(case)
                self._fail(case, stuck[case.case_id], journal)
            else:
                continue
            if config.fail_fast:
                return
        for case, outcome in execute(lambda: queue.popleft() if queue else None):
            if isinstance(outcome, CommittedCase):
                try:
                    journal.append(self._checked(outcome))
                except OSError as error:  # what has no line is not committed
                    outcome = as_case_error(error, step="save")
                else:
                    self._tell(outcome)
                    continue
            attempts[case.case_id] += 1
            if outcome.retriable and attempts[case.case_id] <= config.retries:
                _LOG.warning("case %s: %s; again", case.case_id, outcome.one_line)
                queue.append(case)  # last, when there are fewest others to suffer with it
                continue
            self._fail(case, outcome, journal)
            if config.fail_fast:
                return
            if isinstance(outcome, DiskFull):
                without_room += [case, *queue]
                queue.clear()
        if without_room:
            needed = sum(output_bytes(case, config)[1] for case in without_room)
            self.observer.note(
                f"the disk is full: {count(len(without_room), 'case')} not written, which need "
                f"about {size(needed)}; make room, and the same command continues"
            )

    def _checked(self, record: CommittedCase) -> CommittedCase:
        if record.run_id != self.run_id:
            raise SchedulerError(
                f"another run is using this scheduler for a case of the same id "
                f"({record.case_id}); wait for it, or use another scheduler"
            )
        return record

    def _fail(self, case: CasePlan, failure: CaseError, journal: Journal) -> None:
        # It may have failed half way through moving its files into their place.
        self._remove(stores.entries_of(case, self.plan.config))
        record = FailedCase(
            case_id=case.case_id,
            step=failure.step,
            kind=failure.kind,
            message=failure.one_line,
            details=failure.details,
        )
        self._record(record, journal)

    def _record(self, record: FailedCase, journal: Journal) -> None:
        try:
            journal.append(record)
        except OSError as error:
            _LOG.warning("no line in the journal for %s: %s", record.case_id, error)
            self.unjournaled.append(record)
        self._tell(record)

    def _tell(self, record: CommittedCase | FailedCase) -> None:
        if isinstance(record, CommittedCase):
            self.n_committed += 1
            self.n_slices += len(record.slices)
            self.n_bytes += record.n_bytes
            if not record.slices:
                self.observer.note(
                    f"{record.case_id}: no slice reaches --min_foreground, none is written"
                )
            _LOG.info("case %s: wrote %d slices", record.case_id, len(record.slices))
        else:
            _LOG.error("case %s: %s: %s", record.case_id, record.kind, record.message)
            if record.details:
                _LOG.debug("case %s: %s", record.case_id, record.details)
        self.observer.ended(record)
        interrupts.check()

    def _finish(self, *, interrupted: bool = False) -> RunReport:
        """Write what is said of the whole, if a run has begun there; return the report."""
        failures = list(self.unjournaled)
        elapsed = time.monotonic() - self.started
        if (self.plan.config.output_dir / output.CONFIG).exists():
            try:
                self._sum_up(failures, elapsed)
            except OSError as error:
                if not self._remaining:
                    raise
                self.observer.note(
                    f"index and summary are not written ({as_case_error(error, step='save')})"
                )
        return RunReport(
            output_dir=str(self.plan.config.output_dir),
            n_committed=self.n_committed,
            n_skipped=self.n_skipped,
            n_slices=self.n_slices,
            n_bytes=self.n_bytes,
            remaining=self._remaining,
            failures=tuple(failures),
            elapsed_seconds=elapsed,
            interrupted=interrupted,
        )

    @property
    def _remaining(self) -> int:
        return len(self.plan.selected) - self.n_skipped - self.n_committed

    def _sum_up(self, failures: list[FailedCase], elapsed: float) -> None:
        """Write index, failures and summary from the journal, whose failures are added."""
        config = self.plan.config
        output.remove_temporary(config.output_dir)
        planned = {case.case_id for case in self.plan.cases}
        tally = Tally()
        written: list[tuple[str, str]] = []
        index = IndexWriter(config.output_dir)
        for record in last_records(config.output_dir / output.JOURNAL):
            if isinstance(record, CommittedCase):
                tally.add(record)
                index.add(record)
                written.append((record.split, record.case_id))
            elif isinstance(record, FailedCase) and record.case_id in planned:
                failures.append(record)
        index.close()
        output.write_failures(config.output_dir, failures)
        if self._remaining:
            # Files of cases that were stopped before they were committed.
            for case_id, paths in stores.find_entries(config.output_dir).items():
                if case_id in planned.difference(tally.case_names):
                    self._remove(paths)
        if config.format == "zarr":
            output.write_store_metadata(config.output_dir, written)
        output.write_summary(
            config.output_dir,
            dataset_info(
                tally,
                config,
                n_modalities=self.plan.n_modalities,
                failures=failures,
                elapsed_seconds=elapsed,
                slices_this_run=self.n_slices,
            ),
        )
        output.remove_temporary(config.output_dir)
