"""Intensities of whole outputs in both formats, against plain definitions in long double."""

from __future__ import annotations

import json

import numpy as np
import pytest
import zarr

from dask_slicer import SliceDataset, open_output

SHAPE = (8, 9, 10)
each_format = pytest.mark.parametrize(
    "form",
    [{"format": "npz"}, {"format": "zarr"}, {"format": "zarr", "dtype": "source"}],
    ids=["npz", "zarr", "zarr source"],
)


def normalised(
    stored: np.ndarray, normalize: str, low: float | None = None, high: float | None = None
) -> np.ndarray:
    """Return a volume as the documentation defines it; a longdouble has 64 bits of digits."""
    volume = stored.astype(np.longdouble)
    volume = volume.clip(-np.inf if low is None else low, np.inf if high is None else high)
    foreground = volume[volume > volume.min()] if volume.max() > volume.min() else volume
    if normalize == "percentile":
        ends = np.percentile(foreground.astype(np.float64), (0.5, 99.5))
        volume, foreground = volume.clip(*ends), foreground.clip(*ends)
    if normalize == "minmax":
        return (volume - volume.min()) / ((volume.max() - volume.min()) or 1)
    if normalize == "none":
        return volume
    std = foreground.std()
    is_constant = std <= np.longdouble("1e-7") * np.abs(foreground).max()
    return (volume - foreground.mean()) / (1 if is_constant else std)


def written(output, case_id: str) -> np.ndarray:
    """Return the normalised volume of an output, ([modality,] i, j, k), from plane k."""
    volume, _ = open_output(output).volume(case_id)
    return np.moveaxis(volume, -3, -1)


@each_format
@pytest.mark.parametrize("normalize", ["zscore", "percentile", "minmax"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e-36, 1e-9, 1.0, 1e9, 1e30], ids=str)
def test_values_of_any_size_are_normalised(
    dataset, slice_dataset, size, dtype, normalize, form
) -> None:
    rng = np.random.default_rng(5)
    organ = rng.normal(3, 0.5, SHAPE)
    stored = (np.where(rng.random(SHAPE) < 0.6, -1.0, organ) * size).astype(dtype)
    dataset.add("case", stored, label=None)
    output = slice_dataset(plane="k", window_size=0, normalize=normalize, **form)
    expected = normalised(stored, normalize).astype(np.float64)
    np.testing.assert_allclose(written(output, "case"), expected, rtol=2e-6, atol=2e-6)
    assert np.ptp(expected) >= 1  # neither flat nor huge


@each_format
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9], ids=str)
def test_a_constant_foreground_of_any_size_is_divided_by_1(
    dataset, slice_dataset, size, dtype, form
) -> None:
    rng = np.random.default_rng(5)
    # Rounding to float32 leaves a spread of 3e-8 of the value.
    noise = 1 + rng.uniform(-3e-8, 3e-8, SHAPE)
    stored = (np.where(rng.random(SHAPE) < 0.5, 0.0, noise) * size).astype(dtype)
    dataset.add("case", stored, label=None)
    output = slice_dataset(plane="k", window_size=0, **form)
    expected = normalised(stored, "zscore").astype(np.float64)
    assert np.abs(expected[stored > 0]).max() <= 1e-6 * size
    np.testing.assert_allclose(written(output, "case"), expected, rtol=2e-6, atol=2e-6 * size)


# -- settings for each modality --------------------------------------------------------------------

TWO = {"clip_min": [None, -50.0], "clip_max": [240.0, None], "normalize": ["zscore", "none"]}


def two_modalities(dataset, n_cases: int = 1) -> list[np.ndarray]:
    """Add cases of two modalities and return the images of the first."""
    rng = np.random.default_rng(8)
    pairs = [[rng.integers(-300, 900, SHAPE, dtype=np.int16) for _ in "ab"] for _ in range(n_cases)]
    for number, images in enumerate(pairs):
        for channel, image in enumerate(images):
            dataset.write(dataset.image_path(f"case_{number}", channel), image, np.eye(4))
    return pairs[0]


@each_format
@pytest.mark.parametrize("normalize", [["zscore", "none"], ["minmax", "percentile"], "zscore"])
def test_each_modality_has_its_own_limits_and_normalisation(
    dataset, slice_dataset, invoke, normalize, form
) -> None:
    images = two_modalities(dataset)
    output = slice_dataset(plane="k", window_size=0, **TWO | form | {"normalize": normalize})
    methods = normalize if isinstance(normalize, list) else [normalize] * 2
    limits = [(None, 240.0), (-50.0, None)]
    volume = written(output, "case_0")
    for image, method, (low, high), found in zip(images, methods, limits, volume, strict=True):
        expected = normalised(image, method, low, high).astype(np.float64)
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)
    item = SliceDataset(output, split="train")[3]["image"]
    np.testing.assert_array_equal(item, volume[..., 3])
    result = invoke("verify", output, "--deep", 5, "--num_workers", 0)
    assert (result.exit_code, "5 of them against their scans" in result.stdout) == (0, True)


@each_format
@pytest.mark.parametrize(
    ("normalize", "expected"),
    [
        (["zscore", "none"], [True, False]),
        (["zscore", "minmax"], True),
        (["none", "none"], False),
        ("none", False),
    ],
)
def test_metadata_say_which_modalities_are_normalised_and_clipped(
    dataset, slice_dataset, normalize, expected, form
) -> None:
    two_modalities(dataset)
    output = slice_dataset(window_size=0, **TWO | form | {"normalize": normalize})
    info = json.loads((output / "dataset_info.json").read_text())
    assert info["normalized"] == expected
    assert info["clip_range"] == [[None, 240.0], [-50.0, None]]
    if form["format"] == "npz":
        with np.load(next(output.rglob("*.npz"))) as arrays:
            metadata = json.loads(str(arrays["metadata"]))
    else:
        metadata = zarr.open_group(output / "slices.zarr", mode="r")["train/case_0"].attrs
    assert metadata["normalized"] == expected
    if form.get("dtype") == "source" and normalize == ["zscore", "none"]:
        assert metadata["clip_range"] == [[None, 240.0], [-50.0, None]]
        assert metadata["scale"][1] == 1


def test_one_value_counts_for_all_modalities_as_before(dataset, slice_dataset) -> None:
    two_modalities(dataset)
    one = slice_dataset(output="one", clip_max=240.0)
    each = slice_dataset(output="each", clip_max=[240.0, 240.0])
    files = sorted(path.relative_to(one) for path in one.rglob("*.npz"))
    assert files
    for file in files:
        assert (one / file).read_bytes() == (each / file).read_bytes()
    assert json.loads((one / "dataset_info.json").read_text())["clip_range"] == [None, 240.0]
    assert "clip_max: 240.0\n" in (one / "config.yaml").read_text()


def test_limits_for_each_modality_come_from_yaml_and_text_and_survive_a_run(
    dataset, tmp_path, invoke
) -> None:
    two_modalities(dataset, n_cases=2)
    output = tmp_path / "slices"
    (tmp_path / "mine.yaml").write_text("clip_max: [240, null]\nnormalize: [zscore, none]\n")
    command = ["run", "-i", dataset.root, "-o", output, "--num_workers", 0]
    assert invoke(*command, "-c", tmp_path / "mine.yaml").exit_code == 0
    for again in (
        ["run", "-c", output / "config.yaml"],
        [*command, "--clip_max", "240, None", "--normalize", "ZScore,none"],
    ):
        result = invoke(*again)
        assert (result.exit_code, "Skipped 2 cases" in result.stdout) == (0, True), result.output
    changed = invoke(*command, "--clip_max", "none,240", "--normalize", "zscore,none")
    assert changed.exit_code == 2
    assert "clip_max was 240.0,none, is now none,240.0" in changed.stderr
    assert invoke("report", output).exit_code == 0
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "(normalisation, zscore,none, undone), after clipping to 240, none." in page
    assert "<td>240.0, none</td>" in page.replace(' class="id changed"', "")
    assert invoke("preview", output).exit_code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--clip_max", "240,none,1"], "clip_max has 3 values (240.0,none,1.0), but a case of"),
        (["--clip_max", "240,none,1"], "2 modalities; give one value for all, or one each"),
        (["--normalize", "none,none,none"], "normalize has 3 values"),
        (["--clip_min", "1,2", "--clip_max", "3,4,5"], "got 2 of clip_min and 3 of clip_max"),
        (["--clip_min", "1,9", "--clip_max", "5"], "clip_min must be less than clip_max, got 9"),
        (["--clip_max", "1,x"], "clip_max must be a valid number"),
        (["--clip_max", "1,inf"], "clip_max must be a finite number, got inf"),
        (["--clip_max", "1,"], "clip_max must be a valid number"),
        (["--normalize", "zscore,min-max"], "got min-max; did you mean minmax?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_settings_that_do_not_fit_the_modalities_are_refused(
    dataset, tmp_path, invoke, command, options, words
) -> None:
    two_modalities(dataset)
    result = invoke(command, "-i", dataset.root, "-o", tmp_path / "slices", *options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (tmp_path / "slices").exists()


def test_none_takes_a_limit_of_a_configuration_away(dataset, tmp_path, invoke) -> None:
    two_modalities(dataset)
    output = tmp_path / "slices"
    command = ["run", "-i", dataset.root, "-o", output, "-c", "ct_abdomen", "--num_workers", 0]
    assert invoke(*command, "--clip_max", "none").exit_code == 0
    info = json.loads((output / "dataset_info.json").read_text())
    assert info["clip_range"] == [-160.0, None]


def test_a_limit_that_does_not_suit_one_modality_is_told(dataset, tmp_path, invoke) -> None:
    two_modalities(dataset)
    directories = ["-i", dataset.root, "-o", tmp_path / "slices", "--clip_max", "none,310"]
    note = "more than half of the bright voxels lie outside clip_max none,310 in 1 case (case_0)"
    assert f"Note: {note}" in invoke("plan", *directories).stdout
    assert f"Note: {note}" in invoke("run", *directories, "--num_workers", 0).stdout
