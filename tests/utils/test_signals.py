"""How signals become exceptions, also where Python drops exceptions."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading

import pytest

from dask_slicer.config.schema import RunConfig
from dask_slicer.execution.pipeline import run
from dask_slicer.inputs.phantom import write_dataset
from dask_slicer.monitoring.observer import Observer
from dask_slicer.utils import signals

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


class Signals:
    """Sends a signal where exceptions are dropped: in its destructor."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


def test_a_signal_becomes_an_exception_in_the_run() -> None:
    with pytest.raises(KeyboardInterrupt), signals.interrupt_once():
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(signals.Terminated), signals.interrupt_once():
        signal.raise_signal(signal.SIGTERM)


def test_a_second_signal_does_not_disturb_the_cleanup() -> None:
    tidied = []

    @signals.interrupt_once()
    def stopped_while_tidying() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            tidied.append(True)

    with pytest.raises(KeyboardInterrupt):
        stopped_while_tidying()
    assert tidied


def test_handlers_are_restored_and_no_exception_is_pending() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), signals.interrupt_once():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    signals.raise_if_interrupted()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_whose_exception_python_drops_is_raised_by_the_next_check(number, capsys) -> None:
    expected = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: signals.Terminated}
    reached = []

    @signals.interrupt_once()
    def check_before_and_after() -> None:
        signals.raise_if_interrupted()
        Signals(number)
        gc.collect()
        reached.append(True)
        signals.raise_if_interrupted()

    with pytest.raises(expected[number]):
        check_before_and_after()
    assert reached
    assert capsys.readouterr().err == ""


def test_other_unraisable_exceptions_are_still_reported(monkeypatch) -> None:
    told = []
    monkeypatch.setattr("sys.unraisablehook", lambda dropped: told.append(dropped.exc_type))

    class Fails:
        def __del__(self) -> None:
            raise RuntimeError

    with signals.interrupt_once():
        Fails()
        gc.collect()
    assert told == [RuntimeError]


def test_a_run_stops_before_its_next_case_after_a_signal_that_got_lost(tmp_path) -> None:
    write_dataset(tmp_path / "scans", n_cases=4, shape=(16, 16, 8))

    class SignalAfterTheFirst(Observer):
        def case_finished(self, record) -> None:
            Signals(signal.SIGTERM)
            gc.collect()

        def finished(self, report) -> None:
            self.report = report

    config = RunConfig(input_dir=tmp_path / "scans", output_dir=tmp_path / "slices", num_workers=0)
    observer = SignalAfterTheFirst()
    with pytest.raises(signals.Terminated), signals.interrupt_once():
        run(config, observer=observer)
    assert (observer.report.n_committed, observer.report.interrupted) == (1, True)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT between processes")
def test_ctrl_c_while_python_runs_text_does_not_decide_the_exit_status(tmp_path) -> None:
    (tmp_path / "stopped.py").write_text(
        "import sys\n"
        "from dask_slicer.utils.signals import interrupt_once\n"
        "try:\n"
        "    with interrupt_once():\n"
        "        exec('import os, signal; os.kill(os.getpid(), signal.SIGINT); list(range(9))')\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    # As `python -m dask_slicer` is run, and other than for a script.
    command = [sys.executable, "-m", "stopped"]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 130


def test_signals_that_the_program_has_blocked_stay_blocked() -> None:
    code = (
        "import signal; from dask_slicer.utils import signals\n"
        "blocked = {signal.SIGINT, signal.SIGTERM}\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, blocked)\n"
        "with signals.deferred(): pass\n"
        "assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == blocked"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_handler_that_is_not_of_python_stays(monkeypatch) -> None:
    number, before = signal.SIGINT, signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    with signals.interrupt_once([number]), signals.deferred():
        monkeypatch.undo()
        assert signal.getsignal(number) is before


def test_a_block_without_handlers_is_for_one_thread() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    in_thread = []

    def set_nothing() -> None:
        with signals.no_signal_handlers():
            started.set()
            in_thread.append(signal.signal(signal.SIGUSR1, signal.SIG_IGN))
            ended.wait(10)

    started, ended = threading.Event(), threading.Event()
    thread = threading.Thread(target=set_nothing)
    thread.start()
    started.wait(10)
    try:
        assert signal.signal(signal.SIGUSR1, signal.SIG_IGN) == before
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    finally:
        ended.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert len(in_thread) == 1
