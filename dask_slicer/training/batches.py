"""Batches of slices: many windows read into one array."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dask_slicer.errors import UsageError
from dask_slicer.output.formats.base import Planes, Window, damage_named
from dask_slicer.training.cache import Content, PlaneCache
from dask_slicer.training.memory import as_tensor, is_in_worker, joined, shared_tensor
from dask_slicer.training.normalization import SCALING

Sample = dict[str, Any]
Allocate = Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]]
ImageOutput = Literal["float32", "source"]
# Stored integers, and what they become: torch has no arithmetic for the others.
_TENSOR_DTYPES = {
    "int8": "int8",
    "uint8": "uint8",
    "int16": "int16",
    "uint16": "int32",
    "int32": "int32",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedSlice:
    """A slice that was asked for, opened and not yet decoded; `case_number` is that of its case."""

    case_number: int
    case_id: str
    slice_index: int
    plane: str
    window: Window

    @property
    def has_label(self) -> bool:
        """Return whether the case has a label map."""
        return self.window.label_dtype is not None

    def source(self) -> Sample:
        """Return where the slice comes from, as part of a sample."""
        source = {"case_id": self.case_id, "slice_index": self.slice_index}
        return source | {"plane": self.plane} if self.plane else source


def read_arrays(
    slices: Sequence[OpenedSlice],
    *,
    output: ImageOutput,
    allocate: Allocate,
    cache: PlaneCache | None = None,
    must_allocate: bool = True,
) -> dict[str, NDArray[Any]]:
    """Read slices of one size into arrays of a batch; each plane is decoded once.

    Without `must_allocate`, the image of a single slice may come in memory of its own.

    Returns
    -------
    dict
        `image` (slice, channel, row, column); `label` (slice, row, column), of any content for a
        slice without one, if any has one; with output "source", the fields of `Scaling`.

    Raises
    ------
    UsageError
        If the sizes differ, or `output` is "source" and a case holds no integers.
    CorruptFile
    """
    first = slices[0]
    for other in slices:
        if other.window.shape != first.window.shape:
            raise UsageError(_unequal(first, other))
    dtype = np.dtype(np.float32)
    if output == "source":
        dtype = np.result_type(*(_tensor_dtype(each) for each in slices))
    whole = None
    if not must_allocate and len(slices) == 1 and output == "float32":
        whole = first.window.whole_image()
    if whole is None:
        image = allocate((len(slices), *first.window.shape), dtype)
        planes = _planes_of("image", slices, cache)
        for place, each in zip(image, slices, strict=True):
            read = each.window.read_stored if output == "source" else each.window.read_image
            with damage_named(each.case_id, each.slice_index):
                read(place, planes[each.case_number])
    else:
        image = whole[None]
    arrays = {"image": image}
    if labelled := [each for each in slices if each.has_label]:
        size = first.window.shape[1:]
        dtype = np.result_type(*(each.window.label_dtype for each in labelled))
        label = arrays["label"] = allocate((len(slices), *size), dtype)
        labels = _planes_of("label", slices, cache)
        for place, each in zip(label, slices, strict=True):
            if each.has_label:
                with damage_named(each.case_id, each.slice_index):
                    _read_label(each, place, labels[each.case_number])
    if output == "source":
        scalings = [each.window.scaling() for each in slices]
        for name in SCALING:
            arrays[name] = np.stack([getattr(scaling, name) for scaling in scalings])
    return arrays


def _planes_of(
    content: Content, slices: Sequence[OpenedSlice], cache: PlaneCache | None
) -> dict[int, Planes]:
    """Return the planes of each case that are decoded already, by its number."""
    cases = {each.case_number for each in slices}
    return {case: {} if cache is None else cache.planes_of(content, case) for case in cases}


def _read_label(each: OpenedSlice, out: NDArray[Any], labels: Planes) -> None:
    if each.slice_index in labels:
        out[...] = labels[each.slice_index]
    else:
        each.window.read_label(out)
        labels[each.slice_index] = out


def samples_of(slices: Sequence[OpenedSlice], arrays: Mapping[str, NDArray[Any]]) -> list[Sample]:
    """Return a sample for each slice, whose arrays are views into those of the batch."""
    return [
        {name: array[number] for name, array in arrays.items() if name != "label" or each.has_label}
        | each.source()
        for number, each in enumerate(slices)
    ]


def batch_of(slices: Sequence[OpenedSlice], arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return a batch: arrays, or tensors where torch is imported, and lists of text."""
    samples = samples_of(slices, arrays)
    _check_keys(samples)
    return {
        name: _tensor(arrays[name])
        if name in arrays
        else _collated([sample[name] for sample in samples])
        for name in samples[0]
    }


def collate(samples: Sequence[Any]) -> Any:
    """Return samples as a batch; arrays that are one batch already are not copied.

    Arrays and numbers become tensors where torch is imported, else arrays, and text a list. Other
    values, and samples that are no dicts, become what torch's own collation makes of them; lists
    without torch.

    Raises
    ------
    UsageError
        If samples have unequal sizes or keys.
    """
    first = samples[0]
    if not isinstance(first, dict):
        return _collated(list(samples))
    _check_keys(samples)
    for name, value in first.items():
        if isinstance(value, np.ndarray) and any(s[name].shape != value.shape for s in samples):
            raise UsageError(_unequal_arrays(name, samples))
    return {name: _collated([sample[name] for sample in samples]) for name in first}


def _collated(values: list[Any]) -> Any:
    match values[0]:
        case np.ndarray():
            batch = joined(values)
            return _tensor(np.stack(values) if batch is None else batch)
        case int() | float() | np.number() | np.bool():
            return _tensor(np.array(values))
        case str():
            return values
    torch_data = sys.modules.get("torch.utils.data")
    return values if torch_data is None else torch_data.default_collate(values)


def _tensor(array: NDArray[Any]) -> Any:
    if sys.modules.get("torch") is None:
        return array
    return shared_tensor(array) if is_in_worker() else as_tensor(array)


def _tensor_dtype(each: OpenedSlice) -> np.dtype[Any]:
    name = each.window.dtype.newbyteorder("=").name
    if name not in _TENSOR_DTYPES:
        raise UsageError(
            f"case {each.case_id} is stored as {name}, and output='source' gives integers of at "
            "most 32 bit, signed; read it without output='source', or make the slices again with "
            "--dtype source from scans of integers"
        )
    return np.dtype(_TENSOR_DTYPES[name])


_REMEDY = "make the slices again with --size, or choose slices of one size with `cases` or `plane`"


def _unequal(first: OpenedSlice, other: OpenedSlice) -> str:
    return (
        f"a batch needs slices of one size, but {first.case_id} has "
        f"{_size(first.window.shape)} and {other.case_id} {_size(other.window.shape)} (channels, "
        f"rows, columns); {_REMEDY}"
    )


def _unequal_arrays(name: str, samples: Sequence[Sample]) -> str:
    first = samples[0]
    other = next(each for each in samples if each[name].shape != first[name].shape)
    where = (
        f"{each.get('case_id', name)} has {_size(each[name].shape)}" for each in (first, other)
    )
    return f"a batch needs slices of one size, but {' and '.join(where)}; {_REMEDY}"


def _check_keys(samples: Sequence[Sample]) -> None:
    """Raise UsageError if some samples lack what others have."""
    first = samples[0]
    for other in samples:
        if names := sorted(first.keys() ^ other.keys()):
            raise UsageError(
                f"{first.get('case_id')} and {other.get('case_id')} differ in "
                f"{' and '.join(names)}; choose cases that all have a label, or none, with `cases`"
            )


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
