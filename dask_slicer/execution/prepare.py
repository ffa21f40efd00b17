"""Planning a run into its output directory, with the splits of earlier runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from dask_slicer.config.schema import RunConfig
from dask_slicer.output.directory import check_unchanged, existing_config, existing_splits
from dask_slicer.output.journal import last_records
from dask_slicer.output.layout import JOURNAL
from dask_slicer.planning.plan import RunPlan
from dask_slicer.planning.planner import make_plan
from dask_slicer.records import CommittedCase


def prepare_plan(config: RunConfig) -> RunPlan:
    """Return what a run into the present output directory would do; write nothing.

    Problems of single cases are in `failures`, those of the dataset in `problems`.
    """
    old = existing_config(config.output_dir)
    if old is None or config.overwrite:
        return make_plan(config)
    check_unchanged(old, config)
    return make_plan(
        config,
        assigned=existing_splits(config.output_dir),
        assigned_groups=partial(_groups, config.output_dir),
    )


def _groups(output_dir: Path) -> dict[str, str]:
    """Return the group, such as a patient, of each case that was written."""
    return {
        record.case_id: record.group or record.case_id
        for record in last_records(output_dir / JOURNAL)
        if isinstance(record, CommittedCase)
    }
