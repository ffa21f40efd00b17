"""Log files and log levels of a run."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dask_slicer.errors import UsageError

_FORMATTER = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
_LOGGER = logging.getLogger("dask_slicer")
_LOCK = threading.Lock()
_levels_before: list[int] = []


def configure_logging(verbose: int, log_file: Path | None) -> None:
    """Send the log to a file, and with -v to the terminal; that of Dask too with -vv."""
    handlers = [_file_handler(log_file, "--log_file")] if log_file else []
    if verbose:
        handlers.append(logging.StreamHandler(sys.stderr))
    for handler in handlers:
        handler.setFormatter(_FORMATTER)
        _LOGGER.addHandler(handler)
    level = logging.DEBUG if verbose > 1 else logging.INFO
    _LOGGER.setLevel(level if handlers else logging.ERROR)
    if verbose < 2:
        # They log every connection that breaks when workers are stopped.
        for name in ("asyncio", "tornado"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def logged_to(path: Path | None) -> Iterator[None]:
    """Write the log of a run, which has this thread for itself, to a file; None writes none."""
    if path is None:
        yield
        return
    handler = _file_handler(path, "log_file")
    handler.setFormatter(_FORMATTER)
    thread = threading.get_ident()
    handler.addFilter(lambda record: record.thread == thread)
    _LOGGER.addHandler(handler)
    with _LOCK:
        _levels_before.append(_levels_before[0] if _levels_before else _LOGGER.level)
        _LOGGER.setLevel(min(_LOGGER.getEffectiveLevel(), logging.INFO))
    try:
        yield
    finally:
        with _LOCK:
            level = _levels_before.pop()
            if not _levels_before:  # the last of several runs at once restores the level
                _LOGGER.setLevel(level)
        _LOGGER.removeHandler(handler)
        handler.close()


def _file_handler(path: Path, setting: str) -> logging.Handler:
    try:
        return logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write to {setting} {path}: {error.strerror}") from None
