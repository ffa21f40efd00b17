"""Laws that hold whichever steps are combined, on runs with settings drawn at random."""

from __future__ import annotations

import tempfile
from math import floor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from affines import oblique
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import dask_slicer
from dask_slicer import SliceDataset
from dask_slicer.config.loader import build_config
from dask_slicer.errors import ConfigError
from dask_slicer.execution.verify import verify
from dask_slicer.output import layout
from dask_slicer.output.journal import last_records
from dask_slicer.output.output import open_output
from dask_slicer.records import CommittedCase

# Shape and affine of each case; the last one has no label.
CASES = {
    "a": ((14, 12, 9), oblique()),
    "b": ((12, 13, 8), np.diag([-1.0, -1.0, 5.0, 1.0])),
    "c": ((13, 11, 10), oblique(65.0, (1.0, 2.5, 1.2))[:, [1, 0, 2, 3]]),
    "d": ((12, 10, 8), np.diag([1.5, 1.5, 1.5, 1.0])),
}
# Settings that leave slices out, and what they are where none is.
SELECTING = {
    **{"slices": None, "stride": 1, "min_foreground": 0.0, "drop_blank": False},
    **{"keep_empty": 1.0, "keep_empty_in": "train"},
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> dict[int, Path]:
    """Return datasets of one and of two modalities, with blank slices and some without a label."""
    rng = np.random.default_rng(4)
    folders = {}
    for n_modalities in (1, 2):
        root = folders[n_modalities] = tmp_path_factory.mktemp(f"scans{n_modalities}")
        for part in ("imagesTr", "labelsTr"):
            (root / part).mkdir()
        for case_id, (shape, affine) in CASES.items():
            inside = tuple(slice(2, n - 1) for n in shape)
            for number in range(n_modalities):
                image = np.zeros(shape, dtype=(np.int16, np.float32)[number])
                image[inside] = rng.normal(40, 300, image[inside].shape)
                path = root / "imagesTr" / f"{case_id}_{number:04d}.nii.gz"
                nib.save(nib.Nifti1Image(image, affine), path)
            label = np.zeros(shape, dtype=np.uint8)
            label[3:7, 4:9, 3:6] = 1
            label[6:9, 3:6, 4:7] = 2
            label[4, 8, 3] = 3
            if case_id != "d":
                nib.save(nib.Nifti1Image(label, affine), root / "labelsTr" / f"{case_id}.nii.gz")
    return folders


def often(default: Any, *others: Any) -> st.SearchStrategy[Any]:
    """Return one of the values, the first in half of all cases."""
    return st.sampled_from([default] * len(others) + list(others))


STEPS = st.fixed_dictionaries(
    {
        "format": st.sampled_from(["npz", "zarr"]),
        "plane": st.sampled_from(["axial", "coronal", "sagittal", "i", "j", "k"]),
        "window_size": st.sampled_from([0, 1, 2]),
        "padding_mode": st.sampled_from(["zero", "replicate", "mirror"]),
        "label_map": often(None, "1,2:1 3:2", "1:2 *:0", "2:5 *:*"),
        "min_component_voxels": often(0, 2),
        "min_component_pixels": often(0, 4),
        "crop": often(None, "nonzero", "label", "1:11,0:9,2:8"),
        "crop_margin": often(0.0, 2.0),
        "normalize": often(None, "minmax", "percentile", "dataset", "none"),
        "percentiles": often(None, "2,98"),
        "ct_windows": often((), "40/400,lung", "bone"),
        "clip_max": often(None, 200.0),
        "foreground": often("min", "all", "nonzero", "label", "otsu"),
        "dtype": often("float32", "float16", "uint8", "source"),
        "spacing": often(None, "2,2,2", "none,1.2,3", "9,none,none"),
        "resample_order": often(3, 1, 0),
        "size": often(None, 12, "9,17"),
        "fit": often("crop_pad", "resize", "letterbox"),
        "size_order": often(1, 3),
        "center": often("volume", "label"),
        "slices": often(None, "1:-1", "20%:70%", "2:", "-5:6"),
        "stride": often(1, 2, 3),
        "min_foreground": often(0.0, 0.03),
        "keep_empty": often(1.0, 0.4, 0.0),
        "keep_empty_in": st.sampled_from(["train", "all"]),
        "drop_blank": st.booleans(),
        "context_step": often(1, 2),
        "context_mm": often(None, 2.5, 7.0),
    }
)


def refusal(chosen: dict[str, Any], place: dict[str, Any]) -> str | None:
    """Return why settings are refused, None if they are not."""
    try:
        build_config(chosen | place)
    except ConfigError as error:
        return str(error)
    return None


def without_conflicts(chosen: dict[str, Any], place: dict[str, Any]) -> dict[str, Any]:
    """Return settings of which those that are refused beside the ones before them are left out."""
    kept: dict[str, Any] = {}
    for name, value in sorted(chosen.items(), key=lambda item: item[0] != "format"):
        if refusal(kept | {name: value}, place) is None:
            kept[name] = value
    return kept


def run(output: Path, settings_: dict[str, Any]) -> tuple[dict[str, CommittedCase], set[str]]:
    """Return the records of the written cases, and the cases that failed for want of a label."""
    report = dask_slicer.run(settings_ | {"output_dir": output}, progress=False)
    assert {failure.kind for failure in report.failures} <= {"MissingLabel"}, report.failures
    records = [*last_records(output / layout.JOURNAL)]
    written = {record.case_id: record for record in records if isinstance(record, CommittedCase)}
    return written, {failure.case_id for failure in report.failures}


def expected_window(index: int, n_slices: int, step: float, chosen: dict[str, Any]) -> list[int]:
    """Return the slices in a window, -1 for zeros; one at a time."""
    size = chosen.get("window_size", 2)
    indices = []
    for offset in range(-size, size + 1):
        distance = floor(abs(offset) * step + 0.5)
        at = index + (distance if offset > 0 else -distance)
        mode = chosen.get("padding_mode", "replicate")
        if mode == "zero" and not 0 <= at < n_slices:
            at = -1
        elif mode == "replicate":
            at = min(max(at, 0), n_slices - 1)
        elif n_slices == 1:
            at = 0
        while mode == "mirror" and not 0 <= at < n_slices:
            at = -at if at < 0 else 2 * (n_slices - 1) - at
        indices.append(at)
    return indices


def expected_slices(
    case: CommittedCase, samples: dict[int, dict[str, Any]], chosen: dict[str, Any]
) -> tuple[set[int], set[int], int]:
    """Return the slices with a label to be kept, those without, and how many of these stay."""
    n = case.shape[1]
    start, stop = {
        **{None: (0, n), "1:-1": (1, n - 1), "2:": (2, n), "-5:6": (max(n - 5, 0), 6)},
        "20%:70%": (floor(0.2 * n + 0.5), floor(0.7 * n + 0.5)),
    }[chosen.get("slices")]
    kept = set(range(n)[start:stop][:: chosen.get("stride", 1)])
    if chosen.get("drop_blank"):
        blank = {
            index
            for index, sample in samples.items()
            if all(channel.min() == channel.max() for channel in sample["image"])
        }
        kept -= blank
    if case.slices[0].labels is None:
        return kept, set(), 0
    share = {index: np.mean(sample["label"] > 0) for index, sample in samples.items()}
    kept = {index for index in kept if share[index] >= chosen.get("min_foreground", 0.0)}
    empty = {index for index in kept if share[index] == 0}
    thins = case.split == "train" or chosen.get("keep_empty_in") == "all"
    fraction = chosen.get("keep_empty", 1.0) if thins else 1.0
    return kept - empty, empty, floor(fraction * len(empty) + 0.5)


def check_laws(scans: dict[int, Path], chosen: dict[str, Any], n_modalities: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = {
            **{"input_dir": scans[n_modalities], "output_dir": Path(folder, "out")},
            **{"num_workers": 0, "dashboard_address": "none", "allow_missing_labels": True},
            **{"train_ratio": 0.5, "val_ratio": 0.25},
        }
        given_ = {name: value for name, value in chosen.items() if value is not None}
        if (message := refusal(given_, place)) is not None:
            with pytest.raises(ConfigError):
                dask_slicer.run(given_ | place, progress=False)
            assert "\n" not in message
            assert not Path(folder, "out").exists()
        given_ = without_conflicts(given_, place)
        plan = dask_slicer.plan(given_ | place)
        written, failed = run(Path(folder, "out"), given_ | place)
        by_label = "label" in (given_.get(name) for name in ("crop", "center", "foreground"))
        assert failed == {failure.case_id for failure in plan.failures}
        assert failed <= ({"d"} if by_label else set())
        assert (given_.get("crop") == "label") <= bool(failed)
        assert written.keys() == CASES.keys() - failed
        # Each slice alone, and all of them: what the windows of the others must be made of.
        alone = given_ | SELECTING | {"window_size": 0, "slices": None}
        full, _ = run(
            Path(folder, "full"), place | {k: v for k, v in alone.items() if v is not None}
        )
        slices: dict[str, dict[int, dict[str, Any]]] = {case_id: {} for case_id in full}
        for sample in SliceDataset(Path(folder, "full"), split=None):
            slices[sample["case_id"]][sample["slice_index"]] = sample
        check_plan(plan, written, given_)
        check_selection(written, full, slices, given_)
        check_samples(Path(folder, "out"), written, slices, given_)
        report = verify(Path(folder, "out"), deep=100, num_workers=0)
        assert not report.issues, report.issues
        assert report.n_derived == min(sum(len(case.slices) for case in written.values()), 100)


def check_plan(plan: Any, written: dict[str, CommittedCase], chosen: dict[str, Any]) -> None:
    for case in plan.runnable:
        if case.case_id not in written:
            continue
        record = written[case.case_id]
        spacing = case.new_spacing or case.spacing
        if chosen.get("crop") not in ("nonzero", "label"):
            assert case.slice_shape == record.shape[1:]
            np.testing.assert_allclose(spacing, record.spacing)
        elif chosen.get("spacing") is None and chosen.get("fit", "crop_pad") == "crop_pad":
            np.testing.assert_allclose(spacing, record.spacing)
        assert len(record.slices) <= case.most_slices


def check_selection(
    written: dict[str, CommittedCase],
    full: dict[str, CommittedCase],
    slices: dict[str, dict[int, dict[str, Any]]],
    chosen: dict[str, Any],
) -> None:
    for case_id, record in written.items():
        assert record.shape == full[case_id].shape
        assert slices[case_id].keys() == set(range(record.shape[1]))
        found = {slice_.slice_index for slice_ in record.slices}
        labelled, empty, n_empty = expected_slices(full[case_id], slices[case_id], chosen)
        if chosen.get("dtype") == "float16" and chosen.get("drop_blank"):
            continue  # in fewer digits, other slices are blank
        if chosen.get("drop_blank") and not {"spacing", "size"}.isdisjoint(chosen):
            assert found <= labelled | empty  # some were blank before they were interpolated
            continue
        assert labelled == found - empty
        assert len(found & empty) == n_empty


def check_samples(
    output: Path,
    written: dict[str, CommittedCase],
    slices: dict[str, dict[int, dict[str, Any]]],
    chosen: dict[str, Any],
) -> None:
    opened = open_output(output)
    counts = {
        (case.case_id, slice_.slice_index): slice_.labels
        for case in written.values()
        for slice_ in case.slices
    }
    if not counts:
        with pytest.warns(UserWarning, match="no slice of .* matches the selection"):
            assert not len(SliceDataset(output, split=None))
        return
    n_channels = opened.summary["total_channels"]
    for sample in SliceDataset(output, split=None):
        key = case_id, index = sample["case_id"], sample["slice_index"]
        labels, image, record = counts.pop(key), sample["image"], written[case_id]
        _, n_slices, height, width = record.shape
        assert image.shape == (n_channels, height, width)
        assert np.isfinite(image).all()
        if chosen.get("ct_windows"):
            top = 255 if chosen.get("dtype") == "uint8" else 1
            assert 0 <= image.min() <= image.max() <= top
        assert ("label" in sample) == (labels is not None)
        if labels is not None:
            assert sample["label"].shape == (height, width)
            values, n_pixels = np.unique(sample["label"], return_counts=True)
            found = dict(zip(values.tolist(), n_pixels.tolist(), strict=True))
            assert {value: n for value, n in found.items() if value} == labels
            np.testing.assert_array_equal(sample["label"], slices[case_id][index]["label"])
        step = chosen.get("context_step", 1)
        if chosen.get("context_mm") is not None:
            step = chosen["context_mm"] / record.spacing[0]
        window = expected_window(index, n_slices, step, chosen)
        one = slices[case_id][index]["image"]
        neighbours = [
            np.zeros_like(one) if at == -1 else slices[case_id][at]["image"] for at in window
        ]
        np.testing.assert_array_equal(image, np.concatenate(neighbours))
    assert not counts
    for case_id, record in written.items():
        if not record.slices:
            continue
        volume, affine = opened.volume(case_id)
        np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), record.spacing)
        for slice_ in record.slices:
            np.testing.assert_array_equal(
                volume.reshape(-1, *record.shape[1:])[:, slice_.slice_index],
                slices[case_id][slice_.slice_index]["image"],
            )


pytestmark = pytest.mark.filterwarnings("ignore:.* has slices of:UserWarning")
RELAXED = settings(suppress_health_check=list(HealthCheck), database=None)


@settings(RELAXED, max_examples=12, phases=[Phase.generate])  # not shrunk: that takes minutes
@given(chosen=STEPS, n_modalities=st.sampled_from([1, 2]))
def test_random_steps_hold_the_laws(scans, chosen, n_modalities) -> None:
    check_laws(scans, chosen, n_modalities)


@pytest.mark.slow
@settings(RELAXED, max_examples=60)
@given(chosen=STEPS, n_modalities=st.sampled_from([1, 2]))
def test_many_random_steps_hold_the_laws(scans, chosen, n_modalities) -> None:
    check_laws(scans, chosen, n_modalities)


@settings(max_examples=6, phases=[Phase.generate])
@given(STEPS, st.sampled_from([1, 2]), st.permutations(["axial", "coronal", "sagittal", "i"]))
def test_planes_together_are_those_of_runs_with_each_alone(scans, chosen, n_modalities, planes):
    place = {
        "input_dir": scans[n_modalities],
        "num_workers": 0,
        "dashboard_address": "none",
        "allow_missing_labels": True,
    }
    planes = planes[:2]
    chosen = {"plane": planes} | {name: v for name, v in chosen.items() if name != "plane"}
    chosen = without_conflicts(chosen, place | {"output_dir": "/x"})
    with tempfile.TemporaryDirectory() as folder:
        together = Path(folder, "all")
        _, failed = run(together, place | chosen)
        for plane in planes:
            alone = Path(folder, plane)
            assert run(alone, place | chosen | {"plane": plane})[1] == failed
            names = [path.relative_to(alone) for path in alone.rglob("*") if path.is_file()]
            below = [name for name in names if len(name.parts) > 2]
            below += [name for name in names if name.suffix == ".npz"]
            for name in below:
                n_above = 2 if name.parts[0] == layout.ZARR else 1
                there = Path(*name.parts[:n_above], plane, *name.parts[n_above:])
                assert (together / there).read_bytes() == (alone / name).read_bytes(), name
            there = [p for p in together.rglob("*") if p.is_file() and plane in p.parts]
            assert len(there) == len(below)
        assert not verify(together, num_workers=0).issues
