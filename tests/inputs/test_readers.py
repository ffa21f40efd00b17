"""Every reader satisfies its protocol, and one that is added to `READERS` is used."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dask_slicer.config.schema import RunConfig
from dask_slicer.errors import CorruptFile
from dask_slicer.inputs import readers
from dask_slicer.inputs.case import is_volume_name, split_channel, stem_of
from dask_slicer.inputs.load import load_volume
from dask_slicer.inputs.phantom import write_nifti
from dask_slicer.inputs.readers import READERS
from dask_slicer.inputs.readers.base import Reader, VolumeHeader
from dask_slicer.planning.planner import make_plan

STORED = np.arange(24, dtype=np.int16).reshape(2, 3, 4)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_a_reader_satisfies_its_protocol(tmp_path, reader) -> None:
    for name in ("read_header", "read_voxels"):
        _, *parameters = inspect.signature(getattr(Reader, name)).parameters.values()
        of_reader = inspect.signature(getattr(reader, name)).parameters.values()
        assert [(each.name, each.kind, each.default) for each in of_reader] == [
            (each.name, each.kind, each.default) for each in parameters
        ]
    for suffix in reader.SUFFIXES:
        assert suffix.startswith(".")
        assert suffix == suffix.lower()
        path = tmp_path / f"noise{suffix.upper()}"
        path.write_bytes(b"noise")
        with pytest.raises(CorruptFile, match="noise"):
            readers.read_header(path)


def read_npy_header(path: str, **_: object) -> VolumeHeader:
    stored = np.load(path)
    return VolumeHeader(
        path=path,
        shape=stored.shape,
        dtype=stored.dtype,
        affine=np.eye(4),
        oriented=True,
        slope=1.0,
        intercept=0.0,
        file_bytes=Path(path).stat().st_size,
    )


@pytest.fixture
def npy_is_read(monkeypatch) -> None:
    reader = SimpleNamespace(
        SUFFIXES=(".np", ".vol.npy"),
        read_header=read_npy_header,
        read_voxels=lambda headers, scratch_dir: [np.load(header.path) for header in headers],
    )
    monkeypatch.setattr(readers, "READERS", (*READERS, reader))


@pytest.mark.usefixtures("npy_is_read")
def test_a_reader_that_is_added_is_used(tmp_path) -> None:
    (tmp_path / "imagesTr").mkdir()
    np.save(tmp_path / "imagesTr" / "a_0000.Vol.npy", STORED)
    plan = make_plan(RunConfig(input_dir=tmp_path, output_dir=tmp_path / "slices"))
    (case,) = plan.cases
    assert (case.problem, case.shape, case.dtypes) == (None, (4, 3, 2), ("int16",))
    volume = load_volume(case.case, "k")
    assert np.array_equal(volume.image[0].stored, STORED.transpose(2, 0, 1))


@pytest.mark.usefixtures("npy_is_read")
def test_suffixes_of_an_added_reader_end_names_of_volumes() -> None:
    assert is_volume_name("a.vol.npy")
    assert stem_of("a.b.vol.NPY") == "a.b"
    assert split_channel("a_0003.np") == ("a", 3)
    assert stem_of("a.nii.gz") == "a"
    assert not is_volume_name("a.npy")


def test_a_file_with_another_suffix_is_read_as_nifti(tmp_path) -> None:
    write_nifti(tmp_path / "scan.nii", STORED, np.eye(4))
    (tmp_path / "scan.nii").rename(tmp_path / "scan")
    header, stored = readers.read_voxels(tmp_path / "scan")
    assert header.shape == (2, 3, 4)
    assert np.array_equal(stored, STORED)
