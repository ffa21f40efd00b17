"""Memory of a case is free before the next one is loaded."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import nibabel as nib
import numpy as np
import pytest

import dask_slicer
from dask_slicer.core.volume import Volume, Voxels
from dask_slicer.execution import tasks


@pytest.fixture
def _no_search_for_cycles() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _n_alive() -> int:
    return sum(isinstance(each, Voxels) for each in gc.get_objects())


@pytest.mark.usefixtures("_no_search_for_cycles")
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("settings", [{}, {"format": "png", "window_size": 0}, {"format": "zarr"}])
def test_no_voxels_of_a_case_are_in_memory_when_the_next_is_loaded(
    tmp_path, monkeypatch, settings, fails
) -> None:
    before, alive = _n_alive(), []
    load_volume = tasks.load_volume

    def counted(*args: object, **options: object) -> Volume:
        alive.append(_n_alive() - before)
        return load_volume(*args, **options)

    monkeypatch.setattr(tasks, "load_volume", counted)
    rng = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "scans" / folder).mkdir(parents=True)
    for number in range(3):
        image = rng.normal(size=(6, 5, 4)).astype(np.float32)
        label = np.ones(image.shape, np.uint8)
        if fails:
            image[0, 0, 0] = np.nan
        for path, array in ((f"imagesTr/c{number}_0000", image), (f"labelsTr/c{number}", label)):
            nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "scans" / f"{path}.nii.gz")
    result = dask_slicer.run(
        input_dir=tmp_path / "scans", output_dir=tmp_path / "out", num_workers=0, **settings
    )
    assert len(result.failures) == 3 * fails
    assert alive == [0, 0, 0]
