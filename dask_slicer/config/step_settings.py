"""Settings of the steps between a volume and its slices; all are off by default."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from dask_slicer.config import fields

# Level and width of windows for CT, HU, as in radiology textbooks and on Radiopaedia.
CT_WINDOWS = {
    "abdomen": "40/400",
    "lung": "-600/1500",
    "bone": "400/1800",
    "brain": "40/80",
    "mediastinum": "50/350",
    "liver": "30/150",
    "subdural": "75/215",
}
_CT_WINDOW = re.compile(r"([+-]?\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)")
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
_BOX = re.compile(r"(\d+):(\d+),(\d+):(\d+),(\d+):(\d+)")


def _parts(value: Any) -> Any:
    """Return the parts of a text with commas; a number alone as one part."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value


def _ct_windows(value: Any) -> Any:
    texts = [value] if isinstance(value, str) else value
    if not (isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts)):
        return value
    return [_ct_window(window.strip()) for text in texts for window in text.split(",")]


def _ct_window(text: str) -> str:
    text = CT_WINDOWS.get(text.lower(), text).replace(" ", "")
    match = _CT_WINDOW.fullmatch(text)
    if match is None or float(match[2]) == 0:
        raise ValueError(f"must be LEVEL/WIDTH, such as 40/400, or one of {', '.join(CT_WINDOWS)}")
    return f"{float(match[1]):g}/{float(match[2]):g}"


def ct_window_limits(window: str) -> tuple[float, float]:
    """Return the lower and the upper limit of a window, in HU.

    >>> ct_window_limits("40/400")
    (-160.0, 240.0)
    """
    level, width = map(float, window.split("/"))
    return level - width / 2, level + width / 2


def _crop(text: str) -> str:
    text = text.lower().replace(" ", "")
    if text not in ("nonzero", "label"):
        crop_box(text)
    return text


def crop_box(text: str) -> Box:
    """Return the box in a text, first and last voxel of i, j and k, the last one excluded.

    >>> crop_box("0:10,5:20,3:7")
    ((0, 10), (5, 20), (3, 7))
    """
    match = _BOX.fullmatch(text)
    i0, i1, j0, j1, k0, k1 = map(int, match.groups()) if match else (0,) * 6
    if i0 >= i1 or j0 >= j1 or k0 >= k1:
        raise ValueError("must be nonzero, label, or a box such as 0:256,0:256,10:90")
    return (i0, i1), (j0, j1), (k0, k1)


def _size(value: Any) -> Any:
    parts = _parts(value)
    rule = "must be one number, or rows,columns, such as 256,320"
    if isinstance(parts, list) and len(parts) == 1:
        parts *= 2
    if any(isinstance(part, str) and not part.isdecimal() for part in _counted(parts, 2, rule)):
        raise ValueError(rule)
    return parts


def _counted(parts: Any, n: int, rule: str) -> Any:
    if not isinstance(parts, list | tuple) or len(parts) != n:
        raise ValueError(rule)
    return parts


def _three(value: Any) -> Any:
    return _counted(
        _parts(value), 3, "must be mm along slice,row,column, such as 2,1,1 or none,1,1"
    )


def _two(value: Any) -> Any:
    return _counted(_parts(value), 2, "must be two percentages, such as 0.5,99.5")


def _label_map(text: str) -> str:
    from dask_slicer.core.steps.label_map import LabelMap

    return str(LabelMap.parse(text))


def _slice_range(text: str) -> str:
    from dask_slicer.core.steps.selection import SliceRange

    SliceRange.parse(text)
    return text.replace(" ", "")


def counts_slices(text: str) -> bool:
    """Return whether an end of a range of slices is a number of slices, and no percentage."""
    from dask_slicer.core.steps.selection import SliceRange

    ends = SliceRange.parse(text)
    return any(isinstance(end, int) for end in (ends.start, ends.stop))


def _percentiles(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] >= value[1]:
        raise ValueError("must be two percentages, the lower one first")
    if value[1] <= 1:
        raise ValueError("must be in percent, such as 0.5,99.5")
    return value


_Percentage = Annotated[float, BeforeValidator(fields.not_bool), Field(ge=0, le=100)]
_Length = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(fields.not_bool)]
_NoLength = Annotated[_Length | None, BeforeValidator(fields.none_in_words)]

LabelMapText = Annotated[str, AfterValidator(_label_map)]
CtWindows = Annotated[tuple[str, ...], BeforeValidator(_ct_windows)]
Percentiles = Annotated[
    tuple[_Percentage, _Percentage], BeforeValidator(_two), AfterValidator(_percentiles)
]
Spacing = Annotated[tuple[_NoLength, _NoLength, _NoLength], BeforeValidator(_three)]
Size = Annotated[tuple[fields.Positive, fields.Positive], BeforeValidator(_size)]
Crop = Annotated[str, AfterValidator(_crop)]
SliceRangeText = Annotated[str, AfterValidator(_slice_range)]
Foreground = Annotated[
    Literal["min", "all", "nonzero", "positive", "label", "otsu"], fields.ANY_CASE
]
Fit = Annotated[Literal["crop_pad", "resize", "letterbox"], fields.ANY_CASE]
Center = Annotated[Literal["volume", "label"], fields.ANY_CASE]
ResampleOrder = Annotated[Literal[0, 1, 3], BeforeValidator(fields.number_in_text)]
SizeOrder = Annotated[Literal[1, 3], BeforeValidator(fields.number_in_text)]
KeepEmptyIn = Annotated[Literal["train", "all"], fields.ANY_CASE]
# Settings that leave slices out.
SELECTING = ("min_foreground", "slices", "stride", "keep_empty", "slice_list", "drop_blank")
# Values of options that are one text, with commas.
COMMA_SEPARATED = ("percentiles", "spacing", "size")


class StepSettings(fields.Frozen):
    """Steps between a volume and its slices, in the order in which they are applied."""

    label_map: LabelMapText | None = Field(
        None,
        description='New label values, "1,2:1 3:2", or by name; 0 stays 0. A value that is not '
        "listed fails the case; the message has the rules that drop or keep all others.",
    )
    min_component_voxels: fields.NonNegative = Field(
        0, description="Smaller components of a label in 3D become background."
    )
    min_component_pixels: fields.NonNegative = Field(
        0, description="Smaller components of a label in a slice become background."
    )
    crop: Crop | None = Field(
        None,
        description="Keep the box around all voxels other than 0 (nonzero) or around the label, "
        "or a box of voxels i0:i1,j0:j1,k0:k1 of the file, the last ones excluded.",
    )
    crop_margin: Annotated[fields.Finite, Field(ge=0)] = Field(
        0.0, description="Margin around the box, mm."
    )
    percentiles: Percentiles | None = Field(
        None, description="Clip to these percentiles of the foreground, such as 0.5,99.5."
    )
    ct_windows: CtWindows = Field(
        (),
        description="Windows of CT, level/width in HU, a channel each, from 0 to 1: 40/400,lung. "
        f"Names: {', '.join(CT_WINDOWS)}.",
    )
    foreground: Foreground = Field(
        "min",
        description="Voxels of statistics and percentiles: above the lowest (min), all, other "
        "than 0, above 0 (positive), labelled, or above Otsu's threshold.",
    )
    zero_background: bool = Field(
        False,
        description="Voxels outside the foreground nonzero or positive are 0 after normalize "
        "zscore or percentile.",
    )
    spacing: Spacing | None = Field(
        None,
        description="Resample to this spacing, mm along (slice, row, column): 2,1,1; none keeps "
        "an axis: none,1,1.",
    )
    resample_order: ResampleOrder = Field(
        3, description="Order of the splines that resample images: 3 cubic, 1 linear, 0 nearest."
    )
    size: Size | None = Field(
        None, description="Rows and columns of slices: 256, or 256,320. See fit."
    )
    fit: Fit = Field(
        "crop_pad",
        description="To get that size: crop or pad; resize each axis; or letterbox: resize both "
        "axes equally, then pad.",
    )
    size_order: SizeOrder = Field(
        1,
        description="Order of the splines that enlarge images to a size: 1 linear, 3 cubic; "
        "shrinking averages pixels.",
    )
    center: Center = Field(
        "volume", description="Middle of slices that are cropped: of the volume, or of its label."
    )
    slices: SliceRangeText | None = Field(
        None, description="Range of slices to write, 80:-26 or 10%:90%, the last one excluded."
    )
    stride: fields.Positive = Field(1, description="Write every n-th slice.")
    keep_empty: fields.Ratio = Field(
        1.0, description="Fraction of the slices without a label to write."
    )
    keep_empty_in: KeepEmptyIn = Field(
        "train", description="Splits in which slices without a label are dropped."
    )
    slice_list: fields.AbsolutePath | None = Field(
        None, description="CSV file with columns case_id and slice_index: the slices to write."
    )
    drop_blank: bool = Field(
        False, description="Drop slices whose pixels all have the same intensity."
    )
    context_step: fields.Positive = Field(
        1, description="Neighbours in a window are this many slices apart."
    )
    context_mm: _Length | None = Field(
        None, description="Neighbours in a window are this far apart, mm, to the nearest slice."
    )

    @model_validator(mode="after")
    def _step_settings_fit(self) -> Self:
        if self.ct_windows and self.percentiles is not None:
            raise ValueError("ct_windows and percentiles both set the range; give one of them")
        if self.context_mm is not None and self.context_step != 1:
            raise ValueError("context_step and context_mm must not both be given")
        if self.spacing is not None and not any(self.spacing):
            raise ValueError("spacing must be given for at least one axis, got none for all")
        return self

    @property
    def changes_grid(self) -> bool:
        """Return whether slices lie on another grid than the scan's planes."""
        return not (self.crop is None and self.spacing is None and self.size is None)

    @property
    def selects(self) -> bool:
        """Return whether slices are left out that headers know of."""
        return bool(self.slices or self.stride > 1 or self.slice_list)

    @property
    def resamples(self) -> bool:
        """Return whether voxels are interpolated."""
        return self.spacing is not None or (self.size is not None and self.fit != "crop_pad")

    @property
    def largest_mapped(self) -> int:
        """Return the largest value that the label map makes; 0 without one."""
        from dask_slicer.core.steps.label_map import LabelMap

        pairs = () if self.label_map is None else LabelMap.parse(self.label_map).pairs
        return max((new for _, new in pairs), default=0)

    @property
    def removes_components(self) -> bool:
        """Return whether small components of labels are removed."""
        return max(self.min_component_voxels, self.min_component_pixels) > 1

    @property
    def changed_steps(self) -> dict[str, Any]:
        """Return the settings of steps that are not at their default, as JSON values."""
        names = set(StepSettings.model_fields)
        return self.model_dump(mode="json", include=names, exclude_defaults=True)
