"""Continuing earlier runs: planning, and cases to skip, redo or remove."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

from dask_slicer.config.dataset_settings import BY_LABEL
from dask_slicer.config.partition import Partition
from dask_slicer.config.schema import RunConfig
from dask_slicer.core.foreground import IntensityProperties
from dask_slicer.errors import CaseError, DatasetError, OutputError, UsageError
from dask_slicer.execution.dataset_statistics import training_cases, with_properties
from dask_slicer.inputs.header_cache import HeaderCache
from dask_slicer.inputs.pairing import choose_name
from dask_slicer.inputs.readers.base import split_volume
from dask_slicer.inputs.readers.files import checksum
from dask_slicer.inputs.tree import Progress, no_progress
from dask_slicer.monitoring.observer import Observer
from dask_slicer.output import directory, layout
from dask_slicer.output.folds import with_folds
from dask_slicer.output.journal import History, Journal, histories, last_records
from dask_slicer.output.properties import read_properties
from dask_slicer.output.summary import existing_names
from dask_slicer.planning.case_table import CaseTable
from dask_slicer.planning.headers import case_digest
from dask_slicer.planning.plan import CasePlan, RunPlan
from dask_slicer.planning.planner import make_plan
from dask_slicer.records import CommittedCase, RemovedCase, SourceFile
from dask_slicer.utils import signals
from dask_slicer.utils.formatting import as_utf8, first_few, format_bytes, plural
from dask_slicer.utils.threads import map_files

# Failures that do not invalidate what an earlier run wrote.
_OUT_OF_REACH = {"MissingFile", "MissingLabel", "PermissionDenied", "Unexpected"}


def headers_of(config: RunConfig) -> HeaderCache:
    """Return the cache of headers of a run; it has a file beside the output, if there is one."""
    beside = config.output_dir / layout.HEADERS if config.has_output else None
    return HeaderCache(config.input_dir, config.input_root, plane=config.planes[0], beside=beside)


def prepare_plan(
    config: RunConfig, headers: HeaderCache | None = None, *, progress: Progress = no_progress
) -> RunPlan:
    """Return what a run into the present output directory would do; write nothing there."""
    old = directory.existing_config(config.output_dir)
    headers = headers or headers_of(config)
    if old is None or config.overwrite:
        plan = make_plan(config, headers=headers, progress=progress)
        return with_folds(_with_known_properties(_like_images(plan), ()))
    # The plan decides the offset of images, where none is given.
    has_offset = config.offset is not None or config.like is not None
    unplanned = config if has_offset else config.model_copy(update={"offset": old.offset})
    directory.check_unchanged(old, unplanned)
    table = directory.existing_table(config.output_dir)
    plan = make_plan(
        config,
        assigned=directory.existing_splits(config.output_dir),
        assigned_groups=partial(_groups, config.output_dir, table),
        structures=directory.existing_structures(config.output_dir),
        earlier=old,
        headers=headers,
        progress=progress,
    )
    if config.stratify not in (None, old.stratify, BY_LABEL):
        note = f"cases that have a split keep it, although --stratify {config.stratify} is new"
        plan = replace(plan, notes=(*plan.notes, note))
    frozen = directory.existing_properties(config.output_dir) if plan.needs_properties else ()
    return with_folds(_with_known_properties(_like_images(plan), frozen))


def _like_images(plan: RunPlan) -> RunPlan:
    """Return a plan, with a note if the images of a case may not be those of the output in `like`.

    Raises
    ------
    DatasetError
        If their names say that they are others, or in another order.
    """
    like, names = plan.config.like, plan.names.channels
    before = () if like is None else existing_names(like).channels
    if not names or not before or len(names) == len(before) == 1:
        return plan
    matching = [choose_name(name, names) for name in before]
    places = [names.index(name) if name in names else None for name in matching]
    if len(names) == len(before) and places == [*range(len(names))]:
        return plan
    differ = f"the images of a case are {first_few(names, 12)}, in {like} {first_few(before, 12)}"
    if len(names) == len(before) and all(
        place in (None, number) for number, place in enumerate(places)
    ):
        note = f"{differ}: make sure that these are the same, in the same order"
        return replace(plan, notes=(*plan.notes, note))
    raise DatasetError(f"{differ}; choose the same, in the same order, with --modalities")


def _with_known_properties(plan: RunPlan, frozen: tuple[IntensityProperties, ...]) -> RunPlan:
    """Return a plan with the properties in a file, or those of the output, if it needs them."""
    config = plan.config
    if not plan.needs_properties:
        return plan
    properties, file = frozen, config.output_dir / layout.STATISTICS_FILE
    # An output has its own copy, so it does not need the file of elsewhere again.
    if config.statistics is not None and not (frozen and not config.statistics.exists()):
        file = config.statistics
        properties = read_properties(file)
    if not properties:
        _check_can_be_computed(plan)
        return plan
    if frozen and properties != frozen:
        raise OutputError(
            f"{config.output_dir} was made with other statistics than {file}; use another "
            "--output_dir, or --overwrite to replace it"
        )
    if len(properties) != plan.n_modalities:
        raise DatasetError(
            f"{file} holds statistics of {plural(len(properties), 'channel')}, a case has "
            f"{plan.n_modalities}"
        )
    return with_properties(plan, properties)


def _check_can_be_computed(plan: RunPlan) -> None:
    """Raise a UsageError if this run cannot compute the properties of its dataset."""
    if plan.config.shard is not None:
        raise UsageError(
            "normalize dataset needs --statistics with --shard: a partition does not see all "
            "cases; `dask-slicer statistics` makes the file"
        )
    if plan.runnable and not training_cases(plan):
        raise DatasetError(
            "normalize dataset needs labels of training cases, and there are none; use "
            "--statistics FILE, or another --normalize"
        )


def _groups(output_dir: Path, table: CaseTable) -> dict[str, str]:
    """Return the group, such as a patient, of each case in the table or the journal."""
    written = {
        record.case_id: record.group or record.case_id
        for record in last_records(output_dir / layout.JOURNAL)
        if isinstance(record, CommittedCase)
    }
    return written | table.groups


def _has_contents(record: CommittedCase, case: CasePlan, root: str) -> bool:
    """Return whether the scans of a case have the checksums in its record, where it has any."""
    signals.raise_if_interrupted()
    files = [os.path.join(root, split_volume(path)[0]) for path, _, _ in case.files]
    crc32_of = cache(checksum)  # volumes of a 4D image are in one file
    try:
        return all(
            source.crc32 in (None, crc32_of(path))
            for source, path in zip(record.sources, files, strict=True)
            if source.path  # of a missing image, it is empty
        )
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class EarlierRuns:
    """Earlier runs into an output; a partition reads all journals, and changes only its cases."""

    plan: RunPlan
    partition: Partition | None
    # What `journaled` returned, by the state of the journals, which take long to read.
    _known: dict[object, dict[str, bool]] = field(default_factory=dict)

    def completed(self, observer: Observer) -> dict[str, CommittedCase | None]:
        """Return the cases that are already written as this plan would write them.

        The value is None, or a record to be journaled again: if the case failed later, or if the
        times of its scans are others now, but `--trust_size` accepts them.
        """
        # In the order of a journal, plans that are packed take long to look at.
        digests = {case.case_id: case.digest for case in self.plan.selected}
        on_disk = self._digests_on_disk()
        done: dict[str, CommittedCase | None] = {}
        retimed: dict[str, CommittedCase] = {}
        unsized: set[str] = set()
        known: dict[str, bool] = {}
        for history in self._histories():
            case_id = history.case_id
            if not isinstance(history.records[0], RemovedCase):
                known[case_id] = bool(history.committed)
            if (digest := digests.get(case_id)) is None:
                continue
            entries = on_disk.get(case_id, 0)
            for record in history.committed:
                if self._is_current(record, digest, entries):
                    done[case_id] = None if history.failure is None else record
                    break
                if not record.sources:
                    unsized.add(case_id)
                with_times = self._with_present_times(record, self.plan.of_id(case_id))
                if with_times is not None and self._is_current(with_times, digest, entries):
                    if not self.plan.config.trust_size:  # else it is journaled again
                        with_times = with_times.without_slices()  # they take memory
                    retimed.setdefault(case_id, with_times)
        self._known[self._journals()] = known
        retimed = {name: record for name, record in retimed.items() if name not in done}
        if self.plan.config.trust_size and (unknown := unsized - done.keys()):
            observer.note(
                f"no sizes of scans in the journal, from an earlier version: "
                f"{plural(len(unknown), 'case')} ({first_few(sorted(unknown))}), written again"
            )
        return done | self._trusted(retimed, observer)

    def journaled(self) -> dict[str, bool]:
        """Return the cases in the journals, and whether they are written."""
        state = self._journals()
        if state not in self._known:
            self._known[state] = {
                history.case_id: bool(history.committed)
                for history in self._histories()
                if not isinstance(history.records[0], RemovedCase)
            }
        return self._known[state]

    def _journals(self) -> tuple[tuple[str, int, int], ...]:
        """Return what tells that no journal has changed: names, sizes and times."""
        paths = layout.journals(self.plan.config.output_dir)
        stamps = ((path.name, path.stat()) for path in paths if path.exists())
        return tuple((name, stamp.st_size, stamp.st_mtime_ns) for name, stamp in stamps)

    def remove_outdated(
        self, todo: Collection[CasePlan], journal: Journal, observer: Observer
    ) -> tuple[set[str], dict[str, CaseError]]:
        """Remove the files of the cases to run, and with --prune of cases not in the dataset.

        Returns written cases whose scans are unreadable, which keep their files; and errors.
        """
        known = self.journaled()
        unreadable = {
            case.case_id
            for case in todo
            if known.get(case.case_id) and case.problem and case.problem.kind in _OUT_OF_REACH
        }
        removed = {case.case_id for case in todo} - unreadable
        planned = set(self.plan.case_ids)
        written = {case_id for case_id, is_written in known.items() if is_written}
        left_over = sorted(written - planned)
        if self.plan.config.prune and left_over:
            # A killed run may have left files of a case that no journal knows.
            # Those to be pruned are no longer in splits.json.
            removed |= set(left_over) | (self._digests_on_disk(known).keys() - planned)
            observer.note(f"removed {plural(len(left_over), 'case')} not in the dataset")
        elif left_over and self.partition is None:
            observer.note(
                f"kept {plural(len(left_over), 'case')} of earlier runs not in this dataset: "
                f"{first_few(left_over)}; --prune removes such cases"
            )
        journaled = removed & written
        if self.plan.config.prune:
            journaled |= known.keys() - planned  # failed cases too
        for case_id in sorted(journaled):
            journal.append(RemovedCase(case_id=case_id))
        on_disk = self._on_disk(removed) if removed else {}
        errors = {case_id: self.remove(entries) for case_id, entries in on_disk.items()}
        return unreadable, {case_id: error for case_id, error in errors.items() if error}

    def note_other_names(self, observer: Observer) -> None:
        """Note names of channels and labels that are other than those of earlier slices."""
        names, earlier = self.plan.names, existing_names(self.plan.config.output_dir)
        before = [*earlier.channels] if earlier.channels != names.channels else []
        now = [*names.channels] if before else []
        for value, name in sorted(earlier.labels.items() - names.labels.items()):
            before.append(f"{value} {name}")
            now.append(f"{value} {names.labels.get(value, 'unnamed')}")
        if before:
            observer.note(
                f"names now differ from those of earlier runs ({first_few(before)}; now "
                f"{first_few(now) or 'none'}): slices written before keep theirs, --overwrite "
                "writes them again"
            )

    def remove_uncommitted(self) -> None:
        """Remove files of this partition's cases that were stopped before they were committed."""
        known = self.journaled()
        uncommitted = {name for name in self.plan.selected_ids if not known.get(name)}
        for entries in self._on_disk(uncommitted).values():
            self.remove(entries)

    def remove(self, entries: Iterable[str]) -> CaseError | None:
        """Delete the files of a case; return the error, if any."""
        temporary = layout.partition_files(self.partition).temporary
        return directory.remove_case_files(
            self.plan.config.output_dir, entries, temporary=temporary
        )

    def _histories(self) -> Iterator[History]:
        return histories(layout.journals(self.plan.config.output_dir))

    def _on_disk(self, of: set[str]) -> dict[str, dict[str, int]]:
        """Return the files of some cases, which a partition must own; see `find_entries`."""
        config = self.plan.config
        if self.partition is not None:
            of = of.intersection(self.plan.selected_ids)
        return layout.find_entries(config.output_dir, config, of=of)

    def _digests_on_disk(self, known: Iterable[str] = ()) -> dict[str, int]:
        """Return digests of the files of each case, or of the cases of this partition."""
        config = self.plan.config
        own = None if self.partition is None else set(self.plan.selected_ids)
        return layout.digests_of_entries(config.output_dir, config, of=own, known=known)

    def _with_present_times(self, record: CommittedCase, case: CasePlan) -> CommittedCase | None:
        """Return a record with the present times of its scans, if nothing else has changed."""
        before = [(source.path, source.size) for source in record.sources]
        now = [(as_utf8(path), size) for path, size, _ in case.files]
        if not before or before != now:
            return None
        pairs = list(zip(record.sources, case.files, strict=True))
        files = [(path, size, source.mtime_ns) for source, (path, size, _) in pairs]
        if case_digest(case, self.plan.config, files) != record.digest:
            return None
        sources = (
            SourceFile(source.path, source.size, mtime_ns, source.crc32)
            for source, (_, _, mtime_ns) in pairs
        )
        return replace(record, digest=case.digest, sources=tuple(sources))

    def _trusted(
        self, retimed: dict[str, CommittedCase], observer: Observer
    ) -> dict[str, CommittedCase]:
        """Return the records, whose scans have other times, that `--trust_size` accepts."""
        if not retimed:
            return {}
        same = f"same sizes, other times: {plural(len(retimed), 'case')} ({first_few([*retimed])})"
        if not self.plan.config.trust_size:
            observer.note(
                f"{same}, as after a copy that did not keep times; they are written again. "
                "--trust_size keeps such cases if the contents of their scans are the same"
            )
            return {}
        n_bytes = sum(source.size for record in retimed.values() for source in record.sources)
        observer.note(f"{same}; comparing {format_bytes(n_bytes)} of scans with their checksums")
        root = str(self.plan.config.input_root)
        planned = {case.case_id: case for case in self.plan.of_ids(retimed)}

        def is_equal(name: str) -> bool:
            return _has_contents(retimed[name], planned[name], root)

        equal = dict(zip(retimed, map_files(is_equal, [*retimed]), strict=True))
        unsummed = [
            name
            for name, record in retimed.items()
            if any(source.path and source.crc32 is None for source in record.sources)
        ]
        if unsummed:
            observer.note(
                f"no checksums in the journal, compared by size alone: "
                f"{plural(len(unsummed), 'case')} ({first_few(unsummed)})"
            )
        if changed := [name for name, is_same in equal.items() if not is_same]:
            observer.note(
                f"other contents: {plural(len(changed), 'case')} ({first_few(changed)}), written "
                "again"
            )
        return {name: record for name, record in retimed.items() if equal[name]}

    def _is_current(self, record: CommittedCase, digest: str, entries: int) -> bool:
        """Return whether a case is written as this plan would write it."""
        config = self.plan.config
        has_nonfinite = any(stats.n_nonfinite for stats in record.statistics)
        if record.digest != digest or (has_nonfinite and config.nonfinite == "error"):
            return False
        return layout.is_whole(config.output_dir, record, entries)
