"""What tests share: tiny datasets built case by case, and the command line in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import faults
import nibabel as nib
import numpy as np
import pytest
from affines import oblique
from click.testing import CliRunner, Result
from hypothesis import settings
from repository import ROOT
from slurm import slurm  # noqa: F401, a fixture

import dask_slicer
from dask_slicer.cli.main import main
from dask_slicer.execution import resume
from dask_slicer.inputs.cache_files import CACHE_DIR
from dask_slicer.planning.plan import RunPlan

# Programs that tests start in other folders use the checkout too, not a package that is installed.
_PATH = [str(ROOT), *faults.PATH, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(_PATH))
if ROOT not in Path(dask_slicer.__file__).parents:
    raise pytest.UsageError(f"these tests are of {ROOT}, but {dask_slicer.__file__} is imported")

# A program of its own, which needs atheris; and what Python imports when a process starts.
collect_ignore = ["inputs/fuzz_volume.py", "helpers/startup/sitecustomize.py"]
# The same examples each time: a change is not refused for a fault that is older than the change. To
# look for such faults: `pytest --hypothesis-profile=random`.
settings.register_profile("random", deadline=None)
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")
# Real scans to try on, a folder each with image.nii.gz and label.nii.gz; not part of the project.
_SCANS = Path(os.environ.get("DASK_SLICER_SCANS", ROOT.parent / "shared" / "data"))


@dataclass
class DatasetBuilder:
    """Writes cases in nnU-Net's raw layout into a folder."""

    root: Path

    def image_path(self, case_id: str, channel: int = 0) -> Path:
        return self.root / "imagesTr" / f"{case_id}_{channel:04d}.nii.gz"

    def label_path(self, case_id: str) -> Path:
        return self.root / "labelsTr" / f"{case_id}.nii.gz"

    def add(
        self,
        case_id: str,
        image: np.ndarray | None = None,
        label: np.ndarray | bool | None = True,
        affine: np.ndarray | None = None,
        *,
        label_affine: np.ndarray | None = None,
        channel: int = 0,
    ) -> None:
        """Write one case; without arrays, random ones of 8 × 9 × 10; label=None: no label."""
        rng = np.random.default_rng(sum(case_id.encode()))
        if image is None:
            image = rng.integers(-1000, 1000, (8, 9, 10)).astype(np.int16)
        affine = oblique() if affine is None else affine
        self.write(self.image_path(case_id, channel), image, affine)
        if label is True:
            label = (rng.random(image.shape) > 0.7).astype(np.uint8)
        if label is not None and label is not False:
            label_affine = affine if label_affine is None else label_affine
            self.write(self.label_path(case_id), label, label_affine)

    @staticmethod
    def write(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        dtype = np.int32 if array.dtype == np.int64 else array.dtype
        nib.save(nib.Nifti1Image(array.astype(dtype), affine), path)


@dataclass
class Scheduler:
    """A scheduler with two workers on loopback, started by hand."""

    address: str
    file: Path
    process: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]]


def _started(command: Sequence[object], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | environment,
    )


@contextmanager
def _started_scheduler(
    folder: Path,
    *,
    n_workers: int,
    memory_limit: str = "auto",
    options: Sequence[object] = (),
    everywhere: Mapping[str, str] | None = None,
    host_of_workers: Sequence[object] = (),
    **environment: str,
) -> Iterator[Scheduler]:
    """Start a scheduler and workers.

    Parameters
    ----------
    folder : Path
    n_workers : int
    memory_limit : str
        Of a worker.
    options : sequence
        For scheduler and workers, such as files of TLS.
    everywhere : mapping
        Environment of scheduler and workers.
    host_of_workers : sequence
        What the workers' commands begin with, to run elsewhere.
    **environment : str
        Environment of workers alone.
    """
    everywhere = dict(everywhere or {})
    file = folder / "scheduler.json"
    host = "tls://127.0.0.1" if options else "127.0.0.1"
    scheduler = (
        *(sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", host, "--port", 0),
        *("--dashboard-address", "127.0.0.1:0", "--no-dashboard", "--scheduler-file", file),
    )
    worker = (
        *(*host_of_workers, sys.executable, "-m", "distributed.cli.dask_worker"),
        *("--scheduler-file", file, "--host", host, "--nthreads", 1, "--no-dashboard"),
        *("--dashboard-address", "127.0.0.1:0", "--memory-limit", memory_limit),
    )
    processes = [_started([*scheduler, *options], everywhere)]
    try:
        deadline = time.monotonic() + 60
        while not (file.exists() and file.stat().st_size):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        processes += [
            _started(
                [*worker, "--local-directory", folder / f"worker_{n}", *options],
                everywhere | environment,
            )
            for n in range(n_workers)
        ]
        yield Scheduler(json.loads(file.read_text())["address"], file, processes[0], processes[1:])
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="session")
def started_scheduler():
    """Return what starts a scheduler and its workers by hand, and ends them."""
    return _started_scheduler


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetBuilder:
    """Return an empty dataset to add cases to."""
    return DatasetBuilder(tmp_path / "scans")


@pytest.fixture
def real_scans() -> Path:
    """Return the folder of real scans, or skip."""
    if not _SCANS.is_dir():
        pytest.skip(f"no real scans at {_SCANS}; set DASK_SLICER_SCANS to a folder of them")
    return _SCANS


@pytest.fixture
def invoke() -> Callable[..., Result]:
    """Return a function that calls `dask-slicer` with arguments, in this process.

    The result has `exit_code`, `stdout`, `stderr`, `output` (both).
    """

    def call(*arguments: object) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function after which plans have names of channels and of label values."""
    make_plan = resume.make_plan

    def call(channels: tuple[str, ...] = (), labels: Mapping[int, str] | None = None) -> None:
        def plan(*arguments: object, **options: object) -> RunPlan:
            unnamed = make_plan(*arguments, **options)
            return replace(unnamed, channel_names=channels, label_names=dict(labels or {}))

        monkeypatch.setattr(resume, "make_plan", plan)

    return call


@pytest.fixture
def slice_dataset(dataset: DatasetBuilder, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that slices `dataset` with settings in this process, returns the output."""

    def call(*, output: str = "slices", **settings: object) -> Path:
        config = dask_slicer.RunConfig(
            input_dir=dataset.root, output_dir=tmp_path / output, num_workers=0, **settings
        )
        dask_slicer.run(config)
        return tmp_path / output

    return call


@pytest.fixture(scope="session", autouse=True)
def _cache_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tests, and the programs that they start, away from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_DIR, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture(autouse=True)
def _at_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands print the same, wherever the tests are run from."""
    for name in ("SSH_CONNECTION", "JUPYTERHUB_SERVICE_PREFIX"):
        monkeypatch.delenv(name, raising=False)
