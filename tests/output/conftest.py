"""An output directory of four sound cases and a bad one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def chosen() -> dict[str, object]:
    """Return the settings of `output` that are not those by default."""
    return {"window_size": 1, "clip_min": -500.0, "plane": "coronal", "train_ratio": 0.5}


@pytest.fixture
def output(dataset, chosen, tmp_path, invoke) -> Path:
    """Return the output for four sound cases, two with labels that say something, and a bad one."""
    label = np.zeros((8, 9, 10), np.uint8)
    label[:3, 4, :2] = 7
    label[4, 4, 4] = 200
    dataset.add("ct_b", label=label)
    dataset.add("ct_a", label=np.zeros((8, 9, 10), np.uint8))
    dataset.add("ct_c")
    dataset.add("ct_d")
    dataset.add("ct_bad", np.zeros((8, 9, 10, 2), np.int16))
    dataset.label_path("ct_d").unlink()
    options = [f"--{name}={value}" for name, value in chosen.items()]
    result = invoke(
        *("run", "--input_dir", dataset.root, "--output_dir", tmp_path / "slices"),
        *("--num_workers", 0, "--allow_missing_labels", *options),
    )
    assert result.exit_code == 1, result.output
    return tmp_path / "slices"
