"""Configurations that come with the package: their files, texts and purposes.

No slow import here: `dask-slicer configs` must answer at once.
"""

from __future__ import annotations

import re
from importlib import resources
from itertools import takewhile
from pathlib import Path

from dask_slicer.errors import ConfigError
from dask_slicer.utils.formatting import did_you_mean


def shipped_configs() -> dict[str, Path]:
    """Return the files of the shipped configurations by name."""
    package = Path(str(resources.files("dask_slicer")))
    # Inside the package in a wheel, beside it in a source checkout.
    for folder in (package / "config" / "presets", package.parent / "configs"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def shipped_config(name: str) -> Path:
    """Return the file of a shipped configuration; raise ConfigError if there is none."""
    shipped = shipped_configs()
    if name not in shipped:
        raise ConfigError(
            f"there is no configuration {name}{did_you_mean(name, shipped)}; "
            "dask-slicer configs lists the shipped ones"
        )
    return shipped[name]


def config_text(path: Path) -> str:
    """Return the text of a configuration, without the line for editors: it names a file beside."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("# yaml-language-server:"))


def config_purposes() -> dict[str, str]:
    """Return the purpose of each shipped configuration by name: its first sentence."""
    return {name: _first_sentence(config_text(path)) for name, path in shipped_configs().items()}


def _first_sentence(text: str) -> str:
    r"""Return the first sentence of the comment that a text begins with.

    >>> _first_sentence("# Chest CT: lung\n# window. Air is kept.\nplane: axial\n")
    'Chest CT: lung window.'
    """
    comment = takewhile(lambda line: line.startswith("#"), text.splitlines())
    words = " ".join(line.lstrip("# ") for line in comment)
    return re.split(r"(?<=\.) ", words)[0]
