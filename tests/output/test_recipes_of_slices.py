"""The recipes avte, transunet_synapse and acdc_h5: read as their projects do, and every voxel.

Readers here do what the class of a project does that is named in their docstring. Expected arrays
are computed from the scans with nibabel, SimpleITK and numpy, in float64.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from dask_slicer import SliceDataset
from dask_slicer.inputs.phantom import write_dataset

h5py = pytest.importorskip("h5py")

# Image and label by case id.
Scans = Mapping[str, tuple[Path, Path]]
# Image and label of a slice or of a volume.
Arrays = tuple[np.ndarray, np.ndarray]
MR = ("mr_abdomen_totalseg", "mr_brain1_pyradiomics", "mr_spine_t2_sct", "mr_spine_t2s_sct")
CT = ("ct_chest_lung1_pyradiomics", "ct_sts001_ibsi", "ct_torso_3mm_totalseg")
SMALL = ("ct_torso_sm_totalseg", "mr_abdomen_totalseg", "mr_spine_t2_sct", "pet_sts001_ibsi")
REAL = {"avte": SMALL, "transunet_synapse": (*CT, "ct_torso_sm_totalseg"), "acdc_h5": MR}
IDS = {
    "avte": "case_{:d}",
    "transunet_synapse": "case{:04d}",
    "acdc_h5": "patient{:03d}_frame01",
}
on_phantoms_and_real_scans = pytest.mark.parametrize("scans", ["phantoms", "real"], indirect=True)


@pytest.fixture
def recipe(request: pytest.FixtureRequest) -> str:
    """Return the recipe that a test is named after."""
    return next(name for name in IDS if f"_{name}_" in request.node.name)


@pytest.fixture
def scans(request, tmp_path: Path, recipe: str) -> Scans:
    """Return ten phantoms, or some real scans, with case ids as the recipe's project has them."""
    if request.param == "real":
        folder = request.getfixturevalue("real_scans")
        pairs = [
            (folder / name / "image.nii.gz", folder / name / "label.nii.gz")
            for name in REAL[recipe]
        ]
    else:
        folder = tmp_path / "phantoms"
        write_dataset(folder, n_cases=10, shape=(14, 12, 9))
        paths = (sorted((folder / name).iterdir()) for name in ("imagesTr", "labelsTr"))
        pairs = list(zip(*paths, strict=True))
    return {IDS[recipe].format(number): pair for number, pair in enumerate(pairs, start=1)}


@pytest.fixture
def output(scans: Scans, tmp_path: Path, recipe: str, invoke: Callable) -> Path:
    """Return the output of the recipe for the scans."""
    manifest, folder = tmp_path / "cases.csv", tmp_path / "slices"
    with manifest.open("w", newline="") as file:
        writer = csv.writer(file)
        rows = ([case_id, image, label] for case_id, (image, label) in scans.items())
        writer.writerows([["case_id", "image", "label"], *rows])
    result = invoke(
        *("run", "--config", recipe, "--input_dir", manifest, "--output_dir", folder),
        *("--num_workers", 0),
    )
    assert result.exit_code == 0, result.output
    assert invoke("verify", folder, "--num_workers", 0).exit_code == 0
    return folder


def splits_of(output: Path) -> dict[str, list[str]]:
    return json.loads((output / "splits.json").read_text())


def names_in(path: Path) -> list[str]:
    """Return the lines of a list; loaders take a blank line for a name, and keep a CR."""
    text = path.read_bytes().decode()
    assert "\r" not in text
    assert not text or text.endswith("\n")
    names = text.splitlines()
    assert all(names)
    return names


def read_npz(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return file["image"], file["label"]


def read_h5(path: Path) -> Arrays:
    with h5py.File(path, "r") as file:
        assert {dataset.compression for dataset in file.values()} == {"gzip"}
        return file["image"][:], file["label"][:]


def z_y_x(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path), sitk.sitkFloat64))


def unit_range(volume: np.ndarray) -> np.ndarray:
    return (volume - volume.min()) / (volume.max() - volume.min())


def assert_same(found: Arrays, image: np.ndarray, label: np.ndarray, *, tolerance: float) -> None:
    assert [array.dtype for array in found] == [np.float32, np.uint8]
    np.testing.assert_allclose(found[0], image, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(found[1], label)


# -- avte ------------------------------------------------------------------------------------------


def avte_slices(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """Return split → case → paths, as AVTE2DDataset of Node-MedicalImaging-Framework has them.

    It reads all .npz files of one folder, without folders in it. What follows the last _ of a name
    is the slice, what comes before is the case. It divides the cases itself, 0.8 and 0.1 of them
    for train and val, and refuses a split without a case.
    """
    cases = {
        case: list(paths)
        for case, paths in groupby(
            sorted(folder.glob("*.npz")), lambda path: "_".join(path.stem.split("_")[:-1])
        )
    }
    names = sorted(cases)
    order = np.random.RandomState(42).permutation(len(names))  # as the loader
    n_train, n_val = int(len(names) * 0.8), int(len(names) * 0.1)
    parts = np.split(order, [n_train, n_train + n_val])
    return {
        split: {names[number]: cases[names[number]] for number in part}
        for split, part in zip(("train", "val", "test"), parts, strict=True)
    }


def avte_arrays(image: Path, label: Path) -> Iterator[Arrays]:
    """Yield the slices of a scan as its documents and its script have them."""
    volume = nib.load(image).get_fdata()
    foreground = volume[volume > volume.min()]
    volume = (volume - foreground.mean()) / foreground.std()
    labels = np.asarray(nib.load(label).dataobj)
    last = len(volume) - 1
    for index in range(len(volume)):
        window = [min(max(index + offset, 0), last) for offset in (-2, -1, 0, 1, 2)]
        yield np.stack([volume[i] for i in window]), labels[index]


@on_phantoms_and_real_scans
def test_avte_slices_are_read_by_its_loader_and_equal_its_recipe(scans, output) -> None:
    found = avte_slices(output)
    if len(scans) >= 10:
        assert [len(cases) for cases in found.values()] == [8, 1, 1]
    paths = {case: paths for cases in found.values() for case, paths in cases.items()}
    assert paths.keys() == scans.keys()
    for case, scan in scans.items():
        expected = list(avte_arrays(*scan))
        assert [p.stem[-4:] for p in paths[case]] == [f"_{i:03d}" for i in range(len(expected))]
        for path, (image, label) in zip(paths[case], expected, strict=True):
            assert_same(read_npz(path), image, label, tolerance=1e-5)


@pytest.mark.parametrize("scans", ["phantoms"], indirect=True)
def test_avte_metadata_has_the_keys_that_its_script_writes(scans, output) -> None:
    path = output / "case_3_004.npz"
    with np.load(path, allow_pickle=False) as file:
        assert list(file) == ["image", "label", "metadata"]
        metadata = json.loads(str(file["metadata"]))
        shape = {name: list(file[name].shape) for name in ("image", "label")}
    spacing = nib.load(scans["case_3"][0]).header.get_zooms()
    assert metadata["slice_index"] == 4
    assert metadata["total_slices"] == 14
    assert metadata["window_size"] == 2
    assert metadata["padding_mode"] == "replicate"
    assert metadata["num_channels"] == 5
    assert metadata["spacing"] == pytest.approx(list(spacing))
    assert metadata["normalized"] is True
    assert metadata["norm_stats"].keys() >= {"mean", "std", "min", "max"}
    assert metadata["shape"] == shape
    info = json.loads((output / "dataset_info.json").read_text())
    # What its loader reads there, if there is such a file.
    assert (info["window_size"], info["total_channels"]) == (2, 5)
    assert info["padding_mode"] == "replicate"


@pytest.mark.parametrize("scans", ["phantoms"], indirect=True)
def test_avte_slices_are_those_of_slice_dataset(scans, output) -> None:
    for split, cases in splits_of(output).items():
        slices = SliceDataset(output, split=split)
        assert len(slices) == 14 * len(cases)
        image, label = read_npz(output / f"{cases[0]}_000.npz")
        np.testing.assert_array_equal(slices[0]["image"], image)
        np.testing.assert_array_equal(slices[0]["label"], label)


# -- transunet_synapse -----------------------------------------------------------------------------

BTCV = (
    *("spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach"),
    *("aorta", "inferior vena cava", "portal and splenic vein", "pancreas"),
    *("right adrenal gland", "left adrenal gland"),
)
TRANSUNET = (
    *("aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen"),
    "stomach",
)


def synapse_samples(output: Path, split: str) -> dict[str, Arrays]:
    """Return what Synapse_dataset of TransUNet reads, by the names in the list of a split.

    Names are the lines of lists_Synapse/<split>.txt without the end of line. train: keys image and
    label of <name>.npz; else of <name>.npy.h5.
    """
    names = names_in(output / "lists" / "lists_Synapse" / f"{split}.txt")
    if split == "train":
        return {name: read_npz(output / "train_npz" / f"{name}.npz") for name in names}
    return {name: read_h5(output / "test_vol_h5" / f"{name}.npy.h5") for name in names}


def synapse_arrays(image: Path, label: Path) -> Arrays:
    """Return a volume as the README of TransUNet has it: clip, then each volume to 0 to 1."""
    new_values = np.array([0] * 256)
    for value, organ in enumerate(BTCV, start=1):
        new_values[value] = TRANSUNET.index(organ) + 1 if organ in TRANSUNET else 0
    return unit_range(z_y_x(image).clip(-125, 275)), new_values[z_y_x(label).astype(int)]


@on_phantoms_and_real_scans
def test_transunet_synapse_is_read_by_its_loader_and_equals_its_recipe(scans, output) -> None:
    cases = splits_of(output)
    assert not cases["val"]
    assert names_in(output / "lists" / "lists_Synapse" / "val_vol.txt") == []
    expected = {case: synapse_arrays(*scan) for case, scan in scans.items()}
    train, test = (synapse_samples(output, split) for split in ("train", "test_vol"))
    assert list(train) == [
        f"{case}_slice{index:03d}"
        for case in cases["train"]
        for index in range(len(expected[case][0]))
    ]
    assert list(test) == cases["test"]
    for name, sample in train.items():
        case, _, index = name.partition("_slice")
        image, label = (array[int(index)] for array in expected[case])
        assert_same(sample, image, label, tolerance=1e-6)
    for case, sample in test.items():
        assert_same(sample, *expected[case], tolerance=1e-6)
        assert (sample[0].min(), sample[0].max()) == (0, 1)


@pytest.mark.parametrize("scans", ["phantoms"], indirect=True)
def test_transunet_synapse_has_volumes_of_val_in_a_list_of_their_own(
    scans, tmp_path, invoke, output
) -> None:
    first, *others = scans
    splits = {"train": others[1:], "val": others[:1], "test": [first]}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    result = invoke(
        *("run", "--config", "transunet_synapse", "--input_dir", tmp_path / "cases.csv"),
        *("--output_dir", tmp_path / "new", "--num_workers", 0),
        *("--splits", tmp_path / "splits.json"),
    )
    assert result.exit_code == 0, result.output
    assert "files are for reads them: train_npz, test_vol_h5\n" in result.stdout
    assert list(synapse_samples(tmp_path / "new", "val_vol")) == others[:1]
    assert list(synapse_samples(tmp_path / "new", "test_vol")) == [first]


# -- acdc_h5 ---------------------------------------------------------------------------------------


def acdc_samples(output: Path, split: str, n_slices: int | None = None) -> dict[str, Arrays]:
    """Return what BaseDataSets of SSL4MIS reads, by the names in its lists; test: test_2D_fully.py.

    Names are the lines without the end of line. train: data/slices/<name>.h5 of the first lines of
    train_slices.list; val: data/<name>.h5 of val.list; test: as val, but names end at the first
    dot.
    """
    if split == "train":
        names = names_in(output / "train_slices.list")[:n_slices]
        return {name: read_h5(output / "data" / "slices" / f"{name}.h5") for name in names}
    names = [name.split(".")[0] for name in names_in(output / f"{split}.list")]
    return {name: read_h5(output / "data" / f"{name}.h5") for name in names}


def acdc_arrays(image: Path, label: Path) -> Arrays:
    """Return a volume as acdc_data_processing.py of SSL4MIS has it."""
    return unit_range(z_y_x(image)), z_y_x(label)


@on_phantoms_and_real_scans
def test_acdc_h5_is_read_by_its_loader_and_equals_its_recipe(scans, output) -> None:
    cases = splits_of(output)
    expected = {case: acdc_arrays(*scan) for case, scan in scans.items()}
    train = acdc_samples(output, "train")
    assert list(train) == [
        f"{case}_slice_{number}"
        for case in cases["train"]
        for number in range(1, len(expected[case][0]) + 1)
    ]
    for name, sample in train.items():
        case, _, number = name.partition("_slice_")
        image, label = (array[int(number) - 1] for array in expected[case])
        assert_same(sample, image, label, tolerance=1e-6)
    for split in ("val", "test"):
        volumes = acdc_samples(output, split)
        assert list(volumes) == cases[split]
        for case, sample in volumes.items():
            assert_same(sample, *expected[case], tolerance=1e-6)
    assert names_in(output / "train.list") == cases["train"]
    for case in cases["train"]:
        assert_same(read_h5(output / "data" / f"{case}.h5"), *expected[case], tolerance=1e-6)


@pytest.mark.parametrize("scans", ["phantoms"], indirect=True)
def test_acdc_h5_first_lines_of_the_list_are_whole_cases(scans, output) -> None:
    """SSL4MIS takes the first lines as labelled, as many as some patients have."""
    first, second, *_ = splits_of(output)["train"]
    n_slices = [nib.load(scans[case][0]).shape[2] for case in (first, second)]
    names = list(acdc_samples(output, "train", sum(n_slices)))
    assert [name.partition("_slice_")[0] for name in names] == [
        *[first] * n_slices[0],
        *[second] * n_slices[1],
    ]
