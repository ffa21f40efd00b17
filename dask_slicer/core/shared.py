"""Slices of a case that other processes open: their arrays are in files that all can map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.slices import SliceStack
from dask_slicer.core.volume import planes_to_write
from dask_slicer.utils.mapped import Reference, map_file, reference, scratch_dir_of

_NONE: NDArray[Any] = np.empty((0, 0, 0), np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SharedStack:
    """A SliceStack without its arrays, and where these are; small when it is sent."""

    rest: SliceStack
    image: tuple[Reference, ...]
    label: Reference | None

    def open(self) -> SliceStack:
        """Return the stack, its arrays mapped; raise OSError or ValueError if a file is gone."""
        voxels = (
            replace(each, stored=file.open())
            for each, file in zip(self.rest.image, self.image, strict=True)
        )
        return replace(
            self.rest,
            image=tuple(voxels),
            label=None if self.label is None else self.label.open(),
        )


def share(stacks: Sequence[SliceStack], folder: str) -> tuple[SharedStack, ...]:
    """Return stacks for other processes; arrays that are in no named file are copied to a folder.

    Raise OSError if there is no room. The caller removes the files, in any case.
    """
    copies = _Copies(folder)
    return tuple(
        SharedStack(
            rest=replace(
                stack,
                image=tuple(replace(each, stored=_NONE) for each in stack.image),
                label=None,
            ),
            image=tuple(copies.reference(each.stored) for each in stack.image),
            label=None if stack.label is None else copies.reference(stack.label),
        )
        for stack in stacks
    )


class _Copies:
    """Arrays in named files; views of the same voxels, such as several planes, are copied once."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._copied: dict[tuple[Any, ...], NDArray[Any]] = {}

    def reference(self, array: NDArray[Any]) -> Reference:
        """Return where an array is, which is copied if it is in no named file."""
        place = reference(array) or reference(self._copy(array))
        assert place is not None  # noqa: S101  # of a named file
        return place

    def _copy(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return an array in a file, with its axes in the same order in memory."""
        forwards = tuple(slice(None, None, -1 if step < 0 else 1) for step in array.strides)
        order = np.argsort([-abs(step) for step in array.strides], kind="stable")
        source = array[forwards].transpose(order)
        address = source.__array_interface__["data"][0]
        key = (address, source.shape, source.strides, source.dtype.str)
        if key not in self._copied:
            path = f"{self._folder}/array_{len(self._copied)}"
            # Written, not mapped: on a network disk, other hosts see it when it is closed.
            with open(path, "xb") as file:
                for part in planes_to_write(source):
                    file.write(np.ascontiguousarray(part).data)
            data = map_file(path, scratch_dir=scratch_dir_of(array))
            self._copied[key] = data.view(source.dtype).reshape(source.shape)
        return self._copied[key].transpose(np.argsort(order))[forwards]
