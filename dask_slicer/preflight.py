"""What is looked at on somebody's workers before the first case is sent to them.

Better a line within seconds than a thousand failed cases: other versions, a package that is
missing, a disk that is not shared, too little memory.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask_slicer import probes
from dask_slicer.cluster import SETTINGS
from dask_slicer.errors import PreflightError
from dask_slicer.words import count, size, some

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Client

OURS = "dask_slicer"
# Another version of these, and graphs or results are not understood.
_SAME = (OURS, "dask", "distributed")
# Another version of these, and bytes or digits may be others.
_ALIKE = ("numpy", "nibabel", "zarr", "isal", "numcodecs", "pydantic")
PACKAGES = (*_SAME, *_ALIKE)
# What a scheduler of one's own should be started with, and what else does too.
_WANTED: dict[str, Callable[[Any], bool]] = {
    "distributed.scheduler.worker-saturation": lambda value: value == 1.0,
    "distributed.scheduler.work-stealing": lambda value: value in (False, "false"),
    "distributed.scheduler.allowed-failures": lambda value: int(value) >= 3,
}
_ANSWER_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What cases need of a worker.

    Attributes
    ----------
    output_dir : Path
        Exists.
    input_file : str
        Of the dataset; empty where none is to be read.
    least_bytes, most_bytes : int
        Memory of the smallest and of the largest case; 0 where that is not known.
    timeout : float or None
        Whether a case may have to be stopped.
    """

    output_dir: Path
    input_file: str = ""
    least_bytes: int = 0
    most_bytes: int = 0
    timeout: float | None = None


@dataclass(slots=True)
class Findings:
    """What cannot work, and what should be known, a line each."""

    refusals: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check(client: Client, needs: Needs, note: Callable[[str], None], *, uploaded: bool) -> None:
    """Look at a client's scheduler and workers before the first case.

    Parameters
    ----------
    client : Client
    needs : Needs
    note : callable
        Is told what should be known.
    uploaded : bool
        Whether this package was sent there.

    Raises
    ------
    PreflightError
        A line for everything that cannot work.
    """
    findings = Findings()
    found = described(client)
    here = probes.describe(PACKAGES)
    judge_versions(here, found, findings, uploaded=uploaded)
    infos = client.scheduler_info(n_workers=-1)["workers"]
    judge_workers(infos, needs, findings)
    if not findings.refusals:
        judge_disks(_looked_around(client, needs), needs, findings)
        judge_settings(_settings(client), findings)
    if findings.refusals:
        raise PreflightError("\n".join(findings.refusals))
    for text in findings.notes:
        note(text)


def described(client: Client) -> dict[str, dict[str, Any]]:
    """Return what `probes.describe` says of the scheduler and of every worker, by what it is of."""
    with sent_by_value():
        scheduler = client.run_on_scheduler(probes.describe, PACKAGES)
        answers = ask_workers(client, probes.describe, lambda _: (PACKAGES,))
    return {"the scheduler": scheduler} | {f"worker {name}": one for name, one in answers.items()}


def judge_versions(
    here: Mapping[str, Any],
    there: Mapping[str, Mapping[str, Any]],
    findings: Findings,
    *,
    uploaded: bool,
) -> None:
    """Compare versions and code of this process with those of others.

    Parameters
    ----------
    here : mapping
        As `probes.describe` returns.
    there : mapping of name to mapping or exception
    findings : Findings
        Is added to.
    uploaded : bool
        Whether this package was sent there.
    """
    silent = [name for name, one in there.items() if not isinstance(one, Mapping)]
    if silent:
        findings.refusals.append(f"no answer from {some(silent)}; remove or restart what hangs")
    others = {name: one for name, one in there.items() if isinstance(one, Mapping)}
    python = here["versions"]["python"]
    for version, names in _by_version("python", others, str(python)).items():
        minor = python.rpartition(".")[0]
        line = f"Python is {python} here, {version} on {_who(names, others)}"
        if str(version).rpartition(".")[0] != minor:
            findings.refusals.append(f"{line}; use Python {minor} in all places")
    own = here["versions"]
    remedy = f"install {OURS}=={own[OURS]} there" + ("" if uploaded else ", or add --upload_code")
    for package in PACKAGES:
        for version, names in _by_version(package, others, own[package]).items():
            who = _who(names, others)
            if version is None:
                install = remedy if package == OURS else f"install {package}=={own[package]} there"
                findings.refusals.append(f"{package} is missing on {who}; {install}")
                continue
            line = f"{package} is {own[package]} here, {version} on {who}"
            if package in _SAME:
                install = remedy if package == OURS else "install the same version in all places"
                findings.refusals.append(f"{line}; {install}")
            else:
                findings.notes.append(f"{line}: digits or bytes may differ")
    if findings.refusals:
        return
    broken: dict[str, list[str]] = defaultdict(list)
    for name, one in others.items():
        if one["fault"]:
            broken[str(one["fault"])].append(name)
        elif one["code"] != here["code"]:
            broken[""].append(name)
    for fault, names in broken.items():
        who = _who(names, others)
        findings.refusals.append(
            f"{OURS} cannot be imported on {who} ({fault})"
            if fault
            else f"{OURS} {own[OURS]} has other code on {who} than here; {remedy}"
        )


def judge_workers(infos: Mapping[str, Mapping[str, Any]], needs: Needs, findings: Findings) -> None:
    """Look at memory, threads and nannies of workers.

    Parameters
    ----------
    infos : mapping of address to mapping
        As `Client.scheduler_info` has them.
    needs : Needs
    findings : Findings
        Is added to.
    """
    limits = {
        address: info["memory_limit"] // max(info["nthreads"], 1)
        for address, info in infos.items()
        if info["memory_limit"]
    }
    if len(limits) == len(infos) and limits and max(limits.values()) < needs.least_bytes:
        findings.refusals.append(
            f"no worker has memory for a case: the smallest takes {size(needs.least_bytes)}, a "
            f"thread of a worker may use {size(max(limits.values()))}; start workers with more "
            "--memory-limit, or fewer --nthreads"
        )
    small = [address for address, limit in limits.items() if limit < needs.most_bytes]
    if small and not findings.refusals:
        findings.notes.append(
            f"a thread of {count(len(small), 'worker')} may use "
            f"{size(min(limits[address] for address in small))}, the largest case takes "
            f"{size(needs.most_bytes)}: {some(small)}"
        )
    alone = [address for address, info in infos.items() if not info.get("nanny")]
    if alone and needs.timeout is not None:
        findings.notes.append(
            f"{count(len(alone), 'worker')} without a nanny: a case that passes --timeout keeps "
            f"its thread busy there ({some(alone)})"
        )


def judge_disks(
    looks: Mapping[str, Mapping[str, str] | BaseException], needs: Needs, findings: Findings
) -> None:
    """Look at whether workers see, and write to, the disks of this process.

    Parameters
    ----------
    looks : mapping of worker to mapping
        As `probes.look_around` returns; `seen` says whether this process saw what it wrote.
    needs : Needs
    findings : Findings
        Is added to.
    """
    output: dict[str, list[str]] = defaultdict(list)
    scans: dict[str, list[str]] = defaultdict(list)
    for name, look in looks.items():
        if isinstance(look, BaseException):
            output[f"no answer: {look}"].append(name)
            continue
        if look["output_fault"]:
            output[look["output_fault"].lower()].append(name)
        elif not look["seen"]:
            output["another disk, at the same path"].append(name)
        if look["input_fault"]:
            scans[look["input_fault"].lower()].append(name)
    for fault, names in output.items():
        findings.refusals.append(
            f"{some(names)} cannot write to {needs.output_dir} as it is here ({fault}); the "
            "output must be on a disk that all workers share"
        )
    for fault, names in scans.items():
        findings.refusals.append(
            f"{some(names)} cannot read {needs.input_file} ({fault}); the scans must be on a "
            "disk that all workers share"
        )


def judge_settings(settings: Mapping[str, Any], findings: Findings) -> None:
    """Say how a scheduler would better have been started."""
    better = [name for name, suits in _WANTED.items() if not suits(settings[name])]
    if better:
        advice = " ".join(
            f"DASK_{name.upper().replace('.', '__').replace('-', '_')}={SETTINGS[name]}"
            for name in better
        )
        findings.notes.append(
            f"the scheduler works as it is; started with {advice} it holds one volume a worker"
        )


def _by_version(
    package: str, others: Mapping[str, Mapping[str, Any]], own: str | None
) -> dict[str | None, list[str]]:
    """Return who has another version of a package, by that version."""
    found: dict[str | None, list[str]] = defaultdict(list)
    for name, one in others.items():
        if one["versions"][package] != own:
            found[one["versions"][package]].append(name)
    return dict(found)


def _who(names: Iterable[str], others: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the scheduler and the hosts of workers in words."""
    hosts: dict[str, int] = defaultdict(int)
    words = []
    for name in names:
        if name.startswith("worker "):
            hosts[str(others[name]["host"])] += 1
        else:
            words.append(name)
    words += [f"{count(n, 'worker')} on {host}" for host, n in sorted(hosts.items())]
    return some(words)


# -- asking ----------------------------------------------------------------------------------------


def ask_workers(
    client: Client, function: Callable[..., Any], arguments: Callable[[int], Sequence[Any]]
) -> dict[str, Any]:
    """Return what a function returns on each worker, or what it raised, by the worker's address.

    Parameters
    ----------
    client : Client
    function : callable
    arguments : callable
        Returns the arguments for the n-th worker.
    """

    async def ask(number: int, worker: str) -> Any:
        try:
            answers = await asyncio.wait_for(
                client._run(function, *arguments(number), workers=[worker], on_error="return"),
                _ANSWER_SECONDS,
            )
        except TimeoutError:
            return TimeoutError(f"none within {_ANSWER_SECONDS:.0f} s")
        except Exception as error:  # whatever it is, it is that worker's
            return error
        return answers.get(worker, TimeoutError("it has gone"))

    async def ask_all(workers: Sequence[str]) -> list[Any]:
        return await asyncio.gather(*(ask(*one) for one in enumerate(workers)))

    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
    return dict(zip(workers, client.sync(ask_all, workers), strict=True))


def _looked_around(client: Client, needs: Needs) -> dict[str, Any]:
    own = uuid.uuid4().hex
    token = needs.output_dir / f".dask_slicer.preflight.{own[:8]}"

    def sibling(number: int) -> Path:
        return token.with_name(f"{token.name}.{number}")

    try:
        token.write_text(own, encoding="ascii")
        with sent_by_value():
            looks = ask_workers(
                client,
                probes.look_around,
                lambda number: (str(token), str(sibling(number)), needs.input_file),
            )
        for number, look in enumerate(looks.values()):
            if not isinstance(look, BaseException):
                look["seen"] = "yes" if look["token"] == own and sibling(number).exists() else ""
        return looks
    finally:
        for path in token.parent.glob(f"{token.name}*"):
            path.unlink(missing_ok=True)


def _settings(client: Client) -> dict[str, Any]:
    with sent_by_value():
        found: dict[str, Any] = client.run_on_scheduler(probes.scheduler_settings, tuple(_WANTED))
    return found


@contextmanager
def sent_by_value() -> Iterator[None]:
    """Send functions of `probes` whole: where they go, this package may be missing."""
    import cloudpickle

    module = sys.modules[probes.__name__]
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)
