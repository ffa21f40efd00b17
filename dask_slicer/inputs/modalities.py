"""Modalities of cases: which images to use, and their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dask_slicer.inputs.accounting import relative_to
from dask_slicer.inputs.layouts.base import LayoutMatch, unknown_name
from dask_slicer.inputs.pairing import choose_name
from dask_slicer.inputs.tree import FileTree


def select_modalities(tree: FileTree, match: LayoutMatch, modalities: Sequence[str]) -> None:
    """Keep the images of all cases that --modalities names, in its order."""
    known = match.channel_names
    if not modalities:
        return
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
    if len(set(numbers)) < len(modalities):
        if len(numbers) == len(modalities):
            match.problems.append(f"--modalities {','.join(modalities)} names an image twice")
        return
    volumes = set(tree.volumes)
    for index, case in enumerate(match.cases):
        if len(case.images) != len(known):
            continue  # planning says how many it lacks
        match.cases[index] = replace(case, images=tuple(case.images[n] for n in numbers))
        unused = {relative_to(tree.root, path) for path in case.images} - {
            relative_to(tree.root, path) for path in match.cases[index].images
        }
        match.left_out.update(dict.fromkeys(unused & volumes, "not in --modalities"))
    match.channel_names = tuple(known[number] for number in numbers)
