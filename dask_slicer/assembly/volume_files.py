"""The folder of volumes: that it is ours, what is written in it, and its tables."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from dask_slicer.assembly.nifti_writer import SUFFIX
from dask_slicer.assembly.tasks import AssembledCase
from dask_slicer.errors import OutputError
from dask_slicer.inputs.case import case_id_problem
from dask_slicer.output.atomic import atomic_write
from dask_slicer.output.directory import TOLERATED
from dask_slicer.output.layout import FAILURE_COLUMNS, FAILURES, names_in
from dask_slicer.output.lock import still_held
from dask_slicer.records import FailedCase
from dask_slicer.utils.files import open_file
from dask_slicer.utils.formatting import first_few

JOURNAL = "assembly.jsonl"
METRICS, METRICS_SUMMARY = "metrics.csv", "metrics.json"
LINES = TypeAdapter(AssembledCase)
_COLUMNS = ("case_id", "split", "label", "name", "dice", "hd95_mm", "reference_ml", "predicted_ml")


def check_ours(folder: Path) -> None:
    """Raise OutputError if a folder has files, and `assemble` did not make it."""
    try:
        names = names_in(folder)
    except NotADirectoryError:
        raise OutputError(f"output_dir {folder} is a file; name a directory") from None
    others = [name for name in names if not TOLERATED.fullmatch(name)]
    if others and JOURNAL not in names:
        raise OutputError(
            f"output_dir {folder} holds files that assemble did not write ({first_few(others)}); "
            "name a new directory"
        )


def written_cases(folder: Path) -> dict[str, AssembledCase]:
    """Return the cases whose files are there with the sizes that were noted."""
    cases: dict[str, AssembledCase] = {}
    try:
        with open_file(folder / JOURNAL) as lines:
            for line in lines:
                try:
                    case = LINES.validate_json(line)
                except ValidationError:  # cut short by a crash
                    continue
                if not case_id_problem(case.case_id):
                    cases[case.case_id] = case
    except FileNotFoundError:
        return {}
    return {case_id: case for case_id, case in cases.items() if _is_whole(folder, case)}


def _is_whole(folder: Path, case: AssembledCase) -> bool:
    try:
        return all(
            file.name.startswith(case.case_id)
            and file.name.endswith(SUFFIX)
            and (folder / file.name).stat().st_size == file.size
            for file in case.files
        )
    except OSError:
        return False


def remove_volumes(folder: Path, case: AssembledCase) -> None:
    """Remove the files of a case."""
    still_held()
    for file in case.files:
        (folder / file.name).unlink(missing_ok=True)


def write_tables(
    folder: Path,
    cases: Iterable[AssembledCase],
    failures: Iterable[FailedCase],
    label_names: Mapping[int, str],
) -> dict[str, Any]:
    """Write failures.csv, metrics.csv and their summary, and return the summary."""
    rows = [
        (f.case_id, f.step, f.kind, f.message) for f in sorted(failures, key=lambda f: f.case_id)
    ]
    _write_table(folder / FAILURES, FAILURE_COLUMNS, rows)
    in_order = sorted(cases, key=lambda case: case.case_id)
    lines = [
        (
            *(case.case_id, case.split, each.label, label_names.get(each.label, "")),
            *(each.dice, "" if each.hd95_mm is None else each.hd95_mm),
            *(each.reference_ml, each.predicted_ml),
        )
        for case in in_order
        for each in case.metrics
    ]
    _write_table(folder / METRICS, _COLUMNS, lines)
    summary = metrics_summary(in_order, label_names)
    path = folder / METRICS_SUMMARY
    if summary:
        with atomic_write(path) as file:
            file.write((json.dumps(summary, indent=2) + "\n").encode())
    else:
        path.unlink(missing_ok=True)
    return summary


def metrics_summary(
    cases: Iterable[AssembledCase], label_names: Mapping[int, str]
) -> dict[str, Any]:
    """Return mean, std and median of each metric over the cases of each split, by label."""
    values: defaultdict[tuple[str, int, str], list[float | None]] = defaultdict(list)
    for case in cases:
        for each in case.metrics:
            for name in ("dice", "hd95_mm", "reference_ml", "predicted_ml"):
                values[case.split, each.label, name].append(getattr(each, name))
    summary: dict[str, Any] = {}
    for (split, label, name), numbers in sorted(values.items()):
        present = [number for number in numbers if number is not None]
        of_label = summary.setdefault(split, {}).setdefault(
            str(label), {"name": label_names.get(label, ""), "n_cases": len(numbers)}
        )
        of_label[name] = {
            "mean": float(np.mean(present)) if present else None,
            "std": float(np.std(present)) if present else None,
            "median": float(np.median(present)) if present else None,
            "n_missing": len(numbers) - len(present),
        }
    return summary


def named_metrics(folder: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv; none without metrics. Raise OutputError if it is damaged."""

    def check(row: Mapping[str, str]) -> None:
        int(row["label"]), [float(row[name] or 0) for name in _COLUMNS[4:]]

    return _read_table(folder / METRICS, check)


def failed_cases(folder: Path) -> list[dict[str, str]]:
    """Return the rows of failures.csv, or none. Raise OutputError if it is damaged."""
    return _read_table(
        folder / FAILURES, lambda row: "".join(map(row.__getitem__, FAILURE_COLUMNS))
    )


def _read_table(path: Path, check: Callable[[dict[str, str]], object]) -> list[dict[str, str]]:
    try:
        file = io.TextIOWrapper(
            open_file(path), encoding="utf-8", errors="backslashreplace", newline=""
        )
        with file as lines:
            rows = list(csv.DictReader(lines, strict=True))
        for row in rows:
            check(row)
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise OutputError(
            f"{path} is damaged ({error}); the same assemble command writes it again"
        ) from None
    return rows


def _write_table(path: Path, columns: Iterable[str], rows: list[Any]) -> None:
    """Write a CSV file whole; without rows, remove it."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))
