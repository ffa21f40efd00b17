"""An output directory as a whole: checking, starting and clearing it, and its top-level files."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from dask_slicer.config.changes import changed_settings
from dask_slicer.config.fields import PLANES
from dask_slicer.config.loader import build_config, to_yaml
from dask_slicer.config.schema import RunConfig
from dask_slicer.core.foreground import IntensityProperties
from dask_slicer.core.splits import SPLITS, by_split
from dask_slicer.errors import CaseError, ConfigError, DatasetError, OutputError, as_case_error
from dask_slicer.output import layout
from dask_slicer.output.atomic import atomic_write
from dask_slicer.output.lock import still_held
from dask_slicer.output.properties import properties_text, read_properties
from dask_slicer.planning.case_table import NO_TABLE, CaseTable
from dask_slicer.planning.folds import FoldList, parse_folds
from dask_slicer.planning.plan import FORMAT_VERSION
from dask_slicer.utils.files import parse_json, read_bytes, read_text
from dask_slicer.utils.formatting import first_few

_MARKED = re.compile(rb"# Written by dask-slicer(?: \(format (\d+)\))?")
_MARK = (
    f"# Written by dask-slicer (format {FORMAT_VERSION}); marks this directory as its output. "
    "`dask-slicer run --config` with this file continues.\n"
)
# Allowed in a directory that has no output yet: logs of the command that will fill it, and of jobs.
TOLERATED = re.compile(r"\.dask_slicer\..*|.*\.log|.*\.txt|nohup\.out|logs")

_LOG = logging.getLogger(__name__)


# -- checks ----------------------------------------------------------------------------------------


def _is_ours(output_dir: Path) -> bool:
    """Return whether a directory holds an output, and is not empty or new."""
    try:
        names = layout.names_in(output_dir)
    except NotADirectoryError:
        raise OutputError(f"output_dir {output_dir} is a file; name a directory") from None
    except PermissionError:
        raise OutputError(f"no permission to read output_dir {output_dir}") from None
    foreign = [name for name in names if not TOLERATED.fullmatch(name)]
    # Asked after the listing: another process may just have started the output. A disk that ignores
    # case may list the file as Config.yaml.
    if layout.CONFIG in names or (foreign and (output_dir / layout.CONFIG).exists()):
        marked = _MARKED.match(read_bytes(output_dir / layout.CONFIG))
        if marked is None:
            raise OutputError(
                f"output_dir {output_dir} holds a {layout.CONFIG} that dask-slicer did not write; "
                "name another directory"
            )
        if int(marked[1] or 0) > FORMAT_VERSION:
            raise OutputError(
                f"output_dir {output_dir} was written by a newer version of dask-slicer "
                f"(format {int(marked[1])}, this version reads up to {FORMAT_VERSION}); "
                "update dask-slicer"
            )
        return True
    if foreign:
        raise OutputError(
            f"output_dir {output_dir} holds other files ({first_few(foreign, 1)}); "
            "name an empty or new directory"
        )
    return False


def existing_config(output_dir: Path) -> RunConfig | None:
    """Return the configuration of an output, None if the directory is empty or new."""
    if not _is_ours(output_dir):
        return None
    try:
        return build_config({"output_dir": output_dir}, base=output_dir / layout.CONFIG)
    except ConfigError as error:
        raise OutputError(
            f"output_dir {output_dir} was not written by this version of dask-slicer: {error}"
        ) from None


def output_config(output_dir: Path) -> RunConfig:
    """Return the configuration of an output; raise OutputError if there is none."""
    config = existing_config(output_dir) if (output_dir / layout.CONFIG).exists() else None
    if config is None:
        raise OutputError(
            f"{output_dir} is not an output of dask-slicer: it has no {layout.CONFIG}"
            + ("" if output_dir.is_dir() else " (there is no such directory)")
            + "; give the --output_dir of a run that has started"
        )
    return config


def existing_splits(output_dir: Path) -> dict[str, str]:
    """Return the split of every case in splits.json; raise OutputError if it is damaged."""
    path = output_dir / layout.SPLITS_FILE
    try:
        splits = parse_json(read_text(path))
        pairs = [(case, split) for split in SPLITS for case in splits.get(split, [])]
        if not all(isinstance(case, str) for case, _ in pairs):
            raise ValueError("it holds something else than case ids")
        return dict(pairs)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise OutputError(f"{path} is damaged ({error}); restore it, or use --overwrite") from None


def existing_structures(output_dir: Path) -> dict[str, int]:
    """Return the content of structures.json; raise OutputError if it is damaged."""
    path = output_dir / layout.STRUCTURES_FILE
    try:
        content = parse_json(read_text(path))
        structures = {str(name): value for name, value in content.items()}
        if any(type(value) is not int or value < 1 for value in structures.values()):
            raise ValueError("the value of a structure is not 1 or more")
        if len(set(structures.values())) < len(structures):
            raise ValueError("two structures have one value")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise OutputError(f"{path} is damaged ({error}); restore it, or use --overwrite") from None
    return structures


def existing_table(output_dir: Path) -> CaseTable:
    """Return the content of cases.json; raise OutputError if it is damaged."""
    path = output_dir / layout.CASES_FILE
    try:
        return CaseTable.parse(parse_json(read_text(path)))
    except (FileNotFoundError, NotADirectoryError):
        return CaseTable()
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{path} is damaged ({error}); remove it: the next run writes it again"
        ) from None


def existing_folds(output_dir: Path) -> FoldList | None:
    """Return the content of splits_final.json, None if there is none; raise if it is damaged."""
    path = output_dir / layout.FOLDS
    try:
        return parse_folds(parse_json(read_text(path)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{path} is damaged ({error}); remove it, then make the folds again"
        ) from None


def existing_properties(output_dir: Path) -> tuple[IntensityProperties, ...]:
    """Return the intensity properties that the slices of an output are normalised by, if any.

    Raises OutputError if they are damaged, or other than in dataset_info.json.
    """
    path = output_dir / layout.STATISTICS_FILE
    restore = "`dask-slicer verify --repair` writes it again, as in dataset_info.json"
    try:
        properties = read_properties(path) if path.exists() else ()
    except DatasetError as error:
        raise OutputError(f"{error}; {restore}") from None
    if summary_properties(output_dir) not in ((), properties):
        how = f"differs from {layout.SUMMARY}" if properties else "is missing"
        raise OutputError(f"{path} {how}; {restore}")
    return properties


def summary_properties(output_dir: Path) -> tuple[IntensityProperties, ...]:
    """Return the intensity properties in dataset_info.json, if it has any."""
    with suppress(DatasetError):
        return read_properties(output_dir / layout.SUMMARY)
    return ()


def check_unchanged(old: RunConfig, new: RunConfig) -> None:
    """Raise OutputError, with a list, if settings changed that would give other slices."""
    # With `only`, the other cases keep channels, or labels, that these settings chose.
    also = ("images", "labels", "label_name", "volumes") if new.only else ()
    if changed := changed_settings(old, new, also=also):
        raise OutputError(
            f"{new.output_dir} was made with other settings: {'; '.join(changed)}; "
            "use another --output_dir, or --overwrite to replace it"
        )


# -- top-level files -------------------------------------------------------------------------------


def start(
    config: RunConfig,
    splits: Mapping[str, Sequence[str]],
    structures: Mapping[str, int],
    *,
    table: CaseTable = NO_TABLE,
    properties: Sequence[IntensityProperties] = (),
    columns: Collection[str] = (),
    temporary: str = layout.TEMPORARY,
) -> None:
    """Write the files at the top and the Zarr groups, before the first case.

    Other `columns` of the table are not for the output: they may be names of patients.
    """
    output_dir = config.output_dir
    planned = {case_id for case_ids in splits.values() for case_id in case_ids}
    table = existing_table(output_dir).updated(table, keep=planned).only(columns)
    shutil.rmtree(output_dir / temporary, ignore_errors=True)
    # Forced to disk: without these two, no run could continue after a power cut.
    files = [
        (layout.CONFIG, _MARK + to_yaml(config), True),
        (layout.SPLITS_FILE, splits_text(splits), True),
    ]
    if structures:
        files.append((layout.STRUCTURES_FILE, structures_text(structures), True))
    if properties:
        files.append((layout.STATISTICS_FILE, properties_text(properties), True))
    if table.says_more_than_ids or (output_dir / layout.CASES_FILE).exists():
        files.append((layout.CASES_FILE, table.text(), config.fsync))
    if config.format == "zarr":
        from dask_slicer.output.formats.zarr_writer import GROUP_TEXT

        names = layout.zarr_groups(config.plane_folders)
        files += [(name, GROUP_TEXT, config.fsync) for name in names]
    for name, text, fsync in files:
        path = output_dir / name
        if not holds(path, text):  # partitions write the same files
            path.parent.mkdir(parents=True, exist_ok=True)
            write_lines(output_dir, name, [text], temporary=temporary, fsync=fsync)


def splits_text(splits: Mapping[str, Sequence[str]]) -> str:
    """Return the content of splits.json."""
    return json.dumps(splits, indent=2) + "\n"


def structures_text(structures: Mapping[str, int]) -> str:
    """Return the content of structures.json."""
    return json.dumps(structures, indent=2, ensure_ascii=False) + "\n"


def restore_splits(output_dir: Path, known: Mapping[str, str]) -> None:
    """Write splits.json again, from known splits and what can still be read of the file."""
    assigned = dict(known)
    with suppress(OutputError):
        assigned = existing_splits(output_dir) | assigned
    write_lines(output_dir, layout.SPLITS_FILE, [splits_text(by_split(assigned))], fsync=True)


def write_lines(
    output_dir: Path,
    name: str,
    lines: Iterable[str] | None,
    *,
    temporary: str = layout.TEMPORARY,
    fsync: bool = False,
) -> None:
    """Write a file of the output whole, line by line; None removes it."""
    path = output_dir / name
    still_held()
    if lines is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, temporary=output_dir / temporary, fsync=fsync) as file:
        file.writelines(map(encode, lines))
        still_held()


def holds(path: Path, text: str) -> bool:
    """Return whether a file can be read and has this content."""
    try:
        return read_bytes(path) == encode(text)
    except OSError:
        return False


def encode(text: str) -> bytes:
    """Return a text as bytes of a file of the output."""
    # File names may have any encoding, or none; these files are UTF-8.
    return text.encode("utf-8", "backslashreplace")


# -- removal ---------------------------------------------------------------------------------------


def clear(output_dir: Path, *, known: Iterable[str] = ()) -> None:
    """Remove everything that earlier runs wrote, config.yaml last; other files stay.

    `known` are cases of its journals, see `layout.find_entries`.
    """
    # Index and journals first: no process shall read a directory that is half removed.
    still_held(now=True)
    for path in (output_dir / layout.INDEX, *layout.journals(output_dir)):
        path.unlink(missing_ok=True)
    with suppress(OutputError):  # of a newer version, or damaged: files by templates stay
        old = output_config(output_dir)
        for entries in layout.find_entries(output_dir, old, known=known).values():
            still_held()
            layout.remove_entries(output_dir, entries)
        for template in old.lists:
            (output_dir / template.path).unlink(missing_ok=True)
        layout.remove_empty_folders(output_dir, old)
    # In a store, the folder of a plane is an entry here, with all cases in it.
    for entries in layout.find_entries(output_dir).values():
        still_held()
        layout.remove_entries(output_dir, entries)
    still_held()
    for name in (*layout.zarr_groups(), *layout.TOP_FILES):
        (output_dir / name).unlink(missing_ok=True)
    remove_temporary(output_dir)


def remove_temporary(output_dir: Path) -> None:
    """Remove unfinished files, and empty directories of splits."""
    still_held()
    for folder in layout.temporary_folders(output_dir):
        shutil.rmtree(folder, ignore_errors=True)
    store = output_dir / layout.ZARR
    names = [layout.section(split, plane) for split in SPLITS for plane in (*PLANES, "")]
    for folder in (*(parent / name for parent in (output_dir, store) for name in names), store):
        with suppress(OSError):  # missing, or not empty
            folder.rmdir()


def remove_case_files(
    output_dir: Path, entries: Iterable[str], *, temporary: str = layout.TEMPORARY
) -> CaseError | None:
    """Remove entries of a case; return the error, if any."""
    still_held()
    try:
        layout.remove_entries(output_dir, entries, temporary=temporary)
    except OSError as error:
        _LOG.warning("Could not remove files of a case: %s", error)
        return as_case_error(error, step="save")
    return None
