"""Words in the names of files and folders that tell images from label maps."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Literal

from dask_slicer.inputs.case import name_of, stem_of

# As public datasets spell them: BraTS `seg`, KiTS `segmentation`, MRBrainS18 `segm`, ACDC `gt`,
# IBSR `segTRI`, FreeSurfer `aparc+aseg`, BTCV `label`, BIDS `dseg`, WMH `wmh`, BraTS-MEN-RT `gtv`.
_LABEL_WORDS = frozenset(
    (
        *("annot", "annotation", "annotations", "annotator", "consensus", "contour", "contours"),
        *("delineation", "goldstandard", "groundtruth", "gt", "gts", "gtv", "gtvn", "gtvp", "gtvt"),
        *("label", "labelmap", "labelmaps", "labels", "msk", "oar", "oars", "organs", "observer"),
        *("parcellation", "pred", "prediction", "predictions", "preds", "probseg", "rater"),
        *("reader", "segm", "segmentation", "segmentations", "segs", "structures", "truth", "wmh"),
    )
)
# Also of `brainmask`, `tumorseg`, `wmparc` and the like.
_LABEL_ENDINGS = ("mask", "masks", "parc", "seg")
# A mask of the face that was removed is no image, and no label either.
NO_LABELS = {"defacemask"}
# These name images, too, such as a T1 whose lesions are filled.
_WEAK_WORDS = {"lesion", "lesions", "manual", "roi", "rois", "tumor", "tumors", "tumour", "tumours"}
# Label files with these words hold one structure each, such as HaN-Seg's `OAR_Brainstem`.
ONE_STRUCTURE = frozenset({"oar", "oars", "organ", "organs", "structure", "structures"})

_IMAGE_FOLDERS = frozenset(
    (
        *("image", "images", "imaging", "img", "imgs", "scan", "scans"),
        *("vol", "vols", "volume", "volumes"),
    )
)
_CT_WORDS = frozenset({"cbct", "cect", "ct", "cta", "ncct"})
_MR_WORDS = frozenset(
    (
        *("cet1", "dixon", "dwi", "flair", "hrt2", "lge", "mprage", "mr", "mra", "mri", "pd"),
        *("pdw", "swi", "t1", "t1c", "t1ce", "t1gd", "t1n", "t1w", "t2", "t2f", "t2s", "t2star"),
        *("t2w", "tof"),
    )
)
_OTHER_MODALITIES = frozenset({"adc", "cine", "dce", "pet", "pt", "spect"})
# IBSR `ana`, CrossMoDA `ceT1` and `hrT2`, HECKTOR `PT`.
_IMAGE_WORDS = _IMAGE_FOLDERS | _CT_WORDS | _MR_WORDS | _OTHER_MODALITIES | {"ana", "anat", "orig"}
_TEST_WORDS = {"test", "testing", "ts"}
_VALIDATION_WORDS = {"dev", "va", "val", "valid", "validation"}
_TRAINING_WORDS = {"tr", "train", "training"}

# Between words that are written together: segTRI, CTMask, img0001.
_AT_CAPITALS = r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"
_WORD_ENDS = re.compile(_AT_CAPITALS + r"|(?<=\d)(?=[^\W\d_])|(?<=[^\W\d_])(?=\d)")


def plain(name: str) -> str:
    r"""Return a name as it is compared: two names that look alike are equal.

    >>> plain(" Case01"), plain("Mu\u0308ller") == plain("Müller")
    ('case01', True)
    """
    return unicodedata.normalize("NFC", name).casefold().strip()


@lru_cache(maxsize=10_000)
def words_of(name: str) -> tuple[str, ...]:
    """Return the words of a name, in lower case, without punctuation and numbers at their ends.

    >>> words_of("aparc+aseg"), words_of("LabelsForTraining"), words_of("CTMask1_segTRI")
    (('aparc', 'aseg'), ('labels', 'for', 'training'), ('ct', 'mask', 'seg', 'tri'))
    """
    apart = re.sub(_AT_CAPITALS, " ", name)
    words = (word.strip("0123456789") for word in re.findall(r"[^\W_]+", apart.casefold()))
    return tuple(word for word in words if word)


@lru_cache(maxsize=10_000)
def pieces_of(name: str) -> tuple[tuple[str, str], ...]:
    """Return the words and numbers of a name, each with the text that separates it from the last.

    A number at one end of a word is apart, so that img0001 and label0001 have the same number; a
    word with numbers inside or at both ends, such as an id, and a word such as T1, stay whole.

    >>> pieces_of("img0001-T1_c01s02")
    (('', 'img'), ('', '0001'), ('-', 'T1'), ('_', 'c01s02'))
    """
    pieces = []
    for separator, run in re.findall(r"([\W_]*)([^\W_]*)", name):
        whole = run.casefold() in _IMAGE_WORDS or not re.fullmatch(
            r"\d*[^\W\d_]+|[^\W\d_]+\d*", run
        )
        first, *others = [run] if whole else _WORD_ENDS.split(run)
        pieces += [(separator, first), *(("", other) for other in others)]
    return tuple(piece for piece in pieces if piece != ("", ""))


def without(name: str, words: Collection[str]) -> str:
    """Return a name without some words, in any case, and the separators before them.

    Of a word that is there twice, the last is removed: the other may be part of an id.

    >>> without("volume-0", {"volume"}), without("p_seg1", {"seg"}), without("CT1_ct", {"ct"})
    ('0', 'p_1', 'CT1')
    """
    pieces = pieces_of(name)
    last = {piece.casefold(): number for number, (_, piece) in enumerate(pieces)}
    kept, pending, is_removed = "", "", False
    for number, (separator, piece) in enumerate(pieces):
        if piece and piece.casefold() in words and last[piece.casefold()] == number:
            pending, is_removed = separator or pending, True
            continue
        if kept or not is_removed:
            kept += separator or pending
        kept += piece
        pending = ""
    return kept


def label_words(words: Iterable[str]) -> set[str]:
    """Return those of some words that only label maps have in their names."""
    return {word for word in words if word in _LABEL_WORDS or word.endswith(_LABEL_ENDINGS)}


def all_label_words(name: str) -> set[str]:
    """Return the words of a name that label maps have, also those that images may have.

    >>> sorted(all_label_words("liver_tumor_mask"))
    ['mask', 'tumor']
    """
    words = words_of(name)
    return label_words(words) | _WEAK_WORDS.intersection(words)


def image_words(name: str) -> set[str]:
    """Return the words of a name that images have, such as t1 or volume."""
    return {piece.casefold() for _, piece in pieces_of(name)} & _IMAGE_WORDS


def are_modalities(names: Iterable[str]) -> bool:
    """Return whether each of some names is that of another modality of one patient.

    CT and MR of equal names are often of different patients.

    >>> are_modalities(["t1", "t2"]), are_modalities(["t1", "image"]), are_modalities(["ct", "mr"])
    (True, False, False)
    >>> are_modalities(["ct", "scan_ct"])
    False
    """
    modalities = _CT_WORDS | _MR_WORDS | _OTHER_MODALITIES
    words = [frozenset(image_words(name)) & modalities for name in names]
    has_ct_and_mr = all(any(own & scanner for own in words) for scanner in (_CT_WORDS, _MR_WORDS))
    return all(words) and len(set(words)) == len(words) and not has_ct_and_mr


def names_an_image(stem: str) -> bool:
    """Return whether a file name has a word for images and none for labels.

    >>> names_an_image("sub-1_T1w"), names_an_image("volume-0"), names_an_image("case_1")
    (True, True, False)
    >>> names_an_image("t1_seg")
    False
    """
    return bool(image_words(stem)) and not label_words(words_of(stem))


def named_like_labels(stems: Sequence[str]) -> list[bool]:
    """Return which files of one case look like label maps, by their names.

    A word such as `lesion` counts only if not all names have it: at the end of a name, or in a name
    without a word for images where the others have one.

    >>> named_like_labels(["t1", "t1_lesion_filled", "seg"]), named_like_labels(["ct", "tumor"])
    ([False, False, True], [False, True])
    >>> named_like_labels(["tumor_5", "tumor_5_ct"])
    [False, False]
    >>> named_like_labels(["t1w_stx", "LesionSmooth_stx"])
    [False, True]
    """
    words = [words_of(stem) for stem in stems]
    strict = [bool(label_words(own)) for own in words]
    has_images = any(map(names_an_image, stems))
    weak = _WEAK_WORDS.difference(set(words[0]).intersection(*words)) if words else _WEAK_WORDS
    are_labels = [
        is_strict
        or bool(weak.intersection(own[-1:]))
        or (has_images and bool(weak.intersection(own)) and not image_words(stem))
        for stem, own, is_strict in zip(stems, words, strict, strict=True)
    ]
    return strict if all(are_labels) else are_labels


@lru_cache(maxsize=100_000)
def folder_role(name: str) -> Literal["label", "image", "modality", ""]:
    """Return what the files in a folder are by its name, "" if it does not say so.

    >>> [folder_role(name) for name in ("labelsTr", "TrainingImg", "t1", "patient_7")]
    ['label', 'image', 'modality', '']
    """
    words = words_of(name)
    if label_words(words):
        return "label"
    if _IMAGE_FOLDERS.intersection(words):
        return "image"
    return "modality" if image_words(name) else ""


def held_out_split(folder: str) -> Literal["test", "val", ""]:
    """Return the split that a folder such as imagesTs or ValidationImg is for, "" for training."""
    words = set(words_of(folder))
    if words & _TEST_WORDS and not words & _TRAINING_WORDS:
        return "test"
    return "val" if words & _VALIDATION_WORDS else ""


def split_of_folder(folder: str) -> Literal["train", "val", "test", ""]:
    """Return the split that a folder is named for and nothing else, "" if it is not.

    >>> [split_of_folder(name) for name in ("Training", "dev_set", "test", "imagesTs", "test1")]
    ['train', 'val', 'test', '', '']
    """
    words = set(words_of(folder)) - {"data", "set"}
    if not words or re.search(r"\d", folder):
        return ""
    if words <= _TRAINING_WORDS:
        return "train"
    if words <= _VALIDATION_WORDS:
        return "val"
    return "test" if words <= _TEST_WORDS else ""


def says_only_its_role(folder: str) -> bool:
    """Return whether a folder's name has words for images or labels, and no name of a case.

    >>> [says_only_its_role(name) for name in ("TrainingImg", "labelsTr", "scan1", "t1")]
    [True, True, False, True]
    """
    if not folder_role(folder):
        return False
    return not without(folder, _IMAGE_WORDS | _TRAINING_WORDS | label_words(words_of(folder)))


def may_be_case(folder: str, paths: Iterable[str]) -> bool:
    """Return whether a folder is a case, as iSeg_01 with T1.nii: its files have names of roles.

    >>> may_be_case("iSeg_01", ["iSeg_01/T1.nii"]), may_be_case("labels (1)", ["labels (1)/p7.nii"])
    (True, False)
    """
    stems = (stem_of(name_of(path)) for path in paths)
    return not says_only_its_role(folder) and any(
        not without(stem, image_words(stem) | all_label_words(stem)) for stem in stems
    )
