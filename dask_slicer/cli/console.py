"""The console that commands print to."""

from __future__ import annotations

import os
import sys
from typing import Any


def make_console() -> Any:
    """Return a console that ignores a closed pipe, and wraps no lines in a log."""
    from rich.console import Console

    class PatientConsole(Console):
        def on_broken_pipe(self) -> None:  # such as `dask-slicer run | head`: the run continues
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    console = PatientConsole()
    if not console.is_terminal:
        console.width = 160
    return console
