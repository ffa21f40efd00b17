"""Checks of a scheduler and its workers before the first case.

Wrong versions, a missing package, a disk that is not shared or too little memory are reported
within seconds, before a thousand cases fail of them.
"""

from __future__ import annotations

import sys
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask

from dask_slicer.cluster import probes, rpc
from dask_slicer.cluster.client import scheduler_setting
from dask_slicer.cluster.rpc import Note
from dask_slicer.cluster.upload import PACKAGE, send_package
from dask_slicer.errors import PreflightError
from dask_slicer.utils.formatting import escape_line, first_few, format_bytes, plural

if TYPE_CHECKING:
    from distributed import Client


# Graphs and results need the same version of these.
MUST_MATCH = ("dask", "distributed")
# Bytes or digits may differ with another version of these.
SHOULD_MATCH = ("numpy", "nibabel", "zarr", "isal", "numcodecs", "pydantic")
# Settings that a scheduler should be started with (docs/hpc.md), and the values that suit.
BETTER_SETTINGS: dict[str, Callable[[Any], bool]] = {
    "worker-saturation": lambda value: value == 1.0,
    "work-stealing": lambda value: value in (False, "false"),
    "allowed-failures": lambda value: int(value) >= 3,
}
_SHARED = "must be on a disk that all workers share"


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """Requirements of cases for a worker."""

    output_dir: Path
    temporary: str = ""  # folder in output_dir for temporary files; empty if workers write nothing
    input_file: str = ""  # a file that workers must be able to read
    least_bytes: int = 0  # memory of the smallest case; 0 if unknown
    most_bytes: int = 0  # of the largest
    timeout: float | None = None  # seconds after which a case is stopped


@dataclass(slots=True)
class Preflight:
    """Problems that end the run, and notes for the user, a line each."""

    refusals: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def refuse(self, text: str) -> None:
        """Add a problem."""
        self.refusals.append(escape_line(text))

    def raise_refusals(self) -> None:
        """Raise a PreflightError with a line for each problem, if there are any."""
        if self.refusals:
            raise PreflightError("\n".join(self.refusals))


def run_preflight(
    client: Client, needs: Requirements, note: Note, *, module: str, upload: bool
) -> None:
    """Check a client's scheduler and workers before the first case; note what is useful to know.

    `module` is what computes cases there; `upload` sends this package first.
    """
    result = Preflight()
    own = {"python": sys.version} | {name: version(name) for name in (*MUST_MATCH, *SHOULD_MATCH)}
    check_versions(own, rpc.versions(client, (*MUST_MATCH, *SHOULD_MATCH)), result)
    result.raise_refusals()  # code must not be sent to another version of Python
    descriptions = rpc.run_everywhere(client, probes.describe, module)
    if upload:
        send_package(client, descriptions, note, module=module)
        descriptions = rpc.run_everywhere(client, probes.describe, module)
    check_code(probes.describe(module), descriptions, result, uploaded=upload)
    identity = rpc.ask_scheduler(client, client.scheduler.identity)  # type: ignore[union-attr]
    check_workers(identity["workers"], needs, result)
    result.raise_refusals()
    check_disks(_try_files(client, needs), needs, result)
    check_settings(scheduler_setting(client, "distributed.scheduler"), result)
    result.raise_refusals()
    for text in result.notes:
        note(text)


def check_versions(own: Mapping[str, str], others: Mapping[str, Any], result: Preflight) -> None:
    """Compare versions of this process, also of python, with what `rpc.versions` returns."""
    answers = _answers(others, result)
    python = _minor(own["python"])
    for other, processes in _groups(answers, lambda answer: _minor(answer["packages"]["python"])):
        if other != python:
            line = f"Python is {python} here, {other} on {processes}"
            result.refuse(f"{line}; use the same version everywhere")
    for package in (*MUST_MATCH, *SHOULD_MATCH):
        release = own[package]
        installed = {name: answer["packages"][package] for name, answer in answers.items()}
        for other, processes in _groups(installed, str):
            line = f"{package} is {release} here, {other} on {processes}"
            if other == "None":
                remedy = f"install {package}=={release} there"
                result.refuse(f"{package} is missing on {processes}; {remedy}")
            elif other != release and package in MUST_MATCH:
                result.refuse(f"{line}; install the same version everywhere")
            elif other != release:
                result.notes.append(f"{line}: bytes or last digits of slices may differ")


def check_code(
    own: Mapping[str, str], others: Mapping[str, Any], result: Preflight, *, uploaded: bool
) -> None:
    """Compare this package with those of other processes, as `probes.describe` returns them."""
    remedy = f"install {PACKAGE}=={own['version']} there"
    remedy += "" if uploaded else ", or add --upload_code"
    groups = _groups(_answers(others, result), itemgetter("version", "code", "fault"))
    for (release, code, fault), processes in groups:
        if not release:
            result.refuse(f"{PACKAGE} is missing on {processes}; {remedy}")
        elif release != own["version"]:
            result.refuse(f"{PACKAGE} is {own['version']} here, {release} on {processes}; {remedy}")
        elif fault:
            # A missing module of ours is of another version; other packages we do not send.
            more = f"; {remedy}" if PACKAGE in fault else ""
            result.refuse(f"{PACKAGE} cannot be imported on {processes} ({fault}){more}")
        elif code != own["code"]:
            result.refuse(f"{PACKAGE} {release} has other code on {processes} than here; {remedy}")


def check_workers(
    infos: Mapping[str, Mapping[str, Any]], needs: Requirements, result: Preflight
) -> None:
    """Check memory, threads and nannies of workers, as `Client.scheduler_info` has them."""
    if not infos:  # adaptive clusters start workers when there are tasks
        result.notes.append("no worker has started yet, so none could be checked")
    limits = {
        address: info["memory_limit"] // max(info["nthreads"], 1)
        for address, info in infos.items()
        if info["memory_limit"]
    }
    if len(limits) == len(infos) and limits and max(limits.values()) < needs.least_bytes:
        result.refuse(
            "no worker has enough memory for any case: the smallest case needs "
            f"{format_bytes(needs.least_bytes)}, a thread of a worker has at most "
            f"{format_bytes(max(limits.values()))}; start workers with a larger --memory-limit, or "
            "fewer --nthreads"
        )
    small = [address for address, limit in limits.items() if limit < needs.most_bytes]
    if small and not result.refusals:
        result.notes.append(
            f"{plural(len(small), 'worker')} may lack memory for the largest case, which needs "
            f"{format_bytes(needs.most_bytes)}: a thread has "
            f"{format_bytes(min(limits[address] for address in small))} ({first_few(small)})"
        )
    unattended = [address for address, info in infos.items() if not info.get("nanny")]
    if unattended and needs.timeout is not None:
        result.notes.append(
            f"{plural(len(unattended), 'worker')} without a nanny cannot be restarted: a case that "
            f"exceeds --timeout keeps a thread busy there ({first_few(unattended)})"
        )


def _try_files(client: Client, needs: Requirements) -> dict[str, Any]:
    """Return what `probes.try_files` returns on each worker whose file is visible here."""
    if not needs.temporary:
        return rpc.run_on_workers(client, probes.try_files, "", needs.input_file)
    content = uuid.uuid4().hex
    folder = needs.output_dir / needs.temporary
    folder.mkdir(exist_ok=True)
    token = folder / f"preflight.{content[:8]}"
    try:
        token.write_text(content, encoding="ascii")
        answers = rpc.run_on_workers(client, probes.try_files, str(token), needs.input_file)
        for access in answers.values():
            if isinstance(access, dict) and not access["output_fault"]:
                is_shared = access["token"] == content and Path(access["sibling"]).is_file()
                access["output_fault"] = "" if is_shared else "another disk, at the same path"
        return answers
    finally:
        for path in folder.glob(f"{token.name}*"):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()  # an earlier run may have left files in it


def check_disks(accesses: Mapping[str, Any], needs: Requirements, result: Preflight) -> None:
    """Check that workers read and write the disks of this process, given `_try_files`."""
    answers = _answers(accesses, result)
    for fault, processes in _groups(answers, lambda answer: answer["output_fault"].lower()):
        if fault:
            result.refuse(
                f"{processes} cannot write to the same {needs.output_dir} as this process "
                f"({fault}); the output {_SHARED}"
            )
    for fault, processes in _groups(answers, lambda answer: answer["input_fault"].lower()):
        if fault:
            result.refuse(f"{processes} cannot read {needs.input_file} ({fault}); scans {_SHARED}")


def check_settings(settings: dict[str, Any], result: Preflight) -> None:
    """Note with which settings a scheduler would work better; these are its own."""
    better = [
        name
        for name, suits in BETTER_SETTINGS.items()
        if not suits(dask.config.get(name, config=settings))
    ]
    if better:
        result.notes.append(
            f"the scheduler works better with other settings ({', '.join(better)}), see docs/hpc"
        )


def _answers(others: Mapping[str, Any], result: Preflight) -> dict[str, Any]:
    """Return the answers without errors, which are problems."""
    errors = {name: other for name, other in others.items() if isinstance(other, BaseException)}
    faults = [_error_text(error) for error in errors.values()]
    for fault, processes in _groups(errors, _error_text):
        them = "it" if faults.count(fault) == 1 else "them"
        result.refuse(f"{processes} cannot be used ({fault}); stop or restart {them}")
    return {name: answer for name, answer in others.items() if name not in errors}


def _error_text(error: BaseException) -> str:
    return str(error) if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"


def _groups(others: Mapping[str, Any], key: Callable[[Any], Any]) -> Iterator[tuple[Any, str]]:
    """Yield each value that a key has, with the processes in words: workers by their host."""
    groups: defaultdict[Any, list[str]] = defaultdict(list)
    for name, answer in others.items():
        groups[key(answer)].append(name)
    for value, names in groups.items():
        words = [name for name in names if "://" not in name]
        addresses = [name.rpartition("://")[2] for name in names if "://" in name]
        hosts = Counter(address.rpartition(":")[0] for address in addresses)
        words += [f"{plural(n, 'worker')} on {host}" for host, n in sorted(hosts.items())]
        yield value, first_few(words)


def _minor(python: str) -> str:
    return ".".join(python.split(".")[:2])
