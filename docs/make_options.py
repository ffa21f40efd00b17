"""Write docs/options.md from the options of `run`: `python docs/make_options.py`."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import click

from dask_slicer import RunConfig
from dask_slicer.cli.options import MOST_USED, config_options
from dask_slicer.config.fields import GROUPS

PAGE = Path(__file__).with_name("options.md")
_TEMPLATE = Path(__file__).with_name("options.md.in")

# What the type alone does not say.
_KIND_OF = {"shard": "I/N", "walltime": "HH:MM:SS", "memory": "size", "only": "case ids"}


def page() -> str:
    """Return the text of docs/options.md."""
    options = {option.name: option for option in config_options()}
    tables = "\n".join(
        f"### {heading}\n\n| option | meaning |\n|---|---|\n"
        + "".join(_row(name, options[name]) for name in names if name in options)
        for heading, names in GROUPS.items()
    )
    *most_used, last = (f"`--{name}`" for name in MOST_USED)
    first = f"The ten that most people need first: {', '.join(most_used)} and {last}."
    first = textwrap.fill(first, 120, break_on_hyphens=False)
    text = _TEMPLATE.read_text(encoding="utf-8").replace("{tables}\n", tables)
    return text.replace("{most_used}", first)


def _row(name: str, option: click.Option) -> str:
    field = RunConfig.model_fields[name]
    meaning, _, default = (option.help or "").replace("|", r"\|").partition(" [default: ")
    meaning = re.sub(r"(?<![\w`-])--\w+(=\w+)?", r"`\g<0>`", meaning)
    default = default.removesuffix("]")
    if default and field.default is not None:  # else it is in words
        default = f"`{default}`"
    end = " Required." if field.is_required() else f" Default: {default}." if default else ""
    spelled = ", ".join(f"`{spelling}`" for spelling in reversed(option.opts))
    return f"| {spelled}<br>{_kind(name, option)} | {meaning}{end} |\n"


def _kind(name: str, option: click.Option) -> str:
    if isinstance(option.type, click.Choice):
        return ", ".join(f"`{choice}`" for choice in option.type.choices)
    kinds = {"float": "number"}
    return _KIND_OF.get(name) or (
        "flag" if option.is_flag else kinds.get(option.type.name, option.type.name)
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
