"""A look at voxels of images whose names do not say that they are images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from dask_slicer.core.labels import looks_like_labels
from dask_slicer.errors import CaseError
from dask_slicer.inputs.accounting import relative_to
from dask_slicer.inputs.case import Case
from dask_slicer.inputs.readers import read_voxels
from dask_slicer.planning.plan import CasePlan

# Words of files and folders that are images: their voxels need no look.
_IMAGE_WORDS = frozenset(
    (
        *("image", "images", "imagestr", "imagests", "img", "imgs", "scan", "scans", "volume"),
        *("volumes", "anat", "ct", "cta", "mr", "mri", "pet", "flair", "dwi", "adc", "t1", "t1c"),
        *("t1ce", "t1gd", "t1n", "t1w", "t2", "t2f", "t2s", "t2w", "pd", "pdw", "mprage", "swi"),
    )
)
_MOST_SHOWN = 4


def names_an_image(path: str) -> bool:
    """Return whether a path in a dataset has a word that images have.

    >>> names_an_image("images/a.nii"), names_an_image("p1/p1_t2.nii.gz"), names_an_image("x/a.nii")
    (True, True, False)
    """
    words = re.split(r"[\W_]+", path.casefold())
    return any(word in _IMAGE_WORDS or word.rstrip("0123456789") in _IMAGE_WORDS for word in words)


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
