"""Settings that an output directory keeps, and how they changed."""

from __future__ import annotations

from collections.abc import Sequence

from dask_slicer.config.dataset_settings import SplitSettings
from dask_slicer.config.file_settings import FORMAT_OF, UNUSED_BY_FORMAT
from dask_slicer.config.schema import RunConfig, SliceSettings
from dask_slicer.utils.formatting import format_value

# Settings that may change between runs into one output: cases with NaN record `nonfinite`, and the
# others come out the same; `splits` and `fold` are compared by the assignment that they lead to;
# cases keep their split if `stratify` changes, and folds are made again; of `statistics`, the
# contents are compared.
_MAY_CHANGE = {"nonfinite", "splits", "fold", "folds", "stratify", "statistics"}


def changed_settings(old: RunConfig, new: RunConfig, *, also: Sequence[str] = ()) -> list[str]:
    """Return how the settings that an output directory keeps, and those in `also`, changed.

    >>> old = RunConfig(input_dir="a", output_dir="b")
    >>> changed_settings(old, old.model_copy(update={"window_size": 1}))
    ['window_size was 2, is now 1']
    """
    unused = {
        name for name, format_ in FORMAT_OF.items() if format_ not in (old.format, new.format)
    }
    unused |= {UNUSED_BY_FORMAT[new.format]} if old.format == new.format else set()
    # With `only`, other modalities would give cases of one output other channels.
    kept = (*SliceSettings.model_fields, *SplitSettings.model_fields, "modalities")
    names = [*(name for name in kept if name not in _MAY_CHANGE | unused), *also]
    before = {name: getattr(old, name) for name in names} | {"val_ratio": old.ratios()["val"]}
    after = {name: getattr(new, name) for name in names} | {"val_ratio": new.ratios()["val"]}
    return [
        f"{name} was different"
        if name in ("files", "file_lists")  # long
        else f"{name} was {format_value(before[name]) or 'none'}, is now "
        f"{format_value(after[name]) or 'none'}"
        for name in names
        if before[name] != after[name]
    ]
