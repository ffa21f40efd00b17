"""One folder per case, as in BraTS."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from dask_slicer.inputs.case import stem_of
from dask_slicer.inputs.label_names import named_like_labels
from dask_slicer.inputs.layouts.base import LayoutMatch, volume_files
from dask_slicer.utils.formatting import first_few, plural


def match(root: Path, *, include_test: bool) -> LayoutMatch:
    """Match <case>/*.nii.gz, one file for each modality."""
    result = LayoutMatch("a folder a case")
    folders = {
        folder.name: volumes
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".") and (volumes := volume_files(folder))
    }
    # Folders of other layouts: where such a layout is incomplete, its own module says so.
    others = {"imagesTr", "imagesTs", "labelsTr", "labelsTs", "images", "labels"}
    if not folders or others & set(folders):
        result.seen = len(volume_files(root))
        result.miss = (
            f"found {plural(result.seen, 'NIfTI file')} beside each other, not in folders"
            if result.seen
            else "no folder with an image in it"
        )
        return result
    named = {case_id: _by_role(case_id, paths, result) for case_id, paths in folders.items()}
    counts = Counter(name for images, _ in named.values() for name in images)
    # A name in few folders is a stray file; if no name is common, each folder has its own.
    modalities = sorted(name for name, count in counts.items() if 2 * count >= len(named))
    strays = [
        f"{case_id}/{path.name}"
        for case_id, (images, _) in named.items()
        for name, path in images.items()
        if modalities and name not in modalities
    ]
    result.note_files(strays, "stray file", "left out")
    result.reason = f"{plural(len(folders), 'folder')} with " + (
        f"the images {', '.join(modalities)}" if len(modalities) > 1 else "an image each"
    )
    if not counts:
        found = first_few(
            [f"{case_id}/{label.name}" for case_id, (_, label) in named.items() if label]
        )
        result.problems.append(
            f"every volume in the folders of cases is named like a label ({found}); "
            "name images and labels in a manifest"
        )
    for case_id, (images, label) in named.items():
        paths = [
            images.get(name, root / case_id / f"{case_id}_{name}.nii.gz")
            for name in modalities or images
        ]
        result.add_case(case_id, paths, label)
    return result


def _by_role(
    case_id: str, paths: list[Path], result: LayoutMatch
) -> tuple[dict[str, Path], Path | None]:
    """Return the images of a case by modality, and its label."""
    prefix = rf"^{re.escape(case_id)}([_\-. ]+|$)"
    names = [
        re.sub(prefix, "", stem_of(path.name), flags=re.IGNORECASE) or "image" for path in paths
    ]
    images: dict[str, Path] = {}
    labels = []
    for path, name, is_label in zip(paths, names, named_like_labels(names), strict=True):
        if is_label:
            labels.append(path)
            continue
        other = images.setdefault(name, path)
        if other is not path:
            result.problems.append(
                f"case {case_id} has two files for one modality: {other.name} and {path.name}"
            )
    if len(labels) > 1:
        result.problems.append(
            f"case {case_id} has {len(labels)} labels: "
            f"{first_few([label.name for label in labels])}; name one in a manifest"
        )
    return images, labels[0] if labels else None
