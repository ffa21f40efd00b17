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
    """Write what this thread logs to a file, if there is to be one, until the block is left.

    A run logs in the thread that it was called in, so that two at once do not mix.

    Raises
    ------
    UsageError
        If it cannot be written.
    """
    if path is None:
        yield
        return
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write to log_file {path}: {error.strerror}") from None
    handler.setFormatter(logging.Formatter(FORMAT))
    own = threading.get_ident()
    handler.addFilter(lambda record: record.thread == own)
    logger = logging.getLogger("dask_slicer")
    logger.addHandler(handler)
    with _level():
        try:
            yield
        finally:
            logger.removeHandler(handler)
            handler.close()


_LOCK = threading.Lock()
_before: list[int] = []


@contextmanager
def _level() -> Iterator[None]:
    """Let what a run says be logged, until the last that wants it is over."""
    logger = logging.getLogger("dask_slicer")
    with _LOCK:
        _before.append(logger.level if not _before else _before[0])
        logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))
    try:
        yield
    finally:
        with _LOCK:
            level = _before.pop()
            if not _before:
                logger.setLevel(level)


def configure_logging(verbose: int, log_file: Path | None) -> None:
    """Send the log to a file, or with -v to the terminal; Dask's own with -vv."""
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
        # When workers are stopped, the machinery below tells of every broken connection.
        for name in ("asyncio", "tornado"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
