"""A dataset of many cases that takes little time and room: all of them the same volume."""

from __future__ import annotations

from pathlib import Path

from dask_slicer.inputs.phantom import write_dataset


def write_many(root: Path, *, n_cases: int, shape: tuple[int, int, int]) -> Path:
    """Write one phantom, and link the others to it; return where they are."""
    write_dataset(root, n_cases=1, shape=shape, seed=3)
    for number in range(1, n_cases):
        for folder in (root / "imagesTr", root / "labelsTr"):
            (first,) = folder.glob("phantom_000*")
            (folder / first.name.replace("000", f"{number:03d}", 1)).hardlink_to(first)
    return root
