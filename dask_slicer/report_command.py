"""The command `report`, apart from what writes the page: help must come at once."""

from __future__ import annotations

from pathlib import Path

import click

from dask_slicer.options import verbosity_options


@click.command()
@click.argument("output_dir", type=click.Path(path_type=Path))
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    help="Where the page goes. [default: report.html in OUTPUT_DIR]",
)
@verbosity_options
@click.pass_context
def report(
    ctx: click.Context, /, output_dir: Path, file: Path | None, verbose: int, quiet: bool
) -> None:
    """Write one HTML page about an output: what was run, counts, charts, pictures, failures."""
    ctx.meta["verbose"] = verbose
    from dask_slicer.page import write_report

    path = write_report(output_dir, file, say=lambda line: None if quiet else click.echo(line))
    if not quiet:
        click.echo(f"Report: {path}")
