"""Names of channels and label values: in the summary, in slices, on later runs, in partitions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

import dask_slicer
from dask_slicer.errors import OutputError
from dask_slicer.execution.verify import verify
from dask_slicer.inputs.discovery import find_cases
from dask_slicer.output.layout import SUMMARY
from dask_slicer.planning import planner
from dask_slicer.planning.names import Names

CHANNELS, LABELS = ("T1w", "FLAIR"), {7: "portal vein", 1: "Leber, größer"}
IN_METADATA = {
    "channel_names": ["T1w", "FLAIR"],
    "label_names": {"1": "Leber, größer", "7": "portal vein"},
}
IN_SUMMARY = IN_METADATA | {"channel_names": {"0": "T1w", "1": "FLAIR"}}
KEYS = IN_METADATA.keys()


@pytest.fixture(params=["npz", "zarr"])
def format_(request) -> str:
    return request.param


@pytest.fixture
def run(dataset, invoke, tmp_path, format_) -> Callable[..., str]:
    """Return what slices two cases of two channels by the command, and returns what it prints."""
    for case_id in ("a", "b"):
        for channel in (0, 1):
            dataset.add(case_id, channel=channel)

    def call(*options: object, status: int = 0) -> str:
        result = invoke(
            *("run", "--input_dir", dataset.root, "--output_dir", tmp_path / "out"),
            *("--num_workers", 0, "--format", format_, "--window_size", 1, *options),
        )
        assert result.exit_code == status, result.output
        return " ".join(result.output.split())

    return call


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "out"


def summary_of(output: Path) -> dict:
    return json.loads((output / SUMMARY).read_text(encoding="utf-8"))


def names_of_slices(output: Path) -> dict[str, dict]:
    """Return the names in the metadata of each .npz file or Zarr group, by its name."""
    metadata = {}
    for path in output.glob("t*/*.npz"):
        with np.load(path) as members:
            metadata[path.name] = json.loads(members["metadata"].item())
    for path in output.glob("slices.zarr/t*/*/zarr.json"):
        metadata[path.parent.name] = json.loads(path.read_text(encoding="utf-8"))["attributes"]
    assert metadata
    return {
        name: {key: content[key] for key in KEYS if key in content}
        for name, content in metadata.items()
    }


def written(output: Path) -> dict[str, bytes]:
    paths = [*output.glob("t*/*.npz"), *output.glob("slices.zarr/t*/**/*")]
    return {str(path): path.read_bytes() for path in paths if path.is_file()}


def test_the_plan_has_the_names_that_the_layout_has(run, dataset, monkeypatch) -> None:
    def find_named(*arguments: object, **options: object) -> object:
        match = find_cases(*arguments, **options)
        match.channel_names, match.label_names = CHANNELS, LABELS
        return match

    monkeypatch.setattr(planner, "find_cases", find_named)
    plan = dask_slicer.plan(input_dir=dataset.root, output_dir="unused")
    assert (plan.channel_names, plan.label_names) == (CHANNELS, LABELS)


def test_names_are_in_the_summary_and_in_every_slice(run, named, output) -> None:
    named(CHANNELS, LABELS)
    run()
    assert {key: summary_of(output)[key] for key in KEYS} == IN_SUMMARY
    names = names_of_slices(output)
    assert list(names.values()) == [IN_METADATA] * len(names)


def test_unknown_names_leave_no_key(run, named, output) -> None:
    run()
    assert not KEYS & summary_of(output).keys()
    assert set(map(str, names_of_slices(output).values())) == {"{}"}
    named(labels={1: "liver"})
    run("--overwrite")
    assert summary_of(output)["label_names"] == {"1": "liver"}
    assert "channel_names" not in summary_of(output)
    assert set(map(str, names_of_slices(output).values())) == {"{'label_names': {'1': 'liver'}}"}


@pytest.mark.parametrize("format_", ["zarr"])
def test_zarr_readers_see_the_names_in_the_root_too(run, named, output) -> None:
    named(CHANNELS, LABELS)
    run()
    attributes = dict(zarr.open_group(output / "slices.zarr", mode="r")["train/a"].attrs)
    assert {key: attributes[key] for key in KEYS} == IN_METADATA


@pytest.mark.parametrize("channels", [("T1w",), ("T1w", "FLAIR", "T2w")])
def test_names_of_more_or_fewer_channels_than_there_are_images_are_left_out(
    run, named, output, channels
) -> None:
    named(channels, LABELS)
    run()
    assert "channel_names" not in summary_of(output)
    assert set(map(len, names_of_slices(output).values())) == {1}


def test_slices_of_before_stay_and_the_summary_follows_the_latest_plan(run, named, output) -> None:
    run("--only", "a")
    before = written(output)
    named(CHANNELS, LABELS)
    assert "names now differ" not in run()
    assert before.items() <= written(output).items()
    names = names_of_slices(output)
    assert {bool(own) for name, own in names.items() if name.startswith("a")} == {False}
    assert {bool(own) for name, own in names.items() if name.startswith("b")} == {True}
    assert {key: summary_of(output)[key] for key in KEYS} == IN_SUMMARY
    # Slices with and without names equal what the scans, whose names may be unknown, give.
    report = verify(output, deep=1000, num_workers=0)
    assert (report.issues, report.n_derived) == ((), report.n_slices)
    named()
    assert verify(output, deep=1000, num_workers=0).issues == ()


def test_names_that_differ_from_those_of_earlier_slices_are_noted(run, named, output) -> None:
    named(CHANNELS, LABELS)
    run("--only", "a")
    named(CHANNELS, LABELS | {9: "spleen"})
    assert "names now differ" not in run()
    named(("T1w", "T2w"), {1: "Leber, größer", 7: "aorta"})
    assert (
        "Note: names now differ from those of earlier runs (T1w, FLAIR, 7 portal vein and 1 more; "
        "now T1w, T2w, 7 aorta and 1 more): slices written before keep theirs, --overwrite writes "
        "them again"
    ) in run()
    assert summary_of(output)["label_names"] == {"1": "Leber, größer", "7": "aorta"}
    named()
    assert "(T1w, T2w, 1 Leber, größer and 1 more; now 1 unnamed, 7 unnamed)" in run()
    assert not KEYS & summary_of(output).keys()


def test_an_overwritten_output_has_no_earlier_names(run, named, output) -> None:
    named(CHANNELS, LABELS)
    run()
    named(CHANNELS, {1: "kidney"})
    assert "names now differ" not in run("--overwrite")
    assert {names["label_names"]["1"] for names in names_of_slices(output).values()} == {"kidney"}


def test_verify_needs_no_dataset_to_accept_names(run, named, output, dataset) -> None:
    named(CHANNELS, LABELS)
    run()
    named()
    shutil.rmtree(dataset.root)
    assert verify(output, num_workers=0).issues == ()


@pytest.mark.parametrize("names", [{"label_names": ["liver"]}, {"channel_names": {"1": "CT"}}])
def test_damaged_names_are_found_by_verify_and_named_by_readers(run, output, names) -> None:
    run()
    (output / SUMMARY).write_text(json.dumps(summary_of(output) | names))
    assert "not names by number" in str(verify(output, num_workers=0).issues)
    with pytest.raises(OutputError, match=r"dataset_info.json is damaged \(channel_names or "):
        _ = dask_slicer.open_output(output).label_names


def test_a_merge_writes_the_names_of_the_partitions_and_keeps_them(
    run, named, output, invoke, dataset
) -> None:
    named(CHANNELS, LABELS)
    for shard in ("1/2", "2/2"):
        run("--shard", shard)
    named()
    shutil.rmtree(dataset.root)
    for _ in range(2):
        assert invoke("merge", output).exit_code == 0
        assert {key: summary_of(output)[key] for key in KEYS} == IN_SUMMARY
    assert verify(output, num_workers=0).issues == ()


def test_a_partition_with_other_names_is_refused(run, named) -> None:
    named(CHANNELS, LABELS)
    run("--shard", "1/2")
    named(CHANNELS, {1: "kidney"})
    printed = run("--shard", "2/2", status=2)
    assert "differs from that of the other partitions" in printed
    assert "other names of channels or labels" in printed


def test_names_of_any_characters_survive(run, named, output) -> None:
    labels = {1: "a\n\x00b", 2: "\udcff <b>", 2**31 - 1: ""}
    named(labels=labels)
    run()
    assert dask_slicer.open_output(output).label_names == labels
    assert {
        str({int(value): name for value, name in names["label_names"].items()})
        for names in names_of_slices(output).values()
    } == {str(labels)}


def test_names_are_read_as_they_are_written() -> None:
    names = Names(channels=tuple("abcdefghijkl"), labels={-1: "ignored", 2: "x"})
    assert Names.parse(json.loads(json.dumps(names.summary()))) == names
    assert Names.parse({}) == Names()
