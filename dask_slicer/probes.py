"""What every process of a cluster is asked before the first case.

These functions are sent by value: where they run, this package may be missing, or another. So they
import what they need themselves, and return nothing but builtins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def describe(packages: Sequence[str]) -> dict[str, Any]:
    """Return the host, versions of Python and of packages (None: missing), and what code of ours.

    `code` is a digest of the sources, "" where the package is missing; `fault` says why it cannot
    be imported.
    """
    import hashlib
    import importlib.metadata
    import importlib.resources
    import platform
    import socket

    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    code = fault = ""
    try:
        import dask_slicer.tasks  # noqa: F401  # what graphs are made of

        digest = hashlib.sha256()
        folder = importlib.resources.files("dask_slicer")
        for file in sorted(folder.iterdir(), key=lambda one: one.name):
            if file.name.endswith(".py"):
                digest.update(file.name.encode() + b"\0" + file.read_bytes())
        code = digest.hexdigest()[:16]
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
    return {"host": socket.gethostname(), "versions": versions, "code": code, "fault": fault}


def forget_package(code: str, packages: Sequence[str]) -> None:
    """Forget this package, and what was sent of it before, unless it is this code."""
    import sys

    if describe(packages)["code"] != code:
        for name in [name for name in sys.modules if name.partition(".")[0] == "dask_slicer"]:
            del sys.modules[name]
        sys.path[:] = [path for path in sys.path if "dask_slicer_code_" not in path]


def look_around(token: str, sibling: str, input_file: str) -> dict[str, str]:
    """Read a token and write its sibling in the output directory, and begin to read a scan.

    Returns what the token holds, and why something is not possible.
    """
    found = {"token": "", "output_fault": "", "input_fault": ""}
    try:
        with open(token, encoding="ascii") as file:
            found["token"] = file.read()
        with open(sibling, "x", encoding="ascii") as file:
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


def scheduler_settings(names: Sequence[str]) -> dict[str, Any]:
    """Return settings of Dask as they are where this runs."""
    import dask

    return {name: dask.config.get(name, None) for name in names}
