"""Plans of runs and cases: integer arithmetic, no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, cast

from dask_slicer.config.partition import parse_partition
from dask_slicer.config.schema import RunConfig
from dask_slicer.core.foreground import IntensityProperties
from dask_slicer.inputs.accounting import FILE_COLUMNS, file_kinds
from dask_slicer.inputs.case import Case
from dask_slicer.inputs.layouts.base import FileRole
from dask_slicer.planning.case_table import CaseTable
from dask_slicer.planning.folds import Folds
from dask_slicer.planning.memory import WORKER_BASE_BYTES, peak_bytes
from dask_slicer.planning.names import Names
from dask_slicer.planning.step_lines import step_lines
from dask_slicer.records import CasePlans, FailedCase, failure_table
from dask_slicer.utils.formatting import format_shape, plural
from dask_slicer.utils.packed import quick_to_pack
from dask_slicer.utils.repr_html import html_card, html_facts, html_table

if TYPE_CHECKING:  # they import nibabel
    from dask_slicer.core.steps.steps import Steps

# Increased when the same settings and sources give other bytes.
FORMAT_VERSION = 1

# Time for each case and each slice beside the work on voxels, 1 ms and 0.25 ms, as bytes of voxels
# that are sliced in that time at 80 MB/s.
_WORK_PER_CASE, _WORK_PER_SLICE = 80_000, 20_000

# Masks that take as long to merge as a volume takes to be sliced.
_MASKS_PER_VOLUME = 8

# Names of what `CasePlan.described` returns, for tables.
HEADER_FACTS = ("slices", "rows×columns", "spacing mm", "stored", "dtype")


@dataclass(frozen=True, slots=True)
class PlanePlan:
    """What differs between the planes of a case, as `CasePlan` has it for one plane."""

    plane: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    new_shape: tuple[int, int, int] | None
    new_spacing: tuple[float, float, float] | None
    n_selected: int | None

    def facts(self) -> dict[str, Any]:
        """Return what it says, by the names of fields of `CasePlan`."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@quick_to_pack
@dataclass(frozen=True, slots=True, kw_only=True)
class CasePlan:
    """A case with its split and the facts in its headers, which a case with a problem may lack.

    With several planes, shapes and numbers of slices are those of the first; `parts` has all.
    """

    case: Case
    split: str = ""
    group: str = ""  # the patient; the case id if no patient is known
    digest: str = ""  # of everything that decides the output
    sources: tuple[str, ...] = ()  # the images, relative to the input root, POSIX
    files: tuple[tuple[str, int, int], ...] = ()  # all of them: path, size, mtime in ns
    shape: tuple[int, int, int] = (0, 0, 0)  # (n_slices, height, width), for the plane
    spacing: tuple[float, float, float] = (0.0, 0.0, 0.0)  # (slice, row, column), mm
    orientation: str = ""  # axis codes of the first image as stored, such as LPS
    dtypes: tuple[str, ...] = ()  # of the images as stored
    scaling: tuple[tuple[float, float], ...] = ()  # slope, intercept of each; none: 1, 0
    file_bytes: int = 0  # of all files, on disk
    voxel_bytes: int = 0  # in memory: all files inflated, but one mask at a time and their label
    mask_bytes: int = 0  # of all masks, inflated
    # Of the slices, as far as headers tell; None: as above, and all slices.
    new_shape: tuple[int, int, int] | None = None
    new_spacing: tuple[float, float, float] | None = None
    n_selected: int | None = None  # slices to write, at most
    listed: frozenset[int] | None = None  # the only slices to write
    facts: tuple[str, ...] = ()  # of the whole dataset, in the digest
    header_notes: tuple[tuple[str, str], ...] = ()  # oddities: file, relative to the input; text
    label_names: Mapping[int, str] = field(default_factory=dict)  # in the header of the label
    oriented: bool = True  # whether the first image's header defines its orientation
    problem: FailedCase | None = None  # why the case cannot run
    plane: str = ""  # of a part; empty if there is one plane
    planes: tuple[PlanePlan, ...] = ()  # of a case with several planes

    @property
    def parts(self) -> tuple[CasePlan, ...]:
        """Return the case in each of its planes; itself if there is one plane."""
        if not self.planes:
            return (self,)
        return tuple(replace(self, planes=(), **own.facts()) for own in self.planes)

    @property
    def case_id(self) -> str:
        """Return the id of the case."""
        return self.case.case_id

    @property
    def slice_shape(self) -> tuple[int, int, int]:
        """Return (n_slices, height, width) after all steps, as far as headers tell."""
        return self.new_shape or self.shape

    @property
    def most_slices(self) -> int:
        """Return how many slices are written at most, in all planes."""
        if self.planes:
            return sum(part.most_slices for part in self.parts)
        return self.slice_shape[0] if self.n_selected is None else self.n_selected

    def described(self) -> tuple[str, str, str, str, str]:
        """Return what its headers say, as text for tables; `HEADER_FACTS` has the names."""
        (n_slices, *plane), (_, *new_plane) = self.shape, self.slice_shape
        return (
            _changed(str(n_slices), str(self.most_slices)),
            _changed(format_shape(plane), format_shape(new_plane)),
            _changed(_spacing_text(self.spacing), _spacing_text(self.new_spacing or self.spacing)),
            self.orientation,
            "/".join(dict.fromkeys(self.dtypes)),
        )

    def _repr_html_(self) -> str:
        rows: list[tuple[str, object]] = [("split", self.split or "none yet")]
        if self.group and self.group != self.case_id:
            rows.append(("group", self.group))
        if self.problem is None:
            for part in self.parts:
                rows += [("plane", part.plane)] if part.plane else []
                rows += list(zip(HEADER_FACTS, part.described(), strict=True))
        else:
            rows.append(("problem", f"{self.problem.kind}: {self.problem.message}"))
        masks = plural(len(self.case.masks), "mask") if self.case.masks else "none"
        rows.append(("label", self.case.label or masks))
        images = html_table(
            ["image"], [[path or "missing"] for path in self.case.images], of="image"
        )
        return html_card(f"Case {self.case_id}", html_facts(rows), images)

    @property
    def has_label(self) -> bool:
        """Return whether the slices of this case have a label."""
        return self.case.has_label

    @property
    def work(self) -> int:
        """Return the estimated work, in bytes of voxels that take as long."""
        masks = self.mask_bytes // _MASKS_PER_VOLUME
        return self.voxel_bytes + masks + self.most_slices * _WORK_PER_SLICE + _WORK_PER_CASE


def _changed(before: str, after: str) -> str:
    """Return what steps make of a text, such as 20 → 40."""
    return before if before == after else f"{before} → {after}"


def _spacing_text(spacing: Iterable[float]) -> str:
    return " × ".join(f"{step:.3g}" for step in spacing)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """The plan of a run, made from headers: which cases go into which split.

    Attributes
    ----------
    config : RunConfig
    layout : str
        The recognised layout of the dataset.
    reason : str
        Why it was recognised.
    cases : sequence of CasePlan
        All planned cases, including those with a problem, sorted by case id.
    splits : dict of split to list of str
        The content of splits.json: planned cases, and cases of earlier runs.
    notes : tuple of str
    problems : tuple of str
        Why the whole dataset is refused.
    files : sequence of FileRole
        What every volume of the dataset is used for.
    channel_names : tuple of str
        As the dataset has them, one for each modality, such as T1w; empty where unknown.
    label_names : dict of int to str
        The names of label values, such as ``{1: "liver"}``; empty where unknown.
    structures : dict of str to int
        The content of structures.json: label values of structures whose masks are merged.
    label_values : dict of int to int, optional
        New label values by old ones.
    properties : tuple of IntensityProperties
        Of the dataset, one for each modality, if it is normalised by them.
    folds : Folds or None
        Of a cross-validation; None without the setting `folds`.
    """

    config: RunConfig
    layout: str
    reason: str
    cases: Sequence[CasePlan]
    splits: dict[str, list[str]]
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    files: Sequence[FileRole] = ()
    channel_names: tuple[str, ...] = ()
    label_names: dict[int, str] = field(default_factory=dict)
    structures: Mapping[str, int] = field(default_factory=dict)
    label_values: Mapping[int, int] | None = None
    properties: tuple[IntensityProperties, ...] = ()
    folds: Folds | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.cases, CasePlans):
            object.__setattr__(self, "cases", CasePlans(self.cases))

    def __repr__(self) -> str:
        bad = f", {plural(len(self.failures), 'case')} cannot be run" if self.failures else ""
        return (
            f"RunPlan({plural(len(self.cases), 'case')}{bad}, {self.n_slices} "
            f"{', '.join(self.config.planes)} slices"
            + (f", to {str(self.config.output_dir)!r})" if self.config.has_output else ")")
        )

    @property
    def case_ids(self) -> Sequence[str]:
        """Return the ids of all planned cases, sorted."""
        return self._cases.ids

    @property
    def selected_ids(self) -> Sequence[str]:
        """Return the ids of the cases to run: all, or those selected by `shard` and `only`."""
        selected, only = self.case_ids, self.config.only
        if (partition := parse_partition(self.config.shard)) is not None:
            selected = partition.cases(selected)
        return [case_id for case_id in selected if case_id in only] if only else selected

    @property
    def selected(self) -> Sequence[CasePlan]:
        """Return the cases to run."""
        return self.of_ids(self.selected_ids)

    def of_id(self, case_id: str) -> CasePlan:
        """Return a case by its id; raise KeyError if there is none.

        Parameters
        ----------
        case_id : str
        """
        return self._cases.of_id(case_id)

    def of_ids(self, case_ids: Collection[str]) -> Sequence[CasePlan]:
        """Return the cases with these ids, in the order of all cases.

        Parameters
        ----------
        case_ids : collection of str
            Ids of no case are left out.
        """
        return self._cases.of_ids(set(case_ids))

    @property
    def runnable(self) -> Sequence[CasePlan]:
        """Return the cases whose headers show no problem."""
        return self._cases.runnable

    @property
    def failures(self) -> tuple[FailedCase, ...]:
        """Return the problems of single cases that their headers show."""
        return tuple(self._cases.problems.values())

    @property
    def _cases(self) -> CasePlans[CasePlan]:
        return cast(CasePlans[CasePlan], self.cases)  # see __post_init__

    @property
    def n_modalities(self) -> int:
        """Return the number of images of a case."""
        counts = Counter(len(case.case.images) for case in self.runnable or self.cases)
        return counts.most_common(1)[0][0] if counts else 1

    @property
    def table(self) -> CaseTable:
        """Return the groups of the planned cases, and their columns in tables of the dataset."""
        groups = {case.case_id: case.group or case.case_id for case in self.cases}
        return CaseTable.of((case.case for case in self.cases), groups)

    @property
    def names(self) -> Names:
        """Return the names that the output gets: of channels only where each modality has one."""
        fits = len(self.channel_names) == self.n_modalities
        return Names(channels=self.channel_names if fits else (), labels=self.label_names)

    @property
    def needs_properties(self) -> bool:
        """Return whether cases are normalised by properties of the dataset, not known yet."""
        return self.config.uses_statistics and not self.properties

    @property
    def steps(self) -> Steps:
        """Return the values of the settings of steps, the same for all cases."""
        from dask_slicer.planning.steps import common_steps

        return common_steps(self.config, self.label_values, self.properties)

    @property
    def n_slices(self) -> int:
        """Return the largest number of slices of all cases without a problem."""
        return sum(case.most_slices for case in self.runnable)

    @property
    def slices_text(self) -> str:
        """Return the largest number of slices, and of each plane if there are several."""
        planes = self.config.planes
        if len(planes) == 1:
            return f"{self.n_slices} {planes[0]}"
        counts: Counter[str] = Counter()
        for case in self.runnable:
            counts.update({part.plane: part.most_slices for part in case.parts})
        return f"{self.n_slices} ({', '.join(f'{counts[plane]} {plane}' for plane in planes)})"

    @property
    def peak_bytes(self) -> int:
        """Return the memory that a worker needs for the largest case."""
        peaks = (peak_bytes(case, self.config) for case in self.runnable)
        return WORKER_BASE_BYTES + max(peaks, default=0)

    def _repr_html_(self) -> str:
        config = self.config
        counts = Counter(case.split for case in self.cases)
        splits = ", ".join(f"{counts[split]} {split}" for split in self.splits)
        channels = plural(config.n_channels(self.n_modalities), "channel")
        rows: list[tuple[str, object]] = [
            ("input", config.input_dir),
            ("layout", f"{self.layout} ({self.reason})"),
            ("cases", f"{len(self.cases)} ({splits})"),
            *([] if self.folds is None else [("folds", "; ".join(self.folds.lines()))]),
            ("slices", f"{self.slices_text}, {channels}, {config.format}"),
            *(("step", line) for line in step_lines(config, self.runnable)),
            ("output", config.output_dir if config.has_output else "none given"),
            *(("note", note) for note in self.notes),
            *(("problem", problem) for problem in self.problems),
        ]
        return html_card(
            f"Plan of {plural(len(self.cases), 'case')}",
            html_facts(rows),
            html_table(*case_rows(self, self.runnable), of="case"),
            html_table(FILE_COLUMNS, file_kinds(self.files), of="kind of file"),
            failure_table(self.failures),
        )


def case_rows(
    plan: RunPlan, cases: Iterable[CasePlan]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the head and the rows of a table of cases, a row for each plane."""
    folders = plan.config.plane_folders
    rows = []
    for part in (part for case in cases for part in case.parts):
        facts = ("", "cannot be run", "", "", "") if part.problem else part.described()
        rows.append((part.case_id, part.split, *((part.plane,) if folders else ()), *facts))
    return ("case", "split", *(("plane",) if folders else ()), *HEADER_FACTS), rows
