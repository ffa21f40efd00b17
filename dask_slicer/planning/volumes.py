"""Volumes of 4D files as channels or cases, and images that a case lacks."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dask_slicer.config.fields import PER_MODALITY
from dask_slicer.config.schema import RunConfig
from dask_slicer.errors import DatasetError, UnsupportedImage
from dask_slicer.inputs.case import Case
from dask_slicer.inputs.readers.base import split_volume
from dask_slicer.utils.formatting import first_few, format_value, plural


def expand(case: Case, volumes: str, n_volumes: Mapping[str, int]) -> list[Case]:
    """Return the cases that 4D images make of a case; one of 3D images stays as it is.

    Parameters
    ----------
    case : Case
    volumes : str
        "channels", "frames", or the number of the one volume to use.
    n_volumes : mapping of path to int
        The number of volumes of each file; 1 for those that are not in it.

    Examples
    --------
    >>> case = Case(case_id="a", images=("a.nii",), label="l.nii")
    >>> expand(case, "channels", {"a.nii": 2})[0].images
    ('a.nii[0]', 'a.nii[1]')
    >>> [frame.case_id for frame in expand(case, "frames", {"a.nii": 2})]
    ['a_t000', 'a_t001']

    Raises
    ------
    UnsupportedImage
        If its files do not have the volumes.
    """
    counts = {path: n_volumes.get(path, 1) for path in case.image_files}
    series = [path for path, count in counts.items() if count > 1]
    if not series:
        return [case]
    path, count = series[0], counts[series[0]]
    if volumes.isdecimal():
        return [_volume(case, int(volumes), n_volumes)]
    if len(case.images) > 1:
        raise UnsupportedImage(
            f"{path} holds {count} volumes, but the case has {len(case.images)} images; "
            f"--volumes {volumes} takes apart a single 4D image: use --volumes INDEX, or list the "
            f"volumes in a manifest, such as {Path(path).name}[0]"
        )
    if volumes == "channels":
        return [replace(case, images=tuple(f"{path}[{number}]" for number in range(count)))]
    if case.label is not None and n_volumes.get(case.label, 1) not in (1, count):
        raise UnsupportedImage(
            f"{path} holds {count} volumes, its label {case.label} holds "
            f"{n_volumes[case.label]}; frames need a label of one volume, or as many as the image"
        )
    width = max(3, len(str(count - 1)))
    return [
        replace(_volume(case, number, n_volumes), case_id=f"{case.case_id}_t{number:0{width}d}")
        for number in range(count)
    ]


def _volume(case: Case, number: int, n_volumes: Mapping[str, int]) -> Case:
    """Return a case with one volume of each of its 4D files."""

    def selected(path: str) -> str:
        count = n_volumes.get(path, 1)
        if number >= count > 1:
            raise UnsupportedImage(f"{path} has no volume {number}: it has {count}, counted from 0")
        return f"{path}[{number}]" if count > 1 else path

    label = None if case.label is None else selected(case.label)
    return replace(case, images=tuple(map(selected, case.images)), label=label)


def names_of_volumes(cases: Iterable[Case], names: Sequence[str]) -> tuple[str, ...]:
    """Return names for the channels of 4D images: those of the dataset, else numbers.

    Raises
    ------
    DatasetError
        If the dataset names several channels, but another number of them.
    """
    n_channels = Counter(len(case.images) for case in cases).most_common(1)[0][0]
    if len(names) == n_channels:
        return tuple(names)
    if len(names) > 1:
        raise DatasetError(
            f"the dataset names {len(names)} channels ({', '.join(names)}), but its 4D images hold "
            f"{n_channels} volumes; correct the names, or take one volume with --volumes INDEX"
        )
    return tuple(f"volume {number}" for number in range(n_channels))


def without_missing(case: Case) -> Case:
    """Return a case with "" in place of images whose files do not exist, unless none does."""
    images = tuple(path if _is_there(path) else "" for path in case.images)
    return replace(case, images=images) if any(images) else case


def _is_there(path: str) -> bool:
    """Return whether a file exists, also if it cannot be read: then its case fails."""
    return bool(path) and os.path.lexists(split_volume(path)[0])


def filled_note(cases: Iterable[Case], names: Sequence[str]) -> str | None:
    """Return a note on images that are filled with zeros; None if there are none."""
    filled = [case for case in cases if "" in case.images]
    if not filled:
        return None
    counts = Counter(
        number for case in filled for number, path in enumerate(case.images) if not path
    )
    channels = ", ".join(
        f"{names[number] if number < len(names) else f'image {number}'} {count}"
        for number, count in sorted(counts.items())
    )
    return (
        f"{plural(len(filled), 'case')} without all images, zeros in their place ({channels}): "
        f"{first_few([case.case_id for case in filled])}"
    )


def check_modalities(config: RunConfig, n_modalities: int, splits: Iterable[str]) -> None:
    """Raise a DatasetError unless settings and files suit the number of modalities, and splits."""
    if problem := config.problem_of_files(n_modalities, config.n_channels(n_modalities), {*splits}):
        raise DatasetError(problem)
    for name in PER_MODALITY:
        value = getattr(config, name)
        if isinstance(value, tuple) and len(value) != n_modalities:
            has = "1 modality" if n_modalities == 1 else f"{n_modalities} modalities"
            raise DatasetError(
                f"{name} has {plural(len(value), 'value')} ({format_value(value)}), but a case of "
                f"this dataset has {has}; give one value for all, or one each"
            )
