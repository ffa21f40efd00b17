"""Interruption by Ctrl-C, SIGTERM or a token; deferring it while files are moved."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# Seconds that a stopped run has to tidy up.
_PATIENCE = 10.0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C.

    A class of its own: where the bare KeyboardInterrupt passes through an `exec` of text, as in the
    making of a dataclass, CPython remembers it as unhandled, and at exit kills itself by SIGINT.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"KeyboardInterrupt: {self}"]  # what IPython shows; where it was does not matter


class Terminated(KeyboardInterrupt):
    """SIGTERM, as batch systems send before they kill; handled like Ctrl-C."""


class Cancelled(KeyboardInterrupt):
    """Somebody asked this run to stop, and no other of this process; handled like Ctrl-C."""


# What a signal asked for; it is the process that is signalled, so there is one of it, and it is the
# main thread that Python tells.
_asked: list[type[KeyboardInterrupt]] = []
# Of the run that goes on in a thread: set, it is to stop.
_token: ContextVar[threading.Event | None] = ContextVar("token", default=None)


@contextmanager
def interrupt_once(
    signals: Collection[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into an exception, and let the run tidy up in peace.

    Impatient ones that follow are heard again when that takes longer than it should.

    Parameters
    ----------
    signals : collection of Signals
        Those that are meant; of others, all stays as it is.

    Raises
    ------
    KeyboardInterrupt
        `Interrupted` for Ctrl-C, `Terminated` for SIGTERM: wherever the main thread is, or, should
        that be where Python drops exceptions (a ``__del__``, a weakref's callback), from the next
        `raise_if_interrupted`.
    """
    stopped_at = -_PATIENCE

    def stop(number: int, frame: object) -> None:
        nonlocal stopped_at
        if time.monotonic() - stopped_at >= _PATIENCE:
            stopped_at = time.monotonic()
            _asked[:] = [Terminated if number == signal.SIGTERM else Interrupted]
            raise _asked[0]

    def drop(dropped: sys.UnraisableHookArgs) -> None:
        if not isinstance(dropped.exc_value, KeyboardInterrupt):
            tell_of_dropped(dropped)

    tell_of_dropped, sys.unraisablehook = sys.unraisablehook, drop
    before = {number: signal.signal(number, stop) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = tell_of_dropped
        _asked.clear()


@contextmanager
def stopped_by(token: threading.Event) -> Iterator[None]:
    """Let whatever this thread runs within be stopped by a token, from any thread."""
    before = _token.set(token)
    try:
        yield
    finally:
        _token.reset(before)


def raise_if_interrupted() -> None:
    """Raise what a signal asked for, in case it got lost, or a token; to be called now and then.

    Raises
    ------
    KeyboardInterrupt
        `Cancelled` for a token.
    """
    token = _token.get()
    if token is not None and token.is_set():
        raise Cancelled
    if _asked and threading.current_thread() is threading.main_thread():
        raise _asked[0]


@contextmanager
def deferred() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM until the block is left, then let the first one through.

    Processes that are started meanwhile never see Ctrl-C: a terminal sends it to the whole process
    group, as a Jupyter server does, and workers would die with tracebacks, while it is for the
    driver alone to stop them.
    """
    if threading.current_thread() is not threading.main_thread():
        with _blocked_for_children():
            yield
        return
    caught: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        with _blocked_for_children():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])


@contextmanager
def _blocked_for_children() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    # Imported here for the sake of a quick --help.
    from multiprocessing import resource_tracker

    # It would take the signal off the mask again, were it started with the first process.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
