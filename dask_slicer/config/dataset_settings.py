"""Settings of a dataset: which files are what, and how its cases are divided."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from dask_slicer.config import fields

# The value of `stratify` for label values, in place of a column.
BY_LABEL = "label"
# 1 - 0.8 - 0.2 is not 0 in binary.
_RATIO_SLACK = 1e-9


class SplitSettings(fields.Frozen):
    """How cases are divided into train, val and test."""

    train_ratio: fields.Ratio = Field(0.8, description="Fraction of the cases for training.")
    val_ratio: fields.Ratio | None = Field(
        None,
        description="Fraction for validation; the rest is test. [default: min(0.1, 1 - train)]",
    )
    group_regex: fields.RegexWithGroup | None = Field(
        None,
        description="Regular expression for case ids whose first group is the patient; a patient "
        "is never in two splits.",
    )
    group_column: fields.NonEmpty | None = Field(
        None,
        description="Column of the manifest or of participants.tsv: cases with the same value are "
        "never in two splits. It wins over group_regex and the groups of the dataset.",
    )
    seed: fields.Integer = Field(
        42, description="Seed of the order in which patients are assigned, and of keep_empty."
    )
    folds: fields.AtLeastTwo | None = Field(
        None,
        description="Number of folds of a cross-validation over the cases that are not for test, "
        "written to splits_final.json as nnU-Net has it.",
    )
    stratify: fields.NonEmpty | None = Field(
        None,
        description="Column of the manifest or of participants.tsv whose values have about the "
        "same share in each split and fold; label: label values, in each fold.",
    )
    splits: fields.AbsolutePath | None = Field(
        None, description="JSON file with the splits; nnU-Net's splits_final.json with --fold."
    )
    fold: fields.NonNegative | None = Field(None, description="Entry of splits_final.json, from 0.")

    @model_validator(mode="after")
    def _split_settings_fit(self) -> Self:
        if self.val_ratio is not None and self.train_ratio + self.val_ratio > 1 + _RATIO_SLACK:
            raise ValueError(
                "train_ratio + val_ratio must be 1 or less, got "
                f"{self.train_ratio + self.val_ratio:g}"
            )
        if self.fold is not None and self.splits is None:
            raise ValueError(f"fold needs splits, the file that holds the folds, got {self.fold}")
        if self.stratify == BY_LABEL and self.folds is None:
            raise ValueError(
                "stratify label needs folds: labels are known after train, val and test are"
            )
        return self

    def ratios(self) -> dict[str, float]:
        """Return the fraction of cases in each split; they sum to 1.

        >>> SplitSettings(train_ratio=0.95).ratios()
        {'train': 0.95, 'val': 0.05, 'test': 0.0}
        """
        left = round(1 - self.train_ratio, 9)
        val = min(0.1, left) if self.val_ratio is None else self.val_ratio
        test = round(left - val, 9)
        return {"train": self.train_ratio, "val": val, "test": max(test, 0.0)}


class InputSettings(fields.Frozen):
    """Which files of the dataset are images and labels, where that is not clear."""

    layout: fields.LayoutName | None = Field(
        None, description="Layout of the dataset; without it, the first that fits."
    )
    images: tuple[str, ...] = Field(
        (),
        description="Pattern (glob) of the images, relative to the dataset; once for each "
        "modality. Cases are what the wildcards match.",
    )
    labels: str | None = Field(None, description="Pattern of the labels; with images.")
    label_name: str | None = Field(
        None, description="Label to use where a case has several, such as segTRI."
    )
    structures: fields.Names = Field(
        (),
        description="Structures whose binary masks, one in each file, make the label, such as "
        "liver,spleen: values 1, 2, … in this order. [default: all, by name]",
    )
    overlap: fields.Overlap = Field(
        "first",
        description="Voxels in the masks of two structures: count them for the first, or fail the "
        "case.",
    )
    modalities: fields.Names = Field(
        (), description="Images of a case to use, and their order, such as t1c,flair."
    )
    missing_modality: fields.MissingModality = Field(
        "error", description="A case without one of the images: fail it, or fill with zeros."
    )
    volumes: fields.Volumes | None = Field(
        None,
        description="Volumes of 4D images: channels of one case, frames that are a case each, or "
        "the number of the one to use, from 0.",
    )
    label_grid: fields.LabelGrid = Field(
        "own", description="Affine of labels: their own, or the image's if the shape is the same."
    )
    orientation_from: fields.Orientation = Field(
        "sform", description="Form of a NIfTI header to use where it has both."
    )
    datalist_fold: fields.NonNegative | None = Field(
        None, description="Fold of a MONAI datalist for validation; the others are for training."
    )
    include_test: bool = Field(
        False,
        description="Put the images for testing, such as nnU-Net's imagesTs, into the test split.",
    )

    @model_validator(mode="after")
    def _input_settings_fit(self) -> Self:
        if self.labels is not None and not self.images:
            raise ValueError("labels needs images: give the patterns of both")
        if self.layout is not None and self.images:
            raise ValueError("images, patterns of files, take the place of a layout; give one")
        return self
