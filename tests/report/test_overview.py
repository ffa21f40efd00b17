"""What a report counts, against numbers made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from affines import oblique
from report_page import facts_of, page_of, text_of

FORMATS = pytest.mark.parametrize("format_", ["npz", "zarr", "png"])
SPACING = (2.0, 1.5, 3.0)


pytestmark = pytest.mark.usefixtures("undrawn")


def rewrite_journal(output_dir: Path, change) -> None:
    """Change every record of a journal, and leave slices.csv the newer one."""
    path = output_dir / "journal.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        change(record)
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    (output_dir / "slices.csv").touch()


@FORMATS
@pytest.mark.parametrize("plane", ["axial", "sagittal", "j"])
def test_volumes_of_labels_are_voxels_times_the_volume_of_a_voxel(
    dataset, slice_dataset, format_, plane
) -> None:
    rng = np.random.default_rng(5)
    labels = {name: rng.choice([0, 0, 0, 1, 7], (8, 9, 10)) for name in ("a", "b", "c")}
    labels["c"][labels["c"] == 7] = 0
    for name, label in labels.items():
        dataset.add(name, label=label.astype(np.uint8), affine=oblique(spacing=SPACING))
    facts = facts_of(slice_dataset(format=format_, plane=plane, window_size=1))
    assert [label.value for label in facts.labels] == [1, 7]
    for found in facts.labels:
        voxels = [int((label == found.value).sum()) for label in labels.values()]
        volumes = np.array([n for n in voxels if n]) * np.prod(SPACING) / 1000
        assert found.n_voxels == sum(voxels)
        assert found.n_cases == len(volumes) == found.volumes.n
        assert found.volumes.smallest == pytest.approx(volumes.min())
        assert found.volumes.median == pytest.approx(np.median(volumes))
        assert found.volumes.largest == pytest.approx(volumes.max())


@pytest.mark.parametrize("lacks_volume", [False, True], ids=["now", "earlier_version"])
def test_volumes_of_a_sheared_grid_are_those_of_its_voxels(
    dataset, slice_dataset, lacks_volume
) -> None:
    tilted = np.diag([0.5, 0.5, 5.0, 1.0])
    tilted[1, 2] = 5.0 * np.tan(np.radians(20))
    label = np.zeros((8, 9, 10), np.uint8)
    label[2:6, 2:7, 2:7] = 1
    dataset.add("a", label=label, affine=oblique(spacing=(1.0, 1.0, 1.0)) @ tilted)
    output = slice_dataset()
    if lacks_volume:
        rewrite_journal(output, lambda record: record.pop("voxel_volume"))
    (found,) = facts_of(output).labels
    # Earlier versions did not record the volume; the lengths of the edges are all there is.
    voxel = 0.5 * 0.5 * 5.0 / (np.cos(np.radians(20)) if lacks_volume else 1)
    assert found.volumes.median == pytest.approx(100 * voxel / 1000, rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"normalize": "zscore"},
        {"normalize": "zscore", "clip_min": -300, "clip_max": 400},
        {"normalize": "minmax"},
        {"normalize": "none", "window_size": 0},
        {"normalize": "minmax", "format": "zarr"},
        {"normalize": "zscore", "format": "zarr", "dtype": "source"},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_intensities_are_counted_in_the_units_of_the_scans(
    dataset, slice_dataset, settings
) -> None:
    rng = np.random.default_rng(6)
    images = [rng.normal(0, 250, (8, 9, 10)).astype(np.int16) for _ in range(3)]
    for name, image in zip("abc", images, strict=True):
        dataset.add(name, image)
    sample = facts_of(slice_dataset(**settings)).sample
    (found,) = sample.histograms
    original = np.array(images).clip(settings.get("clip_min"), settings.get("clip_max"))
    # numpy counts what lies on the last edge, too.
    expected, _ = np.histogram(original, bins=[*found.edges, np.inf])
    assert found.counts == tuple(expected[:-1])
    assert found.n_beyond + sum(found.counts) == original.size
    assert found.smallest == pytest.approx(original.min(), abs=1e-2)
    assert found.median == pytest.approx(np.median(original), abs=1e-2)
    assert (sample.n_slices, sample.n_cases, sample.in_file_units) == (30, 3, True)


def test_every_modality_has_its_own_intensities(dataset, slice_dataset) -> None:
    dataset.add("a", np.arange(720, dtype=np.int16).reshape(8, 9, 10))
    dataset.add("a", np.full((8, 9, 10), 5000, np.int16), channel=1)
    first, second = facts_of(slice_dataset()).sample.histograms
    assert (round(first.smallest), round(first.largest)) == (0, 719)
    assert (round(second.smallest), round(second.largest)) == (5000, 5000)


def test_spacings_are_those_of_the_cases(dataset, slice_dataset) -> None:
    dataset.add("a", affine=np.diag([1.0, 2.0, 5.0, 1.0]))
    dataset.add("b", affine=np.diag([1.5, 2.0, 7.0, 1.0]))
    found = facts_of(slice_dataset()).spacings
    ends = {name: (counted.smallest, counted.largest) for name, counted in found.items()}
    assert ends == {
        "between slices": (5.0, 7.0),
        "between rows": (2.0, 2.0),
        "between columns": (1.0, 1.5),
    }
    dataset.add("a", affine=np.diag([2.0, 2.0, 5.0, 1.0]))
    dataset.add("b", affine=np.diag([1.5, 1.5, 5.0, 1.0]))
    assert set(facts_of(slice_dataset(output="again")).spacings) == {"between slices", "in plane"}


def test_cases_and_slices_are_counted_by_split(dataset, slice_dataset) -> None:
    empty = np.zeros((8, 9, 10), np.uint8)
    half = empty.copy()
    half[:, :, :4] = 3
    for number in range(10):
        dataset.add(f"case_{number}", label=half if number % 2 else empty)
    output = slice_dataset(train_ratio=0.6, val_ratio=0.2)
    splits = json.loads((output / "splits.json").read_text())
    for found in facts_of(output).splits:
        ids = splits[found.name]
        n_half = sum(int(case_id[-1]) % 2 for case_id in ids)
        assert (found.n_planned, found.n_written, found.n_failed) == (len(ids), len(ids), 0)
        assert (found.n_slices, found.n_labelled) == (10 * len(ids), 4 * n_half)


def test_the_slowest_cases_come_first_and_not_more_than_twenty(dataset, slice_dataset) -> None:
    for number in range(22):
        dataset.add(f"case_{number:02d}", np.zeros((2, 2, 2), np.int16), np.zeros((2, 2, 2), int))
    output = slice_dataset()

    def change(record) -> None:
        number = int(record["case_id"][-2:])
        record["seconds"] = {"load": 1.0, "slice": 0.5, "save": float(number * 7 % 22)}

    rewrite_journal(output, change)
    facts = facts_of(output)
    by_hand = sorted(range(22), key=lambda number: -(number * 7 % 22))[:20]
    assert [case.record.case_id for case in facts.slowest] == [f"case_{n:02d}" for n in by_hand]
    assert facts.slowest[0].total == 1.5 + 21
    assert facts.step_seconds == {"load": 22.0, "slice": 11.0, "save": 231.0}


def test_both_formats_give_the_same_facts(dataset, slice_dataset) -> None:
    for number in range(4):
        dataset.add(f"case_{number}")
    dataset.add("flat", np.zeros((8, 9), np.int16))
    npz, zarr = (
        facts_of(slice_dataset(format=format_, output=format_)) for format_ in ("npz", "zarr")
    )
    assert npz.sample.histograms == zarr.sample.histograms
    for name in ("splits", "labels", "spacings", "n_slices", "missing", "empty", "n_labels"):
        assert getattr(npz, name) == getattr(zarr, name), name
    assert [one.kind for one in npz.failures] == [one.kind for one in zarr.failures]


@FORMATS
def test_an_unreadable_slice_is_named_and_the_rest_is_reported(
    dataset, slice_dataset, format_
) -> None:
    for name in ("fine", "hurt"):
        dataset.add(name)
    output = slice_dataset(format=format_, train_ratio=1.0)
    for path in sorted(output.rglob("*hurt*/image/c/0/0/0/0" if format_ == "zarr" else "hurt*")):
        path.write_bytes(path.read_bytes()[:100])
    sample = facts_of(output).sample
    assert (sample.n_slices, sample.n_cases, len(sample.problems)) == (10, 1, 10)
    text = text_of(page_of(output))
    assert "10 slices of the sample cannot be read" in text
    assert "case hurt, slice 0" in text
    assert "Read from 10 of 20 slices, of 1 of 2 cases" in text


def test_without_a_journal_its_facts_are_left_out(dataset, slice_dataset) -> None:
    dataset.add("a")
    output = slice_dataset()
    (output / "journal.jsonl").unlink()
    facts = facts_of(output)
    assert (facts.n_written, facts.n_slices, facts.spacings, facts.slowest) == (1, 10, {}, ())
    assert facts.sample.n_slices == 10
    assert not facts.sample.in_file_units
    assert facts.labels[0].volumes is None
    text = text_of(page_of(output))
    assert "as they are stored, normalised (zscore)" in text
    assert "unknown without the journal" in text
