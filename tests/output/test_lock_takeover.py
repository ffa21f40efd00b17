"""Locks of runs elsewhere: signs of life, taking over, and runs that lose their lock."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import zlib
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from dask_slicer.config.partition import Partition
from dask_slicer.errors import LockLost, OutputError
from dask_slicer.execution import tasks
from dask_slicer.output import journal, lock, lock_owner
from dask_slicer.output.lock import check_held, locked, still_held
from dask_slicer.output.lock_owner import read_owner

LOCK = ".dask_slicer.lock"
# With process ids of its own, as in a container on the same host.
CONTAINER = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
FAR = "node17 4711 boot+1 place=boot:1 run=0a1b stale=600"


def write_lock(folder: Path, text: str, *, silent: float = 0.0, name: str = LOCK) -> Path:
    """Write a lock that was touched some seconds ago, by the clock of the disk."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(text)
    now = path.stat().st_mtime
    os.utime(path, (now - silent, now - silent))
    return path


def here(*, pid: int, started: str = "0", place: str = "elsewhere") -> str:
    return f"{socket.gethostname()} {pid} {started} place={place} run=0a1b stale=600"


# -- signs of life ---------------------------------------------------------------------------------


def test_a_run_gives_signs_of_life(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(lock_owner, "STALE_SECONDS", 1.0)
    with locked(tmp_path):
        path = write_lock(tmp_path, (tmp_path / LOCK).read_text(), silent=500)
        old = path.stat().st_mtime
        deadline = time.monotonic() + 20
        while path.stat().st_mtime <= old + 400:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert "dask-slicer-lock" not in {thread.name for thread in threading.enumerate()}


def test_a_run_does_not_touch_the_lock_of_another_run(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(lock_owner, "STALE_SECONDS", 0.2)
    looks: list[Path] = []
    read_lock = lock.read_lock
    monkeypatch.setattr(lock, "read_lock", lambda path: looks.append(path) or read_lock(path))
    with locked(tmp_path):
        path = write_lock(tmp_path, FAR, silent=500)
        before, n_looks = path.stat().st_mtime, len(looks)
        deadline = time.monotonic() + 20
        while len(looks) < n_looks + 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert path.stat().st_mtime == before


@pytest.mark.parametrize("offset", [-1e8, 0.0, 1e8], ids=["clock behind", "right", "ahead"])
def test_only_the_clock_of_the_disk_says_how_old_a_lock_is(tmp_path, monkeypatch, offset) -> None:
    local = time.time
    monkeypatch.setattr(time, "time", lambda: local() + offset)
    path = write_lock(tmp_path, FAR, silent=50)
    _, owner = read_owner(path)
    assert owner.is_alive
    assert owner.silent == pytest.approx(50, abs=5)
    assert owner.left == pytest.approx(550, abs=5)
    write_lock(tmp_path, FAR, silent=601)
    assert not read_owner(path)[1].is_alive
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]  # no probe is left


def test_a_lock_whose_age_is_not_known_is_respected(tmp_path, monkeypatch) -> None:
    path = write_lock(tmp_path, FAR, silent=10_000)
    monkeypatch.setattr(Path, "touch", lambda *_, **__: (_ for _ in ()).throw(OSError(30, "ro")))
    assert read_owner(path)[1].is_alive


def test_the_refusal_names_the_last_sign_of_life_and_when_the_lock_is_stale(output, invoke) -> None:
    write_lock(output, FAR, silent=40)
    result = invoke("run", "--config", output / "config.yaml")
    assert result.exit_code == 2
    assert "process 4711 on node17, last sign of life 40" in result.stderr
    assert "wait for it, or until the lock is stale in 9 min" in result.stderr
    assert f"remove {LOCK}" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", [LOCK, ".dask_slicer.2of3.lock"])
def test_a_run_waits_for_a_silent_run_and_takes_over_its_stale_lock(
    tmp_path, monkeypatch, name
) -> None:
    monkeypatch.setattr(lock, "_WAIT_SECONDS", 0.05)
    partition = None if name == LOCK else Partition(2, 3)
    write_lock(tmp_path, FAR, silent=599, name=name)
    notes: list[str] = []
    with locked(tmp_path, partition, note=notes.append):
        pass
    waited, taken = notes
    assert waited.startswith("waiting: ")
    assert "last sign of life 9 min 59 s ago" in waited
    assert "took over the lock of a run that died (process 4711 on node17, last sign of" in taken


@pytest.mark.parametrize(
    "command", [("split", "--folds", "2"), ("verify", "--repair", "--num_workers", "0")], ids=str
)
def test_other_commands_say_that_they_wait_too(output, invoke, monkeypatch, command) -> None:
    monkeypatch.setattr(lock, "_WAIT_SECONDS", 0.05)
    write_lock(output, FAR, silent=599)
    result = invoke(command[0], output, *command[1:])
    assert result.exit_code == 0, result.output
    assert "waiting: " in result.output
    assert "took over the lock" in result.output


@pytest.mark.parametrize("stale", ["nan", "inf", "1e300", "-5"])
def test_a_lock_with_an_absurd_time_is_damaged(tmp_path, stale) -> None:
    write_lock(tmp_path, FAR.replace("stale=600", f"stale={stale}"))
    notes: list[str] = []
    with locked(tmp_path, note=notes.append):
        pass
    assert notes == ["took over the lock of a run that died (unreadable)"]


def test_a_run_that_waits_is_refused_when_the_other_gives_a_sign(tmp_path, monkeypatch) -> None:
    path = write_lock(tmp_path, FAR, silent=300)
    monkeypatch.setattr(lock.time, "sleep", lambda _: os.utime(path))
    with pytest.raises(OutputError, match=r"in use by another run \(process 4711 on node17"):
        locked(tmp_path).__enter__()


def test_several_silent_partitions_are_waited_for_too(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(lock, "_WAIT_SECONDS", 0.05)
    for number in (1, 2):
        write_lock(tmp_path, FAR, silent=599, name=f".dask_slicer.{number}of3.lock")
    notes: list[str] = []
    with locked(tmp_path, note=notes.append):
        lock.remove_stale_locks(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    assert "in use by 2 partitions" in notes[0]


# -- processes that can be checked, and others -----------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="there are no PID namespaces")
@pytest.mark.parametrize("text", ["other namespace", "other boot"])
def test_a_process_id_means_nothing_elsewhere(tmp_path, text) -> None:
    boot, namespace = lock_owner._place().split(":")
    place = {"other namespace": f"{boot}:1", "other boot": f"b00t:{namespace}"}[text]
    path = write_lock(tmp_path, here(pid=os.getpid(), place=place), silent=30)
    _, owner = read_owner(path)
    assert owner.is_alive
    assert (
        f"on {socket.gethostname()}, which cannot be checked from here, last sign of life 30"
        in str(owner)
    )
    write_lock(tmp_path, here(pid=os.getpid(), place=place), silent=601)
    assert not read_owner(path)[1].is_alive


def test_a_process_of_this_system_is_checked_whatever_the_age_of_its_lock(tmp_path) -> None:
    started = lock_owner._start_time(os.getpid())
    alive = here(pid=os.getpid(), started=started, place=lock_owner._place())
    assert read_owner(write_lock(tmp_path, alive, silent=10_000))[1].is_alive
    dead = here(pid=os.getpid(), started="0", place=lock_owner._place())
    assert not read_owner(write_lock(tmp_path, dead))[1].is_alive


@pytest.mark.skipif(os.name != "posix", reason="signal 0")
@pytest.mark.parametrize(("silent", "is_alive"), [(30, True), (601, False)])
def test_a_process_that_the_system_hides_counts_by_its_signs_of_life(
    tmp_path, monkeypatch, silent, is_alive
) -> None:
    monkeypatch.setattr(psutil, "pid_exists", lambda _: False)  # as with /proc mounted hidepid=2
    monkeypatch.setattr(os, "kill", lambda *_: (_ for _ in ()).throw(PermissionError))
    path = write_lock(tmp_path, here(pid=4711, place=lock_owner._place()), silent=silent)
    assert read_owner(path)[1].is_alive == is_alive


@pytest.mark.skipif(sys.platform != "linux", reason="PID namespaces")
def test_the_lock_of_a_run_in_another_pid_namespace_is_respected(tmp_path) -> None:
    # A process of this namespace may have the same number, or none has it.
    hold = (
        "import sys, time\nfrom pathlib import Path\nfrom dask_slicer.output.lock import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [*CONTAINER, sys.executable, "-c", hold, tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        if process.stdout.readline() != "held\n":
            pytest.skip(f"no PID namespace can be made: {process.communicate()[1]}")
        with pytest.raises(OutputError, match="which cannot be checked from here"):
            locked(tmp_path).__enter__()
    finally:
        process.kill()
        process.communicate()


# -- taking over -----------------------------------------------------------------------------------


def test_of_runs_that_see_a_stale_lock_at_once_one_takes_it_over(tmp_path) -> None:
    for number in range(20):
        folder = tmp_path / str(number)
        write_lock(folder, FAR, silent=601)
        barrier, end = threading.Barrier(6), threading.Barrier(6)
        held: list[int] = []

        def run(name: int, folder=folder, barrier=barrier, end=end, held=held) -> None:
            barrier.wait()
            with suppress(OutputError), locked(folder):
                held.append(name)
                end.wait(20)
                return
            end.wait(20)

        threads = [threading.Thread(target=run, args=(name,)) for name in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(held) == 1
        assert list(folder.iterdir()) == []


def test_a_run_that_is_late_to_take_over_does_not_touch_the_new_lock(tmp_path, monkeypatch) -> None:
    path = write_lock(tmp_path, FAR, silent=601)
    check, rename, faster, moved = lock._check_lock, Path.rename, [], []

    def check_and_be_late(*arguments):
        stale = check(*arguments)
        if not faster:  # a faster run takes over now
            faster.append(locked(tmp_path))
            faster[0].__enter__()
            monkeypatch.setattr(
                Path, "rename", lambda *names: moved.append(names) or rename(*names)
            )
        return stale

    monkeypatch.setattr(lock, "_wait_for_silent", lambda *_: None)
    monkeypatch.setattr(lock, "_check_lock", check_and_be_late)
    with pytest.raises(OutputError, match="in use by another run"):
        locked(tmp_path).__enter__()
    assert moved == []  # not even for a moment
    assert path.exists()
    faster[0].__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_is_touched_while_it_is_taken_over_stays(tmp_path) -> None:
    path = write_lock(tmp_path, FAR, silent=0)
    assert not lock._remove_stale(path, FAR)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


@pytest.mark.parametrize("claimer", ["dead", "alive"])
def test_the_claim_of_a_run_that_died_while_it_took_over(tmp_path, claimer) -> None:
    write_lock(tmp_path, FAR, silent=601)
    texts = {"dead": here(pid=os.getpid(), place=lock_owner._place()), "alive": lock.run_text("")}
    claim = write_lock(tmp_path, texts[claimer], name=f"{LOCK}.{zlib.crc32(FAR.encode()):08x}")
    if claimer == "dead":
        with locked(tmp_path):
            pass
        assert list(tmp_path.iterdir()) == []
    else:
        with pytest.raises(OutputError, match="another run has just started"):
            locked(tmp_path).__enter__()
        assert claim.exists()


def test_a_lock_taken_between_two_looks_is_put_back(tmp_path, monkeypatch) -> None:
    path = write_lock(tmp_path, FAR, silent=601)
    reads = iter([FAR, "another run"])
    monkeypatch.setattr(lock, "read_lock", lambda _: next(reads))
    assert not lock._remove_if(path, lambda text: text == FAR)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_a_lock_of_bytes_that_are_no_text_is_taken_over(tmp_path) -> None:
    (tmp_path / LOCK).write_bytes(b"\xff\xfe\x00")
    notes: list[str] = []
    with locked(tmp_path, note=notes.append):
        assert notes == ["took over the lock of a run that died (unreadable)"]


# -- losing a lock ---------------------------------------------------------------------------------


def test_a_run_that_ends_leaves_the_lock_of_another_run(tmp_path) -> None:
    with locked(tmp_path):
        write_lock(tmp_path, FAR)
    assert (tmp_path / LOCK).read_text() == FAR


def test_a_scheduler_is_not_added_to_the_lock_of_another_run(tmp_path) -> None:
    with locked(tmp_path) as held:
        lock.name_scheduler(held.path, held.run_id, "tcp://h:1", n_cases=3)
        owner = lock_owner.lock_owner(tmp_path)
        assert (owner.scheduler, owner.n_cases) == ("tcp://h:1", 3)
        write_lock(tmp_path, FAR)
        lock.name_scheduler(held.path, held.run_id, "tcp://h:1", n_cases=3)
        assert (tmp_path / LOCK).read_text() == FAR


@pytest.mark.parametrize("loss", ["gone", "taken", "with the directory"])
def test_a_run_notices_that_it_has_lost_its_lock(tmp_path, loss) -> None:
    folder = tmp_path / "slices"
    with locked(folder) as held:
        still_held(now=True)
        if loss == "taken":
            write_lock(folder, FAR)
        else:
            held.path.unlink()
        if loss == "with the directory":
            folder.rmdir()
        message = "taken over by process 4711 on node17" if loss == "taken" else "removed"
        with pytest.raises(LockLost, match=message):
            still_held(now=True)
    still_held(now=True)  # a thread without a lock may write


@pytest.mark.parametrize("clock", ["monotonic", "time"], ids=["frozen", "suspended"])
def test_the_lock_is_looked_at_every_few_seconds_of_any_clock(tmp_path, monkeypatch, clock) -> None:
    looks: list[Path] = []
    read_lock = lock.read_lock
    monkeypatch.setattr(lock, "read_lock", lambda path: looks.append(path) or read_lock(path))
    with locked(tmp_path) as held:
        for _ in range(1000):
            check_held(held.path, held.run_id)
        assert len(looks) == 1
        later = getattr(time, clock)() + 3.5
        monkeypatch.setattr(lock.time, clock, lambda: later)
        check_held(held.path, held.run_id)
        assert len(looks) == 2
        monkeypatch.setattr(lock.time, clock, lambda: later - 1000)  # set back
        check_held(held.path, held.run_id)
        assert len(looks) == 3


def test_a_file_server_that_does_not_answer_is_no_loss(tmp_path, monkeypatch) -> None:
    with locked(tmp_path):
        with monkeypatch.context() as patch:
            patch.setattr(lock, "read_lock", lambda _: (_ for _ in ()).throw(OSError(5, "I/O")))
            still_held(now=True)
        (tmp_path / LOCK).unlink()
        with pytest.raises(LockLost):
            still_held()  # it looks again at the next chance


@pytest.mark.parametrize("loss", ["before its files move", "before its record", "at the end"])
def test_a_run_that_loses_its_lock_writes_nothing_more(
    dataset, tmp_path, invoke, monkeypatch, loss
):
    output = tmp_path / "slices"
    for name in "abc":
        dataset.add(name)
    write_case, append, finish = tasks.write_case, journal.Journal.append, []

    def lose() -> None:
        write_lock(output, FAR)
        monkeypatch.setattr(lock, "_CHECK_SECONDS", 0.0)  # as after a gap
        finish.extend(path for path in output.rglob("*.npz"))

    def write(stack, case, *arguments, **options):
        written = write_case(stack, case, *arguments, **options)
        if loss == "before its files move" and case.case_id == "b":
            lose()
        return written

    def append_and_lose(self, record):
        if loss == "before its record" and record.case_id == "b":
            lose()
        append(self, record)
        if loss == "at the end" and record.case_id == "c":
            lose()

    monkeypatch.setattr(tasks, "write_case", write)
    monkeypatch.setattr(journal.Journal, "append", append_and_lose)
    result = invoke("run", "--input_dir", dataset.root, "--output_dir", output, "--num_workers", 0)
    assert result.exit_code == 1
    assert "taken over by process 4711 on node17" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert (output / LOCK).read_text() == FAR
    n_lines = (output / "journal.jsonl").read_bytes().count(b"\n")
    assert n_lines == (3 if loss == "at the end" else 1)
    assert set(output.rglob("*.npz")) <= set(finish)
    assert not (output / "slices.csv").exists()


# -- old locks -------------------------------------------------------------------------------------


def test_a_lock_of_an_earlier_version_keeps_its_rules(tmp_path) -> None:
    path = write_lock(tmp_path, "node17 4711 boot+1 - 7 1764262800.5", silent=100_000)
    _, owner = read_owner(path)
    assert (owner.is_alive, owner.silent, owner.left) == (True, None, None)
    assert str(owner) == "process 4711 on node17"
    assert (owner.scheduler, owner.n_cases, owner.began) == ("-", 7, 1764262800.5)
