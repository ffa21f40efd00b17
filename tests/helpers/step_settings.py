"""Settings with every step at once, for tests that look at them from several sides."""

from __future__ import annotations

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
