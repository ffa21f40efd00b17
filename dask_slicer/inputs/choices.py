"""Choices of the user among the files of cases: modalities, and options that change nothing."""

from __future__ import annotations

from dataclasses import replace

from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch, unknown_name
from dask_slicer.inputs.pairing import choose_name
from dask_slicer.inputs.tree import FileTree, relative_to
from dask_slicer.utils.packed import PackedList

# Layouts, by their names in messages, in which a case may have several labels.
_CHOOSE_LABELS = {"BIDS", "a folder a case", "images/ and labels/", "one folder"}


def apply_choices(tree: FileTree, match: LayoutMatch, options: InputOptions) -> None:
    """Select modalities; an option that the layout did not heed is a problem."""
    if options.modalities:
        _select_modalities(tree, match, options)
    if options.label_name and match.layout not in _CHOOSE_LABELS:
        match.problems.append(f"--label_name has no effect in the layout {match.layout}")
    has_labels = any(case.has_label for case in match.cases)
    if options.structures and has_labels and not any(case.masks for case in match.cases):
        match.problems.append(f"--structures: the layout {match.layout} has no masks of structures")


def _select_modalities(tree: FileTree, match: LayoutMatch, options: InputOptions) -> None:
    """Keep the images of all cases that --modalities names, in its order."""
    modalities, known = options.modalities, match.channel_names
    if not known:
        match.problems.append(
            f"--modalities {','.join(modalities)}: the layout {match.layout} gives these images no "
            "names; give a pattern for each with --images, or a manifest"
        )
        return
    numbers = []
    for name in modalities:
        chosen = choose_name(name, known)
        if chosen is None:
            match.problems.append(unknown_name("modalities", name, known))
        else:
            numbers.append(known.index(chosen))
    if len(numbers) < len(modalities):
        return
    if len(set(numbers)) < len(numbers):
        match.problems.append(f"--modalities {','.join(modalities)} names an image twice")
        return
    if match.volumes == "channels" and options.volumes not in (None, "channels"):
        match.problems.append(
            f"--modalities names the volumes of 4D images, and --volumes {options.volumes} is not "
            "channels; use one of them"
        )
        return
    volumes = set(tree.volumes)
    cases = match.cases
    match.cases = PackedList()
    for case in cases:
        if match.volumes == "channels" and len(case.images) == 1:
            images = tuple(f"{case.images[0]}[{number}]" for number in numbers)
        elif len(case.images) == len(known):
            images = tuple(case.images[number] for number in numbers)
        else:
            match.cases.append(case)  # planning says how many it lacks
            continue
        match.cases.append(replace(case, images=images))
        unused = {relative_to(tree.root, path) for path in set(case.images) - set(images)}
        match.left_out.update(dict.fromkeys(unused & volumes, "not in --modalities"))
    match.channel_names = tuple(known[number] for number in numbers)
