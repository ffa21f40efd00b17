"""The command line: options are those of the configuration, a command is four moves.

Nothing heavy is imported here; help must come at once.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from dask_slicer.errors import DaskSlicerError, PreflightError, UsageError
from dask_slicer.interrupts import Terminated, heard_once
from dask_slicer.logs import FORMAT
from dask_slicer.options import (
    SCHEDULER_OPTIONS,
    AddressCommand,
    ConfigCommand,
    SchedulerCommand,
    build_config_of,
    num_workers_option,
    verbosity_options,
)
from dask_slicer.preview_command import preview
from dask_slicer.report_command import report
from dask_slicer.words import one_line

_SETTINGS = {
    "help_option_names": ["-h", "--help"],
    # --num_workers and --num-workers are one option.
    "token_normalize_func": lambda name: name.replace("-", "_"),
    "max_content_width": 100,
}
_INTERRUPTED, _TERMINATED = 130, 143


class _Group(click.Group):
    """Turns expected errors into one line and an exit status."""

    def invoke(self, ctx: click.Context) -> None:
        status = 0
        try:
            super().invoke(ctx)
        except UsageError as error:
            status = self._tell(error, ctx, 2)
        except DaskSlicerError as error:
            status = self._tell(error, ctx, 1)
        except BrokenPipeError:
            raise  # the reader of our output has gone: click ends quietly
        except OSError as error:
            status = self._tell(error, ctx, 1)
        except Terminated:
            status = _TERMINATED
        except KeyboardInterrupt:
            status = _INTERRUPTED
        ctx.exit(status)

    @staticmethod
    def _tell(error: Exception, ctx: click.Context, status: int) -> int:
        if ctx.meta.get("verbose"):
            click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
        findings = str(error).splitlines() if isinstance(error, PreflightError) else [str(error)]
        for finding in findings:
            click.echo(f"Error: {one_line(finding)}", err=True)
        return status


@click.group(cls=_Group, context_settings=_SETTINGS)
@click.version_option(package_name="dask_slicer")
def main() -> None:
    """Turn datasets of 3D medical volumes (NIfTI) into 2D and 2.5D training slices."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks × must not stop a run


@click.command(cls=ConfigCommand)
@click.option(
    "--print_job_script", is_flag=True, help="Print what --cluster would submit; do nothing."
)
@verbosity_options
@click.argument("more_cases", nargs=-1, metavar="")
@click.pass_context
def run(
    ctx: click.Context,
    /,
    print_job_script: bool,
    verbose: int,
    quiet: bool,
    more_cases: tuple[str, ...],
    **options: Any,
) -> None:
    """Make slices of a dataset; the same command again continues where it stopped."""
    ctx.meta["verbose"] = verbose
    config = build_config_of(options, more_cases)
    if print_job_script:
        from dask_slicer.jobs import job_script

        click.echo(job_script(config, config.output_dir), nl=False)
        return
    _log(verbose, config.log_file)
    report = _run(config, verbose=verbose, quiet=quiet)
    ctx.exit(1 if report.remaining else 0)


@click.command()
@click.argument("output_dir", type=click.Path(path_type=Path))
@verbosity_options
@click.pass_context
def merge(ctx: click.Context, /, output_dir: Path, verbose: int, quiet: bool) -> None:
    """Put together what the shares of a run (--shard) wrote, once all of them are done."""
    ctx.meta["verbose"] = verbose
    _log(verbose, None)
    from dask_slicer.display import MergeDisplay
    from dask_slicer.merging import merge as merge_output

    with MergeDisplay(_console(), quiet=quiet) as display, heard_once():
        report = merge_output(output_dir, observer=display)
        display.merged(report)
    ctx.exit(1 if report.failures or report.missing else 0)


@click.command(cls=ConfigCommand)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@verbosity_options
@click.argument("more_cases", nargs=-1, metavar="")
@click.pass_context
def plan(
    ctx: click.Context,
    /,
    as_json: bool,
    verbose: int,
    quiet: bool,
    more_cases: tuple[str, ...],
    **options: Any,
) -> None:
    """Show what `run` would do, from headers alone: cases, problems, disk, memory, workers."""
    ctx.meta["verbose"] = verbose
    config = build_config_of(options, more_cases)
    from dask_slicer.prepare import prepare_plan
    from dask_slicer.report import plan_json, print_plan, print_problems

    made = prepare_plan(config)
    if as_json:
        click.echo(plan_json(made))
    elif quiet:
        print_problems(made, _console())
    else:
        print_plan(made, _console())
    ctx.exit(1 if made.problems or made.failures else 0)


@click.command()
@click.option(
    "--output_dir",
    type=click.Path(path_type=Path),
    default=Path("dask_slicer_demo"),
    show_default=True,
    help="Gets the folders phantoms (made-up scans) and slices.",
)
@num_workers_option(2)
@verbosity_options
@click.pass_context
def demo(ctx: click.Context, output_dir: Path, num_workers: int, verbose: int, quiet: bool) -> None:
    """Write a small dataset of made-up scans, slice it, and say where to look."""
    ctx.meta["verbose"] = verbose
    from dask_slicer.configfile import build_config
    from dask_slicer.phantom import ensure_dataset

    phantoms, slices = output_dir / "phantoms", output_dir / "slices"
    ensure_dataset(phantoms)
    config = build_config(
        {"input_dir": phantoms, "output_dir": slices, "num_workers": num_workers},
        base="ct_abdomen",
    )
    _log(verbose, None)
    report = _run(config, verbose=verbose, quiet=quiet)
    if not quiet and not report.remaining:
        click.echo(_next_commands(phantoms, slices))
    ctx.exit(1 if report.remaining else 0)


@click.command(cls=SchedulerCommand)
@click.argument("output_dir", type=click.Path(path_type=Path))
@click.option(
    "--deep",
    metavar="N",
    type=click.IntRange(0),
    default=0,
    help="Make N slices, drawn at random, of their scans again, and compare.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the drawing.")
@click.option("--repair", is_flag=True, help="Forget cases that are damaged: run makes them anew.")
@num_workers_option(4)
@click.option(
    "--dashboard_address",
    default="127.0.0.1:8787",
    show_default=True,
    help="Where the Dask dashboard listens; none turns it off.",
)
@verbosity_options
@click.pass_context
def verify(
    ctx: click.Context, /, output_dir: Path, verbose: int, quiet: bool, **options: Any
) -> None:
    """Read again all that `run` wrote, and check it against the journal."""
    ctx.meta["verbose"] = verbose
    _log(verbose, None)
    from dask_slicer.configfile import scheduler_settings
    from dask_slicer.display import VerifyDisplay
    from dask_slicer.verification import verify as verify_output

    given = {name: options.pop(name) for name in SCHEDULER_OPTIONS}
    options["where"] = scheduler_settings(given)
    with VerifyDisplay(_console(), quiet=quiet) as display, heard_once():
        report = verify_output(output_dir, observer=display, on_case=display.checked, **options)
        display.verified(report)
    ctx.exit(1 if report.findings else 0)


@click.command(cls=AddressCommand)
@click.argument("where", required=False, metavar="OUT|ADDR")
@click.option("--once", is_flag=True, help="Print how it stands, and end; so it is in a pipe.")
@click.option("-v", "--verbose", count=True, help="Say more, with tracebacks.")
@click.pass_context
def watch(
    ctx: click.Context, /, where: str | None, once: bool, verbose: int, **options: Any
) -> None:
    """Draw a run that goes on, from another shell: workers, cases, rate, failures, time left.

    OUT is the output directory of the run, ADDR the address of its scheduler, tcp://host:8786.
    """
    ctx.meta["verbose"] = verbose
    _log(verbose, None)
    if (where is None) == (options["scheduler_file"] is None):
        raise UsageError("watch takes an output directory, an address, or --scheduler_file")
    from dask_slicer.configfile import scheduler_settings
    from dask_slicer.screen import watch_run

    with heard_once():
        watch_run(_console(), where, scheduler_settings(options), once=once)


@click.command(cls=ConfigCommand)
@click.option(
    "--workers",
    metavar="N,N...",
    help="Numbers of workers to try, such as 0,1,2,4. [default: 0, powers of 2, all CPUs]",
)
@click.option(
    "--repeats", type=click.IntRange(1), default=3, show_default=True, help="Runs with each number."
)
@click.option(
    "--cases",
    type=click.IntRange(1),
    help="At most so many cases, spread over the dataset. [default: 4 a worker, at least 16]",
)
@verbosity_options
@click.argument("more_cases", nargs=-1, metavar="")
@click.pass_context
def benchmark(
    ctx: click.Context,
    /,
    workers: str | None,
    repeats: int,
    cases: int | None,
    verbose: int,
    quiet: bool,
    more_cases: tuple[str, ...],
    **options: Any,
) -> None:
    """Try several numbers of workers on a dataset, or on phantoms, and say which to use.

    Slices go to scratch directories in --output_dir [default: dask_slicer_benchmark], which gets
    results.json and speedup.png.
    """
    ctx.meta["verbose"] = verbose
    if options["num_workers"] is not None:
        raise UsageError("benchmark takes --workers N,N... instead of --num_workers")
    from dask_slicer.benchmark import PHANTOMS, run_benchmark

    options["output_dir"] = options["output_dir"] or "dask_slicer_benchmark"
    if options["input_dir"] is None and options["config"] is None:
        options["input_dir"] = Path(options["output_dir"], PHANTOMS)
    numbers = None if workers is None else _numbers(workers)
    config = build_config_of(options, more_cases)
    if config.shard is not None:
        raise UsageError("benchmark measures whole runs; leave --shard out")
    _log(verbose, config.log_file)
    console = _console()
    with heard_once():
        verdict = run_benchmark(
            config,
            workers=numbers,
            repeats=repeats,
            n_cases=cases,
            say=lambda what: None if quiet else console.print(what, markup=False, highlight=False),
        )
    click.echo(
        f"Use --num_workers {verdict.num_workers}. Bottleneck: {verdict.bottleneck} "
        f"({verdict.reason})"
    )


def _numbers(text: str) -> tuple[int, ...]:
    """Return numbers of workers, each once, in the order given."""
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 0:
        raise UsageError(f"--workers must be numbers from 0 up with commas between, got {text}")
    return numbers


def _next_commands(phantoms: Path, slices: Path) -> str:
    rows = (slices / "slices.csv").read_text(encoding="utf-8").splitlines()
    _, _, _, path, *_ = rows[len(rows) // 2].split(",")
    again = f"--input_dir {phantoms} --output_dir {slices}_sagittal --plane sagittal"
    look = "" if find_spec("matplotlib") is None else f"  dask-slicer preview {slices}\n"
    return (
        "\nTo try next:\n"
        f"{look}"
        f"  dask-slicer report {slices}\n"
        f"  dask-slicer plan {again}\n"
        f"  dask-slicer run {again}\n"
        f'  python -c "import numpy as np; '
        f"print(np.load('{slices}/{path}')['image'].shape)\""
    )


def _run(config: Any, *, verbose: int, quiet: bool) -> Any:
    from dask_slicer.display import RunDisplay
    from dask_slicer.pipeline import run as run_pipeline

    with RunDisplay(_console(), quiet=quiet, details=verbose > 0) as display, heard_once():
        report = run_pipeline(config, observer=display)
    if report.stopped:
        click.echo(f"Error: {one_line(report.stopped)}", err=True)
    return report


def _log(verbose: int, log_file: Path | None) -> None:
    """Send the log to a file, or with -v to the terminal; Dask's own with -vv."""
    level = logging.DEBUG if verbose > 1 else logging.INFO
    handlers: list[logging.Handler] = []
    if log_file:
        try:
            handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"cannot write to --log_file {log_file}: {error.strerror}") from None
    if verbose:
        handlers.append(logging.StreamHandler(sys.stderr))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(FORMAT))
        logging.getLogger("dask_slicer").addHandler(handler)
    logging.getLogger("dask_slicer").setLevel(level if handlers else logging.ERROR)
    if verbose < 2:
        # When workers are stopped, the machinery below tells of every broken connection.
        for name in ("asyncio", "tornado"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _console() -> Any:
    from rich.console import Console

    class PatientConsole(Console):
        def on_broken_pipe(self) -> None:  # the reader has gone; the run goes on
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    console = PatientConsole()
    if not console.is_terminal:
        console.width = 160  # a log wraps nothing
    return console


for _command in (run, merge, plan, demo, verify, watch, preview, report, benchmark):
    main.add_command(_command)
