"""Size of PNG files against Pillow's, and CPU time of a slice against that as `.npz`."""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from datasets import ct
from numpy.typing import NDArray
from PIL import Image

from dask_slicer.config.schema import SliceSettings
from dask_slicer.core.slices import SliceStack, slice_volume
from dask_slicer.core.volume import Volume, Voxels
from dask_slicer.inputs.case import Case
from dask_slicer.output.formats.files import write_files
from dask_slicer.output.formats.npz import write_slices
from dask_slicer.output.formats.png import decode, encode
from dask_slicer.planning.names import NO_NAMES
from dask_slicer.planning.plan import CasePlan

_Plane = NDArray[np.uint8 | np.uint16]
_LEVEL = SliceSettings().compression_level
# Limits of intensity for 8 bit, in HU.
_LOW, _HIGH = -160, 240
# What 16 bit adds to signed intensities, all of which it holds.
_OFFSET = 32768
_NPZ_WITH_THE_SAME_VALUES = {
    "8 bit": "npz, clipped",
    "16 bit": "npz",
    "Pillow, 8 bit": "npz, clipped",
}


def png(
    work: Path, *, shape: tuple[int, int, int], repeats: int, before: Callable[[], None]
) -> dict[str, Any]:
    """Return sizes as ratios to Pillow's, and CPU time, of what a CT becomes.

    Formats run in turn, A B C A B C …, in one process; a ratio is the median of those of a turn.

    Parameters
    ----------
    work : Path
    shape : tuple of int
        Columns, rows and slices of the CT phantom.
    repeats : int
    before : callable
        Called before every turn.
    """
    image, label = _volumes(ct(work, 1, shape))
    volume = Volume(image=(Voxels(stored=image),), label=Voxels(stored=label), affine=np.eye(4))
    of_kind = {
        "8 bit": list(_planes(slice_volume(volume, dtype="uint8", clip_min=_LOW, clip_max=_HIGH))),
        "16 bit": list(_offset(image)),
        "mask": list(label),
    }
    windows = np.lib.stride_tricks.sliding_window_view(np.stack(of_kind["8 bit"]), 3, axis=0)
    of_kind["RGB, 8 bit"] = list(windows)
    writers = _writers(volume, label)
    shutil.rmtree(work / "png", ignore_errors=True)
    turns = []
    for number in range(repeats):
        before()
        folder = work / "png" / str(number)  # deleting would slow down the next files
        turns.append({name: _cpu(write, folder / name) for name, write in writers.items()})
        print(turns[-1], file=sys.stderr, flush=True)
    shutil.rmtree(work / "png")
    return {
        "shape": list(shape),
        "repeats": repeats,
        "size_of_pillow": {
            kind: sum(len(encode(plane, level=_LEVEL)) for plane in planes)
            / sum(len(_pillow(plane)) for plane in planes)
            for kind, planes in of_kind.items()
        },
        "milliseconds_a_slice": {
            name: 1e3 * statistics.median(turn[name] for turn in turns) / len(image)
            for name in writers
        },
        "times_npz": {
            name: statistics.median(turn[name] / turn[npz] for turn in turns)
            for name, npz in _NPZ_WITH_THE_SAME_VALUES.items()
        },
        "milliseconds_to_read": {
            kind: 1e3 * _fastest(decode, encode(planes[len(planes) // 2], level=_LEVEL), repeats)
            for kind, planes in of_kind.items()
        },
    }


def _volumes(scans: Path) -> tuple[NDArray[np.integer], NDArray[np.uint8]]:
    """Return image and label, slices first."""
    image, label = (
        np.ascontiguousarray(np.asanyarray(nib.load(next(scans.glob(kind))).dataobj).T)
        for kind in ("imagesTr/*", "labelsTr/*")
    )
    return image, label.astype(np.uint8)


def _planes(stack: SliceStack) -> Iterator[_Plane]:
    for _, (plane,) in stack.planes(stack.kept):
        yield plane.astype(np.uint8)


def _offset(image: NDArray[np.integer]) -> Iterator[_Plane]:
    for plane in image:
        yield (plane.astype(np.int32) + _OFFSET).astype(np.uint16)


def _writers(volume: Volume, label: NDArray[np.uint8]) -> dict[str, Callable[[Path], object]]:
    """Return what normalises, encodes and writes all slices with their masks, by format."""
    case = CasePlan(case=Case(case_id="ct", images=("ct",)), split="train", sources=("ct",))
    limits = {"clip_min": _LOW, "clip_max": _HIGH}
    eight = slice_volume(volume, dtype="uint8", **limits)
    offset = slice_volume(volume, offset=_OFFSET, dtype="uint16")
    clipped, whole = slice_volume(volume, **limits), slice_volume(volume)

    def npz(stack: SliceStack) -> Callable[[Path], object]:
        settings = SliceSettings(window_size=0)
        return lambda folder: write_slices(stack, case, settings, folder, fsync=False)

    def ours(stack: SliceStack, **settings: Any) -> Callable[[Path], object]:
        of_png = SliceSettings(format="png", **settings)
        return lambda folder: write_files(
            stack, case, of_png, folder, names=NO_NAMES, fsync=False, section="train"
        )

    def pillow(folder: Path) -> None:
        for number, plane in enumerate(_planes(eight)):
            for kind, pixels in (("image", plane), ("mask", label[number])):
                (folder / f"{kind}_{number}.png").write_bytes(_pillow(pixels))

    return {
        "npz, clipped": npz(clipped),
        "8 bit": ours(eight, **limits),
        "npz": npz(whole),
        "16 bit": ours(offset, bits=16, offset=_OFFSET),
        "Pillow, 8 bit": pillow,
    }


def _cpu(write: Callable[[Path], object], folder: Path) -> float:
    """Return the CPU seconds of writing into a new folder."""
    folder.mkdir(parents=True)
    started = time.process_time()
    write(folder)
    return time.process_time() - started


def _fastest(function: Callable[[bytes], object], data: bytes, repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        function(data)
        taken.append(time.process_time() - started)
    return min(taken)


def _pillow(plane: _Plane) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(plane)).save(buffer, "png")
    return buffer.getvalue()
