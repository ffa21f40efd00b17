"""Facts from the headers of a case's files, notes on them, and the digests of cases."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, reduce
from itertools import chain
from math import prod
from typing import Any

import numpy as np

from dask_slicer.config.file_settings import FORMAT_OF, UNUSED_BY_FORMAT
from dask_slicer.config.schema import RunConfig
from dask_slicer.config.step_settings import StepSettings
from dask_slicer.core.geometry import align, axis_codes, orientation_of_codes
from dask_slicer.core.geometry import spacing as spacing_of
from dask_slicer.errors import DatasetError, OutputError, UnsupportedImage
from dask_slicer.inputs.case import Case
from dask_slicer.inputs.header_cache import HeaderCache
from dask_slicer.inputs.load import grids_of
from dask_slicer.inputs.readers import read_header
from dask_slicer.inputs.readers.base import CONVERTED, VolumeHeader, split_volume
from dask_slicer.planning.plan import FORMAT_VERSION, CasePlan, PlanePlan
from dask_slicer.planning.steps import in_digest, n_selected, sliced_grid
from dask_slicer.records import CasePlans
from dask_slicer.utils.formatting import as_utf8, first_few, plural
from dask_slicer.utils.modalities import for_each_modality

# Of 16-bit images, if an intensity may be negative.
_OFFSET = 32768
# With a smaller slope and intercept, float64 has all digits of intensities of up to 16 bit.
_MOST_SCALING = 2**31

_NUMBERS = re.compile(r"-?\d[\d.,e+-]*")


def first_volumes(case: Case, *, cache: HeaderCache) -> dict[str, VolumeHeader]:
    """Return the headers of the first volumes of a case's images and label, by path.

    Those that cannot be read are left out: they fail where the case is planned.
    """
    headers = {}
    for path in (*case.image_files, *([] if case.label is None else [case.label])):
        if split_volume(path)[1] is None:
            try:
                headers[path] = cache.header(
                    f"{path}[0]", read_header, orientation_from=case.orientation_from
                )
            except Exception:  # noqa: S112
                continue
    return headers


def with_headers(
    plan: CasePlan,
    config: RunConfig,
    cache: HeaderCache,
    known: dict[str, VolumeHeader],
) -> CasePlan:
    """Return a case's plan, filled in from its headers; `known` has those of `first_volumes`."""
    case = plan.case
    names = {path: cache.relative(path) for path in case.files} | {"": ""}

    def read(path: str, *, orientation_from: str) -> VolumeHeader:
        return _header(path, orientation_from, known)

    def compute(headers: list[VolumeHeader]) -> dict[str, Any]:
        return _facts(case, headers, config.planes[0], names)

    files, facts = cache.facts(case, read, compute, orientation_from=case.orientation_from)
    # A missing image keeps its place.
    for number, path in enumerate(case.images):
        if not path:
            files.insert(number, ("", 0, 0))
    planes = [_plane_plan(facts, plane, config, plan.listed) for plane in config.planes]
    if config.plane_folders:
        facts |= {"planes": tuple(planes)}
    facts |= planes[0].facts() | {"plane": ""}
    planned = replace(
        plan,
        sources=tuple(names[path] for path in case.images),
        files=tuple(files),
        **(facts | {"label_names": dict(facts["label_names"])}),
    )
    return replace(planned, digest=case_digest(planned, config, files))


def _plane_plan(
    facts: dict[str, Any], plane: str, config: RunConfig, listed: frozenset[int] | None
) -> PlanePlan:
    """Return shape and spacing of a case in a plane; its facts are those for the first plane."""
    codes, shape, spacing = facts["orientation"], facts["shape"], facts["spacing"]
    if plane != config.planes[0]:
        order = np.argsort(orientation_of_codes(codes, plane)[:, 0])
        axes = orientation_of_codes(codes, config.planes[0])[order, 0].astype(int).tolist()
        shape, spacing = (tuple(triple[axis] for axis in axes) for triple in (shape, spacing))
    new_shape = new_spacing = selected = None
    if config.changes_grid or config.selects:
        new_shape, new_spacing = sliced_grid(
            config, shape=shape, spacing=spacing, stored_as=f"{codes} {plane}"
        )
        selected = n_selected(config, new_shape[0], listed)
    return PlanePlan(plane, shape, spacing, new_shape, new_spacing, selected)


def _facts(
    case: Case, headers: list[VolumeHeader], plane: str, names: dict[str, str]
) -> dict[str, Any]:
    """Return what the headers of a case say, by the names of fields of `CasePlan`."""
    n_images = len(case.image_files)
    images, labels = headers[:n_images], headers[n_images:]
    for header in images:
        if header.is_label and not case.stated:
            raise UnsupportedImage(
                f"{header.path}: the header says that this is a label map (intent code label), not "
                "an image; name the files with --images and --labels, or in a manifest"
            )
    grids = grids_of(headers, n_images=n_images, label_grid=case.label_grid)
    _, grid = align(grids, plane)
    image_bytes = images[0].voxel_bytes * case.images.count("") + _voxel_bytes(images)
    label_bytes, mask_bytes = _voxel_bytes(labels), 0
    if case.merges_masks:  # one mask is in memory at a time, beside their label
        mask_bytes = label_bytes
        label_bytes = max(header.voxel_bytes for header in labels)
        label_bytes += prod(grid.shape) * np.min_scalar_type(case.masks[-1].value).itemsize
    notes = [(names[header.path], note) for header in headers for note in header.notes]
    notes += [
        (names[header.path], "takes the affine of the image, --label_grid image")
        for header, placed in zip(labels, grids[n_images:], strict=True)
        if not np.array_equal(header.affine, placed.affine)
    ]
    dtypes = iter([str(header.dtype.newbyteorder("=")) for header in images])
    first = str(images[0].dtype.newbyteorder("="))
    each = iter([(header.slope, header.intercept) for header in images])
    scaling = tuple(next(each) if path else (1.0, 0.0) for path in case.images)
    label_names = {} if case.merges_masks or not labels else labels[0].label_names
    return {
        "shape": grid.shape,
        "spacing": spacing_of(grid.affine),
        "orientation": axis_codes(images[0].affine),
        "dtypes": tuple(next(dtypes) if path else first for path in case.images),
        "scaling": scaling if {*scaling} != {(1.0, 0.0)} else (),
        "file_bytes": sum(header.file_bytes // header.n_volumes for header in headers),
        "voxel_bytes": image_bytes + label_bytes,
        "mask_bytes": mask_bytes,
        "oriented": images[0].oriented,
        "header_notes": tuple((as_utf8(path), note) for path, note in notes),
        "label_names": tuple(label_names.items()),
    }


def _header(path: str, orientation_from: str, known: dict[str, VolumeHeader]) -> VolumeHeader:
    file, number = split_volume(path)
    header = known.get(file)
    # Layers of a segmentation differ in their label names; all else is the same in each volume.
    if (
        header is not None
        and (header.n_volumes == 1 if number is None else number < header.n_volumes)
        and not (number and header.is_label)
    ):
        return replace(header, path=path)
    return read_header(path, orientation_from=orientation_from)


def _voxel_bytes(headers: Iterable[VolumeHeader]) -> int:
    return sum(header.voxel_bytes for header in headers)


def names_in_headers(cases: Iterable[CasePlan]) -> tuple[dict[int, str], str | None]:
    """Return the names of label values in headers; none, but a note, if two cases disagree."""
    first: dict[int, tuple[str, str]] = {}
    for case in cases:
        for value, name in case.label_names.items():
            other, other_case = first.setdefault(value, (name, case.case_id))
            if other != name:
                return {}, (
                    f"headers of labels disagree on value {value}: {other} in {other_case}, {name} "
                    f"in {case.case_id}; no names are kept, and the values may mean other things"
                )
    return {value: name for value, (name, _) in first.items()}, None


def grouped_notes(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield one note for each kind of oddity in headers, of pairs of a file and a text.

    >>> pairs = [("a.nii", "in units of 3"), ("b.nii", "in units of 1"), ("b.nii", "damaged")]
    >>> list(grouped_notes(pairs))
    ['2 files: in units of 3: a.nii, b.nii', '1 file: damaged: b.nii']
    """
    kinds: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for path, note in pairs:
        kinds[_NUMBERS.sub("", note)].append((path, note))
    for notes in kinds.values():
        paths = list(dict.fromkeys(path for path, _ in notes))
        yield f"{plural(len(paths), 'file')}: {notes[0][1]}: {first_few(paths)}"


# -- the offset of images of 16 bit ----------------------------------------------------------------


def with_offset(
    config: RunConfig, cases: Sequence[CasePlan], earlier: RunConfig | None, notes: list[str]
) -> tuple[RunConfig, Sequence[CasePlan]]:
    """Return settings and cases with one offset for all images, if intensities are integers.

    Without an offset, 16-bit images are scaled by limits, and there is a note. An output that is
    scaled stays so, and one with the larger offset keeps it; see `earlier` and `like`.

    Raises
    ------
    DatasetError
        If an offset is given, and an intensity may be no integer.
    OutputError
        If the output has an offset that does not fit.
    """
    if config.dtype != "uint16" or config.ct_windows:
        return config, cases
    offsets = [earlier.offset] if earlier is not None else []
    offsets += [] if config.like is None else [config.offset]
    images = [image for case in cases if case.problem is None for image in _image_facts(case)]
    inexact = [f"{path} {reason}" for path, reason, _ in images if reason]
    offset = config.offset
    if inexact and offset is not None:
        raise DatasetError(
            f"images of 16 bit with the offset {offset} need integers, but {inexact[0]}; use "
            "--bits 8, or leave out the offset in another --output_dir"
        )
    signed = [f"{path} may be negative" for path, _, is_signed in images if is_signed]
    if offset is None and not inexact and None not in offsets:
        # Where no header could be read, the offset that nearly all images fit.
        offset = _OFFSET if signed or not images or _OFFSET in offsets else 0
    if earlier is not None and (before := earlier.offset) not in (None, offset):
        because = f", because {(inexact or signed)[0]}" if inexact or signed else ""
        raise OutputError(
            f"{config.output_dir} was made with other settings: offset was {before}, is now "
            f"{'none' if offset is None else offset}{because}; use another --output_dir, or "
            "--overwrite to replace it"
        )
    if offset is not None:
        config = config.model_copy(update={"offset": offset})
        return config, CasePlans(digest_with(case, {"offset": offset}) for case in cases)
    more = f" (as {plural(len(inexact) - 1, 'more image')})" if inexact[1:] else ""
    limits = (for_each_modality(value, 1) for value in (config.clip_min, config.clip_max))
    is_same = config.percentiles is None and None not in chain.from_iterable(limits)
    notes.append(
        "images of 16 bit are scaled by limits, so they are not exact: "
        + (f"{inexact[0]}{more}" if inexact else "so are those that the output has")
        + ("" if is_same else "; with --clip_min and --clip_max, values mean the same in each case")
    )
    return config, cases


def _image_facts(case: CasePlan) -> Iterator[tuple[str, str, bool]]:
    """Yield path, why intensities may be no integers, and whether they may be negative."""
    scaling = case.scaling or ((1.0, 0.0),) * len(case.dtypes)
    for path, dtype, (slope, intercept) in zip(case.sources, case.dtypes, scaling, strict=True):
        reason = ""
        if np.dtype(dtype).kind == "f":
            reason = f"holds {dtype}"
        elif not all(n.is_integer() and abs(n) < _MOST_SCALING for n in (slope, intercept)):
            reason = f"has the slope {slope:g} and the intercept {intercept:g}"
        is_signed = np.dtype(dtype).kind == "i" or slope < 0 or intercept < 0
        if path:  # zeros in the place of a missing image are neither
            yield path, reason, is_signed


# -- digests ---------------------------------------------------------------------------------------


def case_digest(
    plan: CasePlan,
    config: RunConfig,
    sources: Sequence[tuple[str, int, int]],
) -> str:
    """Return a digest, of 16 hexadecimal digits, of everything that decides a case's output bytes.

    `sources` are path, size and mtime in ns; paths are relative, so that a dataset may be moved.
    """
    allowed = f"missing, allowed: {config.allow_missing_labels}"
    content = {
        "format_version": FORMAT_VERSION,
        "settings": _settings_in_digest(config),
        "split": plan.split,
        "sources": sources,
        # A case that was written without a label stays valid only while that is allowed.
        "label": "present" if plan.has_label else allowed,
    }
    if plan.has_label and plan.case.label_grid != "own":
        content["label_grid"] = plan.case.label_grid
    if plan.case.orientation_from != "sform":
        content["orientation_from"] = plan.case.orientation_from
    if plan.case.merges_masks:
        content["masks"] = [mask.value for mask in plan.case.masks]
        content |= {"overlap": "error"} if plan.case.overlap == "error" else {}
    content |= in_digest(config, split=plan.split, listed=plan.listed)
    # Earlier versions took all lengths as mm.
    if any(note.endswith(CONVERTED) for _, note in plan.header_notes):
        content["units"] = CONVERTED
    text = json.dumps(content, sort_keys=True, ensure_ascii=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return reduce(_with_fact, plan.facts, digest)


@lru_cache(maxsize=1)  # it is the same for thousands of cases
def _settings_in_digest(config: RunConfig) -> dict[str, object]:
    # `nonfinite` matters only for a case with NaN or Inf, which its record counts.
    # `offset` is a fact of the dataset.
    unused = {"nonfinite", "offset", "statistics", UNUSED_BY_FORMAT[config.format]}
    unused.update(StepSettings.model_fields)  # see `in_digest`
    unused.update(name for name, format_ in FORMAT_OF.items() if config.format != format_)
    unused.add("file_lists")  # text files, which change no case
    return config.slice_settings.model_dump(mode="json", exclude=unused)


def digest_with(plan: CasePlan, fact: object) -> CasePlan:
    """Return a case's plan whose digest holds also a fact of the whole dataset, as JSON values."""
    text = json.dumps(fact)
    return replace(plan, digest=_with_fact(plan.digest, text), facts=(*plan.facts, text))


def _with_fact(digest: str, fact: str) -> str:
    return hashlib.sha256(f"{digest} {fact}".encode()).hexdigest()[:16]
