"""Running a plan: take the output directory, compute cases, finish the output."""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING

from dask_slicer.config.partition import Partition, parse_partition
from dask_slicer.config.schema import RunConfig
from dask_slicer.errors import (
    CaseError,
    DatasetError,
    DiskFull,
    LockLost,
    SchedulerError,
    as_case_error,
    shared_scheduler_error,
)
from dask_slicer.execution.case_queue import CaseQueue
from dask_slicer.execution.dataset_statistics import dataset_properties, with_properties
from dask_slicer.execution.executor import (
    Outcomes,
    check_report_place,
    check_scratch_dir,
    executor,
)
from dask_slicer.execution.partitions import (
    check_partition_plan,
    merge_journals,
    record_plan,
    remove_partition_files,
)
from dask_slicer.execution.resume import EarlierRuns, headers_of, prepare_plan
from dask_slicer.inputs.header_cache import HeaderCache
from dask_slicer.monitoring.observer import Observer, RunReport
from dask_slicer.monitoring.publisher import ProgressPublisher
from dask_slicer.output import directory, layout
from dask_slicer.output.folds import used_columns
from dask_slicer.output.journal import Journal
from dask_slicer.output.lock import locked, still_held
from dask_slicer.output.summary import UNCONSOLIDATED, finalize
from dask_slicer.planning.estimate import output_bytes
from dask_slicer.planning.plan import CasePlan, RunPlan
from dask_slicer.records import CommittedCase, FailedCase, clip_note
from dask_slicer.utils import signals
from dask_slicer.utils.formatting import first_few, format_bytes, plural

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
    check_scratch_dir(config.scratch_dir)
    directory.existing_config(config.output_dir)  # before a lock is put into a foreign directory
    partition = parse_partition(config.shard)
    with locked(config.output_dir, partition, note=publisher.observer.note) as held:
        headers = headers_of(config)
        plan = prepare_plan(config, headers, progress=publisher.observer.planning)
        if plan.problems:
            raise DatasetError("; ".join(plan.problems))
        earlier = EarlierRuns(plan, partition)
        run = _Run(plan, client, publisher, started, partition, earlier, headers, held.run_id)
        return run.execute()


@dataclass(slots=True)
class _Run:
    """A run into an output directory that it has locked."""

    plan: RunPlan
    client: Client | None
    publisher: ProgressPublisher
    started: float
    partition: Partition | None
    earlier: EarlierRuns
    headers: HeaderCache
    run_id: str
    has_started: bool = False
    # Failures that `finalize` does not read from the output's journal.
    failures: list[FailedCase] = field(default_factory=list)
    n_skipped: int = 0
    overlaps: list[int] = field(default_factory=list)  # shared voxels of cases whose masks overlap
    clipped: list[str] = field(default_factory=list)  # cases that the clip range does not suit
    empty: list[str] = field(default_factory=list)  # cases of which no slice was kept

    def execute(self) -> RunReport:
        try:
            self._run()
            report = self._finish()
        except KeyboardInterrupt:
            self.publisher.observer.finished(self._finish(interrupted=True))
            raise
        except SchedulerError as error:
            if not self.has_started:
                raise
            report = self._finish(stopped=f"{error}; run the same command again to continue")
            if not self.publisher.state.n_done:
                raise
        except LockLost:  # the files are another run's
            raise
        except Exception:
            with suppress(OSError):  # so that finished cases stay usable
                self._finish()
            raise
        self.publisher.observer.finished(report)
        return report

    def _run(self) -> None:
        signals.raise_if_interrupted()
        config = self.plan.config
        if self.partition is not None:
            check_partition_plan(self.plan)
        done = {} if config.overwrite else self.earlier.completed(self.publisher.observer)
        todo = self.plan.of_ids([name for name in self.plan.selected_ids if name not in done])
        self.n_skipped = len(self.plan.selected_ids) - len(todo)
        queue = CaseQueue.largest_first(todo)
        # The workers come first: without them, earlier runs must stay as they are.
        with executor(
            self.plan,
            queue,
            n_todo=len(todo),
            run_id=self.run_id,
            client=self.client,
            publisher=self.publisher,
        ) as (client, execute):
            if self.plan.needs_properties:
                todo = self._find_properties(client, todo, queue)
            self._prepare_output()
            path = config.output_dir / layout.partition_files(self.partition).journal
            with Journal(path, fsync=config.fsync) as journal:
                for record in filter(None, done.values()):
                    journal.append(replace(record, at=0.0))
                self._prepare_cases(todo, queue, journal)
                self._run_cases(queue, execute(self.plan), journal)

    def _find_properties(
        self, client: Client | None, todo: Sequence[CasePlan], queue: CaseQueue
    ) -> Sequence[CasePlan]:
        """Compute the properties of the dataset, and add them to the plan of each case."""
        observer = self.publisher.observer
        self.plan = with_properties(self.plan, dataset_properties(self.plan, client, observer))
        self.earlier = EarlierRuns(self.plan, self.partition)
        todo = self.plan.of_ids([case.case_id for case in todo])
        queue.renew(todo)
        return todo

    def _prepare_output(self) -> None:
        """Clear the output directory, or merge what is left there; write its first files."""
        still_held(now=True)
        # First: with another plan, this partition could overwrite the cases of others.
        shared_plan = None if self.partition is None else record_plan(self.plan)
        self.has_started = True
        config = self.plan.config
        if config.overwrite:
            known = self.earlier.journaled()
            written = {case_id for case_id, is_written in known.items() if is_written}
            if lost := written.difference(self.plan.selected_ids):
                self.publisher.observer.note(
                    f"--overwrite removed {plural(len(lost), 'case')} that this command does not "
                    "write"
                )
            directory.clear(config.output_dir, known=known)
        elif self.partition is None and layout.partition_journals(config.output_dir):
            merge_journals(config.output_dir, config)
            self.publisher.observer.note("merged the partitions that earlier runs left unmerged")
        if shared_plan is None:
            remove_partition_files(config.output_dir)
        start_from = shared_plan or self.plan
        temporary = layout.partition_files(self.partition).temporary
        directory.start(
            start_from.config,
            start_from.splits,
            start_from.structures,
            table=self.plan.table,
            properties=self.plan.properties,
            columns=used_columns(config),
            temporary=temporary,
        )
        self.headers.save_beside()

    def _prepare_cases(self, todo: Sequence[CasePlan], queue: CaseQueue, journal: Journal) -> None:
        """Remove outdated files of the cases to run; record cases that cannot be run."""
        self.earlier.note_other_names(self.publisher.observer)
        unreadable, unremoved = self.earlier.remove_outdated(todo, journal, self.publisher.observer)
        self.publisher.planned(self.plan, todo=todo, skipped=self.n_skipped)
        for case in todo:
            if case.problem is not None:
                stays_valid = self.partition is None and case.case_id in unreadable
                self._record(case, case.problem, None if stays_valid else journal)
            elif case.case_id in unremoved:
                queue.remove(case)
                self._fail(case, unremoved[case.case_id], journal)
            else:
                continue
            if self.plan.config.fail_fast:
                queue.clear()
                return

    def _run_cases(self, queue: CaseQueue, outcomes: Outcomes, journal: Journal) -> None:
        """Run the cases of the queue, and write a journal record of each."""
        config = self.plan.config
        attempts: Counter[str] = Counter()
        n_unwritten, needed = 0, 0
        for case, outcome in outcomes:
            # An error that no task raised, such as that of a lost worker, names no run.
            names_run = outcome.run_id or isinstance(outcome, CommittedCase)
            if names_run and outcome.run_id != self.run_id:
                raise shared_scheduler_error(case.case_id)
            if isinstance(outcome, CommittedCase):
                try:
                    journal.append(outcome)
                except OSError as error:  # without a record it is not committed
                    outcome = as_case_error(error, step="save")
                else:
                    self._announce(case, outcome)
                    continue
            still_held(now=True)  # if not, its worker could not write
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
                n_unwritten += 1 + len(queue)
                needed += sum(output_bytes(case, config)[1] for case in chain([case], queue))
                queue.clear()
        if n_unwritten:
            self.publisher.observer.note(
                f"the disk is full: {plural(n_unwritten, 'case')} not written, which need "
                f"about {format_bytes(needed)}; free some space, then run the same command again"
            )

    def _fail(self, case: CasePlan, failure: CaseError, journal: Journal) -> None:
        # It may have failed after it had moved some of its files into place.
        config, n_slices = self.plan.config, case.shape[0]
        # How many slices there were to be is not always known.
        if config.changes_grid or config.plane_folders:
            found = layout.find_entries(config.output_dir, config, of={case.case_id})
            entries = [*found.get(case.case_id, ())]
        else:
            entries = layout.possible_entries(case, config, n_slices)
        self.earlier.remove(entries)
        record = FailedCase(
            case_id=case.case_id,
            step=failure.step,
            kind=failure.kind,
            message=failure.one_line,
            details=failure.details,
        )
        self._record(case, record, journal)

    def _record(self, case: CasePlan, record: FailedCase, journal: Journal | None) -> None:
        """Write the record of a failed case; without a journal, its earlier record stays valid."""
        is_read_back = journal is not None and self.partition is None
        if journal is not None:
            try:
                journal.append(record)
            except OSError as error:
                _LOG.warning(
                    "Could not write the journal record of case %s: %s", record.case_id, error
                )
                is_read_back = False
        if not is_read_back:
            self.failures.append(record)
        self._announce(case, record)

    def _announce(self, case: CasePlan, record: CommittedCase | FailedCase) -> None:
        self.publisher.case_finished(case, record)  # first: a Ctrl-C may come with any line below
        if isinstance(record, CommittedCase):
            if record.n_overlapping:
                self.overlaps.append(record.n_overlapping)
            if not record.clip_fits:
                self.clipped.append(record.case_id)
            if not record.n_slices:
                self.empty.append(record.case_id)
            _LOG.info("case %s: wrote %d slices", record.case_id, record.n_slices)
        else:
            _LOG.error("case %s: %s: %s", record.case_id, record.kind, record.message)
            if record.details:
                _LOG.debug("case %s: %s", record.case_id, record.details)
        signals.raise_if_interrupted()

    def _finish(self, *, interrupted: bool = False, stopped: str = "") -> RunReport:
        """Write the files of the whole output, if the run has started; return the report."""
        config, state = self.plan.config, self.publisher.state
        still_held(now=True)
        if self.overlaps:
            self.publisher.observer.note(
                f"masks overlap in {plural(len(self.overlaps), 'case')}: {sum(self.overlaps)} "
                "voxels are counted for the first structure; --overlap error fails such cases"
            )
        if self.empty:
            self.publisher.observer.note(
                f"no slice is selected ({config.selecting}) in {plural(len(self.empty), 'case')}, "
                f"none is written: {first_few(sorted(self.empty))}"
            )
        notes: list[str] = []
        if n_lost := self.publisher.n_lost_workers:
            notes.append(f"lost {plural(n_lost, 'worker')} that had a case; such cases ran again")
        failures = list(self.failures)  # `finalize` adds those in the journal
        elapsed = time.monotonic() - self.started
        remaining = len(self.plan.selected_ids) - self.n_skipped - state.n_done
        if self.has_started and (config.output_dir / layout.CONFIG).exists():
            try:
                if self.partition is None:
                    totals = finalize(
                        config,
                        failures,
                        planned={*self.plan.case_ids},
                        n_modalities=self.plan.n_modalities,
                        names=self.plan.names,
                        elapsed_seconds=elapsed,
                        slices_this_run=state.n_slices,
                        n_lost_workers=n_lost,
                        is_complete=not remaining,
                    )
                    self.clipped = totals.clipped  # also by earlier runs
                    for note in totals.notes:
                        self.publisher.observer.note(note)
                    if not totals.is_consolidated:
                        notes.append(UNCONSOLIDATED)
                else:
                    self._clean_up(self.partition, is_complete=not remaining)
            except OSError as error:
                if not remaining:
                    raise
                what = "could not write the index and the summary"
                if self.partition is not None:
                    what = "could not remove temporary files"
                self.publisher.observer.note(f"{what} ({as_case_error(error, step='save')})")
        if self.clipped:
            notes.append(clip_note(config.clip_min, config.clip_max, self.clipped))
        return RunReport(
            output_dir=str(config.output_dir),
            n_committed=state.n_done,
            n_skipped=self.n_skipped,
            n_slices=state.n_slices,
            n_bytes=state.n_bytes,
            remaining=remaining,
            failures=tuple(failures),
            elapsed_seconds=elapsed,
            interrupted=interrupted,
            share="" if self.partition is None else str(self.partition),
            stopped=stopped,
            n_lost_workers=n_lost,
            notes=tuple(notes),
        )

    def _clean_up(self, partition: Partition, *, is_complete: bool) -> None:
        """Remove temporary files of this partition, and its journal if that is empty."""
        files = layout.partition_files(partition)
        if not is_complete:
            self.earlier.remove_uncommitted()
        shutil.rmtree(self.plan.config.output_dir / files.temporary, ignore_errors=True)
        journal = self.plan.config.output_dir / files.journal
        if journal.exists() and not journal.stat().st_size:
            journal.unlink()  # it had no case to run: there is nothing to merge
