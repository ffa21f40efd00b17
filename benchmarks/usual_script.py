"""The script that people write: what dask_slicer is measured against.

A process pool; `get_fdata`, so float64 until a window is saved; a z-score through a boolean mask;
every window stacked; `np.savez_compressed`. Gives the arrays that `dask-slicer run` gives with its
defaults, for axial volumes stored as LPS:

    python benchmarks/usual_script.py scans out --num_workers 2
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np


def slice_case(image_path: Path, out: Path, window_size: int, compressed: bool) -> int:
    """Write the slices of one case; return how many."""
    case_id = image_path.name.removesuffix("_0000.nii.gz")
    image = nib.load(image_path)
    volume = image.get_fdata()
    label_path = image_path.parents[1] / "labelsTr" / f"{case_id}.nii.gz"
    label = nib.load(label_path).get_fdata()

    mask = volume > volume.min()
    mean, std = volume[mask].mean(), volume[mask].std()
    volume = (volume - mean) / std

    save = np.savez_compressed if compressed else np.savez
    n_slices = volume.shape[2]
    for index in range(n_slices):
        window = [
            volume[:, :, min(max(index + offset, 0), n_slices - 1)].T
            for offset in range(-window_size, window_size + 1)
        ]
        metadata = {
            "source_file": f"imagesTr/{image_path.name}",
            "slice_index": index,
            "total_slices": n_slices,
            "window_size": window_size,
            "norm_stats": {"mean": float(mean), "std": float(std)},
            "affine": image.affine.tolist(),
        }
        save(
            out / f"{case_id}_{index:03d}.npz",
            image=np.stack(window).astype(np.float32),
            label=label[:, :, index].T.astype(np.uint8),
            metadata=json.dumps(metadata),
        )
    return n_slices


def main(*, compressed: bool = True) -> None:
    """Slice every case of an nnU-Net dataset."""
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
        compressed=compressed,
    )
    with ProcessPoolExecutor(options.num_workers) as pool:
        sum(pool.map(work, images))


if __name__ == "__main__":
    main()
