"""Commands that make slices: run, plan, demo, configs, merge."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dask_slicer.cli.options import (
    ConfigCommand,
    build_config_of,
    output_argument,
    verbosity_options,
)
from dask_slicer.errors import UsageError
from dask_slicer.monitoring.logs import configure_logging
from dask_slicer.utils.formatting import escape_line, plural
from dask_slicer.utils.signals import interrupt_once

if TYPE_CHECKING:
    from dask_slicer.config.schema import RunConfig
    from dask_slicer.monitoring.observer import RunReport
    from dask_slicer.planning.plan import RunPlan

# Backspace: click must not join the lines after it.
_EXAMPLES = """
\b
Examples:
  dask-slicer run -i scans -o slices --plane sagittal
  dask-slicer run -i scans -o slices -c ct_abdomen --num_workers 8
"""
_CONFIGS_EXAMPLE = """
\b
Example:
  dask-slicer configs ct_abdomen > mine.yaml
  dask-slicer run -i scans -o slices -c mine.yaml
"""


@click.command(cls=ConfigCommand, epilog=_EXAMPLES)
@click.option(
    "--print_job_script",
    is_flag=True,
    help="Print the job script that --cluster would submit, and exit.",
)
@verbosity_options
def run(print_job_script: bool, verbose: int, quiet: bool, **options: Any) -> bool:
    """Make slices of a dataset, or continue an interrupted run.

    Give the directories here or in the file of --config.
    """
    config = build_config_of(options)
    if print_job_script:
        from dask_slicer.cluster.jobqueue import job_script

        click.echo(job_script(config, config.output_dir), nl=False)
        return False
    configure_logging(verbose, config.log_file)
    report = _run(config, verbose=verbose, quiet=quiet)
    if not (report.share or report.stopped or quiet):
        from dask_slicer.cli.display import make_console

        if splits := _splits_with_slices(config.output_dir):
            make_console().out(_next_steps(config, splits))
    return bool(report.remaining)


@click.command()
@output_argument
@verbosity_options
def merge(output_dir: Path, verbose: int, quiet: bool) -> bool:
    """Merge the partitions of a run (--shard) when all are done."""
    configure_logging(verbose, None)
    from dask_slicer.cli.display import OutputDisplay, make_console
    from dask_slicer.execution.partitions import merge as merge_output

    with OutputDisplay(make_console(), quiet=quiet) as display, interrupt_once():
        report = merge_output(output_dir, observer=display)
        display.merged(report)
    return bool(report.failures or report.missing)


@click.command(cls=ConfigCommand, required=("input_dir",))
@click.option(
    "--json", "as_json", is_flag=True, help="Print the plan as JSON, with the role of every file."
)
@click.option(
    "--write_manifest",
    type=click.Path(path_type=Path),
    metavar="CSV",
    help="Write the cases as a manifest, a new CSV file that --input_dir takes.",
)
@verbosity_options
def plan(
    as_json: bool, write_manifest: Path | None, verbose: int, quiet: bool, **options: Any
) -> bool:
    """Show what a run would do, and write no slice.

    Lists the cases and their problems, the role of every file, and estimates disk space, memory
    and a number of workers. Reads headers; with a clip range, also a few small scans.
    --output_dir may be left out; earlier slices are not compared then.
    """
    config = build_config_of(options, needs_output=False)
    if write_manifest is not None:
        _check_manifest_path(write_manifest)
    from rich.console import Console

    from dask_slicer.cli.display import make_console, print_plan, print_problems
    from dask_slicer.execution.quick_look import with_clip_note
    from dask_slicer.execution.resume import prepare_plan
    from dask_slicer.monitoring.terminal import PlanningDisplay
    from dask_slicer.planning.estimate import plan_json

    with PlanningDisplay(Console(stderr=True), quiet=quiet) as display:
        run_plan = prepare_plan(config, progress=display.show)
    if write_manifest is not None:
        _write_manifest(run_plan, Path(os.path.abspath(write_manifest)))
        if not quiet:
            cases = plural(len(run_plan.cases), "case")
            how = "; correct it before a run, which takes it as it is" if run_plan.problems else ""
            click.echo(f"Wrote {cases} to {write_manifest}{how}", err=as_json)
    run_plan = with_clip_note(run_plan)
    if as_json:
        click.echo(plan_json(run_plan))
    elif quiet:
        print_problems(run_plan, make_console())
    else:
        print_plan(run_plan, make_console())
    return bool(run_plan.problems or run_plan.failures)


def _check_manifest_path(path: Path) -> None:
    """Raise UsageError if a manifest cannot be written there."""
    if path.suffix.lower() != ".csv":
        raise UsageError(f"--write_manifest writes CSV; {path} must end in .csv")
    if path.exists():
        raise UsageError(f"--write_manifest: {path} exists; remove it, or give another name")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--write_manifest: there is no folder {path.absolute().parent}")


def _write_manifest(run_plan: RunPlan, path: Path) -> None:
    """Write the cases of a plan, with their groups and splits, as a manifest."""
    from dask_slicer.output.atomic import atomic_write
    from dask_slicer.planning.manifest_writer import manifest_text

    cases = [replace(case.case, group=case.group, split=case.split) for case in run_plan.cases]
    text = manifest_text(
        cases, path, channel_names=run_plan.channel_names, label_names=run_plan.label_names
    )
    try:
        content = text.encode()
        with atomic_write(path, exclusive=True) as file:
            file.write(content)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--write_manifest: cannot write {path}: {error}") from None


@click.command(cls=ConfigCommand, required=("input_dir",))
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    metavar="JSON",
    default=Path("statistics.json"),
    show_default=True,
    help="File to write, which --statistics takes.",
)
@verbosity_options
def statistics(file: Path, verbose: int, quiet: bool, **options: Any) -> None:
    """Compute the statistics that --normalize dataset uses.

    They are those of nnU-Net for CT: of the labelled voxels of the training cases, after label map
    and crop, each case with the same weight.
    """
    config = build_config_of(options, needs_output=False)
    if not file.absolute().parent.is_dir():
        raise UsageError(f"--file: there is no folder {file.absolute().parent}")
    if file.is_dir():
        raise UsageError(f"--file {file} is a directory; name a file in it")
    configure_logging(verbose, config.log_file)
    from dask_slicer.cli.display import OutputDisplay, make_console
    from dask_slicer.execution.dataset_statistics import statistics as compute
    from dask_slicer.output.output import write_user_file
    from dask_slicer.output.properties import properties_text

    with OutputDisplay(make_console(), quiet=quiet) as display, interrupt_once():
        text = properties_text(compute(config, display))
    write_user_file(file, text.encode())
    if not quiet:
        click.echo(f"Wrote {file}")


@click.command()
@click.option(
    "--output_dir",
    type=click.Path(path_type=Path),
    default=Path("dask_slicer_demo"),
    show_default=True,
    help="Folder for the phantom scans (phantoms) and their slices (slices).",
)
@click.option("--num_workers", type=int, default=2, show_default=True, help="Worker processes.")
@verbosity_options
def demo(output_dir: Path, num_workers: int, verbose: int, quiet: bool) -> bool:
    """Make phantom scans, slice them, and suggest what to try next."""
    from dask_slicer.config.loader import build_config
    from dask_slicer.inputs.phantom import ensure_dataset

    phantoms, slices = output_dir / "phantoms", output_dir / "slices"
    config = build_config(
        {"input_dir": phantoms, "output_dir": slices, "num_workers": num_workers},
        base="ct_abdomen",
    )
    ensure_dataset(phantoms)
    configure_logging(verbose, None)
    report = _run(config, verbose=verbose, quiet=quiet)
    if not quiet and not report.remaining:
        click.echo(_demo_commands(phantoms, slices))
    return bool(report.remaining)


def _complete_config(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    from dask_slicer.config.shipped import shipped_configs

    return [name for name in shipped_configs() if name.startswith(incomplete)]


@click.command(epilog=_CONFIGS_EXAMPLE)
@click.argument("name", required=False, shell_complete=_complete_config)
def configs(name: str | None) -> None:
    """List the configurations and recipes for --config, or print one.

    With NAME, prints that configuration, to change it in a file of your own.
    """
    from dask_slicer.config.shipped import config_purposes, config_text, shipped_config

    if name is not None:
        # Bytes, for a file is UTF-8 whatever the terminal is.
        click.echo(config_text(shipped_config(name)).encode(), nl=False)
        return
    purposes = config_purposes()
    width = max(map(len, purposes))
    for config, purpose in purposes.items():
        click.echo(f"{config:{width}}  {purpose}")


def _splits_with_slices(output_dir: Path) -> list[str]:
    """Return the splits of an output that have slices, also those of earlier runs."""
    from dask_slicer.output.formats.base import read_json
    from dask_slicer.output.layout import SUMMARY

    summary = output_dir / SUMMARY
    splits = read_json(summary).get("splits", {}) if summary.exists() else {}
    return [split for split, counts in splits.items() if counts["slices"]]


def _next_steps(config: RunConfig, splits: Sequence[str]) -> str:
    """Return what the user may do with an output, in two or three lines."""
    # Forward slashes work on Windows too, in every shell.
    path = config.output_dir.as_posix()
    if not config.is_readable:
        folders = dict.fromkeys(
            template.folder(split) or "."
            for split in splits
            for template in config.templates_of(split)
        )
        return (
            f"The loader of the project that these files are for reads them: {', '.join(folders)}\n"
            f"To check them at any time: dask-slicer verify {shlex.quote(path)}"
        )
    look = "report" if find_spec("matplotlib") is None else "preview"
    chosen = "" if splits[0] == "train" else f", split={splits[0]!r}"
    masks = "Masks look black in image viewers: their values are the classes, 0, 1, 2, …\n"
    return (
        f"{masks if config.format == 'png' else ''}"
        f"To look at the slices: dask-slicer {look} {shlex.quote(path)}\n"
        f"To load one in Python: from dask_slicer import SliceDataset; "
        f"SliceDataset({path!r}{chosen})[0]"
    )


def _demo_commands(phantoms: Path, slices: Path) -> str:
    """Return commands that a user may try after the demo."""
    look = "" if find_spec("matplotlib") is None else f"  dask-slicer preview {slices}\n"
    return (
        "\nTo try next:\n"
        f"{look}"
        f"  dask-slicer report {slices}\n"
        f"  dask-slicer run -i {phantoms} -o {slices}_sagittal --plane sagittal\n"
        '  python -c "from dask_slicer import SliceDataset; '
        f"print(SliceDataset('{slices}')[0]['image'].shape)\""
    )


def _run(config: RunConfig, *, verbose: int, quiet: bool) -> RunReport:
    from dask_slicer.cli.display import make_console
    from dask_slicer.execution.pipeline import run as run_pipeline
    from dask_slicer.monitoring.terminal import RunDisplay

    with RunDisplay(make_console(), quiet=quiet, details=verbose > 0) as display, interrupt_once():
        report = run_pipeline(config, observer=display)
    if report.stopped:
        click.echo(f"Error: {escape_line(report.stopped)}", err=True)
    return report
