"""Names of channels and labels in pictures and in the report."""

from __future__ import annotations

import numpy as np
import pytest
from report_page import facts_of, page_of, text_of

import dask_slicer
from dask_slicer.output.layout import SUMMARY

LABEL = np.random.default_rng(0).choice([0, 1, 4], (8, 9, 10)).astype(np.uint8)


@pytest.fixture(params=["npz", "zarr"])
def output(request, dataset, slice_dataset, named):
    """Return an output of two channels, with names, of which that of label 4 is missing."""
    for channel in (0, 1):
        dataset.add("a", label=None if channel else LABEL, channel=channel)
    named(("T1w", "FLAIR <b>"), {1: "liver & bile", 2: "spleen", 3: "portal\nvein"})
    return slice_dataset(format=request.param, window_size=1)


def texts_of(output, **options: object) -> list[str]:
    return [text.get_text() for text in dask_slicer.show_slices(output, **options).texts]


def test_the_legend_and_the_rows_of_a_picture_have_names(output) -> None:
    texts = texts_of(output, n_slices=1)
    assert texts[texts.index("label") + 1 :] == ["1 liver & bile", "4"]
    assert {"T1w", "FLAIR <b>"} <= set(texts)
    assert not [text for text in texts if text.startswith("modality")]


def test_names_that_do_not_fit_the_channels_are_not_drawn(output) -> None:
    path = output / SUMMARY
    path.write_text(path.read_text().replace('"1": "FLAIR <b>"', '"1": "FLAIR", "2": "T2w"'))
    assert {"modality 0", "modality 1"} <= set(texts_of(output, n_slices=1))
    assert "Intensities of modality 1" in page_of(output)


def test_long_names_are_shortened_in_the_legend(dataset, slice_dataset, named) -> None:
    dataset.add("a")
    named(("CT",), {1: "the left lateral section of the liver, as its surgeon drew it"})
    texts = texts_of(slice_dataset(window_size=0), n_slices=1)
    assert texts[-1] == "1 the left later…surgeon drew it"


@pytest.mark.usefixtures("undrawn")
def test_the_report_has_names_beside_values_and_over_histograms(output) -> None:
    page = page_of(output)
    text = text_of(page)
    assert "value name cases slices" in text
    assert "1 liver &amp; bile 1 10" in text
    assert "4 – 1 10" in text
    assert "In no slice: 2 spleen, 3 portal vein." in text
    assert "<h3>T1w</h3>" in page
    assert "<h3>FLAIR &lt;b&gt;</h3>" in page
    assert 'aria-label="Intensities of FLAIR &lt;b&gt; of ' in page
    assert facts_of(output).absent_labels == ("2 spleen", "3 portal\nvein")


@pytest.mark.usefixtures("undrawn")
def test_a_report_without_names_has_no_column_for_them(dataset, slice_dataset) -> None:
    dataset.add("a", label=LABEL)
    page = page_of(slice_dataset())
    assert "value cases slices" in text_of(page)
    assert "In no slice" not in page
    assert 'aria-label="Intensities of 7' in page


@pytest.mark.usefixtures("undrawn")
def test_the_name_of_a_single_channel_is_over_its_histogram(dataset, slice_dataset, named) -> None:
    dataset.add("a", label=None)
    named(("CT",), {1: "liver"})
    page = page_of(slice_dataset(allow_missing_labels=True))
    assert "<h3>CT</h3>" in page
    assert "No case has a label map." in page
    assert "In no slice" not in page
