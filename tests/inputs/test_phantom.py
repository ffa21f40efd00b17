"""Phantoms are reproducible, cover two orientations and an oblique one, and look like a body."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dask_slicer.inputs.phantom import ORGANS, make_phantom, write_dataset


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_dataset(tmp_path / name, n_cases=2, shape=(20, 18, 12))
    files = sorted(path for path in (tmp_path / "one").rglob("*.gz"))
    assert len(files) == 4
    for path in files:
        twin = tmp_path / "other" / path.relative_to(tmp_path / "one")
        assert path.read_bytes() == twin.read_bytes()


def test_a_dataset_has_two_orientations_and_an_oblique_case(tmp_path: Path) -> None:
    write_dataset(tmp_path, n_cases=6, shape=(24, 20, 12))
    affines = [nib.load(path).affine for path in sorted((tmp_path / "imagesTr").iterdir())]
    codes = ["".join(nib.aff2axcodes(affine)) for affine in affines]
    assert set(codes) == {"LPS", "RAS"}
    oblique = [np.count_nonzero(np.abs(affine[:3, :3]) > 1e-6) > 3 for affine in affines]
    assert oblique == [False] * 5 + [True]


def test_every_organ_is_there_and_the_liver_lies_on_the_right() -> None:
    phantom = make_phantom(rng=np.random.default_rng(3))
    assert set(np.unique(phantom.label)) == {0, *ORGANS}
    liver = np.argwhere(phantom.label == 1)
    world = liver @ phantom.affine[:3, :3].T + phantom.affine[:3, 3]
    assert world[:, 0].mean() > 20  # mm to the patient's right of the middle: RAS+


@pytest.mark.parametrize("flip", [0, 1, 2])
def test_a_phantom_is_the_same_body_however_its_axes_run(flip: int) -> None:
    plain = make_phantom((20, 18, 12), directions=np.eye(3), noise=0, rng=np.random.default_rng(1))
    directions = np.eye(3)
    directions[flip, flip] = -1
    flipped = make_phantom((20, 18, 12), directions=directions, noise=0,
                           rng=np.random.default_rng(1))  # fmt: skip
    np.testing.assert_array_equal(np.flip(flipped.label, flip), plain.label)
    np.testing.assert_array_equal(np.flip(flipped.image, flip), plain.image)
