"""Images and labels pair by what varies in their names, and never across patients."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_slicer.inputs.pairing import choose_name, pair

# Images, labels, and the pairs as they should be: label → image.
PAIRS = {
    "equal": (["a", "b"], ["b", "a"], {"a": "a", "b": "b"}),
    "lits": (["volume-0", "volume-10"], ["segmentation-0", "segmentation-10"], None),
    "btcv": (["img0001", "img0002"], ["label0001", "label0002"], None),
    "ct_org": (["volume-0"], ["labels-0"], None),
    "promise12": (["Case00", "Case01"], ["Case00_segmentation", "Case01_segmentation"], None),
    "acdc": (
        ["patient001_frame01", "patient001_frame12"],
        ["patient001_frame01_gt", "patient001_frame12_gt"],
        None,
    ),
    "flare": (["train_000_0000", "train_001_0000"], ["train_000", "train_001"], None),
    "amos": (["amos_0001", "amos_0004"], ["amos_0001", "amos_0004"], None),
    "abdomenct_1k": (["Case_00001_0000", "Case_00002_0000"], ["Case_00001", "Case_00002"], None),
    "mm_whs": (
        ["ct_train_1001_image", "mr_train_1001_image"],
        ["ct_train_1001_label", "mr_train_1001_label"],
        None,
    ),
    "crossmoda": (["crossmoda_1_ceT1"], ["crossmoda_1_Label"], None),
    "words_of_organs": (["case_01", "case_02"], ["case_01_organs", "case_02_organs"], None),
    "words_of_phases": (["anna_venous", "bert_venous"], ["anna", "bert"], None),
    "one_label_longer_than_its_image": (["anna", "bert"], ["anna_liver"], {"anna_liver": "anna"}),
    "timepoints": (["p_t1", "p_t2"], ["p_t1_seg", "p_t2_seg"], None),
    "camel": (["CT1", "CT2"], ["CTMask1", "CTMask2"], None),
    "look_alike": (
        [unicodedata.normalize("NFD", "Müller"), "Case1 "],
        ["müller", "case1"],
        {"müller": unicodedata.normalize("NFD", "Müller"), "case1": "Case1 "},
    ),
    "surplus": (["a", "b"], ["b_seg", "c_seg"], {"b_seg": "b"}),
    "only_role_words": (["image"], ["label"], None),
}
NO_PAIRS = {
    "other_patients": (["anna_1"], ["bert_1"]),
    "other_patients_two_each": (["anna_1", "anna_2"], ["bert_1", "bert_2"]),
    "name_of_the_only_patient": (["1", "2"], ["bert_1"]),
    "years": (["p1_2019"], ["p2_2019"]),
    "years_with_words": (["p1_2019_ct", "p3_2020_ct"], ["p2_2019_seg", "p4_2020_seg"]),
    "zeros": (["1", "2"], ["01", "001"]),
    "zeros_with_words": (["img1", "img2"], ["label01", "label0002"]),
    "other_timepoints": (["p_t1", "q_t2"], ["p_t2_seg", "q_t1_seg"]),
    "scanners": (["ct_1", "ct_2"], ["mr_1_seg", "mr_2_seg"]),
    "several_images": (["p_t1", "p_t2"], ["p_seg"]),
    "several_labels": (["p"], ["p_seg", "p_mask"]),
    "digits_run_together": (["12"], ["1label2"]),
    "words_on_both_sides": (["a_venous", "b_venous"], ["a_organs", "b_organs"]),
    "nothing": ([], []),
}


@pytest.mark.parametrize(("images", "labels", "pairs"), PAIRS.values(), ids=PAIRS)
def test_names_pair_by_what_varies(images, labels, pairs) -> None:
    expected = dict(zip(labels, images, strict=True)) if pairs is None else pairs
    assert pair(images, labels).image_of == expected


@pytest.mark.parametrize(("images", "labels"), NO_PAIRS.values(), ids=NO_PAIRS)
def test_names_that_do_not_surely_belong_together_do_not_pair(images, labels) -> None:
    assert pair(images, labels).image_of == {}


_WORDS = st.sampled_from(
    ["img", "label", "seg", "anna", "bert", "case", "organs", "CT", "mr", "T1", "t2", "mask", "p",
     "1", "01", "2", "10", "0000", "2019", "img0001", "label0001", "label1", "Case00", "tumor"]
)  # fmt: skip
_NAMES = st.lists(
    st.builds(
        lambda words, separator: separator.join(words),
        st.lists(_WORDS, min_size=1, max_size=4),
        st.sampled_from(["_", "-", ".", " "]),
    ),
    max_size=6,
    unique=True,
)


def _digits(name: str) -> list[str]:
    """Return the numbers of a name, without those of T1 and T2."""
    return re.findall(r"\d+", re.sub(r"(?<![a-z0-9])t[12](?![a-z0-9])", "", name.casefold()))


@given(_NAMES, _NAMES, st.randoms(use_true_random=False))
def test_pairs_have_equal_numbers_are_one_to_one_and_do_not_depend_on_the_order(
    images, labels, random
) -> None:
    image_of = pair(images, labels).image_of
    assert set(image_of) <= set(labels)
    assert set(image_of.values()) <= set(images)
    assert len(set(image_of.values())) == len(image_of)
    for label, image in image_of.items():
        # Where all images are numbered as first channels, that number is no part of an id.
        image = image if label.endswith("0000") else image.removesuffix("_0000")
        assert _digits(label) == _digits(image)
    random.shuffle(images)
    random.shuffle(labels)
    assert pair(images, labels).image_of == image_of


@given(_NAMES)
def test_equal_names_pair(names) -> None:
    distinct = {unicodedata.normalize("NFC", name).casefold(): name for name in names}
    names = list(distinct.values())
    assert pair(names, names).image_of == {name: name for name in names}


@pytest.mark.parametrize(
    ("name", "known", "chosen"),
    [
        ("T1", ["T1", "pre/T1"], "T1"),
        ("t1", ["pre/T1", "T1w"], "pre/T1"),
        ("t1", ["T1", "pre/t1"], "T1"),
        ("CT", ["IMG_CT", "IMG_MR_T1"], "IMG_CT"),
        ("1", ["T1", "seg_11"], None),
        ("FLAIR", ["pre/FLAIR", "orig/FLAIR"], None),
        ("x", [], None),
    ],
)
def test_a_name_is_chosen_as_it_is_in_another_case_or_by_its_last_part(name, known, chosen) -> None:
    assert choose_name(name, known) == chosen
