"""The recipes for clusters work word for word, on a real Slurm, and give the bytes of one run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from slurm import Slurm

import dask_slicer

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(600)]

PAGE = Path(__file__).resolve().parents[1] / "docs" / "hpc.md"
OUTPUTS = ("slices", "slices_jobs", "slices_array")


def contents(output: Path) -> dict[str, bytes]:
    paths = [*output.rglob("*.npz"), output / "slices.csv", output / "splits.json"]
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in paths}


def test_every_recipe_gives_the_bytes_of_one_run(slurm: Slurm, tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    (script,) = re.findall(r"```bash\n(#!.*?)```", text, flags=re.DOTALL)
    assert "Save this as `slices.sh`" in text
    (tmp_path / "slices.sh").write_text(script)
    # Commands of this environment, as if it were activated.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for commands in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL):
        done = subprocess.run(
            ["bash", "-e", "-c", commands],
            cwd=tmp_path,
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        logs = "".join(log.read_text() for log in sorted(tmp_path.glob("slurm-*.out")))
        assert done.returncode == 0, (commands, done.stdout, done.stderr, logs)
    slurm.wait_until_empty()
    dask_slicer.run(
        dask_slicer.RunConfig(
            input_dir=tmp_path / "scans", output_dir=tmp_path / "here", num_workers=0
        )
    )
    expected = contents(tmp_path / "here")
    assert len(expected) > 2
    for output in OUTPUTS:
        assert contents(tmp_path / output) == expected, output
