"""Roles of all volumes of a dataset: image, label, left out with a reason, or not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from dask_slicer.inputs.layouts.base import FileRole, LayoutMatch
from dask_slicer.inputs.layouts.manifest import NO_FILE
from dask_slicer.inputs.tree import FileTree, relative_to
from dask_slicer.inputs.unread import is_picture, kinds_of, unread_files
from dask_slicer.utils.formatting import first_few
from dask_slicer.utils.packed import PackedList

# Structures of labels that have a row each; of more, a single row counts the files.
_MOST_STRUCTURES = 4
# Names of what `file_kinds` returns, for tables.
FILE_COLUMNS = ("files", "number", "such as")
_ORDER = ("image", "label", "left out", "not read")


def account(tree: FileTree, match: LayoutMatch) -> Sequence[FileRole]:
    """Return the role of every volume of a dataset, by path; a file of two cases is there twice."""
    roles = list(_used(tree.root, match))
    used = {role.path for role in roles}
    if tree.paths:  # without them, a manifest names the files
        missing = {path for path in used.difference(tree.paths) if not tree.has(path)}
        roles = [role for role in roles if role.path not in missing]
    why = f"not part of the layout {match.layout}"
    roles += [
        FileRole(path=path, role="left out", detail=match.left_out.get(path, why))
        for path in tree.volumes
        if path not in used
    ]
    roles += [
        FileRole(path=path, role="not read", detail=why)
        for path, why in unread_files(tree).items()
        if path not in used
    ]
    return PackedList(sorted(roles, key=lambda role: (role.path, role.case_id)))


def _used(root: Path, match: LayoutMatch) -> Iterable[FileRole]:
    channels = match.channel_names
    for case in match.cases:
        for number, path in enumerate(case.images):
            if not path or NO_FILE in path:  # a missing image
                continue
            name = channels[number] if number < len(channels) else f"channel {number}"
            relative = relative_to(root, path)
            yield FileRole(path=relative, role="image", detail=name, case_id=case.case_id)
        for mask in case.masks:
            relative = relative_to(root, mask.path)
            yield FileRole(path=relative, role="label", detail=mask.structure, case_id=case.case_id)
        if case.label is not None:
            yield FileRole(path=relative_to(root, case.label), role="label", case_id=case.case_id)


def unread_notes(roles: Iterable[FileRole]) -> list[str]:
    """Return a note on files of formats for volumes that are not read, none if there are none."""
    unread = {role.path: role.detail for role in roles if role.role == "not read"}
    kinds = kinds_of({path: why for path, why in unread.items() if not is_picture(why)})
    return ["; ".join(kinds)] if kinds else []


def file_kinds(roles: Sequence[FileRole]) -> list[tuple[str, int, str]]:
    """Return each kind of file, how many there are, and one of them; images and labels first.

    >>> file_kinds([FileRole(path=f"{n}.nii", role="left out", detail="why") for n in range(3)])
    [('left out: why', 3, '0.nii')]
    """
    structures = {role.detail for role in roles if role.role == "label" and role.detail}
    folded = f" {len(structures)} structures ({first_few(sorted(structures))})"
    counts: Counter[tuple[int, str]] = Counter()
    examples: dict[tuple[int, str], str] = {}
    for role in roles:
        separator = " " if role.role in ("image", "label") else ": "
        detail = separator + role.detail if role.detail else ""
        if role.role == "label" and detail and len(structures) > _MOST_STRUCTURES:
            detail = folded
        kind = (_ORDER.index(role.role), role.role + detail)
        counts[kind] += 1
        examples.setdefault(kind, role.path)
    kinds = sorted(counts, key=lambda kind: (kind[0], -counts[kind], kind[1]))
    return [(kind[1], counts[kind], examples[kind]) for kind in kinds]
