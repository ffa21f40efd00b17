"""Reading settings from YAML and options, writing them, and error messages for both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from dask_slicer.config.run_settings import SchedulerSettings
from dask_slicer.config.schema import RunConfig
from dask_slicer.errors import ConfigError
from dask_slicer.utils.formatting import did_you_mean, format_value

M = TypeVar("M", bound=BaseModel)

# Python refuses to print integers of 4,300 digits and more.
_TOO_LARGE = 10**1000
# Where a run is: one of them on the command line takes the place of what the file says.
_PLACES = {"num_workers", "scheduler", "scheduler_file", "cluster"}
_OF_A_PLACE = {*_PLACES, "tls_ca", "tls_cert", "tls_key"}
# Settings of one run: not written to OUT/config.yaml, so that running it again continues.
_OF_ONE_RUN = {
    *("overwrite", "prune", "only", "shard", "fail_fast", "log_file", "performance_report"),
}


def build_config(
    options: Mapping[str, Any], *, base: str | Path | Mapping[str, Any] | None = None
) -> RunConfig:
    """Return the validated configuration: options over the base file over the defaults.

    Parameters
    ----------
    options : mapping
        Names of `RunConfig`; None means not given.
    base : str, Path or mapping, optional
        A YAML file, the name of one of the shipped configurations, or settings themselves.

    Returns
    -------
    RunConfig

    Raises
    ------
    ConfigError
        One line for everything that is wrong: field, rule, value.
    """
    if base is None:
        settings: dict[str, Any] = {}
    elif isinstance(base, Mapping):
        settings = dict(base)
    else:
        settings = read_config_file(find_config(base))
    given = {name: value for name, value in options.items() if value is not None}
    if given.keys() & _PLACES:  # the file may say another place
        settings = {name: value for name, value in settings.items() if name not in _OF_A_PLACE}
    return _validated(RunConfig, settings | given)


def scheduler_settings(options: Mapping[str, Any]) -> SchedulerSettings:
    """Return how to get to a scheduler, of options that may be None.

    Raises
    ------
    ConfigError
    """
    given = {name: value for name, value in options.items() if value is not None}
    return _validated(SchedulerSettings, given)


def _validated(kind: type[M], settings: Mapping[str, Any]) -> M:
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(_in_words(error)) from None


def to_yaml(config: RunConfig) -> str:
    """Return the configuration as YAML that `run --config` takes, without settings of one run."""
    settings = lasting_settings(config)
    # YAML takes NEL for the end of a line, and PyYAML does not quote it.
    readable = "\x85" not in json.dumps(settings, ensure_ascii=False)
    return yaml.safe_dump(settings, sort_keys=True, allow_unicode=readable)


def lasting_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings, as JSON has them, that are not those of one run."""
    return config.model_dump(mode="json", exclude=_OF_ONE_RUN, exclude_none=True)


def json_schema() -> str:
    """Return the JSON schema of the configuration, for editors that check YAML as it is typed."""
    schema = RunConfig.model_json_schema() | {"description": "Settings of a dask_slicer run."}
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


def read_config_file(path: Path) -> dict[str, Any]:
    """Return the settings in a YAML file.

    Raises
    ------
    ConfigError
        If it cannot be read, or is not a mapping of known names.
    """
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
    unknown = [str(name) for name in settings if name not in RunConfig.model_fields]
    if unknown:
        raise ConfigError(f"{path}: " + "; ".join(map(_unknown, unknown)))
    return {str(name): value for name, value in settings.items()}


def find_config(name: str | Path) -> Path:
    """Return the file that a configuration's path or name stands for.

    Raises
    ------
    ConfigError
        If there is neither such a file nor a shipped configuration of that name.
    """
    try:
        path = Path(name).expanduser()
    except RuntimeError:
        raise ConfigError(f"there is no configuration {name}: that user is not known") from None
    if path.is_file() or path.suffix in (".yaml", ".yml") or path.name != str(name):
        return path
    shipped = shipped_configs()
    if str(name) not in shipped:
        raise ConfigError(
            f"there is no configuration {name}{did_you_mean(str(name), shipped)}; "
            f"shipped are {', '.join(sorted(shipped))}, or give a YAML file"
        )
    return shipped[str(name)]


def shipped_configs() -> dict[str, Path]:
    """Return the configurations that come with the package, by name."""
    package = Path(str(resources.files("dask_slicer")))
    # A wheel carries them inside the package, a source checkout beside it.
    for folder in (package / "config" / "presets", package.parent / "configs"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice; YAML's own would take the last silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key} is given twice")
        return super().construct_mapping(node, deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        found = int(self.construct_yaml_int(node))
        if abs(found) >= _TOO_LARGE:
            raise yaml.YAMLError("it holds an integer of over 1,000 digits")
        return found


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)


def _in_words(error: ValidationError) -> str:
    return "; ".join(_one_in_words(dict(problem)) for problem in error.errors())


def _one_in_words(problem: dict[str, Any]) -> str:
    name = ".".join(map(str, problem["loc"][:1]))
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
        case "byte_size":
            return f"{name} must be a size such as 4GB{got}"
        case "finite_number":
            return f"{name} must be a finite number{got}"
        case "value_error":
            text = str(context["error"])
            return f"{name} {text}{got}" if name else text
    return f"{name}: {problem['msg'].lower()}{got}"


def _unknown(name: str) -> str:
    return f"there is no setting {name}{did_you_mean(name, RunConfig.model_fields)}"
