"""Sending this package to a scheduler and workers that lack it."""

from __future__ import annotations

import asyncio
import importlib.resources
import logging
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask_slicer.cluster import probes
from dask_slicer.cluster.rpc import run_on_scheduler, run_on_workers
from dask_slicer.errors import SchedulerError
from dask_slicer.utils.formatting import escape_line, plural

if TYPE_CHECKING:
    from distributed import Client


OURS = "dask_slicer"
_PLUGIN = "dask-slicer-code"
_SEND_SECONDS = 60.0

_LOG = logging.getLogger(__name__)


def send_package(
    client: Client, descriptions: Mapping[str, Any], note: Callable[[str], None], *, module: str
) -> None:
    """Send this package to a scheduler and its workers, also those that start later.

    Raises a SchedulerError if tasks run there with other code (see `probes.describe`).
    """
    own = probes.describe(module)
    answers = [answer for answer in descriptions.values() if isinstance(answer, Mapping)]
    if any(answer["process"] == own["process"] for answer in answers):
        note("--upload_code has no effect: the scheduler or a worker runs in this same process")
        return
    if any(answer["code"] != own["code"] for answer in answers):
        if n_tasks := run_on_scheduler(client, probes.n_tasks):
            raise SchedulerError(
                f"--upload_code would replace {OURS} while the scheduler has "
                f"{plural(n_tasks, 'task')}; wait until it has none, or use another scheduler"
            )
        run_on_scheduler(client, probes.forget_package, module, own["code"])
        run_on_workers(client, probes.forget_package, module, own["code"])
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*overwriting.*")  # an earlier upload
        path = Path(folder, f"{OURS}_code_{own['code']}.zip")
        write_package(path)
        try:
            client.sync(_register, client, path, callback_timeout=_SEND_SECONDS)
        except TimeoutError:
            raise SchedulerError(
                f"--upload_code: {OURS} has not arrived at all workers within "
                f"{_SEND_SECONDS:.0f} s; check whether one of them hangs"
            ) from None
        except Exception as error:  # whatever the other side raises
            raise SchedulerError(
                f"--upload_code: {OURS} cannot be sent ({escape_line(str(error))})"
            ) from error
    _LOG.info("sent %s to the scheduler and its workers", OURS)


async def _register(client: Client, path: Path) -> None:
    from distributed.diagnostics.plugin import SchedulerUploadFile, UploadFile

    # One after the other: a worker that starts meanwhile must find the package on the scheduler.
    plugin: Any
    for plugin, name in (
        (SchedulerUploadFile(str(path)), f"{_PLUGIN}-scheduler"),
        (UploadFile(str(path)), _PLUGIN),
    ):
        registered: Any = client.register_plugin(plugin, name=name)
        await asyncio.wait_for(registered, _SEND_SECONDS)


def write_package(path: Path) -> None:
    """Write this package, with its data and version, into a zip file that Python imports from."""
    release = version(OURS)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in probes.package_files(importlib.resources.files(OURS)).items():
            archive.writestr(f"{OURS}/{name}", file.read_bytes())
        archive.writestr(
            f"{OURS}-{release}.dist-info/METADATA",
            f"Metadata-Version: 2.1\nName: {OURS}\nVersion: {release}\n",
        )
