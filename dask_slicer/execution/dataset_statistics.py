"""Intensity statistics of a dataset: a first pass over the labelled voxels of training cases."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dask_slicer.cluster.client import memory_limit
from dask_slicer.cluster.preflight import Requirements
from dask_slicer.config.schema import RunConfig
from dask_slicer.core.foreground import IntensityProperties, pool_samples
from dask_slicer.errors import CaseError, DatasetError
from dask_slicer.execution import graph
from dask_slicer.execution.workers import workers
from dask_slicer.inputs.readers.base import split_volume
from dask_slicer.monitoring.observer import Observer
from dask_slicer.planning.headers import digest_with
from dask_slicer.planning.plan import CasePlan, RunPlan
from dask_slicer.planning.planner import make_plan
from dask_slicer.utils import system
from dask_slicer.utils.formatting import first_few, plural

if TYPE_CHECKING:
    from dask.delayed import Delayed
    from distributed import Client

# Voxels of a case, fewer in large datasets: all samples are in memory at once.
_MOST_VOXELS, _FEWEST_VOXELS, _ALL_VOXELS = 10_000, 500, 50_000_000

Sample = NDArray[np.float32]


def dataset_properties(
    plan: RunPlan, client: Client | None, observer: Observer
) -> tuple[IntensityProperties, ...]:
    """Return the intensity properties of each modality, over the training cases of a plan.

    A case that fails is left out and noted, since the run records its failure.

    Raises
    ------
    DatasetError
        If no training case has a labelled voxel, or a case could not be read, after retries.
    """
    cases = training_cases(plan)
    n_voxels = min(_MOST_VOXELS, max(_FEWEST_VOXELS, _ALL_VOXELS // max(len(cases), 1)))
    samples: dict[str, Sample] = {}
    failed = []
    observer.note(
        f"computing statistics of the dataset, from {plural(len(cases), 'training case')}"
    )
    for case, outcome in _samples(plan, cases, n_voxels, client):
        if isinstance(outcome, np.ndarray):
            samples[case.case_id] = outcome
        elif isinstance(outcome, CaseError) and not outcome.retriable:
            failed.append(case.case_id)
        else:
            raise DatasetError(f"statistics of the dataset: case {case.case_id}: {outcome}")
    if failed:
        observer.note(
            f"statistics of the dataset leave out {plural(len(failed), 'case')} that failed: "
            f"{first_few(sorted(failed))}"
        )
    try:
        properties = pool_samples(samples[case_id] for case_id in sorted(samples))
    except ValueError as error:
        raise DatasetError(
            f"normalize dataset needs labelled voxels in training cases, and {error}; use "
            "--statistics FILE, or another --normalize"
        ) from None
    each = "; ".join(f"mean {of.mean:.4g}, std {of.std:.4g}" for of in properties)
    observer.note(f"statistics of the dataset: {each}")
    return properties


def training_cases(plan: RunPlan) -> list[CasePlan]:
    """Return the cases whose labelled voxels make the properties of a dataset."""
    return [case for case in plan.runnable if case.split == "train" and case.has_label]


def with_properties(plan: RunPlan, properties: Sequence[IntensityProperties]) -> RunPlan:
    """Return a plan that normalises by the properties of its dataset, which its digests hold."""
    fact = [of_channel.as_json() for of_channel in properties]
    cases = tuple(
        case if case.problem is not None else digest_with(case, fact) for case in plan.cases
    )
    return replace(plan, cases=cases, properties=tuple(properties))


def _samples(
    plan: RunPlan, cases: Sequence[CasePlan], n_voxels: int, client: Client | None
) -> Iterator[tuple[CasePlan, object]]:
    limit = system.memory_bytes() if client is None else memory_limit(client, of=min)
    target = replace(
        graph.target_of(plan.config, names=plan.names, steps=plan.steps), memory_limit=limit
    )
    # Another run may sample cases of the same names, in another way, on the same scheduler.
    pass_id = uuid.uuid4().hex[:8]

    def graph_of(case: CasePlan) -> Delayed:
        return graph.sample_graph(f"{case.case_id} of {pass_id}", case, target, n_voxels)

    def sampled_here() -> Iterator[tuple[CasePlan, object]]:
        while queue:
            case = queue.popleft()
            try:
                yield case, graph.compute_here(graph_of(case))
            except CaseError as error:
                yield case, error

    queue = deque(cases)
    if client is None:
        outcomes = sampled_here()
    else:
        from dask_slicer.execution import futures

        outcomes = futures.run_graphs(
            client,
            lambda _: queue.popleft() if queue else None,
            graph_of,
            timeout=plan.config.timeout,
        )
    retries = dict.fromkeys((case.case_id for case in cases), plan.config.retries)
    for case, outcome in outcomes:
        if isinstance(outcome, CaseError) and outcome.retriable and retries[case.case_id]:
            retries[case.case_id] -= 1
            queue.append(case)
        else:
            yield case, outcome


def statistics(config: RunConfig, observer: Observer) -> tuple[IntensityProperties, ...]:
    """Return the intensity properties of a dataset, over its training cases; write nothing.

    Raises
    ------
    DatasetError
        If the dataset is refused, or has no labelled voxel to take them from.
    """
    plan = make_plan(config)
    if plan.problems:
        raise DatasetError("; ".join(plan.problems))
    cases = training_cases(plan)
    if not cases:
        raise DatasetError(
            "statistics are those of labelled voxels, and no training case has a label"
        )
    unusable = [case.case_id for case in plan.cases if case.split == "train" and case.problem]
    if unusable:  # a run records these failures
        observer.note(
            f"statistics of the dataset leave out {plural(len(unusable), 'case')} that cannot be "
            f"run: {first_few(unusable)}; `dask-slicer plan` says why"
        )
    needs = Requirements(
        output_dir=config.input_root,
        input_file=split_volume(cases[0].case.image_files[0])[0],
        timeout=config.timeout,
    )
    with workers(
        config,
        len(cases),
        peak_bytes=plan.peak_bytes,
        needs=needs,
        client=None,
        observer=observer,
    ) as client:
        return dataset_properties(plan, client, observer)
