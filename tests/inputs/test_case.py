"""One function each knows what a file name says of its case, and which ids can be file names."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dask_slicer.inputs.case import (
    Case,
    case_id_problem,
    case_id_problems,
    is_volume_name,
    split_channel,
    stem_of,
)


@pytest.mark.parametrize(
    ("name", "stem", "channel"),
    [
        ("liver.nii.gz", "liver", None),
        ("liver.nii", "liver", None),
        ("liver.v2.nii.gz", "liver.v2", None),
        ("LIVER.NII.GZ", "LIVER", None),
        ("liver.nii.nii.gz", "liver.nii", None),
        ("liver_007_0000.nii.gz", "liver_007_0000", ("liver_007", 0)),
        ("liver_0012.nii", "liver_0012", ("liver", 12)),
        ("a_0000_0001.nii.gz", "a_0000_0001", ("a_0000", 1)),
        ("liver_00000.nii.gz", "liver_00000", None),
        ("liver_000.nii.gz", "liver_000", None),
        ("liver-0000.nii.gz", "liver-0000", None),
        ("_0000.nii.gz", "_0000", None),
    ],
)
def test_the_name_of_a_volume_says_its_stem_and_channel(name, stem, channel) -> None:
    assert is_volume_name(name)
    assert stem_of(name) == stem
    assert split_channel(name) == channel


@pytest.mark.parametrize(
    "name",
    [
        "liver.gz",
        "liver.nii.gz.part",
        "liver.img",
        "liver.raw",
        "nii",
        "._liver.nii.gz",
        ".nii",
        ".hidden.nii",
    ],
)
def test_other_files_and_hidden_ones_are_no_volumes(name: str) -> None:
    assert not is_volume_name(name)


@pytest.mark.parametrize(
    "case_id",
    [
        "liver_007",
        "sub-01_ses-1_T1w",
        "a b",
        "é",
        "肝臓",
        "x.y",
        "console",
        "com10",
        "a" * 200,
        "-x",
    ],
)
def test_a_plain_file_name_is_a_case_id(case_id: str) -> None:
    assert case_id_problem(case_id) is None


@pytest.mark.parametrize(
    ("case_id", "reason"),
    [
        ("", "it is empty"),
        ("  ", "it is empty"),
        ("../x", "it holds '/'"),
        ("a/b", "it holds '/'"),
        ("/etc/passwd", "it holds '/'"),
        ("..\\x", "it holds '\\\\'"),
        ("a:b", "it holds ':'"),
        ("C:x", "it holds ':'"),
        ("a*", "it holds '*'"),
        ("a?", "it holds '?'"),
        ('a"', "it holds '\"'"),
        ("a|b", "it holds '|'"),
        ("a\0b", "it holds '\\x00'"),
        ("a\nb", "it holds '\\n'"),
        ("..", "dot or a space"),
        (".", "dot or a space"),
        (".a", "dot or a space"),
        ("a.", "dot or a space"),
        ("a ", "dot or a space"),
        ("CON", "Windows reserves it for a device"),
        ("nul.1", "Windows reserves it for a device"),
        ("Com1", "Windows reserves it for a device"),
        ("a" * 201, "longer than 200 bytes"),
        ("é" * 101, "longer than 200 bytes"),
        ("a\u202eb", "cannot be printed"),
        ("a\udce9", "cannot be printed"),
    ],
)
def test_an_id_that_is_no_plain_file_name_is_refused_with_the_reason(case_id, reason) -> None:
    problem = case_id_problem(case_id)
    assert problem is not None
    assert reason in problem
    assert problem.isprintable()
    assert len(problem) < 300
    assert case_id_problems([case_id, "sound"]) == [problem]


@pytest.mark.parametrize(
    ("case_ids", "named"),
    [
        (["a", "b"], None),
        (["a", "a"], "'a' (2 times)"),
        (["a", "A", "a"], "'a' (2 times), 'A'"),
        (
            [*"abcdefghijkl"] * 2,
            ", ".join(f"'{c}' (2 times)" for c in "abcdefghij") + " and 2 more",
        ),
        (["straße", "STRASSE"], "'straße', 'STRASSE'"),
        # Written apart and as one character: one file on macOS.
        (["e\u0301", "\u00e9"], "'e\u0301', '\u00e9'"),
    ],
    ids=["different", "twice", "case", "many", "sharp_s", "composed"],
)
def test_ids_that_are_one_file_on_some_system_are_refused(case_ids, named) -> None:
    rule = "case ids must be unique, also if upper and lower case count as equal: "
    assert case_id_problems(case_ids) == ([] if named is None else [rule + named])


def test_columns_are_not_in_the_key_of_cached_headers() -> None:
    case = Case(case_id="a", images=("a.nii",))
    with_columns = replace(case, columns={"age": "7"})
    assert repr(with_columns) == repr(case)
    assert with_columns != case
    assert hash(with_columns) == hash(case)
