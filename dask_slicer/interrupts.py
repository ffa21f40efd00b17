"""How Ctrl-C and SIGTERM stop a run: once, never unheard, not while workers are being started."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Seconds that a stopped run has to tidy up.
_PATIENCE = 10.0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C.

    A class of its own: where the bare KeyboardInterrupt passes through an `exec` of text, as in the
    making of a dataclass, CPython remembers it as unhandled, and at exit kills itself by SIGINT.
    """


class Terminated(KeyboardInterrupt):
    """SIGTERM, as batch systems send before they kill; handled like Ctrl-C."""


# What a signal asked for; it is the process that is signalled, so there is one of it.
_asked: list[type[KeyboardInterrupt]] = []


@contextmanager
def heard_once() -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into an exception, and let the run tidy up in peace.

    Impatient ones that follow are heard again when that takes longer than it should.

    Raises
    ------
    KeyboardInterrupt
        `Interrupted` for Ctrl-C, `Terminated` for SIGTERM: wherever the main thread is, or, should
        that be where Python drops exceptions (a ``__del__``, a weakref's callback), from the next
        `check`.
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
    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = tell_of_dropped
        _asked.clear()


def check() -> None:
    """Raise what a signal asked for, in case it got lost; to be called now and then."""
    if _asked:
        raise _asked[0]


@contextmanager
def deferred() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM until the block is left, then let the first one through.

    Processes that are started meanwhile never see Ctrl-C: a terminal sends it to the whole process
    group, and workers would die with tracebacks, while it is for the driver alone to stop them.
    """
    if threading.current_thread() is not threading.main_thread():
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
