"""Options of commands, made from the configuration model when needed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

from dask_slicer.errors import UsageError

# With these, a command finds a running scheduler.
SCHEDULER_OPTIONS = ("scheduler", "scheduler_file", "tls_ca", "tls_cert", "tls_key")


class ConfigCommand(click.Command):
    """A command with an option for every setting; they are made when first needed."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the options of the configuration, then the command's own."""
        return [*config_options(), *super().get_params(ctx)]


class SchedulerCommand(click.Command):
    """A command with the options that say how to get to a running scheduler."""

    scheduler_options: tuple[str, ...] = SCHEDULER_OPTIONS

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return those options of the configuration, then the command's own."""
        return [
            *(option for option in config_options() if option.name in self.scheduler_options),
            *super().get_params(ctx),
        ]


class AddressCommand(SchedulerCommand):
    """The same, where the address of the scheduler is an argument."""

    scheduler_options = SCHEDULER_OPTIONS[1:]


@functools.cache
def config_options() -> tuple[click.Option, ...]:
    """Return the options that stand for the fields of the configuration."""
    from dask_slicer.config.schema import RunConfig

    order = ("input_dir", "output_dir", *RunConfig.model_fields)
    options = [_option(name, RunConfig.model_fields[name]) for name in dict.fromkeys(order)]
    config = click.Option(
        ["--config"],
        metavar="FILE|NAME",
        help="YAML file, or one of the shipped configurations. The command line wins over it.",
    )
    no_normalize = click.Option(
        ["--no_normalize"], is_flag=True, default=None, help="The same as --normalize none."
    )
    return (*options[:2], config, *options[2:], no_normalize)


def _option(name: str, field: Any) -> click.Option:
    annotation = _plain(field.annotation)
    text = field.description
    default = field.get_default()
    if annotation is bool:
        return click.Option([f"--{name}"], is_flag=True, default=None, help=text)
    if default not in (None, ()) and not field.is_required():
        text += f" [default: {_shown(default)}]"
    kind: Any = {int: click.INT, float: click.FLOAT, Path: click.Path()}.get(
        annotation, click.STRING
    )
    if get_origin(annotation) is Literal:
        kind = click.Choice(get_args(annotation))
    if get_origin(annotation) is tuple:
        metavar = "CASE_ID..." if name == "only" else "TEXT"
        return click.Option([f"--{name}"], multiple=True, default=None, metavar=metavar, help=text)
    return click.Option([f"--{name}"], type=kind, default=None, help=text)


def _shown(default: object) -> object:
    """Return a default as it would be typed."""
    in_words = getattr(default, "human_readable", None)
    return in_words(decimal=True, separator="").replace(".0", "") if in_words else default


def _plain(annotation: Any) -> Any:
    """Return the type behind `X | None` and `Annotated[X, ...]`."""
    if get_origin(annotation) in (Literal, tuple):
        return annotation
    for inner in get_args(annotation):
        if inner is not type(None):
            return _plain(inner)
    return annotation


def num_workers_option(default: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return what adds --num_workers to a command that has no configuration."""
    return click.option(
        "--num_workers",
        type=click.IntRange(-1),
        default=default,
        show_default=True,
        help="Worker processes; 0: in this process; -1: all CPUs this process may use.",
    )


def verbosity_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add -v and -q to a command."""
    louder = "Say more, with tracebacks of what was not foreseen; -vv: Dask's warnings too."
    command = click.option("-v", "--verbose", count=True, help=louder)(command)
    return click.option("-q", "--quiet", is_flag=True, help="Print only what went wrong.")(command)


def build_config_of(options: dict[str, Any], more_cases: tuple[str, ...]) -> Any:
    """Return the configuration that the options, and the file they name, amount to."""
    from dask_slicer.config.loader import build_config

    base = options.pop("config")
    if more_cases and not options["only"]:
        raise UsageError(f"there is no place for {more_cases[0]!r}; options start with --")
    options["only"] = (*options["only"], *more_cases)
    # What may be repeated and was not given.
    options |= {name: None for name, value in options.items() if value == ()}
    if options.pop("no_normalize"):
        if options["normalize"] not in (None, "none"):
            raise UsageError(f"--no_normalize contradicts --normalize {options['normalize']}")
        options["normalize"] = "none"
    return build_config(options, base=base)
