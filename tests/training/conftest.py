"""Outputs that tests of training read, each sliced once."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from affines import oblique

import dask_slicer

# What there is to read, by name.
STORES: dict[str, dict[str, Any]] = {
    "npz": {},
    "npz of float16": {"dtype": "float16"},
    "zarr": {"format": "zarr"},
    "zarr of float16": {"format": "zarr", "dtype": "float16"},
    "zarr as stored": {"format": "zarr", "dtype": "source"},
    "png": {"format": "png", "window_size": 1},
    "png of 16 bit": {"format": "png", "bits": 16, "offset": 2000, "window_size": 0},
}


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Callable[..., Path]:
    """Return a function that slices cases a and b, of 8 × 9 × 10, as `STORES` says.

    The same settings give the same output: it is to be read only.
    """
    folder = tmp_path_factory.mktemp("training")
    rng = np.random.default_rng(0)
    for case_id in ("a", "b"):
        for name, array in (
            (f"imagesTr/{case_id}_0000", rng.integers(-1000, 1000, (8, 9, 10)).astype(np.int16)),
            (f"labelsTr/{case_id}", (rng.random((8, 9, 10)) > 0.7).astype(np.uint8)),
        ):
            path = folder / "scans" / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, oblique()), path)
    outputs: dict[str, Path] = {}

    def sliced(name: str, **settings: Any) -> Path:
        settings = {"train_ratio": 1.0, "window_size": 2} | STORES[name] | settings
        if str(settings) not in outputs:
            path = outputs[str(settings)] = folder / f"output_{len(outputs)}"
            config = dask_slicer.RunConfig(
                input_dir=folder / "scans", output_dir=path, num_workers=0, **settings
            )
            with contextlib.redirect_stdout(io.StringIO()):
                dask_slicer.run(config)
        return outputs[str(settings)]

    return sliced


@pytest.fixture
def without_torch(monkeypatch) -> None:
    """Let torch count as not imported, whatever other tests have imported."""
    for name in ("torch", "torch.utils.data"):
        monkeypatch.delitem(sys.modules, name, raising=False)
