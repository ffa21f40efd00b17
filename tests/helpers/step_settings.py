"""Settings with every step at once, for tests that look at them from several sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EVERY_STEP: dict[str, Any] = {
    "label_map": "1:1 2,3:2 *:0",
    "min_component_voxels": 3,
    "min_component_pixels": 2,
    "crop": "nonzero",
    "crop_margin": 5.0,
    "percentiles": "1,99",
    "foreground": "otsu",
    "spacing": "5,3,3",
    "size": "40,48",
    "center": "label",
    "slices": "5%:95%",
    "stride": 2,
    "keep_empty": 0.5,
    "drop_blank": True,
    "context_mm": 7.0,
}
# The same, with statistics of the dataset, for which a run has a first pass.
EVERY_STEP_TWICE = EVERY_STEP | {"percentiles": None, "normalize": "dataset", "crop": "label"}


def as_options(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as options of the command line."""
    given = {name: value for name, value in settings.items() if value is not None}
    return [
        part
        for name, value in given.items()
        for part in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
    ]
