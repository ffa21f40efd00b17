"""The program that starts workers, which each worker process imports again."""

from __future__ import annotations

import ast
import sys
import threading
from contextlib import suppress
from pathlib import Path

from dask_slicer.errors import UsageError

_GUARD = 'put the run below `if __name__ == "__main__":`, or use num_workers=0'


def check_main_module() -> None:
    """Raise a UsageError if workers cannot import the program, or would start the run again.

    Python would say so too, from each worker, as an error of its own bootstrapping.
    """
    main = sys.modules["__main__"]
    path: str | None = getattr(main, "__file__", None)
    name = getattr(getattr(main, "__spec__", None), "name", "")
    is_package = name.rpartition(".")[2] == "__main__"  # which workers do not import
    if path is None or is_package or getattr(sys, "frozen", False):
        return
    if not (name or Path(path).exists()):
        where = "standard input" if path == "<stdin>" else f"{path}, which is not there"
        raise UsageError(
            f"workers import the script again, and cannot read it from {where}: save it as a "
            f"file, and {_GUARD}"
        )
    line = _running_line(main.__dict__, path)
    with suppress(OSError):  # it is in an archive
        if line and not is_guarded(Path(path).read_bytes(), line):
            raise UsageError(
                f"workers import the script again, and would run line {line} of {path}, too: "
                f"{_GUARD}"
            )


def _running_line(main: dict[str, object], path: str) -> int:
    """Return the line that the program is at outside of functions; 0 if that is not known."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    line = 0
    while frame is not None:
        code = frame.f_code
        if frame.f_globals is main and (code.co_name, code.co_filename) == ("<module>", path):
            line = frame.f_lineno
        frame = frame.f_back
    return line


def is_guarded(source: bytes, line: int) -> bool:
    """Return whether a line of a program is below a guard, which a worker does not pass.

    >>> is_guarded(b"if ready: dask_slicer.run()", 1)
    False
    >>> is_guarded(b"if __name__ == '__main__': dask_slicer.run()", 1)
    True
    """
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):  # the file was changed since it was started
        return True
    guards = [node for node in nodes if isinstance(node, ast.If) and _asks_for_main(node.test)]
    return any(node.lineno <= line <= (node.body[-1].end_lineno or 0) for node in guards)


def _asks_for_main(condition: ast.expr) -> bool:
    """Return whether a condition compares ``__name__`` with ``"__main__"``, also beside others."""
    return any(
        {ast.unparse(compared.left), *map(ast.unparse, compared.comparators)}
        == {"__name__", "'__main__'"}
        for compared in ast.walk(condition)
        if isinstance(compared, ast.Compare) and isinstance(compared.ops[0], ast.Eq)
    )
