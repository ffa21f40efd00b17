"""Error tree; its leaves are the kinds of failure of a case."""

from __future__ import annotations

import errno

from dask_slicer.utils.formatting import escape_line


class DaskSlicerError(Exception):
    """Root of all errors that this package raises on purpose; takes one message."""


def _without_traceback(error: DaskSlicerError) -> list[str]:
    """Return the lines that IPython shows, where a class has this as `_render_traceback_`."""
    notes = getattr(error, "__notes__", [])
    return [f"{type(error).__name__}: {error}", *notes]


class UsageError(DaskSlicerError, ValueError):
    """The settings or the input are wrong; nothing was written."""

    _render_traceback_ = _without_traceback


class ConfigError(UsageError):
    """A setting is unknown, missing, or out of range."""


class DatasetError(UsageError):
    """The input has no case, or its cases cannot be identified."""


class OutputError(UsageError):
    """The directory is no output, is in use, or was made with other settings."""


class LockLost(DaskSlicerError):
    """The run no longer holds the lock of its output; it has stopped writing."""

    _render_traceback_ = _without_traceback


class SchedulerError(DaskSlicerError):
    """The Dask scheduler cannot be reached, or was lost during the run."""

    _render_traceback_ = _without_traceback


class PreflightError(SchedulerError):
    """No case can run with this scheduler or these workers; one line per reason."""


class CaseError(DaskSlicerError):
    """One case failed; the other cases continue.

    The name of the class is the failure's `kind`. The task sets `step`. `retriable` is whether
    another try could help, `details` is a traceback, `run_id` is the run of the task, if any.
    """

    step: str = "load"
    details: str = ""
    run_id: str = ""
    retriable: bool = False

    @property
    def kind(self) -> str:
        """Return the name of this failure in the journal."""
        return type(self).__name__

    # Not named `message`: torch's DataLoader creates errors that have one again, with other text.
    @property
    def one_line(self) -> str:
        """Return what happened, where, and what to do."""
        notes = getattr(self, "__notes__", [])
        return escape_line("; ".join([str(self), *notes]))


class MissingLabel(CaseError):
    """The case has no label although its dataset has labels."""


class MissingFile(CaseError, FileNotFoundError):
    """A file of the case is not there."""


class CorruptFile(CaseError, ValueError):
    """The bytes of a file do not fit its format."""


class UnsupportedImage(CaseError, ValueError):
    """The file is valid, but not a 3D scalar volume."""


class GeometryMismatch(CaseError, ValueError):
    """Image and label do not share a grid, or an affine is singular."""


class LabelValues(CaseError, ValueError):
    """A label has values that are not integers or do not fit the label dtype."""


class NonFinite(CaseError, ValueError):
    """An image has NaN or Inf, or would have them after conversion."""


class OutOfMemory(CaseError):
    """The case needs more memory than its worker has.

    Not a MemoryError: CPython cannot unpickle a subclass of it that has another base too.
    """


class Timeout(CaseError, TimeoutError):
    """The case took longer than `--timeout`."""

    retriable = True


class WorkerLost(CaseError):
    """The worker that ran the case died."""

    retriable = True


class DiskFull(CaseError, OSError):
    """The disk is full."""


class PermissionDenied(CaseError, PermissionError):
    """The user has no permission to read or write a file."""


class Unexpected(CaseError):
    """Any other error, of this program or of the machine."""


def shared_scheduler_error(case_id: str) -> SchedulerError:
    """Return the error of a run whose case is also a task of another run."""
    return SchedulerError(
        f"another run on this scheduler has a case with the same id ({case_id}); wait for it, or "
        "use another scheduler"
    )


def as_case_error(error: BaseException, *, step: str) -> CaseError:
    """Return `error` as one of the named failures, with the step in which it happened."""
    case_error = error if isinstance(error, CaseError) else _translate(error)
    if case_error is not error:
        case_error.__cause__ = error
    case_error.step = step
    return case_error


def _translate(error: BaseException) -> CaseError:
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, OSError) and error.filename and error.strerror:
        # Of a file that is moved, the new place says more than the temporary one.
        text = f"{error.filename2 or error.filename}: {error.strerror.lower()}"
    match error:
        case FileNotFoundError():
            return MissingFile(f"{text}; check the path, and that the file still exists")
        case PermissionError():
            return PermissionDenied(
                f"{text}; check the owner and permissions of the file and its folder"
            )
        case OSError(errno=errno.EROFS):
            return PermissionDenied(f"{text}; use another directory, or make it writable")
        case OSError(errno=errno.ENOTDIR | errno.ENAMETOOLONG | errno.ELOOP):
            return MissingFile(f"{text}; check that the path is right")
        case IsADirectoryError():
            return UnsupportedImage(f"{text}; expected a file")
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG):
            return DiskFull(f"{text}; make room and run the same command again")
        case MemoryError():
            return OutOfMemory(f"{text}; use fewer workers or a machine with more memory")
    unexpected = Unexpected(f"{type(error).__name__}: {text}")
    # A network disk may work at the next try; a bug will not.
    unexpected.retriable = isinstance(error, OSError)
    return unexpected
