"""Predictions of some planes, of some slices, of many classes, and metrics of scans elsewhere."""

from __future__ import annotations

import shutil
import sys
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from predicted import assemble, predict, run

import dask_slicer
from dask_slicer.assembly.predictions import checked
from dask_slicer.core.geometry import plane_orientation, reorient
from dask_slicer.errors import UsageError
from dask_slicer.inputs.phantom import write_dataset
from dask_slicer.output.output import open_output


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    write_dataset(folder, n_cases=2, shape=(32, 28, 12), spacing=(6.0, 6.0, 9.0))
    return folder


def volumes_of(folder: Path, ending: str = "") -> dict[str, np.ndarray]:
    paths = folder.glob(f"phantom_[0-9][0-9][0-9]{ending}.nii.gz")
    return {path.name[:11]: np.asarray(nib.load(path).dataobj) for path in paths}


def back(values: np.ndarray, scans: Path, case_id: str, plane: str) -> np.ndarray:
    """Return an array of slices in the axes of the scan's file."""
    scan = nib.load(next((scans / "imagesTr").glob(f"{case_id}*")))
    volume = np.zeros(scan.shape, values.dtype)
    reorient(volume, plane_orientation(scan.affine, plane))[...] = values
    return volume


def test_each_prediction_counts_once_whatever_planes_its_network_has(scans, tmp_path) -> None:
    output = run(scans, tmp_path / "out", window_size=0, plane=("axial", "coronal"))
    opened, rng = open_output(output), np.random.default_rng(0)
    expected: dict[str, list[np.ndarray]] = {case_id: [] for case_id in opened.cases}
    for network, plane in (("one", "axial"), ("one", "coronal"), ("two", "axial")):
        folder = tmp_path / network / plane
        folder.mkdir(parents=True)
        for case_id in opened.cases:
            label, _ = opened.label(case_id, plane=plane)
            share = rng.uniform(size=label.shape).astype(np.float32)
            np.save(folder / f"{case_id}.npy", np.stack([share, 1 - share]))
            expected[case_id].append(back(share, scans, case_id, plane))
    folders = [tmp_path / "one", tmp_path / "two"]
    settings = {"kind": "probabilities", "keep_probabilities": True}
    assert not assemble(output, folders, tmp_path / "v", **settings).failures
    for case_id, kept in volumes_of(tmp_path / "v", "_probabilities").items():
        np.testing.assert_allclose(kept[..., 0], np.mean(expected[case_id], axis=0), atol=1e-6)


@pytest.mark.parametrize("plane", ["axial", "sagittal"])
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
@pytest.mark.parametrize("order", [("all", "kept"), ("kept", "all")])
def test_networks_with_and_without_slices_that_were_left_out(
    scans, tmp_path, kind, order, plane
) -> None:
    output = run(scans, tmp_path / "out", window_size=0, min_foreground=0.03, plane=plane)
    opened = open_output(output)
    expected = {}
    for name in order:
        (tmp_path / name).mkdir()
    for case_id in opened.cases:
        label, _ = opened.label(case_id)
        kept = [index for index, pixels in enumerate(label) if pixels.min() >= 0]
        assert len(kept) < len(label)
        label = np.maximum(label, 0)
        label[min(set(range(len(label))) - set(kept)), 0, 0] = 1
        expected[case_id] = back(label, scans, case_id, plane)
        values = label
        if kind == "probabilities":
            values = np.stack([label == value for value in range(6)]).astype(np.float16)
        np.save(tmp_path / "all" / f"{case_id}.npy", values)
        np.save(tmp_path / "kept" / f"{case_id}.npy", values[..., kept, :, :])
    report = assemble(output, [tmp_path / name for name in order], tmp_path / "v", kind=kind)
    assert not report.failures, report.failures
    for case_id, volume in volumes_of(tmp_path / "v").items():
        np.testing.assert_array_equal(volume, expected[case_id])


def test_folders_of_planes_may_be_given_one_by_one(scans, tmp_path) -> None:
    output = run(scans, tmp_path / "out", window_size=0, plane=("axial", "coronal"))
    folder = predict(output, tmp_path / "p")
    together = assemble(output, folder, tmp_path / "together")
    apart = assemble(output, [folder / "axial", folder / "coronal"], tmp_path / "apart")
    assert (together.n_written, apart.n_written) == (2, 2), apart.failures
    for path in (tmp_path / "together").glob("*.nii.gz"):
        assert path.read_bytes() == (tmp_path / "apart" / path.name).read_bytes()


def test_a_plane_of_which_every_slice_was_left_out_needs_no_prediction(scans, tmp_path) -> None:
    changed = tmp_path / "scans"
    shutil.copytree(scans, changed)
    path, *_ = sorted((changed / "labelsTr").iterdir())
    label = nib.load(path)
    flat = np.zeros(label.shape, np.uint8)
    flat[3:25, 3:5, 2:9] = 1  # large in coronal slices only
    nib.save(nib.Nifti1Image(flat, label.affine, label.header), path)
    planes = ("coronal", "axial")
    output = run(changed, tmp_path / "out", window_size=0, plane=planes, min_foreground=0.1)
    opened = open_output(output)
    for plane in planes:
        (tmp_path / "p" / plane).mkdir(parents=True)
        for case_id in opened.cases:
            if path.name.startswith(case_id) and plane == "axial":
                with pytest.raises(UsageError, match="no slices"):
                    opened.label(case_id, plane=plane)
                continue
            values, _ = opened.label(case_id, plane=plane)
            for index, pixels in enumerate(values):
                if pixels.min() >= 0:
                    np.save(tmp_path / "p" / plane / f"{case_id}_{index}.npy", pixels)
    report = assemble(output, tmp_path / "p", tmp_path / "v")
    assert report.n_written == 2, report.failures
    np.testing.assert_array_equal(volumes_of(tmp_path / "v")[path.name[:11]], flat)


def test_labels_below_0_take_the_smallest_dtype(scans, tmp_path) -> None:
    output = run(scans, tmp_path / "out", window_size=0)
    for path in predict(output, tmp_path / "p").glob("phantom_000*"):
        label = np.load(path).astype(np.int16)
        label[0, 0] = -1 if path.stem.endswith("3") else 0
        label[0, 1] = 1000 if path.stem.endswith("7") else 0
        np.save(path, label)
    assert not assemble(output, tmp_path / "p", tmp_path / "v", fill=300).failures
    volumes = volumes_of(tmp_path / "v")
    assert {case_id: v.dtype for case_id, v in volumes.items()} == {
        "phantom_000": np.int16,
        "phantom_001": np.uint8,
    }
    assert (volumes["phantom_000"].min(), volumes["phantom_000"].max()) == (-1, 1000)


def test_logits_of_one_class_may_be_of_any_size() -> None:
    logits = np.array([[-1e30, -200.0, 0.0, 200.0, 1e30]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shares = checked(logits, (1, 5), "logits", "a")
        with pytest.raises(ValueError, match="NaN or Inf"):
            checked(logits * 1e10, (1, 5), "logits", "a")
    np.testing.assert_array_equal(shares, [[[0, 0, 0.5, 1, 1]]])


def test_a_writer_knows_more_than_256_classes(scans, tmp_path) -> None:
    output = run(scans, tmp_path / "out", window_size=0)
    dataset = dask_slicer.SliceDataset(output, split=None)
    with dask_slicer.VolumeWriter(output, tmp_path / "v", kind="logits") as writer:
        for sample in dataset:
            logits = np.zeros((300, *sample["label"].shape), np.float16)
            logits[299, :4], logits[2, 4:] = 1, 1
            writer.add([sample["case_id"]], [sample["slice_index"]], logits[None])
    assert {value for v in volumes_of(tmp_path / "v").values() for value in np.unique(v)} == {
        2,
        299,
    }


def means(report) -> list[float]:
    assert not report.failures, report.failures
    return [
        label["dice"]["mean"] for labels in report.metrics.values() for label in labels.values()
    ]


def test_metrics_remove_small_components_in_the_plane_of_the_slices(scans, tmp_path) -> None:
    settings = {"plane": "coronal", "min_component_pixels": 6}
    output = run(scans, tmp_path / "out", window_size=0, **settings)
    report = assemble(output, predict(output, tmp_path / "p"), tmp_path / "v", metrics=True)
    assert set(means(report)) == {1.0}


def test_metrics_take_scans_with_other_axes_but_on_the_same_grid(scans, tmp_path) -> None:
    output = run(scans, tmp_path / "out", window_size=0)
    predictions = predict(output, tmp_path / "p")
    shutil.copytree(scans, tmp_path / "turned")
    shutil.copytree(scans, tmp_path / "other")
    for path in sorted(tmp_path.glob("turned/*Tr/*.nii.gz")):
        volume = nib.load(path)
        turned = volume.as_reoriented(np.array([[1, -1], [2, 1], [0, 1]]))
        nib.save(turned, path)
        shifted = nib.Nifti1Image(np.asarray(volume.dataobj), volume.affine + np.eye(4, k=3))
        nib.save(shifted, tmp_path / "other" / path.relative_to(tmp_path / "turned"))
    settings = {"metrics": True, "source": tmp_path / "turned"}
    assert set(means(assemble(output, predictions, tmp_path / "v", **settings))) == {1.0}
    settings["source"] = tmp_path / "other"
    report = assemble(output, predictions, tmp_path / "w", **settings)
    assert {failure.kind for failure in report.failures} == {"GeometryMismatch"}
    assert all("--source" in failure.message for failure in report.failures)


def test_metrics_name_scans_and_labels_that_are_not_there(scans, tmp_path) -> None:
    output = run(scans, tmp_path / "out", window_size=0)
    predictions = predict(output, tmp_path / "predictions")
    source = tmp_path / "some"
    shutil.copytree(scans, source)
    one, other, *_ = sorted(path.name for path in source.glob("labelsTr/*"))
    for path in source.glob(f"*/{one.removesuffix('.nii.gz')}*"):
        path.unlink()
    (source / "labelsTr" / other).unlink()
    report = assemble(output, predictions, tmp_path / "v", metrics=True, source=source)
    messages = {failure.case_id: failure.message for failure in report.failures}
    assert f"{source} has no scan of it" in messages[one.removesuffix(".nii.gz")]
    assert messages[other.removesuffix(".nii.gz")] == (
        "its scan has no label to compare with; leave out --metrics"
    )


def test_a_writer_without_scipy_says_so_at_once(scans, tmp_path, monkeypatch) -> None:
    output = run(scans, tmp_path / "out", window_size=0)
    monkeypatch.setitem(sys.modules, "scipy.spatial", None)
    with pytest.raises(UsageError, match="metrics need SciPy"):
        dask_slicer.VolumeWriter(output, tmp_path / "v", metrics=True)
