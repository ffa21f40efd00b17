"""Upload of this package to a scheduler and its workers (`--upload_code`)."""

from __future__ import annotations

import importlib.resources
import logging
import tempfile
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask_slicer.cluster import probes
from dask_slicer.cluster.process_settings import IGNORED_WARNINGS
from dask_slicer.cluster.rpc import Note, run_everywhere, run_on_scheduler
from dask_slicer.errors import SchedulerError
from dask_slicer.utils.formatting import escape_line, plural

if TYPE_CHECKING:
    from distributed import Client


_LOG = logging.getLogger(__name__)

PACKAGE = "dask_slicer"
_SEND_SECONDS = 60.0


def send_package(
    client: Client, descriptions: Mapping[str, Any], note: Note, *, module: str
) -> None:
    """Send this package to a scheduler and its workers, also those that start later."""
    from distributed.diagnostics.plugin import SchedulerUploadFile, UploadFile

    own = probes.describe(module)
    answers = [answer for answer in descriptions.values() if isinstance(answer, Mapping)]
    if any(answer["process"] == own["process"] for answer in answers):
        note("--upload_code has no effect: the scheduler or a worker runs in this same process")
        return
    if any(answer["code"] != own["code"] for answer in answers):
        if n_tasks := run_on_scheduler(client, lambda dask_scheduler: len(dask_scheduler.tasks)):
            raise SchedulerError(
                f"--upload_code would replace {PACKAGE} while the scheduler has "
                f"{plural(n_tasks, 'task')}; wait until it has none, or use another scheduler"
            )
        run_everywhere(client, probes.forget_package, module, own["code"])
    # Of an earlier upload.
    ignored = IGNORED_WARNINGS.changed({".*overwriting.*": True})
    with tempfile.TemporaryDirectory() as folder, ignored:
        path = Path(folder, f"{PACKAGE}_code_{own['code']}.zip")
        write_package(path)
        # In this order: a worker that starts meanwhile must find the package on the scheduler.
        plugins = {
            "dask-slicer-code-scheduler": SchedulerUploadFile(str(path)),
            "dask-slicer-code": UploadFile(str(path)),
        }
        try:
            for name, plugin in plugins.items():
                client.sync(client.register_plugin, plugin, name, callback_timeout=_SEND_SECONDS)
        except TimeoutError:
            raise SchedulerError(
                f"--upload_code: {PACKAGE} has not arrived at all workers within "
                f"{_SEND_SECONDS:.0f} s; check whether one of them hangs"
            ) from None
        except Exception as error:  # whatever the other side raises
            raise SchedulerError(
                f"--upload_code: {PACKAGE} cannot be sent ({escape_line(str(error))})"
            ) from error
    _LOG.info("sent %s to the scheduler and its workers", PACKAGE)


def write_package(path: Path) -> None:
    """Write this package, with its data and version, into a zip file that Python imports from."""
    release = version(PACKAGE)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in probes.package_files(importlib.resources.files(PACKAGE)).items():
            archive.writestr(f"{PACKAGE}/{name}", file.read_bytes())
        archive.writestr(
            f"{PACKAGE}-{release}.dist-info/METADATA",
            f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {release}\n",
        )
