"""What an output directory holds, whose it is, and how files get there whole or not at all."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from dask_slicer.config import RunConfig, changed_settings
from dask_slicer.configfile import build_config, to_yaml
from dask_slicer.errors import ConfigError, OutputError
from dask_slicer.journal import FailedCase
from dask_slicer.plans import FORMAT_VERSION
from dask_slicer.slices_csv import INDEX
from dask_slicer.splits import SPLITS
from dask_slicer.stores import TEMPORARY, ZARR, find_entries, remove_entries

CONFIG = "config.yaml"
SPLITS_FILE = "splits.json"
JOURNAL = "journal.jsonl"
SUMMARY = "dataset_info.json"
FAILURES = "failures.csv"
LOCK = ".dask_slicer.lock"

_MARK_START = b"# Written by dask-slicer"
_MARKED_FORMAT = re.compile(rb"# Written by dask-slicer \(format (\d+)\)")
_MARK = (
    f"# Written by dask-slicer (format {FORMAT_VERSION}); marks this directory as its output. "
    "`dask-slicer run --config` with this file continues.\n"
)
# What may lie in a directory that is not ours yet: logs of the command that is to fill it.
_TOLERATED = re.compile(r"\.dask_slicer\..*|.*\.log|.*\.txt|nohup\.out")


def write_whole(
    output_dir: Path, name: str | Path, content: str | bytes, *, fsync: bool = False
) -> None:
    """Write a file aside and move it into its place, so that no one ever sees half of it."""
    path = output_dir / name
    temporary = output_dir / TEMPORARY / f"{path.name}.{uuid.uuid4().hex[:8]}"
    temporary.parent.mkdir(exist_ok=True)
    # Names of files may be in any encoding, or none; what is written is UTF-8.
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with temporary.open("xb") as file:
        file.write(data)
        if fsync:
            file.flush()
            os.fsync(file.fileno())
    os.replace(temporary, path)


def existing_config(output_dir: Path) -> RunConfig | None:
    """Return the configuration that an output directory was made with, None if there is none yet.

    Raises
    ------
    OutputError
        If the directory holds things that this tool did not write.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(output_dir))
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise OutputError(f"output_dir {output_dir} is a file; name a directory") from None
    except PermissionError:
        raise OutputError(f"output_dir {output_dir} may not be read by this user") from None
    if CONFIG in names:
        text = (output_dir / CONFIG).read_bytes()
        if not text.startswith(_MARK_START):
            raise OutputError(
                f"output_dir {output_dir} holds a {CONFIG} that this tool did not write; "
                "name another directory"
            )
        marked = _MARKED_FORMAT.match(text)
        if marked and int(marked[1]) > FORMAT_VERSION:
            raise OutputError(
                f"output_dir {output_dir} was written by a newer version of dask-slicer "
                f"(format {int(marked[1])}, this one knows {FORMAT_VERSION}); update it"
            )
        try:
            return build_config({"output_dir": output_dir}, base=output_dir / CONFIG)
        except ConfigError as error:
            raise OutputError(
                f"output_dir {output_dir} was not made by this tool or version: {error}"
            ) from None
    foreign = [name for name in names if not _TOLERATED.fullmatch(name)]
    if foreign:
        raise OutputError(
            f"output_dir {output_dir} holds files of others ({foreign[0]}"
            + (f" and {len(foreign) - 1} more" if len(foreign) > 1 else "")
            + "); name an empty or new directory"
        )
    return None


def check_unchanged(old: RunConfig | None, new: RunConfig) -> None:
    """Raise if an output directory was made with settings that would give other slices.

    Raises
    ------
    OutputError
        Listing what changed.
    """
    changed = [] if old is None else changed_settings(old, new)
    if changed:
        raise OutputError(
            f"{new.output_dir} was made with other settings: {'; '.join(changed)}; "
            "use another --output_dir, or --overwrite to start it anew"
        )


def existing_splits(output_dir: Path) -> dict[str, str]:
    """Return the split of every case that splits.json of an output directory names.

    Raises
    ------
    OutputError
        If it is damaged.
    """
    path = output_dir / SPLITS_FILE
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
        return {str(case): split for split in SPLITS for case in splits.get(split, [])}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise OutputError(f"{path} is damaged ({error}); restore it, or use --overwrite") from None


@contextmanager
def locked(output_dir: Path) -> Iterator[list[str]]:
    """Hold an output directory for one run; yield notes about the taking.

    Raises
    ------
    OutputError
        If another run holds it, naming the host and process.
    """
    is_new = not output_dir.exists()
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        notes = _take(output_dir / LOCK)
    except OSError as error:
        raise OutputError(f"cannot write to output_dir {output_dir}: {error.strerror}") from None
    try:
        yield notes
    finally:
        (output_dir / LOCK).unlink(missing_ok=True)
        if is_new:
            with suppress(OSError):
                output_dir.rmdir()  # nothing came of it


def _take(lock: Path) -> list[str]:
    notes: list[str] = []
    # Written aside and linked: whoever finds the lock finds its holder in it.
    mine = lock.with_name(f"{lock.name}.{uuid.uuid4().hex[:8]}")
    try:
        mine.write_text(own_mark(), encoding="utf-8")
        for _ in range(2):
            try:
                _link(mine, lock)
                return notes
            except FileExistsError:
                found = read_lock(lock)
                stale = _stale_holder(lock, found)
                notes = [f"took over the lock of a run that died ({stale})"]
                _remove_lock(lock, found)
    finally:
        mine.unlink(missing_ok=True)
    raise OutputError(f"another run took {lock.parent} at the same moment")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # exFAT and some network disks have no hard links
        with target.open("x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))


def read_lock(lock: Path) -> str:
    """Return what a lock says."""
    try:
        return lock.read_text(encoding="utf-8")
    except FileNotFoundError:
        return "it has just gone"


def _remove_lock(lock: Path, found: str) -> None:
    """Remove the lock that was found stale, and not one that somebody else has taken since."""
    aside = lock.with_name(f"{lock.name}.{uuid.uuid4().hex[:8]}")
    try:
        lock.rename(aside)
    except FileNotFoundError:
        return
    if read_lock(aside) != found:
        _link(aside, lock)
    aside.unlink()


def check_not_in_use(output_dir: Path) -> None:
    """Raise if a run holds an output directory.

    Raises
    ------
    OutputError
        Naming the host and process.
    """
    lock = output_dir / LOCK
    if lock.exists():
        _stale_holder(lock, read_lock(lock))


def _stale_holder(lock: Path, found: str) -> str:
    """Return who left a lock behind; raise if they may still be running."""
    try:
        host, pid, _, *_ = found.split()
        who = f"process {int(pid)} on {host}"
    except ValueError:
        return "unreadable"
    if is_alive(found):
        raise OutputError(
            f"{lock.parent} is in use by another run ({who}); wait for it, "
            f"or remove {lock.name} if it is gone"
        )
    return who


def own_mark() -> str:
    """Return what a lock says of this process: host, number and birth."""
    return f"{socket.gethostname()} {os.getpid()} {_birth(os.getpid())}"


def is_alive(found: str) -> bool:
    """Return whether whom a lock names may still be running."""
    try:
        host, pid, birth, *_ = found.split()  # the rest is for whoever watches
        number = int(pid)
    except ValueError:
        return False
    if host != socket.gethostname():  # of another host nothing can be known
        return True
    with suppress(psutil.Error):
        # A later process may have been given the same number.
        return (
            psutil.pid_exists(number)
            and _birth(number) == birth
            and psutil.Process(number).status() != psutil.STATUS_ZOMBIE
        )
    return False


def _birth(pid: int) -> str:
    """Return when a process began, however often the system's clock has been set since."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        ticks = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, UnicodeDecodeError):  # not Linux
        return f"{psutil.Process(pid).create_time():.0f}"
    return f"{boot}+{ticks}"


# -- a run's own files -----------------------------------------------------------------------------


def start(config: RunConfig, splits: Mapping[str, list[str]]) -> None:
    """Mark the directory as ours, then fix the splits, before the first case."""
    output_dir = config.output_dir
    shutil.rmtree(output_dir / TEMPORARY, ignore_errors=True)
    # Without them no run could continue after a power cut.
    write_whole(output_dir, CONFIG, _MARK + to_yaml(config), fsync=True)
    write_splits(output_dir, splits)
    if config.format == "zarr":
        from dask_slicer.store_zarr import group_files

        for path, content in group_files(Path(ZARR)):
            (output_dir / path.parent).mkdir(parents=True, exist_ok=True)
            write_whole(output_dir, path, content, fsync=config.fsync)


def write_splits(output_dir: Path, splits: Mapping[str, Sequence[str]]) -> None:
    """Write splits.json."""
    write_whole(output_dir, SPLITS_FILE, json.dumps(splits, indent=2) + "\n", fsync=True)


def restore_splits(output_dir: Path, known: Mapping[str, str]) -> None:
    """Write splits.json anew: what is known of it, and what can still be read of the rest."""
    try:
        assigned = existing_splits(output_dir) | dict(known)
    except OutputError:
        assigned = dict(known)
    splits = {
        split: sorted(case_id for case_id, one in assigned.items() if one == split)
        for split in SPLITS
    }
    write_splits(output_dir, splits)


def clear(output_dir: Path) -> None:
    """Remove all that earlier runs wrote, config.yaml last; unknown files stay."""
    # First what says that they are there: no one shall read a directory that is half removed.
    for name in (INDEX, JOURNAL):
        (output_dir / name).unlink(missing_ok=True)
    for entries in find_entries(output_dir).values():
        remove_entries(output_dir, entries)
    groups = [f"{ZARR}/{folder}zarr.json" for folder in ("", *(f"{split}/" for split in SPLITS))]
    for name in (*groups, SUMMARY, FAILURES, SPLITS_FILE, CONFIG):
        (output_dir / name).unlink(missing_ok=True)
    remove_temporary(output_dir)


def remove_temporary(output_dir: Path) -> None:
    """Remove what unfinished writing left behind, and split directories that are empty."""
    shutil.rmtree(output_dir / TEMPORARY, ignore_errors=True)
    store = output_dir / ZARR
    for folder in (*(parent / split for parent in (output_dir, store) for split in SPLITS), store):
        with suppress(OSError):  # not there, or not empty: both are as they should be
            folder.rmdir()


# -- what is said of the whole ---------------------------------------------------------------------


def write_failures(output_dir: Path, failures: Iterable[FailedCase]) -> None:
    """Write failures.csv, or remove it where no case failed."""
    failures = sorted(failures, key=lambda failure: failure.case_id)
    if not failures:
        (output_dir / FAILURES).unlink(missing_ok=True)
        return
    (output_dir / TEMPORARY).mkdir(exist_ok=True)
    temporary = output_dir / TEMPORARY / FAILURES
    with temporary.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("case_id", "step", "kind", "message"))
        rows.writerows((f.case_id, f.step, f.kind, f.message) for f in failures)
    os.replace(temporary, output_dir / FAILURES)


def write_store_metadata(output_dir: Path, cases: Iterable[tuple[str, str]]) -> None:
    """Write what readers of the Zarr store find all of its cases, (split, case_id), by."""
    from dask_slicer.store_zarr import consolidated

    write_whole(output_dir, Path(ZARR, "zarr.json"), consolidated(output_dir / ZARR, cases))


def write_summary(output_dir: Path, summary: Mapping[str, Any]) -> None:
    """Write dataset_info.json."""
    write_whole(output_dir, SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
