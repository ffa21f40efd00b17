"""Partitions of a run (`--shard`): one plan for all, and merging them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dask_slicer.config.loader import build_config, lasting_settings
from dask_slicer.config.schema import RunConfig, changed_settings
from dask_slicer.errors import ConfigError, OutputError
from dask_slicer.monitoring.events import Observer
from dask_slicer.output import directory, layout
from dask_slicer.output.atomic import atomic_write
from dask_slicer.output.journal import History, Journal, histories
from dask_slicer.output.layout import PARTITION_PLAN, journals, partition_journals
from dask_slicer.output.lock import locked, remove_stale_locks
from dask_slicer.output.summary import finalize
from dask_slicer.planning.plan import RunPlan
from dask_slicer.records import CaseRecord, CommittedCase, FailedCase, RemovedCase
from dask_slicer.utils.formatting import first_few, plural


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
    directory.own_config(path)  # no lock is put into what is not ours
    with locked(path) as notes:
        for note in notes:
            (observer or Observer()).note(note)
        agreed = read_partition_plan(path)
        config = directory.own_config(path) if agreed is None else agreed.config
        planned = directory.existing_splits(path) if agreed is None else agreed.cases
        n_journals = len(partition_journals(path))
        failures = take_over(path)
        failures = [failure for failure in failures if failure.case_id in set(planned)]
        tally = finalize(
            config,
            failures,
            planned=planned,
            n_modalities=None if agreed is None else agreed.n_modalities,
            elapsed_seconds=time.monotonic() - started,
            slices_this_run=0,
            is_complete=False,
        )
        remove_partition_files(path)
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
    if not partition_journals(output_dir):
        return []
    failures = []
    layout.refresh_listing(output_dir)
    on_disk = layout.find_entries(output_dir)
    with Journal(output_dir / layout.JOURNAL) as journal:
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


def remove_partition_files(output_dir: Path) -> None:
    """Remove what shares wrote beside their slices; for whoever has taken it over."""
    for path in (*partition_journals(output_dir), output_dir / layout.PARTITION_PLAN):
        path.unlink(missing_ok=True)
    remove_stale_locks(output_dir)


def _verdict(history: History, output_dir: Path, entries: dict[str, int]) -> CaseRecord | None:
    """Return what counts of a case: what is on the disk, else how it failed last."""
    for record in history.committed:
        if layout.is_whole(output_dir, record, entries):
            return record
    if history.failure is None and isinstance(history.own, CommittedCase):
        return RemovedCase(case_id=history.case_id)  # a share took its files away, and was stopped
    return history.failure


# Beside what an output keeps for life, what must be equal for the shares to be as one run.
_ALSO_EQUAL = ("nonfinite", "allow_missing_labels")
# Where there are no hard links, one may come while another is writing, which takes no time.
_TRIES, _WAIT_SECONDS = 20, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionPlan:
    """What the shares of an output agreed on.

    Attributes
    ----------
    config : RunConfig
        Without settings of one run.
    cases : tuple of str
        The planned ones, of all shares.
    splits : dict of split to list of str
        What splits.json holds: these, and those of earlier runs.
    n_modalities : int
    """

    config: RunConfig
    cases: tuple[str, ...]
    splits: dict[str, list[str]]
    n_modalities: int


def record_plan(plan: RunPlan) -> PartitionPlan:
    """Return what the first of the shares wrote down; it may be this one.

    Raises
    ------
    OutputError
        If this share would have written something else.
    """
    mine = {
        "config": lasting_settings(plan.config),
        "cases": [case.case_id for case in plan.cases],
        "splits": plan.splits,
        "n_modalities": plan.n_modalities,
    }
    path = plan.config.output_dir / PARTITION_PLAN
    with suppress(FileExistsError), atomic_write(path, exclusive=True, fsync=True) as file:
        file.write(f"{json.dumps(mine)}\n".encode())
    found = read_partition_plan(plan.config.output_dir)
    if found is None:
        raise OutputError(f"{path} has just been removed; run the same command again")
    _check_equal(found, plan)
    return found


def check_partition_plan(plan: RunPlan) -> None:
    """Raise if shares have agreed on something else; write nothing.

    Raises
    ------
    OutputError
    """
    found = read_partition_plan(plan.config.output_dir)
    if found is not None:
        _check_equal(found, plan)


def read_partition_plan(output_dir: Path) -> PartitionPlan | None:
    """Return what shares agreed on, None where there are none that are not merged yet.

    Raises
    ------
    OutputError
        If it is damaged.
    """
    path = output_dir / PARTITION_PLAN
    for number in range(_TRIES):
        try:
            return _understood(json.loads(path.read_text(encoding="utf-8")), output_dir)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, ConfigError) as error:
            if number == _TRIES - 1:
                raise OutputError(
                    f"{path} is damaged ({error}); remove it, and run one of the shares again"
                ) from None
        time.sleep(_WAIT_SECONDS)
    return None


def _understood(said: dict[str, Any], output_dir: Path) -> PartitionPlan:
    return PartitionPlan(
        config=build_config({"output_dir": output_dir}, base=said["config"]),  # wherever it is now
        cases=tuple(said["cases"]),
        splits=dict(said["splits"]),
        n_modalities=int(said["n_modalities"]),
    )


def _check_equal(found: PartitionPlan, plan: RunPlan) -> None:
    output_dir = plan.config.output_dir
    changed = changed_settings(found.config, plan.config, also=_ALSO_EQUAL)
    if changed:
        raise OutputError(
            f"other shares in {output_dir} were run with other settings: {'; '.join(changed)}; "
            f"use the same, or run dask-slicer merge {output_dir} first"
        )
    mine = [case.case_id for case in plan.cases]
    differences = [
        f"{plural(len(names), 'case')} {how} ({first_few(names)})"
        for how, names in (
            ("more", _without(mine, found.cases)),
            ("fewer", _without(found.cases, mine)),
        )
        if names
    ]
    if found.splits != plan.splits:
        differences = differences or ["cases in other splits"]
    if found.n_modalities != plan.n_modalities:
        differences.append(f"{plan.n_modalities} images a case, not {found.n_modalities}")
    if differences:
        raise OutputError(
            f"the dataset is not what other shares in {output_dir} found: "
            f"{', '.join(differences)}; run dask-slicer merge {output_dir}, then all shares again"
        )


def _without(names: Sequence[str], others: Sequence[str]) -> list[str]:
    return sorted(set(names) - set(others))
