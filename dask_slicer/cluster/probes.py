"""Functions that preflight runs on the scheduler and on every worker.

These functions are sent by value: where they run, this package may be missing, or another. So they
import what they need themselves, and return nothing but builtins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def describe(module: str) -> dict[str, str]:
    """Return which process this is, and version and code of this package in it.

    `version` is empty where it is missing; `code` is a digest of its sources; `fault` says why
    they cannot be imported.

    Parameters
    ----------
    module : str
        That is imported, to see whether this process could compute a case.
    """
    import hashlib
    import importlib
    import importlib.metadata
    import importlib.resources
    import os
    import socket

    found = dict.fromkeys(("version", "code", "fault"), "")
    found["process"] = f"{socket.gethostname()} {os.getpid()}"
    try:
        found["version"] = importlib.metadata.version("dask_slicer")
        importlib.import_module(module)
        digest = hashlib.sha256()
        for path, file in package_files(importlib.resources.files("dask_slicer")).items():
            if path.endswith(".py"):
                digest.update(path.encode() + b"\0" + file.read_bytes())
        found["code"] = digest.hexdigest()[:16]
    except importlib.metadata.PackageNotFoundError:
        pass
    except Exception as error:
        found["fault"] = f"{type(error).__name__}: {error}"
    return found


def package_files(package: Any, *, below: str = "") -> dict[str, Any]:
    """Return the files of a package and its subfolders by path, sorted; without bytecode.

    Parameters
    ----------
    package : importlib.resources.abc.Traversable
        A folder, or one in a zip file, which has no `rglob` before Python 3.12.
    below : str
        What paths begin with; they have "/" on every system.
    """
    files: dict[str, Any] = {}
    for entry in package.iterdir():
        path = f"{below}{entry.name}"
        if not entry.is_dir():
            files[path] = entry
        elif entry.name != "__pycache__":
            files |= package_files(entry, below=f"{path}/")
    return dict(sorted(files.items()))


def forget_package(module: str, code: str) -> None:
    """Forget this package, and what was sent of it before, unless it is this code.

    Parameters
    ----------
    module : str
        For `describe`.
    code : str
        As it returns.
    """
    import sys

    if describe(module)["code"] != code:
        for name in [name for name in sys.modules if name.partition(".")[0] == "dask_slicer"]:
            del sys.modules[name]
        sys.path[:] = [path for path in sys.path if "dask_slicer_code_" not in path]


def look_around(token: str, input_file: str) -> dict[str, str]:
    """Read a token and write a sibling of it, if there is a token; begin to read a file.

    Returns what the token holds, where the sibling is, and why something is not possible.
    """
    import uuid

    found = dict.fromkeys(("token", "sibling", "output_fault", "input_fault"), "")
    try:
        if token:
            with open(token, encoding="ascii") as file:
                found["token"] = file.read()
            found["sibling"] = f"{token}.{uuid.uuid4().hex}"
            with open(found["sibling"], "x", encoding="ascii") as file:
                file.write(found["token"])
    except OSError as error:
        found["output_fault"] = error.strerror or str(error)
    try:
        if input_file:
            with open(input_file, "rb") as scan:
                scan.read(1)
    except OSError as error:
        found["input_fault"] = error.strerror or str(error)
    return found


def settings_there(names: Sequence[str]) -> dict[str, Any]:
    """Return settings of Dask as they are where this runs."""
    import dask

    return {name: dask.config.get(name, None) for name in names}


def n_tasks(dask_scheduler: Any) -> int:
    """Return how many tasks a scheduler has, of whomever."""
    return len(dask_scheduler.tasks)


def ignore_sigint(host: str, group: int, dask_worker: Any) -> bool:
    """Let a worker of a process group not hear Ctrl-C; return whether it is one, and can."""
    import os
    import signal
    import socket
    import threading

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not hasattr(os, "getpgrp"):  # in the driver's process, or on Windows
        return False
    if (socket.gethostname(), os.getpgrp()) != (host, group):
        return False
    before = getattr(dask_worker, "before_no_ctrl_c", [])
    dask_worker.before_no_ctrl_c = [*before, signal.signal(signal.SIGINT, signal.SIG_IGN)]
    return True


def restore_sigint(dask_worker: Any) -> None:
    """Undo one `ignore_sigint`."""
    import signal

    if before := getattr(dask_worker, "before_no_ctrl_c", []):
        signal.signal(signal.SIGINT, before.pop())
