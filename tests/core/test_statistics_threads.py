"""Statistics are the same to the last digit whatever the number of threads a library may use."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from dask_slicer.core.statistics import statistics
from dask_slicer.core.volume import Voxels

_PROGRAM = """
import numpy as np
from dask_slicer.core.statistics import statistics
from dask_slicer.core.volume import Voxels
rng = np.random.default_rng(0)
for _ in range(30):
    print(statistics(Voxels(stored=rng.normal(3, 2, 100_000).astype(np.float32))))
    print(statistics(Voxels(stored=rng.integers(-30_000, 30_000, 200_000).astype(np.int16))))
"""


def _printed(n_threads: int) -> str:
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, str(n_threads))
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM], env=environment, check=True, capture_output=True,
        text=True,
    ).stdout  # fmt: skip


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one CPU: libraries use one thread anyway")
def test_statistics_do_not_depend_on_the_number_of_threads() -> None:
    assert _printed(1) == _printed(os.cpu_count() or 2)


def test_statistics_do_not_depend_on_how_the_volume_lies_in_memory() -> None:
    stored = np.random.default_rng(1).normal(3, 2, (40, 50, 60)).astype(np.float32)
    assert statistics(Voxels(stored=stored)) == statistics(Voxels(stored=stored[::-1, :, ::-1]))
