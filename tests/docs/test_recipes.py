"""Recipes: each has a page, a row in the table of all, a command and code that run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fences import code_of
from repository import ROOT

from dask_slicer.config.shipped import config_purposes, config_text, shipped_configs
from dask_slicer.inputs.phantom import write_dataset

_INDEX = ROOT / "docs" / "recipes.md"
_PAGES = sorted((ROOT / "docs" / "recipes").glob("*.md"))
_NAMES = [page.stem for page in _PAGES]
each_page = pytest.mark.parametrize("page", _PAGES, ids=_NAMES)


def _write_phantoms(folder: Path) -> None:
    write_dataset(folder, n_cases=6, shape=(24, 22, 9))


def _write_btcv(folder: Path) -> None:
    """Write phantoms, the same as BTCV names them, and lists as in TransUNet."""
    _write_phantoms(folder)
    for name, word in (("imagesTr", "img"), ("labelsTr", "label")):
        target = folder.parent / "RawData" / "Training" / word
        target.mkdir(parents=True)
        for number, path in enumerate(sorted((folder / name).iterdir()), start=1):
            shutil.copy(path, target / f"{word}{number:04d}.nii.gz")
    lists = folder.parent / "TransUNet" / "lists" / "lists_Synapse"
    lists.mkdir(parents=True)
    names = [f"case{n:04d}_slice{i:03d}" for n in (5, 2, 3, 6) for i in range(3)]
    (lists / "train.txt").write_text("\n".join([*names, ""]))
    (lists / "test_vol.txt").write_text("case0004\ncase0001\n")


def _write_acdc(folder: Path) -> None:
    """Write phantoms, the same as ACDC names them, two of each patient, and lists as in SSL4MIS."""
    _write_phantoms(folder)
    images, labels = (sorted((folder / name).iterdir()) for name in ("imagesTr", "labelsTr"))
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        patient = f"patient{number // 2 + 1:03d}"
        frame = f"{patient}_frame{(1, 12)[number % 2]:02d}"
        target = folder.parent / "training" / patient
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, target / f"{frame}.nii.gz")
        shutil.copy(label, target / f"{frame}_gt.nii.gz")
    lists = folder.parent / "SSL4MIS" / "data" / "ACDC"
    lists.mkdir(parents=True)
    for patient, split in enumerate(("val", "train", "test"), start=1):
        frames = [f"patient{patient:03d}_frame{n:02d}\n" for n in (1, 2)]
        (lists / f"{split}.list").write_text("".join(frames))


def _write_few_slices(folder: Path) -> None:
    """Write phantoms with organs of over 1,000 voxels in few slices, of 13.6 MB each."""
    write_dataset(folder, n_cases=3, shape=(160, 144, 5), varied=False)


def _write_brats(folder: Path) -> None:
    """Write folders of cases with the four modalities of BraTS."""
    source = folder.with_name("phantoms")
    _write_phantoms(source)
    for image in (source / "imagesTr").iterdir():
        case_id = image.name.removesuffix("_0000.nii.gz")
        (folder / case_id).mkdir(parents=True)
        for name in ("t1", "t1ce", "t2", "flair"):
            shutil.copy(image, folder / case_id / f"{case_id}_{name}.nii.gz")
        label = source / "labelsTr" / f"{case_id}.nii.gz"
        shutil.copy(label, folder / case_id / f"{case_id}_seg.nii.gz")


# By recipe, what writes the scans that its page calls `scans`, and other files that it names, where
# phantoms alone do not suit it.
_SCANS: dict[str, Callable[[Path], None]] = {
    "acdc_h5": _write_acdc,
    "brats_2d": _write_brats,
    "medsam": _write_few_slices,
    "transunet_synapse": _write_btcv,
}


def test_the_table_has_the_purpose_of_each_recipe_that_has_a_page() -> None:
    purposes = config_purposes()
    rows = re.findall(r"^\| \[.*", _INDEX.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert rows == [f"| [`{name}`](recipes/{name}.md) | {purposes[name]} |" for name in _NAMES]


def test_every_shipped_configuration_is_on_the_page_of_options_or_is_a_recipe() -> None:
    options = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(\w+)` \|", options, flags=re.MULTILINE)
    assert set(shipped_configs()) == {*named, *_NAMES}


def test_a_recipe_has_at_most_40_lines() -> None:
    for name in _NAMES:
        assert config_text(shipped_configs()[name]).count("\n") <= 40, name


@each_page
def test_a_page_has_the_command_of_its_recipe_and_code_that_loads_the_slices(page: Path) -> None:
    assert page.read_text(encoding="utf-8").startswith(f"# {page.stem}\n")
    commands = "".join(code_of(page, "sh"))
    assert f"dask-slicer run --config {page.stem} " in commands
    assert code_of(page, "python")


@pytest.mark.slow
@each_page
def test_the_commands_and_the_code_of_a_page_run(tmp_path: Path, page: Path) -> None:
    commands, code = ("\n".join(code_of(page, language)) for language in ("sh", "python"))
    if "import torch" in code or "from torch" in code:
        pytest.importorskip("torch")
    _SCANS.get(page.stem, _write_phantoms)(tmp_path / "scans")
    # The programs of this environment, whether it is activated or not.
    commands = commands.replace("dask-slicer ", f"{sys.executable} -m dask_slicer ")
    commands = commands.replace("python -c ", f"{sys.executable} -c ")
    subprocess.run(["bash", "-e", "-c", commands], cwd=tmp_path, check=True)
    (tmp_path / "page.py").write_text(code, encoding="utf-8")
    subprocess.run([sys.executable, "page.py"], cwd=tmp_path, check=True)
