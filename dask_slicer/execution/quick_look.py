"""Voxels of a few planned cases, looked at for notes on settings that do not suit them."""

from __future__ import annotations

import logging
from dataclasses import replace

from dask_slicer.config.schema import RunConfig
from dask_slicer.core.statistics import statistics
from dask_slicer.inputs.load import load_volume
from dask_slicer.planning.plan import CasePlan, RunPlan
from dask_slicer.records import clip_note
from dask_slicer.utils.modalities import for_each_modality

_LOG = logging.getLogger(__name__)

# It takes about a second at most: of cases with different headers, the smallest few.
_MOST_CASES = 3
_MOST_BYTES = 200_000_000


def with_clip_note(plan: RunPlan) -> RunPlan:
    """Return the plan, with a note if its clip range does not suit cases that were looked at.

    Reads nothing without a clip range. A case that cannot be read is left to the run.
    """
    config = plan.config
    if config.clip_min is None and config.clip_max is None:
        return plan
    chosen = _chosen(plan)
    clipped = [case.case_id for case in chosen if not _clip_fits(case, config)]
    if not clipped:
        return plan
    looked = f" ({len(chosen)} of {len(plan.cases)} cases were looked at)"
    note = clip_note(config.clip_min, config.clip_max, clipped)
    return replace(plan, notes=(*plan.notes, note + looked))


def _chosen(plan: RunPlan) -> list[CasePlan]:
    """Return the smallest case of each kind of header, a few in all, within the limit of bytes."""
    chosen: dict[tuple[object, ...], CasePlan] = {}
    n_bytes = 0
    for case in sorted(plan.runnable, key=lambda case: case.voxel_bytes):
        kind = (case.dtypes, case.orientation, case.spacing)
        n_bytes += 0 if kind in chosen else case.voxel_bytes
        if len(chosen) == _MOST_CASES or n_bytes > _MOST_BYTES:
            break
        chosen.setdefault(kind, case)
    return list(chosen.values())


def _clip_fits(case: CasePlan, config: RunConfig) -> bool:
    """Return whether the clip range suits a case; True if it cannot be read."""
    try:
        images = load_volume(replace(case.case, label=None, masks=()), config.planes[0]).image
        limits = (for_each_modality(end, len(images)) for end in (config.clip_min, config.clip_max))
        stats = [
            statistics(voxels, clip_min=low, clip_max=high, zero_nonfinite=True)
            for voxels, low, high in zip(images, *limits, strict=True)
        ]
    except Exception:  # any error: the plan is made of headers, and the run names what is wrong
        _LOG.info("case %s: the clip range could not be checked", case.case_id, exc_info=True)
        return True
    return all(modality.clip_fits for modality in stats)
