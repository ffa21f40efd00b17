"""Functions that preflight runs on the scheduler and on every worker.

They are sent as code, because the other process may lack this package or have another version. So
they use the standard library only, and return builtins.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.resources
import os
import signal
import socket
import sys
import threading
import uuid
from typing import Any


def describe(module: str) -> dict[str, str]:
    """Return this process, and the version and the code (a digest) of this package in it.

    The version is empty if the package is missing; `fault` says why the module cannot be imported.
    """
    description = dict.fromkeys(("version", "code", "fault"), "")
    description["process"] = f"{socket.gethostname()} {os.getpid()}"
    try:
        description["version"] = importlib.metadata.version("dask_slicer")
        importlib.import_module(module)
        digest = hashlib.sha256()
        for path, file in package_files(importlib.resources.files("dask_slicer")).items():
            if path.endswith(".py"):
                digest.update(path.encode() + b"\0" + file.read_bytes())
        description["code"] = digest.hexdigest()[:16]
    except importlib.metadata.PackageNotFoundError:
        pass
    except Exception as error:
        description["fault"] = f"{type(error).__name__}: {error}"
    return description


def package_files(package: Any, *, below: str = "") -> dict[str, Any]:
    """Return the files of a package and its subfolders by path, sorted; without bytecode.

    A package in a zip file has no `rglob` before Python 3.12.
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
    """Unload this package and earlier uploads of it, unless its code is the same."""
    if describe(module)["code"] != code:
        for name in [name for name in sys.modules if name.partition(".")[0] == "dask_slicer"]:
            del sys.modules[name]
        sys.path[:] = [path for path in sys.path if "dask_slicer_code_" not in path]


def try_files(token: str, input_file: str) -> dict[str, str]:
    """Read a token file and write a file beside it; read the first byte of an input file.

    Returns the content of the token, the path of the new file, and errors; empty paths are skipped.
    """
    access = dict.fromkeys(("token", "sibling", "output_fault", "input_fault"), "")
    try:
        if token:
            with open(token, encoding="ascii") as file:
                access["token"] = file.read()
            access["sibling"] = f"{token}.{uuid.uuid4().hex}"
            with open(access["sibling"], "x", encoding="ascii") as file:
                file.write(access["token"])
    except OSError as error:
        access["output_fault"] = error.strerror or str(error)
    try:
        if input_file:
            with open(input_file, "rb") as scan:
                scan.read(1)
    except OSError as error:
        access["input_fault"] = error.strerror or str(error)
    return access


def ignore_sigint(host: str, group: int, dask_worker: Any) -> bool:
    """Make this worker ignore SIGINT if it is in a process group; return whether it does."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not hasattr(os, "getpgrp"):  # in the driver's process, or on Windows
        return False
    if (socket.gethostname(), os.getpgrp()) != (host, group):
        return False
    handlers = getattr(dask_worker, "sigint_handlers", [])
    dask_worker.sigint_handlers = [*handlers, signal.signal(signal.SIGINT, signal.SIG_IGN)]
    return True


def restore_sigint(dask_worker: Any) -> None:
    """Undo one `ignore_sigint`."""
    if handlers := getattr(dask_worker, "sigint_handlers", []):
        signal.signal(signal.SIGINT, handlers.pop())
