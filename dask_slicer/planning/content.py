"""A look at voxels of images whose names do not say that they are images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from dask_slicer.core.labels import looks_like_labels
from dask_slicer.errors import CaseError
from dask_slicer.inputs import role_words
from dask_slicer.inputs.accounting import relative_to
from dask_slicer.inputs.case import Case, stem_of
from dask_slicer.inputs.readers import read_voxels
from dask_slicer.inputs.role_words import folder_role, plain, says_only_its_role
from dask_slicer.planning.plan import CasePlan

_MOST_SHOWN = 4


def names_an_image(path: str) -> bool:
    """Return whether a path in a dataset says that its file is an image.

    A word in the name of a case's folder says nothing of the files in it.

    >>> names_an_image("images/a.nii"), names_an_image("p1/p1_t2.nii.gz"), names_an_image("x/a.nii")
    (True, True, False)
    >>> names_an_image("ct_7/ct_7_organs.nii")
    False
    """
    *folders, name = path.split("/")
    stem = stem_of(name)
    for folder in folders:
        if says_only_its_role(folder) and folder_role(folder) != "label":
            return True
        if plain(stem).startswith(plain(folder)):
            stem = stem[len(folder) :]
    return role_words.names_an_image(stem)


def with_unnamed(case: Case, root: Path) -> Case:
    """Return a case that knows which of its images have names that say nothing."""
    if case.stated:
        return case
    unnamed = tuple(
        number
        for number, path in enumerate(case.images)
        if path and not names_an_image(relative_to(root, path))
    )
    return replace(case, unnamed=unnamed) if unnamed else case


def label_like_images(plans: Sequence[CasePlan]) -> Iterator[str]:
    """Yield a problem for each channel whose smallest such image has the voxels of a label map."""
    smallest: dict[int, CasePlan] = {}
    for plan in plans:
        if plan.problem is None:
            for number in plan.case.unnamed:
                other = smallest.setdefault(number, plan)
                if plan.file_bytes < other.file_bytes:
                    smallest[number] = plan
    for number, plan in sorted(smallest.items()):
        path = plan.case.images[number]
        with suppress(CaseError):  # the case will fail
            header, voxels = read_voxels(path, orientation_from=plan.case.orientation_from)
            if looks_like_labels(voxels):
                values = np.unique(voxels)
                shown = ", ".join(f"{value:g}" for value in values[:_MOST_SHOWN])
                more = ", …" if len(values) > _MOST_SHOWN else ""
                yield (
                    f"{plan.sources[number]} looks like a label map ({header.dtype}, values "
                    f"{shown}{more}), but would be an image of case {plan.case_id}; say which "
                    "files are which with --images and --labels, or in a manifest"
                )
