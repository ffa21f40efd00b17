"""How a case becomes three Dask tasks, and how they run in this process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import dask.local
from dask.delayed import Delayed, delayed

from dask_slicer.config import RunConfig
from dask_slicer.lots import Lot
from dask_slicer.plans import CasePlan, RunPlan
from dask_slicer.shares import files_of, share_of
from dask_slicer.tasks import (
    Target,
    load_case,
    load_lot,
    save_case,
    save_lot,
    slice_case,
    slice_lot,
)


def target_of(config: RunConfig, *, run_id: str = "") -> Target:
    """Return where and how a run writes."""
    return Target(
        output_dir=str(config.output_dir),
        settings=config.slice_settings,
        run_id=run_id,
        fsync=config.fsync,
        temporary=files_of(share_of(config.shard)).temporary,
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
    return _chain(
        case.case_id,
        partial(load_case, case, target),
        partial(slice_case, target=target),
        partial(save_case, case=case, target=target),
    )


def lot_graph(cases: Lot, target: Target) -> Delayed:
    """Return one graph of three tasks for several cases, so small that one each were too many.

    A case that fails does not disturb the others.

    Parameters
    ----------
    cases : tuple of CasePlan
        Without problems.
    target : Target

    Returns
    -------
    Delayed
        Computes to a list of CommittedCase or CaseError, one per case.
    """
    return _chain(
        f"{cases[0].case_id} / {len(cases) - 1} more",  # no case id holds a slash
        partial(load_lot, cases, target),
        partial(slice_lot, target=target),
        partial(save_lot, cases=cases, target=target),
    )


def _chain(
    name: str,
    load: Callable[..., object],
    slice_: Callable[..., object],
    save: Callable[..., object],
) -> Delayed:
    # Inputs are bound to the functions: Dask would search arguments for other tasks, down to the
    # last field of every record.
    loaded = delayed(load, pure=False)(dask_key_name=("load", name))
    sliced = delayed(slice_, pure=False)(loaded, dask_key_name=("slice", name))
    saved: Delayed = delayed(save, pure=False)(sliced, dask_key_name=("save", name))
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


def verify_graph(name: str, check: Callable[[], object]) -> Delayed:
    """Return the graph of checking one case: ("verify", name)."""
    checked: Delayed = delayed(check, pure=False)(dask_key_name=("verify", name))
    return checked


def compute_here(graph: Delayed) -> Any:
    """Compute a case's graph in this thread, without importing `distributed`.

    Raises
    ------
    CaseError
        What the failing task raised.
    """
    return graph.compute(scheduler=dask.local.get_sync)
