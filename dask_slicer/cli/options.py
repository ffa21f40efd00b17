"""Options of commands, made from the configuration model on first use."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin

import click

from dask_slicer.errors import UsageError
from dask_slicer.utils.formatting import did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel

    from dask_slicer.config.schema import RunConfig

M = TypeVar("M", bound="BaseModel")

# First in the help of a command.
MOST_USED = (
    *("input_dir", "output_dir", "config", "plane", "window_size"),
    *("clip_min", "clip_max", "normalize", "format", "num_workers"),
)
_METAVARS = {
    **{"only": "CASE_ID...", "images": "GLOB", "labels": "GLOB", "label_name": "NAME"},
    **{"label_map": "OLD:NEW...", "crop": "nonzero|label|BOX", "crop_margin": "MM"},
    **{"percentiles": "P,Q", "ct_windows": "LEVEL/WIDTH,...", "spacing": "A,B,C"},
    **{"size": "N|ROWS,COLUMNS", "slices": "A:B", "context_mm": "MM"},
    **{
        "group_column": "COLUMN",
        "stratify": "label|COLUMN",
        "structures": "A,B...",
        "modalities": "A,B...",
        "volumes": "channels|frames|N",
    },
}
_SHORT = {"input_dir": "-i", "output_dir": "-o"}
# The settings that connect a command to a running scheduler.
SCHEDULER_OPTIONS = ("scheduler", "scheduler_file", "tls_ca", "tls_cert", "tls_key")


# Those of the place of a run: this machine, a scheduler, batch jobs.
PLACE_OPTIONS = (
    *("num_workers", *SCHEDULER_OPTIONS, "wait_workers", "wait_timeout", "upload_code"),
    *("cluster", "jobs", "cores", "memory", "walltime", "queue", "account", "job_extra"),
    *("lifetime", "interface", "dashboard_address"),
)


class Choice(click.Choice[str]):
    """A choice in upper or lower case; the message about a wrong one suggests the nearest."""

    def __init__(self, choices: Sequence[str]) -> None:
        super().__init__(choices, case_sensitive=False)

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """Return the error message for a value that is no choice."""
        message = super().get_invalid_choice_message(value, ctx)
        return message.rstrip(".") + did_you_mean(str(value).lower(), map(str, self.choices))


class _OneOrEach(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """A value, none, or several with commas, ``240,none``: the configuration checks them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        is_text = "," in str(value) or str(value).lower() == "none"
        return value if is_text else super().convert(value, param, ctx)


class _NumberOrEach(_OneOrEach, click.types.FloatParamType): ...


class _ChoiceOrEach(_OneOrEach, Choice): ...


class SettingsCommand(click.Command):
    """A command with the options of the settings that are named."""

    def __init__(self, *args: Any, settings: Sequence[str], **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self._settings = settings

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the options of the settings, then the command's own."""
        settings = [option for option in config_options() if option.name in self._settings]
        return [*settings, *super().get_params(ctx)]


class AssemblyCommand(SettingsCommand):
    """A command with the settings of `assemble`, and those of its place."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, settings=PLACE_OPTIONS, **attributes)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the arguments, the options of the settings, then those of the place."""
        from dask_slicer.config.assembly_settings import AssemblySettings

        fields = AssemblySettings.model_fields.items()
        return [*(_option(name, field) for name, field in fields), *super().get_params(ctx)]


class ConfigCommand(click.Command):
    """A command with an option for every setting, help in groups, and more cases for --only."""

    def __init__(
        self, *args: Any, required: Sequence[str] = ("input_dir", "output_dir"), **attributes: Any
    ) -> None:
        super().__init__(*args, **attributes)
        self._required = required

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the options of the configuration, then the command's own."""
        more_cases = click.Argument(["more_cases"], nargs=-1, metavar="")
        return [*config_options(), *super().get_params(ctx), more_cases]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options that most people need, the other settings by group, and the rest."""
        from dask_slicer.config.fields import GROUPS

        rows = {
            parameter.name: row
            for parameter in self.get_params(ctx)
            if isinstance(parameter, click.Option) and (row := parameter.get_help_record(ctx))
        }
        for name in self._required:
            spelled, text = rows[name]
            rows[name] = (spelled, f"{text} [required]")
        sections = {"Most used": MOST_USED, **GROUPS}
        sections["Intensities"] += ("no_normalize",)
        sections["Input"] += ("like",)
        in_a_section = {name for names in sections.values() for name in names}
        sections["Other options"] = tuple(name for name in rows if name not in in_a_section)
        for heading, names in sections.items():
            with formatter.section(heading):
                formatter.write_dl([rows.pop(name) for name in names if name in rows])


@functools.cache
def config_options() -> tuple[click.Option, ...]:
    """Return an option for each setting, with --config and --no_normalize."""
    from dask_slicer.config.fields import WITHOUT_OPTION
    from dask_slicer.config.schema import RunConfig

    config = click.Option(
        ["-c", "--config"],
        metavar="FILE|NAME",
        help="YAML file, or a name that `dask-slicer configs` lists. Other options win over it.",
    )
    like = click.Option(
        ["--like"],
        metavar="OUTPUT_DIR",
        type=click.Path(),
        help="Make slices as in another output, with its statistics: all cases for test, no label "
        "needed.",
    )
    no_normalize = click.Option(
        ["--no_normalize"], is_flag=True, default=None, help="The same as --normalize none."
    )
    settings = [
        _option(name, field)
        for name, field in RunConfig.model_fields.items()
        if name not in WITHOUT_OPTION
    ]
    return (config, *settings, no_normalize, like)


def _option(name: str, field: Any) -> click.Option:
    from dask_slicer.config.fields import ONE_OR_SEVERAL, plain_type
    from dask_slicer.config.step_settings import COMMA_SEPARATED

    annotation = plain_type(field.annotation)
    kind: Any = {int: click.INT, float: click.FLOAT, Path: click.Path()}.get(annotation)
    settings: dict[str, Any] = {"type": kind}
    if annotation is bool:
        settings = {"is_flag": True}
    elif get_origin(annotation) is Literal:
        choice = _ChoiceOrEach if name in ONE_OR_SEVERAL else Choice
        settings = {"type": choice(get_args(annotation))}
    elif name in ONE_OR_SEVERAL:
        settings = {"type": _NumberOrEach()}
    elif get_origin(annotation) is tuple:
        settings = {} if name in COMMA_SEPARATED else {"multiple": True}
    if name == "predictions":
        settings = {"multiple": True, "type": click.Path()}
    settings["metavar"] = _METAVARS.get(name)
    names = [*([_SHORT[name]] if name in _SHORT else []), f"--{name}"]
    text = field.description + _default_words(field)
    return click.Option(names, default=None, help=text, **settings)


def _default_words(field: Any) -> str:
    """Return the end of a help text: the default as the user would type it."""
    default = field.get_default()
    if field.is_required() or default in (None, ()) or default is False:
        return ""
    if readable := getattr(default, "human_readable", None):  # a number of bytes
        default = readable(decimal=True, separator="").replace(".0", "")
    return f" [default: {default}]"


output_argument = click.argument("output_dir", type=click.Path(path_type=Path))


def _keep_verbosity(ctx: click.Context, _: click.Parameter, verbose: int) -> int:
    """Note in the context whether errors are printed with their traceback."""
    ctx.meta["verbose"] = verbose
    return verbose


verbose_option = click.option(
    "-v",
    "--verbose",
    count=True,
    callback=_keep_verbosity,
    help="Print more, with tracebacks of errors; -vv: also Dask's warnings.",
)


def verbosity_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add -v and -q to a command."""
    quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
    return verbose_option(quiet_option(command))


def build_config_of(options: dict[str, Any], *, needs_output: bool = True) -> RunConfig:
    """Return the configuration of the options and the file that they name."""
    from dask_slicer.config.loader import build_config

    base, more_cases = options.pop("config"), options.pop("more_cases")
    if more_cases and not options["only"]:
        raise UsageError(f"unexpected argument {more_cases[0]!r}; options start with --")
    options["only"] = (*options["only"], *more_cases)
    # Repeatable options that were not given.
    options |= {name: None for name, value in options.items() if value == ()}
    if options.pop("no_normalize"):
        if options["normalize"] not in (None, "none"):
            raise UsageError(f"--no_normalize contradicts --normalize {options['normalize']}")
        options["normalize"] = "none"
    return build_config(options, base=base, needs_output=needs_output)


def pop_settings(model: type[M], options: dict[str, Any]) -> M:
    """Take the settings of a model out of a command's options, and return them validated."""
    from dask_slicer.config.loader import build_settings

    values = {name: options.pop(name, None) for name in model.model_fields}
    return build_settings(model, {name: v for name, v in values.items() if v is not None})
