"""Cases to skip, redo or remove when a run continues."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from dask_slicer.errors import CaseError
from dask_slicer.monitoring.events import Observer
from dask_slicer.output import directory, layout
from dask_slicer.output.journal import History, Journal, histories
from dask_slicer.output.layout import journals, partition_files
from dask_slicer.planning.plan import CasePlan, Partition, RunPlan
from dask_slicer.records import CommittedCase, RemovedCase
from dask_slicer.utils.formatting import first_few, plural

# Failures that say nothing about what an earlier run wrote.
_OUT_OF_REACH = {"MissingFile", "MissingLabel", "PermissionDenied", "Unexpected"}


def unreadable(todo: Iterable[CasePlan], known: Mapping[str, bool]) -> set[str]:
    """Return the cases that are written, and whose scans cannot be read at present."""
    return {
        case.case_id
        for case in todo
        if known.get(case.case_id) and case.problem and case.problem.kind in _OUT_OF_REACH
    }


@dataclass(frozen=True, slots=True)
class EarlierRuns:
    """The output that a run, or a share of one, goes into.

    A share sees what all journals say, and touches nothing of cases that are not its own.
    """

    plan: RunPlan
    share: Partition | None

    def completed(self) -> dict[str, CommittedCase | None]:
        """Return the cases that are written as this plan would write them, by whomever.

        With the record that is to be said again, where a failure was the last word.
        """
        planned = {case.case_id: case for case in self.plan.selected}
        on_disk = self._on_disk()
        done: dict[str, CommittedCase | None] = {}
        for history in self._histories():
            if (case := planned.get(history.case_id)) is None:
                continue
            for record in history.committed:
                if self._stands(record, case, on_disk.get(case.case_id, {})):
                    done[case.case_id] = None if history.failure is None else record
                    break
        return done

    def journaled(self) -> dict[str, bool]:
        """Return of which cases the journals know, and whether these are written."""
        return {
            history.case_id: bool(history.committed)
            for history in self._histories()
            if not isinstance(history.records[0], RemovedCase)
        }

    def lost_by_overwriting(self) -> int:
        """Return how many cases are written that this plan would not write again."""
        selected = {case.case_id for case in self.plan.selected}
        return sum(
            bool(history.committed) and history.case_id not in selected
            for history in self._histories()
        )

    def remove_outdated(
        self,
        gone: Collection[str],
        known: Mapping[str, bool],
        journal: Journal,
        observer: Observer,
    ) -> dict[str, CaseError]:
        """Take away what is to be written anew; note, or prune, what is no longer planned.

        Parameters
        ----------
        gone : collection of str
            The cases to be written anew.
        known : mapping of case id to bool
            See `known`.
        journal : Journal
            Is told of what was committed of them.
        observer : Observer

        Returns
        -------
        dict of case id to CaseError
            Why something could not be taken away.
        """
        planned = {case.case_id for case in self.plan.cases}
        committed = {case_id for case_id, is_committed in known.items() if is_committed}
        on_disk = self._on_disk()
        gone = set(gone)
        left_over = sorted(committed - planned)
        if self.plan.config.prune and left_over:
            # Files of no known case are what a killed run left of one that is gone since.
            gone |= set(left_over) | (on_disk.keys() - planned)
            observer.note(f"removed {plural(len(left_over), 'case')} not in the dataset")
        elif left_over and self.share is None:
            observer.note(
                f"{plural(len(left_over), 'case')} of earlier runs not in this dataset: "
                f"{first_few(left_over)}; kept, --prune removes them"
            )
        forgotten = gone & committed
        if self.plan.config.prune:
            forgotten |= known.keys() - planned  # that it failed, too
        for case_id in sorted(forgotten):
            journal.append(RemovedCase(case_id=case_id))
        return {
            case_id: failure
            for case_id in gone & on_disk.keys()
            if (failure := self.remove(on_disk[case_id]))
        }

    def remove_uncommitted(self) -> None:
        """Remove files of cases of this share that were stopped before they were committed."""
        committed = {history.case_id for history in self._histories() if history.committed}
        for case_id, entries in self._on_disk().items():
            if case_id not in committed:
                self.remove(entries)

    def remove(self, entries: Iterable[str]) -> CaseError | None:
        """Remove entries of a case; return why that is not possible."""
        temporary = partition_files(self.share).temporary
        return directory.remove_case_files(
            self.plan.config.output_dir, entries, temporary=temporary
        )

    def _histories(self) -> Iterator[History]:
        return histories(journals(self.plan.config.output_dir))

    def _on_disk(self) -> dict[str, dict[str, int]]:
        """Return what lies there of every case, or of those of this share."""
        own = None if self.share is None else {case.case_id for case in self.plan.selected}
        return layout.find_entries(self.plan.config.output_dir, of=own)

    def _stands(self, record: CommittedCase, case: CasePlan, entries: dict[str, int]) -> bool:
        """Return whether a case is written as this plan would write it."""
        if record.digest != case.digest:
            return False
        if self.plan.config.nonfinite == "error" and any(
            found.n_nonfinite for found in record.statistics
        ):
            return False
        return layout.is_whole(self.plan.config.output_dir, record, entries)
