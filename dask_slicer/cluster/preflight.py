"""Checks of a scheduler and its workers before the first case.

Better a line within seconds than a thousand failed cases: other versions, a package that is
missing, a disk that is not shared, too little memory.
"""

from __future__ import annotations

import sys
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
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
    """Look at a client's scheduler and workers before the first case.

    Parameters
    ----------
    client : Client
    needs : Needs
    note : callable
        Is told what should be known.
    module : str
        That workers import to compute cases.
    upload : bool
        Send this package there, where it is another or missing.

    Raises
    ------
    PreflightError
        A line for everything that cannot work.
    SchedulerError
        If the scheduler is lost, or does not answer.
    """
    findings = Preflight()
    check_versions(_own_versions(), versions(client, (*SAME, *ALIKE)), findings)
    findings.raise_refusals()  # code of another Python must not be sent
    found = _described(client, module)
    if upload:
        send_package(client, found, note, module=module)
        found = _described(client, module)
    check_code(probes.describe(module), found, findings, uploaded=upload)
    identity = ask_scheduler(client, client.scheduler.identity, n_workers=-1)  # type: ignore[union-attr]
    check_workers(identity["workers"], needs, findings)
    findings.raise_refusals()
    check_disks(_looked_around(client, needs), needs, findings)
    check_settings(run_on_scheduler(client, probes.settings_there, tuple(WANTED)), findings)
    findings.raise_refusals()
    for text in findings.notes:
        note(text)


def _own_versions() -> dict[str, str]:
    return {"python": sys.version.split()[0]} | {name: version(name) for name in (*SAME, *ALIKE)}


def _described(client: Client, module: str) -> dict[str, Any]:
    scheduler = run_on_scheduler(client, probes.describe, module)
    return {SCHEDULER: scheduler} | run_on_workers(client, probes.describe, module)


def _looked_around(client: Client, needs: Requirements) -> dict[str, Any]:
    if not needs.temporary:
        looks = run_on_workers(client, probes.look_around, "", needs.input_file)
        return {
            name: one | {"seen": "yes"} if isinstance(one, dict) else one
            for name, one in looks.items()
        }
    own = uuid.uuid4().hex
    folder = needs.output_dir / needs.temporary
    folder.mkdir(exist_ok=True)
    token = folder / f"preflight.{own[:8]}"
    try:
        token.write_text(own, encoding="ascii")
        looks = run_on_workers(client, probes.look_around, str(token), needs.input_file)
        for look in looks.values():
            if isinstance(look, dict):
                is_here = look["token"] == own and Path(look["sibling"]).is_file()
                look["seen"] = "yes" if is_here else ""
        return looks
    finally:
        for path in folder.glob(f"{token.name}*"):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()  # a run of before may have left something in it


# Another version of these, and graphs or results are not understood.
SAME = ("dask", "distributed")
# Another version of these, and bytes or digits may be others.
ALIKE = ("numpy", "nibabel", "zarr", "isal", "numcodecs", "pydantic")
# What a scheduler of one's own should be started with, what else does too, and what it then does.
WANTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "distributed.scheduler.worker-saturation": (
        lambda value: value == 1.0,
        "holds one volume a worker, none waiting behind a slow case",
    ),
    "distributed.scheduler.work-stealing": (
        lambda value: value in (False, "false"),
        "moves no volume to another worker",
    ),
    "distributed.scheduler.allowed-failures": (
        lambda value: int(value) >= 3,
        "blames no case for a worker that another one killed",
    ),
}
_SHARED = "must be on a disk that all workers share"


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What cases need of a worker.

    Attributes
    ----------
    output_dir : Path
        Exists.
    temporary : str
        In `output_dir`, for what is written aside; empty where nothing is to be written.
    input_file : str
        To be read; empty for none.
    least_bytes, most_bytes : int
        Memory of the smallest and of the largest case; 0 where that is not known.
    timeout : float or None
        Whether a case may have to be stopped.
    """

    output_dir: Path
    temporary: str
    input_file: str = ""
    least_bytes: int = 0
    most_bytes: int = 0
    timeout: float | None = None


@dataclass(slots=True)
class Preflight:
    """What cannot work, and what should be known, a line each."""

    refusals: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def refuse(self, text: str) -> None:
        """Add a line that ends the run before it begins."""
        self.refusals.append(escape_line(text))

    def raise_refusals(self) -> None:
        """Raise if something cannot work.

        Raises
        ------
        PreflightError
            A line for everything.
        """
        if self.refusals:
            raise PreflightError("\n".join(self.refusals))


def check_versions(here: Mapping[str, str], there: Mapping[str, Any], findings: Preflight) -> None:
    """Compare versions of this process with those of others.

    Parameters
    ----------
    here : mapping of package to version
        Of python, too.
    there : mapping of name to {"packages": {package: version or None}}, or an exception
        As `asking.versions` returns.
    findings : Findings
        Is added to.
    """
    answers = _answers(there, findings)
    own = _minor(here["python"])
    for found, names in _grouped(answers, lambda one: _minor(one["packages"]["python"])).items():
        if found != own:
            findings.refuse(
                f"Python is {own} here, {found} on {_who(names)}; use the same in all places"
            )
    for package in (*SAME, *ALIKE):
        versions_there = {name: one["packages"][package] for name, one in answers.items()}
        for found, names in _grouped(versions_there, str).items():
            line = f"{package} is {here[package]} here, {found} on {_who(names)}"
            if found == "None":
                findings.refuse(
                    f"{package} is missing on {_who(names)}; install {package}=={here[package]} "
                    "there"
                )
            elif found != here[package] and package in SAME:
                findings.refuse(f"{line}; install the same version in all places")
            elif found != here[package]:
                findings.notes.append(f"{line}: digits or bytes may differ")


def check_code(
    here: Mapping[str, str], there: Mapping[str, Any], findings: Preflight, *, uploaded: bool
) -> None:
    """Compare this package with what others have of it.

    Parameters
    ----------
    here : mapping
        As `probes.describe` returns.
    there : mapping of name to mapping, or an exception
    findings : Findings
        Is added to.
    uploaded : bool
        Whether it was sent there.
    """
    remedy = f"install {OURS}=={here['version']} there" + (
        "" if uploaded else ", or add --upload_code"
    )
    answers = _answers(there, findings)
    for (found, code, fault), names in _grouped(
        answers, lambda one: (one["version"], one["code"], one["fault"])
    ).items():
        who = _who(names)
        if not found:
            findings.refuse(f"{OURS} is missing on {who}; {remedy}")
        elif fault:
            findings.refuse(f"{OURS} cannot be imported on {who} ({fault})")
        elif found != here["version"]:
            findings.refuse(f"{OURS} is {here['version']} here, {found} on {who}; {remedy}")
        elif code != here["code"]:
            findings.refuse(f"{OURS} {found} has other code on {who} than here; {remedy}")


def check_workers(
    infos: Mapping[str, Mapping[str, Any]], needs: Requirements, findings: Preflight
) -> None:
    """Look at memory, threads and nannies of workers.

    Parameters
    ----------
    infos : mapping of address to mapping
        As `Client.scheduler_info` has them.
    needs : Needs
    findings : Findings
        Is added to.
    """
    if not infos:  # they may come when there is something to do
        findings.notes.append("there is no worker yet, and none could be looked at")
    limits = {
        address: info["memory_limit"] // max(info["nthreads"], 1)
        for address, info in infos.items()
        if info["memory_limit"]
    }
    if len(limits) == len(infos) and limits and max(limits.values()) < needs.least_bytes:
        findings.refuse(
            "no worker has memory for a case: the smallest takes "
            f"{format_bytes(needs.least_bytes)}, a "
            f"thread of a worker may use {format_bytes(max(limits.values()))}; start workers with "
            "more "
            "--memory-limit, or fewer --nthreads"
        )
    small = [address for address, limit in limits.items() if limit < needs.most_bytes]
    if small and not findings.refusals:
        findings.notes.append(
            f"a thread of {plural(len(small), 'worker')} may use "
            f"{format_bytes(min(limits[address] for address in small))}, the largest case takes "
            f"{format_bytes(needs.most_bytes)}: {first_few(small)}"
        )
    alone = [address for address, info in infos.items() if not info.get("nanny")]
    if alone and needs.timeout is not None:
        findings.notes.append(
            f"{plural(len(alone), 'worker')} without a nanny: a case that passes --timeout keeps "
            f"its thread busy there ({first_few(alone)})"
        )


def check_disks(looks: Mapping[str, Any], needs: Requirements, findings: Preflight) -> None:
    """Look at whether workers see, and write to, the disks of this process.

    Parameters
    ----------
    looks : mapping of worker to mapping, or an exception
        As `probes.look_around` returns; `seen` says whether this process saw what it wrote.
    needs : Needs
    findings : Findings
        Is added to.
    """
    answers = _answers(looks, findings)
    for fault, names in _grouped(answers, _output_fault).items():
        if fault:
            findings.refuse(
                f"{_who(names)} cannot write to {needs.output_dir} as it is here ({fault}); the "
                f"output {_SHARED}"
            )
    for fault, names in _grouped(answers, lambda one: one["input_fault"].lower()).items():
        if fault:
            findings.refuse(f"{_who(names)} cannot read {needs.input_file} ({fault}); it {_SHARED}")


def _output_fault(look: Mapping[str, str]) -> str:
    if look["output_fault"]:
        return look["output_fault"].lower()
    return "" if look["seen"] else "another disk, at the same path"


def check_settings(settings: Mapping[str, Any], findings: Preflight) -> None:
    """Say how a scheduler would better have been started."""
    better = {name: good for name, (suits, good) in WANTED.items() if not suits(settings[name])}
    if better:
        advice = " ".join(
            f"DASK_{name.upper().replace('.', '__').replace('-', '_')}={SETTINGS[name]}"
            for name in better
        )
        findings.notes.append(
            f"the scheduler works as it is; started with {advice} it {', '.join(better.values())}"
        )


def _answers(there: Mapping[str, Any], findings: Preflight) -> dict[str, Any]:
    """Return the answers, and refuse what is none."""
    for fault, names in _grouped(there, _why_none).items():
        if fault:
            findings.refuse(f"{_who(names)} cannot be used ({fault}); end or restart what hangs")
    return {name: one for name, one in there.items() if not _why_none(one)}


def _why_none(answer: Any) -> str:
    if not isinstance(answer, BaseException):
        return ""
    return str(answer) if isinstance(answer, TimeoutError) else f"{type(answer).__name__}: {answer}"


def _grouped(there: Mapping[str, Any], of: Callable[[Any], Any]) -> dict[Any, list[str]]:
    found: defaultdict[Any, list[str]] = defaultdict(list)
    for name, one in there.items():
        found[of(one)].append(name)
    return dict(found)


def _minor(python: str) -> str:
    return ".".join(python.split(".")[:2])


def _who(names: Iterable[str]) -> str:
    """Return the scheduler, and workers by the host in their address, in words.

    Examples
    --------
    >>> _who(["the scheduler", "tcp://node1:38411", "tcp://node1:38412"])
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
