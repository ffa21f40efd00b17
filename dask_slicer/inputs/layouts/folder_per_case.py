"""One folder per case, as in BraTS."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from dask_slicer.inputs.case import stem_of
from dask_slicer.inputs.layouts.base import LABEL_WORDS, LayoutMatch, volume_files
from dask_slicer.utils.formatting import plural


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
    images: dict[str, Path] = {}
    label: Path | None = None
    for path in paths:
        name = re.sub(rf"^{re.escape(case_id)}([_\- ]+|$)", "", stem_of(path.name)) or "image"
        is_label = bool(LABEL_WORDS & set(re.split(r"[_\W]+", name.lower())))
        other = label if is_label else images.get(name)
        if other is not None:
            what = "labels" if is_label else "files for one modality"
            result.problems.append(f"case {case_id} has two {what}: {other.name} and {path.name}")
        if is_label:
            label = path
        else:
            images[name] = path
    return images, label
