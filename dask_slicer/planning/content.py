"""A look at voxels of files whose names do not say whether they are images or labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from heapq import nsmallest
from pathlib import Path

import numpy as np

from dask_slicer.core.labels import looks_like_labels
from dask_slicer.errors import CaseError
from dask_slicer.inputs import role_words
from dask_slicer.inputs.accounting import relative_to
from dask_slicer.inputs.case import Case, stem_of
from dask_slicer.inputs.layouts.base import LayoutMatch
from dask_slicer.inputs.readers import read_voxels
from dask_slicer.inputs.role_words import (
    folder_role,
    image_words,
    pieces_of,
    plain,
    says_only_its_role,
)
from dask_slicer.planning.plan import CasePlan

_MOST_SHOWN = 4
_MOST_LOOKED_AT = 3


def names_an_image(path: str) -> bool:
    """Return whether a path in a dataset says that its file is an image.

    A word in the name of a case or of its folder says nothing of its files: it counts where it is
    the last, and numbered only where nothing else is in the name.

    >>> names_an_image("images/a.nii"), names_an_image("p1/p1_t2.nii.gz"), names_an_image("x/a.nii")
    (True, True, False)
    >>> [names_an_image(name) for name in ("ct_7/ct_7_organs.nii", "ct4_1.nii", "liver-ct4.nii")]
    [False, False, False]
    """
    *folders, name = path.split("/")
    stem = stem_of(name)
    for folder in folders:
        if says_only_its_role(folder) and folder_role(folder) != "label":
            return True
        if plain(stem).startswith(plain(folder)):
            stem = stem[len(folder) :]
    if not role_words.names_an_image(stem):
        return False
    pieces, images = pieces_of(stem), image_words(stem)
    last = max(n for n, (_, piece) in enumerate(pieces) if not piece.isdecimal())
    is_numbered = [separator for separator, _ in pieces[last + 1 : last + 2]] == [""]
    is_alone = len(pieces) <= len(images) + is_numbered
    return pieces[last][1].casefold() in images and (is_alone or not is_numbered)


def with_unnamed(case: Case, root: Path) -> Case:
    """Return a case that knows which of its images have names that say nothing.

    A folder of images vouches for files with a label; one without may be a label itself.
    """
    if case.stated:
        return case
    unnamed = []
    for number, path in enumerate(case.images):
        relative = relative_to(root, path) if path else ""
        names = [relative] if case.has_label else [relative, relative.rpartition("/")[2]]
        if path and not all(map(names_an_image, names)):
            unnamed.append(number)
    return replace(case, unnamed=tuple(unnamed)) if unnamed else case


def label_like_images(plans: Sequence[CasePlan]) -> Iterator[str]:
    """Yield a problem for each channel whose smallest such image has the voxels of a label map.

    Of cases without a label, which may be labels themselves, all images count.
    """
    smallest: dict[int, CasePlan] = {}
    for plan in plans:
        if plan.problem is None:
            is_sure = plan.has_label or plan.case.stated
            for number, path in enumerate(plan.case.images):
                if not path or (is_sure and number not in plan.case.unnamed):
                    continue
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


def unused_labels(dataset: LayoutMatch, root: Path) -> Iterator[str]:
    """Yield a problem if no case has a label, but a file that no case uses has voxels of one.

    Looks at the smallest few: label maps compress best. Nothing is looked at where the user or the
    dataset says which files are which.
    """
    if any(case.has_label or case.stated for case in dataset.cases):
        return
    unused = [
        role.path
        for role in dataset.files
        if role.role == "left out" and role.path not in dataset.not_labels
    ]
    for path in nsmallest(_MOST_LOOKED_AT, unused, key=lambda path: _size(root / path)):
        with suppress(CaseError):  # no case needs it
            if looks_like_labels(read_voxels(root / path)[1]):
                yield (
                    f"no case has a label, but {path}, which is left out, looks like a label map "
                    "by its voxels; name images and labels with --images and --labels, or use "
                    "--allow_missing_labels"
                )
                return


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0
