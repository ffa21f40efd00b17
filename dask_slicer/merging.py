"""How shares of a run become one: their records join the journal, then all is summed up."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from dask_slicer import output, stores
from dask_slicer.agreement import read_agreement
from dask_slicer.events import Observer
from dask_slicer.histories import History, histories
from dask_slicer.journal import CaseRecord, CommittedCase, FailedCase, Journal, RemovedCase
from dask_slicer.locks import locked, remove_stale_locks
from dask_slicer.shares import journals, journals_of_shares
from dask_slicer.summing import sum_up


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """What a merge came to.

    Attributes
    ----------
    output_dir : str
    n_journals : int
        Of shares; none is left.
    n_cases, n_slices, n_bytes : int
        That the output holds now.
    failures : tuple of FailedCase
    missing : tuple of str
        Planned cases that neither were written nor failed.
    elapsed_seconds : float
    """

    output_dir: str
    n_journals: int
    n_cases: int
    n_slices: int
    n_bytes: int
    failures: tuple[FailedCase, ...]
    missing: tuple[str, ...]
    elapsed_seconds: float


def merge(output_dir: str | Path, *, observer: Observer | None = None) -> MergeReport:
    """Put together what shares of a run wrote: what one run of the whole would have left.

    Takes no scan; may be repeated, also when it was killed.

    Parameters
    ----------
    output_dir : str or Path
    observer : Observer, optional
        Is told what the user should know.

    Returns
    -------
    MergeReport

    Raises
    ------
    OutputError
        If the directory is not ours, or a share is running.
    """
    started = time.monotonic()
    path = Path(output_dir).absolute()
    output.own_config(path)  # no lock is put into what is not ours
    with locked(path) as notes:
        for note in notes:
            (observer or Observer()).note(note)
        agreed = read_agreement(path)
        config = output.own_config(path) if agreed is None else agreed.config
        planned = output.existing_splits(path) if agreed is None else agreed.cases
        n_journals = len(journals_of_shares(path))
        failures = take_over(path)
        failures = [failure for failure in failures if failure.case_id in set(planned)]
        tally = sum_up(
            config,
            failures,
            planned=planned,
            n_modalities=None if agreed is None else agreed.n_modalities,
            elapsed_seconds=time.monotonic() - started,
            slices_this_run=0,
            is_complete=False,
        )
        forget_shares(path)
    known = {*tally.case_names, *(failure.case_id for failure in failures)}
    return MergeReport(
        output_dir=str(path),
        n_journals=n_journals,
        n_cases=len(tally.case_names),
        n_slices=tally.n_slices,
        n_bytes=tally.n_bytes,
        failures=tuple(sorted(failures, key=lambda failure: failure.case_id)),
        missing=tuple(sorted(set(planned) - known)),
        elapsed_seconds=time.monotonic() - started,
    )


def take_over(output_dir: Path) -> list[FailedCase]:
    """Add to the output's journal what those of shares say; for whoever holds the output.

    Returns
    -------
    list of FailedCase
        Of cases that stand as they were written before: their scans were out of reach.
    """
    if not journals_of_shares(output_dir):
        return []
    failures = []
    stores.look_afresh(output_dir)
    on_disk = stores.find_entries(output_dir)
    with Journal(output_dir / output.JOURNAL) as journal:
        for history in histories(journals(output_dir)):
            if history.records == (history.own,):  # no share has had it
                continue
            record = _verdict(history, output_dir, on_disk.get(history.case_id, {}))
            if record is not None and record != history.own:
                journal.append(record)
            if isinstance(record, CommittedCase) and history.failure is not None:
                failures.append(history.failure)
        journal.sync()  # those that say the same are about to be removed
    return failures


def forget_shares(output_dir: Path) -> None:
    """Remove what shares wrote beside their slices; for whoever has taken it over."""
    for path in (*journals_of_shares(output_dir), output_dir / output.AGREEMENT):
        path.unlink(missing_ok=True)
    remove_stale_locks(output_dir)


def _verdict(history: History, output_dir: Path, entries: dict[str, int]) -> CaseRecord | None:
    """Return what counts of a case: what is on the disk, else how it failed last."""
    for record in history.committed:
        if stores.is_whole(output_dir, record, entries):
            return record
    if history.failure is None and isinstance(history.own, CommittedCase):
        return RemovedCase(case_id=history.case_id)  # a share took its files away, and was stopped
    return history.failure
