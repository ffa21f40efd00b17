"""Seconds and memory of resampling a CT to 1 mm on one thread: ours, SciPy's and SimpleITK's.

python benchmarks/resampling.py IMAGE.npy METHOD RESULT.npy     one of them, once
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from dask_slicer.core.steps.resampling import resample_image, resampled_shape
from dask_slicer.execution.benchmark import peak_rss
from dask_slicer.inputs.phantom import make_phantom

_SPACING, _TARGET = (2.5, 0.8, 0.8), (1.0, 1.0, 1.0)
_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
}
_Image = NDArray[np.float32]


def resampling(
    work: Path, *, shape: tuple[int, int, int], repeats: int, before: Callable[[], None]
) -> dict[str, Any]:
    """Return CPU seconds, memory and ratios of the three, each in a process of its own.

    They run in turn, A B C A B C …; the ratio is the median of those of a turn.

    Parameters
    ----------
    work : Path
    shape : tuple of int
        Slices, rows and columns of the CT phantom, of 2.5 × 0.8 × 0.8 mm.
    repeats : int
    before : callable
        Called before every turn.
    """
    image = work / f"resampling_{'x'.join(map(str, shape))}.npy"
    if not image.exists():
        phantom = make_phantom(shape[::-1], spacing=_SPACING[::-1], rng=np.random.default_rng(0))
        np.save(image, np.ascontiguousarray(phantom.image.T, dtype=np.float32))
    turns = []
    for _ in range(repeats):
        before()
        turns.append({method: _measured(image, method) for method in _METHODS})
        print(turns[-1], file=sys.stderr, flush=True)
    scipy, ours = (np.load(_result(image, method)) for method in ("scipy", "ours"))
    values = np.load(image)
    low, high = values.min(), values.max()
    difference = np.abs(scipy.clip(low, high) - ours).max() / (high - low)

    def median(figure: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(map(figure, turns))

    return {
        "shape": list(shape),
        "repeats": repeats,
        "cpu_seconds": {name: median(lambda turn, n=name: turn[n]["cpu"]) for name in _METHODS},
        "times_ours": {
            name: median(lambda turn, n=name: turn[n]["cpu"] / turn["ours"]["cpu"])
            for name in _METHODS
        },
        "mb_beside_input_and_output": {
            name: median(lambda turn, n=name: turn[n]["beside_mb"]) for name in _METHODS
        },
        "largest_difference_from_scipy": float(difference),
    }


def _result(image: Path, method: str) -> Path:
    return image.with_name(f"{image.stem}_{method}.npy")


def _measured(image: Path, method: str) -> dict[str, float]:
    command = [sys.executable, __file__, str(image), method, str(_result(image, method))]
    shown = subprocess.run(
        command, env=os.environ | _ONE_THREAD, check=True, capture_output=True, text=True
    )
    return dict(json.loads(shown.stdout))


def _ours(image: _Image, shape: tuple[int, ...]) -> Callable[[], _Image]:
    return lambda: resample_image(image, shape, order=3)


def _scipy(image: _Image, shape: tuple[int, ...]) -> Callable[[], _Image]:
    from scipy import ndimage

    factors = [new / old for new, old in zip(shape, image.shape, strict=True)]
    return lambda: ndimage.zoom(image, factors, order=3, mode="nearest", grid_mode=True)


def _simpleitk(image: _Image, shape: tuple[int, ...]) -> Callable[[], _Image]:
    import SimpleITK as sitk

    steps = [old / new for new, old in zip(shape, image.shape, strict=True)][::-1]
    resample = sitk.ResampleImageFilter()
    resample.SetInterpolator(sitk.sitkBSpline)
    resample.SetSize(shape[::-1])
    resample.SetOutputSpacing(steps)
    resample.SetOutputOrigin([(step - 1) / 2 for step in steps])
    resample.SetNumberOfThreads(1)
    source = sitk.GetImageFromArray(image)
    return lambda: sitk.GetArrayFromImage(resample.Execute(source))


_METHODS = {"ours": _ours, "scipy": _scipy, "SimpleITK": _simpleitk}


def main() -> None:
    """Resample once, and print what it took."""
    path, method, result = sys.argv[1:]
    image = np.load(path)
    compute = _METHODS[method](image, resampled_shape(image.shape, _SPACING, _TARGET))
    process = psutil.Process()
    resident = process.memory_info().rss
    started = time.process_time()
    resampled = compute()
    cpu = time.process_time() - started
    beside = peak_rss(process) - resident - resampled.nbytes
    np.save(result, resampled)
    print(json.dumps({"cpu": cpu, "beside_mb": beside / 1e6}))


if __name__ == "__main__":
    main()
