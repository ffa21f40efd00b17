"""The command `preview`, apart from what it draws with: help must come at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dask_slicer.options import verbosity_options
from dask_slicer.words import one_line


@click.command()
@click.argument("output_dir", type=click.Path(path_type=Path))
@click.option("--case", "cases", multiple=True, metavar="CASE_ID", help="Only this; repeatable.")
@click.option(
    "--split", type=click.Choice(["train", "val", "test"]), help="Only slices of this split."
)
@click.option(
    "--slices", metavar="N,N-N...", help="These slices of every case shown, such as 3,10,20-30."
)
@click.option("--n_slices", type=int, default=16, show_default=True, help="How many slices.")
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    help="Where it goes: .png, .jpg, .pdf or .svg. [default: preview.png in OUTPUT_DIR]",
)
@click.option("--no_labels", is_flag=True, help="Leave the labels out.")
@click.option("--dark", is_flag=True, help="For dark pages.")
@verbosity_options
@click.pass_context
def preview(
    ctx: click.Context,
    /,
    output_dir: Path,
    cases: tuple[str, ...],
    slices: str | None,
    file: Path | None,
    no_labels: bool,
    verbose: int,
    quiet: bool,
    **options: Any,
) -> None:
    """Draw slices of an output, spread over splits and cases, with their labels over them."""
    ctx.meta["verbose"] = verbose
    from dask_slicer.opened import open_output
    from dask_slicer.preview import (
        parse_slices,
        place_of_preview,
        show_slices,
        write_preview,
    )

    output = open_output(output_dir)
    path = place_of_preview(output, file)
    figure = show_slices(
        output,
        cases=cases or None,
        slices=None if slices is None else parse_slices(slices),
        labels=not no_labels,
        **options,
    )
    write_preview(figure, path)
    if not quiet:
        if output.shortfall:
            click.echo(f"Note: {one_line(output.shortfall)}")
        click.echo(f"Preview: {path}")
