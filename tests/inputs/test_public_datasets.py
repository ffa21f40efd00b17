"""Public datasets, by the names of their files as they ship: read rightly, or refused.

Each entry holds the files of two cases. A dataset that is refused names the option that decides,
and is read rightly with it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from repository import ROOT

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.discovery import find_cases
from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch

Cases = dict[str, list[str]]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A dataset as it ships, and what is to become of it.

    Attributes
    ----------
    files : list of str
    cases : dict
        Of each case its images, then its label or masks after ``|``; all relative.
    refused : str
        What the refusal must say, a part of a line; empty if no option is needed.
    options : dict
        With which the cases are read; empty if the dataset cannot be read at all.
    groups : list of str
        Of the cases, in their order, where the dataset knows patients.
    described : dict
        The content of dataset.json.
    """

    files: list[str]
    cases: Cases = field(default_factory=dict)
    refused: str = ""
    options: dict[str, object] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)
    described: dict[str, object] | None = None
    channels: list[str] = field(default_factory=list)


def each(ids: list[str], *patterns: str) -> list[str]:
    """Return paths with every id in place of ``@``."""
    return [pattern.replace("@", case_id) for case_id in ids for pattern in patterns]


def case_table(ids: list[str], images: list[str], label: str = "", name: str = "@") -> Cases:
    """Return the cases whose files have every id in place of ``@``."""
    tail = ["|", label] if label else []
    return {
        name.replace("@", case_id): [part.replace("@", case_id) for part in [*images, *tail]]
        for case_id in ids
    }


BRATS20 = ["BraTS20_Training_001", "BraTS20_Training_002"]
BRATS23 = ["BraTS-GLI-00000-000", "BraTS-GLI-00002-000"]
TS_ORGANS = ["aorta", "liver", "spleen"]
PAIRS = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "2": "cancer"}}
HANSEG = [
    *("@/@_IMG_CT.nrrd", "@/@_IMG_MR_T1.nrrd"),
    *("@/@_OAR_Brainstem.seg.nrrd", "@/@_OAR_Parotid_L.seg.nrrd"),
]
UCSF = ["UCSF-PDGM-0004", "UCSF-PDGM-0005"]
ISLES = ["sub-strokecase0001", "sub-strokecase0002"]
ATLAS = "@_ses-1_space-MNI152NLin2009aSym"
OASIS = ["OASIS_OAS1_0001_MR1", "OASIS_OAS1_0002_MR1"]
FSL_OASIS = "@/@_mpr_n4_anon_111_t88_masked_gfc"

DATASETS: dict[str, Published] = {
    "BraTS 2020": Published(
        files=[
            *each(
                BRATS20,
                *("@/@_flair.nii.gz", "@/@_t1.nii.gz", "@/@_t1ce.nii.gz", "@/@_t2.nii.gz"),
                "@/@_seg.nii.gz",
            ),
            *("name_mapping.csv", "survival_info.csv"),
        ],
        cases=case_table(
            BRATS20,
            ["@/@_flair.nii.gz", "@/@_t1.nii.gz", "@/@_t1ce.nii.gz", "@/@_t2.nii.gz"],
            "@/@_seg.nii.gz",
        ),
        channels=["flair", "t1", "t1ce", "t2"],
    ),
    "BraTS 2023": Published(
        files=each(
            BRATS23,
            *("@/@-t1c.nii.gz", "@/@-t1n.nii.gz", "@/@-t2f.nii.gz", "@/@-t2w.nii.gz"),
            "@/@-seg.nii.gz",
        ),
        cases=case_table(
            BRATS23,
            ["@/@-t1c.nii.gz", "@/@-t1n.nii.gz", "@/@-t2f.nii.gz", "@/@-t2w.nii.gz"],
            "@/@-seg.nii.gz",
        ),
        channels=["t1c", "t1n", "t2f", "t2w"],
    ),
    "BTCV raw": Published(
        files=each(["0001", "0002"], "img/img@.nii.gz", "label/label@.nii.gz"),
        cases=case_table(["0001", "0002"], ["img/img@.nii.gz"], "label/label@.nii.gz", "img@"),
    ),
    "AMOS": Published(
        files=[
            *each(
                ["amos_0001", "amos_0004"],
                *("imagesTr/@.nii.gz", "labelsTr/@.nii.gz"),
            ),
            *("imagesVa/amos_0008.nii.gz", "labelsVa/amos_0008.nii.gz"),
            "imagesTs/amos_0002.nii.gz",
        ],
        cases={
            **case_table(["amos_0001", "amos_0004"], ["imagesTr/@.nii.gz"], "labelsTr/@.nii.gz"),
            **case_table(["amos_0008"], ["imagesVa/@.nii.gz"], "labelsVa/@.nii.gz"),
        },
    ),
    "FLARE 2021": Published(
        files=each(
            ["train_000", "train_001"], "TrainingImg/@_0000.nii.gz", "TrainingMask/@.nii.gz"
        ),
        cases=case_table(
            ["train_000", "train_001"],
            ["TrainingImg/@_0000.nii.gz"],
            "TrainingMask/@.nii.gz",
        ),
    ),
    "FLARE 2022": Published(
        files=each(
            ["FLARE22_Tr_0001", "FLARE22_Tr_0002"], "images/@_0000.nii.gz", "labels/@.nii.gz"
        ),
        cases=case_table(
            ["FLARE22_Tr_0001", "FLARE22_Tr_0002"], ["images/@_0000.nii.gz"], "labels/@.nii.gz"
        ),
    ),
    "KiTS 2019": Published(
        files=[
            *each(["case_00000", "case_00001"], "@/imaging.nii.gz", "@/segmentation.nii.gz"),
            "kits.json",
        ],
        cases=case_table(
            ["case_00000", "case_00001"], ["@/imaging.nii.gz"], "@/segmentation.nii.gz"
        ),
    ),
    "KiTS 2021": Published(
        files=each(
            ["case_00000", "case_00001"],
            *("@/imaging.nii.gz", "@/aggregated_AND_seg.nii.gz", "@/aggregated_MAJ_seg.nii.gz"),
            "@/aggregated_OR_seg.nii.gz",
            "@/segmentations/kidney_instance-1_annotation-1.nii.gz",
            "@/segmentations/tumor_instance-1_annotation-1.nii.gz",
        ),
        refused="--label_name",
        options={"label_name": "aggregated_MAJ_seg"},
        cases=case_table(
            ["case_00000", "case_00001"], ["@/imaging.nii.gz"], "@/aggregated_MAJ_seg.nii.gz"
        ),
    ),
    "LiTS": Published(
        files=each(["0", "1"], "volume-@.nii", "segmentation-@.nii"),
        cases=case_table(["0", "1"], ["volume-@.nii"], "segmentation-@.nii", "volume-@"),
    ),
    "LiTS in two folders": Published(
        files=each(["0", "1"], "volumes/volume-@.nii", "segmentations/segmentation-@.nii"),
        cases=case_table(
            ["0", "1"], ["volumes/volume-@.nii"], "segmentations/segmentation-@.nii", "volume-@"
        ),
    ),
    "TotalSegmentator": Published(
        files=[
            *each(
                ["s0000", "s0001"],
                "@/ct.nii.gz",
                *(f"@/segmentations/{organ}.nii.gz" for organ in TS_ORGANS),
            ),
            "meta.csv",
        ],
        cases={
            case_id: [
                f"{case_id}/ct.nii.gz",
                "|",
                *(f"{case_id}/segmentations/{organ}.nii.gz" for organ in TS_ORGANS),
            ]
            for case_id in ["s0000", "s0001"]
        },
    ),
    "MSD Task01 BrainTumour": Published(
        files=each(["BRATS_001", "BRATS_002"], "imagesTr/@.nii.gz", "labelsTr/@.nii.gz"),
        described={
            "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
            "labels": {"0": "background", "1": "edema"},
            "tensorImageSize": "4D",
            "training": [
                {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
                for name in ["BRATS_001", "BRATS_002"]
            ],
            "test": [],
        },
        cases=case_table(["BRATS_001", "BRATS_002"], ["imagesTr/@.nii.gz"], "labelsTr/@.nii.gz"),
    ),
    "MSD Task03 Liver": Published(
        files=[
            *each(["liver_0", "liver_10"], "imagesTr/@.nii.gz", "labelsTr/@.nii.gz"),
            *each(["liver_0"], "imagesTr/._@.nii.gz", "labelsTr/._@.nii.gz"),
            "imagesTs/liver_132.nii.gz",
        ],
        described={
            **PAIRS,
            "training": [
                {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
                for name in ["liver_0", "liver_10"]
            ],
            "test": ["./imagesTs/liver_132.nii.gz"],
        },
        cases=case_table(["liver_0", "liver_10"], ["imagesTr/@.nii.gz"], "labelsTr/@.nii.gz"),
    ),
    "ACDC": Published(
        files=each(
            ["patient001", "patient002"],
            *("@/@_4d.nii.gz", "@/@_frame01.nii.gz", "@/@_frame01_gt.nii.gz"),
            *("@/@_frame12.nii.gz", "@/@_frame12_gt.nii.gz", "@/Info.cfg"),
        ),
        cases={
            f"{patient}_frame{frame}": [
                f"{patient}/{patient}_frame{frame}.nii.gz",
                "|",
                f"{patient}/{patient}_frame{frame}_gt.nii.gz",
            ]
            for patient in ["patient001", "patient002"]
            for frame in ["01", "12"]
        },
        groups=["patient001", "patient001", "patient002", "patient002"],
    ),
    "M&Ms": Published(
        files=each(["A0S9V9", "A1D0Q7"], "@/@_sa.nii.gz", "@/@_sa_gt.nii.gz"),
        cases=case_table(["A0S9V9", "A1D0Q7"], ["@/@_sa.nii.gz"], "@/@_sa_gt.nii.gz"),
    ),
    "M&Ms-2": Published(
        files=each(
            ["001", "002"],
            *("@/@_SA_CINE.nii.gz", "@/@_SA_ED.nii.gz", "@/@_SA_ED_gt.nii.gz"),
            *("@/@_SA_ES.nii.gz", "@/@_SA_ES_gt.nii.gz"),
        ),
        cases={
            f"{patient}_SA_{phase}": [
                f"{patient}/{patient}_SA_{phase}.nii.gz",
                "|",
                f"{patient}/{patient}_SA_{phase}_gt.nii.gz",
            ]
            for patient in ["001", "002"]
            for phase in ["ED", "ES"]
        },
        groups=["001", "001", "002", "002"],
    ),
    "CHAOS": Published(
        files=[
            *each(["1", "2"], "CT/@/DICOM_anon/i0000,0000b.dcm", "CT/@/Ground/liver_GT_000.png"),
            "MR/1/T1DUAL/DICOM_anon/InPhase/IMG-0004-00002.dcm",
        ],
        refused="dcm2niix",
    ),
    "PROMISE12": Published(
        files=each(
            ["Case00", "Case01"],
            *("@.mhd", "@.raw", "@_segmentation.mhd", "@_segmentation.raw"),
        ),
        cases=case_table(["Case00", "Case01"], ["@.mhd"], "@_segmentation.mhd"),
    ),
    "VerSe 2019": Published(
        files=each(
            ["verse004", "verse005"], "@.nii.gz", "@_seg.nii.gz", "@_ctd.json", "@_snapshot.png"
        ),
        cases=case_table(["verse004", "verse005"], ["@.nii.gz"], "@_seg.nii.gz"),
    ),
    "VerSe 2020": Published(
        files=each(
            ["sub-verse500", "sub-verse501"],
            "rawdata/@/@_dir-ax_ct.nii.gz",
            "derivatives/@/@_dir-ax_seg-vert_msk.nii.gz",
            "derivatives/@/@_dir-ax_seg-subreg_ctd.json",
        ),
        cases=case_table(
            ["sub-verse500", "sub-verse501"],
            ["rawdata/@/@_dir-ax_ct.nii.gz"],
            "derivatives/@/@_dir-ax_seg-vert_msk.nii.gz",
            "@_dir-ax_ct",
        ),
        groups=["sub-verse500", "sub-verse501"],
    ),
    "ATLAS 2": Published(
        files=each(
            ["sub-r001s001", "sub-r001s002"],
            f"R001/@/ses-1/anat/{ATLAS}_T1w.nii.gz",
            f"R001/@/ses-1/anat/{ATLAS}_label-L_desc-T1lesion_mask.nii.gz",
        ),
        cases=case_table(
            ["sub-r001s001", "sub-r001s002"],
            [f"R001/@/ses-1/anat/{ATLAS}_T1w.nii.gz"],
            f"R001/@/ses-1/anat/{ATLAS}_label-L_desc-T1lesion_mask.nii.gz",
            f"{ATLAS}_T1w",
        ),
        groups=["sub-r001s001", "sub-r001s002"],
    ),
    "ISLES 2022": Published(
        files=each(
            ISLES,
            "@/ses-0001/anat/@_ses-0001_FLAIR.nii.gz",
            *("@/ses-0001/dwi/@_ses-0001_adc.nii.gz", "@/ses-0001/dwi/@_ses-0001_dwi.nii.gz"),
            "derivatives/@/ses-0001/@_ses-0001_msk.nii.gz",
        ),
        refused="--images",
        options={
            "images": ("*/*/dwi/*_dwi.nii.gz", "*/*/dwi/*_adc.nii.gz"),
            "labels": "derivatives/*/*/*_msk.nii.gz",
        },
        cases=case_table(
            ISLES,
            ["@/ses-0001/dwi/@_ses-0001_dwi.nii.gz", "@/ses-0001/dwi/@_ses-0001_adc.nii.gz"],
            "derivatives/@/ses-0001/@_ses-0001_msk.nii.gz",
            "@_ses-0001",
        ),
    ),
    "MRBrainS13": Published(
        files=each(
            ["1", "2"],
            *("@/T1.nii", "@/T1_1mm.nii", "@/T1_IR.nii", "@/T2_FLAIR.nii"),
            *("@/LabelsForTraining.nii", "@/LabelsForTesting.nii"),
        ),
        refused="--label_name",
        options={
            "label_name": "LabelsForTraining",
            "modalities": ("T1", "T1_IR", "T2_FLAIR"),
        },
        cases=case_table(
            ["1", "2"], ["@/T1.nii", "@/T1_IR.nii", "@/T2_FLAIR.nii"], "@/LabelsForTraining.nii"
        ),
        channels=["T1", "T1_IR", "T2_FLAIR"],
    ),
    "MRBrainS18": Published(
        files=each(
            ["1", "4"],
            *("@/orig/FLAIR.nii.gz", "@/orig/T1.nii.gz", "@/pre/FLAIR.nii.gz"),
            *("@/pre/reg_T1.nii.gz", "@/segm.nii.gz"),
        ),
        refused="--modalities",
        options={"modalities": ("pre/FLAIR", "pre/reg_T1")},
        cases=case_table(
            ["1", "4"], ["@/pre/FLAIR.nii.gz", "@/pre/reg_T1.nii.gz"], "@/segm.nii.gz"
        ),
        channels=["pre/FLAIR", "pre/reg_T1"],
    ),
    "IBSR": Published(
        files=each(
            ["IBSR_01", "IBSR_02"],
            *("@/@_ana.nii.gz", "@/@_ana_brainmask.nii.gz", "@/@_ana_strip.nii.gz"),
            *("@/@_seg_ana.nii.gz", "@/@_segTRI_ana.nii.gz", "@/@_segTRI_fill_ana.nii.gz"),
        ),
        refused="--label_name",
        options={"label_name": "segTRI_ana", "modalities": ("ana_strip",)},
        cases=case_table(["IBSR_01", "IBSR_02"], ["@/@_ana_strip.nii.gz"], "@/@_segTRI_ana.nii.gz"),
        channels=["ana_strip"],
    ),
    "UCSF-PDGM": Published(
        files=each(
            UCSF,
            *(f"@_nifti/@_{name}.nii.gz" for name in ("T1", "T1_bias", "T1c", "T2", "FLAIR")),
            *(f"@_nifti/@_{name}.nii.gz" for name in ("DWI", "ADC", "SWI", "ASL", "DTI_eddy_FA")),
            *("@_nifti/@_brain_segmentation.nii.gz", "@_nifti/@_tumor_segmentation.nii.gz"),
            "@_nifti/@_brain_parenchyma_segmentation.nii.gz",
        ),
        refused="--label_name",
        options={"label_name": "tumor_segmentation", "modalities": ("T1c", "FLAIR")},
        cases=case_table(
            UCSF,
            ["@_nifti/@_T1c.nii.gz", "@_nifti/@_FLAIR.nii.gz"],
            "@_nifti/@_tumor_segmentation.nii.gz",
            "@_nifti",
        ),
        channels=["T1c", "FLAIR"],
    ),
    "LGG-1p19q": Published(
        files=each(
            ["LGG-104", "LGG-203"], "@/@_T1.nii.gz", "@/@_T2.nii.gz", "@/@_Segmentation.nii.gz"
        ),
        cases=case_table(
            ["LGG-104", "LGG-203"], ["@/@_T1.nii.gz", "@/@_T2.nii.gz"], "@/@_Segmentation.nii.gz"
        ),
        channels=["T1", "T2"],
    ),
    "iSeg 2017": Published(
        files=each(
            ["subject-1", "subject-2"],
            *("@-T1.hdr", "@-T1.img", "@-T2.hdr", "@-T2.img", "@-label.hdr", "@-label.img"),
        ),
        cases=case_table(["subject-1", "subject-2"], ["@-T1.hdr", "@-T2.hdr"], "@-label.hdr"),
        channels=["T1", "T2"],
    ),
    "WMH": Published(
        files=each(
            ["0", "2"],
            *("@/orig/3DT1.nii.gz", "@/orig/FLAIR.nii.gz", "@/orig/T1.nii.gz"),
            *("@/pre/FLAIR.nii.gz", "@/pre/T1.nii.gz", "@/wmh.nii.gz"),
        ),
        refused="--modalities",
        options={"modalities": ("pre/FLAIR", "pre/T1")},
        cases=case_table(["0", "2"], ["@/pre/FLAIR.nii.gz", "@/pre/T1.nii.gz"], "@/wmh.nii.gz"),
        channels=["pre/FLAIR", "pre/T1"],
    ),
    "OASIS-1, registered": Published(
        files=each(
            OASIS,
            *("@/aligned_norm.nii.gz", "@/aligned_seg35.nii.gz", "@/aligned_seg4.nii.gz"),
            *("@/norm.nii.gz", "@/seg35.nii.gz", "@/seg4.nii.gz"),
        ),
        refused="--label_name",
        options={"label_name": "aligned_seg35", "modalities": ("aligned_norm",)},
        cases=case_table(OASIS, ["@/aligned_norm.nii.gz"], "@/aligned_seg35.nii.gz"),
        channels=["aligned_norm"],
    ),
    "OASIS-1, pairs": Published(
        files=each(
            ["OAS1_0001_MR1", "OAS1_0002_MR1"],
            *(f"{FSL_OASIS}.hdr", f"{FSL_OASIS}.img"),
            *(f"{FSL_OASIS}_fseg.hdr", f"{FSL_OASIS}_fseg.img"),
        ),
        cases=case_table(
            ["OAS1_0001_MR1", "OAS1_0002_MR1"], [f"{FSL_OASIS}.hdr"], f"{FSL_OASIS}_fseg.hdr"
        ),
    ),
    "SegTHOR": Published(
        files=each(["Patient_01", "Patient_02"], "@/@.nii.gz", "@/GT.nii.gz"),
        cases=case_table(["Patient_01", "Patient_02"], ["@/@.nii.gz"], "@/GT.nii.gz"),
    ),
    "HaN-Seg": Published(
        files=each(["case_01", "case_02"], *HANSEG),
        cases={
            case_id: [
                *(f"{case_id}/{case_id}_IMG_{name}.nrrd" for name in ("CT", "MR_T1")),
                "|",
                *(
                    f"{case_id}/{case_id}_OAR_{organ}.seg.nrrd"
                    for organ in ("Brainstem", "Parotid_L")
                ),
            ]
            for case_id in ["case_01", "case_02"]
        },
    ),
    "AbdomenCT-1K": Published(
        files=[
            "AbdomenCT-1K-ImagePart1/Case_00001_0000.nii.gz",
            "AbdomenCT-1K-ImagePart2/Case_00400_0000.nii.gz",
            *each(["Case_00001", "Case_00400"], "Mask/@.nii.gz"),
        ],
        cases={
            "Case_00001": [
                "AbdomenCT-1K-ImagePart1/Case_00001_0000.nii.gz",
                *("|", "Mask/Case_00001.nii.gz"),
            ],
            "Case_00400": [
                "AbdomenCT-1K-ImagePart2/Case_00400_0000.nii.gz",
                *("|", "Mask/Case_00400.nii.gz"),
            ],
        },
    ),
    "CT-ORG": Published(
        files=each(["0", "1"], "volume-@.nii.gz", "labels-@.nii.gz"),
        cases=case_table(["0", "1"], ["volume-@.nii.gz"], "labels-@.nii.gz", "volume-@"),
    ),
    "IXI": Published(
        files=["IXI002-Guys-0828-T1.nii.gz", "IXI012-HH-1211-T1.nii.gz"],
        cases={
            "IXI002-Guys-0828-T1": ["IXI002-Guys-0828-T1.nii.gz"],
            "IXI012-HH-1211-T1": ["IXI012-HH-1211-T1.nii.gz"],
        },
    ),
    "MM-WHS": Published(
        files=each(["1001", "1002"], "ct_train_@_image.nii.gz", "ct_train_@_label.nii.gz"),
        cases=case_table(
            ["1001", "1002"],
            ["ct_train_@_image.nii.gz"],
            "ct_train_@_label.nii.gz",
            "ct_train_@_image",
        ),
    ),
    "PDDCA": Published(
        files=each(
            ["0522c0001", "0522c0002"],
            *("@/img.nrrd", "@/structures/BrainStem.nrrd", "@/structures/Mandible.nrrd"),
        ),
        cases={
            case_id: [
                f"{case_id}/img.nrrd",
                "|",
                *(f"{case_id}/structures/{name}.nrrd" for name in ("BrainStem", "Mandible")),
            ]
            for case_id in ["0522c0001", "0522c0002"]
        },
    ),
    "SPIDER": Published(
        files=each(["1_t1", "1_t2", "2_t1"], "images/@.mha", "masks/@.mha"),
        cases=case_table(["1_t1", "1_t2", "2_t1"], ["images/@.mha"], "masks/@.mha"),
    ),
    "CrossMoDA": Published(
        files=each(["crossmoda_1", "crossmoda_2"], "@_ceT1.nii.gz", "@_Label.nii.gz"),
        cases=case_table(
            ["crossmoda_1", "crossmoda_2"], ["@_ceT1.nii.gz"], "@_Label.nii.gz", "@_ceT1"
        ),
    ),
    "HECKTOR": Published(
        files=each(
            ["CHUM-001", "CHUM-002"],
            *("imagesTr/@__CT.nii.gz", "imagesTr/@__PT.nii.gz", "labelsTr/@.nii.gz"),
        ),
        refused="--images",
        options={
            "images": ("imagesTr/*__CT.nii.gz", "imagesTr/*__PT.nii.gz"),
            "labels": "labelsTr/*.nii.gz",
        },
        cases=case_table(
            ["CHUM-001", "CHUM-002"],
            ["imagesTr/@__CT.nii.gz", "imagesTr/@__PT.nii.gz"],
            "labelsTr/@.nii.gz",
        ),
    ),
    "NFBS": Published(
        files=each(
            ["A00028185", "A00028352"],
            *("@/sub-@_ses-NFB3_T1w.nii.gz", "@/sub-@_ses-NFB3_T1w_brain.nii.gz"),
            "@/sub-@_ses-NFB3_T1w_brainmask.nii.gz",
        ),
        refused="--images",
        options={"images": ("*/*_T1w.nii.gz",), "labels": "*/*_T1w_brainmask.nii.gz"},
        cases=case_table(
            ["A00028185", "A00028352"],
            ["@/sub-@_ses-NFB3_T1w.nii.gz"],
            "@/sub-@_ses-NFB3_T1w_brainmask.nii.gz",
            "sub-@_ses-NFB3",
        ),
    ),
}


def lay(root: Path, published: Published) -> None:
    for name in published.files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    if published.described is not None:
        (root / "dataset.json").write_text(json.dumps(published.described))


def cases_of(match: LayoutMatch, root: Path) -> Cases:
    table = {}
    for case in match.cases:
        files = [*case.images, *(["|"] if case.has_label else []), *case.label_files]
        table[case.case_id] = [
            path if path == "|" else Path(path).relative_to(root).as_posix() for path in files
        ]
    return table


@pytest.mark.parametrize("name", [n for n, entry in DATASETS.items() if entry.refused])
def test_a_public_dataset_that_is_not_clear_is_refused_with_the_way_out(tmp_path, name) -> None:
    published = DATASETS[name]
    lay(tmp_path, published)
    try:
        problems = find_cases(tmp_path).problems
    except DatasetError as error:
        problems = [str(error)]
    assert problems
    assert any(published.refused in problem for problem in problems), problems


@pytest.mark.parametrize("name", [n for n, entry in DATASETS.items() if entry.cases])
def test_a_public_dataset_is_read_rightly(tmp_path, name) -> None:
    published = DATASETS[name]
    lay(tmp_path, published)
    match = find_cases(tmp_path, InputOptions(**published.options))
    assert match.problems == []
    assert cases_of(match, tmp_path) == published.cases
    if published.groups:
        assert [case.group for case in match.cases] == published.groups
    if published.channels:
        assert list(match.channel_names) == published.channels
    # Every volume is accounted for.
    used = {path for files in published.cases.values() for path in files}
    left_out = {role.path for role in match.files if role.role in ("left out", "not read")}
    volumes = {role.path for role in match.files}
    assert volumes - left_out == used - {"|"}
    assert all(role.detail for role in match.files if role.path in left_out)


@pytest.mark.parametrize("name", DATASETS)
def test_the_page_on_datasets_lists_it(name) -> None:
    page = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    assert f"| {name} |" in page
