"""What is looked at on somebody's workers before the first case is sent to them.

Better a line within seconds than a thousand failed cases: other versions, a package that is
missing, a disk that is not shared, too little memory.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask_slicer import probes
from dask_slicer.asking import (
    SCHEDULER,
    ask_scheduler,
    run_on_scheduler,
    run_on_workers,
    versions,
)
from dask_slicer.findings import (
    ALIKE,
    SAME,
    WANTED,
    Findings,
    Needs,
    judge_code,
    judge_disks,
    judge_settings,
    judge_versions,
    judge_workers,
)
from dask_slicer.sending import send_package

if TYPE_CHECKING:
    from distributed import Client


def check(
    client: Client, needs: Needs, note: Callable[[str], None], *, module: str, upload: bool
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
    findings = Findings()
    judge_versions(_own_versions(), versions(client, (*SAME, *ALIKE)), findings)
    findings.raise_refusals()  # code of another Python must not be sent
    found = _described(client, module)
    if upload:
        send_package(client, found, note, module=module)
        found = _described(client, module)
    judge_code(probes.describe(module), found, findings, uploaded=upload)
    identity = ask_scheduler(client, client.scheduler.identity, n_workers=-1)  # type: ignore[union-attr]
    judge_workers(identity["workers"], needs, findings)
    findings.raise_refusals()
    judge_disks(_looked_around(client, needs), needs, findings)
    judge_settings(run_on_scheduler(client, probes.settings_there, tuple(WANTED)), findings)
    findings.raise_refusals()
    for text in findings.notes:
        note(text)


def _own_versions() -> dict[str, str]:
    return {"python": sys.version.split()[0]} | {name: version(name) for name in (*SAME, *ALIKE)}


def _described(client: Client, module: str) -> dict[str, Any]:
    scheduler = run_on_scheduler(client, probes.describe, module)
    return {SCHEDULER: scheduler} | run_on_workers(client, probes.describe, module)


def _looked_around(client: Client, needs: Needs) -> dict[str, Any]:
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
