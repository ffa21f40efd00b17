"""Log files and log levels of a run."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dask_slicer.errors import UsageError

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextmanager
def logged_to(path: Path | None) -> Iterator[None]:
    """Write the log of a run, which has this thread for itself, to a file; None writes none."""
    if path is None:
        yield
        return
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write to log_file {path}: {error.strerror}") from None
    handler.setFormatter(logging.Formatter(FORMAT))
    thread = threading.get_ident()
    handler.addFilter(lambda record: record.thread == thread)
    logger = logging.getLogger("dask_slicer")
    logger.addHandler(handler)
    with _info_level():
        try:
            yield
        finally:
            logger.removeHandler(handler)
            handler.close()


_LOCK = threading.Lock()
_levels_before: list[int] = []


@contextmanager
def _info_level() -> Iterator[None]:
    """Lower the level to INFO; the last of several runs at once restores it."""
    logger = logging.getLogger("dask_slicer")
    with _LOCK:
        _levels_before.append(logger.level if not _levels_before else _levels_before[0])
        logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))
    try:
        yield
    finally:
        with _LOCK:
            level = _levels_before.pop()
            if not _levels_before:
                logger.setLevel(level)


def configure_logging(verbose: int, log_file: Path | None) -> None:
    """Send the log to a file, and with -v to the terminal; that of Dask too with -vv."""
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
        # They log every connection that breaks when workers are stopped.
        for name in ("asyncio", "tornado"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
