"""Finding the cases of a dataset with the first layout that matches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.case import Case, case_id_problems
from dask_slicer.inputs.layouts.base import LayoutMatch
from dask_slicer.inputs.layouts.bids import bids
from dask_slicer.inputs.layouts.decathlon import decathlon
from dask_slicer.inputs.layouts.folder_per_case import folder_a_case
from dask_slicer.inputs.layouts.images_and_labels import images_and_labels
from dask_slicer.inputs.layouts.manifest import find_manifest, read_manifest
from dask_slicer.inputs.layouts.nnunet import nnunet_raw


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """The cases that were found, and what was noticed on the way.

    Attributes
    ----------
    root : Path
        What source paths are relative to.
    layout, reason : str
        Which layout was recognised, and by what.
    cases : tuple of Case
        In the order of their ids.
    notes : tuple of str
        Left out or odd, but no reason to stop.
    problems : tuple of str
        Why the cases cannot be told apart; a run refuses them.
    """

    root: Path
    layout: str
    reason: str
    cases: tuple[Case, ...]
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def find_cases(input_dir: Path, *, include_test: bool = False) -> Dataset:
    """Return the cases of a dataset, whichever of the known layouts it has.

    Parameters
    ----------
    input_dir : Path
        A folder, or a CSV or JSON manifest.
    include_test : bool
        Put nnU-Net's imagesTs into the test split.

    Returns
    -------
    Dataset

    Raises
    ------
    DatasetError
        If no layout fits; says what was tried and what was nearest.
    """
    if not input_dir.exists():
        raise DatasetError(f"input_dir {input_dir} does not exist")
    manifest = find_manifest(input_dir)
    if manifest is not None:
        cases, notes = read_manifest(manifest)
        finding = LayoutMatch(
            "manifest", f"{manifest.name} has the columns case_id and image", cases, notes
        )
        if not cases:
            raise DatasetError(f"the manifest {manifest} names no case")
        return _dataset(manifest.parent, finding)
    if not input_dir.is_dir():
        raise DatasetError(
            f"input_dir {input_dir} is neither a folder nor a .csv or .json manifest"
        )
    try:
        return _recognise(input_dir, include_test)
    except PermissionError as error:
        raise DatasetError(f"cannot list {error.filename}: {error.strerror}") from None


def _recognise(root: Path, include_test: bool) -> Dataset:
    recognisers: tuple[Callable[[Path], LayoutMatch], ...] = (
        lambda folder: decathlon(folder, include_test),
        lambda folder: nnunet_raw(folder, include_test),
        images_and_labels,
        bids,
        folder_a_case,
    )
    missed = []
    for recogniser in recognisers:
        finding = recogniser(root)
        if finding.cases:
            return _dataset(root, finding)
        missed.append(finding)
    missed.append(LayoutMatch("manifest", miss="no manifest.csv or manifest.json"))
    missed.sort(key=lambda finding: -finding.seen)  # stable: the usual layouts first
    nearest, *others = missed
    tried = "; ".join(f"{finding.layout}: {finding.miss}" for finding in others)
    raise DatasetError(
        f"no case found in {root}; nearest is {nearest.layout}: {nearest.miss} "
        f"(also tried: {tried})"
    )


def _dataset(root: Path, finding: LayoutMatch) -> Dataset:
    problems = [*finding.problems, *case_id_problems(case.case_id for case in finding.cases)]
    return Dataset(
        root=root,
        layout=finding.layout,
        reason=finding.reason,
        cases=tuple(sorted(finding.cases, key=lambda case: case.case_id)),
        notes=tuple(finding.notes),
        problems=tuple(dict.fromkeys(problems)),
    )
