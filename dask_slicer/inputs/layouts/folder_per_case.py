"""One folder per case, as in BraTS."""

from __future__ import annotations

import re
from collections import Counter

from dask_slicer.inputs.case import stem_of
from dask_slicer.inputs.label_names import named_like_labels
from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch
from dask_slicer.inputs.tree import FileTree
from dask_slicer.utils.formatting import first_few, plural


def match(tree: FileTree, options: InputOptions) -> LayoutMatch:
    """Match <case>/*.nii.gz, one file for each modality."""
    result = LayoutMatch("a folder a case")
    folders = {
        folder: tree.within(folder)
        for folder in sorted(tree.by_folder)
        if folder and "/" not in folder
    }
    # Folders of other layouts: where such a layout is incomplete, its own module says so.
    others = {"imagesTr", "imagesTs", "labelsTr", "labelsTs", "images", "labels"}
    if not folders or others & set(folders):
        result.seen = len(tree.within(""))
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
        path
        for images, _ in named.values()
        for name, path in images.items()
        if modalities and name not in modalities
    ]
    result.leave_out(strays, "stray file", "left out")
    result.reason = f"{plural(len(folders), 'folder')} with " + (
        f"the images {', '.join(modalities)}" if len(modalities) > 1 else "an image each"
    )
    if not counts:
        found = first_few([label for _, label in named.values() if label])
        result.problems.append(
            f"every volume in the folders of cases is named like a label ({found}); "
            "name images and labels in a manifest"
        )
    for case_id, (images, label) in named.items():
        paths = [
            tree.absolute(images.get(name, f"{case_id}/{case_id}_{name}.nii.gz"))
            for name in modalities or images
        ]
        result.add_case(case_id, paths, label and tree.absolute(label))
    return result


def _by_role(
    case_id: str, paths: list[str], result: LayoutMatch
) -> tuple[dict[str, str], str | None]:
    """Return the images of a case by modality, and its label."""
    prefix = rf"^{re.escape(case_id)}([_\-. ]+|$)"
    file_names = [path.rpartition("/")[2] for path in paths]
    names = [
        re.sub(prefix, "", stem_of(name), flags=re.IGNORECASE) or "image" for name in file_names
    ]
    images: dict[str, str] = {}
    labels = []
    for path, name, is_label in zip(paths, names, named_like_labels(names), strict=True):
        if is_label:
            labels.append(path)
            continue
        other = images.setdefault(name, path)
        if other is not path:
            result.problems.append(
                f"case {case_id} has two files for one modality: "
                f"{other.rpartition('/')[2]} and {path.rpartition('/')[2]}"
            )
    if len(labels) > 1:
        result.problems.append(
            f"case {case_id} has {len(labels)} labels: "
            f"{first_few([label.rpartition('/')[2] for label in labels])}; name one in a manifest"
        )
    return images, labels[0] if labels else None
