"""The page of `dask-slicer report`: failures, pictures, and what it refuses."""

from __future__ import annotations

import base64
import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from report_page import facts_of, page_of, text_of

from dask_slicer.output.lock import locked
from dask_slicer.records import FailedCase
from dask_slicer.report import html_report, preview

_REAL_PICTURE = preview.picture


pytestmark = pytest.mark.usefixtures("undrawn")


class References(HTMLParser):
    """Collects what a page would fetch or lead to, and the elements that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.elements: set[str] = set()
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        for name, value in attributes:
            if name in {"src", "href", "srcset", "poster", "data", "action"}:
                self.found.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)


def references_in(html: str) -> References:
    parsed = References()
    parsed.feed(html)
    return parsed


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "in the units of the scans (normalisation, zscore, undone). "),
        ({"normalize": "none"}, "in the units of the scans. "),
        (
            {"clip_min": -160, "clip_max": 240, "normalize": "minmax"},
            "in the units of the scans (normalisation, minmax, undone), "
            "after clipping from −160 to 240. ",
        ),
        (
            {"clip_max": 240},
            "in the units of the scans (normalisation, zscore, undone), after clipping to 240. ",
        ),
    ],
    ids=str,
)
def test_the_page_says_what_was_read_and_how(dataset, slice_dataset, settings, said) -> None:
    dataset.add("a")
    text = text_of(page_of(slice_dataset(**settings)))
    assert "Read from 10 of 10 slices, of 1 of 1 case, " + said in text


def test_a_run_that_was_killed_is_reported_with_what_is_missing(dataset, slice_dataset) -> None:
    for name in ("a", "b", "c"):
        dataset.add(name)
    output = slice_dataset(train_ratio=1.0)
    for name in ("slices.csv", "dataset_info.json"):
        (output / name).unlink()
    journal = output / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:1]))
    facts = facts_of(output)
    assert (facts.n_written, facts.n_planned, facts.n_slices) == (1, 3, 10)
    assert len(facts.missing) == 2
    text = text_of(page_of(output))
    assert "1 of 3 planned cases written ; 2 not done yet" in text
    assert f"Not done yet: {', '.join(facts.missing)}" in text
    assert "No run has ended yet" in text


def test_an_active_run_is_reported_as_active(dataset, slice_dataset) -> None:
    dataset.add("a")
    output = slice_dataset()
    with locked(output):
        assert "A run was writing to this output" in text_of(page_of(output))
    assert "A run was writing to this output" not in text_of(page_of(output))


def test_the_report_is_written_even_if_pictures_cannot_be_drawn(
    dataset, slice_dataset, monkeypatch, invoke
) -> None:
    monkeypatch.setattr(preview, "picture", _REAL_PICTURE)
    dataset.add("hurt")
    output = slice_dataset()
    for path in output.rglob("hurt*.npz"):
        path.write_bytes(b"")
    result = invoke("report", output)
    assert result.exit_code == 0
    assert "Note: no pictures of slices in the report: case hurt" in result.stdout
    text = text_of((output / "report.html").read_text(encoding="utf-8"))
    assert "No pictures of slices: case hurt" in text
    assert "No slice could be read." in text


def test_cases_without_label_or_slices_are_listed(dataset, slice_dataset) -> None:
    dataset.add("bare", label=None)
    dataset.add("blank", label=np.zeros((8, 9, 10), np.uint8))
    dataset.add("full")
    output = slice_dataset(allow_missing_labels=True, min_foreground=0.01)
    facts = facts_of(output)
    assert facts.empty == ("blank",)
    text = text_of(page_of(output))
    assert "1 case of which no slice was kept (--min_foreground 0.01): blank." in text
    assert "volumes are those of the slices kept" in text


def test_a_dataset_without_labels_has_a_report(dataset, slice_dataset) -> None:
    dataset.add("bare", label=None)
    output = slice_dataset()
    assert facts_of(output).labels == ()
    assert "No case has a label map." in text_of(page_of(output))


# -- failures --------------------------------------------------------------------------------------


def test_failures_are_in_the_page_with_their_reasons(dataset, slice_dataset) -> None:
    dataset.add("fine")
    dataset.add("flat", np.zeros((8, 9), np.int16))
    dataset.add("torn", np.full((8, 9, 10), np.nan, np.float32))
    output = slice_dataset()
    facts = facts_of(output)
    found = [(one.case_id, one.step, one.kind) for one in facts.failures]
    assert found == [("flat", "plan", "UnsupportedImage"), ("torn", "slice", "NonFinite")]
    text = text_of(page_of(output))
    assert "1 of 3 planned cases written ; 2 failed" in text
    for failure in facts.failures:
        assert f"{failure.kind} ({failure.step})" in text
        assert failure.message.partition(";")[0].replace("'", "&#39;") in text


def test_a_failure_mended_by_the_next_run_is_not_reported(dataset, slice_dataset) -> None:
    dataset.add("torn", np.full((8, 9, 10), np.nan, np.float32))
    assert len(facts_of(slice_dataset()).failures) == 1
    assert facts_of(slice_dataset(nonfinite="zero")).failures == ()


def test_a_run_of_failures_only_has_a_report(dataset, slice_dataset, invoke) -> None:
    dataset.add("flat", np.zeros((8, 9), np.int16))
    output = slice_dataset()
    result = invoke("report", output)
    assert (result.exit_code, result.stdout) == (0, f"Report: {output / 'report.html'}\n")
    text = text_of((output / "report.html").read_text(encoding="utf-8"))
    assert "0 of 1 planned case written ; 1 failed" in text
    assert "UnsupportedImage (plan)" in text


def add_failures(output: Path, failures: list[FailedCase]) -> None:
    with (output / "failures.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("case_id", "step", "kind", "message"))
        rows.writerows((one.case_id, one.step, one.kind, one.message) for one in failures)


def test_ten_thousand_failures_do_not_inflate_the_page(dataset, slice_dataset) -> None:
    dataset.add("fine")
    output = slice_dataset()
    add_failures(
        output,
        [
            FailedCase(case_id=f"c{n:05d}", step="load", kind="CorruptFile", message="bad " * 900)
            for n in range(10_000)
        ],
    )
    html = page_of(output)
    assert len(html) < 3_000_000
    text = text_of(html)
    assert "The first 200 of 10,000 failed cases; failures.csv has all." in text
    assert "And 9,800 more." in text
    assert "c00199" in text
    assert "c00200" not in text


def test_two_thousand_label_values_do_not_inflate_the_page(dataset, slice_dataset) -> None:
    label = np.arange(2000, dtype=np.uint16).reshape(10, 20, 10) + 1
    common = label.copy()
    common[common <= 1990] = 0
    for name, labels in (("a", label), ("b", common), ("c", common)):
        dataset.add(name, np.zeros(label.shape, np.int16), labels)
    output = slice_dataset(label_dtype="uint16", format="zarr")
    facts = facts_of(output)
    assert (facts.n_labels, len(facts.labels)) == (2000, 100)
    assert [found.value for found in facts.labels[-10:]] == list(range(1991, 2001))
    assert {found.n_cases for found in facts.labels[-10:]} == {3}
    html = page_of(output)
    assert len(html) < 2_000_000
    assert "The 100 of 2,000 label values that most cases hold." in text_of(html)


# -- the page --------------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script><img src=\"http://evil.example/x\" onerror='alert(2)'>"


def test_names_and_messages_are_escaped(dataset, slice_dataset, tmp_path) -> None:
    dataset.add("fine")
    output = slice_dataset(output="a<b>&'c")
    add_failures(output, [FailedCase(case_id=HOSTILE, step=HOSTILE, kind=HOSTILE, message=HOSTILE)])
    splits = json.loads((output / "splits.json").read_text())
    splits["test"] += [f"missing {HOSTILE}"]
    (output / "splits.json").write_text(json.dumps(splits))
    info = json.loads((output / "dataset_info.json").read_text())
    info["versions"] = {HOSTILE: HOSTILE}
    info["config"]["output_dir"] = HOSTILE
    (output / "dataset_info.json").write_text(json.dumps(info))
    html = page_of(output)
    found = references_in(html)
    assert not found.elements & {"script", "b", "iframe", "object", "embed", "form"}
    assert found.handlers == []
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<title>a&lt;b&gt;&amp;&#39;c" in html


@pytest.mark.parametrize(
    "settings", [{}, {"format": "zarr", "window_size": 0}, {"format": "png", "bits": 16}], ids=str
)
def test_the_page_is_self_contained(dataset, slice_dataset, settings) -> None:
    for name in ("a", "b"):
        dataset.add(name)
    dataset.add("flat", np.zeros((8, 9), np.int16))
    html = page_of(slice_dataset(**settings))
    found = references_in(html)
    assert {reference.partition(":")[0][:1] for reference in found.found} == {"d", "#"}
    assert all(reference.startswith(("data:", "#")) for reference in found.found)
    assert not re.search(r"https?://|@import|url\(", html)
    assert "script" not in found.elements
    # Every place that the page leads to is in it.
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(re.findall(r' id="([^"]+)"', html))


def test_the_page_is_accessible_to_screen_readers(dataset, slice_dataset) -> None:
    for name in ("a", "b"):
        dataset.add(name)
    html = page_of(slice_dataset())
    assert '<html lang="en">' in html
    assert len(re.findall("<h1", html)) == 1
    assert len(re.findall("<table", html)) == len(re.findall("<caption", html)) > 3
    for tag in ("img", "svg"):
        for attributes in re.findall(rf"<{tag}\b([^>]*)>", html):
            assert re.search(r'\balt="|\baria-label="|\baria-hidden="true"', attributes)
    assert set(re.findall(r'aria-labelledby="([^"]+)"', html)) <= set(
        re.findall(r' id="([^"]+)"', html)
    )


def test_pictures_of_slices_exist_for_light_and_dark_pages(
    dataset, slice_dataset, monkeypatch
) -> None:
    monkeypatch.setattr(preview, "picture", _REAL_PICTURE)
    dataset.add("a")
    html = page_of(slice_dataset())
    pictures = [
        base64.b64decode(data)
        for data in re.findall(r'src(?:set)?="data:image/png;base64,([^"]+)"', html)
    ]
    assert len(set(pictures)) == 2
    assert all(png.startswith(b"\x89PNG") for png in pictures)


@pytest.mark.parametrize(
    ("n_bytes", "widths"), [(1_500, [1040]), (2_500, [1040, 900]), (9_000, [1040, 900, 700])]
)
def test_pictures_are_made_narrower_where_they_would_be_too_large(
    dataset, slice_dataset, monkeypatch, n_bytes, widths
) -> None:
    made = []

    def picture(output, *, width, dark, **_) -> bytes:
        made.append(width)
        return bytes(n_bytes * width)

    monkeypatch.setattr(preview, "picture", picture)
    monkeypatch.setattr(html_report, "_MOST_PICTURE_BYTES", 2 * 900 * 2_500)
    dataset.add("a")
    assert "<img" in page_of(slice_dataset())
    assert made == [width for width in widths for _ in range(2)]


def test_the_command_in_the_page_continues_the_run(
    dataset, slice_dataset, tmp_path, invoke
) -> None:
    dataset.add("a")
    output = slice_dataset()
    assert f"<code>dask-slicer run --config {output}/config.yaml</code>" in page_of(output)
    moved = output.rename(tmp_path / "moved")
    command = f"dask-slicer run --config {moved}/config.yaml --output_dir {moved}"
    assert f"<code>{command}</code>" in page_of(moved)
    assert "Skipped 1 case" in invoke(*command.split()[1:]).stdout


def test_settings_that_differ_from_the_default_are_marked(dataset, slice_dataset) -> None:
    dataset.add("a")
    html = page_of(slice_dataset(window_size=1, retries=5))
    marked = re.findall(r'<th scope="row" class="changed">(\w+)</th>', html)
    assert marked == ["window_size", "num_workers", "retries"]
    assert '<th scope="row">padding_mode</th>' in html


def test_the_report_does_not_damage_the_output(dataset, slice_dataset, invoke) -> None:
    dataset.add("a")
    output = slice_dataset()
    assert invoke("report", output).exit_code == 0
    first = (output / "report.html").read_bytes()
    assert invoke("report", output, "--quiet").output == ""
    assert len((output / "report.html").read_bytes()) == len(first)
    assert invoke("verify", output, "--num_workers", 0).exit_code == 0
    slice_dataset()
    assert (output / "report.html").exists()
    assert not list(output.glob(".report.html*"))


def test_without_matplotlib_the_page_has_no_pictures(
    dataset, slice_dataset, invoke, monkeypatch
) -> None:
    dataset.add("a")
    output = slice_dataset()
    with_pictures = page_of(output)
    assert "<img" in with_pictures
    monkeypatch.setattr(html_report, "find_spec", lambda name: None)
    result = invoke("report", output)
    note, place = result.stdout.splitlines()
    assert note.startswith("Note: no pictures of slices in the report: matplotlib is missing")
    assert "dask_slicer[plot]" in note
    assert place == f"Report: {output / 'report.html'}"
    html = (output / "report.html").read_text(encoding="utf-8")
    assert "<img" not in html
    assert "dask_slicer[plot]" in text_of(html)


# -- what it refuses -------------------------------------------------------------------------------


def refused(result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    for word in words:
        assert word in line


def test_directories_that_are_no_output_are_refused(dataset, tmp_path, invoke) -> None:
    (tmp_path / "empty").mkdir()
    refused(invoke("report", tmp_path / "empty"), "is not an output of dask-slicer")
    refused(invoke("report", tmp_path / "none"), "there is no such directory")
    dataset.add("a")
    refused(invoke("report", dataset.root), "is not an output of dask-slicer")


def test_an_output_without_slices_yet_is_refused(dataset, slice_dataset, invoke) -> None:
    dataset.add("a")
    output = slice_dataset()
    for name in ("slices.csv", "journal.jsonl", "dataset_info.json"):
        (output / name).unlink()
    refused(invoke("report", output), "has no slices yet", f"run --config {output}/config.yaml")


def test_partitions_that_are_not_merged_are_refused(dataset, tmp_path, invoke) -> None:
    dataset.add("a")
    dataset.add("b")
    output = tmp_path / "slices"
    directories = ["--input_dir", dataset.root, "--output_dir", output, "--num_workers", 0]
    assert invoke("run", *directories, "--shard", "1/2").exit_code == 0
    refused(invoke("report", output), f"dask-slicer merge {output}")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("splits.json", "{"),
        ("dataset_info.json", "{"),
        ("dataset_info.json", "[1]"),
        ("failures.csv", "case_id,step\na,load\n"),
        ("failures.csv", 'case_id,step,kind,message\na,load,Bad,"no end\n'),
        ("slices.csv", "case_id\nx\n"),
    ],
)
def test_damaged_files_are_named(dataset, slice_dataset, invoke, name, content) -> None:
    dataset.add("a")
    output = slice_dataset()
    (output / name).write_text(content)
    refused(invoke("report", output), f"{output / name} is damaged")


def test_a_page_that_cannot_be_written_is_one_line(
    dataset, slice_dataset, tmp_path, invoke
) -> None:
    dataset.add("a")
    output = slice_dataset()
    before = sorted(output.rglob("*"))
    missing = tmp_path / "no" / "page.html"
    refused(invoke("report", output, "--file", missing), f"cannot write {missing}", "--file")
    refused(invoke("report", output, "--file", tmp_path), "is a directory")
    for name in ("journal.jsonl", "train/page.html", "../slices/config.yaml"):
        refused(
            invoke("report", output, "--file", output / name),
            "could be a file of the output itself",
        )
    assert sorted(output.rglob("*")) == before
    refused(invoke("report", output, "--file", tmp_path / "page"), "must end with .html or .htm")
    elsewhere = tmp_path / "page.html"
    result = invoke("report", output, "--file", elsewhere)
    assert (result.exit_code, result.stdout) == (0, f"Report: {elsewhere}\n")
    assert sorted(output.rglob("*")) == before
