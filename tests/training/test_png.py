"""Slices in PNG files: what SliceDataset, Pillow and OpenCV read, against the scan itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
from slice_formats import FILES

from dask_slicer import SliceDataset, open_output
from dask_slicer.errors import CorruptFile, UsageError
from dask_slicer.output.formats import png

# One grey level of 8 bit, and the error of float32.
HALF_A_LEVEL = 0.5 + 1e-3
LOW, HIGH = -160, 240


@pytest.fixture
def scan(dataset) -> np.ndarray:
    """Return the slices of case a, whose array axis k is the plane; b has no label."""
    rng = np.random.default_rng(3)
    image = rng.integers(-1000, 1000, (9, 7, 6)).astype(np.int16)
    label = rng.choice([0, 0, 0, 1, 5, 200], image.shape).astype(np.uint8)
    dataset.add("a", image, label, np.eye(4))
    dataset.add("b", image[:5], None, np.eye(4))
    return np.moveaxis(image, 2, 0)


SETTINGS = {
    **{"format": "png", "plane": "k", "clip_min": LOW, "clip_max": HIGH, "train_ratio": 1.0},
    "allow_missing_labels": True,
}


def levels(slices: np.ndarray) -> np.ndarray:
    """Return the exact grey level of intensities, not rounded."""
    return (np.clip(slices.astype(np.float64), LOW, HIGH) - LOW) / (HIGH - LOW) * 255


def of_case(sliced: SliceDataset, case_id: str) -> list[dict]:
    return [sample for sample in sliced if sample["case_id"] == case_id]


def test_values_are_those_of_the_scan_within_half_a_level(scan, slice_dataset) -> None:
    samples = of_case(SliceDataset(slice_dataset(**SETTINGS)), "a")
    assert len(samples) == 6
    for sample in samples:
        assert (sample["image"].shape, sample["image"].dtype) == ((1, 9, 7), np.float32)
        wanted = levels(scan[sample["slice_index"]])
        assert np.abs(sample["image"][0] - wanted).max() < HALF_A_LEVEL


def test_labels_are_those_of_npz_and_missing_where_there_is_none(scan, slice_dataset) -> None:
    npz = SETTINGS | {"format": "npz", "normalize": "none"}
    output = slice_dataset(**SETTINGS)
    pairs = zip(SliceDataset(output), SliceDataset(slice_dataset(output="n", **npz)), strict=True)
    for sample, wanted in pairs:
        assert ("label" in sample) == ("label" in wanted) == (sample["case_id"] == "a")
        if "label" in wanted:
            assert sample["label"].dtype == wanted["label"].dtype
            np.testing.assert_array_equal(sample["label"], wanted["label"])
    assert not list(output.glob("masks/*/b_*"))
    assert json.loads((output / "metadata/train/b.json").read_text())["shape"]["label"] is None


@pytest.mark.parametrize("padding_mode", ["zero", "replicate", "mirror"])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_window_of_one_is_rgb_and_its_middle_the_slice(
    scan, slice_dataset, padding_mode, bits
) -> None:
    chosen = SETTINGS if bits == 8 else {**SETTINGS, "clip_min": None, "clip_max": None}
    chosen = chosen | {"bits": bits}
    alone = {
        (sample["case_id"], sample["slice_index"]): sample["image"]
        for sample in SliceDataset(slice_dataset(**chosen))
    }
    output = slice_dataset(output="rgb", window_size=1, padding_mode=padding_mode, **chosen)
    whole = SliceDataset(output)
    center = SliceDataset(output, channels="center")
    for sample, middle in zip(whole, center, strict=True):
        case_id, index = sample["case_id"], sample["slice_index"]
        np.testing.assert_array_equal(middle["image"], alone[case_id, index])
        before, own, after = sample["image"]
        np.testing.assert_array_equal(own, alone[case_id, index][0])
        for plane, number in ((before, index - 1), (after, index + 1)):
            if (case_id, number) in alone:
                np.testing.assert_array_equal(plane, alone[case_id, number][0])
            elif padding_mode == "replicate":
                np.testing.assert_array_equal(plane, own)
            elif padding_mode == "mirror":
                other = alone[case_id, 2 * index - number]
                np.testing.assert_array_equal(plane, other[0])
    with pytest.raises(UsageError, match="was written with --window_size 1"):
        SliceDataset(output, window_size=2)


def test_16_bit_come_back_as_the_integers_of_the_file(scan, slice_dataset) -> None:
    chosen = {**SETTINGS, "clip_min": None, "clip_max": None, "bits": 16}
    for sample in of_case(SliceDataset(slice_dataset(**chosen)), "a"):
        np.testing.assert_array_equal(sample["image"][0], scan[sample["slice_index"]])


def test_a_volume_is_its_slices(scan, slice_dataset) -> None:
    output = slice_dataset(**SETTINGS)
    image, _ = open_output(output).volume("a")
    samples = of_case(SliceDataset(output), "a")
    np.testing.assert_array_equal(image, np.stack([s["image"][0] for s in samples]))
    label, _ = open_output(output).label("a")
    assert sorted({*label.ravel()} - {0}) == [1, 5, 200]


@pytest.mark.parametrize("kind", ["images/train/a_002.png", "masks/train/a_002.png"])
@pytest.mark.parametrize("damage", ["cut", "missing", "another size"])
def test_a_damaged_file_is_named(scan, slice_dataset, kind, damage) -> None:
    output = slice_dataset(**SETTINGS)
    path = output / kind
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes((output / "images/train/b_000.png").read_bytes())
    with pytest.raises((CorruptFile, FileNotFoundError), match=r"a_002\.png"):
        SliceDataset(output)[2]


def test_a_layout_of_another_project_is_refused_with_the_formats_that_are_read(
    scan, slice_dataset
) -> None:
    output = slice_dataset(**FILES, train_ratio=1.0, allow_missing_labels=True)
    with pytest.raises(UsageError, match="make an output with --format npz, zarr or png"):
        SliceDataset(output)[0]


# -- other readers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["PIL.Image", "cv2"])
@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"window_size": 1},
        {"bits": 16},
        {"bits": 16, "window_size": 1},
        {"label_dtype": "uint16"},
        {"ct_windows": "lung,bone,brain", "clip_min": None, "clip_max": None},
        {"compression_level": 0},
        {"compression_level": 9},
    ],
    ids=str,
)
def test_other_libraries_read_the_same_pixels(scan, slice_dataset, library, chosen) -> None:
    module = pytest.importorskip(library)
    settings = SETTINGS | chosen
    if chosen.get("bits") == 16:
        settings |= {"clip_min": None, "clip_max": None}
    paths = sorted(slice_dataset(**settings).glob("*/train/*.png"))
    assert len(paths) == 2 * 6 + 6
    for path in paths:
        expected = png.decode(path.read_bytes())
        if library == "cv2":
            found = module.imread(str(path), module.IMREAD_UNCHANGED)
            found = found[..., ::-1] if found.ndim == 3 else found  # it has BGR
        else:
            with module.open(path) as image:
                image.load()
                assert "transparency" not in image.info
                if expected.ndim == 3 and expected.dtype == np.uint16:
                    continue  # Pillow has no RGB of 16 bit
                assert image.mode in ("L", "RGB", "I;16")
                found = np.asarray(image)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
