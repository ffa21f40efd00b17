"""Interruption of a run by Ctrl-C, SIGTERM or a token, and how to defer it."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

# Seconds in which further signals are ignored, so that a stopped run can clean up.
_PATIENCE = 10.0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C.

    Not a bare KeyboardInterrupt: when one passes through an `exec` of text, as dataclasses use it,
    CPython counts it as unhandled and at exit kills itself by SIGINT.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"KeyboardInterrupt: {self}"]  # IPython then shows no traceback


class Terminated(KeyboardInterrupt):
    """SIGTERM, as batch systems send before they kill; handled like Ctrl-C."""


class Cancelled(KeyboardInterrupt):
    """The token of one run of this process was set; handled like Ctrl-C."""


# The exception of the last signal; one for the process, since Python runs signal handlers in the
# main thread.
_requested: list[type[KeyboardInterrupt]] = []
_PATCHING = threading.Lock()
# Of the run in this thread: it stops when the token is set.
_token: ContextVar[threading.Event | None] = ContextVar("token", default=None)


@contextmanager
def interrupt_once(
    signals: Collection[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
) -> Iterator[None]:
    """Raise `Interrupted` for Ctrl-C, `Terminated` for SIGTERM; ignore more of them for 10 seconds.

    It is raised wherever the main thread is. Where Python drops exceptions (a ``__del__``, a
    weakref's callback), the next `raise_if_interrupted` raises it again.
    """
    stopped_at = -_PATIENCE

    def stop(number: int, frame: object) -> None:
        nonlocal stopped_at
        if time.monotonic() - stopped_at >= _PATIENCE:
            stopped_at = time.monotonic()
            _requested[:] = [Terminated if number == signal.SIGTERM else Interrupted]
            raise _requested[0]

    def hide_interrupts(dropped: sys.UnraisableHookArgs) -> None:
        if not isinstance(dropped.exc_value, KeyboardInterrupt):
            previous_hook(dropped)

    previous_hook, sys.unraisablehook = sys.unraisablehook, hide_interrupts
    before = _replace_handlers(signals, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = previous_hook
        _requested.clear()


@contextmanager
def stopped_by(token: threading.Event) -> Iterator[None]:
    """Let other threads stop what this thread runs in the block, by setting the token."""
    before = _token.set(token)
    try:
        yield
    finally:
        _token.reset(before)


def raise_if_interrupted() -> None:
    """Raise `Cancelled` if the token is set, or the exception of a signal if it got lost."""
    token = _token.get()
    if token is not None and token.is_set():
        raise Cancelled
    if _requested and threading.current_thread() is threading.main_thread():
        raise _requested[0]


@contextmanager
def deferred() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM until the block ends, then deliver the first one.

    Processes started in the block never get Ctrl-C. A terminal or Jupyter server sends it to the
    whole process group, and workers would die with tracebacks; the driver alone stops them.
    """
    # Signals reach the main thread only, which alone may set handlers.
    is_main = threading.current_thread() is threading.main_thread()
    caught: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    before = _replace_handlers(numbers, lambda number, frame: caught.append(number))
    try:
        with _blocked_for_children():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])


def _replace_handlers(
    numbers: Collection[signal.Signals], handler: Callable[[int, Any], None]
) -> dict[signal.Signals, Any]:
    """Handle signals by a function; return the handlers before, to put them back."""
    # A handler that is not Python's, which is None here, could not be put back.
    ours = [number for number in numbers if signal.getsignal(number) is not None]
    return {number: signal.signal(number, handler) for number in ours}


@contextmanager
def no_signal_handlers() -> Iterator[None]:
    """Let what this thread imports in the block set no signal handler."""
    # dask_jobqueue sets one on import: it makes Ctrl-C a quiet success, and is an error in other
    # threads than the main one.
    thread = threading.get_ident()

    def ignore(number: int, handler: Any) -> Any:
        is_other = threading.get_ident() != thread
        return set_handler(number, handler) if is_other else signal.getsignal(number)

    with _PATCHING:
        set_handler, signal.signal = signal.signal, ignore  # type: ignore[assignment]
        try:
            yield
        finally:
            signal.signal = set_handler


@contextmanager
def _blocked_for_children() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    # Imported here to keep --help quick.
    from multiprocessing import resource_tracker

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    # It would unblock the signal if it were started with the first process.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
