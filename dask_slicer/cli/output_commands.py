"""Commands on an output: split, verify, watch, preview, report, assemble."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dask_slicer.cli.options import (
    SCHEDULER_OPTIONS,
    AssemblyCommand,
    Choice,
    SettingsCommand,
    output_argument,
    pop_settings,
    verbose_option,
    verbosity_options,
)
from dask_slicer.errors import UsageError
from dask_slicer.monitoring.logs import configure_logging
from dask_slicer.utils.formatting import escape_line
from dask_slicer.utils.signals import interrupt_once


@click.command()
@output_argument
@click.option(
    "--case", "cases", multiple=True, metavar="CASE_ID", help="Only this case; repeatable."
)
@click.option("--split", type=Choice(["train", "val", "test"]), help="Only slices of this split.")
@click.option(
    "--slices", metavar="N,N-N...", help="Slices to draw of each case, such as 3,10,20-30."
)
@click.option("--n_slices", type=int, default=16, show_default=True, help="Number of slices.")
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    help="Picture to write: .png, .jpg, .pdf or .svg. [default: preview.png in OUTPUT_DIR]",
)
@click.option("--no_labels", is_flag=True, help="Draw no labels.")
@click.option("--dark", is_flag=True, help="Use colours for dark pages.")
@verbosity_options
def preview(
    output_dir: Path,
    cases: tuple[str, ...],
    slices: str | None,
    file: Path | None,
    no_labels: bool,
    verbose: int,
    quiet: bool,
    **options: Any,
) -> None:
    """Draw slices with their labels, as a picture.

    The slices are spread over splits and cases.
    """
    from dask_slicer.output.layout import PREVIEW
    from dask_slicer.output.output import open_output, user_file_path, write_user_file
    from dask_slicer.report.preview import SUFFIXES, parse_slices, show_slices

    output = open_output(output_dir)
    path = user_file_path(output.path, file, name=PREVIEW, suffixes=SUFFIXES)
    figure = show_slices(
        output,
        cases=cases or None,
        slices=None if slices is None else parse_slices(slices),
        labels=not no_labels,
        **options,
    )
    write_user_file(path, figure.to_bytes(path.suffix.lower()[1:]))
    if not quiet:
        if output.shortfall:
            click.echo(f"Note: {escape_line(output.shortfall)}")
        click.echo(f"Preview: {path}")


@click.command()
@output_argument
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    help="Page to write. [default: report.html in OUTPUT_DIR]",
)
@verbosity_options
def report(output_dir: Path, file: Path | None, verbose: int, quiet: bool) -> None:
    """Write an HTML page about an output.

    It shows settings, counts, charts, pictures and failures.
    """
    from dask_slicer.report.html_report import write_report

    path = write_report(output_dir, file, say=lambda line: None if quiet else click.echo(line))
    if not quiet:
        click.echo(f"Report: {path}")


@click.command()
@output_argument
@click.option(
    "--folds", metavar="K", type=int, default=5, show_default=True, help="Number of folds."
)
@click.option(
    "--stratify",
    metavar="label|COLUMN",
    help="What has about the same share in each fold: label values, or the values of a column.",
)
@click.option("--seed", type=int, help="Seed of the folds. [default: that of the run]")
@click.option(
    "--group_column",
    metavar="COLUMN",
    help="Column whose values are the groups. [default: the groups of the run]",
)
@verbosity_options
def split(output_dir: Path, verbose: int, quiet: bool, **options: Any) -> None:
    """Divide the cases of an output into folds, for cross-validation.

    Writes splits_final.json, as nnU-Net has it, of the cases that are not for test. Groups, such as
    patients, stay whole. No slice is written again.
    """
    from dask_slicer.output.layout import FOLDS
    from dask_slicer.output.split import split_output

    def note(text: str) -> None:
        if not quiet:
            click.echo(f"Note: {escape_line(text)}", err=True)

    folds = split_output(output_dir, note=note, **options)
    if not quiet:
        for line in (*folds.lines(), *(f"Note: {note}" for note in folds.notes())):
            click.echo(escape_line(line))
        click.echo(f"Written: {output_dir / FOLDS}")


@click.command(
    cls=SettingsCommand, settings=(*SCHEDULER_OPTIONS, "num_workers", "dashboard_address")
)
@output_argument
@click.option(
    "--deep",
    metavar="N",
    type=click.IntRange(0),
    default=0,
    help="Also make N random slices again from their scans, and compare.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed of --deep.")
@click.option(
    "--repair", is_flag=True, help="Mark damaged cases, so that the next run writes them again."
)
@verbosity_options
def verify(output_dir: Path, verbose: int, quiet: bool, **options: Any) -> bool:
    """Check every file of an output against its recorded checksum."""
    configure_logging(verbose, None)
    from dask_slicer.cli.display import OutputDisplay, make_console
    from dask_slicer.config.run_settings import LocalSettings, SchedulerSettings
    from dask_slicer.execution.verify import verify as verify_output

    for model in (SchedulerSettings, LocalSettings):
        settings = pop_settings(model, options)
        options |= {name: getattr(settings, name) for name in settings.model_fields_set}
    with OutputDisplay(make_console(), quiet=quiet) as display, interrupt_once():
        report = verify_output(output_dir, observer=display, on_case=display.checked, **options)
        display.verified(report)
    return bool(report.issues)


@click.command(cls=AssemblyCommand)
@click.argument("slices_dir", metavar="OUTPUT_DIR", type=click.Path(path_type=Path))
@verbosity_options
def assemble(slices_dir: Path, verbose: int, quiet: bool, **options: Any) -> bool:
    """Put predictions of slices together to volumes.

    They are NIfTI files on the grids of the scans. OUTPUT_DIR is the output of `run`. Predictions
    are an array for each slice, <case_id>_<slice_index>.npy, .npz or .png, or for each case,
    <case_id>.npy. The same command again continues.
    """
    configure_logging(verbose, None)
    from dask_slicer.assembly.assemble import assemble as assemble_volumes
    from dask_slicer.cli.display import AssemblyDisplay, make_console

    given = {name: value for name, value in options.items() if value not in (None, ())}
    if missing := [name for name in ("predictions", "output_dir") if name not in given]:
        raise UsageError(f"assemble needs --{' and --'.join(missing)}")
    with AssemblyDisplay(make_console(), quiet=quiet) as display, interrupt_once():
        try:
            report = assemble_volumes(slices_dir, observer=display, on_case=display.ended, **given)
        except KeyboardInterrupt:
            display.stopped()
            raise
        display.assembled(report)
    return bool(report.failures)


@click.command(cls=SettingsCommand, settings=SCHEDULER_OPTIONS[1:])
@click.argument("where", required=False, metavar="OUT|ADDR")
@click.option(
    "--once", is_flag=True, help="Print the progress once, and exit; the default in a pipe."
)
@verbose_option
def watch(where: str | None, once: bool, verbose: int, **options: Any) -> None:
    """Show the progress of a run, from another shell.

    Shows workers, cases, rate, failures and time left.

    OUT is the output directory of the run; ADDR is the address of its scheduler, such as
    tcp://host:8786.
    """
    configure_logging(verbose, None)
    if (where is None) == (options["scheduler_file"] is None):
        raise UsageError("give watch one of: an output directory, an address, --scheduler_file")
    from dask_slicer.cli.display import make_console
    from dask_slicer.config.run_settings import SchedulerSettings
    from dask_slicer.monitoring.screen import watch_run

    with interrupt_once():
        watch_run(make_console(), where, pop_settings(SchedulerSettings, options), once=once)
