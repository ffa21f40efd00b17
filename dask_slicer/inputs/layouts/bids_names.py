"""Names of files in BIDS: subject, session, datatype, entities, and their role."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from dask_slicer.inputs.case import stem_of
from dask_slicer.inputs.role_words import label_words, named_like_labels, plain, words_of

# Entities of a derivative, not of the scan.
_DERIVED = {"atlas", "den", "desc", "label", "res", "seg", "space"}
# Suffixes of images, in lower case: a name that ends in one is no label, whatever else it holds.
_IMAGE_SUFFIXES = frozenset(
    (
        *("t1w", "t2w", "t2star", "t2starw", "flair", "pd", "pdw", "pdt2", "unit1", "inplanet1"),
        *("inplanet2", "angio", "swi", "mp2rage", "megre", "mese", "mtr", "mtsat", "mts", "vfa"),
        *("t1map", "t2map", "t2starmap", "r1map", "r2map", "pdmap", "t1rho", "chimap", "mtw"),
        *("dwi", "adc", "fa", "md", "trace", "bold", "sbref", "cbv", "asl", "m0scan", "pet"),
        *("ct", "cta", "ctp", "cect", "ncct", "mra", "cet1w", "t1ce", "t1c", "t1", "t2"),
    )
)
# At the end of a name. Masks of the brain, and of a face that was removed, come with many images.
_BRAIN_MASK = re.compile(r"(brain|deface|defacing|face)[-_]?mask$", re.IGNORECASE)
# Spaces that are the image's own.
_OWN_SPACES = {"", "individual", "native", "orig", "scanner", "subject"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BidsFile:
    """A volume in the folders of a subject, or below `derivatives`."""

    path: str
    stem: str  # the file name without its suffix
    above: str  # the folders above that of the subject, with a slash at their end
    subject: str  # such as "sub-01"
    in_session: bool  # in a folder of a session
    datatype: str  # the folder, such as "anat"; "" in that of the subject or session
    parts: tuple[str, ...]  # of the name, between underscores, without the subject
    scan: frozenset[str]  # entities of the scan

    @property
    def is_derived(self) -> bool:
        """Return whether the file is in derivatives/."""
        return "derivatives/" in self.above

    @property
    def is_misplaced(self) -> bool:
        """Return whether the name is that of another subject than the folder."""
        own = plain(self.stem.partition("_")[0])
        return own.startswith("sub-") and own not in plain(self.subject).split("_")

    @property
    def root(self) -> str:
        """Return the folder of the dataset that a file in derivatives/ belongs to."""
        return self.above.partition("derivatives/")[0]

    @property
    def suffix(self) -> str:
        """Return the end of the name that says what was measured, such as T1w."""
        return self.parts[-1] if self.parts and "-" not in self.parts[-1] else ""

    @property
    def derived(self) -> frozenset[str]:
        """Return the entities of a derivative, such as ``space-MNI``."""
        return frozenset(part for part in self.parts if part.partition("-")[0] in _DERIVED)

    @property
    def space(self) -> str:
        """Return the space that the file is in, empty for that of the scanner."""
        spaces = (part[len("space-") :] for part in self.parts if part.startswith("space-"))
        return next(spaces, "")

    @property
    def is_label(self) -> bool:
        """Return whether the name, or that of its pipeline, says that this is a label map."""
        if self.suffix.lower() in _IMAGE_SUFFIXES:
            # derivatives/labels/…_T1w, but not …_desc-preproc_T1w
            of_labels = self.is_derived and label_words(words_of(self.pipeline))
            return bool(of_labels) and not self.derived
        return any(_names_label(part) for part in self.parts if part not in self.scan)

    @property
    def no_label_map(self) -> str:
        """Return why a file that is named like a label is none, empty if it is one."""
        if self.suffix.lower() == "probseg":
            return "probabilities, no label map"
        if _BRAIN_MASK.search(self.stem):
            return "mask of the brain or of a removed face; --label_name uses it"
        return ""

    @property
    def pipeline(self) -> str:
        """Return the folders between derivatives/ and the subject, such as ``fmriprep``."""
        return self.above.partition("derivatives/")[2].rstrip("/")

    @property
    def image_suffixes(self) -> frozenset[str]:
        """Return the suffixes of images that the name of a label holds, in lower case."""
        if self.space.lower() in _IMAGE_SUFFIXES:
            return frozenset((self.space.lower(),))
        return _IMAGE_SUFFIXES.intersection(part.lower() for part in self.parts)

    def names_beside(self, image: BidsFile) -> list[str]:
        """Return the names of a label by which a user may choose it, the longest first.

        >>> image = bids_file("sub-1/anat/sub-1_T1w.nii.gz")
        >>> label = bids_file("derivatives/me/sub-1/anat/sub-1_T1w_label-cyst_mask.nii.gz")
        >>> label.names_beside(image)
        ['label-cyst_mask', 'me', 'label-cyst', 'mask', 'cyst']
        """
        rest = [part for part in self.parts if part not in image.parts]
        names = ["_".join(rest), self.pipeline, *rest]
        for part in rest:
            key, _, value = part.partition("-")
            names += [value] if key in _DERIVED else [key, value]
        return [name for name in dict.fromkeys(names) if name]


def bids_file(path: str) -> BidsFile | None:
    """Return what a path says, None if it names no subject.

    >>> scan = bids_file("rawdata/sub-1/ses-2/anat/sub-1_ses-2_acq-x_T1w.nii.gz")
    >>> scan.subject, scan.datatype, sorted(scan.scan), scan.suffix
    ('sub-1', 'anat', ['acq-x', 'ses-2'], 'T1w')
    """
    *folders, name = path.split("/")
    stem = stem_of(name)
    parts = stem.split("_")
    own = parts.pop(0) if parts[0].startswith("sub-") else ""
    n_above = next((n for n, part in enumerate(folders) if part.startswith("sub-")), None)
    if n_above is None and not own:
        return None
    below = [] if n_above is None else folders[n_above + 1 :]
    scan = {part for part in parts if "-" in part and _is_of_scan(part)}
    in_session = bool(below) and below[0].startswith("ses-")
    if in_session:
        scan.add(below.pop(0))
    return BidsFile(
        path=path,
        stem=stem,
        above="".join(f"{folder}/" for folder in folders[:n_above]),
        subject=own if n_above is None else folders[n_above],
        in_session=in_session,
        datatype=below[0] if below else "",
        parts=tuple(parts),
        scan=frozenset(scan),
    )


def fits(label: BidsFile, image: BidsFile) -> bool:
    """Return whether a label repeats the entities of an image, and names no other image."""
    if label.is_derived and not image.path.startswith(label.root):
        return False
    if label.image_suffixes and image.suffix.lower() not in label.image_suffixes:
        return False
    if label.datatype and image.datatype != label.datatype:
        return False
    return label.scan == image.scan or repeats(label, image)


def repeats(label: BidsFile, image: BidsFile) -> bool:
    """Return whether a label's name is that of an image and more: sub-1_T1w_rater-2_mask."""
    if not label.stem.startswith((f"{image.stem}_", f"{image.stem}-")):
        return False
    return not any(part.startswith("ses-") for part in label.scan ^ image.scan)


def is_in_space_of(label: BidsFile, image: BidsFile) -> bool:
    """Return whether the names do not say that a label lies in another space than its image."""
    own = _OWN_SPACES | {image.suffix.lower()}
    return label.space == image.space or (not image.space and label.space.lower() in own)


@cache
def _names_label(part: str) -> bool:
    # Words such as `lesion` count beside a name that has none.
    words = part.split("-")
    return any(named_like_labels([word, "x"])[0] for word in (words[0], words[-1], part))


@cache
def _is_of_scan(part: str) -> bool:
    key = part.partition("-")[0]
    return key not in _DERIVED and not named_like_labels([key, "x"])[0]
