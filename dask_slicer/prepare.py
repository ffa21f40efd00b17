"""Plans a run into its output directory: what earlier runs have settled is read there first."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from dask_slicer.config import RunConfig
from dask_slicer.journal import CommittedCase, last_records
from dask_slicer.output import JOURNAL, check_unchanged, existing_config, existing_splits
from dask_slicer.planning import EarlierSplits, make_plan
from dask_slicer.plans import RunPlan


def prepare_plan(config: RunConfig) -> RunPlan:
    """Return what a run into its output directory, as it is now, would do; writes nothing.

    Parameters
    ----------
    config : RunConfig

    Returns
    -------
    RunPlan
        What is wrong with single cases stands in `failures`, with the dataset in `problems`.

    Raises
    ------
    DatasetError
        If there is no case, or splits or `only` do not fit the cases.
    OutputError
        If the output directory is not ours, or was made with other settings.
    """
    old = existing_config(config.output_dir)
    if old is None or config.overwrite:
        return make_plan(config)
    check_unchanged(old, config)
    earlier = EarlierSplits(
        splits=existing_splits(config.output_dir), groups=partial(_groups, config.output_dir)
    )
    return make_plan(config, earlier)


def _groups(output_dir: Path) -> dict[str, str]:
    """Return the patient of each case that was written."""
    return {
        record.case_id: record.group or record.case_id
        for record in last_records(output_dir / JOURNAL)
        if isinstance(record, CommittedCase)
    }
