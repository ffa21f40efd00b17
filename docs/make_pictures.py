"""Make the pictures of the documentation from phantoms: `python docs/make_pictures.py`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

import dask_slicer
from dask_slicer.configfile import build_config
from dask_slicer.phantom import write_dataset

IMAGES = Path(__file__).parent / "images"
PLANES = {"axial": 31, "coronal": 58, "sagittal": 50}


def main() -> None:
    """Slice one phantom dataset in three planes and draw a slice of each, label on top."""
    mpl.use("agg")
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.1), layout="constrained")
    with tempfile.TemporaryDirectory() as folder:
        phantoms = Path(folder) / "phantoms"
        write_dataset(phantoms, n_cases=3, shape=(144, 128, 60), spacing=(2.0, 2.0, 4.0))
        for axis, (plane, slice_index) in zip(axes, PLANES.items(), strict=True):
            config = build_config(
                {
                    "input_dir": phantoms,
                    "output_dir": Path(folder) / plane,
                    "plane": plane,
                    "num_workers": 0,
                },
                base="ct_abdomen",
            )
            dask_slicer.run(config)
            (path,) = config.output_dir.glob(f"*/phantom_001_{slice_index:03d}.npz")
            draw(axis, path, plane)
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / "planes.png", dpi=110)


def draw(axis: plt.Axes, path: Path, plane: str) -> None:
    """Draw the middle channel of a slice, its label over it, pixels as large as they are in mm."""
    with np.load(path) as member:
        image, label = member["image"], member["label"]
        metadata = json.loads(str(member["metadata"]))
    _, row_mm, column_mm = metadata["spacing"]
    axis.imshow(image[len(image) // 2], cmap="gray", aspect=row_mm / column_mm)
    overlay = np.ma.masked_equal(label, 0)
    axis.imshow(
        overlay, cmap="tab10", alpha=0.45, vmin=1, vmax=10, aspect=row_mm / column_mm,
        interpolation="nearest",
    )  # fmt: skip
    axis.set_title(f"{plane}, slice {metadata['slice_index']} of {metadata['total_slices']}")
    axis.set_axis_off()


if __name__ == "__main__":
    main()
