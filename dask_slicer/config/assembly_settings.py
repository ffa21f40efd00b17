"""Settings of `assemble`: what predictions are, and what is made of them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from dask_slicer.config import fields


class AssemblySettings(fields.Frozen):
    """Predictions of slices, and the volumes to make of them."""

    predictions: tuple[fields.AbsolutePath, ...] = Field(
        description="Folder with predictions of slices; may be repeated, for several networks or "
        "planes: labels by majority, probabilities by their mean.",
    )
    output_dir: fields.AbsolutePath = Field(description="Folder of the volumes.")
    kind: Literal["labels", "probabilities", "logits"] = Field(
        "labels",
        description="What predictions hold: labels; or probabilities or logits, with a class axis "
        "first.",
    )
    threshold: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="With one class: label 1 from this probability on. With several, the most "
        "probable class is taken.",
    )
    keep_probabilities: bool = Field(
        False, description="Also write the probabilities, as 4D volumes of float32."
    )
    fill: fields.Integer = Field(
        0, ge=0, lt=2**31, description="Label where the output has no slice."
    )
    metrics: bool = Field(
        False,
        description="Compare with the labels of the scans: Dice, 95 % Hausdorff distance, volumes "
        "(needs dask_slicer[metrics]).",
    )
    source: fields.AbsolutePath | None = Field(
        None,
        description="Folder or manifest of the scans, if it is not where the run found them; "
        "needed for metrics, and for outputs of earlier versions.",
    )

    @model_validator(mode="after")
    def _assembly_settings_fit(self) -> Self:
        if not self.predictions:
            raise ValueError("predictions must name a folder")
        for folder in self.predictions:
            if self.predictions.count(folder) > 1:
                raise ValueError(f"predictions names {folder} twice")
        for name in ("threshold", "keep_probabilities"):
            if self.kind == "labels" and getattr(self, name):
                raise ValueError(f"{name} needs kind probabilities or logits, got kind labels")
        return self
