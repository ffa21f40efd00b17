"""Predictions of the slices of an output, and their assembly."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import dask_slicer
from dask_slicer.assembly.assemble import AssemblyReport
from dask_slicer.output.output import open_output


def run(scans: Path, output: Path, **settings: object) -> Path:
    place = {"num_workers": 0, "dashboard_address": "none", "train_ratio": 1.0}
    settings = {"input_dir": scans, "output_dir": output, **place, **settings}
    report = dask_slicer.run(settings, progress=False)
    assert not report.failures, report.failures
    return output


def predict(output: Path, folder: Path, *, whole: bool = False, suffix: str = ".npy") -> Path:
    """Write the labels of an output as if they were predictions."""
    opened = open_output(output)
    planes = opened.config.planes
    for plane in planes:
        below = folder / plane if len(planes) > 1 else folder
        below.mkdir(parents=True, exist_ok=True)
        for case_id in opened.cases:
            label, _ = opened.label(case_id, plane=plane)
            if whole:
                np.save(below / f"{case_id}.npy", label)
                continue
            kept = [
                slice_index
                for slice_index, case in zip(
                    opened.index.slice_index, opened.index.case, strict=True
                )
                if opened.index.cases[case].case_id == case_id
                and opened.index.cases[case].plane in ("", plane)
            ]
            for index in kept:
                path = below / f"{case_id}_{index:03d}{suffix}"
                if suffix == ".npz":
                    np.savez(path, prediction=label[index].astype(np.int64))
                elif suffix == ".png":
                    from PIL import Image

                    Image.fromarray(label[index].astype(np.uint8)).save(path)
                else:
                    np.save(path, label[index])
    return folder


def assemble(
    output: Path, predictions: object, volumes: Path, **settings: object
) -> AssemblyReport:
    settings = {"num_workers": 0, "dashboard_address": "none"} | settings
    return dask_slicer.assemble(output, predictions, volumes, **settings)
