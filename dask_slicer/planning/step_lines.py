"""Text of a plan on its steps: what each makes of the scans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from dask_slicer.config.effects import DatasetFacts, without_effect
from dask_slicer.config.schema import RunConfig
from dask_slicer.utils.formatting import format_shape, format_value, plural

# Of the pixels of these data types.
_LARGEST = {"uint8": 255, "uint16": 65535}


class SlicedCase(Protocol):
    """Shape and spacing of a case, and of its slices, in each plane."""

    @property
    def plane(self) -> str: ...  # noqa: D102

    @property
    def parts(self) -> Sequence[SlicedCase]: ...  # noqa: D102

    @property
    def shape(self) -> tuple[int, int, int]: ...  # noqa: D102

    @property
    def spacing(self) -> tuple[float, float, float]: ...  # noqa: D102

    @property
    def slice_shape(self) -> tuple[int, int, int]: ...  # noqa: D102

    @property
    def new_spacing(self) -> tuple[float, float, float] | None: ...  # noqa: D102

    @property
    def most_slices(self) -> int: ...  # noqa: D102


def step_lines(config: RunConfig, cases: Sequence[SlicedCase] = ()) -> list[str]:
    """Return a line for each step that changes slices, in the order of the steps.

    With `cases`, the lines say what becomes of them.
    """
    return [
        *_label_lines(config),
        *_crop_lines(config),
        *_intensity_lines(config),
        *_grid_lines(config, cases),
        *_selection_lines(config, cases),
    ]


def _label_lines(config: RunConfig) -> Iterator[str]:
    if config.label_map is not None:
        yield f"label map {config.label_map}"
    if config.removes_components:
        limits = (config.min_component_voxels, "voxels"), (config.min_component_pixels, "pixels")
        each = (f"{least} {unit}" for least, unit in limits if least > 1)
        yield f"components of a label below {' or '.join(each)} become background"


def _crop_lines(config: RunConfig) -> Iterator[str]:
    if config.crop is None:
        return
    margin = f" with a margin of {config.crop_margin:g} mm" if config.crop_margin else ""
    match config.crop:
        case "nonzero":
            yield f"crop to what is not 0{margin}, found for each case"
        case "label":
            yield (
                f"crop to the label{margin}, found for each case: it needs the label, so it cannot "
                "be repeated for new scans"
            )
        case box:
            yield f"crop to the voxels {box} of the file's axes"


def _intensity_lines(config: RunConfig) -> Iterator[str]:
    unused = dict(without_effect(config, DatasetFacts()))
    over = "" if config.foreground == "min" else f" of the foreground ({config.foreground})"
    if config.percentiles is not None:
        low, high = config.percentiles
        yield f"clip to the percentiles {low:g} and {high:g}{over}"
    if config.ct_windows:
        ends = f"0 to {_LARGEST.get(config.dtype, 1)}"
        windows = ", ".join(config.ct_windows)
        yield f"windows {windows} (level/width, HU), a channel each, from {ends}"
    if "dataset" in format_value(config.normalize):
        of_cases = (
            "of labelled voxels of the training cases (a first pass, unless the output has them)"
        )
        in_file = config.statistics is not None and f"in {config.statistics}"
        yield f"normalise by the statistics {in_file or of_cases}"
    elif config.is_exact:
        plus = f" plus {config.offset}" if config.offset else ""
        rounded = ", rounded where they are resampled" if config.resamples else ""
        clipped = ", clipped" if _has_limits(config) else ""
        yield f"16 bit: the integers of the file{clipped}{plus}{rounded}"
    elif config.dtype in _LARGEST and not config.ct_windows:
        limits = "the limits" if _has_limits(config) else f"the 0.5 and 99.5 percentiles{over}"
        yield f"{limits} become 0 and {_LARGEST[config.dtype]}"
    elif over and config.percentiles is None and "foreground" not in unused:
        yield f"statistics{over}"
    if config.zeroes_background:
        yield "voxels outside the foreground are 0 after the normalisation"


def _has_limits(config: RunConfig) -> bool:
    limits = (config.percentiles, config.clip_min, config.clip_max)
    return any(limit is not None for limit in limits)


def _grid_lines(config: RunConfig, cases: Sequence[SlicedCase]) -> Iterator[str]:
    if config.spacing is not None:
        wanted = _spacing_text(config.spacing)
        spacings = [part.spacing for case in cases for part in case.parts]
        before = f"{_range(spacings)} → " if cases else ""
        yield f"spacing {before}{wanted} mm, order {config.resample_order}"
    if config.size is not None:
        about = " about the label" if config.center == "label" else ""
        is_cubic = config.size_order == 3 and config.fit != "crop_pad"
        order = ", order 3" if is_cubic else ""
        yield f"rows × columns {format_shape(config.size)}, {config.fit}{order}{about}"
    if config.changes_grid and cases:
        known = "" if config.crop not in ("nonzero", "label") else " at most"
        for number in range(len(config.planes)):
            parts = [case.parts[number] for case in cases]
            yield (
                f"grid {f'of {plane} ' if (plane := parts[0].plane) else ''}"
                f"{_range([part.shape for part in parts])} → "
                f"{_range([part.slice_shape for part in parts])}{known} (slices × rows × columns)"
            )


def _spacing_text(spacing: Sequence[float | None]) -> str:
    """Return a spacing as text; one that is kept is "same"."""
    return "×".join("same" if mm is None else f"{mm:.3g}" for mm in spacing)


def _range(triples: Sequence[Sequence[float]]) -> str:
    low, high = (
        format_shape([end(axis) for axis in zip(*triples, strict=True)]) for end in (min, max)
    )
    return low if low == high else f"{low} to {high}"


def _selection_lines(config: RunConfig, cases: Sequence[SlicedCase]) -> Iterator[str]:
    rules = []
    if config.slices is not None:
        rules.append(f"range {config.slices}")
    if config.stride > 1:
        rules.append(f"one in {config.stride}")
    if config.slice_list is not None:
        rules.append(f"those in {config.slice_list.name}")
    if config.min_foreground > 0:
        rules.append(f"labelled share {config.min_foreground:g} or more")
    if config.keep_empty < 1 and config.min_foreground == 0:
        where = "train" if config.keep_empty_in == "train" else "all splits"
        rules.append(f"{100 * config.keep_empty:.3g}% of those without a label in {where}")
    if config.drop_blank:
        rules.append("none that is blank")
    if rules:
        n_before = sum(part.slice_shape[0] for case in cases for part in case.parts)
        n_after = sum(case.most_slices for case in cases)
        counts = f" {n_before} → {n_after} at most" if cases else ""
        yield f"slices{counts}: {', '.join(rules)}"
    if config.window_size == 0:
        return
    if config.context_step > 1:
        yield f"neighbours in a window are {config.context_step} slices apart"
    if config.context_mm is not None:
        limit = 2 * config.context_mm  # over it, the slice is nearer than its neighbours
        n_alone = sum(
            any((part.new_spacing or part.spacing)[0] > limit for part in case.parts)
            for case in cases
        )
        alone = (
            f"; in {n_alone} of {plural(len(cases), 'case')} this is the slice itself, because "
            f"slices are over {limit:g} mm apart"
        )
        yield (
            f"neighbours in a window are {config.context_mm:g} mm apart, to the nearest slice"
            f"{alone if n_alone else ''}"
        )
