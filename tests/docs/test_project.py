"""Files of the project: sessions are run everywhere, types are shipped, settings are parsed."""

from __future__ import annotations

import ast
import doctest
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import yaml
from repository import ROOT

import dask_slicer
from dask_slicer.config.schema import RunConfig
from dask_slicer.core.slices import slice_volume
from dask_slicer.core.volume import Volume, Voxels
from dask_slicer.inputs.layouts.base import InputOptions
from dask_slicer.inputs.phantom import write_dataset
from dask_slicer.inputs.tree import FileTree

_SESSIONS = [
    node.name
    for node in ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef)
    and any("session" in ast.unparse(decorator) for decorator in node.decorator_list)
]
_GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
_HPC = (ROOT / "docs" / "hpc.md").read_text(encoding="utf-8")
_DASK = ("dask", "dist")
_EXAMPLE = re.compile(
    r"^## Add an? (\w+)\n.*?```(?:python|yaml)\n(.*?)```", re.DOTALL | re.MULTILINE
)
_EXAMPLES = dict(_EXAMPLE.findall(_GUIDE))
_WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_noxfile_has_sessions() -> None:
    assert {"lint", "types", "tests", "slow", "docs", "oldest", "newest"} <= set(_SESSIONS)


@pytest.mark.parametrize("session", _SESSIONS)
def test_every_session_is_in_the_guide_and_in_both_kinds_of_ci(session: str) -> None:
    assert f"`nox -s {session}`" in _GUIDE
    workflows = "\n".join(path.read_text(encoding="utf-8") for path in _WORKFLOWS)
    assert re.search(rf"\b{session}\b", workflows)
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    # The default tests are the README's second command there.
    assert session == "tests" or re.search(rf"[( ]{session}[) \n]", ci)


def test_workflows_may_only_read_and_run_what_every_python_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = {
        line.rsplit(" ", 1)[1] for line in project["classifiers"] if re.search(r":: 3\.\d+$", line)
    }
    tests = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    assert tests["permissions"] == {}
    assert versions <= set(tests["jobs"]["tests"]["strategy"]["matrix"]["python"])


def test_the_package_says_that_it_has_types() -> None:
    (package,) = dask_slicer.__path__
    assert Path(package, "py.typed").read_bytes() == b""


def test_the_oldest_dask_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = [line.partition(">=")[2] for line in project["dependencies"] if line[:4] in _DASK]
    assert len(set(bounds)) == 1
    assert len(bounds) == 2
    environment = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert f"dask-core>={bounds[0]}\n  - distributed>={bounds[0]}\n" in environment
    assert f"`distributed` must be {bounds[0]} or later" in _HPC


def test_the_example_of_a_layout_finds_cases(tmp_path: Path) -> None:
    layout = ModuleType("lits")
    exec(_EXAMPLES["layout"], layout.__dict__)
    nothing = layout.match(FileTree(tmp_path, []), InputOptions())
    assert nothing.cases == []
    assert nothing.miss
    tree = FileTree(tmp_path, ["volume-0.nii", "segmentation-0.nii", "volume-1.nii"])
    result = layout.match(tree, InputOptions())
    assert [(case.case_id, bool(case.label)) for case in result.cases] == [
        ("lits_0", True),
        ("lits_1", False),
    ]


def test_the_example_of_a_step_does_what_its_example_shows() -> None:
    step = ModuleType("step")
    exec(_EXAMPLES["step"], step.__dict__)
    assert doctest.testmod(step) == (0, 2)


def test_the_example_of_a_format_writes_slices(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(_EXAMPLES["format"], names)
    image = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    stack = slice_volume(Volume(image=(Voxels(stored=image),), label=None, affine=np.eye(4)))
    written = names["write_arrays"](stack, RunConfig(input_dir="a", output_dir="b"), tmp_path)
    assert [one.slice_index for one in written] == [0, 1]
    assert np.load(tmp_path / "0001.npy").shape == (1, 3, 4)


def test_the_example_of_a_recipe_makes_pairs_of_files(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(_EXAMPLES["recipe"], encoding="utf-8")
    scans, out = tmp_path / "scans", tmp_path / "out"
    write_dataset(scans, n_cases=2, shape=(16, 12, 6))
    config = {"input_dir": scans, "output_dir": out, "num_workers": 0}
    dask_slicer.run(tmp_path / "recipe.yaml", progress=False, **config)
    images, masks = (
        {path.relative_to(out / kind): np.load(path) for path in (out / kind).rglob("*.npy")}
        for kind in ("images", "masks")
    )
    assert images
    assert images.keys() == masks.keys()
    assert all(image.shape == masks[name].shape for name, image in images.items())
    assert {array.min() for array in images.values()} >= {0.0}


def test_the_example_of_a_reader_turns_lps_into_ras(tmp_path: Path) -> None:
    reader = ModuleType("reader")
    exec(_EXAMPLES["reader"], reader.__dict__)
    path = str(tmp_path / "scan.gipl")
    image = sitk.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(4, 3, 2))
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetOrigin((10.0, 20.0, 30.0))
    sitk.WriteImage(image, path)
    header = reader.read_header(path)
    (stored,) = reader.read_voxels([header])
    assert stored.shape == header.shape == (2, 3, 4)
    assert stored.dtype == header.dtype
    assert header.affine.tolist() == [[-1, 0, 0, -10], [0, -2, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]]


def test_programs_that_tests_start_elsewhere_use_the_checkout(tmp_path) -> None:
    where = [sys.executable, "-c", "import dask_slicer; print(dask_slicer.__file__)"]
    shown = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert Path(shown.strip()) == ROOT / "dask_slicer" / "__init__.py"
