"""The command benchmark: speed of runs, and of loaders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from dask_slicer.cli.options import ConfigCommand, build_config_of, verbosity_options
from dask_slicer.errors import UsageError
from dask_slicer.monitoring.logs import configure_logging
from dask_slicer.utils.formatting import first_few
from dask_slicer.utils.signals import interrupt_once

# Settings that --loader knows.
_WITH_LOADER = {"output_dir", "window_size", "plane"}


@click.command(cls=ConfigCommand, required=())
@click.option(
    "--workers",
    metavar="N,N...",
    help="Numbers of workers to try, such as 0,1,2,4. [default: 0, powers of 2, all CPUs]",
)
@click.option(
    "--repeats",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Runs with each number of workers.",
)
@click.option(
    "--cases",
    type=click.IntRange(1),
    help="Maximum number of cases. [default: 4 for each worker, at least 16]",
)
@click.option(
    "--loader",
    metavar="OUTPUT_DIR",
    type=click.Path(path_type=Path),
    help="Measure how fast the slices of an output are read for training, with several numbers of "
    "threads and, if torch is installed, of workers of its DataLoader (--workers).",
)
@click.option(
    "--batch_size", type=click.IntRange(1), help="Slices in a batch of --loader. [default: 8]"
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    help="Time for each way to read of --loader. [default: 3]",
)
@verbosity_options
def benchmark(
    workers: str | None,
    repeats: int,
    cases: int | None,
    loader: Path | None,
    batch_size: int | None,
    seconds: float | None,
    verbose: int,
    quiet: bool,
    **options: Any,
) -> None:
    """Find how many workers, or threads of a loader, suit your machine.

    Without --input_dir it slices phantoms. Slices go to temporary directories in --output_dir
    [default: dask_slicer_benchmark], where results.json and speedup.png are written. With --loader
    it reads the slices of an output instead, and writes loader.json.
    """
    if options["num_workers"] is not None:
        raise UsageError("benchmark takes --workers N,N... instead of --num_workers")
    from dask_slicer.cli.benchmark import PHANTOMS, run_benchmark, run_loader_benchmark
    from dask_slicer.cli.display import make_console

    options["output_dir"] = options["output_dir"] or "dask_slicer_benchmark"
    numbers = None if workers is None else _numbers(workers)
    console = make_console()

    def say(what: Any) -> None:
        if not quiet:
            console.print(what, markup=False)

    if loader is not None:
        _check_alone(options | {"cases": cases or ()})
        configure_logging(verbose, None)
        with interrupt_once():
            advice = run_loader_benchmark(
                loader,
                folder=Path(options["output_dir"]),
                numbers=numbers,
                window_size=options["window_size"],
                plane=options["plane"],
                batch_size=batch_size or 8,
                repeats=repeats,
                seconds=seconds or 3.0,
                say=say,
            )
        click.echo(
            f"Use {advice.call}: {advice.windows_per_second:.0f} windows/s. Bottleneck: "
            f"{advice.bottleneck} ({advice.reason})"
        )
        return
    for name, value in (("batch_size", batch_size), ("seconds", seconds)):
        if value is not None:
            raise UsageError(f"--{name} needs --loader")
    if options["input_dir"] is None and options["config"] is None:
        options["input_dir"] = Path(options["output_dir"], PHANTOMS)
    config = build_config_of(options)
    if config.shard is not None:
        raise UsageError("benchmark measures whole runs; do not give --shard")
    configure_logging(verbose, config.log_file)
    with interrupt_once():
        found = run_benchmark(config, workers=numbers, repeats=repeats, n_cases=cases, say=say)
    unclear = ""
    if found.as_fast:
        others = first_few([str(number) for number in found.as_fast])
        unclear = f"No clear winner: its times and those of --num_workers {others} overlap. "
    click.echo(
        f"Use --num_workers {found.num_workers}. {unclear}Bottleneck: {found.bottleneck} "
        f"({found.reason})"
    )


def _check_alone(options: Mapping[str, Any]) -> None:
    """Raise UsageError if an option is given that has no meaning with --loader."""
    for name, value in options.items():
        if value is not None and value != () and name not in _WITH_LOADER:
            what = f"the argument {value[0]!r}" if name == "more_cases" else f"--{name}"
            raise UsageError(f"--loader reads slices as they are; leave out {what}")


def _numbers(text: str) -> tuple[int, ...]:
    """Return the numbers in a text, each once, in their order."""
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 0:
        raise UsageError(f"--workers must be numbers such as 0,1,2,4, got {text}")
    return numbers
