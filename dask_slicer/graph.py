"""How a case becomes three Dask tasks, and how they run in this process."""

from __future__ import annotations

import dask.local
from dask.delayed import Delayed, delayed

from dask_slicer.config import RunConfig
from dask_slicer.journal import CommittedCase
from dask_slicer.plans import CasePlan, RunPlan
from dask_slicer.tasks import Target, load_case, save_case, slice_case

_LOAD = delayed(load_case)
_SLICE = delayed(slice_case)
_SAVE = delayed(save_case)


def target_of(config: RunConfig, *, run_id: str = "") -> Target:
    """Return where and how a run writes."""
    return Target(
        output_dir=str(config.output_dir),
        settings=config.slice_settings,
        run_id=run_id,
        fsync=config.fsync,
    )


def case_graph(case: CasePlan, target: Target) -> Delayed:
    """Return the graph of one case; nothing runs yet.

    ::

        ("load", case_id) ──► ("slice", case_id) ──► ("save", case_id)

    The keys are tuples, so that the dashboard groups and colours tasks by step, and the scheduler
    queues all loads as one group. The graph holds paths and settings, never an array.

    Parameters
    ----------
    case : CasePlan
        Without a problem.
    target : Target

    Returns
    -------
    Delayed
        Computes to a CommittedCase.
    """
    loaded = _LOAD(case, target, dask_key_name=("load", case.case_id))
    sliced = _SLICE(loaded, target, dask_key_name=("slice", case.case_id))
    saved: Delayed = _SAVE(sliced, case, target, dask_key_name=("save", case.case_id))
    return saved


def build_graphs(plan: RunPlan) -> dict[str, Delayed]:
    """Return the graphs of all cases that a run of this plan would compute, by case id.

    Computing one writes its slices into the output directory, which must exist; the journal and
    the index are `run`'s part.

    Parameters
    ----------
    plan : RunPlan

    Returns
    -------
    dict of case id to Delayed
        Cases with a problem are left out.
    """
    target = target_of(plan.config)
    return {
        case.case_id: case_graph(case, target) for case in plan.selected if case.problem is None
    }


def compute_here(graph: Delayed) -> CommittedCase:
    """Compute a case's graph in this thread, without importing `distributed`.

    Raises
    ------
    CaseError
        What the failing task raised.
    """
    record: CommittedCase = graph.compute(scheduler=dask.local.get_sync)
    return record
