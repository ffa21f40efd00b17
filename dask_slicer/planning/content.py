"""A look at voxels of images whose names do not say that they are images, or without a label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from dask_slicer.core.labels import looks_like_labels
from dask_slicer.errors import CaseError
from dask_slicer.inputs import role_words
from dask_slicer.inputs.case import Case, split_channel, stem_of
from dask_slicer.inputs.readers import read_voxels
from dask_slicer.inputs.role_words import (
    folder_role,
    image_words,
    pieces_of,
    plain,
    says_only_its_role,
)
from dask_slicer.inputs.tree import relative_to
from dask_slicer.planning.plan import CasePlan

_MOST_SHOWN = 4


def names_an_image(path: str, *, is_paired: bool = False) -> bool:
    """Return whether a path in a dataset says that its file is an image.

    A word beside others does not: images/p1_organs and ct_organs may be labels that the layout did
    not know. If the file is paired, the only image of a case with a label, the word may be the last
    of others, or that of its folder. A word in the name of a case's folder says nothing of the
    files in it.

    >>> [names_an_image(path) for path in ("images/a.nii", "p1/p1_t2.nii.gz", "p1/t2_organs.nii")]
    [False, True, False]
    >>> paired = ("images/a.nii", "p1/x_ct.nii", "x/a.nii", "p1/ct_organs.nii")
    >>> [names_an_image(path, is_paired=True) for path in paired]
    [True, True, False, False]
    """
    *folders, name = path.split("/")
    stem = stem_of(name)
    for folder in folders:
        if is_paired and _is_for_images(folder, is_first=folder is folders[0]):
            return True
        if plain(stem).startswith(plain(folder)):
            stem = stem[len(folder) :].lstrip("_-. ")
    words = [word for _, word in pieces_of(stem) if word and not (is_paired and word.isdecimal())]
    deciding = words[-1:] if is_paired else words
    return role_words.names_an_image(stem) and all(map(image_words, deciding))


def _is_for_images(folder: str, *, is_first: bool = True) -> bool:
    """Return whether a folder is named for images; one in a case not for a modality, as anat."""
    roles = ("image", "modality") if is_first else ("image",)
    return says_only_its_role(folder) and folder_role(folder) in roles


def with_unnamed(case: Case, root: Path) -> Case:
    """Return a case that knows which of its images may be labels: names say nothing.

    Without a label, no word is enough, for ct4_liver may be the label of ct4_t1; that of a channel
    of nnU-Net, imagesTr/a_0000, is.
    """
    if case.stated:
        return case
    paths = [path and relative_to(root, path) for path in case.images]
    # In a folder such as imagesTr, the names of channels have numbers: a_0000.
    first, slash, name = max(paths, default="").partition("/")
    if slash and _is_for_images(first) and split_channel(name):
        return case
    is_paired = case.has_label and len(paths) == 1
    unnamed = tuple(
        number
        for number, path in enumerate(paths)
        if path and not names_an_image(path, is_paired=is_paired)
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
