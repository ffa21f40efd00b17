"""Coverage-guided fuzzing of what reads volumes, with atheris.

    python tests/fuzz_volume.py CORPUS -runs=100000

CORPUS is a folder of files to start from, and gets those that lead further.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dask_slicer", "nibabel"]):
    import nibabel as nib

    from dask_slicer.errors import CaseError
    from dask_slicer.nifti import read_voxels
import numpy as np


def read(data: bytes) -> None:
    """Read a file as nibabel reads it, or refuse it by name."""
    path = FOLDER / ("scan.nii.gz" if data[:2] == b"\x1f\x8b" else "scan.nii")
    path.write_bytes(data)
    try:
        header, voxels = read_voxels(path)
    except CaseError:
        return
    expected = nib.load(path)
    stored = expected.dataobj.get_unscaled().reshape(expected.shape[:3])
    np.testing.assert_array_equal(voxels, stored)
    np.testing.assert_array_equal(header.affine, expected.affine)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        FOLDER = Path(folder)
        atheris.Setup(sys.argv, read)
        atheris.Fuzz()
