"""Settings as typed keywords: the same names and types as the configuration model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest
from pydantic import ByteSize

from dask_slicer.config.fields import ONE_OR_SEVERAL, plain_type
from dask_slicer.config.keywords import NotGiven, OptionalKeywords, RunKeywords, StrPath
from dask_slicer.config.schema import RunConfig

FIELDS = RunConfig.model_fields
KEYWORDS = get_type_hints(RunKeywords)
# What Python code may give for a setting of this type.
ACCEPTED = {
    Path: set(get_args(StrPath)),
    ByteSize: {int, str},
    tuple[str, ...]: {Sequence[str]},
}
# Parts of a text with commas, whose types differ; and settings of settings.
SEQUENCES = {
    "ct_windows": {Sequence[str]},
    "percentiles": {Sequence[float]},
    "spacing": {Sequence[float | None]},
    "size": {int, Sequence[int]},
    "files": {Sequence[Mapping[str, Any]]},
    "file_lists": {Sequence[Mapping[str, Any]]},
}


def test_every_setting_is_a_keyword_of_plan_run_and_submit() -> None:
    assert sorted(KEYWORDS) == sorted([*FIELDS, "like"])  # which stands for others


def test_a_configuration_requires_what_has_no_default() -> None:
    required = {name for name, field in FIELDS.items() if field.is_required()}
    assert set(KEYWORDS) - set(get_type_hints(OptionalKeywords)) == required | {"like"}


@pytest.mark.parametrize("name", FIELDS)
def test_a_keyword_takes_what_the_setting_takes(name) -> None:
    field = FIELDS[name]
    may_be_none = field.is_required() or field.default is None
    kind = plain_type(field.annotation)
    expected = SEQUENCES.get(name) or ACCEPTED.get(kind, {kind})
    expected = expected | {NoneType if may_be_none else NotGiven}
    if name in ONE_OR_SEVERAL:
        expected |= {Sequence[float | None] if kind is float else Sequence[kind]}
    assert set(get_args(KEYWORDS[name])) == expected
