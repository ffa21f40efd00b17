"""BIDS: sub-*/[ses-*/]anat, with labels in derivatives/."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from dask_slicer.inputs.case import is_volume_name, stem_of
from dask_slicer.inputs.label_names import NO_LABELS, label_words
from dask_slicer.inputs.layouts.base import LayoutMatch, volume_files
from dask_slicer.utils.formatting import first_few, plural

# BIDS entities that describe a derivative, not the scan.
_DERIVED = {"atlas", "den", "desc", "label", "res", "seg", "space"}


def match(root: Path, *, include_test: bool) -> LayoutMatch:
    """Match sub-*/[ses-*/]anat/*.nii.gz, with labels in derivatives/."""
    result = LayoutMatch("BIDS")
    images = [
        path
        for subject in sorted(root.glob("sub-*"))
        for anat in (subject / "anat", *sorted(subject.glob("ses-*/anat")))
        for path in volume_files(anat)
    ]
    if not images:
        result.miss = "no NIfTI file in sub-*/anat or sub-*/ses-*/anat"
        return result
    labels: defaultdict[str, list[Path]] = defaultdict(list)
    for path in sorted((root / "derivatives").glob("**/anat/sub-*")):
        words = re.split(r"[_-]", stem_of(path.name))
        is_label = words[0] == "sub" and label_words(words[2:]) - NO_LABELS
        if is_label and is_volume_name(path.name):
            labels[words[1]].append(path)
    result.reason = f"{plural(len(images), 'image')} in sub-*/anat, each a case, grouped by subject"
    for path in images:
        case_id = stem_of(path.name)
        subject = re.split(r"[_-]", case_id)[1] if "-" in case_id else case_id
        # Labels repeat the image's entities, with or without its suffix: sub-01_T1w_label-x_mask
        # and sub-01_dseg both belong to sub-01_T1w.
        candidates = [
            other
            for other in labels[subject]
            if stem_of(other.name).startswith((f"{case_id}_", f"{case_id}-"))
        ] or [other for other in labels[subject] if _entities(other.name) == _entities(path.name)]
        if len(candidates) > 1:
            result.problems.append(
                f"case {case_id} has {len(candidates)} labels: "
                f"{first_few([label.name for label in candidates])}; name one in a manifest"
            )
        label = candidates[0] if candidates else None
        result.add_case(case_id, [path], label, group=f"sub-{subject}")
    used = {case.label for case in result.cases}
    orphans = [path.name for paths in labels.values() for path in paths if str(path) not in used]
    result.note_files(orphans, "label", "without an image")
    return result


def _entities(name: str) -> frozenset[str]:
    """Return the BIDS entities of a name that describe the scan."""
    return frozenset(
        word
        for word in stem_of(name).split("_")
        if "-" in word and word.partition("-")[0] not in _DERIVED
    )
