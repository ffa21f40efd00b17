"""Headers of odd NIfTI files stay, and scans of other formats get the same physical grid."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from predicted import assemble, predict, run

SHAPE = (5, 6, 7)
AFFINE = np.array([[0, -1.5, 0, 3], [1.2, 0, 0, -7], [0, 0, 2.5, 11], [0, 0, 0, 1]])
SHEARED = np.array([[1, 0.4, 0, 0], [0, 2, 0.3, 0], [0, 0, 3, 0], [0, 0, 0, 1.0]])
# What a label map of three axes in one file must have, and nothing else.
CHANGED = {"datatype", "bitpix", "intent_code"}


def arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(-99, 99, SHAPE).astype(np.int16), rng.integers(0, 5, SHAPE, np.uint8)


def assembled(scans: Path, folder: Path, **settings: object) -> Path:
    """Return the volume that the labels of a case make."""
    output = run(scans, folder / "out", window_size=0, **settings)
    report = assemble(output, predict(output, folder / "p"), folder / "v", metrics=True)
    assert not report.failures, report.failures
    assert {label["dice"]["mean"] for label in report.metrics["train"].values()} == {1.0}
    return folder / "v" / "c.nii.gz"


def two_forms(header: nib.Nifti1Header) -> None:
    header.set_sform(AFFINE @ np.diag([1, -1, 1, 1]), 2)


def patch(start: int, values: bytes) -> Callable[[bytearray], None]:
    def patched(content: bytearray) -> None:
        content[start : start + len(values)] = values

    return patched


NIFTI = {
    "plain": {},
    "qfac 0": {"change": patch(76, struct.pack("<f", 0))},
    "negative pixdim": {"change": patch(80, struct.pack("<3f", -1.2, -1.5, -2.5))},
    "no form": {"change": patch(252, bytes(4))},
    "qform": {"fields": two_forms, "orientation_from": "qform"},
    "microns": {"fields": lambda header: header.set_xyzt_units("micron", "sec")},
    "sheared": {"affine": SHEARED, "plane": "coronal"},
    "NIfTI-2": {"kind": nib.Nifti2Image},
    "big-endian": {"order": ">"},
    "big-endian NIfTI-2": {"kind": nib.Nifti2Image, "order": ">"},
    "pair": {"kind": nib.Nifti1Pair, "suffix": ".img", "changed": {"magic", "vox_offset"}},
    "4D": {"shape": (*SHAPE, 3), "volumes": "1", "changed": {"dim"}},
}


@pytest.mark.parametrize("name", NIFTI)
def test_all_other_fields_of_a_nifti_header_stay(tmp_path, name) -> None:
    case = {"kind": nib.Nifti1Image, "affine": AFFINE, "suffix": ".nii", "order": "<"} | NIFTI[name]
    fields, change = case.pop("fields", None), case.pop("change", None)
    kind, affine, suffix, order = (case.pop(key) for key in ("kind", "affine", "suffix", "order"))
    shape, changed = case.pop("shape", SHAPE), case.pop("changed", set())
    image, label = arrays()
    image = np.broadcast_to(image.reshape(*SHAPE, *[1] * (len(shape) - 3)), shape)
    for voxels, stem in ((image, "imagesTr/c_0000"), (label, "labelsTr/c")):
        path = tmp_path / "scans" / (stem + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        header = kind.header_class(endianness=order)
        header.set_data_dtype(voxels.dtype)
        header.set_data_shape(voxels.shape)
        header.set_qform(affine, 1, strip_shears=True)
        header.set_sform(affine, 0 if name == "qform" else 3)
        header["descrip"], header["toffset"], header["slice_duration"] = b"odd", 0.5, 1.5
        header["cal_max"] = 40
        header["pixdim"][4:] = (2.5, 1, 2, 3)
        if fields is not None:
            fields(header)
        nib.save(kind(voxels, None, header), path)
        if change is not None:
            content = bytearray(path.read_bytes())
            change(content)
            path.write_bytes(content)
    volume = assembled(tmp_path / "scans", tmp_path, **case)
    source = tmp_path / "scans" / "imagesTr" / f"c_0000{suffix.replace('.img', '.hdr')}"
    layout = kind.header_class.template_dtype.newbyteorder(order)
    before = np.frombuffer(source.read_bytes(), layout, 1)[0]
    content = gzip.decompress(volume.read_bytes())
    after = np.frombuffer(content, layout, 1)[0]
    differ = {name for name in layout.names if before[name].tobytes() != after[name].tobytes()}
    assert differ == CHANGED | changed | {"cal_max"}
    read = nib.load(volume)
    assert read.header.endianness == order
    assert read.shape == SHAPE
    np.testing.assert_array_equal(np.asarray(read.dataobj), label)


@pytest.mark.parametrize("plane", ["axial", "sagittal"])
@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mgz"])
def test_other_formats_get_a_nifti_on_the_same_grid(tmp_path, suffix, plane) -> None:
    for voxels, stem in zip(arrays(), ("imagesTr/c_0000", "labelsTr/c"), strict=True):
        path = tmp_path / "scans" / (stem + suffix)
        path.parent.mkdir(parents=True)
        if suffix == ".mgz":
            nib.save(nib.MGHImage(voxels, AFFINE), path)
            continue
        itk = sitk.GetImageFromArray(voxels.T)
        cosine, sine = np.cos(0.2), np.sin(0.2)
        itk.SetDirection((0, -1, 0, cosine, 0, -sine, -sine, 0, -cosine))
        itk.SetOrigin((3, -4, 5))
        itk.SetSpacing((1.5, 0.7, 2))
        sitk.WriteImage(itk, path)
    volume = assembled(tmp_path / "scans", tmp_path, plane=plane)
    read = nib.load(volume)
    np.testing.assert_array_equal(np.asarray(read.dataobj), arrays()[1])
    if suffix == ".mgz":
        np.testing.assert_allclose(read.affine, AFFINE, atol=1e-6)
        return
    found, expected = sitk.ReadImage(volume), sitk.ReadImage(path)
    for method in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(found, method)(), getattr(expected, method)(), atol=1e-5)


@pytest.mark.parametrize("header", ["@", "AAAA", "A" * 400 + "="])
def test_a_damaged_header_in_the_journal_fails_its_case(tmp_path, header) -> None:
    for voxels, stem in zip(arrays(), ("imagesTr/c_0000", "labelsTr/c"), strict=True):
        path = tmp_path / "scans" / f"{stem}.nii"
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    output = run(tmp_path / "scans", tmp_path / "out", window_size=0)
    predictions = predict(output, tmp_path / "p")
    journal = output / "journal.jsonl"
    line = json.loads(journal.read_text())
    line["grid"][2] = header
    journal.write_text(json.dumps(line) + "\n")
    (failure,) = assemble(output, predictions, tmp_path / "v").failures
    assert failure.kind == "CorruptFile"
    line["grid"][1][0][0] = float("nan")  # as if the line were not there
    journal.write_text(json.dumps(line) + "\n")
    (failure,) = assemble(output, predictions, tmp_path / "v").failures
    assert "the output does not have" in failure.message
