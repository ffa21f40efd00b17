"""The command group `dask-slicer`, its error messages and exit statuses.

No slow import here: help must appear at once.
"""

from __future__ import annotations

import io
import sys
import traceback
from itertools import chain

import click

from dask_slicer.cli.benchmark_command import benchmark
from dask_slicer.cli.output_commands import assemble, preview, report, split, verify, watch
from dask_slicer.cli.run_commands import configs, demo, merge, plan, run, statistics
from dask_slicer.errors import DaskSlicerError, PreflightError, UsageError
from dask_slicer.utils.formatting import escape_line
from dask_slicer.utils.signals import Terminated

_SETTINGS = {
    "help_option_names": ["-h", "--help"],
    # --num_workers and --num-workers are one option.
    "token_normalize_func": lambda name: name.replace("-", "_"),
    "max_content_width": 100,
}
_INTERRUPTED, _TERMINATED = 130, 143
# The commands by use, in the order of the help.
_COMMANDS = {
    "Make slices": (demo, configs, plan, statistics, run, merge, split),
    "Look at an output": (preview, report, verify),
    "Use predictions": (assemble,),
    "Runs and performance": (watch, benchmark),
}


class _Group(click.Group):
    """A group whose commands return their exit status; an expected error is one line."""

    def invoke(self, ctx: click.Context) -> None:
        try:
            status = int(super().invoke(ctx) or 0)
        except BrokenPipeError:
            raise  # nothing reads our output any more: click exits quietly
        except (DaskSlicerError, OSError) as error:
            if ctx.meta.get("verbose"):
                click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
            lines = str(error).splitlines() if isinstance(error, PreflightError) else [str(error)]
            for line in lines:
                click.echo(f"Error: {escape_line(line)}", err=True)
            status = 2 if isinstance(error, UsageError) else 1
        except Terminated:
            status = _TERMINATED
        except KeyboardInterrupt:
            status = _INTERRUPTED
        ctx.exit(status)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by use, each with its first sentence."""
        for heading, commands in _COMMANDS.items():
            with formatter.section(heading):
                formatter.write_dl(
                    [(str(c.name), c.get_short_help_str(limit=80)) for c in commands]
                )


@click.group(cls=_Group, commands=list(chain(*_COMMANDS.values())), context_settings=_SETTINGS)
@click.version_option(package_name="dask_slicer")
def main() -> None:
    """Convert 3D medical volumes into 2D and 2.5D training slices."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without × must not stop a run
