"""Names of channels and label values, and the values of structures whose masks are merged.

Names are those of dataset_info.json and of the metadata of slices. A structure has the same value
in all cases of an output.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dask_slicer.config.schema import RunConfig
from dask_slicer.errors import DatasetError, OutputError
from dask_slicer.inputs.case import Case
from dask_slicer.inputs.pairing import choose_name
from dask_slicer.utils.formatting import did_you_mean, first_few, plural


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Names of channels, one for each modality, and of label values; empty where unknown."""

    channels: tuple[str, ...] = ()
    labels: Mapping[int, str] = field(default_factory=dict)

    def metadata(self) -> dict[str, Any]:
        """Return the known names as keys of a slice's metadata.

        >>> Names(channels=("CT",), labels={2: "spleen", 1: "liver"}).metadata()
        {'channel_names': ['CT'], 'label_names': {'1': 'liver', '2': 'spleen'}}
        """
        labels = {str(value): name for value, name in sorted(self.labels.items())}
        names = {"channel_names": list(self.channels), "label_names": labels}
        return {key: value for key, value in names.items() if value}

    def summary(self) -> dict[str, Any]:
        """Return the known names as keys of dataset_info.json, where channels have numbers, too.

        >>> Names(channels=("T1w", "FLAIR")).summary()
        {'channel_names': {'0': 'T1w', '1': 'FLAIR'}}
        """
        names = self.metadata()
        if self.channels:
            names["channel_names"] = {str(n): name for n, name in enumerate(self.channels)}
        return names

    @classmethod
    def parse(cls, summary: Mapping[str, Any]) -> Names:
        """Return the names in dataset_info.json; raise ValueError if they are damaged."""
        channels, labels = summary.get("channel_names", {}), summary.get("label_names", {})
        try:
            return cls(
                channels=tuple(str(channels[str(n)]) for n in range(len(channels))),
                labels={int(value): str(name) for value, name in labels.items()},
            )
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ValueError("channel_names or label_names are not names by number") from None


NO_NAMES = Names()


def structures_of(cases: Collection[Case]) -> set[str]:
    """Return the structures whose masks are merged.

    Raises
    ------
    DatasetError
        If cases have label maps beside others with masks, unless a manifest says so: the values of
        the maps may mean other structures.
    """
    maps = [case.case_id for case in cases if case.label is not None and not case.stated]
    merged = [case for case in cases if case.merges_masks]
    if maps and merged:
        masks = [case.case_id for case in merged]
        raise DatasetError(
            f"{plural(len(maps), 'case')} with a label map ({first_few(maps)}), but {len(masks)} "
            f"with a mask for each structure ({first_few(masks)}): the values of the maps may mean "
            "other structures; --structures takes masks only, and a manifest can have both"
        )
    return {mask.structure for case in merged for mask in case.masks}


def number_structures(
    present: Collection[str],
    *,
    wanted: Sequence[str] = (),
    columns: Sequence[str] = (),
    frozen: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Return the label value of each structure.

    Parameters
    ----------
    present : collection of str
        Structures of the dataset.
    wanted : sequence of str
        Of `--structures`: values 1, 2, … in this order; also in other case, or the last part of
        a name, if only one structure fits.
    columns : sequence of str
        The order of the dataset, such as that of a manifest's columns; the rest follow by name.
    frozen : mapping of structure to value
        Of the output; new structures get values after these.

    Examples
    --------
    >>> number_structures({"spleen", "liver"})
    {'liver': 1, 'spleen': 2}
    >>> number_structures({"spleen", "aorta"}, frozen={"liver": 1, "spleen": 2})
    {'liver': 1, 'spleen': 2, 'aorta': 3}

    Raises
    ------
    DatasetError
        If no case has a mask of a wanted structure.
    OutputError
        If the output has other values for those wanted.
    """
    numbers = dict(frozen or {})
    chosen = {name: choose_name(name, {*present, *numbers}) for name in wanted}
    for name, structure in chosen.items():
        if structure is None:
            raise DatasetError(
                f"--structures {name}: no case has a mask of it{did_you_mean(name, present)}"
            )
    order = list(dict.fromkeys(filter(None, chosen.values())))
    for name in (*order, *(name for name in columns if name in present), *sorted(present)):
        numbers.setdefault(name, max(numbers.values(), default=0) + 1)
    if any(numbers[name] != value for value, name in enumerate(order, start=1)):
        raise OutputError(
            f"the output was made with other settings: structures was "
            f"{','.join(sorted(frozen or {}, key=numbers.__getitem__))}, is now "
            f"{','.join(order)}; use another --output_dir, or --overwrite to replace it"
        )
    return numbers


def with_values(case: Case, numbers: Mapping[str, int], *, overlap: str) -> Case:
    """Return a case whose masks have the values of their structures."""
    if not case.masks:
        return case
    masks = (replace(mask, value=numbers.get(mask.structure, 0)) for mask in case.masks)
    return replace(case, masks=tuple(sorted(masks, key=lambda mask: mask.value)), overlap=overlap)


def check_label_values(config: RunConfig, numbers: Mapping[str, int]) -> None:
    """Raise a DatasetError if the values of structures do not fit the data type of labels."""
    largest = max(numbers.values(), default=0)
    if largest > np.iinfo(config.label_dtype).max:
        raise DatasetError(
            f"{plural(len(numbers), 'structure')} have values up to {largest}, which do not fit "
            f"--label_dtype {config.label_dtype}; use --label_dtype {np.min_scalar_type(largest)}"
        )
