"""The least that has to be done: inflate the input, deflate each plane once, write the bytes.

No statistics (mean and std are looked up in scans/statistics.json), no geometry, no checks, no
Dask: only what the output's bytes need. Each file gets the planes that `dask-slicer run` writes,
without what makes a zip archive of them, and without padding at both ends (1.5 % of the bytes).

    python benchmarks/limit.py scans out --num_workers 2
"""

from __future__ import annotations

import argparse
import json
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import deflate
import numpy as np
from isal import isal_zlib

_HEADER = 352


def slice_case(
    image_path: Path, out: Path, window_size: int, statistics: dict[str, list[float]]
) -> int:
    """Write the bytes of one case; return how many planes."""
    case_id = image_path.name.removesuffix("_0000.nii.gz")
    stored, shape = _inflate(image_path)
    volume = stored.view(np.int16).reshape(shape[::-1])
    label_path = image_path.parents[1] / "labelsTr" / f"{case_id}.nii.gz"
    label = _inflate(label_path)[0].reshape(shape[::-1])
    mean, std = map(np.float32, statistics[case_id])
    n_slices = len(volume)
    window: deque[bytes] = deque(maxlen=2 * window_size + 1)
    for index in range(-window_size, n_slices):
        ahead = index + window_size
        if ahead < n_slices:
            plane = volume[ahead].astype(np.float32)
            plane -= mean
            plane /= std
            window.append(_deflate(plane))
        if index >= 0:
            with open(out / f"{case_id}_{index:03d}.npz", "wb") as file:
                file.write(b"".join([*window, _deflate(label[index])]))
    return n_slices


def _inflate(path: Path) -> tuple[np.ndarray, tuple[int, ...]]:
    compressed = path.read_bytes()
    size = int.from_bytes(compressed[-4:], "little")
    inflated = deflate.gzip_decompress(compressed, size)
    shape = tuple(np.frombuffer(inflated, "<i2", count=3, offset=42).tolist())
    return np.frombuffer(inflated, np.uint8, offset=_HEADER), shape


def _deflate(plane: np.ndarray) -> bytes:
    compressor = isal_zlib.compressobj(1, isal_zlib.DEFLATED, -15)
    return compressor.compress(plane.data) + compressor.flush(isal_zlib.Z_FULL_FLUSH)


def main() -> None:
    """Write the bytes for every case of an nnU-Net dataset."""
    parser = argparse.ArgumentParser()
    parser.add_argument("input_dir", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--window_size", type=int, default=2)
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    images = sorted((options.input_dir / "imagesTr").glob("*_0000.nii.gz"))
    work = partial(
        slice_case,
        out=options.output_dir,
        window_size=options.window_size,
        statistics=json.loads((options.input_dir / "statistics.json").read_text()),
    )
    with ProcessPoolExecutor(options.num_workers) as pool:
        sum(pool.map(work, images))


if __name__ == "__main__":
    main()
