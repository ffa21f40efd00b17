"""Numbers, names and quoted text as messages show them."""

from __future__ import annotations

import pytest

from dask_slicer.utils.formatting import (
    did_you_mean,
    escape_line,
    first_few,
    format_bytes,
    format_shape,
    format_time,
    plural,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (plural(1, "case"), "1 case"),
        (plural(2, "case"), "2 cases"),
        (format_bytes(512), "512 bytes"),
        (format_bytes(153_400_000), "153.4 MB"),
        (format_time(2.51), "2.5 s"),
        (format_time(7384), "2 h 3 min"),
        (format_shape((512, 512, 40)), "512×512×40"),
        (format_shape((5.0, 0.5703125, 0.5703125)), "5×0.57×0.57"),
        (first_few(["a", "b", "c", "d"]), "a, b, c and 1 more"),
        (escape_line(f"a.nii:\n{chr(7)} bad"), "a.nii: \\x07 bad"),
    ],
)
def test_values_have_units_and_lists_an_end(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.parametrize(
    ("name", "known", "suggestion"),
    [
        ("windowsize", ["window_size", "plane"], "; did you mean window_size?"),
        ("x", ["window_size", "plane"], ""),
        ("nonsense", ["nnunet", "one_folder"], ""),
        ("brain", ["abdomen_1", "mr_brain_1", "mr_brain_2"], "; did you mean mr_brain_1?"),
    ],
)
def test_the_nearest_known_name_is_suggested(name: str, known: list[str], suggestion: str) -> None:
    assert did_you_mean(name, known) == suggestion
