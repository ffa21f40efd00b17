"""Words in the names of files and folders by which label maps differ from images."""

from __future__ import annotations

import re
from collections.abc import Sequence

# As public datasets spell them: BraTS `seg`, KiTS `segmentation`, MRBrainS18 `segm`, ACDC `gt`,
# IBSR `segTRI`, FreeSurfer `aparc+aseg`, BTCV `label`, BIDS `dseg`, `mask`, `msk`.
_ALSO_OF_IMAGES = frozenset(
    ["lesion", "lesions", "manual", "roi", "rois", "tumor", "tumors", "tumour", "tumours"]
)
LABEL_WORDS = frozenset(
    (
        *("annot", "annotation", "annotations", "contour", "contours"),
        *("aparc", "aseg", "dseg", "gmseg", "seg", "segm", "segs", "segmentation", "segmentations"),
        *("brainmask", "defacemask", "mask", "masks", "msk"),
        *("groundtruth", "gt", "label", "labelmap", "labels", "truth"),
        *_ALSO_OF_IMAGES,
    )
)


def words_of(name: str) -> tuple[str, ...]:
    """Return the words of a name, in lower case, without numbers and punctuation.

    >>> words_of("aparc+aseg"), words_of("LabelsForTraining"), words_of("subject1_segTRI")
    (('aparc', 'aseg'), ('labels', 'for', 'training'), ('subject', 'seg', 'tri'))
    """
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return tuple(re.findall(r"[^\W\d_]+", apart.casefold()))


def named_like_labels(stems: Sequence[str]) -> list[bool]:
    """Return which files of one case look like label maps, by their names.

    `tumor` and the like tell nothing where all of several files have this word.

    >>> named_like_labels(["tumor_t1", "tumor_t1_seg"]), named_like_labels(["t1", "tumor"])
    ([False, True], [False, True])
    """
    words = [set(words_of(stem)) for stem in stems]
    common = _ALSO_OF_IMAGES.intersection(*words) if len(words) > 1 else set()
    return [bool(LABEL_WORDS & own - common) for own in words]


def labels_beside_images(stems: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of names, image and label, that differ in words for label maps alone.

    >>> labels_beside_images(["liver_1", "liver_1_seg", "tumor_2", "liver_3"])
    [('liver_1', 'liver_1_seg')]
    """
    parts = {stem: _parts(stem) for stem in stems}
    images = {own: stem for stem, own in parts.items() if not LABEL_WORDS.intersection(own)}
    pairs = []
    for stem, own in parts.items():
        image = images.get(tuple(part for part in own if part not in LABEL_WORDS))
        if image is not None and LABEL_WORDS.intersection(own):
            pairs.append((image, stem))
    return pairs


def _parts(stem: str) -> tuple[str, ...]:
    """Return the words and numbers of a name, in lower case."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem)
    return tuple(re.findall(r"[^\W\d_]+|\d+", apart.casefold()))
