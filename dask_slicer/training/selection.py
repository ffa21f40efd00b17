"""The slices of an output that a dataset has."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dask_slicer.core.splits import SPLITS
from dask_slicer.errors import UsageError
from dask_slicer.output.folds import fold_cases
from dask_slicer.output.index import IndexedCase, SliceIndex
from dask_slicer.output.output import Output, check_cases, check_plane


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A choice of slices, with the arguments of `SliceDataset`.

    Raises
    ------
    UsageError
        If an argument is wrong, whatever the output.
    """

    split: str | None
    cases: Collection[str] | None
    labels: Collection[int] | None
    min_foreground: float | None
    fold: int | None
    part: Literal["train", "val"] | None
    plane: str | None

    def __post_init__(self) -> None:
        if self.fold is None and self.part is not None:
            raise UsageError(f"part needs fold, the number of a fold, got part {self.part}")
        if self.split is not None and self.split not in SPLITS:
            raise UsageError(f"split must be one of {', '.join(SPLITS)} or None, got {self.split}")
        for name, wanted in (("cases", self.cases), ("labels", self.labels)):
            if isinstance(wanted, str | int):
                raise UsageError(f"{name} must be a list, got {wanted!r}")
        if self.labels is not None and 0 in self.labels:
            raise UsageError("labels are values other than 0, which is background")

    def of(self, output: Output) -> SliceIndex:
        """Return the selected slices of an output; raise UsageError if it lacks what is named."""
        check_plane(output, self.plane)
        wanted = None if self.cases is None else set(self.cases)
        if wanted is not None:
            check_cases(output, wanted, split=self.split)
        in_fold = None
        if self.fold is not None:
            part = self.part or "train"
            in_fold = fold_cases(output, self.fold, part)
            if apart := sorted((wanted or set()) - in_fold):
                raise UsageError(f"{apart[0]} is not in {part} of fold {self.fold}")
        plane = self.plane if output.config.plane_folders else None

        def is_wanted(case: IndexedCase) -> bool:
            return (
                self.split in (None, case.split)
                and plane in (None, case.plane)
                and (wanted is None or case.case_id in wanted)
                and (in_fold is None or case.case_id in in_fold)
            )

        # Part by part: all slices would take memory beside the selected ones.
        return output.stored_index.selected(lambda index: self._rows(index.of_cases(is_wanted)))

    def _rows(self, index: SliceIndex) -> SliceIndex:
        rows = np.ones(len(index), dtype=bool)
        if self.labels is not None:
            rows &= index.rows_with(self.labels)
        if self.min_foreground is not None:
            rows &= index.foreground >= self.min_foreground
        return index.select(rows)
