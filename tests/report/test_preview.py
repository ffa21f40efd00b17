"""Pictures of slices: the right pixels, the right way round, whatever the output is like."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from matplotlib.figure import Figure

import dask_slicer
from dask_slicer.output.layout import PREVIEW
from dask_slicer.report.preview import parse_slices, picture

# Stored along other axes, flipped, and obliquely; spacing in mm differs along each axis.
_AFFINES = {
    "RAS": np.diag([2.0, 1.5, 3.0, 1.0]),
    "LPS": np.diag([-2.0, -1.5, 3.0, 1.0]),
    "PSR": np.array([[0, 0, 3.0, 5], [-2.0, 0, 0, 9], [0, 1.5, 0, -4], [0, 0, 0, 1]]),
}


def _shown(figure: Figure, number: int = 0) -> np.ndarray:
    """Return the pixels of a panel: (height, width, 3) uint8."""
    return np.asarray(figure.axes[number].images[0].get_array())


def _texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def _at_pixels(shown: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return what is shown in the middle of every pixel of a slice."""
    rows, columns = (
        ((np.arange(n) + 0.5) * size / n).astype(int)
        for n, size in zip(shape, shown.shape[:2], strict=True)
    )
    return shown[np.ix_(rows, columns)]


def _in_a_corner(affine: np.ndarray, shape=(16, 18, 20)) -> tuple[np.ndarray, np.ndarray]:
    """Return a bright block at the patient's right, front and top, and a label beside it."""
    index = np.stack([*np.indices(shape), np.ones(shape)])
    x, y, z = np.einsum("ij,j...->i...", affine, index)[:3]
    middle = (affine @ [*((np.array(shape) - 1) / 2), 1])[:3]
    right, front, top = x > middle[0], y > middle[1], z > middle[2]
    image = np.where(right & front & top, 900, 100).astype(np.int16)
    # Left, front, top: no mirroring of one axis takes it for the other.
    return image, (~right & front & top).astype(np.uint8)


# -- on the right pixels ---------------------------------------------------------------------------


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("stored", list(_AFFINES))
def test_patient_right_anterior_and_superior_are_shown_left_and_on_top(
    dataset, slice_dataset, plane: str, stored: str
) -> None:
    affine = _AFFINES[stored]
    image, label = _in_a_corner(affine)
    dataset.add("case", image, label, affine)
    output = slice_dataset(plane=plane, window_size=0, normalize="none", format="zarr")
    cases = dask_slicer.SliceDataset(output, None)
    # One with both, by what was stored: front and top in axial and coronal, right in sagittal.
    number = max(
        range(len(cases)),
        key=lambda n: (cases[n]["image"] > 500).sum() * 1000 + cases[n]["label"].sum(),
    )
    figure = dask_slicer.show_slices(output, slices=[cases[number]["slice_index"]])
    shape = cases[number]["label"].shape
    found = _at_pixels(_shown(figure).astype(int), shape)
    left_top, right_top = np.zeros(shape, bool), np.zeros(shape, bool)
    left_top[: shape[0] // 2, : shape[1] // 2] = True
    right_top[: shape[0] // 2, shape[1] // 2 :] = True
    assert np.array_equal(found.min(axis=2) > 200, left_top)
    coloured = found[..., 0] - found[..., 2] > 20
    # In the sagittal plane, what is left is on other slices.
    assert np.array_equal(coloured, right_top if plane != "sagittal" else ~np.ones(shape, bool))
    letters = [text for text in _texts(figure) if text in "RLAPSI"]
    assert letters == list({"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}[plane])


def test_an_axial_slice_is_shown_as_simpleitk_has_it(dataset, slice_dataset) -> None:
    rng = np.random.default_rng(3)
    image = rng.integers(0, 1000, (12, 14, 6)).astype(np.int16)
    dataset.add("case", image, None, np.diag([-1.0, 1.0, 2.0, 1.0]))
    output = slice_dataset(window_size=0, normalize="none", allow_missing_labels=True)
    scan = SimpleITK.DICOMOrient(SimpleITK.ReadImage(dataset.image_path("case")), "LPS")
    for slice_index, expected in enumerate(SimpleITK.GetArrayFromImage(scan)):
        shown = _shown(dask_slicer.show_slices(output, slices=[slice_index]))[..., 0]
        found = _at_pixels(shown, expected.shape)
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("format_", ["npz", "zarr", "png"])
def test_the_overlay_lies_on_the_labelled_pixels_and_on_no_other(
    dataset, slice_dataset, format_: str
) -> None:
    label = np.random.default_rng(5).choice([0, 0, 1, 2, 900], (10, 11, 7)).astype(np.int32)
    dataset.add("case", label=label, image=np.zeros(label.shape, np.int16))
    label_dtype = "uint16" if format_ == "png" else "int32"
    output = slice_dataset(window_size=0, format=format_, label_dtype=label_dtype)
    samples = {s["slice_index"]: s for s in dask_slicer.SliceDataset(output, None)}
    figure = dask_slicer.show_slices(output, n_slices=7)
    palette = {1: (230, 159, 0), 2: (86, 180, 233), 900: (0, 158, 115)}
    for number, axes in enumerate(figure.axes):
        slice_index = int(axes.get_label().split()[-1])
        expected = samples[slice_index]["label"]
        found = _at_pixels(_shown(figure, number), expected.shape)
        assert (found[expected == 0] == 0).all()
        for value, colour in palette.items():
            # Filled or outlined, it is the colour, more or less of it.
            pixels = found[expected == value].astype(float)
            share = pixels[:, 1] / colour[1]
            assert (share > 0.2).all()
            assert np.allclose(pixels, share[:, None] * np.array(colour), atol=1)


def test_the_file_has_the_panels_pixel_for_pixel(dataset, slice_dataset, tmp_path: Path) -> None:
    dataset.add("case")
    output = slice_dataset(window_size=1)
    figure = dask_slicer.show_slices(output, n_slices=3, labels=True)
    path = tmp_path / "a.png"
    path.write_bytes(dask_slicer.show_slices(output, n_slices=3).to_bytes())
    written = np.rint(matplotlib.image.imread(path)[..., :3] * 255).astype(np.uint8)
    height, width = written.shape[:2]
    for number, axes in enumerate(figure.axes):
        shown = _shown(figure, number)
        box = axes.get_position()
        top, left = round((1 - box.y1) * height), round(box.x0 * width)
        found = written[top : top + shown.shape[0], left : left + shown.shape[1]]
        # All but letters, numbers and the frame, which lie over it.
        assert (found == shown).all(axis=2).mean() > 0.9
        assert (found == shown)[30:-30, 30:60].all()


def test_pixels_are_as_wide_and_high_as_the_spacing_says(dataset, slice_dataset) -> None:
    dataset.add("ct", np.zeros((40, 40, 8), np.int16), None, np.diag([0.7, 0.7, 5.0, 1.0]))
    output = slice_dataset(plane="sagittal", window_size=0, allow_missing_labels=True)
    height, width = _shown(dask_slicer.show_slices(output, n_slices=1)).shape[:2]
    assert height / width == pytest.approx(8 * 5.0 / (40 * 0.7), rel=0.02)


def test_both_formats_and_integers_as_stored_give_the_same_picture(dataset, slice_dataset) -> None:
    for case_id in ("a", "b", "c"):
        dataset.add(case_id)
    shown = []
    for format_, dtype in (("npz", "float32"), ("zarr", "float32"), ("zarr", "source")):
        output = slice_dataset(output=f"{format_}_{dtype}", format=format_, dtype=dtype)
        figure = dask_slicer.show_slices(output, n_slices=5)
        shown.append([_shown(figure, number) for number in range(len(figure.axes))])
    for other in shown[1:]:
        for expected, found in zip(shown[0], other, strict=True):
            assert np.abs(found.astype(int) - expected).max() <= 1


def test_greys_are_the_same_whichever_slices_of_a_case_are_shown(dataset, slice_dataset) -> None:
    image = np.multiply.outer(np.ones((9, 9)), np.arange(1, 11) * 100).astype(np.int16)
    image[0, 0] = 0
    dataset.add("case", image, None, np.eye(4))
    output = slice_dataset(window_size=0, allow_missing_labels=True)
    together = dask_slicer.show_slices(output, slices=range(10))
    brightness = [int(np.median(_shown(together, number))) for number in range(10)]
    assert brightness == sorted(brightness)
    assert brightness[0] < 30
    assert brightness[-1] > 240
    for number in range(10):
        alone = dask_slicer.show_slices(output, slices=[number])
        assert int(np.median(_shown(alone))) == brightness[number]


# -- windows, modalities, labels -------------------------------------------------------------------


@pytest.mark.parametrize(("format_", "reach"), [("npz", 2), ("zarr", 2), ("png", 1)])
def test_a_window_is_shown_in_order_with_the_slice_itself_in_the_middle(
    dataset, slice_dataset, format_: str, reach: int
) -> None:
    image = np.multiply.outer(np.ones((9, 9)), np.arange(10) * 100).astype(np.int16)
    image[0] = 3000  # so that no slice is constant
    dataset.add("case", image, None, np.eye(4))
    output = slice_dataset(window_size=reach, format=format_, allow_missing_labels=True)
    figure = dask_slicer.show_slices(output, slices=[5])
    shown = _shown(figure)
    offsets = ["-2", "-1", "0", "+1", "+2"][2 - reach : 3 + reach]
    n_tiles = len(offsets)
    tile = (shown.shape[1] + 2) / n_tiles
    middles = [int(shown[shown.shape[0] // 2, int((n + 0.4) * tile), 0]) for n in range(n_tiles)]
    assert middles == sorted(set(middles))
    assert [text for text in _texts(figure) if text in ("-2", "-1", "0", "+1", "+2")] == offsets


def test_modalities_have_rows_of_their_own_and_greys_of_their_own(dataset, slice_dataset) -> None:
    rng = np.random.default_rng(0)
    dataset.add("case", rng.integers(0, 10, (9, 9, 5)).astype(np.int16))
    dataset.add("case", rng.integers(0, 9000, (9, 9, 5)).astype(np.int16), None, channel=1)
    figure = dask_slicer.show_slices(slice_dataset(window_size=1), n_slices=1, labels=False)
    height = _shown(figure).shape[0]
    means = [
        _shown(figure)[rows].mean() for rows in (slice(0, height // 2), slice(height // 2, None))
    ]
    assert means[0] == pytest.approx(means[1], abs=25)
    assert {"modality 0", "modality 1"} <= set(_texts(figure))


def test_the_legend_has_the_values_shown_and_a_value_keeps_its_colour(
    dataset, slice_dataset
) -> None:
    for case_id, values in (("a", [0, 1, 5000]), ("b", [0, 5000, 70_000])):
        label = np.random.default_rng(0).choice(values, (8, 9, 10)).astype(np.int32)
        dataset.add(case_id, label=label)
    output = slice_dataset(window_size=0, label_dtype="int32")
    colours = []
    for case_id, values in (("a", ["1", "5000"]), ("b", ["5000", "70000"])):
        figure = dask_slicer.show_slices(output, cases=[case_id], n_slices=2)
        texts = _texts(figure)
        assert texts[texts.index("label") + 1 :] == values
        colours.append(figure.patches + figure.artists)
    swatches = [[p.get_facecolor() for p in of_case if p.get_fill()] for of_case in colours]
    assert swatches[0][1] == swatches[1][0]
    assert len({*swatches[0], *swatches[1]}) == 3


def test_thousands_of_label_values_are_drawn(dataset, slice_dataset) -> None:
    label = np.arange(16 * 16 * 20).reshape(16, 16, 20).astype(np.int32)
    dataset.add("case", label=label, image=np.zeros(label.shape, np.int16))
    figure = dask_slicer.show_slices(slice_dataset(window_size=0, label_dtype="int32"), n_slices=20)
    assert any(text.startswith("and ") and text.endswith(" more") for text in _texts(figure))
    assert len(np.unique(_shown(figure).reshape(-1, 3), axis=0)) > 100


def test_a_case_without_a_label_says_so_and_labels_may_be_left_out(dataset, slice_dataset) -> None:
    dataset.add("with")
    dataset.add("without", label=None)
    output = slice_dataset(window_size=0, allow_missing_labels=True)
    figure = dask_slicer.show_slices(output, n_slices=4)
    for axes in figure.axes:
        shown = np.asarray(axes.images[0].get_array()).astype(int)
        assert (np.ptp(shown, axis=2).max() > 0) == axes.get_label().startswith("with ")
    assert {"no label" in text for text in _texts(figure) if "slice " in text} == {
        True,
        False,
    }
    plain = dask_slicer.show_slices(output, cases=["with"], labels=False)
    assert not any("no label" in text or text == "label" for text in _texts(plain))
    assert all(np.ptp(_shown(plain, n), axis=2).max() == 0 for n in range(len(plain.axes)))


@pytest.mark.parametrize("normalize", ["zscore", "minmax", "percentile", "none"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_normalisation_is_shown_with_black_and_white_in_it_and_constant_slices_too(
    dataset, slice_dataset, normalize: str, dtype: str
) -> None:
    dataset.add("noise")
    dataset.add("constant", np.full((8, 9, 10), 37, np.int16))
    output = slice_dataset(normalize=normalize, dtype=dtype, window_size=0)
    for case_id, darkest, brightest in (("noise", 0, 255), ("constant", 0, 0)):
        figure = dask_slicer.show_slices(output, cases=[case_id], n_slices=3, labels=False)
        shown = np.concatenate([_shown(figure, number).ravel() for number in range(3)])
        assert shown.min() <= darkest + 5
        assert shown.max() == pytest.approx(brightest, abs=10)


# -- which slices ----------------------------------------------------------------------------------


def _named(figure: Figure) -> list[tuple[str, int]]:
    labels = [axes.get_label().rpartition(" ") for axes in figure.axes]
    return [(case_id, int(slice_index)) for case_id, _, slice_index in labels]


def test_slices_are_spread_over_splits_and_cases_and_are_the_same_the_next_time(
    dataset, slice_dataset
) -> None:
    for number in range(10):
        dataset.add(f"case_{number}")
    output = slice_dataset(window_size=0)
    opened = dask_slicer.open_output(output)
    named = _named(dask_slicer.show_slices(output, n_slices=8))
    assert len(named) == len({case_id for case_id, _ in named}) == 8
    for split in ("train", "val", "test"):
        assert set(opened.splits[split]) & {case_id for case_id, _ in named}
        only = _named(dask_slicer.show_slices(output, split=split, n_slices=2))
        assert {case_id for case_id, _ in only} <= set(opened.splits[split])
    assert named == _named(dask_slicer.show_slices(opened, n_slices=8))
    assert all(2 <= slice_index <= 7 for _, slice_index in named)


def test_named_cases_are_all_shown_and_named_slices_of_each(dataset, slice_dataset) -> None:
    for case_id in "abcd":
        dataset.add(case_id)
    output = slice_dataset(window_size=0)
    figure = dask_slicer.show_slices(output, cases=["d", "a", "b"], n_slices=1)
    assert [case_id for case_id, _ in _named(figure)] == ["a", "b", "d"]
    figure = dask_slicer.show_slices(output, cases=["d", "a"], slices=[9, 0])
    assert _named(figure) == [("a", 0), ("a", 9), ("d", 0), ("d", 9)]
    said = " ".join(text.get_text() for text in figure.texts)
    assert "slice 0 of 0–9" in said
    assert "slice 9 of 0–9" in said
    figure = dask_slicer.show_slices(output, slices=[3, 4], n_slices=4)
    assert sorted(slice_index for _, slice_index in _named(figure)) == [3, 3, 4, 4]


def test_a_dataset_is_shown_as_it_was_selected(dataset, slice_dataset) -> None:
    label = np.zeros((8, 9, 10), np.uint8)
    label[2:5, 2:5, 6:8] = 2
    dataset.add("a", label=label, affine=np.eye(4))
    dataset.add("b", affine=np.eye(4))
    output = slice_dataset(window_size=2, train_ratio=1.0)
    samples = dask_slicer.SliceDataset(
        output, labels=[2], channels="center", transform=lambda sample: None
    )
    figure = dask_slicer.show_slices(samples)
    assert _named(figure) == [("a", 6), ("a", 7)]
    assert "+1" not in _texts(figure)


# -- outputs that lack something -------------------------------------------------------------------


def _with_a_failure(dataset) -> None:
    dataset.add("good")
    dataset.add("bad")
    dataset.image_path("bad").write_bytes(b"no scan")


def test_an_output_with_failures_is_shown_and_says_what_is_missing(
    dataset, slice_dataset, invoke
) -> None:
    _with_a_failure(dataset)
    output = slice_dataset(window_size=0)
    result = invoke("preview", output)
    assert result.exit_code == 0
    assert f"Note: {output} has slices of 1 of 2 cases: 1 failed, see failures.csv" in result.stdout
    figure = dask_slicer.show_slices(output)
    assert "slices of 1 of 2 cases: 1 failed, see failures.csv" in _texts(figure)


def test_an_unfinished_output_is_shown(dataset, slice_dataset, invoke) -> None:
    for case_id in "abc":
        dataset.add(case_id)
    output = slice_dataset(window_size=0, only=["a"])
    result = invoke("preview", output)
    assert result.exit_code == 0
    assert "2 not run yet, repeat the run command to continue" in result.stdout


def test_the_picture_does_not_disturb_run_verify_or_overwrite(
    dataset, slice_dataset, invoke
) -> None:
    dataset.add("a")
    output = slice_dataset(window_size=0)
    assert invoke("preview", output, "--quiet").output == ""
    assert (output / PREVIEW).stat().st_size > 1000
    assert invoke("verify", output, "--num_workers", 0).exit_code == 0
    again = ("run", "--input_dir", dataset.root, "--output_dir", output, "--window_size", 0)
    assert invoke(*again, "--num_workers", 0).exit_code == 0
    assert (output / PREVIEW).exists()
    assert invoke(*again, "--num_workers", 0, "--overwrite").exit_code == 0
    assert not (output / PREVIEW).exists()  # it showed slices that are no more


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        pytest.param(
            ["--case", "case_9"], "no case case_9 in {out}; did you mean case_", id="case"
        ),
        pytest.param(["--case", "bad"], "bad failed, see {out}/failures.csv", id="failed"),
        pytest.param(
            ["--case", "case_1", "--slices", "3,10-12"],
            "case case_1 has no slices 10, 11, 12: it has 10 slices, 0 to 9",
            id="slice of a case",
        ),
        pytest.param(
            ["--slices", "99"],
            "no case has slice 99: slices in {out} are numbered 0 to 9",
            id="slice of no case",
        ),
        pytest.param(
            ["--split", "test"],
            "{out} has no slices in test; it has some in train (20 slices)",
            id="split",
        ),
        pytest.param(
            ["--slices", "x"], "--slices must be a list such as 3,10,20-30, got x", id="words"
        ),
        pytest.param(
            ["--slices", "9-3"],
            "--slices 9-3 must be a range from low to high, of at most 400 slices",
            id="backwards",
        ),
        pytest.param(["--n_slices", 0], "n_slices must be 1 to 400, got 0", id="none"),
        pytest.param(
            ["--file", "a.gif"],
            "--file must end with .png or .jpg or .pdf or .svg, got a.gif",
            id="suffix",
        ),
        pytest.param(
            ["--file", "/nowhere/a.png"],
            "cannot write /nowhere/a.png: no such file or directory; name another place with "
            "--file",
            id="no folder",
        ),
        pytest.param(
            ["--file", "{out}/train/a.png"],
            "--file {out}/train/a.png could be a file of the output itself; choose a place "
            "outside {out}, or directly in it",
            id="among slices",
        ),
        pytest.param(["--file", "{out}/train"], "--file {out}/train is a directory", id="folder"),
    ],
)
def test_slices_that_cannot_be_shown_are_refused_in_one_line(
    dataset, slice_dataset, invoke, arguments: list[object], told: str
) -> None:
    for case_id in ("case_1", "case_2", "bad"):
        dataset.add(case_id)
    dataset.image_path("bad").write_bytes(b"no scan")
    output = slice_dataset(window_size=0, train_ratio=1.0)
    words = [str(argument).format(out=output) for argument in arguments]
    result = invoke("preview", output, *words)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {told.format(out=output)}")
    assert len(result.stderr.splitlines()) == 1
    assert not (output / PREVIEW).exists()


def test_dropped_slices_are_distinguished_from_slices_that_never_existed(
    dataset, slice_dataset, invoke
) -> None:
    label = np.zeros((8, 9, 10), np.uint8)
    label[:, :, 4:7] = 1
    dataset.add("case", label=label, affine=np.eye(4))
    output = slice_dataset(window_size=0, min_foreground=0.5)
    assert _named(dask_slicer.show_slices(output)) == [("case", 4), ("case", 5), ("case", 6)]
    result = invoke("preview", output, "--case", "case", "--slices", "2")
    assert (
        "case case has no slice 2: dropped by --min_foreground 0.5; "
        "3 slices of 10 were kept, from 4 to 6"
    ) in result.stderr


def test_slices_that_a_step_left_out_are_said_to_be_left_out_by_it(
    dataset, slice_dataset, invoke
) -> None:
    dataset.add("case", affine=np.eye(4))
    some = slice_dataset(output="some", slices="4:", stride=2)
    result = invoke("preview", some, "--case", "case", "--slices", "5")
    assert "no slice 5: dropped by --slices 4:, --stride 2; 3 slices of 10" in result.stderr
    none = slice_dataset(output="none", drop_blank=True, slices="90:")
    result = invoke("preview", none)
    assert "every slice was dropped, see --slices 90:, --drop_blank" in result.stderr


def test_an_output_without_slices_is_refused_in_one_line(
    dataset, slice_dataset, invoke, tmp_path: Path
) -> None:
    dataset.add("bad")
    dataset.image_path("bad").write_bytes(b"no scan")
    failed = slice_dataset(output="failed")
    dataset.image_path("bad").unlink()
    dataset.label_path("bad").unlink()
    dataset.add("case", label=np.zeros((8, 9, 10), np.uint8))
    dropped = slice_dataset(output="dropped", min_foreground=0.9)
    (tmp_path / "empty").mkdir()
    for output, told in (
        (tmp_path / "empty", "is not an output of dask-slicer: it has no config.yaml"),
        (tmp_path / "nowhere", "it has no config.yaml (there is no such directory)"),
        (failed, "has no slices to show: slices of 0 of 1 case: 1 failed, see failures.csv"),
        (dropped, "has no slices to show: every slice was dropped, see --min_foreground"),
    ):
        result = invoke("preview", output)
        assert result.exit_code == 2
        assert told in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_partitions_that_are_not_merged_are_reported(dataset, slice_dataset, invoke) -> None:
    for case_id in "ab":
        dataset.add(case_id)
    output = slice_dataset(shard="1/2")
    result = invoke("preview", output)
    assert result.exit_code == 2
    assert f"run dask-slicer merge {output}" in result.stderr


def test_a_damaged_slice_is_reported_with_its_case_and_file(dataset, slice_dataset, invoke) -> None:
    dataset.add("case")
    output = slice_dataset(window_size=0)
    for path in output.glob("train/*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    result = invoke("preview", output)
    assert result.exit_code == 1
    assert "Error: case case, slice" in result.stderr
    assert "verify --repair" in result.stderr


def test_without_matplotlib_the_extra_is_named(
    dataset, slice_dataset, invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset.add("case")
    output = slice_dataset(window_size=0)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "dask_slicer.report.figure", raising=False)
    result = invoke("preview", output)
    assert result.exit_code == 2
    assert "pip install 'dask_slicer[plot]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


# -- as a picture ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [400, 1000])
def test_a_picture_is_a_png_about_as_wide_as_asked_for(dataset, slice_dataset, width: int) -> None:
    for case_id in "abc":
        dataset.add(case_id)
    output = dask_slicer.open_output(slice_dataset())
    for dark in (False, True):
        content = picture(output, n_slices=8, width=width, dark=dark)
        pixels = matplotlib.image.imread(io.BytesIO(content))
        assert width * 0.8 <= pixels.shape[1] <= width
        assert (pixels[0, 0, :3].mean() < 0.5) == dark


def test_a_figure_shows_in_a_notebook_and_leaves_pyplot_alone(dataset, slice_dataset) -> None:
    dataset.add("case")
    figure = dask_slicer.show_slices(slice_dataset(window_size=0), n_slices=2)
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(b"\x89PNG")
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_captions_of_windows_of_five_are_legible_where_a_notebook_shows_them(
    dataset, slice_dataset
) -> None:
    for case_id in "abcd":
        dataset.add(case_id)
    figure = dask_slicer.show_slices(slice_dataset(window_size=2), n_slices=16)
    width = figure.get_figwidth() * figure.dpi
    assert width <= 1600
    assert {"-2", "-1", "0", "+1", "+2"} <= set(_texts(figure))
    pixels = [text.get_fontsize() * figure.dpi / 72 * 900 / width for text in figure.texts]
    assert min(pixels) >= 9


@pytest.mark.parametrize("window_size", [0, 1, 2, 3, 4, 5])
def test_windows_are_a_grid_and_not_a_tall_column(dataset, slice_dataset, window_size) -> None:
    dataset.add("square", np.zeros((12, 12, 20), np.int16), affine=np.eye(4))
    figure = dask_slicer.show_slices(slice_dataset(window_size=window_size), n_slices=16)
    width, height = figure.get_size_inches()
    assert height < 1.5 * width
    pixels = [text.get_fontsize() * figure.dpi / 72 for text in figure.texts]
    assert min(pixels) * 900 / (width * figure.dpi) >= 9  # in a notebook


@pytest.mark.parametrize("suffix", ["png", "jpg", "pdf", "svg"])
def test_a_file_of_another_kind_is_written_whole(
    dataset, slice_dataset, invoke, tmp_path: Path, suffix: str
) -> None:
    dataset.add("case")
    output = slice_dataset(window_size=0)
    file = tmp_path / "pictures" / f"p.{suffix}"
    file.parent.mkdir()
    result = invoke("preview", output, "--file", file, "--n-slices", 2, "--dark", "--no_labels")
    assert result.stdout == f"Preview: {file}\n"
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert file.stat().st_size > 1000


def test_a_hostile_case_id_is_shown_as_it_is(dataset, slice_dataset) -> None:
    case_id = "a$_{1$_é_扫描_" + "x" * 100
    dataset.add(case_id)
    figure = dask_slicer.show_slices(slice_dataset(window_size=0), n_slices=1)
    assert figure._repr_png_()
    assert any(text.startswith("a$_{1$_é") and "…" in text for text in _texts(figure))


def test_ranges_of_slices_are_read() -> None:
    assert parse_slices(" 3, 10-12,3") == [3, 10, 11, 12]


def test_real_scans_are_shown_with_their_labels_where_the_scans_have_them(
    real_scans: Path, tmp_path: Path
) -> None:
    folder = real_scans / "ct_chest_lung1_pyradiomics"
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(
        f"case_id,image,label\nct,{folder / 'image.nii.gz'},{folder / 'label.nii.gz'}\n"
    )
    config = dask_slicer.RunConfig(
        input_dir=manifest, output_dir=tmp_path / "out", num_workers=0, plane="sagittal",
        window_size=0, format="zarr",
    )  # fmt: skip
    dask_slicer.run(config)
    figure = dask_slicer.show_slices(config.output_dir, n_slices=1)
    ((_, slice_index),) = _named(figure)
    label = nib.as_closest_canonical(nib.load(folder / "label.nii.gz"))
    # Canonical is RAS; the plane counts from the right, rows from the top, columns from the front.
    expected = np.asarray(label.dataobj)[::-1, ::-1, ::-1][slice_index].T
    shown = _shown(figure).astype(int)
    assert shown.shape[0] / shown.shape[1] == pytest.approx(48 * 5 / (512 * 0.57), rel=0.02)
    coloured = np.argwhere(shown[..., 0] - shown[..., 2] > 20) / shown.shape[:2]
    wanted = (np.argwhere(expected) + 0.5) / expected.shape
    assert coloured.mean(axis=0) == pytest.approx(wanted.mean(axis=0), abs=0.02)
