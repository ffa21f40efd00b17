"""BIDS: sub-*/[ses-*/]anat, with labels in derivatives/."""

from __future__ import annotations

import re
from collections import defaultdict

from dask_slicer.inputs.case import stem_of
from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch
from dask_slicer.inputs.role_words import NO_LABELS, label_words
from dask_slicer.inputs.tree import FileTree
from dask_slicer.utils.formatting import first_few, plural

# BIDS entities that describe a derivative, not the scan.
_DERIVED = {"atlas", "den", "desc", "label", "res", "seg", "space"}


def match(tree: FileTree, options: InputOptions) -> LayoutMatch:
    """Match sub-*/[ses-*/]anat/*.nii.gz, with labels in derivatives/."""
    result = LayoutMatch("BIDS")
    images = [
        path
        for folder in sorted(tree.by_folder)
        if re.fullmatch(r"sub-[^/]*(/ses-[^/]*)?/anat", folder)
        for path in tree.within(folder)
    ]
    if not images:
        result.miss = "no NIfTI file in sub-*/anat or sub-*/ses-*/anat"
        return result
    labels: defaultdict[str, list[str]] = defaultdict(list)
    for path in tree.volumes:
        if not re.fullmatch(r"derivatives/(.*/)?anat/sub-[^/]*", path):
            continue
        words = re.split(r"[_-]", _stem(path))
        if words[0] == "sub" and label_words(words[2:]) - NO_LABELS:
            labels[words[1]].append(path)
    result.reason = f"{plural(len(images), 'image')} in sub-*/anat, each a case, grouped by subject"
    for path in images:
        case_id = _stem(path)
        subject = re.split(r"[_-]", case_id)[1] if "-" in case_id else case_id
        # Labels repeat the image's entities, with or without its suffix: sub-01_T1w_label-x_mask
        # and sub-01_dseg both belong to sub-01_T1w.
        candidates = [
            other
            for other in labels[subject]
            if _stem(other).startswith((f"{case_id}_", f"{case_id}-"))
        ] or [other for other in labels[subject] if _entities(other) == _entities(path)]
        if len(candidates) > 1:
            names = first_few([label.rpartition("/")[2] for label in candidates])
            result.problems.append(
                f"case {case_id} has {len(candidates)} labels: {names}; name one in a manifest"
            )
        label = tree.absolute(candidates[0]) if candidates else None
        result.add_case(case_id, [tree.absolute(path)], label, group=f"sub-{subject}")
    used = {case.label for case in result.cases}
    orphans = [
        path for paths in labels.values() for path in paths if tree.absolute(path) not in used
    ]
    result.leave_out(orphans, "label", "without an image")
    return result


def _stem(path: str) -> str:
    return stem_of(path.rpartition("/")[2])


def _entities(path: str) -> frozenset[str]:
    """Return the BIDS entities of a file name that describe the scan."""
    return frozenset(
        word
        for word in _stem(path).split("_")
        if "-" in word and word.partition("-")[0] not in _DERIVED
    )
