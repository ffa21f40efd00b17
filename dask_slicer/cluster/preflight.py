"""Checks of a scheduler and its workers before the first case.

Wrong versions, a missing package, a disk that is not shared or too little memory are reported
within seconds, before a thousand cases fail of them.
"""

from __future__ import annotations

import sys
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask_slicer.cluster import probes
from dask_slicer.cluster.client import SETTINGS
from dask_slicer.cluster.rpc import (
    SCHEDULER,
    ask_scheduler,
    run_on_scheduler,
    run_on_workers,
    versions,
)
from dask_slicer.cluster.upload import OURS, send_package
from dask_slicer.errors import PreflightError
from dask_slicer.utils.formatting import escape_line, first_few, format_bytes, plural

if TYPE_CHECKING:
    from distributed import Client


def run_preflight(
    client: Client, needs: Requirements, note: Callable[[str], None], *, module: str, upload: bool
) -> None:
    """Check a client's scheduler and workers before the first case; note what is useful to know.

    Raises a PreflightError with a line for each problem. `module` is what computes cases there;
    `upload` sends this package first, where it is missing or has other code.
    """
    result = Preflight()
    check_versions(_own_versions(), versions(client, (*SAME, *ALIKE)), result)
    result.raise_refusals()  # code must not be sent to another version of Python
    descriptions = _describe_all(client, module)
    if upload:
        send_package(client, descriptions, note, module=module)
        descriptions = _describe_all(client, module)
    check_code(probes.describe(module), descriptions, result, uploaded=upload)
    identity = ask_scheduler(client, client.scheduler.identity)  # type: ignore[union-attr]
    check_workers(identity["workers"], needs, result)
    result.raise_refusals()
    check_disks(_try_files(client, needs), needs, result)
    check_settings(run_on_scheduler(client, probes.dask_settings, tuple(WANTED)), result)
    result.raise_refusals()
    for text in result.notes:
        note(text)


def _own_versions() -> dict[str, str]:
    return {"python": sys.version.split()[0]} | {name: version(name) for name in (*SAME, *ALIKE)}


def _describe_all(client: Client, module: str) -> dict[str, Any]:
    scheduler = run_on_scheduler(client, probes.describe, module)
    return {SCHEDULER: scheduler} | run_on_workers(client, probes.describe, module)


def _try_files(client: Client, needs: Requirements) -> dict[str, Any]:
    """Return what `probes.try_files` returns on each worker; `seen`: its file is visible here."""
    if not needs.temporary:
        return run_on_workers(client, probes.try_files, "", needs.input_file)
    content = uuid.uuid4().hex
    folder = needs.output_dir / needs.temporary
    folder.mkdir(exist_ok=True)
    token = folder / f"preflight.{content[:8]}"
    try:
        token.write_text(content, encoding="ascii")
        answers = run_on_workers(client, probes.try_files, str(token), needs.input_file)
        for access in answers.values():
            if isinstance(access, dict):
                is_shared = access["token"] == content and Path(access["sibling"]).is_file()
                access["seen"] = "yes" if is_shared else ""
        return answers
    finally:
        for path in folder.glob(f"{token.name}*"):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()  # an earlier run may have left files in it


# Graphs and results need the same version of these.
SAME = ("dask", "distributed")
# Bytes or digits may differ with another version of these.
ALIKE = ("numpy", "nibabel", "zarr", "isal", "numcodecs", "pydantic")
# Settings that a scheduler should be started with: whether a value suits, and what it is good for.
WANTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "distributed.scheduler.worker-saturation": (
        lambda value: value == 1.0,
        "gives a worker one volume at a time so that none waits behind a slow case",
    ),
    "distributed.scheduler.work-stealing": (
        lambda value: value in (False, "false"),
        "never moves a volume to another worker",
    ),
    "distributed.scheduler.allowed-failures": (
        lambda value: int(value) >= 3,
        "does not fail a case because another case killed its worker",
    ),
}
_SHARED = "must be on a disk that all workers share"


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """Requirements of cases for a worker."""

    output_dir: Path
    temporary: str  # folder in output_dir for temporary files; empty if workers write nothing
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


def check_versions(own: Mapping[str, str], others: Mapping[str, Any], result: Preflight) -> None:
    """Compare versions of this process, also of python, with what `rpc.versions` returns."""
    answers = _answers(others, result)
    python = _minor(own["python"])
    groups = _grouped(answers, lambda answer: _minor(answer["packages"]["python"]))
    for other, names in groups.items():
        if other != python:
            line = f"Python is {python} here, {other} on {_describe(names)}"
            result.refuse(f"{line}; use the same version everywhere")
    for package in (*SAME, *ALIKE):
        release = own[package]
        installed = {name: answer["packages"][package] for name, answer in answers.items()}
        for other, names in _grouped(installed, str).items():
            processes = _describe(names)
            line = f"{package} is {release} here, {other} on {processes}"
            if other == "None":
                remedy = f"install {package}=={release} there"
                result.refuse(f"{package} is missing on {processes}; {remedy}")
            elif other != release and package in SAME:
                result.refuse(f"{line}; install the same version everywhere")
            elif other != release:
                result.notes.append(f"{line}: bytes or last digits of slices may differ")


def check_code(
    own: Mapping[str, str], others: Mapping[str, Any], result: Preflight, *, uploaded: bool
) -> None:
    """Compare this package with those of other processes, as `probes.describe` returns them."""
    remedy = f"install {OURS}=={own['version']} there"
    remedy += "" if uploaded else ", or add --upload_code"
    groups = _grouped(_answers(others, result), itemgetter("version", "code", "fault"))
    for (release, code, fault), names in groups.items():
        processes = _describe(names)
        if not release:
            result.refuse(f"{OURS} is missing on {processes}; {remedy}")
        elif release != own["version"]:
            result.refuse(f"{OURS} is {own['version']} here, {release} on {processes}; {remedy}")
        elif fault:
            lacks_modules = OURS in fault  # another version; what else is missing, we do not bring
            more = f"; {remedy}" if lacks_modules else ""
            result.refuse(f"{OURS} cannot be imported on {processes} ({fault}){more}")
        elif code != own["code"]:
            result.refuse(f"{OURS} {release} has other code on {processes} than here; {remedy}")


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


def check_disks(accesses: Mapping[str, Any], needs: Requirements, result: Preflight) -> None:
    """Check that workers read and write the disks of this process, given `_try_files`."""
    answers = _answers(accesses, result)
    for fault, names in _grouped(answers, _output_fault).items():
        if fault and needs.temporary:
            result.refuse(
                f"{_describe(names)} cannot write to the same {needs.output_dir} as this process "
                f"({fault}); the output {_SHARED}"
            )
    for fault, names in _grouped(answers, lambda answer: answer["input_fault"].lower()).items():
        if fault:
            result.refuse(
                f"{_describe(names)} cannot read {needs.input_file} ({fault}); scans {_SHARED}"
            )


def _output_fault(access: Mapping[str, str]) -> str:
    if access["output_fault"]:
        return access["output_fault"].lower()
    return "" if access.get("seen") else "another disk, at the same path"


def check_settings(settings: Mapping[str, Any], result: Preflight) -> None:
    """Note with which settings a scheduler would work better."""
    better = {name: good for name, (suits, good) in WANTED.items() if not suits(settings[name])}
    if better:
        advice = " ".join(
            f"DASK_{name.upper().replace('.', '__').replace('-', '_')}={SETTINGS[name]}"
            for name in better
        )
        result.notes.append(
            f"the scheduler can be used as it is, but works better if started with {advice}: it "
            f"then {', '.join(better.values())}"
        )


def _answers(others: Mapping[str, Any], result: Preflight) -> dict[str, Any]:
    """Return the answers without errors, which are problems."""
    for fault, names in _grouped(others, _error_text).items():
        if fault:
            them = "it" if len(names) == 1 else "them"
            result.refuse(f"{_describe(names)} cannot be used ({fault}); stop or restart {them}")
    return {name: answer for name, answer in others.items() if not _error_text(answer)}


def _error_text(answer: Any) -> str:
    if not isinstance(answer, BaseException):
        return ""
    return str(answer) if isinstance(answer, TimeoutError) else f"{type(answer).__name__}: {answer}"


def _grouped(others: Mapping[str, Any], key: Callable[[Any], Any]) -> dict[Any, list[str]]:
    groups: defaultdict[Any, list[str]] = defaultdict(list)
    for name, answer in others.items():
        groups[key(answer)].append(name)
    return dict(groups)


def _minor(python: str) -> str:
    return ".".join(python.split(".")[:2])


def _describe(names: Iterable[str]) -> str:
    """Return the scheduler, and the number of workers on each host, in words.

    Examples
    --------
    >>> _describe(["the scheduler", "tcp://node1:38411", "tcp://node1:38412"])
    'the scheduler, 2 workers on node1'
    """
    hosts: defaultdict[str, int] = defaultdict(int)
    words = []
    for name in names:
        if "://" in name:
            hosts[name.rpartition("://")[2].rpartition(":")[0]] += 1
        else:
            words.append(name)
    words += [f"{plural(n, 'worker')} on {host}" for host, n in sorted(hosts.items())]
    return first_few(words)
