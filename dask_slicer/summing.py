"""What is said of an output as a whole, from its journal: index, failures, summary, store."""

from __future__ import annotations

from collections.abc import Collection

from dask_slicer import output, stores
from dask_slicer.config import RunConfig
from dask_slicer.journal import CommittedCase, FailedCase, last_records
from dask_slicer.slices_csv import IndexWriter
from dask_slicer.summary import Tally, dataset_info


def sum_up(
    config: RunConfig,
    failures: list[FailedCase],
    *,
    planned: Collection[str],
    n_modalities: int | None,
    elapsed_seconds: float,
    slices_this_run: int,
    is_complete: bool,
) -> Tally:
    """Write index, failures, summary and the store's metadata; return the totals.

    Parameters
    ----------
    config : RunConfig
        Names the output, which the caller holds.
    failures : list of FailedCase
        Those that the journal does not have; its own are added.
    planned : collection of str
        Cases whose failures count, and whose files go if they are not committed.
    n_modalities : int or None
        None: as many as the committed cases have.
    elapsed_seconds : float
    slices_this_run : int
    is_complete : bool
        Whether nothing was stopped, or failed, that may have left files.
    """
    output.remove_temporary(config.output_dir)
    try:
        planned = set(planned)
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
        if not is_complete and (stopped := planned.difference(tally.case_names)):
            # Their files were written before they could be committed.
            for paths in stores.find_entries(config.output_dir, of=stopped).values():
                output.take_away(config.output_dir, paths)
        if config.format == "zarr":
            output.write_store_metadata(config.output_dir, written)
        output.write_summary(
            config.output_dir,
            dataset_info(
                tally,
                config,
                n_modalities=n_modalities or len(tally.intensity) or 1,
                failures=failures,
                elapsed_seconds=elapsed_seconds,
                slices_this_run=slices_this_run,
            ),
        )
    finally:  # also where the disk is too full for what is said here
        output.remove_temporary(config.output_dir)
    return tally
