"""Failures have names, keep them on their way back from a worker, and fit on one line."""

from __future__ import annotations

import errno
import pickle

import pytest

from dask_slicer import errors

# The kinds that failures.csv may name.
_KINDS = {
    "MissingLabel", "MissingFile", "CorruptFile", "UnsupportedImage", "GeometryMismatch",
    "LabelValues", "NonFinite", "OutOfMemory", "Timeout", "WorkerLost", "DiskFull",
    "PermissionDenied", "Unexpected",
}  # fmt: skip


def test_the_kinds_are_those_that_users_may_rely_on() -> None:
    assert {kind.__name__ for kind in errors.CaseError.__subclasses__()} == _KINDS


@pytest.mark.parametrize("kind", sorted(_KINDS))
def test_a_failure_survives_pickling(kind: str) -> None:
    failure = getattr(errors, kind)("scan.nii.gz: it is bad; copy it again")
    failure.step, failure.details, failure.retriable = "save", "Traceback …", True
    failure.add_note("case liver_007")
    back = pickle.loads(pickle.dumps(failure))
    assert type(back) is type(failure)
    assert (back.kind, back.step, back.details, back.retriable) == (
        kind, "save", "Traceback …", True,
    )  # fmt: skip
    assert back.one_line == "scan.nii.gz: it is bad; copy it again; case liver_007"


@pytest.mark.parametrize(
    ("error", "kind", "retriable"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file", "a.nii"), "MissingFile", False),
        (PermissionError(errno.EACCES, "Permission denied", "a.nii"), "PermissionDenied", False),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "a.nii"), "UnsupportedImage", False),
        (OSError(errno.ENOSPC, "No space left on device", "a.npz"), "DiskFull", False),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a.npz"), "DiskFull", False),
        (MemoryError(), "OutOfMemory", False),
        (OSError(errno.EIO, "Input/output error", "a.nii"), "Unexpected", True),
        (ZeroDivisionError("division\nby zero"), "Unexpected", False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_other_errors_become_the_failure_that_fits(
    error: Exception, kind: str, retriable: bool
) -> None:
    failure = errors.as_case_error(error, step="load")
    assert (failure.kind, failure.step, failure.retriable) == (kind, "load", retriable)
    assert failure.__cause__ is error
    assert "\n" not in failure.one_line
    assert getattr(error, "filename", None) is None or str(error.filename) in failure.one_line


def test_a_named_failure_keeps_its_kind() -> None:
    named = errors.CorruptFile("cut")
    assert errors.as_case_error(named, step="load") is named


def test_a_file_that_cannot_be_moved_is_named_by_its_new_place() -> None:
    error = PermissionError(errno.EACCES, "Permission denied", "tmp/a.npz", None, "train/a.npz")
    assert errors.as_case_error(error, step="save").one_line == (
        "train/a.npz: permission denied; check the owner and permissions of the file and its folder"
    )
