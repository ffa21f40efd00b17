"""Files of imaging formats that no reader reads, and the way to convert them."""

from __future__ import annotations

from collections import Counter

from dask_slicer.inputs.case import name_of
from dask_slicer.inputs.tree import FileTree
from dask_slicer.utils.formatting import plural

DICOM = "DICOM is not read; dcm2niix makes NIfTI"
_PAR_REC = "Philips PAR/REC is not read; dcm2niix makes NIfTI"
_PICTURES = "pictures are not read; stack them into a NIfTI volume"
_ARCHIVE = "an archive is not read; unpack it"
# Readers may read some of these: only files that none reads are looked up.
_WHY: dict[str, str] = {
    **dict.fromkeys((".dcm", ".ima", ".dicom"), DICOM),
    **dict.fromkeys((".par", ".rec"), _PAR_REC),
    ".mnc": "MINC is not read; mnc2nii makes NIfTI",
    ".img": "the voxels of an Analyze or NIfTI pair, without a header (.hdr) that is read",
    **dict.fromkeys((".nrrd", ".nhdr", ".mha", ".mhd"), "not read; SimpleITK makes NIfTI"),
    **dict.fromkeys((".mgz", ".mgh"), "not read; mri_convert or nibabel makes NIfTI"),
    **dict.fromkeys((".npy", ".npz", ".h5", ".hdf5"), "arrays without geometry are not read"),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"), _PICTURES),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".rar", ".7z"), _ARCHIVE),
}
# Often snapshots, tables and downloads beside volumes: no note.
_BESIDE_VOLUMES = {_PICTURES, _ARCHIVE, _WHY[".npy"]}


def unread_files(tree: FileTree) -> dict[str, str]:
    """Return why files that are or may hold volumes are not read, by path."""
    volumes = set(tree.volumes)
    headers = {path.lower().removesuffix(".gz") for path in volumes if ".hdr" in path.lower()}
    reasons: dict[str, str] = {}
    for path in tree.paths:
        if path in volumes:
            continue
        why = _WHY.get(suffix_of(path).removesuffix(".gz"))
        if why and f"{path.lower().removesuffix('.gz')[:-4]}.hdr" not in headers:
            reasons[path] = why
    return reasons


def is_picture(why: str) -> bool:
    """Return whether a file that is not read is often found beside volumes, such as a snapshot."""
    return why in _BESIDE_VOLUMES


def kinds_of(reasons: dict[str, str]) -> list[str]:
    """Return files that are not read by kind, the most frequent first.

    >>> kinds_of({"a/1.dcm": DICOM, "a/2.dcm": DICOM})
    ['2 .dcm files: DICOM is not read; dcm2niix makes NIfTI']
    """
    counts = Counter((suffix_of(path), why) for path, why in reasons.items())
    return [f"{plural(n, f'{suffix} file')}: {why}" for (suffix, why), n in counts.most_common()]


def suffix_of(path: str) -> str:
    """Return the suffix of a path, in lower case, with that below .gz.

    >>> suffix_of("a.b/c.PAR"), suffix_of("scan.mnc.gz"), suffix_of("a.b/IM_0001")
    ('.par', '.mnc.gz', '')
    """
    name = name_of(path).lower()
    inner = name.removesuffix(".gz")
    return name[inner.rfind(".") :] if "." in inner else ""
