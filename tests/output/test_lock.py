"""The lock of an output directory: one run at a time, and what is left by a run that died."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dask_slicer.errors import OutputError
from dask_slicer.output import lock
from dask_slicer.output.lock import locked
from dask_slicer.output.lock_owner import lock_text

LOCK = ".dask_slicer.lock"


def run_again(output: Path, invoke):
    return invoke("run", "--config", output / "config.yaml")


def test_a_second_run_at_the_same_time_is_refused_naming_host_and_process(output, invoke) -> None:
    with locked(output):
        result = run_again(output, invoke)
        assert (output / LOCK).exists()
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert str(os.getpid()) in result.stderr
    assert socket.gethostname() in result.stderr


def test_a_refusal_does_not_show_how_the_lock_was_found(output) -> None:
    with locked(output), pytest.raises(OutputError) as caught, locked(output):
        pass
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    "more",
    ["", " tcp://node17:8786", " - 7 1764262800.5", " - 7cases 2026-11-27T17:00 x"],
    ids=["starting", "with a scheduler", "with cases", "of another version"],
)
def test_a_lock_held_on_another_host_is_respected(output, invoke, more) -> None:
    (output / LOCK).write_text(f"node17.cluster 4711 1700000000.0{more}")
    result = run_again(output, invoke)
    assert result.exit_code == 2
    assert "process 4711 on node17.cluster" in result.stderr
    assert LOCK in result.stderr


@pytest.mark.parametrize("holder", ["dead", "reused", "garbage", "empty"])
def test_the_lock_of_a_dead_process_is_taken_over_with_a_note(output, invoke, holder) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    texts = {
        "dead": f"{socket.gethostname()} {dead.pid} {1_700_000_000.0}",
        # A later process may have been given the same number.
        "reused": f"{socket.gethostname()} {os.getpid()} {1_700_000_000.0}",
        "garbage": "not a lock",
        "empty": "",
    }
    (output / LOCK).write_text(texts[holder])
    result = run_again(output, invoke)
    assert result.exit_code == 1  # ct_bad
    assert "took over the lock of a run that died" in result.stdout
    assert not (output / LOCK).exists()


def test_of_two_runs_that_take_their_locks_at_once_one_is_refused(tmp_path, monkeypatch) -> None:
    take = lock._take

    def take_while_a_partition_starts(*arguments) -> None:
        take(*arguments)
        # It looked at the other locks before this run had its own.
        (tmp_path / ".dask_slicer.1of2.lock").write_text(lock_text())

    monkeypatch.setattr(lock, "_take", take_while_a_partition_starts)
    with pytest.raises(OutputError, match="in use by partition 1/2 of a run"):
        locked(tmp_path).__enter__()
    assert not (tmp_path / LOCK).exists()
