"""The made-up scans that benchmarks slice."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from dask_slicer.inputs.phantom import write_dataset

# Noise with which CT of a patient deflates: about 2.3 : 1.
_NOISE_HU = 11.0


def ct(
    work: Path, n_cases: int, shape: tuple[int, int, int], *, distinct: int | None = None
) -> Path:
    """Return a folder of CT phantoms; beyond `distinct` of them, they are links to others."""
    folder = work / f"scans_{n_cases}_{'x'.join(map(str, shape))}"
    if folder.exists():
        return folder
    unfinished = folder.with_suffix(".unfinished")
    made = min(distinct or n_cases, n_cases)
    write_dataset(
        unfinished, n_cases=made, shape=shape, spacing=(0.8, 0.8, 5.0), noise=_NOISE_HU,
        varied=False,
    )  # fmt: skip
    for number in range(made, n_cases):
        for kind, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
            source = unfinished / kind / f"phantom_{number % made:03d}{ending}"
            (unfinished / kind / f"phantom_{number:05d}{ending}").hardlink_to(source)
    unfinished.rename(folder)
    return folder


def write_statistics(scans: Path) -> None:
    """Write mean and std of every case's foreground, which `limit.py` looks up."""
    path = scans / "statistics.json"
    if path.exists():
        return
    found = {}
    for image in sorted((scans / "imagesTr").iterdir()):
        values = np.asarray(nib.load(image).dataobj, dtype=np.float64)
        values = values[values > values.min()]
        found[image.name.removesuffix("_0000.nii.gz")] = [values.mean(), values.std()]
    path.write_text(json.dumps(found, indent=1), encoding="utf-8")
