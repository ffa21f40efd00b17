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
from dask_slicer.inputs.role_words import (
    folder_role,
    image_words,
    plain,
    says_only_its_role,
    without,
)
from dask_slicer.planning.plan import CasePlan

_MOST_SHOWN = 4


def names_an_image(path: str, *, is_paired: bool = False) -> bool:
    """Return whether a path in a dataset says that its file is an image.

    A word beside others does not: images/p1_organs and ct_organs may be labels that the layout did
    not know. It does if the file is paired: the only image of a case with a label. A word in the
    name of a case's folder says nothing of the files in it.

    >>> [names_an_image(path) for path in ("images/a.nii", "p1/p1_t2.nii.gz", "p1/t2_organs.nii")]
    [False, True, False]
    >>> names_an_image("images/a.nii", is_paired=True), names_an_image("x/a.nii", is_paired=True)
    (True, False)
    >>> names_an_image("ct_7/ct_7_organs.nii", is_paired=True)
    False
    """
    *folders, name = path.split("/")
    stem = stem_of(name)
    for folder in folders:
        if is_paired and _is_for_images(folder):
            return True
        if plain(stem).startswith(plain(folder)):
            stem = stem[len(folder) :].lstrip("_-. ")
    others = without(stem, image_words(stem)).strip("_-. 0123456789")
    return role_words.names_an_image(stem) and (is_paired or not others)


def _is_for_images(folder: str) -> bool:
    return says_only_its_role(folder) and folder_role(folder) != "label"


def with_unnamed(case: Case, root: Path) -> Case:
    """Return a case that knows which of its images have names that say nothing."""
    # Several images in a folder such as imagesTr have the numbers of channels.
    paths = [relative_to(root, path) for path in case.images if path]
    if case.stated or (len(paths) > 1 and _is_for_images(paths[0].partition("/")[0])):
        return case
    is_paired = case.has_label and len(case.images) == 1
    unnamed = tuple(
        number
        for number, path in enumerate(case.images)
        if path and not names_an_image(relative_to(root, path), is_paired=is_paired)
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
