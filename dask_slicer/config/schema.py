"""The configuration model: every setting with its type, default and rule.

The command line, YAML files and Python all build this one frozen model.
"""

from __future__ import annotations

import inspect
from inspect import Parameter, Signature
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never, Self, Unpack, get_args

from pydantic import ByteSize, Field, PrivateAttr, model_validator

from dask_slicer.config import fields, keywords
from dask_slicer.config.dataset_settings import InputSettings, SplitSettings
from dask_slicer.config.file_settings import FileSettings
from dask_slicer.config.run_settings import RunSettings
from dask_slicer.config.step_settings import SELECTING, StepSettings, counts_slices
from dask_slicer.utils.files import is_same_folder
from dask_slicer.utils.formatting import format_value, plural
from dask_slicer.utils.modalities import for_each_modality
from dask_slicer.utils.repr_html import html_card, html_facts

# Name of the output directory of a plan that has none; the run of such a plan is refused.
NO_OUTPUT = ".dask_slicer_no_output"


class SliceSettings(FileSettings, StepSettings):
    """Settings that decide the bytes of a case's output."""

    window_size: fields.NonNegative = Field(
        2, description="Neighbouring slices on each side; 0, or 1 as RGB, with png."
    )
    padding_mode: fields.PaddingMode = Field(
        "replicate",
        description="Slices outside the volume: zeros, copies of the edge slice, or a reflection "
        "about the edge slice.",
    )
    plane: fields.Planes = Field(
        "axial",
        description="Anatomical plane (by the affine, in radiological display order), or the "
        "file's own array axis; several in one run: axial,coronal,sagittal.",
    )
    clip_min: fields.Limits = Field(
        None,
        description="Lower limit of intensities, in the file's units (HU for CT). One for all "
        "modalities, or one for each: -160,none.",
    )
    clip_max: fields.Limits = Field(
        None, description="Upper limit of intensities; also for each modality: 240,none."
    )
    normalize: fields.Normalizations = Field(
        "zscore",
        description="zscore over the foreground; minmax to [0, 1]; percentile: clip to the 0.5 and "
        "99.5 percentiles, then zscore; dataset: statistics of the labelled voxels of the training "
        "cases; none, which is the default with uint8, png and ct_windows. Also for each modality: "
        "zscore,none.",
    )
    dtype: fields.ImageType = Field(
        "float32",
        description="Data type of the image on disk; uint8: the limits of clipping, or the 0.5 and "
        "99.5 percentiles, become 0 and 255; source (zarr): as in the file, normalised when read.",
    )
    label_dtype: fields.LabelType = Field(
        "uint8",
        description="Data type of the label on disk; a value that does not fit fails the case.",
    )
    statistics: fields.AbsolutePath | None = Field(
        None,
        description="JSON file of the statistics for normalize dataset: made by `dask-slicer "
        "statistics`, dataset_info.json of an output, or nnU-Net's dataset_fingerprint.json.",
    )
    nonfinite: fields.Nonfinite = Field(
        "error", description="NaN and Inf in images: fail the case, or count as 0."
    )
    min_foreground: fields.Ratio = Field(
        0.0,
        description="Drop slices with a smaller labelled fraction; windows of other slices still "
        "hold them.",
    )
    compression_level: fields.Integer = Field(
        1, ge=0, le=9, description="npz: 0 stored, 1-2 ISA-L, 3-9 zlib."
    )
    compression: fields.Compression = Field(
        "auto", description="zarr: auto is lz4 for integers, zstd for floats and labels."
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_by_format(cls, values: Any) -> Any:
        """Take other defaults with png, and none for normalize where limits decide the values."""
        if not isinstance(values, dict):
            return values
        defaults: dict[str, Any] = {}
        if str(values.get("format")).lower() == "png":
            bits = 8 if values.get("bits") is None else values["bits"]
            pixels = "uint16" if str(bits) == "16" else "uint8"
            defaults = {"bits": bits, "dtype": pixels, "window_size": 0}
        dtype = values.get("dtype") or defaults.get("dtype")
        if values.get("ct_windows") or str(dtype).lower() in ("uint8", "uint16"):
            defaults["normalize"] = "none"
        # None is a setting that is not given.
        without = {*defaults, "normalize"} & {n for n, value in values.items() if value is None}
        return defaults | {name: v for name, v in values.items() if name not in without}

    @model_validator(mode="after")
    def _slice_settings_fit(self) -> Self:
        if self.dtype == "source" and self.format != "zarr":
            raise ValueError("dtype source needs format zarr; npz holds normalised floats")
        self._check_png()
        self._check_intensity_settings()
        self._check_planes()
        largest = {"uint8": 2**8, "uint16": 2**16, "int32": 2**31}[self.label_dtype] - 1
        if self.largest_mapped > largest:
            raise ValueError(
                f"label_map makes {self.largest_mapped}, which does not fit label_dtype "
                f"{self.label_dtype} (0 to {largest}); use another label_dtype"
            )
        counts = {
            name: len(value)
            for name in fields.PER_MODALITY
            if isinstance(value := getattr(self, name), tuple)
        }
        if len(set(counts.values())) > 1:
            numbers = " and ".join(f"{n} of {name}" for name, n in counts.items())
            raise ValueError(
                f"values for each modality must be equally many, got {numbers}; "
                "a single value counts for all modalities"
            )
        n = max(counts.values(), default=1)
        limits = (for_each_modality(value, n) for value in (self.clip_min, self.clip_max))
        for low, high in zip(*limits, strict=True):
            if low is not None and high is not None and low >= high:
                raise ValueError(f"clip_min must be less than clip_max, got {low:g} and {high:g}")
        return self

    @property
    def planes(self) -> tuple[str, ...]:
        """Return the planes of slices, one or several."""
        return (self.plane,) if isinstance(self.plane, str) else self.plane

    @property
    def plane_folders(self) -> tuple[str, ...]:
        """Return the names of the folders of planes; none if there is one plane."""
        return self.planes if len(self.planes) > 1 else ()

    @property
    def n_windows(self) -> int:
        """Return the number of channels that each modality of a slice becomes."""
        return len(self.ct_windows) or 1

    @property
    def uses_statistics(self) -> bool:
        """Return whether a modality is normalised by statistics of the dataset."""
        return "dataset" in for_each_modality(self.normalize, 1)

    @property
    def zeroes_background(self) -> bool:
        """Return whether voxels outside the foreground are 0 after the normalisation."""
        methods = {*for_each_modality(self.normalize, 1)} & {"zscore", "percentile"}
        return self.zero_background and self.foreground in ("nonzero", "positive") and bool(methods)

    @property
    def maps_limits(self) -> bool:
        """Return whether intensities between two limits are mapped to a fixed range."""
        whole = self.dtype in ("uint8", "uint16") and not self.is_exact
        return whole or bool(self.ct_windows)

    @property
    def is_exact(self) -> bool:
        """Return whether pixels are intensities plus an offset."""
        return self.dtype == "uint16" and self.offset is not None

    @property
    def selecting(self) -> str:
        """Return the options that leave slices out, as they were given."""
        fields = type(self).model_fields
        given = {name: getattr(self, name) for name in SELECTING}
        return ", ".join(
            f"--{name}" if value is True else f"--{name} {format_value(value)}"
            for name, value in given.items()
            if value != fields[name].default
        )

    def n_channels(self, n_modalities: int) -> int:
        """Return the number of channels of a window."""
        return (2 * self.window_size + 1) * n_modalities * self.n_windows

    def _check_png(self) -> None:
        """Raise ValueError if a PNG file cannot hold slices, or is needed for a setting."""
        shared = [t.path for t in self.files if not t.is_per_slice and "image" in t.contents]
        if self.format == "files" and shared and self.window_size:
            raise ValueError(
                f"{shared[0]} holds every slice once, so window_size must be 0, got "
                f"{self.window_size}"
            )
        if self.format != "png" and self.dtype == "uint16":
            raise ValueError("dtype uint16 is that of format png with bits 16")
        if self.format == "png" and self.dtype != f"uint{self.bits}":
            raise ValueError(
                f"format png with bits {self.bits} has dtype uint{self.bits}, got {self.dtype}; "
                "use format npz or zarr for other types"
            )
        for template in self.templates:
            if template.suffix != ".png":
                continue
            what = "format png" if self.format == "png" else template.path
            if "label" in template.contents and self.label_dtype == "int32":
                raise ValueError(f"{what} has masks of label_dtype uint8 or uint16, got int32")
            if "image" in template.contents and not self.dtype.startswith("uint"):
                raise ValueError(f"{what} has images of dtype uint8, got {self.dtype}")
            n = self.n_channels(1) * template.copies
            if "image" in template.contents and n not in (1, 3):
                raise ValueError(
                    f"{what} has one channel, or three: window_size 0 or 1 with one of ct_windows, "
                    f"or three of them, got {n} channels; use format npz or zarr"
                )

    def _check_planes(self) -> None:
        """Raise ValueError if there are several planes, and a setting fits only one of them."""
        if len(self.planes) == 1:
            return
        for template in self.templates:
            folder, _, name = template.path.rpartition("/")
            if "{split}" not in folder or "{split}" in name:
                raise ValueError(
                    "files of several planes need {split} in the folder of their path, which then "
                    "ends with the plane, and not in their name; give one plane"
                )
        if self.spacing is not None and (len({*self.spacing}) > 1 or None in self.spacing):
            raise ValueError(
                "spacing must be three equal numbers, such as 1,1,1, with several planes, got "
                f"{format_value(self.spacing)}"
            )
        if self.slices is not None and counts_slices(self.slices):
            raise ValueError(
                "slices must be in percent, such as 10%:90%, with several planes, got "
                f"{self.slices}"
            )
        if self.slice_list is not None:
            raise ValueError("slice_list counts the slices of one plane; give one plane")
        if self.min_component_pixels > 1:
            raise ValueError(
                "min_component_pixels would give each plane another label; give one plane, or "
                "min_component_voxels"
            )

    def _check_intensity_settings(self) -> None:
        methods = {*for_each_modality(self.normalize, 1)}
        limits = [name for name in ("clip_min", "clip_max") if getattr(self, name) is not None]
        own = [*limits, *["offset"] * self.is_exact]
        if self.ct_windows and own:
            raise ValueError(f"ct_windows have their own limits; leave out {' and '.join(own)}")
        for name, given in (
            (f"dtype {self.dtype}", self.dtype in ("uint8", "uint16")),
            ("ct_windows", self.ct_windows),
        ):
            if given and methods != {"none"}:
                raise ValueError(
                    f"{name} maps limits to a fixed range, so normalize must be none, got "
                    f"{format_value(self.normalize)}"
                )
        for method in methods & {"percentile", "dataset"}:
            others = [name for name in ("percentiles",) if self.percentiles is not None]
            others += limits if method == "dataset" else []
            if others:
                raise ValueError(
                    f"normalize {method} has its own limits; leave out {' and '.join(others)}, or "
                    "use normalize zscore"
                )
        if self.dtype == "source" and self.zero_background:
            raise ValueError(
                "dtype source keeps the integers of the file, and zero_background changes them; "
                "use dtype float32 or float16"
            )
        if self.dtype == "source" and (self.ct_windows or self.resamples):
            step = "ct_windows" if self.ct_windows else "spacing"
            step = f"fit {self.fit}" if step == "spacing" and self.spacing is None else step
            raise ValueError(
                f"dtype source keeps the integers of the file, and {step} changes them; use "
                "dtype float32, float16 or uint8"
            )


class RunConfig(RunSettings, SplitSettings, SliceSettings, InputSettings):
    """Settings of a run, validated once and never changed.

    Examples
    --------
    >>> RunConfig(input_dir="scans", output_dir="slices", window_size=1).padding_mode
    'replicate'
    """

    if TYPE_CHECKING:  # else type checkers refuse a string for a path

        def __init__(
            self,
            *,
            input_dir: keywords.StrPath,
            output_dir: keywords.StrPath,
            **settings: Unpack[keywords.OptionalKeywords[Never]],
        ) -> None: ...

    input_dir: fields.AbsolutePath = Field(
        description="Folder of the dataset, or a manifest (CSV, TSV, JSON) or datalist (JSON)."
    )
    output_dir: fields.AbsolutePath = Field(
        description="Folder for the slices; created if missing."
    )
    allow_missing_labels: bool = Field(
        False, description="Write cases without a label; without this option, they fail."
    )
    # The output whose slices these are to be like; its settings are in the fields.
    _like: Path | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _output_is_not_input(self) -> Self:
        try:
            same = is_same_folder(self.input_dir, self.output_dir)
        except (RuntimeError, OSError) as error:
            raise ValueError(f"input_dir and output_dir cannot be resolved: {error}") from None
        if same:
            raise ValueError("output_dir must not be the input_dir; name another folder")
        return self

    @property
    def has_output(self) -> bool:
        """Return whether there is an output directory; a plan needs none."""
        return self.output_dir.name != NO_OUTPUT

    @property
    def like(self) -> Path | None:
        """Return the output whose settings these are, if they are those of `like`."""
        return self._like

    @property
    def for_inference(self) -> bool:
        """Return whether all cases are for test and need no label, as `like` has it."""
        return self.allow_missing_labels and self.splits is None and self.ratios()["test"] == 1

    @property
    def input_root(self) -> Path:
        """Return the folder that the paths of scans are relative to."""
        return self.input_dir if self.input_dir.is_dir() else self.input_dir.parent

    @property
    def slice_settings(self) -> SliceSettings:
        """Return the settings that decide the bytes of a case's output."""
        return SliceSettings(**{name: getattr(self, name) for name in SliceSettings.model_fields})

    def _repr_html_(self) -> str:
        """Return changed settings as an HTML table, and the others behind a click."""
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        changed = [(name, _readable(value)) for name, value in self if value != defaults[name]]
        others = [(name, _readable(value)) for name, value in self if value == defaults[name]]
        unchanged = f"{plural(len(others), 'setting')} at the default"
        return html_card(
            "Configuration of a run",
            html_facts(changed),
            f"<details><summary>{unchanged}</summary>{html_facts(others)}</details>",
        )


def _described(name: str) -> str:
    """Return the entry of a setting in a docstring."""
    field = RunConfig.model_fields[name]
    annotation = fields.plain_type(field.annotation)
    kind = str(getattr(annotation, "__name__", annotation))
    if choices := get_args(annotation):
        kind = "sequence of str" if Ellipsis in choices else f"{{{str(choices)[1:-1]}}}"
    if name in fields.ONE_OR_SEVERAL:
        kind = f"{kind} or sequence of it"
    kind = {"Path": "str or Path", "ByteSize": "int or str"}.get(kind, kind)
    return f"{name} : {kind}\n    {field.description}\n"


def _parameter(name: str) -> Parameter:
    field = RunConfig.model_fields[name]
    default = Parameter.empty if field.is_required() else field.default
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default)


# For help() and notebooks, required settings first; pydantic's signature is long, with every rule.
_NAMES = dict.fromkeys(("input_dir", "output_dir", *chain.from_iterable(fields.GROUPS.values())))
RunConfig.__signature__ = Signature(list(map(_parameter, _NAMES)))
RunConfig.__doc__ = inspect.cleandoc(RunConfig.__doc__ or "").replace(
    "Examples\n", "Parameters\n----------\n" + "".join(map(_described, _NAMES)) + "\nExamples\n"
)


def _readable(value: object) -> object:
    if isinstance(value, ByteSize):
        return value.human_readable(decimal=True)
    return "none" if value in (None, ()) else format_value(value)
