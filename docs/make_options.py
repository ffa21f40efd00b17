"""Write docs/options.md from the settings of `RunConfig`: `python docs/make_options.py`."""

from __future__ import annotations

import re
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from dask_slicer import RunConfig

PAGE = Path(__file__).with_name("options.md")
_TEMPLATE = Path(__file__).with_name("options.md.in")

# By heading of the page; every setting is in one of them.
GROUPS = {
    "Input": ("input_dir", "include_test", "only"),
    "Slices": ("plane", "window_size", "padding_mode"),
    "Intensities": ("clip_min", "clip_max", "normalize", "dtype", "nonfinite"),
    "Labels": ("label_dtype", "allow_missing_labels", "min_foreground"),
    "Splits": ("train_ratio", "val_ratio", "group_regex", "seed", "splits", "fold"),
    "Output": (
        *("output_dir", "format", "compression_level", "compression"),
        *("overwrite", "prune", "fsync"),
    ),
    "Workers": ("num_workers", "dashboard_address", "shard"),
    "Running scheduler": (
        *("scheduler", "scheduler_file", "tls_ca", "tls_cert", "tls_key"),
        *("wait_workers", "wait_timeout", "upload_code"),
    ),
    "Batch system": (
        *("cluster", "jobs", "cores", "memory", "walltime", "queue", "account"),
        *("job_extra", "lifetime", "interface"),
    ),
    "Failures and logs": ("retries", "timeout", "fail_fast", "performance_report", "log_file"),
}
_KINDS = {int: "integer", float: "number", Path: "path"}
# What the type alone does not say.
_KIND_OF = {"shard": "I/N", "walltime": "HH:MM:SS", "memory": "size", "only": "case ids"}


def page() -> str:
    """Return the text of docs/options.md.

    Raises
    ------
    ValueError
        If a setting is in no group, or in two.
    """
    grouped = [name for names in GROUPS.values() for name in names]
    if sorted(grouped) != sorted(RunConfig.model_fields):
        odd = set(grouped) ^ set(RunConfig.model_fields)
        raise ValueError(f"each setting belongs into one group of GROUPS: {sorted(odd)}")
    tables = "\n".join(f"### {heading}\n\n{_table(names)}" for heading, names in GROUPS.items())
    return _TEMPLATE.read_text(encoding="utf-8").replace("{tables}\n", tables)


def _table(names: tuple[str, ...]) -> str:
    rows = "".join(_row(name, RunConfig.model_fields[name]) for name in names)
    return f"| option | meaning |\n|---|---|\n{rows}"


def _row(name: str, field: FieldInfo) -> str:
    meaning, _, in_words = (field.description or "").replace("|", r"\|").partition(" [default: ")
    meaning = re.sub(r"(?<![\w`-])--\w+(=\w+)?", r"`\g<0>`", meaning)
    default = in_words.removesuffix("]") or _default(field)
    end = " Required." if field.is_required() else f" Default: {default}." if default else ""
    return f"| `--{name}`<br>{_kind(name, field.annotation)} | {meaning}{end} |\n"


def _default(field: FieldInfo) -> str:
    value = field.get_default()
    if field.is_required() or value in (None, ()) or value is False:
        return ""
    in_words = getattr(value, "human_readable", None)
    text = in_words(decimal=True, separator="").replace(".0", "") if in_words else str(value)
    return f"`{text}`"


def _kind(name: str, annotation: Any) -> str:
    plain = _plain(annotation)
    if get_origin(plain) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(plain))
    return _KIND_OF.get(name) or ("flag" if plain is bool else _KINDS.get(plain, "text"))


def _plain(annotation: Any) -> Any:
    """Return the type behind `X | None` and `Annotated[X, ...]`."""
    if get_origin(annotation) in (Literal, tuple):
        return annotation
    inner = [one for one in get_args(annotation) if one is not NoneType]
    return _plain(inner[0]) if inner else annotation


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
