"""--images and --labels: cases are what the wildcards of patterns match."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.discovery import find_cases
from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch


def read(
    root: Path, files: list[str], images: list[str], labels: str | None = None, **options: object
) -> LayoutMatch:
    for name in files:
        (root / f"{name}.nii.gz").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.nii.gz").touch()
    return find_cases(root, InputOptions(images=tuple(images), labels=labels, **options))


READ = {
    "two folders": (
        ["ana/x", "ana/y", "expert/x", "expert/y"],
        (["ana/*.nii.gz"], "expert/*.nii.gz"),
        {"x": ["ana/x", "expert/x"], "y": ["ana/y", "expert/y"]},
    ),
    "without suffixes": (
        ["ana/x", "expert/x"], (["ana/*"], "expert/*"), {"x": ["ana/x", "expert/x"]},
    ),
    "words around the number": (
        ["i/scan_01_a", "i/scan_02_a", "l/01-b", "l/02-b"],
        (["i/scan_*_a.nii.gz"], "l/*-b.nii.gz"),
        {"01": ["i/scan_01_a", "l/01-b"], "02": ["i/scan_02_a", "l/02-b"]},
    ),
    "a folder a case": (
        ["p1/mr", "p1/expert", "p2/mr", "p2/expert"],
        (["*/mr.nii.gz"], "*/expert.nii.gz"),
        {"p1": ["p1/mr", "p1/expert"], "p2": ["p2/mr", "p2/expert"]},
    ),
    "sites with equal numbers": (
        ["siteA/1_i", "siteB/1_i", "siteA/1_l", "siteB/1_l"],
        (["*/*_i.nii.gz"], "*/*_l.nii.gz"),
        {"siteA_1": ["siteA/1_i", "siteA/1_l"], "siteB_1": ["siteB/1_i", "siteB/1_l"]},
    ),
    "folders that differ": (
        ["part1/a", "part2/b", "mask/a", "mask/b"],
        (["part*/*.nii.gz"], "mask/*.nii.gz"),
        {"a": ["part1/a", "mask/a"], "b": ["part2/b", "mask/b"]},
    ),
    "any depth": (
        ["p1/s1/anat/p1_T1", "derived/p1/p1_T1_x", "p2/anat/p2_T1", "derived/p2/p2_T1_x"],
        (["p*/**/*_T1.nii.gz"], "derived/**/*_T1_x.nii.gz"),
        {
            "p1": ["p1/s1/anat/p1_T1", "derived/p1/p1_T1_x"],
            "p2": ["p2/anat/p2_T1", "derived/p2/p2_T1_x"],
        },
    ),
    "modalities": (
        ["t2/a", "t1/a", "gt/a"],
        (["t2/*", "t1/*"], "gt/*"),
        {"a": ["t2/a", "t1/a", "gt/a"]},
    ),
    "labels that images match, too": (
        ["v1", "v1_x", "v2", "v2_x"],
        (["*.nii.gz"], "*_x.nii.gz"),
        {"v1": ["v1", "v1_x"], "v2": ["v2", "v2_x"]},
    ),
    "questions and classes": (
        ["a1b", "a2b", "a1l", "axb"],
        (["a?b.nii.gz"], "a[0-9]l.nii.gz"),
        {"1": ["a1b", "a1l"], "2": ["a2b"], "x": ["axb"]},
    ),
    "no labels": (["anna", "bert"], (["*.nii.gz"], None), {"anna": ["anna"], "bert": ["bert"]}),
    "one file": (["scan", "other"], (["scan.nii.gz"], None), {"scan": ["scan"]}),
    "names that look alike": (
        [unicodedata.normalize("NFD", "i/Müller"), "l/müller"],
        (["i/*"], "l/*"),
        {
            unicodedata.normalize("NFC", "Müller"): [
                unicodedata.normalize("NFD", "i/Müller"),
                "l/müller",
            ]
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "patterns", "cases"), READ.values(), ids=READ)
def test_cases_are_what_the_wildcards_match(tmp_path, files, patterns, cases) -> None:
    match = read(tmp_path, files, *patterns)
    assert not match.problems
    assert all(case.stated for case in match.cases)
    assert {
        case.case_id: [
            Path(path).relative_to(tmp_path).as_posix().removesuffix(".nii.gz")
            for path in case.files
        ]
        for case in match.cases
    } == cases
    used = {path for paths in cases.values() for path in paths}
    assert set(match.left_out) == {f"{name}.nii.gz" for name in files if name not in used}


REFUSED = {
    "nothing": (["a"], (["b*"], None), "--images 'b*' matches no volume in"),
    "no label": (["a"], (["a*"], "c/*"), "--labels 'c/*' matches no volume in"),
    "all are both": (["a", "b"], (["*"], "*"), "2 files matched by --images '*' and --labels '*'"),
    "some are both": (
        ["a1", "b1", "b2"], (["?1.nii.gz"], "b?.nii.gz"), "1 file matched by --images",
    ),
    "two modalities": (["a", "b"], (["*", "a*"], None), "1 file matched by --images '*'"),
    "not unique": (["x/a", "y/a"], (["**/a.nii.gz"], "z"), "--labels 'z' matches no volume"),
    "no key": (
        ["i/anna", "l/bert"], (["i/*"], "l/*"), "no key that is unique and the same in all patterns"
    ),
    "other zeros": (["i/1", "l/01"], (["i/*"], "l/*"), "no key that is unique and the same"),
    "other wildcards": (
        ["i/1_2", "l/1"], (["i/*_*.nii.gz"], "l/*.nii.gz"), "no key that is unique and the same",
    ),
    "one label of all": (["i/1", "i/2", "l"], (["i/*"], "l.nii.gz"), "no key that is unique"),
}  # fmt: skip


@pytest.mark.parametrize(("files", "patterns", "words"), REFUSED.values(), ids=REFUSED)
def test_patterns_that_are_not_clear_are_refused(tmp_path, files, patterns, words) -> None:
    with pytest.raises(DatasetError, match=re.escape(words)):
        read(tmp_path, files, *patterns)


def test_a_label_without_an_image_is_left_out_and_an_image_keeps_its_place(tmp_path) -> None:
    match = read(tmp_path, ["t1/a", "t1/b", "t2/a", "l/a", "l/c"], ["t1/*", "t2/*"], "l/*")
    assert match.notes == ["1 label without an image: l/c.nii.gz"]
    a, b = match.cases
    assert a.label == str(tmp_path / "l/a.nii.gz")
    assert b.images[0] == str(tmp_path / "t1/b.nii.gz")
    assert not Path(b.images[1]).exists()
    assert b.label is None
    assert match.channel_names == ("t1", "t2")


def test_a_missing_image_is_spelled_as_the_others_of_its_case(tmp_path) -> None:
    match = read(tmp_path, ["A_CT", "B_CT", "A_PT"], ["*_CT.nii.gz", "*_PT.nii.gz"])
    assert match.cases[1].images[1] == str(tmp_path / "B_PT.nii.gz")


def test_patterns_may_be_absolute_or_written_with_backslashes(tmp_path) -> None:
    match = read(tmp_path, ["i/a", "l/a"], [f"{tmp_path}/i/*.nii.gz"], "./l\\*.nii.gz")
    (case,) = match.cases
    assert case.label == str(tmp_path / "l/a.nii.gz")


def test_modalities_choose_among_patterns(tmp_path) -> None:
    match = read(tmp_path, ["t1/a", "t2/a"], ["t1/*", "t2/*"], modalities=("t2",))
    (case,) = match.cases
    assert case.images == (str(tmp_path / "t2/a.nii.gz"),)
    assert match.channel_names == ("t2",)
    assert match.left_out["t1/a.nii.gz"] == "not in --modalities"
