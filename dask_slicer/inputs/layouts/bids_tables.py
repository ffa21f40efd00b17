"""Tables in BIDS: participants.tsv, sessions of a participant, names of labels."""

from __future__ import annotations

import csv

from dask_slicer.inputs.case import given_cells, name_of
from dask_slicer.inputs.layouts.bids_names import BidsFile
from dask_slicer.inputs.tree import FileTree
from dask_slicer.utils.formatting import first_few, plural

_PARTICIPANTS = "participants.tsv"


class ParticipantTables:
    """Tables of participants and of their sessions: a row for each, by its id."""

    def __init__(self, tree: FileTree) -> None:
        self._tree = tree
        self._paths = set(tree.paths)
        self._rows: dict[str, dict[str, dict[str, str]]] = {}  # by path of the table, then by id
        self._differing: dict[str, list[str]] = {}  # ids of rows that contradict each other

    def columns(self, image: BidsFile) -> dict[str, str]:
        """Return the columns of an image's participant and of its session, which win."""
        columns = self._participants(image.above).get(image.subject, {})
        sessions = f"{image.above}{image.subject}/{image.subject}_sessions.tsv"
        session = next((part for part in sorted(image.scan) if part.startswith("ses-")), "")
        if session and sessions in self._paths:
            columns = columns | self._read(sessions, "session_id", "ses-").get(session, {})
        return columns

    def notes(self, subjects: set[str]) -> list[str]:
        """Return notes on participants that a table lacks, or that have no image, or two rows."""
        tables = [path for path in self._rows if name_of(path) == _PARTICIPANTS]
        listed = {name for path in tables for name in self._rows[path]}
        unlisted, absent = sorted(subjects - listed), sorted(listed - subjects)
        notes = []
        if listed and unlisted:
            notes.append(
                f"{_PARTICIPANTS} lacks {plural(len(unlisted), 'subject')}: {first_few(unlisted)}"
            )
        if absent:
            notes.append(
                f"{plural(len(absent), 'participant')} without an image: {first_few(absent)}"
            )
        notes += [
            f"{path} lists no participant: it must be UTF-8 text with tabs between columns, and "
            "have the column participant_id"
            for path in tables
            if not self._rows[path]
        ]
        for path, names in self._differing.items():
            notes.append(
                f"{path} has several rows for {first_few(sorted(set(names)))}; columns in which "
                "they differ have no value"
            )
        return notes

    def _participants(self, folder: str) -> dict[str, dict[str, str]]:
        """Return the rows of the table in a folder, which ends in a slash, or in one above it."""
        while folder + _PARTICIPANTS not in self._paths:
            if not folder:
                return {}
            folder = folder[: folder.rstrip("/").rfind("/") + 1]
        return self._read(folder + _PARTICIPANTS, "participant_id", "sub-")

    def _read(self, path: str, key: str, prefix: str) -> dict[str, dict[str, str]]:
        if path in self._rows:
            return self._rows[path]
        rows = self._rows[path] = {}
        for row in read_table(self._tree, path):
            cells = given_cells(row)
            if name := cells.pop(key, ""):
                name = name if name.startswith(prefix) else prefix + name
                known = rows.setdefault(name, cells)
                if known != cells:
                    self._differing.setdefault(path, []).append(name)
                    rows[name] = {k: text for k, text in known.items() if cells.get(k) == text}
        return rows


def read_table(tree: FileTree, path: str) -> list[dict[str, str]]:
    """Return the rows of a tab-separated table, none if it cannot be read."""
    try:
        text = (tree.root / path).read_text(encoding="utf-8-sig")
        return list(csv.DictReader(text.splitlines(), delimiter="\t"))
    except (OSError, ValueError, csv.Error):
        return []
