"""Roles of the files in folders of cases, of images and of labels, or why they are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.discovery import find_cases
from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch


def lay(root: Path, files: list[str]) -> None:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def nii(*stems: str) -> list[str]:
    return [f"{stem}.nii.gz" for stem in stems]


def cases_of(match: LayoutMatch, root: Path) -> dict[str, list[str | None]]:
    """Return what each case is made of, without suffixes: its images, then its label or masks."""

    def stem(path: str) -> str:
        return Path(path).relative_to(root).as_posix().removesuffix(".nii.gz")

    return {
        case.case_id: [*map(stem, case.images), *map(stem, case.label_files)]
        for case in match.cases
    }


def brats(case_id: str, *names: str, separator: str = "_") -> list[str]:
    return nii(*(f"{case_id}/{case_id}{separator}{name}" for name in names))


READ = {
    "two of four modalities": (
        brats("BraTS-GLI-00000-000", "seg", "t1c", "t1n", "t2f", "t2w", separator="-"),
        {"modalities": ("t1c", "t1n")},
        "folder_per_case",
        {
            "BraTS-GLI-00000-000": [
                f"BraTS-GLI-00000-000/BraTS-GLI-00000-000-{name}" for name in ("t1c", "t1n", "seg")
            ]
        },
        ("t1c", "t1n"),
    ),
    "KiTS21": (
        nii(
            "case_00000/imaging",
            "case_00000/aggregated_MAJ_seg",
            "case_00000/aggregated_OR_seg",
            "case_00000/segmentations/kidney_instance-1_annotation-1",
        ),
        {"label_name": "aggregated_MAJ_seg"},
        "folder_per_case",
        {"case_00000": ["case_00000/imaging", "case_00000/aggregated_MAJ_seg"]},
        ("imaging",),
    ),
    "KiTS23": (
        nii("c_0/imaging", "c_0/segmentation", "c_0/instances/kidney_instance-1_annotation-1"),
        {"label_name": "segmentation"},
        "folder_per_case",
        {"c_0": ["c_0/imaging", "c_0/segmentation"]},
        ("imaging",),
    ),
    "images in a folder within": (
        nii("0/wmh", "0/pre/FLAIR", "0/pre/T1", "2/wmh", "2/pre/FLAIR", "2/pre/T1"),
        {},
        "folder_per_case",
        {str(n): [f"{n}/pre/FLAIR", f"{n}/pre/T1", f"{n}/wmh"] for n in (0, 2)},
        ("pre/FLAIR", "pre/T1"),
    ),
    "IBSR": (
        brats("IBSR_01", "ana", "ana_strip", "seg_ana", "segTRI_ana", "segTRI_fill_ana"),
        {"label_name": "segtri_ana", "modalities": ("ana_strip",)},
        "folder_per_case",
        {"IBSR_01": ["IBSR_01/IBSR_01_ana_strip", "IBSR_01/IBSR_01_segTRI_ana"]},
        ("ana_strip",),
    ),
    "OASIS": (
        nii(*(f"OAS1_000{n}/{name}" for n in "12" for name in ("norm", "orig", "seg4", "seg35"))),
        {"label_name": "seg4", "modalities": ("norm",)},
        "folder_per_case",
        {f"OAS1_000{n}": [f"OAS1_000{n}/norm", f"OAS1_000{n}/seg4"] for n in "12"},
        ("norm",),
    ),
    "ATLAS 1.2": (
        brats("c0001s0004t01", "t1w_stx", "LesionSmooth_stx")
        + brats("c0001s0006t01", "t1w_stx", "LesionSmooth_stx"),
        {},
        "folder_per_case",
        {
            case: [f"{case}/{case}_t1w_stx", f"{case}/{case}_LesionSmooth_stx"]
            for case in ("c0001s0004t01", "c0001s0006t01")
        },
        ("t1w_stx",),
    ),
    "images of one patient with labels of their own": (
        brats("001", "SA_CINE", "SA_ED", "SA_ED_gt", "LA_ES", "LA_ES_gt"),
        {},
        "folder_per_case",
        {
            "001_SA_ED": ["001/001_SA_ED", "001/001_SA_ED_gt"],
            "001_LA_ES": ["001/001_LA_ES", "001/001_LA_ES_gt"],
        },
        (),
    ),
    "a structure that one case lacks": (
        nii("s0000/ct", "s0000/segmentations/liver", "s0000/segmentations/aorta", "s0001/ct")
        + nii("s0001/segmentations/liver"),
        {},
        "folder_per_case",
        {
            "s0000": ["s0000/ct", "s0000/segmentations/aorta", "s0000/segmentations/liver"],
            "s0001": ["s0001/ct", "s0001/segmentations/liver"],
        },
        ("ct",),
    ),
    "TotalSegmentator, some structures": (
        nii("s0000/ct", "s0000/segmentations/liver", "s0000/segmentations/aorta", "s0001/ct")
        + nii("s0001/segmentations/liver", "s0001/segmentations/spleen"),
        {"structures": ("Spleen", "liver")},
        "folder_per_case",
        {
            "s0000": ["s0000/ct", "s0000/segmentations/liver"],
            "s0001": ["s0001/ct", "s0001/segmentations/spleen", "s0001/segmentations/liver"],
        },
        ("ct",),
    ),
    "organs, and a modality by its last part": (
        brats("case_01", "IMG_CT", "IMG_MR_T1", "OAR_A_Carotid_L.seg", "OAR_Brainstem.seg"),
        {"modalities": ("CT",)},
        "folder_per_case",
        {
            "case_01": [
                "case_01/case_01_IMG_CT",
                "case_01/case_01_OAR_A_Carotid_L.seg",
                "case_01/case_01_OAR_Brainstem.seg",
            ]
        },
        ("IMG_CT",),
    ),
    "masks without a word for labels": (
        nii("p1/ct", "p1/liver", "p1/spleen", "p2/ct", "p2/liver"),
        {"structures": ("liver", "spleen")},
        "folder_per_case",
        {"p1": ["p1/ct", "p1/liver", "p1/spleen"], "p2": ["p2/ct", "p2/liver"]},
        ("ct",),
    ),
    "a label map in a folder of its own": (
        nii("p1/ct", "p1/labels/p1", "p2/ct", "p2/labels/p2"),
        {},
        "folder_per_case",
        {p: [f"{p}/ct", f"{p}/labels/{p}"] for p in ("p1", "p2")},
        ("ct",),
    ),
    "BTCV, averages": (
        nii("Training/img0001", "masks/label0001"),
        {},
        "images_and_labels",
        {"img0001": ["Training/img0001", "masks/label0001"]},
        (),
    ),
    "images and masks": (
        nii("images/a", "masks/a"),
        {},
        "images_and_labels",
        {"a": ["images/a", "masks/a"]},
        (),
    ),
    "labels with a word": (
        nii("images/x", "images/y", "labels/x_seg", "labels/y_seg"),
        {},
        "images_and_labels",
        {"x": ["images/x", "labels/x_seg"], "y": ["images/y", "labels/y_seg"]},
        (),
    ),
    "images for validation": (
        nii("TrainingImg/train_000_0000", "TrainingMask/train_000", "ValidationImg/v_1_0000"),
        {},
        "images_and_labels",
        {"train_000": ["TrainingImg/train_000_0000", "TrainingMask/train_000"]},
        (),
    ),
    "Decathlon without dataset.json": (
        nii("imagesTr/liver_1", "imagesTr/liver_2", "labelsTr/liver_1", "labelsTr/liver_2")
        + nii("imagesTs/liver_9"),
        {"include_test": True},
        "images_and_labels",
        {
            "liver_1": ["imagesTr/liver_1", "labelsTr/liver_1"],
            "liver_2": ["imagesTr/liver_2", "labelsTr/liver_2"],
            "liver_9": ["imagesTs/liver_9"],
        },
        (),
    ),
    "one of two folders of labels": (
        nii("images/a", "labels/a", "predictions/a"),
        {"label_name": "labels"},
        "images_and_labels",
        {"a": ["images/a", "labels/a"]},
        (),
    ),
    "images alone": (nii("scans/a", "scans/b"), {}, "images_and_labels",
                     {"a": ["scans/a"], "b": ["scans/b"]}, ()),
    "LiTS in a folder": (
        nii(*(f"Training Batch 1/{name}-{n}" for n in "01" for name in ("volume", "segmentation"))),
        {},
        "one_folder",
        {
            f"volume-{n}": [f"Training Batch 1/volume-{n}", f"Training Batch 1/segmentation-{n}"]
            for n in "01"
        },
        (),
    ),
    "CT and MR of one number, with labels": (
        nii(*(f"{s}_train_1001_{name}" for s in ("ct", "mr") for name in ("image", "label"))),
        {},
        "one_folder",
        {
            f"{s}_train_1001_image": [f"{s}_train_1001_image", f"{s}_train_1001_label"]
            for s in ("ct", "mr")
        },
        (),
    ),
    "CT, PET and label in one folder": (
        nii(*(f"CHUM00{n}_{name}" for n in (1, 2) for name in ("ct", "pt", "gtvt"))),
        {},
        "one_folder",
        {f"CHUM00{n}": [f"CHUM00{n}_{name}" for name in ("ct", "pt", "gtvt")] for n in (1, 2)},
        ("ct", "pt"),
    ),
    "cases that are named like images and labels": (
        nii("img_3/t1", "img_3/labels/seg", "seg9/t1", "seg9/labels/seg"),
        {},
        "folder_per_case",
        {case: [f"{case}/t1", f"{case}/labels/seg"] for case in ("img_3", "seg9")},
        ("t1",),
    ),
    "names in upper and in lower case": (
        nii("1/ct", "1/segmentations/liver", "1/segmentations/spleen")
        + nii("2/CT", "2/Segmentations/Liver", "2/Segmentations/spleen"),
        {},
        "folder_per_case",
        {
            "1": ["1/ct", "1/segmentations/liver", "1/segmentations/spleen"],
            "2": ["2/CT", "2/Segmentations/Liver", "2/Segmentations/spleen"],
        },
        ("ct",),
    ),
    "a case with a word for labels in its name": (
        nii(*(f"{case}/{n}" for case in ("ct_3_totalseg", "mr_4") for n in ("image", "label"))),
        {},
        "folder_per_case",
        {case: [f"{case}/image", f"{case}/label"] for case in ("ct_3_totalseg", "mr_4")},
        (),
    ),
    "one of two labels in one folder": (
        nii("a_ct", "a_seg", "a_mask", "b_ct", "b_seg"),
        {"label_name": "seg"},
        "one_folder",
        {"a_ct": ["a_ct", "a_seg"], "b_ct": ["b_ct", "b_seg"]},
        (),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("files", "options", "layout", "cases", "channels"), READ.values(), ids=READ
)
def test_files_have_their_roles_also_with_the_layout_named(
    tmp_path, files, options, layout, cases, channels
) -> None:
    lay(tmp_path, files)
    match = find_cases(tmp_path, InputOptions(**options))
    assert not match.problems
    assert cases_of(match, tmp_path) == cases
    assert match.channel_names == channels
    by_layout = find_cases(tmp_path, InputOptions(**options, layout=layout))
    assert by_layout.cases == match.cases
    assert {role.path for role in match.files} == set(files)


def test_words_for_labels_in_the_names_of_folders_do_not_hide_cases(tmp_path) -> None:
    lay(tmp_path, nii("ct_7_totalseg/image", "ct_7_totalseg/label", "ct_b/image", "ct_b/label"))
    cases = cases_of(find_cases(tmp_path), tmp_path)
    assert cases == {case: [f"{case}/image", f"{case}/label"] for case in ("ct_b", "ct_7_totalseg")}


def test_two_folders_for_one_thing_are_one_problem(tmp_path) -> None:
    lay(tmp_path, nii("images/a", "images/b", "labels/a", "labels/b", "masks/a", "masks/b"))
    (problem,) = find_cases(tmp_path).problems
    assert problem.endswith("choose one with --label_name labels")
    problems = find_cases(tmp_path, InputOptions(label_name="masks")).problems
    (tmp_path / "images" / "b.nii").touch()
    assert not problems
    (problem,) = find_cases(tmp_path, InputOptions(label_name="masks")).problems
    assert problem == ("two files for one volume: images/b.nii and b.nii.gz; remove one of them")


def test_a_missing_modality_is_looked_for_as_in_the_other_cases(tmp_path) -> None:
    lay(tmp_path, brats("A-1", "t1c", "t1n", separator="-") + brats("A-2", "t1n", separator="-"))
    assert cases_of(find_cases(tmp_path), tmp_path)["A-2"] == ["A-2/A-2-t1c", "A-2/A-2-t1n"]


REFUSED = {
    "MRBrainS13": (
        nii("1/T1", "1/LabelsForTraining", "1/LabelsForTesting"),
        {},
        "case 1 has 2 labels: LabelsForTesting, LabelsForTraining; choose with --label_name",
    ),
    "all images of one place": (
        nii("1/segm", "1/pre/FLAIR", "1/pre/T1", "1/pre/reg_T1", "1/orig/FLAIR", "1/t/T1"),
        {},
        "--modalities pre/FLAIR,pre/T1,pre/reg_T1 or",
    ),
    "KiTS21": (
        nii("c/imaging", "c/aggregated_MAJ_seg", "c/aggregated_OR_seg", "c/segmentations/kidney"),
        {},
        "case c has 3 labels: aggregated_MAJ_seg, aggregated_OR_seg, segmentations; choose",
    ),
    "a label name that is not there": (
        brats("IBSR_01", "ana", "seg_ana", "segTRI_ana"),
        {"label_name": "segTRI_anna"},
        "--label_name segTRI_anna: there is no such name; did you mean segTRI_ana?",
    ),
    "a structure that is not there": (
        nii("s0/ct", "s0/segmentations/liver", "s0/segmentations/spleen"),
        {"structures": ("livver",)},
        "--structures livver: there is no such name; did you mean liver?",
    ),
    "a modality that is not there": (
        brats("B_1", "t1", "t2", "seg"),
        {"modalities": ("t1c",)},
        "--modalities t1c: there is no such name",
    ),
    "modalities without names": (
        nii("images/a", "labels/a"),
        {"modalities": ("t1",)},
        "gives these images no names",
    ),
    "a label name in another layout": (
        nii("imagesTr/a_0000", "labelsTr/a"),
        {"label_name": "seg"},
        "--label_name has no effect in the layout nnU-Net raw",
    ),
    "structures in another layout": (
        nii("images/a", "labels/a"),
        {"structures": ("liver",)},
        "has no masks of structures",
    ),
    "a label of another frame": (
        nii("p/p_frame01", "p/p_frame12_gt", "q/q_frame01", "q/q_frame12_gt"),
        {},
        "is frame12_gt the label of frame01? their numbers differ",
    ),
    "other patients": (
        nii("images/anna_1", "labels/bert_1"),
        {},
        "no name in labels/ (bert_1) pairs with one in images/ (anna_1)",
    ),
    "other zeros": (nii("images/1", "images/2", "labels/01", "labels/02"), {}, "pairs with one in"),
    "two folders of labels": (
        nii("images/a", "labels/a", "masks/a"),
        {},
        "2 folders of labels: labels, masks; choose one with --label_name labels",
    ),
    "folders of modalities": (
        nii("t1/a", "t2/a", "labels/a"),
        {},
        "--images 't1/*' --images 't2/*' --labels 'labels/*'",
    ),
    "a folder that may have labels": (
        nii("images/a", "expert1/a"),
        {},
        "--images 'images/*' --labels 'expert1/*'",
    ),
    "sites with numbers of patients": (
        nii("siteA/001", "siteA/002", "siteB/001", "siteB/002"),
        {},
        "--images '*/*.nii.gz'",
    ),
    "folders whose images have nothing in common": (
        nii("siteA/anna", "siteA/bert", "siteB/carl", "siteB/dora"),
        {},
        "names that other folders do not have",
    ),
    "an image or a label": (
        nii("p_t1", "p_t2", "p", "p_seg"),
        {},
        "images of one case, or a label",
    ),
    "CT and MR of one number": (
        nii("ct_test_2001_image", "mr_test_2001_image"),
        {},
        "images of one case, or a label, or other patients?",
    ),
    "labels beside masks of what was imaged": (
        nii("images/21_training", "1st_manual/21_manual1", "mask/21_training_mask"),
        {},
        "2 folders of labels: 1st_manual, mask; choose one with --label_name 1st_manual",
    ),
    "another modality of each patient": (
        nii("a_t1", "a_seg", "b_t2", "b_seg"),
        {},
        "images of several modalities, and no case with more than one: a_t1, b_t2",
    ),
    "two labels in one folder": (
        nii("a_ct", "a_seg", "a_mask"),
        {},
        "1 case with several labels: a_mask, a_seg; choose with --label_name mask",
    ),
    "labels of other patients in one folder": (
        nii("anna_ct", "bert_seg"),
        {},
        "no label (bert_seg) pairs with an image (anna_ct)",
    ),
}


@pytest.mark.parametrize(("files", "options", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_sure_is_refused_with_the_option_that_decides(
    tmp_path, files, options, words
) -> None:
    lay(tmp_path, files)
    problems = find_cases(tmp_path, InputOptions(**options)).problems
    assert any(words in problem for problem in problems), problems


NOT_RECOGNISED = {
    "no word in any name": (nii("anna", "bert"), {}, "--images '*' takes each as a case"),
    "no word in a folder of its own": (
        nii("data/anna", "data/bert"), {}, "--images 'data/*' takes each as a case",
    ),
    "channels of nnU-Net": (
        nii("x/a_0000", "x/a_0001", "x/b_0000", "x/b_0001"),
        {},
        "--images 'x/*_0000*' --images 'x/*_0001*' takes 2 cases without labels",
    ),
    "numbers of patients": (nii("p_0000", "p_0001"), {}, "--images '*' takes each as a case"),
    "numbers from 1": (nii("a_0001", "b_0001"), {}, "--images '*' takes each as a case"),
    "labels alone": (nii("a_seg", "b_seg"), {}, "do not tell images from labels"),
    "some images with a word": (nii("a_t1", "b"), {}, "do not tell images from labels"),
    "one level deeper": (
        nii("a/study/ct", "a/study/seg", "b/study/ct"),
        {},
        "read them with --images '*/*/ct.nii.gz' --labels '*/*/seg.nii.gz'",
    ),
    "another layout": (nii("a/ct", "a/seg"), {"layout": "nnunet"}, "with --layout nnunet"),
    "a folder of labels among cases": (
        nii("a/ct", "b/ct", "masks/x"), {}, "--images GLOB --labels GLOB"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "options", "words"), NOT_RECOGNISED.values(), ids=NOT_RECOGNISED)
def test_what_no_layout_fits_is_refused(tmp_path, files, options, words) -> None:
    lay(tmp_path, files)
    with pytest.raises(DatasetError) as caught:
        find_cases(tmp_path, InputOptions(**options))
    assert words in str(caught.value)
