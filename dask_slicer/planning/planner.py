"""Planning a run: find the cases, read their headers, assign splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial

from dask_slicer.config.effects import DatasetFacts, effects_note
from dask_slicer.config.schema import RunConfig
from dask_slicer.core.splits import SPLITS, by_split
from dask_slicer.errors import (
    CaseError,
    DatasetError,
    MissingFile,
    MissingLabel,
    UnsupportedImage,
    as_case_error,
)
from dask_slicer.inputs.case import Case, case_id_problems, sorted_cases
from dask_slicer.inputs.discovery import find_cases
from dask_slicer.inputs.header_cache import HeaderCache
from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch
from dask_slicer.inputs.listed_paths import exists
from dask_slicer.inputs.readers.base import VolumeHeader, split_volume
from dask_slicer.inputs.tree import FileTree, Progress, counted, no_progress
from dask_slicer.planning.assignment import case_groups, case_splits
from dask_slicer.planning.content import label_like_images, with_unnamed
from dask_slicer.planning.headers import (
    digest_with,
    first_volumes,
    grouped_notes,
    names_in_headers,
    with_headers,
    with_offset,
)
from dask_slicer.planning.names import (
    check_label_values,
    number_structures,
    structures_of,
    with_values,
)
from dask_slicer.planning.plan import CasePlan, RunPlan
from dask_slicer.planning.plan_cache import PlanCache
from dask_slicer.planning.steps import (
    in_effect,
    label_values,
    listed_slices,
    mapped_names,
    names_labels,
)
from dask_slicer.planning.volumes import (
    check_modalities,
    expand,
    filled_note,
    names_of_volumes,
    without_missing,
)
from dask_slicer.records import CasePlans, FailedCase
from dask_slicer.utils.formatting import did_you_mean, first_few, plural
from dask_slicer.utils.packed import PackedList
from dask_slicer.utils.threads import iter_files


@dataclass(slots=True)
class _Series:
    """What planning knows of 4D images before it reads all headers."""

    headers: dict[str, VolumeHeader] = field(default_factory=dict)  # of first volumes, by path
    problems: dict[str, CaseError] = field(default_factory=dict)  # by case id
    frames: dict[str, list[str]] = field(default_factory=dict)  # case ids, by that of the whole


def make_plan(
    config: RunConfig,
    *,
    assigned: Mapping[str, str] | None = None,
    assigned_groups: Callable[[], Mapping[str, str]] = dict,
    structures: Mapping[str, int] | None = None,
    earlier: RunConfig | None = None,
    headers: HeaderCache | None = None,
    progress: Progress = no_progress,
) -> RunPlan:
    """Return the plan of a run; reads headers that are not cached, writes only the cache.

    Cases keep the split that earlier runs `assigned`. `assigned_groups` returns the patients of
    their cases; it reads the whole journal, so it is called only if some left the dataset.
    `structures` are the label values of structures that earlier runs merged, and `earlier` is
    their configuration.
    """
    needs_groups = False

    def groups_of_assigned() -> Mapping[str, str]:
        nonlocal needs_groups
        needs_groups = True
        return assigned_groups()

    if headers is None:
        headers = HeaderCache(config.input_dir, config.input_root, plane=config.planes[0])
    plans = PlanCache(config, assigned or {}, structures, earlier, headers, progress)
    if (plan := plans.recall()) is not None:
        headers.forget()
        return plan
    plan = _make_plan(
        *(config, plans.tree, assigned or {}, groups_of_assigned, structures, earlier),
        *(headers, progress),
    )
    if not needs_groups:  # which are in another file
        plans.keep(plan)
    return plan


def _make_plan(
    config: RunConfig,
    tree: FileTree | None,
    assigned: Mapping[str, str],
    assigned_groups: Callable[[], Mapping[str, str]],
    structures: Mapping[str, int] | None,
    earlier: RunConfig | None,
    cache: HeaderCache,
    progress: Progress,
) -> RunPlan:
    root = config.input_root
    dataset = _find_cases(config, tree)
    has_labels = any(case.has_label for case in dataset.cases)
    numbers = number_structures(
        structures_of(dataset.cases),
        wanted=config.structures if has_labels or not config.allow_missing_labels else (),
        columns=dataset.structures,
        frozen=structures,
    )
    check_label_values(config, numbers)
    dataset.cases = PackedList(_with_settings(case, config, numbers) for case in dataset.cases)
    notes = dataset.notes
    groups = case_groups(dataset, config, notes)
    cache.stat_all(path for case in dataset.cases for path in case.files)
    series = _expand_series(dataset, config, groups, cache)
    if config.prune:
        present = {case.case_id for case in dataset.cases}
        assigned = {case_id: split for case_id, split in assigned.items() if case_id in present}
    needing = [*_needing_labels(config), *["min_foreground"] * (config.min_foreground > 0)]
    if needing and not has_labels and not dataset.problems:
        needs = "needs" if len(needing) == 1 else "need"
        raise DatasetError(
            f"{' and '.join(needing)} {needs} labels, and no case of this dataset has one"
        )
    cases, splits = case_splits(
        dataset.cases, groups, config, assigned, assigned_groups, notes, frames=series.frames
    )
    if len(cases) < len(dataset.cases) and config.splits is not None:
        used = {case.case_id for case in cases}
        used |= {name for name, frames in series.frames.items() if used.intersection(frames)}
        why = f"not in {config.splits.name}"
        dataset.files = PackedList(
            replace(role, role="left out", detail=why, case_id="")
            if role.case_id and role.case_id not in used
            else role
            for role in dataset.files
        )
    _check_only(config, {case.case_id for case in cases})
    n_modalities = Counter(len(case.images) for case in cases).most_common(1)[0][0]
    check_modalities(config, n_modalities, splits.values())
    plan_case = partial(
        _with_facts,
        config=config,
        cache=cache,
        series=series,
        n_modalities=n_modalities,
        needs_label=has_labels and not config.allow_missing_labels,
    )
    listed = listed_slices(config, {case.case_id for case in cases})
    unread = (
        CasePlan(
            case=with_unnamed(case, root),
            split=splits[case.case_id],
            group=groups[case.case_id],
            listed=listed(case.case_id),
        )
        for case in cases
    )
    read = counted(iter_files(plan_case, unread), "reading headers", len(cases), progress)
    plans: Sequence[CasePlan] = CasePlans(read)
    cache.save()
    if not dataset.problems and config.volumes is None:
        _refuse_series(plans, cache)
    config, plans = with_offset(config, plans, earlier, notes)
    label_names = dataset.label_names
    if not label_names:
        label_names, disagreement = names_in_headers(plans)
        notes += [disagreement] if disagreement else []
    label_names = label_names | {value: name for name, value in numbers.items()}
    new_values = label_values(config, label_names) if has_labels else None
    if names_labels(config) and has_labels:
        fact = sorted((new_values or {}).items())
        plans = CasePlans(digest_with(plan, fact) for plan in plans)
    return RunPlan(
        config=config,
        layout=dataset.layout,
        reason=dataset.reason,
        cases=plans,
        splits=by_split(splits),
        notes=(*notes, *_notes(plans, config, dataset, has_labels=has_labels)),
        problems=(*dataset.problems, *label_like_images(plans)),
        files=dataset.files,
        channel_names=dataset.channel_names,
        label_names=label_names if new_values is None else mapped_names(config, label_names),
        label_values=new_values,
        structures=numbers,
    )


def _needing_labels(config: RunConfig) -> list[str]:
    """Return the settings that have no meaning for a case without a label."""
    names = ("crop", "center", "foreground")
    return [f"{name} label" for name in names if in_effect(config, name) == "label"]


def _find_cases(config: RunConfig, tree: FileTree | None) -> LayoutMatch:
    names = (field.name for field in fields(InputOptions))
    return find_cases(
        config.input_dir,
        InputOptions(**{name: getattr(config, name) for name in names}),
        skip=config.output_dir,
        tree=tree,
        allow_missing_labels=config.allow_missing_labels,
    )


def _check_only(config: RunConfig, known: Collection[str]) -> None:
    for name in config.only:
        if name not in known:
            raise DatasetError(f"--only {name}: there is no such case{did_you_mean(name, known)}")


def _with_facts(
    plan: CasePlan,
    *,
    config: RunConfig,
    cache: HeaderCache,
    series: _Series,
    n_modalities: int,
    needs_label: bool,
) -> CasePlan:
    """Return a case's plan with the facts in its headers, or with the problem in their way."""
    for _ in range(config.retries + 1):
        try:
            if plan.case_id in series.problems:
                raise series.problems[plan.case_id]
            if needs_label and not plan.has_label:
                raise MissingLabel(
                    "no label for this case, but others have one; add it, "
                    "or use --allow_missing_labels"
                )
            if not plan.has_label and (needing := _needing_labels(config)):
                raise MissingLabel(f"--{' and --'.join(needing)} needs a label, this case has none")
            images = plan.case.images
            if len(images) != n_modalities or not any(images):
                n_images = len(plan.case.image_files)
                if n_images > n_modalities:
                    raise UnsupportedImage(
                        f"it has {n_images} images, other cases {n_modalities}; if they are the "
                        "volumes of a 4D file, --volumes INDEX takes one of them, and --volumes "
                        "frames makes a case of each"
                    )
                raise MissingFile(f"found {n_images} of {n_modalities} images")
            return with_headers(plan, config, cache, series.headers)
        except Exception as error:  # any error: the other cases continue
            failure = as_case_error(error, step="plan")
            if not failure.retriable:
                break
    message = failure.one_line
    if isinstance(failure, MissingFile) and config.missing_modality == "error":
        present = [exists(path) for path in plan.case.image_files]
        if any(present) and not all(present):
            message += "; --missing_modality zero fills a missing image with zeros"
    problem = FailedCase(case_id=plan.case_id, step="plan", kind=failure.kind, message=message)
    return replace(plan, problem=problem)


def _with_settings(case: Case, config: RunConfig, numbers: Mapping[str, int]) -> Case:
    """Return a case with the settings for all cases, unless it has its own."""
    case = with_values(case, numbers, overlap=config.overlap)
    if config.label_grid != "own":
        case = replace(case, label_grid=config.label_grid)
    if config.orientation_from != "sform":
        case = replace(case, orientation_from=config.orientation_from)
    if config.missing_modality == "zero":
        return without_missing(case)
    return replace(case, images=case.image_files) if "" in case.images else case


def _expand_series(
    dataset: LayoutMatch, config: RunConfig, groups: dict[str, str], cache: HeaderCache
) -> _Series:
    """Replace cases of 4D images by what `volumes` makes of them; frames keep the group."""
    series = _Series()
    volumes = config.volumes or dataset.volumes
    if volumes is None:
        return series
    for headers in iter_files(partial(first_volumes, cache=cache), dataset.cases):
        series.headers |= headers
    n_volumes = {path: header.n_volumes for path, header in series.headers.items()}
    is_4d = any(count > 1 for count in n_volumes.values()) or any(
        split_volume(path)[1] is not None for case in dataset.cases for path in case.image_files
    )
    if config.volumes is not None and not is_4d:
        dataset.notes.append("--volumes has no effect: no image is 4D")
    expanded: PackedList[Case] = PackedList()
    group_of = dict(groups)
    groups.clear()
    for case in dataset.cases:
        try:
            own = expand(case, volumes, n_volumes)
        except UnsupportedImage as error:
            series.problems[case.case_id], own = error, [case]
        if len(own) > 1:
            series.frames[case.case_id] = [frame.case_id for frame in own]
        groups.update(dict.fromkeys((each.case_id for each in own), group_of[case.case_id]))
        for each in own:
            expanded.append(each)
    if volumes == "channels" and any(count > 1 for count in n_volumes.values()):
        dataset.channel_names = names_of_volumes(expanded, dataset.channel_names)
    if len(expanded) > len(dataset.cases):
        problems = case_id_problems(case.case_id for case in expanded)
        dataset.problems = list(dict.fromkeys(dataset.problems + problems))
    dataset.cases = sorted_cases(expanded)
    return series


def _refuse_series(plans: Sequence[CasePlan], cache: HeaderCache) -> None:
    """Raise DatasetError if every case fails because its image is 4D."""
    for plan in plans:
        if plan.problem is None or plan.problem.kind != UnsupportedImage.__name__:
            return
        headers = first_volumes(replace(plan.case, label=None), cache=cache)
        if not any(header.n_volumes > 1 for header in headers.values()):
            return
    if plans[0].problem is not None:
        cases = plural(len(plans), "case")
        raise DatasetError(f"{cases} of 4D images only: {plans[0].problem.message}")


def _notes(
    cases: Sequence[CasePlan], config: RunConfig, dataset: LayoutMatch, *, has_labels: bool
) -> Iterator[str]:
    """Yield notes on a plan whose headers have been read."""
    zeros = filled_note((plan.case for plan in cases), dataset.channel_names)
    yield from [] if zeros is None else [zeros]
    yield from grouped_notes(note for case in cases for note in case.header_notes)
    unknown = [case.case_id for case in cases if not case.oriented]
    if unknown:
        yield (
            f"{plural(len(unknown), 'image')} without an orientation (sform and qform code 0), "
            f"LAS is assumed, as in nibabel: {first_few(unknown)}"
        )
    if not has_labels:
        yield "no case has a label; slices will hold images only"
    bare = [case.case_id for case in cases if has_labels and not case.has_label]
    if bare and config.format == "files" and config.allow_missing_labels:
        yield f"files without a label, which loaders may not read: those of {first_few(bare)}"
    yield from _empty_splits(cases, config)
    facts = _dataset_facts(dataset, has_labels=has_labels)
    if config.for_inference:
        facts = replace(facts, states_splits=False)
    if note := effects_note(config, facts):
        yield note


def _empty_splits(cases: Sequence[CasePlan], config: RunConfig) -> Iterator[str]:
    """Yield notes on splits in which no case can be run, though some are or should be in them."""
    filled = {case.split for case in cases if case.problem is None}
    wanted = {split for split, ratio in config.ratios().items() if ratio and not config.splits}
    no_case = []
    for split in (split for split in SPLITS if split not in filled):
        if blocked := [case.case_id for case in cases if case.split == split]:
            n = "the only case" if len(blocked) == 1 else f"none of the {len(blocked)} cases"
            cannot, it = ("cannot", "it") if len(blocked) == 1 else ("can", "them")
            yield (
                f"{split} will be empty: {n} in it {cannot} be run ({first_few(blocked)}); correct "
                f"{it}, or remove {it} before the first run: later runs keep the splits"
            )
        elif split in wanted:
            no_case.append(split)
    if no_case:
        yield f"no case that can be run is in {' or '.join(no_case)}"


def _dataset_facts(dataset: LayoutMatch, *, has_labels: bool) -> DatasetFacts:
    cases, is_manifest = dataset.cases, dataset.layout == "manifest"
    return DatasetFacts(
        has_labels=has_labels,
        has_masks=any(case.masks for case in cases),
        has_test_images=not is_manifest and any(case.split == "test" for case in cases),
        n_images=max(len(case.images) for case in cases),
        states_splits=all(case.split is not None for case in cases),
        states_patients=is_manifest and all(case.group is not None for case in cases),
    )
