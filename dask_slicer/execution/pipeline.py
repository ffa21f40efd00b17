"""Running a plan: take the output directory, compute cases, finish the output."""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dask_slicer.config.schema import RunConfig
from dask_slicer.errors import CaseError, DatasetError, DiskFull, SchedulerError, as_case_error
from dask_slicer.execution.executor import Execute, check_report_place, executor
from dask_slicer.execution.partitions import (
    PartitionPlan,
    check_partition_plan,
    merge_journals,
    record_plan,
    remove_partition_files,
)
from dask_slicer.execution.prepare import prepare_plan
from dask_slicer.execution.resume import EarlierRuns, unreadable
from dask_slicer.monitoring.events import Observer, RunReport
from dask_slicer.monitoring.publisher import ProgressPublisher
from dask_slicer.output import directory, layout
from dask_slicer.output.journal import Journal
from dask_slicer.output.layout import partition_files, partition_journals
from dask_slicer.output.lock import locked
from dask_slicer.output.summary import finalize
from dask_slicer.planning.estimate import output_bytes
from dask_slicer.planning.plan import CasePlan, Partition, RunPlan, parse_partition
from dask_slicer.records import CommittedCase, FailedCase
from dask_slicer.utils import signals
from dask_slicer.utils.formatting import format_bytes, plural

if TYPE_CHECKING:
    from distributed import Client


_LOG = logging.getLogger(__name__)


def run(
    config: RunConfig, client: Client | None = None, *, observer: Observer | None = None
) -> RunReport:
    """Make slices of a dataset, on the client or as `config` says; skip cases already written.

    Raises UsageError before anything is written, SchedulerError if the scheduler cannot be reached,
    and KeyboardInterrupt after the finished cases are usable and reported.
    """
    publisher = ProgressPublisher(observer or Observer())
    started = time.monotonic()
    check_report_place(config.performance_report)
    directory.existing_config(config.output_dir)  # before a lock is put into a foreign directory
    partition = parse_partition(config.shard)
    with locked(config.output_dir, partition) as notes:
        plan = prepare_plan(config)
        if plan.problems:
            raise DatasetError("; ".join(plan.problems))
        for note in notes:
            publisher.note(note)
        return _Run(plan, client, publisher, started, partition).execute()


@dataclass(slots=True)
class _Run:
    """A run into an output directory that it has locked."""

    plan: RunPlan
    client: Client | None
    observer: ProgressPublisher
    started: float
    partition: Partition | None
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    earlier: EarlierRuns = field(init=False)
    has_started: bool = False
    unreadable: set[str] = field(default_factory=set)
    unjournaled: list[FailedCase] = field(default_factory=list)
    failed: list[FailedCase] = field(default_factory=list)
    n_skipped: int = 0

    def __post_init__(self) -> None:
        self.earlier = EarlierRuns(self.plan, self.partition)

    def execute(self) -> RunReport:
        try:
            self._prepare_and_run()
            report = self._finish()
        except KeyboardInterrupt:
            self.observer.finished(self._finish(interrupted=True))
            raise
        except SchedulerError as error:
            if not self.has_started:
                raise
            report = self._finish(stopped=f"{error}; run the same command again to continue")
            if not self.observer.state.n_done:
                raise
        except Exception:
            with suppress(OSError):  # so that finished cases stay usable
                self._finish()
            raise
        self.observer.finished(report)
        return report

    def _prepare_and_run(self) -> None:
        signals.raise_if_interrupted()
        config = self.plan.config
        if self.partition is not None:
            check_partition_plan(self.plan)
        done = {} if config.overwrite else self.earlier.completed()
        todo = [case for case in self.plan.selected if case.case_id not in done]
        self.n_skipped = len(self.plan.selected) - len(todo)
        # The largest first, so that the run does not wait for one of them at the end.
        queue = deque(
            sorted((case for case in todo if case.problem is None), key=lambda case: -case.work)
        )
        # The workers come first: without them, earlier runs must stay as they are.
        with executor(
            self.plan,
            len(queue),
            n_todo=len(todo),
            run_id=self.run_id,
            client=self.client,
            observer=self.observer,
        ) as execute:
            # Checked first: with another plan, this partition could overwrite the cases of others.
            shared_plan = None if self.partition is None else record_plan(self.plan)
            self.has_started = True
            if config.overwrite:
                self._clear()
            elif self.partition is None and partition_journals(config.output_dir):
                merge_journals(config.output_dir)
                self.observer.note("merged the partitions that earlier runs left unmerged")
            self._start(shared_plan)
            path = config.output_dir / partition_files(self.partition).journal
            with Journal(path, fsync=config.fsync) as journal:
                for record in filter(None, done.values()):
                    journal.append(replace(record, at=0.0))
                known = self.earlier.journaled()
                self.unreadable = unreadable(todo, known)
                outdated = {case.case_id for case in todo} - self.unreadable
                unremoved = self.earlier.remove_outdated(outdated, known, journal, self.observer)
                self.observer.planned(self.plan, todo=todo, skipped=self.n_skipped)
                self._run_cases(todo, queue, unremoved, execute, journal)

    def _clear(self) -> None:
        if lost := self.earlier.lost_by_overwriting():
            self.observer.note(
                f"--overwrite removed {plural(lost, 'case')} that this command does not write"
            )
        directory.clear(self.plan.config.output_dir)

    def _start(self, shared_plan: PartitionPlan | None) -> None:
        temporary = partition_files(self.partition).temporary
        if shared_plan is None:
            remove_partition_files(self.plan.config.output_dir)
            directory.start(self.plan.config, self.plan.splits, temporary=temporary)
        else:
            directory.start(shared_plan.config, shared_plan.splits, temporary=temporary)

    def _run_cases(
        self,
        todo: list[CasePlan],
        queue: deque[CasePlan],
        unremoved: Mapping[str, CaseError],
        execute: Execute,
        journal: Journal,
    ) -> None:
        """Run cases, and write a journal record of each."""
        config = self.plan.config
        attempts: Counter[str] = Counter()
        unwritten: list[CasePlan] = []
        for case in todo:
            if case.problem is not None:
                if case.case_id in self.unreadable and self.partition is None:
                    self.unjournaled.append(case.problem)  # its earlier record stays valid
                    self.observer.case_finished(case.problem)
                else:
                    self._record(case.problem, journal)
            elif case.case_id in unremoved:
                queue.remove(case)
                self._fail(case, unremoved[case.case_id], journal)
            else:
                continue
            if config.fail_fast:
                return
        for case, outcome in execute(lambda: queue.popleft() if queue else None):
            if isinstance(outcome, CommittedCase):
                self._check_run_id(case, outcome.run_id)
                try:
                    journal.append(outcome)
                except OSError as error:  # without a record it is not committed
                    outcome = as_case_error(error, step="save")
                else:
                    self._announce(outcome)
                    continue
            self._check_run_id(case, outcome.run_id or self.run_id)  # none: raised by no task
            attempts[case.case_id] += 1
            if outcome.retriable and attempts[case.case_id] <= config.retries:
                _LOG.warning(
                    "Retrying case %s (%d of %d): %s",
                    case.case_id,
                    attempts[case.case_id],
                    config.retries,
                    outcome.one_line,
                )
                queue.append(case)  # last, so that it disturbs as few others as possible
                continue
            self._fail(case, outcome, journal)
            if config.fail_fast:
                return
            if isinstance(outcome, DiskFull):
                unwritten += [case, *queue]
                queue.clear()
        if unwritten:
            needed = sum(output_bytes(case, config)[1] for case in unwritten)
            self.observer.note(
                f"the disk is full: {plural(len(unwritten), 'case')} not written, which need "
                f"about {format_bytes(needed)}; free some space, then run the same command again"
            )

    def _check_run_id(self, case: CasePlan, run_id: str) -> None:
        if run_id != self.run_id:
            raise SchedulerError(
                f"another run on this scheduler has a case with the same id "
                f"({case.case_id}); wait for it, or use another scheduler"
            )

    def _fail(self, case: CasePlan, failure: CaseError, journal: Journal) -> None:
        # It may have failed after it had moved some of its files into place.
        self.earlier.remove(layout.case_entries(case, self.plan.config))
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
            self.failed.append(record)
        except OSError as error:
            _LOG.warning("Could not write the journal record of case %s: %s", record.case_id, error)
            self.unjournaled.append(record)
        self._announce(record)

    def _announce(self, record: CommittedCase | FailedCase) -> None:
        self.observer.case_finished(record)  # first: a Ctrl-C may come with any line below
        if isinstance(record, CommittedCase):
            if not record.slices:
                self.observer.note(
                    f"{record.case_id}: no slice reaches --min_foreground, none is written"
                )
            _LOG.info("case %s: wrote %d slices", record.case_id, len(record.slices))
        else:
            _LOG.error("case %s: %s: %s", record.case_id, record.kind, record.message)
            if record.details:
                _LOG.debug("case %s: %s", record.case_id, record.details)
        signals.raise_if_interrupted()

    def _finish(self, *, interrupted: bool = False, stopped: str = "") -> RunReport:
        """Write the files of the whole output, if the run has started; return the report."""
        # `finalize` reads the others from the journal.
        failures = self.unjournaled + ([] if self.partition is None else self.failed)
        elapsed = time.monotonic() - self.started
        if self.has_started and (self.plan.config.output_dir / layout.CONFIG).exists():
            try:
                if self.partition is None:
                    self._finalize(failures, elapsed)
                else:
                    self._clean_up(self.partition)
            except OSError as error:
                if not self._remaining:
                    raise
                what = "could not write the index and the summary"
                if self.partition is not None:
                    what = "could not remove temporary files"
                self.observer.note(f"{what} ({as_case_error(error, step='save')})")
        state = self.observer.state
        return RunReport(
            output_dir=str(self.plan.config.output_dir),
            n_committed=state.n_done,
            n_skipped=self.n_skipped,
            n_slices=state.n_slices,
            n_bytes=state.n_bytes,
            remaining=self._remaining,
            failures=tuple(failures),
            elapsed_seconds=elapsed,
            interrupted=interrupted,
            share="" if self.partition is None else str(self.partition),
            stopped=stopped,
        )

    @property
    def _remaining(self) -> int:
        return len(self.plan.selected) - self.n_skipped - self.observer.state.n_done

    def _finalize(self, failures: list[FailedCase], elapsed: float) -> None:
        """Write index, failures and summary from the journal; `failures` are not in it."""
        finalize(
            self.plan.config,
            failures,
            planned={case.case_id for case in self.plan.cases},
            n_modalities=self.plan.n_modalities,
            elapsed_seconds=elapsed,
            slices_this_run=self.observer.state.n_slices,
            is_complete=not self._remaining,
        )

    def _clean_up(self, partition: Partition) -> None:
        """Remove temporary files of this partition, and its journal if that is empty."""
        output_dir = self.plan.config.output_dir
        if self._remaining:
            self.earlier.remove_uncommitted()
        shutil.rmtree(output_dir / partition_files(partition).temporary, ignore_errors=True)
        journal = output_dir / partition_files(partition).journal
        if journal.exists() and not journal.stat().st_size:
            journal.unlink()  # it had no case to run: there is nothing to merge
