"""Every format of slices, in small: settings for Python, and options of the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# Slices in .npz files, whole cases in .h5 files, and lists: as other projects have them.
FILES: dict[str, Any] = {
    "format": "files",
    "window_size": 0,
    "files": [
        {
            "path": "tr/{case_id}_slice{slice_index:03d}.npz",
            "holds": {"image": "image", "label": "label"},
            "channels": "none",
            "splits": "train",
        },
        {
            "path": "vol/{split}/{case_id}.npy.h5",
            "holds": {"image": "image", "label": "label"},
            "channels": "none",
            "splits": "val,test",
        },
    ],
    "file_lists": [
        {"path": "lists/train.txt", "line": "{case_id}_slice{slice_index:03d}", "splits": "train"},
        {"path": "lists/vol.txt", "line": "{case_id}", "splits": "val,test"},
    ],
}
FORMATS: dict[str, dict[str, Any]] = {
    "npz": {"format": "npz"},
    "zarr": {"format": "zarr"},
    "png": {"format": "png"},
    "files": FILES,
}
# Folders of slices and lists of any of them.
FOLDERS = (
    *("train", "val", "test", "slices.zarr"),
    *("images", "masks", "metadata", "tr", "vol", "lists"),
)


def options(format_: str, folder: Path) -> tuple[object, ...]:
    """Return options that choose a format; `folder` is for a configuration file."""
    if format_ != "files":
        return ("--format", format_)
    path = folder / "files.yaml"
    path.write_text(json.dumps(FILES), encoding="utf-8")  # which is YAML
    return ("--config", path)
