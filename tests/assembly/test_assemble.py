"""Assembling with steps, several networks and planes, continuing, and messages."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from predicted import assemble, predict, run

import dask_slicer
from dask_slicer.core.geometry import plane_orientation, reorient
from dask_slicer.errors import MissingFile, OutputError, UsageError
from dask_slicer.inputs.phantom import write_dataset
from dask_slicer.output.output import open_output


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    write_dataset(folder, n_cases=3, shape=(48, 40, 20), spacing=(6.0, 6.0, 9.0))
    return folder


def label_of(scans: Path, case_id: str) -> np.ndarray:
    (path,) = (scans / "labelsTr").glob(f"{case_id}*")
    return np.asarray(nib.load(path).dataobj)


def volume_of(volumes: Path, case_id: str) -> np.ndarray:
    return np.asarray(nib.load(volumes / f"{case_id}.nii.gz").dataobj)


def dice(one: np.ndarray, other: np.ndarray, label: int) -> float:
    masks = one == label, other == label
    return 2 * (masks[0] & masks[1]).sum() / max(masks[0].sum() + masks[1].sum(), 1)


# Padding of the slices does not show what the crop has cut off.
BOXES = {"5:40,3:39,2:18": [(5, 40), (3, 39), (2, 18)]}


@pytest.mark.parametrize("whole", [False, True])
def test_predictions_of_transposed_files_are_turned_back(scans, tmp_path, whole) -> None:
    files = [{"path": "a/{stem}.npz", "holds": {"x": "image", "y": "label"}, "transpose": True}]
    output = run(scans, tmp_path / "out", format="files", files=files, plane="k", window_size=0)
    (tmp_path / "predictions").mkdir()
    for case_id in open_output(output).cases:
        paths = sorted((output / "a").glob(f"{case_id}_*.npz"))
        labels = {path.stem: np.load(path)["y"] for path in paths}
        predicted = {case_id: np.stack([*labels.values()])} if whole else labels
        for name, label in predicted.items():
            np.save(tmp_path / "predictions" / f"{name}.npy", label)
    report = assemble(output, tmp_path / "predictions", tmp_path / "volumes")
    assert not report.failures, report.failures
    with dask_slicer.VolumeWriter(output, tmp_path / "again") as writer:
        for path in sorted((output / "a").iterdir()):
            case_id, _, index = path.stem.rpartition("_")
            writer.add([case_id], [int(index)], np.load(path)["y"][None])
    for case_id in open_output(output).cases:
        for folder in ("volumes", "again"):
            volume = volume_of(tmp_path / folder, case_id)
            np.testing.assert_array_equal(volume, label_of(scans, case_id))


@pytest.mark.parametrize("format_", ["npz", "zarr", "png"])
@pytest.mark.parametrize(
    "steps",
    [
        {"crop": "5:40,3:39,2:18"},
        {"crop": "5:40,3:39,2:18", "size": "50"},
        {"size": "20,64", "center": "label"},
        {"crop": "label", "crop_margin": 10.0, "size": "24"},
        {"plane": "sagittal", "crop": "5:40,3:39,2:18", "size": "16"},
    ],
)
def test_inside_the_slices_labels_are_exact_and_outside_they_are_fill(
    scans, tmp_path, steps, format_
) -> None:
    output = run(scans, tmp_path / "out", format=format_, window_size=0, **steps)
    predictions = predict(output, tmp_path / "predictions")
    report = assemble(output, predictions, tmp_path / "volumes", fill=9)
    assert not report.failures, report.failures
    opened = open_output(output)
    for case_id in opened.cases:
        expected, volume = label_of(scans, case_id), volume_of(tmp_path / "volumes", case_id)
        inside = volume != 9
        np.testing.assert_array_equal(volume[inside], expected[inside])
        label, affine = opened.label(case_id)
        # As many voxels are inside as slices have pixels in the scan.
        (image,) = (scans / "imagesTr").glob(f"{case_id}*")
        to_scan = np.linalg.inv(nib.load(image).affine) @ affine
        at = np.indices(label.shape).reshape(3, -1)
        voxels = to_scan[:3, :3] @ at + to_scan[:3, 3:]
        start, stop = np.array(BOXES.get(steps.get("crop"), [(0, n) for n in expected.shape])).T
        inside_box = (voxels > start[:, None] - 0.5) & (voxels < stop[:, None] - 0.5)
        in_scan = inside_box.all(axis=0)
        assert inside.sum() == in_scan.sum()
        assert 0 < in_scan.sum() < expected.size


@pytest.mark.parametrize(
    "steps",
    [
        {"spacing": "none,4,4"},
        {"spacing": "6,5,5", "size": "64"},
        {"size": "56", "fit": "letterbox"},
    ],
)
def test_resampled_labels_and_probabilities_are_close(scans, tmp_path, steps) -> None:
    output = run(scans, tmp_path / "out", window_size=0, **steps)
    predictions = predict(output, tmp_path / "labels")
    for path in predictions.glob("*.npy"):
        label = np.load(path)
        (tmp_path / "soft").mkdir(exist_ok=True)
        soft = np.stack([label == value for value in range(3)]).astype(np.float32)
        np.save(tmp_path / "soft" / path.name, soft)
    assert not assemble(output, predictions, tmp_path / "a").failures
    report = assemble(output, tmp_path / "soft", tmp_path / "b", kind="probabilities")
    assert not report.failures, report.failures
    for case_id in open_output(output).cases:
        expected = label_of(scans, case_id)
        for volumes in ("a", "b"):
            volume = volume_of(tmp_path / volumes, case_id)
            assert volume.shape == expected.shape
            for label in (1, 2):
                assert dice(volume, expected, label) >= 0.97, (case_id, volumes, label)


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=0))
    return shifted / shifted.sum(axis=0)


@pytest.mark.parametrize("planes", [("axial",), ("axial", "coronal", "i")])
@pytest.mark.parametrize("kind", ["labels", "probabilities", "logits"])
def test_networks_and_planes_are_combined(scans, tmp_path, planes, kind) -> None:
    output = run(scans, tmp_path / "out", window_size=0, plane=planes)
    opened, rng = open_output(output), np.random.default_rng(3)
    expected: dict[str, list[np.ndarray]] = {case_id: [] for case_id in opened.cases}
    for network in ("one", "two"):
        for plane in planes:
            folder = tmp_path / network / (plane if len(planes) > 1 else "")
            folder.mkdir(parents=True, exist_ok=True)
            for case_id in opened.cases:
                label, _ = opened.label(case_id, plane=plane)
                if kind == "labels":
                    values = rng.integers(0, 4, label.shape)
                else:
                    values = rng.normal(size=(3, *label.shape)).astype(np.float32)
                    values = softmax(values) if kind == "probabilities" else values
                np.save(folder / f"{case_id}.npy", values)
                (image,) = (scans / "imagesTr").glob(f"{case_id}*")
                scan = nib.load(image)
                orientation = plane_orientation(scan.affine, plane)
                for one in values if kind != "labels" else [values]:
                    back = np.zeros(scan.shape, one.dtype)
                    reorient(back, orientation)[...] = one
                    expected[case_id].append(back)
    report = assemble(
        output,
        [tmp_path / "one", tmp_path / "two"],
        tmp_path / "volumes",
        kind=kind,
        **({} if kind == "labels" else {"keep_probabilities": True}),
    )
    assert not report.failures, report.failures
    for case_id, parts in expected.items():
        volume = volume_of(tmp_path / "volumes", case_id)
        if kind == "labels":
            votes = np.stack([sum(part == value for part in parts) for value in range(4)])
            np.testing.assert_array_equal(volume, votes.argmax(axis=0))
            continue
        shares = np.stack([parts[number::3] for number in range(3)]).astype(np.float64)
        if kind == "logits":
            shares = np.stack([softmax(shares[:, n]) for n in range(shares.shape[1])], axis=1)
        mean = shares.mean(axis=1)
        kept = volume_of(tmp_path / "volumes", f"{case_id}_probabilities")
        np.testing.assert_allclose(np.moveaxis(kept, -1, 0), mean, atol=1e-6)
        np.testing.assert_array_equal(volume, np.moveaxis(kept, -1, 0).argmax(axis=0))


def test_one_class_needs_a_threshold(scans, tmp_path) -> None:
    output = run(scans, tmp_path / "out", window_size=0)
    (tmp_path / "p").mkdir()
    for path in predict(output, tmp_path / "labels").glob("*.npy"):
        np.save(tmp_path / "p" / path.name, (np.load(path) > 0) * np.float32(0.6) + 0.1)
    report = assemble(output, tmp_path / "p", tmp_path / "volumes", kind="probabilities")
    assert len(report.failures) == 3
    assert "--threshold" in report.failures[0].message
    for threshold, most in ((0.65, 1), (0.75, 0)):
        settings = {"kind": "probabilities", "threshold": threshold}
        assert not assemble(output, tmp_path / "p", tmp_path / "volumes", **settings).failures
        for case_id in open_output(output).cases:
            expected = (label_of(scans, case_id) > 0) * most
            np.testing.assert_array_equal(volume_of(tmp_path / "volumes", case_id), expected)


def test_slices_left_out_are_fill_and_missing_ones_fail_their_case(scans, tmp_path) -> None:
    output = run(scans, tmp_path / "out", window_size=0, min_foreground=0.05)
    predictions = predict(output, tmp_path / "predictions")
    report = assemble(output, predictions, tmp_path / "volumes")
    assert not report.failures, report.failures
    opened = open_output(output)
    first, second, third = opened.cases
    rows = list(csv.DictReader((output / "slices.csv").open(newline="")))
    for case_id in opened.cases:
        kept = {int(row["slice_index"]) for row in rows if row["case_id"] == case_id}
        label = label_of(scans, case_id)
        expected = np.zeros_like(label)
        assert 0 < len(kept) < label.shape[2]
        expected[..., sorted(kept)] = label[..., sorted(kept)]
        np.testing.assert_array_equal(volume_of(tmp_path / "volumes", case_id), expected)
    files = sorted(predictions.glob(f"{first}_*"))
    files[3].unlink()
    for path in predictions.glob(f"{second}_*"):
        path.unlink()
    report = assemble(output, predictions, tmp_path / "volumes")
    (failure,) = report.failures
    assert (failure.case_id, failure.kind) == (first, "MissingFile")
    assert f"1 of {len(files)} slices have no prediction" in failure.message
    assert (report.n_written, report.n_skipped, report.n_without) == (0, 1, 1)
    # What other predictions made is removed where these fail, and kept where there are none.
    assert not (tmp_path / "volumes" / f"{first}.nii.gz").exists()
    assert (tmp_path / "volumes" / f"{second}.nii.gz").exists()
    lines = (tmp_path / "volumes" / "failures.csv").read_text().splitlines()
    assert len(lines) == 2
    assert third not in lines[1]


def test_the_same_command_again_writes_only_what_has_changed(scans, tmp_path) -> None:
    output = run(scans, tmp_path / "out", window_size=0)
    predictions = predict(output, tmp_path / "predictions")
    first = assemble(output, predictions, tmp_path / "volumes")
    files = {path: path.read_bytes() for path in (tmp_path / "volumes").glob("*.nii.gz")}
    assert (first.n_written, len(files)) == (3, 3)
    again = assemble(output, predictions, tmp_path / "volumes")
    assert (again.n_written, again.n_skipped) == (0, 3)
    changed = next(predictions.iterdir())
    np.save(changed, np.zeros_like(np.load(changed)))
    damaged, *_ = files
    damaged.write_bytes(b"")
    workers = assemble(output, predictions, tmp_path / "volumes", num_workers=2)
    assert 1 <= workers.n_written <= 2
    for path in (tmp_path / "volumes").glob("*.nii.gz"):
        if not changed.name.startswith(path.name.removesuffix(".nii.gz")):
            assert path.read_bytes() == files[path]


WRONG = {
    "another shape": (lambda a: np.save(a, np.zeros((3, 4))), "GeometryMismatch", "shape 3×4"),
    "turned": (lambda a: np.save(a, np.load(a).T), "GeometryMismatch", "(rows, columns)"),
    "classes": (lambda a: np.save(a, np.load(a)[None]), "UnsupportedImage", "--kind"),
    "floats": (lambda a: np.save(a, np.load(a) + 0.5), "LabelValues", "no label"),
    "NaN": (lambda a: np.save(a, np.load(a) * np.nan), "LabelValues", "nan"),
    "text": (lambda a: a.write_text("no array"), "CorruptFile", "damaged"),
    "cut": (lambda a: a.write_bytes(a.read_bytes()[:-9]), "CorruptFile", "damaged"),
    "empty": (lambda a: a.write_bytes(b""), "CorruptFile", "damaged"),
    "objects": (lambda a: np.save(a, np.array([{}]), allow_pickle=True), "CorruptFile", "damaged"),
    "strings": (lambda a: np.save(a, np.array([["a"]])), "UnsupportedImage", "expected numbers"),
    "twice": (
        lambda a: np.save(a.with_name(a.name.replace("_007", "_7")), np.load(a)),
        "UnsupportedImage",
        "has 2 predictions",
    ),
    "beyond": (
        lambda a: np.save(a.with_name(a.name[:-7] + "999.npy"), np.load(a)),
        "GeometryMismatch",
        "is of slice 999, the last slice of the case is 19",
    ),
    "of another plane": (
        lambda a: (a.parent.joinpath("coronal").mkdir(), a.rename(a.parent / "coronal" / a.name)),
        "MissingFile",
        "is of plane coronal; the output has axial",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_predictions_fail_their_case_alone(scans, tmp_path, name) -> None:
    spoil, kind, words = WRONG[name]
    output = run(scans, tmp_path / "out", window_size=0)
    predictions = predict(output, tmp_path / "predictions")
    spoiled, *_ = open_output(output).cases
    spoil(predictions / f"{spoiled}_007.npy")
    report = assemble(output, predictions, tmp_path / "volumes")
    (failure,) = report.failures
    assert (failure.case_id, failure.kind) == (spoiled, kind)
    assert words in failure.message
    assert "\n" not in failure.message
    assert "pickle" not in failure.message  # what numpy advises is unsafe
    assert report.n_written == 2
    assert not (tmp_path / "volumes" / f"{spoiled}.nii.gz").exists()


@pytest.mark.parametrize(
    ("array", "words"),
    [(np.full((3, 40, 48), np.nan), "NaN or Inf"), (np.full((3, 40, 48), 7.0), "--kind logits")],
)
def test_bad_probabilities_fail_their_case(scans, tmp_path, array, words) -> None:
    output = run(scans, tmp_path / "out", window_size=0)
    (tmp_path / "p").mkdir()
    case_id, *_ = open_output(output).cases
    for index in range(20):
        np.save(tmp_path / "p" / f"{case_id}_{index:03d}.npy", array)
    (failure,) = assemble(output, tmp_path / "p", tmp_path / "v", kind="probabilities").failures
    assert words in failure.message
    assert f"{case_id}_000.npy" in failure.message


def test_predictions_of_unknown_cases_are_failures(scans, tmp_path) -> None:
    output = run(scans, tmp_path / "out", window_size=0)
    predictions = predict(output, tmp_path / "predictions")
    case_id, *_ = open_output(output).cases
    for index in (3, 4):
        (predictions / f"{case_id}_00{index}.npy").rename(predictions / f"{case_id}x_{index}.npy")
    (predictions / "notes.txt").write_text("")
    report = assemble(output, predictions, tmp_path / "volumes")
    failures = {failure.case_id: failure.message for failure in report.failures}
    assert failures.keys() == {case_id, f"{case_id}x"}
    assert f"did you mean {case_id}?" in failures[f"{case_id}x"]
    assert report.n_written == 2


def test_only_an_empty_folder_or_one_of_volumes_is_written_to(scans, tmp_path) -> None:
    output = run(scans, tmp_path / "out", window_size=0)
    predictions = predict(output, tmp_path / "predictions")
    for folder in (output, predictions):
        with pytest.raises(OutputError, match="holds slices or predictions; name another"):
            assemble(output, predictions, folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "case.nii.gz").write_text("mine")
    with pytest.raises(OutputError, match="holds files that assemble did not write"):
        assemble(output, predictions, tmp_path / "mine")
    with pytest.raises(OutputError):
        assemble(scans, predictions, tmp_path / "volumes")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UsageError, match="has no file named"):
        assemble(output, tmp_path / "nothing", tmp_path / "volumes")
    assert not (tmp_path / "volumes").exists()


def test_metrics_are_of_the_labels_after_the_label_map(scans, tmp_path) -> None:
    output = run(scans, tmp_path / "out", window_size=0, label_map="1:2 2:1 *:0", train_ratio=0.5)
    predictions = predict(output, tmp_path / "predictions")
    wrong, *_ = predictions.glob("*.npy")
    np.save(wrong, np.zeros_like(np.load(wrong)))
    report = assemble(output, predictions, tmp_path / "volumes", metrics=True)
    assert not report.failures, report.failures
    rows = list(csv.DictReader((tmp_path / "volumes" / "metrics.csv").open(newline="")))
    assert len(rows) == 6
    for row in rows:
        exact = not wrong.name.startswith(row["case_id"])
        assert (float(row["dice"]) == 1.0) == exact or row["dice"] == "1.0"
        label, old = label_of(scans, row["case_id"]), {"1": 2, "2": 1}[row["label"]]
        ml = (label == old).sum() * 6 * 6 * 9 / 1000
        assert float(row["reference_ml"]) == pytest.approx(ml, rel=1e-5)
    summary = json.loads((tmp_path / "volumes" / "metrics.json").read_text())
    assert summary == report.metrics
    of_label = [
        float(row["dice"]) for row in rows if row["label"] == "1" and row["split"] == "train"
    ]
    assert summary["train"]["1"]["dice"]["mean"] == pytest.approx(np.mean(of_label))


@pytest.mark.parametrize("kind", ["labels", "logits"])
@pytest.mark.parametrize("steps", [{}, {"spacing": "none,4,4"}])
def test_a_writer_in_a_loop_writes_the_same_volumes(scans, tmp_path, kind, steps) -> None:
    output = run(scans, tmp_path / "out", window_size=0, **steps)
    dataset = dask_slicer.SliceDataset(output, split=None)
    (tmp_path / "p").mkdir()
    rng = np.random.default_rng(0)
    with dask_slicer.VolumeWriter(output, tmp_path / "a", kind=kind) as writer:
        for start in range(0, len(dataset), 7):
            batch = [dataset[at] for at in range(start, min(start + 7, len(dataset)))]
            ids, indices = ([sample[n] for sample in batch] for n in ("case_id", "slice_index"))
            arrays = np.stack([sample["label"] for sample in batch])
            if kind == "logits":
                arrays = rng.normal(size=(len(batch), 3, *arrays.shape[1:]))
            writer.add(ids, indices, arrays)
            for case_id, index, array in zip(ids, indices, arrays, strict=True):
                np.save(tmp_path / "p" / f"{case_id}_{index}.npy", array)
    assemble(output, tmp_path / "p", tmp_path / "b", kind=kind)
    for case_id in open_output(output).cases:
        written = [(tmp_path / place / f"{case_id}.nii.gz").read_bytes() for place in "ab"]
        assert written[0] == written[1]


def add_wrong_ones(writer: dask_slicer.VolumeWriter, case_id: str, label: np.ndarray) -> None:
    with writer:
        writer.add([case_id], [0], label[None])
        for ids, indices, arrays, words in (
            (["nobody"], [0], label[None], "no case nobody"),
            ([case_id], [0], label[None], "added before"),
            ([case_id], [99], label[None], "slices 0 to 19"),
            ([case_id], [1], label[None, 1:], "shape"),
            ([case_id], [1, 2], label[None], "one of each"),
            ([case_id], [1], label[None] + 0.5, "no label"),
        ):
            with pytest.raises(ValueError, match=words):
                writer.add(ids, indices, arrays)


def test_a_writer_names_what_is_wrong(scans, tmp_path) -> None:
    output = run(scans, tmp_path / "out", window_size=0)
    dataset = dask_slicer.SliceDataset(output, split=None)
    sample = dataset[0]
    case_id, label = sample["case_id"], sample["label"]
    writer = dask_slicer.VolumeWriter(output, tmp_path / "volumes")
    with pytest.raises(UsageError, match="needs a `with` block"):
        writer.add([case_id], [0], label[None])
    with pytest.raises(MissingFile, match=f"{case_id} .*missing"):
        add_wrong_ones(writer, case_id, label)
    assert not list((tmp_path / "volumes").glob("*.nii.gz"))


def test_a_writer_refuses_slices_of_a_case_that_it_has_written(scans, tmp_path) -> None:
    output = run(scans, tmp_path / "out", window_size=0)
    dataset = dask_slicer.SliceDataset(output, split=None)
    case_id, volumes = dataset[0]["case_id"], tmp_path / "volumes"
    samples = [sample for sample in dataset if sample["case_id"] == case_id]
    with dask_slicer.VolumeWriter(output, volumes) as writer:
        for sample in samples:
            writer.add([case_id], [sample["slice_index"]], sample["label"][None])
        with pytest.raises(UsageError, match=f"slice 0 of {case_id}: the case is written already"):
            writer.add([case_id], [0], samples[0]["label"][None])
    assert (volumes / f"{case_id}.nii.gz").exists()
    with (
        pytest.raises(MissingFile, match="19 of 20 slices missing"),
        dask_slicer.VolumeWriter(output, volumes) as writer,
    ):
        writer.add([case_id], [0], samples[0]["label"][None])
    assert not list(volumes.glob("*.nii.gz"))  # none of other predictions


def test_probabilities_do_not_take_the_file_name_of_another_case(tmp_path) -> None:
    rng = np.random.default_rng(0)
    for case_id in ("a", "a_probabilities", "b"):
        for name in (f"imagesTr/{case_id}_0000", f"labelsTr/{case_id}"):
            path = tmp_path / "scans" / f"{name}.nii"
            path.parent.mkdir(parents=True, exist_ok=True)
            values = rng.integers(0, 90 if "images" in name else 2, (6, 5, 4))
            nib.save(nib.Nifti1Image(values.astype(np.int16), np.eye(4)), path)
    output = run(tmp_path / "scans", tmp_path / "out", window_size=0)
    (tmp_path / "p").mkdir()
    for case_id in ("a", "a_probabilities", "b"):
        shares = rng.dirichlet((1, 1), (4, 5, 6)).transpose(3, 0, 1, 2)
        np.save(tmp_path / "p" / f"{case_id}.npy", shares)
    settings = {"kind": "probabilities", "keep_probabilities": True}
    (failure,) = assemble(output, tmp_path / "p", tmp_path / "volumes", **settings).failures
    assert (failure.case_id, failure.kind) == ("a", "UnsupportedImage")
    assert not assemble(output, tmp_path / "p", tmp_path / "other", kind="probabilities").failures
