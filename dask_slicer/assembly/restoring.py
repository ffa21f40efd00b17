"""Labels and probabilities of slices as volumes on the grid of their scan. No files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dask_slicer.assembly.slice_grid import SliceGrid
from dask_slicer.errors import UnsupportedImage

# Planes of the last stored axis that are combined at once.
_BLOCK = 16
# Slices that are written at once: more would not fit the cache.
_ROW = 16


class Slices(Protocol):
    """Predictions of the slices of a case in one plane."""

    @property
    def indices(self) -> Collection[int]:
        """Return which slices have one."""
        ...

    def read(self, slice_index: int) -> NDArray[Any]:
        """Return labels, (row, column), or probabilities, (class, row, column), checked."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Restored:
    """A volume of labels in the order of axes of the scan's file, and what they were made of.

    `probabilities` is (i, j, k, class); None unless they are kept.
    """

    labels: NDArray[np.integer]
    probabilities: NDArray[np.float32] | None = None


def smallest_dtype(low: int, high: int) -> np.dtype[np.integer]:
    """Return the smallest dtype of NIfTI that holds two integers, unsigned if it can be.

    >>> smallest_dtype(0, 255), smallest_dtype(-1, 200), smallest_dtype(-1, 100)
    (dtype('uint8'), dtype('int16'), dtype('int8'))
    """
    return np.min_scalar_type(high if low >= 0 else min(low, -high - 1))


def restore_labels(sources: Sequence[tuple[SliceGrid, Slices]], *, fill: int = 0) -> Restored:
    """Return the label map that predictions of labels make.

    Parameters
    ----------
    sources : sequence of (SliceGrid, Slices)
        Several are of several networks, or planes: each voxel gets the label that most of those
        that cover it have; of as many, the lowest.
    fill : int
        The label where no slice is.
    """
    volumes = [_labels_of(grid, slices, fill) for grid, slices in sources]
    if len(volumes) == 1:
        return Restored(labels=narrowed(volumes[0]))
    covers = [_covered(grid, slices.indices) for grid, slices in sources]
    dtype = np.result_type(*volumes)
    result = sources[0][0].empty(fill, dtype)
    for block in _blocks(result):
        votes, counted = ([volume[block] for volume in of] for of in (volumes, covers))
        result[block] = votes[0]
        # Nearly everywhere, all are the same.
        differ = ~np.logical_and.reduce(counted)
        for vote in votes[1:]:
            differ |= vote != votes[0]
        votes, counted = ([part[differ] for part in of] for of in (votes, counted))
        winner = np.full(len(votes[0]), fill, dtype)
        most = np.zeros(len(winner), np.uint8)
        for value in np.unique(np.concatenate(votes)):  # ascending: of as many, the lowest stays
            count = np.zeros_like(most)
            for vote, counts in zip(votes, counted, strict=True):
                count += (vote == value) & counts
            wins = count > most
            winner[wins], most[wins] = value, count[wins]
        result[block][differ] = winner
    return Restored(labels=narrowed(result))


def restore_probabilities(
    sources: Sequence[tuple[SliceGrid, Slices]],
    *,
    threshold: float | None = None,
    keep: bool = False,
    fill: int = 0,
) -> Restored:
    """Return the label map that predictions of probabilities make.

    Parameters
    ----------
    sources : sequence of (SliceGrid, Slices)
        Several are of several networks, or planes: of each voxel, the mean of those that cover it
        counts.
    threshold : float, optional
        Of a single class: label 1 from this probability on. Otherwise the most probable class; of
        equal ones, the first.
    keep : bool
        Return the probabilities too; 0 where no slice is.
    fill : int
        The label where no slice is.
    """
    by_plane: dict[str, list[tuple[SliceGrid, Slices]]] = {}
    for grid, slices in sources:
        by_plane.setdefault(grid.plane, []).append((grid, slices))
    choose = partial(decide, threshold=threshold)
    (first, *others) = by_plane.values()
    if not others and not first[0][0].steps.interpolates:
        return _restored_by_slice(first[0][0], [slices for _, slices in first], choose, keep, fill)
    return _restored_by_class(list(by_plane.values()), choose, keep, fill)


def _restored_by_slice(
    grid: SliceGrid,
    networks: Sequence[Slices],
    choose: Callable[[NDArray[np.float32]], NDArray[np.integer]],
    keep: bool,
    fill: int,
) -> Restored:
    """Return the volume of one plane without interpolation: one slice in memory at a time."""
    kept: list[NDArray[np.float32]] = []

    def chosen() -> Iterator[tuple[int, NDArray[np.integer]]]:
        for index, mean, _ in _means(networks):
            if keep and not kept:
                kept.extend(grid.empty(0, np.dtype(np.float32)) for _ in mean)
            for volume, pixels in zip(kept, mean, strict=keep):
                grid.place(volume, index, pixels[np.newaxis])
            yield index, choose(mean)

    labels = _placed(grid, chosen(), fill)
    return Restored(labels=labels, probabilities=_stacked(kept))


class LabelVolume:
    """A volume of labels that slices are written into, in any order, without interpolation."""

    def __init__(self, grid: SliceGrid, fill: int) -> None:
        self._grid = grid
        self._labels = grid.empty(fill, smallest_dtype(0, fill))
        self._waiting: dict[int, NDArray[np.integer]] = {}
        # Where neighbouring slices are neighbours in memory, one at a time takes 10 times as long.
        self._most = _ROW if grid.orientation[0, 0] == 0 else 1

    def add(self, slice_index: int, pixels: NDArray[np.integer]) -> None:
        """Add a slice, (row, column)."""
        self._waiting[slice_index] = pixels
        if len(self._waiting) == self._most:
            self._write()

    def finished(self) -> NDArray[np.integer]:
        """Return the volume, when all slices are added."""
        self._write()
        return self._labels

    def _write(self) -> None:
        indices = sorted(self._waiting)
        for _, run in groupby(indices, key=lambda index: index - indices.index(index)):
            first, *others = run
            block = np.stack([self._waiting[index] for index in (first, *others)])
            self._labels = _widened(self._labels, block.dtype)
            self._grid.place(self._labels, first, block)
        self._waiting.clear()


def _placed(
    grid: SliceGrid, slices: Iterable[tuple[int, NDArray[np.integer]]], fill: int
) -> NDArray[np.integer]:
    """Return the volume of labels of slices; the steps must not interpolate."""
    volume = LabelVolume(grid, fill)
    for index, pixels in slices:
        volume.add(index, pixels)
    return volume.finished()


def _restored_by_class(
    planes: Sequence[Sequence[tuple[SliceGrid, Slices]]],
    choose: Callable[[NDArray[np.float32]], NDArray[np.integer]],
    keep: bool,
    fill: int,
) -> Restored:
    """Return the volume of planes that are interpolated or combined: all classes in memory."""
    sums: list[NDArray[np.float32]] = []
    first = planes[0][0][0]
    weights = first.empty(0, np.dtype(np.float32))
    inside = first.empty(0, np.dtype(np.bool_))
    for plane in planes:
        grid = plane[0][0]
        classes: NDArray[np.float32] | None = None
        counts: dict[int, int] = {}
        for index, mean, n_networks in _means([slices for _, slices in plane]):
            if classes is None:
                classes = np.zeros((len(mean), *grid.shape), np.float32)
            classes[:, index] = mean * n_networks
            counts[index] = n_networks
        if classes is None:
            continue
        sums = sums or [first.empty(0, np.dtype(np.float32)) for _ in classes]
        if len(sums) != len(classes):
            raise UnsupportedImage(
                f"{len(sums)} classes in plane {first.plane}, {len(classes)} in {grid.plane}"
            )
        for volume, values in zip(sums, classes, strict=True):
            restored = grid.steps.restored_image(values, fill=0)
            view = grid.view(volume)
            np.add(view, restored, out=view, casting="unsafe")
        view = grid.view(weights)
        view += grid.counted(counts)
        inside |= _covered(grid, counts)
    labels = first.empty(fill, smallest_dtype(0, max(fill, len(sums) - 1, 1)))
    for block in _blocks(labels):
        mean = np.stack([volume[block] for volume in sums])
        np.divide(mean, weights[block], out=mean, where=inside[block])
        mean[:, ~inside[block]] = 0
        np.copyto(labels[block], choose(mean), where=inside[block], casting="unsafe")
        for volume, values in zip(sums, mean, strict=True):
            volume[block] = values
    return Restored(labels=labels, probabilities=_stacked(sums) if keep else None)


# Of a voxel between slices that are there and some that were left out, this share decides.
_COVERED = 0.5


def _means(networks: Sequence[Slices]) -> Iterator[tuple[int, NDArray[np.float32], int]]:
    """Yield the index of each slice, the mean of the probabilities, and of how many networks.

    Of a slice that was left out, not every network needs to have some.
    """
    for index in sorted({index for slices in networks for index in slices.indices}):
        first, *others = (slices.read(index) for slices in networks if index in slices.indices)
        if not others:
            yield index, first, 1
            continue
        total = first.astype(np.float64)
        for other in others:
            if other.shape != first.shape:
                raise UnsupportedImage(
                    f"slice {index} has {len(first)} classes in one folder of predictions, "
                    f"{len(other)} in another; name only those with the same classes"
                )
            total += other
        n_networks = 1 + len(others)
        yield index, (total / n_networks).astype(np.float32), n_networks


def decide(mean: NDArray[np.float32], *, threshold: float | None) -> NDArray[np.integer]:
    """Return the class of each pixel or voxel, from (class, …) probabilities."""
    if len(mean) == 1 and threshold is None:
        raise UnsupportedImage(
            "predictions have one class; give --threshold, the probability from which it counts"
        )
    if len(mean) > 1 and threshold is not None:
        raise UnsupportedImage(
            f"predictions have {len(mean)} classes; --threshold is for one, leave it out"
        )
    if threshold is not None:
        return np.asarray(mean[0] >= threshold).astype(np.uint8)
    return np.asarray(mean.argmax(axis=0)).astype(smallest_dtype(0, len(mean) - 1))


def _labels_of(grid: SliceGrid, slices: Slices, fill: int) -> NDArray[np.integer]:
    """Return the labels of one network in one plane, on the grid of the scan."""
    predicted = ((index, slices.read(index)) for index in sorted(slices.indices))
    if not grid.steps.interpolates:
        return _placed(grid, predicted, fill)
    labels = np.full(grid.shape, fill, smallest_dtype(0, fill))
    for index, pixels in predicted:
        labels = _widened(labels, pixels.dtype)
        labels[index] = pixels
    result = grid.empty(fill, labels.dtype)
    grid.view(result)[...] = grid.steps.restored_label(labels, fill=fill)
    return result


def _covered(grid: SliceGrid, indices: Collection[int]) -> NDArray[np.bool_]:
    if not grid.steps.interpolates:
        ones = np.ones(grid.shape[1:], np.uint8)
        return _placed(grid, ((index, ones) for index in sorted(indices)), 0).view(np.bool_)
    covered = grid.empty(0, np.dtype(np.bool_))
    grid.view(covered)[...] = grid.counted(dict.fromkeys(indices, 1)) >= _COVERED
    return covered


def narrowed(labels: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return labels in the smallest dtype; usually the same array."""
    if labels.dtype == np.uint8:
        return labels
    return labels.astype(smallest_dtype(int(labels.min()), int(labels.max())), copy=False)


def _widened(labels: NDArray[np.integer], dtype: np.dtype[Any]) -> NDArray[np.integer]:
    """Return labels in a dtype that holds those of another one, too; usually the same array."""
    both = np.result_type(labels.dtype, dtype)
    return labels if both == labels.dtype else labels.astype(both)


def _blocks(volume: NDArray[Any]) -> Iterator[tuple[Any, ...]]:
    for start in range(0, volume.shape[2], _BLOCK):
        yield (slice(None), slice(None), slice(start, start + _BLOCK))


def _stacked(volumes: Sequence[NDArray[np.float32]]) -> NDArray[np.float32] | None:
    """Return volumes as one array, (i, j, k, class), in the order of NIfTI files in memory."""
    if not volumes:
        return None
    result = np.empty((*volumes[0].shape, len(volumes)), np.float32, order="F")
    for number, volume in enumerate(volumes):
        result[..., number] = volume
    return result
