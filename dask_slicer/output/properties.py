"""Intensity properties of a dataset, as files hold them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dask_slicer.core.foreground import IntensityProperties
from dask_slicer.errors import DatasetError
from dask_slicer.utils.files import parse_json, read_text

# As nnU-Net has it in dataset_fingerprint.json.
KEY = "foreground_intensity_properties_per_channel"


def properties_json(properties: Sequence[IntensityProperties]) -> dict[str, Any]:
    """Return the properties of each channel as JSON values, under nnU-Net's names."""
    return {KEY: {str(number): of.as_json() for number, of in enumerate(properties)}}


def properties_text(properties: Sequence[IntensityProperties]) -> str:
    """Return the content of statistics.json."""
    return json.dumps(properties_json(properties), indent=2) + "\n"


def parse_properties(content: Any) -> tuple[IntensityProperties, ...]:
    """Return the properties of each channel in a JSON object, if it has any.

    Raises ValueError if they are damaged.
    """
    channels = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(channels, dict):
        return ()
    numbers = map(str, range(len(channels)))
    return tuple(IntensityProperties.parse(channels.get(number)) for number in numbers)


def read_properties(path: Path) -> tuple[IntensityProperties, ...]:
    """Return the properties of each channel in a file.

    Raises
    ------
    DatasetError
        If it cannot be read, or does not hold them.
    """
    try:
        if properties := parse_properties(parse_json(read_text(path))):
            return properties
    except OSError as error:
        raise DatasetError(f"cannot read the statistics {path}: {error.strerror}") from None
    except ValueError as error:
        raise DatasetError(f"{path} holds no statistics: {error}") from None
    raise DatasetError(f"{path} has no {KEY}, so it holds no statistics")
