"""Words in the names of files and folders by which label maps differ from images."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# As public datasets spell them: BraTS `seg`, KiTS `segmentation`, MRBrainS18 `segm`, ACDC `gt`,
# IBSR `segTRI`, FreeSurfer `aparc+aseg`, BTCV `label`, BIDS `dseg`, WMH `wmh`, BraTS-MEN-RT `gtv`.
_WORDS = frozenset(
    (
        *("annot", "annotation", "annotations", "consensus", "contour", "contours", "delineation"),
        *("groundtruth", "gt", "gts", "gtv", "gtvn", "gtvp", "gtvt", "oar", "truth", "wmh"),
        *("label", "labelmap", "labelmaps", "labels", "msk", "parcellation", "probseg"),
        *("segm", "segmentation", "segmentations", "segs"),
    )
)
# Also of `brainmask`, `tumorseg`, `wmparc` and the like.
_ENDINGS = ("mask", "masks", "parc", "seg")
# A mask of the face that was removed is no image, and no label either.
NO_LABELS = {"defacemask"}
# These name images, too, such as a T1 whose lesions are filled.
_WEAK_WORDS = {"lesion", "lesions", "manual", "roi", "rois", "tumor", "tumors", "tumour", "tumours"}


def words_of(name: str) -> tuple[str, ...]:
    """Return the words of a name, in lower case, without punctuation and numbers at their ends.

    >>> words_of("aparc+aseg"), words_of("LabelsForTraining"), words_of("CTMask1_segTRI")
    (('aparc', 'aseg'), ('labels', 'for', 'training'), ('ct', 'mask', 'seg', 'tri'))
    """
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    words = (word.strip("0123456789") for word in re.findall(r"[^\W_]+", apart.casefold()))
    return tuple(word for word in words if word)


def label_words(words: Iterable[str]) -> set[str]:
    """Return those of some words that only label maps have in their names."""
    return {word for word in words if word in _WORDS or word.endswith(_ENDINGS)}


def named_like_labels(stems: Sequence[str]) -> list[bool]:
    """Return which files of one case look like label maps, by their names.

    A word such as `lesion` counts only at the end of a name, beside files that have none there.

    >>> named_like_labels(["t1", "t1_lesion_filled", "seg"]), named_like_labels(["ct", "tumor"])
    ([False, False, True], [False, True])
    """
    words = [words_of(stem) for stem in stems]
    strict = [bool(label_words(own)) for own in words]
    are_labels = [
        is_strict or bool(_WEAK_WORDS.intersection(own[-1:]))
        for own, is_strict in zip(words, strict, strict=True)
    ]
    return strict if all(are_labels) else are_labels
