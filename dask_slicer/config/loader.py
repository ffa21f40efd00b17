"""Settings from YAML files and options, as YAML and JSON, and their error messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dask_slicer.config.effects import JOB_SETTINGS, WAIT_SETTINGS
from dask_slicer.config.schema import NO_OUTPUT, RunConfig, SliceSettings
from dask_slicer.config.shipped import shipped_config
from dask_slicer.config.step_settings import SELECTING
from dask_slicer.errors import ConfigError
from dask_slicer.utils.formatting import did_you_mean, format_value

M = TypeVar("M", bound=BaseModel)

# Python refuses to print integers of 4,300 digits and more.
_TOO_LARGE = 10**1000
# Settings that say where a run executes: one of them on the command line replaces all in the file.
_SCHEDULERS = {"scheduler", "scheduler_file"}
PLACES = {"num_workers", "cluster", *_SCHEDULERS}
_PLACE_SETTINGS = {*PLACES, "tls_ca", "tls_cert", "tls_key"}
# Settings beside those of slices that `like` takes over.
_SAME_CASES = (
    *("modalities", "missing_modality", "volumes", "label_grid", "orientation_from", "structures"),
    "overlap",
)
# Settings of slices that it does not: they name cases, or choose slices by their label.
_OF_OTHER_CASES = {"slice_list", "min_foreground", "keep_empty", "keep_empty_in"}
# Not written to OUT/config.yaml: a later run with that file continues the output.
_SINGLE_RUN_SETTINGS = {
    *("overwrite", "prune", "trust_size", "only", "shard", "fail_fast"),
    *("log_file", "performance_report"),
}


def build_config(
    options: Mapping[str, Any],
    *,
    base: str | Path | Mapping[str, Any] | None = None,
    needs_output: bool = True,
) -> RunConfig:
    """Return the validated configuration: options (None: not given), then `base`, then defaults.

    The base is a YAML file, the name of a shipped configuration, or a mapping of settings. A plan
    needs no output directory.
    """
    if isinstance(base, str | Path):
        base = read_config_file(find_config(base))
    settings = dict(base or {})
    given = {name: value for name, value in options.items() if value is not None}
    if given.keys() & PLACES:
        dropped = set(_PLACE_SETTINGS)
        if settings.get("cluster") and "cluster" not in given:
            dropped.update(JOB_SETTINGS)
        if (settings.keys() & _SCHEDULERS) and not (given.keys() & _SCHEDULERS):
            dropped.update(WAIT_SETTINGS)
        settings = {name: value for name, value in settings.items() if name not in dropped}
    settings |= given
    if (like := settings.pop("like", None)) is not None:
        settings = _like(Path(like), settings)
    without = {} if needs_output else {"output_dir": NO_OUTPUT}
    config = build_settings(RunConfig, without | settings)
    config._like = None if like is None else Path(like).expanduser()
    return config


def _like(output_dir: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those of another output that decide what a slice is.

    All cases are for test, and need no label. A list of slices is of the cases of that output.
    """
    path = output_dir.expanduser() / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"like {output_dir}: there is no output of dask-slicer, with config.yaml")
    other = build_config({"output_dir": output_dir}, base=path)
    names = {*SliceSettings.model_fields, *_SAME_CASES} - _OF_OTHER_CASES
    names -= settings.keys() & SELECTING  # chooses slices, and does not change them
    if not other.modalities:  # the other dataset had no others
        names.discard("modalities")
    same = {name: value for name, value in other if name in names}
    if other.uses_statistics:
        same["statistics"] = path.with_name("statistics.json").absolute()
    if not other.structures and (numbers := _structures(path.with_name("structures.json"))):
        same["structures"] = numbers
    again = build_settings(RunConfig, other.model_dump() | dict(settings))
    for name, value in same.items():
        if name in settings and getattr(again, name) != value:
            raise ConfigError(
                f"like {output_dir} has {name} {format_value(value)}, so it cannot be "
                f"{format_value(getattr(again, name))}; leave out one of the two"
            )
    all_for_test = {"train_ratio": 0.0, "val_ratio": 0.0, "allow_missing_labels": True}
    return all_for_test | dict(settings) | same


def _structures(path: Path) -> tuple[str, ...]:
    """Return the structures that an output merged, in the order of their label values."""
    try:
        numbers = json.loads(path.read_text(encoding="utf-8"))
        return tuple(sorted(numbers, key=numbers.__getitem__))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged ({error}); dask-slicer verify repairs it") from None


def build_settings(model: type[M], settings: Mapping[str, Any]) -> M:
    """Return validated settings of a model."""
    try:
        return model.model_validate(dict(settings))
    except ValidationError as error:
        # Numbers of one setting may break the same rule.
        messages = dict.fromkeys(map(_message, error.errors()))
        raise ConfigError("; ".join(messages)) from None


def to_yaml(config: RunConfig) -> str:
    """Return the configuration as YAML for `run --config`, without settings of a single run."""
    settings = lasting_settings(config)
    # NEL ends a line in YAML, and PyYAML does not quote it.
    readable = "\x85" not in json.dumps(settings, ensure_ascii=False)
    return yaml.safe_dump(settings, sort_keys=True, allow_unicode=readable)


def lasting_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings as JSON values, without settings of a single run."""
    return config.model_dump(mode="json", exclude=_SINGLE_RUN_SETTINGS, exclude_none=True)


def json_schema() -> str:
    """Return the JSON schema of the configuration, for editors that check YAML files."""
    schema = RunConfig.model_json_schema() | {"description": "Settings of a dask_slicer run."}
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


def read_config_file(path: Path) -> dict[str, Any]:
    """Return the settings in a YAML file, a mapping of known names."""
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506  # a safe one
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the configuration {path} is not UTF-8 text") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"the configuration {path} is not YAML: {problem}") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"the configuration {path} must be a mapping of settings, name: value")
    known = {*RunConfig.model_fields, "like"}
    unknown = [str(name) for name in settings if name not in known]
    if unknown:
        raise ConfigError(f"{path}: " + "; ".join(map(_unknown, unknown)))
    return {str(name): value for name, value in settings.items()}


def find_config(name: str | Path) -> Path:
    """Return the file of a configuration: a path, or the name of a shipped one."""
    try:
        path = Path(name).expanduser()
    except RuntimeError:
        raise ConfigError(f"there is no configuration {name}: that user is not known") from None
    if path.is_file() or path.suffix in (".yaml", ".yml") or path.name != str(name):
        return path
    try:
        return shipped_config(str(name))
    except ConfigError as error:
        raise ConfigError(f"{error}, or give a YAML file") from None


class _Loader(yaml.SafeLoader):
    """YAML loader that refuses a key given twice, where PyYAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key} is given twice")
        return super().construct_mapping(node, deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        number = int(self.construct_yaml_int(node))
        if abs(number) >= _TOO_LARGE:
            raise yaml.YAMLError("it holds an integer of over 1,000 digits")
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)


def _message(problem: ErrorDetails) -> str:
    """Return what is wrong with a setting: name, rule, value; rare rules in pydantic's words."""
    match problem["loc"]:
        case ("files" | "file_lists" as setting, int(number), *place):
            entry = problem.copy()
            entry["loc"] = tuple(place)
            is_missing = problem["type"] == "missing"
            rule = f"{place[-1]} is required" if is_missing else _message(entry)
            return f"{setting}, entry {number + 1}: {rule}"
    name = str(problem["loc"][0]) if problem["loc"] else ""
    value, context = problem["input"], problem.get("ctx", {})
    got = f", got {format_value(value)}"
    match problem["type"]:
        case "extra_forbidden":
            return _unknown(name)
        case "missing":
            return f"{name} is required: give --{name}, or set it in the configuration file"
        case "greater_than_equal":
            return f"{name} must be {context['ge']:g} or more{got}"
        case "less_than_equal":
            return f"{name} must be {context['le']:g} or less{got}"
        case "literal_error":
            allowed = context["expected"].replace("'", "").replace(" or ", ", ")
            nearest = did_you_mean(value, allowed.split(", ")) if isinstance(value, str) else ""
            return f"{name} must be one of {allowed}{got}{nearest}"
        case "tuple_type":
            return f"{name} must be a list{got}"
        case "byte_size":
            return f"{name} must be a size such as 4GB{got}"
        case "value_error":
            text = str(context["error"])
            return f"{name} {text}{got}" if name else text
    rule = problem["msg"]
    must = rule.startswith("Input should")
    return (f"{name} must{rule[12:]}" if must else f"{name}: {rule.lower()}") + got


def _unknown(name: str) -> str:
    return f"there is no setting {name}{did_you_mean(name, RunConfig.model_fields)}"
