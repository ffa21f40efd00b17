"""Starting, checking and clearing an output directory; its whole-output files."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dask_slicer.config.loader import build_config, to_yaml
from dask_slicer.config.schema import RunConfig, changed_settings
from dask_slicer.core.splits import SPLITS
from dask_slicer.errors import CaseError, ConfigError, OutputError, as_case_error
from dask_slicer.output.atomic import write_whole
from dask_slicer.output.layout import (
    CONFIG,
    FAILURES,
    INDEX,
    PARTITION_PLAN,
    PREVIEW,
    SPLITS_FILE,
    SUMMARY,
    TEMPORARY,
    ZARR,
    find_entries,
    journals,
    partition_journals,
    remove_entries,
    temporary_folders,
)
from dask_slicer.planning.plan import FORMAT_VERSION
from dask_slicer.records import FailedCase
from dask_slicer.utils.formatting import first_few

_MARK_START = b"# Written by dask-slicer"
_MARKED_FORMAT = re.compile(rb"# Written by dask-slicer \(format (\d+)\)")
_MARK = (
    f"# Written by dask-slicer (format {FORMAT_VERSION}); marks this directory as its output. "
    "`dask-slicer run --config` with this file continues.\n"
)
# What may lie in a directory that is not ours yet: logs of the command that is to fill it, and of
# its jobs.
_TOLERATED = re.compile(r"\.dask_slicer\..*|.*\.log|.*\.txt|nohup\.out|logs")

_LOG = logging.getLogger(__name__)


def check_ours(output_dir: Path) -> bool:
    """Return whether an output directory is marked as ours; False for an empty or new one.

    Raises
    ------
    OutputError
        If it holds things that this tool did not write, or was written by a newer version.
    """
    names = _names(output_dir)
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
        return True
    foreign = [name for name in names if not _TOLERATED.fullmatch(name)]
    if foreign and (output_dir / CONFIG).exists():
        return check_ours(output_dir)  # marked as ours while its names were being listed
    if foreign:
        raise OutputError(
            f"output_dir {output_dir} holds files of others ({foreign[0]}"
            + (f" and {len(foreign) - 1} more" if len(foreign) > 1 else "")
            + "); name an empty or new directory"
        )
    return False


def existing_config(output_dir: Path) -> RunConfig | None:
    """Return the configuration that an output directory was made with, None if there is none yet.

    Raises
    ------
    OutputError
        If the directory holds things that this tool did not write.
    """
    if not check_ours(output_dir):
        return None
    try:
        return build_config({"output_dir": output_dir}, base=output_dir / CONFIG)
    except ConfigError as error:
        raise OutputError(
            f"output_dir {output_dir} was not made by this tool or version: {error}"
        ) from None


def _names(output_dir: Path) -> list[str]:
    try:
        return sorted(os.listdir(output_dir))
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise OutputError(f"output_dir {output_dir} is a file; name a directory") from None
    except PermissionError:
        raise OutputError(f"output_dir {output_dir} may not be read by this user") from None


def own_config(output_dir: Path) -> RunConfig:
    """Return the configuration that an output was made with.

    Raises
    ------
    OutputError
        If the directory is not ours, or written by a newer version.
    """
    config = existing_config(output_dir) if (output_dir / CONFIG).exists() else None
    if config is None:
        raise OutputError(
            f"{output_dir} is not an output of dask-slicer: it has no {CONFIG}"
            + ("" if output_dir.is_dir() else " (there is no such directory)")
            + "; name the --output_dir of a run, which writes it before its first case"
        )
    return config


def check_merged(output_dir: Path) -> None:
    """Raise if shares have written to an output what is not merged yet.

    Raises
    ------
    OutputError
    """
    left = [path.name for path in partition_journals(output_dir)]
    if left:
        raise OutputError(
            f"what shares wrote to {output_dir} is not merged yet ({first_few(left)}): "
            f"once all of them are done, run dask-slicer merge {output_dir}"
        )


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


# -- a run's own files -----------------------------------------------------------------------------


def start(
    config: RunConfig, splits: Mapping[str, Sequence[str]], *, temporary: str = TEMPORARY
) -> None:
    """Mark the directory as ours, then fix the splits, before the first case."""
    output_dir = config.output_dir
    shutil.rmtree(output_dir / temporary, ignore_errors=True)
    # Without them no run could continue after a power cut.
    written = [(Path(CONFIG), _MARK + to_yaml(config), True)]
    written.append((Path(SPLITS_FILE), splits_text(splits), True))
    if config.format == "zarr":
        from dask_slicer.output.formats.zarr_writer import group_files

        written += [(path, text, config.fsync) for path, text in group_files(Path(ZARR))]
    for path, text, fsync in written:
        if not _holds(output_dir / path, text):  # shares write the same, and the first is enough
            (output_dir / path.parent).mkdir(parents=True, exist_ok=True)
            write_whole(output_dir, path, text, temporary=temporary, fsync=fsync)


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode("utf-8", "backslashreplace")
    except OSError:
        return False


def splits_text(splits: Mapping[str, Sequence[str]]) -> str:
    """Return the content of splits.json."""
    return json.dumps(splits, indent=2) + "\n"


def write_splits(output_dir: Path, splits: Mapping[str, Sequence[str]]) -> None:
    """Write splits.json."""
    write_whole(output_dir, SPLITS_FILE, splits_text(splits), temporary=TEMPORARY, fsync=True)


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
    for path in (output_dir / INDEX, *journals(output_dir)):
        path.unlink(missing_ok=True)
    for entries in find_entries(output_dir).values():
        remove_entries(output_dir, entries)
    groups = [f"{ZARR}/{folder}zarr.json" for folder in ("", *(f"{split}/" for split in SPLITS))]
    for name in (*groups, SUMMARY, FAILURES, PREVIEW, PARTITION_PLAN, SPLITS_FILE, CONFIG):
        (output_dir / name).unlink(missing_ok=True)
    remove_temporary(output_dir)


def remove_temporary(output_dir: Path) -> None:
    """Remove what unfinished writing left behind, and split directories that are empty."""
    for aside in temporary_folders(output_dir):
        shutil.rmtree(aside, ignore_errors=True)
    store = output_dir / ZARR
    for folder in (*(parent / split for parent in (output_dir, store) for split in SPLITS), store):
        with suppress(OSError):  # not there, or not empty: both are as they should be
            folder.rmdir()


def remove_case_files(
    output_dir: Path, entries: Iterable[str], *, temporary: str = TEMPORARY
) -> CaseError | None:
    """Remove entries of a case; return why that is not possible."""
    try:
        remove_entries(output_dir, entries, temporary=temporary)
    except OSError as error:
        _LOG.warning("cannot remove: %s", error)
        return as_case_error(error, step="save")
    return None


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
    from dask_slicer.output.formats.zarr_writer import consolidated

    text = consolidated(output_dir / ZARR, cases)
    write_whole(output_dir, Path(ZARR, "zarr.json"), text, temporary=TEMPORARY)


def write_summary(output_dir: Path, summary: Mapping[str, Any]) -> None:
    """Write dataset_info.json."""
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    write_whole(output_dir, SUMMARY, text, temporary=TEMPORARY)
