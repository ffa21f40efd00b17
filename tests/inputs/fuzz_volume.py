"""Coverage-guided fuzzing of what reads volumes, with atheris.

    python tests/inputs/fuzz_volume.py CORPUS -runs=100000

CORPUS is a folder of files to start from, and gets those that lead further.
"""

from __future__ import annotations

import gzip
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dask_slicer", "nibabel"]):
    import nibabel as nib

    from dask_slicer.errors import CaseError
    from dask_slicer.inputs.readers import read_voxels
import numpy as np

# The most that a file of a few kilobytes may take, in kB: it may inflate to some megabytes.
MOST_MEMORY = 50_000


def peak_memory() -> int:
    """Return the most memory that this process has taken, in kB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0])


# Of files that are not NIfTI, by their first bytes.
SUFFIXES = {b"NRRD": ".nrrd", b"Obje": ".mha", b"\0\0\0\1": ".mgh"}


def read(data: bytes) -> None:
    """Read a file, a NIfTI file as nibabel reads it, or refuse it by name."""
    suffix = ".nii.gz" if data[:2] == b"\x1f\x8b" else SUFFIXES.get(data[:4], ".nii")
    path = FOLDER / f"scan{suffix}"
    path.write_bytes(data)
    before = peak_memory()
    try:
        header, voxels = read_voxels(path)
    except CaseError:
        return
    finally:
        assert peak_memory() - before < MOST_MEMORY
    if not suffix.startswith(".nii") or any("converted" in note for note in header.notes):
        return
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    is_first = 348 in (int.from_bytes(data[:4], order) for order in ("little", "big"))
    kind, size = (nib.Nifti1Image, 348) if is_first else (nib.Nifti2Image, 540)
    # Without extensions, which hold no voxel, and which nibabel may refuse.
    expected = kind.from_bytes(data[:size] + bytes(4) + data[size + 4 :])
    stored = expected.dataobj.get_unscaled().reshape(expected.shape[:3])
    np.testing.assert_array_equal(voxels, stored)
    np.testing.assert_array_equal(header.affine, expected.affine)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        FOLDER = Path(folder)
        atheris.Setup(sys.argv, read)
        atheris.Fuzz()
