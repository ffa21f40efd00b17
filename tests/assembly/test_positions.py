"""Positions: probabilities that grow evenly along x, y and z come back as they were."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from affines import oblique
from predicted import assemble, run

from dask_slicer.output.output import open_output

SHAPE = (30, 26, 14)
# Per mm; the volume is at most 140 mm long.
GROWTH = np.array([0.0021, -0.0017, 0.0013])


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    affine = oblique(12.0, (1, 1, 1)) @ np.array(
        [[0, -3, 0, 7], [-4, 0, 0, 5], [0, 0, 6, -9], [0, 0, 0, 1]]
    )
    label = np.zeros(SHAPE, np.uint8)
    label[4:22, 5:20, 3:11] = 1
    noise = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    for name, voxels in (("imagesTr/c_0000", noise), ("labelsTr/c", label)):
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir()
        nib.save(nib.Nifti1Image(voxels, affine), path)
    return folder


def positions(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


@pytest.mark.parametrize(
    ("planes", "steps"),
    [
        (("axial",), {"spacing": "none,2,5"}),
        (("axial",), {"spacing": "4,5,2", "size": "64"}),
        (("coronal",), {"spacing": "5,none,2", "size": "20,22"}),
        (("axial",), {"size": "56", "fit": "letterbox"}),
        (("sagittal",), {"size": "19,61", "fit": "resize"}),
        (("axial",), {"crop": "3:27,2:25,1:13", "spacing": "4,4,2", "size": "40", "fit": "resize"}),
        (("k",), {"crop": "label", "crop_margin": 5.0, "size": "16", "slices": "1:-1"}),
        (("axial", "coronal"), {"spacing": "3.3,3.3,3.3", "size": "40"}),
        (("axial", "sagittal"), {"min_foreground": 0.01, "crop": "3:27,2:25,1:13"}),
        (("axial", "i"), {"min_foreground": 0.01, "spacing": "4,4,4"}),
    ],
)
def test_probabilities_are_where_they_were(scans, tmp_path, planes, steps) -> None:
    output = run(scans, tmp_path / "out", window_size=0, plane=planes, **steps)
    scan = nib.load(scans / "imagesTr" / "c_0000.nii.gz")
    middle = positions(SHAPE, scan.affine).mean(axis=(0, 1, 2))
    # Some plane has slices on all sides of these voxels, and no plane has some of them only.
    exact, vague = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    for plane in planes:
        label, affine = open_output(output).label("c", plane=plane)
        where = positions(label.shape, affine)
        share = np.clip(0.5 + (where - middle) @ GROWTH, 0, 1, dtype=np.float32)
        (tmp_path / "p" / plane).mkdir(parents=True)
        kept = [index for index, pixels in enumerate(label) if pixels.min() >= 0]
        for index in kept:
            np.save(tmp_path / "p" / plane / f"c_{index}.npy", share[index])
        at = positions(SHAPE, np.linalg.inv(affine) @ scan.affine)
        inside, near = (
            ((at >= margin) & (at <= np.array(label.shape) - 1 - margin)).all(axis=-1)
            for margin in (1, -1)
        )
        neighbours = np.isin([np.floor(at[..., 0] + 1e-6), np.ceil(at[..., 0] - 1e-6)], kept)
        exact |= (here := inside & neighbours.all(axis=0))
        vague |= near & neighbours.any(axis=0) & ~here
    known = np.zeros(SHAPE, bool)
    known[2:-2, 2:-2, 2:-2] = (exact & ~vague)[2:-2, 2:-2, 2:-2]
    settings = {"kind": "probabilities", "threshold": 0.5, "keep_probabilities": True}
    report = assemble(output, tmp_path / "p", tmp_path / "v", fill=7, **settings)
    assert not report.failures, report.failures
    restored = nib.load(tmp_path / "v" / "c_probabilities.nii.gz").get_fdata()[..., 0]
    expected = 0.5 + (positions(SHAPE, scan.affine) - middle) @ GROWTH
    assert known.mean() > 0.08
    assert 0 < expected.min() < expected.max() < 1
    np.testing.assert_allclose(restored[known], expected[known], atol=1e-5)
    volume = np.asarray(nib.load(tmp_path / "v" / "c.nii.gz").dataobj)
    np.testing.assert_array_equal(volume == 1, (restored >= 0.5) & (volume != 7))
    np.testing.assert_array_equal(restored[volume == 7], 0)
    assert not (volume == 7)[known].any()
