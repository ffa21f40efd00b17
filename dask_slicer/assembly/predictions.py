"""Files of predictions: which slice of which case each is of, and what it holds, checked."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dask_slicer.assembly.restoring import smallest_dtype
from dask_slicer.assembly.slice_grid import SliceGrid
from dask_slicer.config.fields import PLANES
from dask_slicer.errors import (
    CaseError,
    CorruptFile,
    GeometryMismatch,
    LabelValues,
    MissingFile,
    NonFinite,
    UnsupportedImage,
    UsageError,
)
from dask_slicer.utils.formatting import did_you_mean, first_few, format_shape, plural

Kind = Literal["labels", "probabilities", "logits"]

SUFFIXES = (".npy", ".npz", ".png")
_SLICE = re.compile(r"(?P<case_id>.+)_(?P<index>[0-9]{1,10})", re.DOTALL)
# Labels that are floats, and probabilities, may be off by this much.
_NEAR_AN_INTEGER, _NEAR_THE_LIMITS = 1e-3, 1e-4


@dataclass(slots=True)
class FoundFiles:
    """The files of a case in one plane, of one folder of predictions."""

    slices: dict[int, list[str]] = field(default_factory=dict)  # by slice index
    whole: list[str] = field(default_factory=list)  # with an array of all slices

    @property
    def first(self) -> str:
        """Return one of the files."""
        return next(chain(self.whole, *self.slices.values()))

    @property
    def n_classes(self) -> int:
        """Return the length of the class axis of probabilities; 1 if that cannot be read."""
        try:
            shape = _array_in(self.first, "probabilities").shape
        except (CaseError, OSError):
            return 1
        return int(shape[0]) if len(shape) > (3 if self.whole else 2) else 1


@dataclass(slots=True)
class FoundPredictions:
    """What a folder of predictions has.

    `cases` is by case id and plane; `problems` by case id, also of ids that no case has.
    """

    folder: Path
    cases: dict[str, dict[str, FoundFiles]] = field(default_factory=dict)
    problems: dict[str, CaseError] = field(default_factory=dict)
    n_others: int = 0  # files that are no predictions by their name

    @property
    def planes(self) -> set[str]:
        """Return the planes that any case has a prediction in."""
        return {plane for planes in self.cases.values() for plane in planes}


def find_predictions(
    folder: Path, case_ids: Collection[str], planes: Sequence[str], *, kind: Kind
) -> FoundPredictions:
    """Return the predictions in a folder and the folders in it.

    Raise UsageError if it is no folder.
    """
    if not folder.is_dir():
        raise UsageError(f"predictions: {folder} is no folder")
    found = FoundPredictions(folder)
    unknown: defaultdict[str, list[str]] = defaultdict(list)
    for path in _files(folder):
        stem = path.stem
        if path.suffix.lower() not in SUFFIXES:
            found.n_others += 1
            continue
        case_id, index = _case_and_slice(path, stem, case_ids, kind)
        if case_id not in case_ids:
            unknown[case_id].append(str(path))
            continue
        try:
            plane = _plane_of(path.relative_to(folder), planes, given=folder.name)
        except CaseError as error:
            found.problems.setdefault(case_id, error)
            continue
        files = found.cases.setdefault(case_id, {}).setdefault(plane, FoundFiles())
        (files.whole if index is None else files.slices.setdefault(index, [])).append(str(path))
    for case_id, paths in unknown.items():
        found.problems[case_id] = MissingFile(
            f"{paths[0]} is a prediction of a case that the output does not have"
            f"{did_you_mean(case_id, case_ids)}"
            + (f"; so {plural(len(paths) - 1, 'other file')} of it" if len(paths) > 1 else "")
        )
    return found


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(parent, name)


def _case_and_slice(
    path: Path, stem: str, case_ids: Collection[str], kind: Kind
) -> tuple[str, int | None]:
    """Return the case id in a name, and the slice index if there is one."""
    match = _SLICE.fullmatch(stem)
    if match is None or (stem in case_ids and match["case_id"] not in case_ids):
        return stem, None
    case_id, index = match["case_id"], int(match["index"])
    if stem in case_ids:  # both are cases: slices have an axis less
        n_axes = _n_axes(path)
        if n_axes is not None and n_axes > (2 if kind == "labels" else 3):
            return stem, None
    return case_id, index


def _n_axes(path: Path) -> int | None:
    try:
        return 2 if path.suffix.lower() == ".png" else _array_in(str(path), "labels").ndim
    except (CaseError, OSError):  # named when it is read
        return None


def _plane_of(relative: PurePath, planes: Sequence[str], *, given: str) -> str:
    """Return the plane of a file: the last folder above it that is named as one.

    That may be the folder of predictions, named `given`, if there are several planes.
    """
    named = next((name for name in reversed(relative.parts[:-1]) if name in PLANES), None)
    if named is None and len(planes) == 1:
        return planes[0]
    if named is None and given in PLANES:
        named = given
    if named is not None and named in planes:
        return named
    if named is None:
        raise MissingFile(
            f"{relative} is in no folder of a plane; put it into one of {', '.join(planes)}"
        )
    raise MissingFile(f"{relative} is of plane {named}; the output has {', '.join(planes)}")


# -- reading ---------------------------------------------------------------------------------------


class PredictedSlices:
    """Predictions of the slices of a case in one plane.

    Raise a CaseError if a slice that was kept has none, or another has two.
    """

    def __init__(self, files: FoundFiles, grid: SliceGrid, kind: Kind, folder: str) -> None:
        self._grid, self._kind = grid, kind
        self._volume: NDArray[Any] | None = None
        self._n_classes: int | None = None
        paths = files.whole + [path for paths in files.slices.values() for path in paths]
        if files.whole and len(paths) > 1:
            raise UnsupportedImage(
                f"{files.whole[0]} and {plural(len(paths) - 1, 'other file')} are predictions of "
                "the same slices; remove those that are wrong"
            )
        if files.whole:
            self._path = files.whole[0]
            self._volume, self._places = _whole(self._path, grid, kind)
            return
        for index, same in files.slices.items():
            if len(same) > 1:
                raise UnsupportedImage(
                    f"slice {index} has {len(same)} predictions: {first_few(same)}; remove those "
                    "that are wrong"
                )
        if beyond := [index for index in files.slices if index >= grid.shape[0]]:
            raise GeometryMismatch(
                f"{files.slices[min(beyond)][0]} is of slice {min(beyond)}, the last slice of the "
                f"case is {grid.shape[0] - 1}"
            )
        if missing := sorted(set(grid.kept) - files.slices.keys()):
            raise MissingFile(
                f"{len(missing)} of {plural(len(grid.kept), 'slice')} have no prediction in "
                f"{folder}, the first is {missing[0]}"
            )
        self._paths = {index: path for index, (path,) in files.slices.items()}

    @property
    def indices(self) -> Collection[int]:
        """Return which slices have a prediction."""
        return self._paths.keys() if self._volume is None else self._places.keys()

    def read(self, slice_index: int) -> NDArray[Any]:
        """Return labels, (row, column), or probabilities, (class, row, column), checked."""
        if self._volume is None:
            path = self._paths[slice_index]
            array = _array_in(path, self._kind)
        else:
            path = f"{self._path}, slice {slice_index}"
            array = self._volume[..., self._places[slice_index], :, :]
        size, transposed = self._grid.shape[1:], self._grid.transposed
        array = checked(array, size, self._kind, path, transposed=transposed)
        if self._kind != "labels":
            self._n_classes = self._n_classes or len(array)
            if len(array) != self._n_classes:
                raise UnsupportedImage(
                    f"{path} has a class axis of {len(array)}, others of the case of "
                    f"{self._n_classes}"
                )
        return array


def _whole(path: str, grid: SliceGrid, kind: Kind) -> tuple[NDArray[Any], dict[int, int]]:
    """Return the array of a case, and where each slice is in it."""
    array = _array_in(path, kind)
    n_slices = array.shape[-3] if array.ndim > 2 else 0
    for indices in (range(grid.shape[0]), grid.kept):
        if n_slices == len(indices):
            return array, {index: place for place, index in enumerate(indices)}
    kept = f" ({len(grid.kept)} of them kept)" if len(grid.kept) < grid.shape[0] else ""
    raise GeometryMismatch(
        f"{path} has shape {format_shape(array.shape)}, expected "
        f"{'' if kind == 'labels' else 'classes, '}{grid.shape[0]} slices{kept}, "
        f"{grid.shape[1]} rows, {grid.shape[2]} columns"
    )


def checked(
    array: NDArray[Any], size: tuple[int, int], kind: Kind, name: str, *, transposed: bool = False
) -> NDArray[Any]:
    """Return the labels of a slice in the smallest dtype, or probabilities with a class axis.

    `transposed` arrays have the rows as columns. Raise a CaseError, which begins with `name`, if an
    array is something else.
    """
    if transposed:
        return checked(array, size[::-1], kind, name).swapaxes(-2, -1)
    if array.dtype.kind not in "buif":
        raise UnsupportedImage(f"{name} holds {array.dtype}, expected numbers")
    wanted = format_shape(size)
    if kind == "labels":
        if array.ndim == 3 and array.shape[1:] == size:
            raise UnsupportedImage(
                f"{name} has shape {format_shape(array.shape)}, a class axis before rows and "
                "columns; give --kind probabilities or logits, or save labels"
            )
        if array.shape != size:
            raise GeometryMismatch(
                f"{name} has shape {format_shape(array.shape)}, its slice {wanted} (rows, columns)"
            )
        return _as_labels(array, name)
    if array.shape == size:  # of one class
        array = array[np.newaxis]
    if array.ndim != 3 or array.shape[1:] != size or not len(array):
        raise GeometryMismatch(
            f"{name} has shape {format_shape(array.shape)}, expected a class axis and then the "
            f"{wanted} (rows, columns) of its slice"
        )
    with np.errstate(over="ignore"):  # is Inf, which is named
        values = array.astype(np.float32)
    if not np.isfinite(values).all():
        n_wrong = int(values.size - np.isfinite(values).sum())
        raise NonFinite(f"{name} holds NaN or Inf ({plural(n_wrong, 'value')})")
    if kind == "logits":
        if len(values) > 1:
            return _softmax(values)
        with np.errstate(over="ignore"):  # the inverse of Inf is 0
            return np.asarray(1 / (1 + np.exp(-values)))
    if values.min() < -_NEAR_THE_LIMITS or values.max() > 1 + _NEAR_THE_LIMITS:
        raise UnsupportedImage(
            f"{name} holds values from {values.min():.3g} to {values.max():.3g}, which are no "
            "probabilities; for the output of a last layer, give --kind logits"
        )
    return values


def _as_labels(array: NDArray[Any], name: str) -> NDArray[np.integer]:
    if array.dtype.kind == "f":
        nearest = np.rint(array)
        with np.errstate(invalid="ignore"):
            off = ~(np.abs(array - nearest) <= _NEAR_AN_INTEGER)
        if off.any():
            raise LabelValues(
                f"{name} holds {array[off][0]:g}, which is no label; for probabilities or logits, "
                "give --kind"
            )
        array = nearest
    if array.dtype in (np.bool_, np.uint8):  # as nearly always; else two more looks at all pixels
        return array.astype(np.uint8)
    low, high = int(array.min()), int(array.max())
    if max(-low, high) >= 2**31:
        raise LabelValues(f"{name} holds the label {high if high >= 2**31 else low}")
    return array.astype(smallest_dtype(min(low, 0), max(high, 0)))


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = np.exp(logits - logits.max(axis=0))
    shares: NDArray[np.float32] = shifted / shifted.sum(axis=0)
    return shares


def _array_in(path: str, kind: Kind) -> NDArray[Any]:
    """Return the array in a file; a large .npy file is mapped."""
    try:
        if path.lower().endswith(".png"):
            return _png(path, kind)
        content = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            return np.asarray(content[_member(content.files, kind, path)])
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, CaseError):
            raise
        why = "" if "pickle" in str(error) else f" ({error})"  # of a file that is no array
        raise CorruptFile(f"{path} is damaged or no array{why}; write it again") from None


def _member(names: Sequence[str], kind: Kind, path: str) -> str:
    """Return the name of the array to take: the only one, or the one named so."""
    wanted = ("prediction", kind, "label") if kind == "labels" else ("prediction", kind)
    for name in names if len(names) == 1 else wanted:
        if name in names:
            return name
    raise UnsupportedImage(
        f"{path} holds {first_few(names) or 'nothing'}; save one array, or name it prediction"
    )


def _png(path: str, kind: Kind) -> NDArray[Any]:
    if kind != "labels":
        raise UnsupportedImage(f"{path}: a PNG holds labels, not {kind}")
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise UnsupportedImage(
            f"{path}: reading PNG needs Pillow; install dask_slicer[png]"
        ) from None
    try:
        with Image.open(path) as image:
            array = np.asarray(image)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise CorruptFile(f"{path} is damaged or no PNG; write it again") from None
    if array.ndim != 2:
        raise UnsupportedImage(f"{path} has colours; save a mask of one channel")
    return array
