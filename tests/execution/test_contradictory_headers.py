"""A header that contradicts itself: one affine decides everywhere, and every page says so."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from report_page import facts_of, page_of, text_of

from dask_slicer import SliceDataset, open_output
from dask_slicer.core.geometry import spacing
from dask_slicer.output.journal import last_records
from dask_slicer.report import preview
from dask_slicer.report.panels import read_panels

# One file, three answers: spacings 2 × 3 × 4 and 1 × 1.5 × 7, and 9 × 9 × 9 in pixdim.
SFORM = np.array([[2.0, 0, 0, 5], [0, 3.0, 0, -7], [0, 0, 4.0, 11], [0, 0, 0, 1]])
QFORM = np.array([[0, 1.5, 0, 9], [1.0, 0, 0, 2], [0, 0, 7.0, -4], [0, 0, 0, 1]])
PIXDIM = (9.0, 9.0, 9.0)
FORMS = {"sform": SFORM, "qform": QFORM}
SHAPE = (6, 8, 5)


def save(
    path: Path, array: np.ndarray, *, contradiction: str, taken: str, shift: float = 0
) -> None:
    """Write a volume whose forms, or whose spacing and affine, disagree."""
    moved = {name: affine.copy() for name, affine in FORMS.items()}
    for affine in moved.values():
        affine[0, 3] += shift
    header = nib.Nifti1Header()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header["vox_offset"] = 352
    if contradiction == "forms":
        header.set_qform(moved["qform"], 1)
        header.set_sform(moved["sform"], 1)
    else:
        header.set_sform(moved[taken], 1)
        header["qform_code"] = 0
        header["pixdim"][1:4] = PIXDIM
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.binaryblock + bytes(4) + array.tobytes(order="F"))


@pytest.fixture(params=[("forms", "sform"), ("forms", "qform"), ("pixdim", "sform")], ids="-".join)
def case(request, dataset, slice_dataset):
    """Return a function that slices a case with such headers, its affine, and words of the note."""
    contradiction, taken = request.param
    rng = np.random.default_rng(4)
    image = rng.integers(0, 900, SHAPE).astype(np.int16)
    label = (rng.random(SHAPE) > 0.5).astype(np.uint8)
    paths = (dataset.root / "imagesTr/a_0000.nii", dataset.root / "labelsTr/a.nii")

    def sliced(*, shift: float = 0, **settings: object) -> Path:
        options = {"contradiction": contradiction, "taken": taken}
        save(paths[0], image, **options)
        save(paths[1], label, shift=shift, **options)
        return slice_dataset(orientation_from=taken, train_ratio=1.0, **settings)

    other = {"sform": "qform", "qform": "sform"}[taken]
    words = f"--orientation_from {other}" if contradiction == "forms" else "pixdim 9 × 9 × 9 mm"
    return sliced, FORMS[taken], words, int(label.sum())


def spacing_of_slices(affine: np.ndarray) -> list[float]:
    """Return (slice, row, column) of an axial stack: the steps along S, A and R."""
    steps = dict(zip(np.abs(affine[:3, :3]).argmax(axis=0).tolist(), spacing(affine), strict=True))
    return [steps[2], steps[1], steps[0]]


@pytest.mark.parametrize("format_", ["npz", "zarr"])
def test_every_page_takes_the_chosen_affine_and_says_so(case, format_, invoke, dataset) -> None:
    sliced, affine, words, n_labelled = case
    output = sliced(format=format_)
    expected = spacing_of_slices(affine)
    voxel_ml = np.prod(spacing(affine)) / 1000

    # The plan.
    options = ("--orientation_from", "qform" if affine is QFORM else "sform")
    directories = ("--input_dir", dataset.root, "--output_dir", output.parent / "other")
    shown = " ".join(invoke("plan", *directories, "--format", format_, *options).output.split())
    assert words in shown
    described = json.loads(
        invoke("plan", *directories, "--format", format_, *options, "--json").stdout
    )
    assert described["cases"][0]["spacing"] == pytest.approx(expected)

    # The journal, and the metadata of slices.
    (record,) = last_records(output / "journal.jsonl")
    assert record.spacing == pytest.approx(expected)
    assert record.voxel_volume == pytest.approx(voxel_ml * 1000)
    assert words in record.header_notes[0][1]
    opened = open_output(output)
    with opened._opened("a") as (reader, kept):
        metadata = reader.metadata(kept[0])
    assert metadata["spacing"] == pytest.approx(expected)
    assert spacing(np.array(metadata["affine"])) == pytest.approx(expected)
    assert any(words in note for note in metadata["header_notes"])

    # A volume that is put together again has its voxels where the affine puts them.
    volume, placed = opened.label("a")
    stored = np.linalg.inv(affine) @ placed @ [*np.argwhere(volume)[0], 1]
    raw = (dataset.root / "labelsTr/a.nii").read_bytes()[352:]
    label = np.frombuffer(raw, np.uint8).reshape(SHAPE, order="F")
    assert label[tuple(stored[:3].round().astype(int))] == 1

    # The report and the preview.
    facts = facts_of(output)
    slices_, rows, columns = expected
    assert facts.spacings["between slices"].median == slices_
    assert {facts.spacings["between rows"].median, facts.spacings["between columns"].median} == {
        rows, columns,
    }  # fmt: skip
    (found,) = facts.labels
    assert found.volumes.median == pytest.approx(n_labelled * voxel_ml)
    assert any(words in note for note in facts.header_notes)
    (panel,) = read_panels(opened, opened.index, [0], window_size=0)
    assert panel.spacing == pytest.approx((rows, columns))
    assert len(SliceDataset(output)) == len(volume)


def test_the_page_of_the_report_says_so(case, monkeypatch) -> None:
    monkeypatch.setattr(preview, "picture", lambda *_, **__: b"PNG")
    sliced, _, words, _ = case
    assert words in text_of(page_of(sliced()))


def test_the_mm_of_a_message_are_those_of_the_affine(case) -> None:
    sliced, affine, _, _ = case
    output = sliced(shift=50.0)
    (line,) = (output / "failures.csv").read_text().splitlines()[1:]
    voxels = 50.0 / np.abs(affine[0, :3]).max()
    assert f"lies up to 50 mm ({voxels:.3g} voxels) off the image" in line
