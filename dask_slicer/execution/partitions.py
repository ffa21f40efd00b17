"""Partitions of a run (`--shard`): the plan that they share, and merging them."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dask_slicer.config.changes import changed_settings
from dask_slicer.config.loader import build_config, lasting_settings
from dask_slicer.config.schema import RunConfig
from dask_slicer.core.foreground import IntensityProperties
from dask_slicer.errors import ConfigError, OutputError
from dask_slicer.monitoring.observer import Observer
from dask_slicer.output import directory, layout
from dask_slicer.output.atomic import atomic_write
from dask_slicer.output.journal import History, Journal, histories
from dask_slicer.output.lock import locked, remove_stale_locks, still_held
from dask_slicer.output.properties import parse_properties, properties_json
from dask_slicer.output.summary import UNCONSOLIDATED, DatasetTotals, finalize
from dask_slicer.planning.names import Names
from dask_slicer.planning.plan import RunPlan
from dask_slicer.records import CaseRecord, CommittedCase, FailedCase, RemovedCase, clip_note
from dask_slicer.utils.files import parse_json, read_text
from dask_slicer.utils.formatting import first_few, plural

# Beside the lasting settings of an output, these must be equal, or partitions would differ from one
# run.
_ALSO_EQUAL = ("nonfinite", "allow_missing_labels", "folds", "stratify")
# Where there are no hard links, a partition may read the plan while another one writes it.
_TRIES, _WAIT_SECONDS = 20, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """The output after a merge; `missing` are planned cases neither written nor failed."""

    output_dir: str
    n_journals: int  # of partitions; they are removed
    totals: DatasetTotals
    failures: tuple[FailedCase, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionPlan:
    """The plan that all partitions of an output share: the first one writes it to a file."""

    config: RunConfig  # lasting settings
    cases: tuple[str, ...]  # planned, of all partitions
    splits: dict[str, list[str]]  # as in splits.json: with the cases of earlier runs
    n_modalities: int
    structures: dict[str, int]  # as in structures.json
    names: Names
    properties: tuple[IntensityProperties, ...]  # as in statistics.json


def merge(output_dir: str | Path, *, observer: Observer | None = None) -> MergeReport:
    """Merge partitions into what one run would have written; read no scan.

    It may be repeated, also after it was killed. `observer` gets notes for the user.
    """
    started = time.monotonic()
    path = Path(output_dir).absolute()
    directory.output_config(path)  # before a lock is put into a foreign directory
    with locked(path, note=(observer or Observer()).note):
        plan = read_partition_plan(path)
        config = directory.output_config(path) if plan is None else plan.config
        planned = set(directory.existing_splits(path) if plan is None else plan.cases)
        n_journals = len(layout.partition_journals(path))
        failures = [
            failure for failure in merge_journals(path, config) if failure.case_id in planned
        ]
        totals = finalize(
            config,
            failures,
            planned=planned,
            n_modalities=None if plan is None else plan.n_modalities,
            names=None if plan is None else plan.names,
            elapsed_seconds=time.monotonic() - started,
            slices_this_run=0,
            is_complete=False,
        )
        remove_partition_files(path)
    for note in totals.notes:
        (observer or Observer()).note(note)
    if totals.clipped:
        note = clip_note(config.clip_min, config.clip_max, totals.clipped)
        (observer or Observer()).note(note)
    if not totals.is_consolidated:
        (observer or Observer()).note(UNCONSOLIDATED)
    known = {*totals.split_of, *(failure.case_id for failure in failures)}
    return MergeReport(
        output_dir=str(path),
        n_journals=n_journals,
        totals=totals,
        failures=tuple(sorted(failures, key=lambda failure: failure.case_id)),
        missing=tuple(sorted(planned - known)),
    )


def merge_journals(output_dir: Path, config: RunConfig) -> list[FailedCase]:
    """Add the records of partitions to the output's journal; the caller has locked the output.

    Returns failures that are not in the journal: of cases whose earlier record stays valid.
    """
    if not layout.partition_journals(output_dir):
        return []
    failures = []
    layout.refresh_listing(output_dir, config)
    on_disk = layout.digests_of_entries(output_dir, config)
    with Journal(output_dir / layout.JOURNAL) as journal:
        for history in histories(layout.journals(output_dir)):
            if history.records == (history.own,):  # in no partition's journal
                continue
            record = _valid_record(history, output_dir, on_disk.get(history.case_id, 0))
            if record is not None and record != history.own:
                journal.append(record)
            if isinstance(record, CommittedCase) and history.failure is not None:
                failures.append(history.failure)
        journal.sync()  # before the partitions' journals are removed
    return failures


def remove_partition_files(output_dir: Path) -> None:
    """Remove the journals, the plan and stale locks of partitions, after `merge_journals`."""
    still_held(now=True)
    for path in (*layout.partition_journals(output_dir), output_dir / layout.PARTITION_PLAN):
        path.unlink(missing_ok=True)
    remove_stale_locks(output_dir)


def _valid_record(history: History, output_dir: Path, entries: int) -> CaseRecord | None:
    """Return the newest record whose files are on disk, else the last failure."""
    for record in history.committed:
        if layout.is_whole(output_dir, record, entries):
            return record
    if history.failure is None and isinstance(history.own, CommittedCase):
        # A partition removed its files, and was stopped.
        return RemovedCase(case_id=history.case_id)
    return history.failure


def record_plan(plan: RunPlan) -> PartitionPlan:
    """Write the plan of all partitions; raise OutputError if another one wrote a different plan."""
    content = {
        "config": lasting_settings(plan.config),
        "cases": list(plan.case_ids),
        "splits": plan.splits,
        "n_modalities": plan.n_modalities,
        "structures": dict(plan.structures),
        **plan.names.summary(),
        **(properties_json(plan.properties) if plan.properties else {}),
    }
    path = plan.config.output_dir / layout.PARTITION_PLAN
    with suppress(FileExistsError), atomic_write(path, exclusive=True, fsync=True) as file:
        file.write(f"{json.dumps(content)}\n".encode())
    shared_plan = check_partition_plan(plan)
    if shared_plan is None:
        raise OutputError(f"{path} has just been removed; run the same command again")
    return shared_plan


def read_partition_plan(output_dir: Path) -> PartitionPlan | None:
    """Return the plan of unmerged partitions, None where there are none; raise if it is damaged."""
    path = output_dir / layout.PARTITION_PLAN
    for number in range(_TRIES):
        try:
            content = parse_json(read_text(path))
            if not all(isinstance(case, str) for case in content["cases"]):
                raise ValueError("it holds something else than case ids")
            return PartitionPlan(
                # The output may have been moved.
                config=build_config({"output_dir": output_dir}, base=content["config"]),
                cases=tuple(content["cases"]),
                splits=dict(content["splits"]),
                n_modalities=int(content["n_modalities"]),
                structures=dict(content.get("structures", {})),
                names=Names.parse(content),
                properties=parse_properties(content),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
            if number == _TRIES - 1:
                raise OutputError(
                    f"{path} is damaged ({error}); remove it, then run one of the partitions again"
                ) from None
        time.sleep(_WAIT_SECONDS)
    return None


def check_partition_plan(plan: RunPlan) -> PartitionPlan | None:
    """Return the plan that other partitions wrote, if any; raise OutputError if it differs."""
    output_dir = plan.config.output_dir
    shared_plan = read_partition_plan(output_dir)
    if shared_plan is None:
        return None
    changed = changed_settings(shared_plan.config, plan.config, also=_ALSO_EQUAL)
    if changed:
        raise OutputError(
            f"other partitions in {output_dir} have other settings: {'; '.join(changed)}; "
            f"use the same settings, or run dask-slicer merge {output_dir} first"
        )
    cases, shared_cases = set(plan.case_ids), set(shared_plan.cases)
    differences = []
    if more := sorted(cases - shared_cases):
        differences.append(f"{plural(len(more), 'case')} more ({first_few(more)})")
    if fewer := sorted(shared_cases - cases):
        differences.append(f"{plural(len(fewer), 'case')} fewer ({first_few(fewer)})")
    if shared_plan.splits != plan.splits and not differences:
        differences.append("cases in other splits")
    if shared_plan.n_modalities != plan.n_modalities:
        differences.append(f"{plan.n_modalities} images a case, not {shared_plan.n_modalities}")
    if shared_plan.structures != plan.structures:
        differences.append("other structures, or in another order")
    if shared_plan.names != plan.names:
        differences.append("other names of channels or labels")
    if shared_plan.properties != plan.properties:
        differences.append("other statistics")
    if differences:
        raise OutputError(
            f"the dataset differs from that of the other partitions in {output_dir}: "
            f"{', '.join(differences)}; run dask-slicer merge {output_dir}, then all partitions "
            "again"
        )
    return shared_plan
