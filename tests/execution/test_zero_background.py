"""A background that stays 0 when intensities are normalised, from a scan to the report."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import dask_slicer
from dask_slicer.config.loader import build_config
from dask_slicer.errors import ConfigError
from dask_slicer.report.html_report import write_report

PLACE = {"num_workers": 0, "dashboard_address": "none", "plane": "k", "window_size": 0}
WHERE = {"input_dir": "scans", "output_dir": "slices"}


@pytest.fixture
def scan(dataset) -> np.ndarray:
    rng = np.random.default_rng(6)
    image = np.zeros((8, 9, 10), np.int16)
    image[2:7, 2:7, 1:9] = rng.integers(-20, 300, size=(5, 5, 8))
    dataset.add("a", image)
    return np.asarray(nib.load(dataset.image_path("a")).dataobj)


def read(output: Path) -> np.ndarray:
    """Return the image of the only case, with the axes of its file."""
    return np.asarray(dask_slicer.open_output(output).volume("a")[0]).squeeze().transpose(1, 2, 0)


@pytest.mark.parametrize("foreground", ["nonzero", "positive"])
def test_background_is_0_in_the_output(dataset, tmp_path, scan, foreground) -> None:
    settings = {"input_dir": dataset.root, "foreground": foreground, **PLACE}
    for is_on in (True, False):
        output = tmp_path / str(is_on)
        report = dask_slicer.run(settings, output_dir=output, zero_background=is_on, progress=False)
        assert not report.failures
        inside = scan > 0 if foreground == "positive" else scan != 0
        values = scan.astype(np.longdouble)
        expected = (values - values[inside].mean()) / values[inside].std()
        expected = np.where(inside, expected, 0) if is_on else expected
        np.testing.assert_allclose(read(output), expected.astype(float), atol=1e-5)
        text = write_report(output, say=lambda _: None).read_text()
        assert ("in the units of the scans" in text) is not is_on
        assert ("as they are stored, normalised (zscore)." in text) is is_on


def test_only_a_changed_setting_is_in_the_digest(dataset, scan) -> None:
    del scan
    digests = [
        dask_slicer.plan(input_dir=dataset.root, **settings).cases[0].digest
        for settings in ({}, {"zero_background": False}, {"zero_background": True})
    ]
    assert digests[0] == digests[1] != digests[2]


def test_the_plan_has_a_line(dataset, scan, invoke) -> None:
    del scan
    options = ("--input_dir", dataset.root, "--foreground", "nonzero", "--zero_background")
    line = "voxels outside the foreground are 0 after the normalisation"
    assert line in invoke("plan", *options).stdout
    text = invoke("plan", *options, "--normalize", "minmax").stdout
    assert line not in text
    assert "--zero_background" in text


def test_integers_of_the_file_cannot_have_it() -> None:
    settings = {"dtype": "source", "format": "zarr", "foreground": "nonzero"}
    build_config(WHERE | settings)
    with pytest.raises(ConfigError, match="zero_background changes them"):
        build_config(WHERE | settings | {"zero_background": True})
