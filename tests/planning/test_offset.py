"""The offset of images of 16 bit: one for the whole output, from headers; what the plan says."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from affines import oblique

import dask_slicer
from dask_slicer.config.loader import build_config
from dask_slicer.core.slices import slice_volume
from dask_slicer.core.volume import Volume, Voxels
from dask_slicer.errors import ConfigError, DatasetError, OutputError
from dask_slicer.execution.partitions import record_plan
from dask_slicer.execution.resume import prepare_plan
from dask_slicer.inputs import header_cache
from dask_slicer.inputs.cache_files import CACHE_DIR
from dask_slicer.output import directory
from dask_slicer.output.formats.base import case_metadata
from dask_slicer.output.summary import DatasetTotals, dataset_info
from dask_slicer.planning.headers import with_offset
from dask_slicer.planning.names import NO_NAMES
from dask_slicer.planning.plan import RunPlan

SIXTEEN = {"format": "png", "bits": 16}
SCALED = "images of 16 bit are scaled by limits, so they are not exact: "


@pytest.fixture
def write(dataset):
    """Return a function that writes the image of a case with a scaling in its header."""

    def call(
        case_id: str, dtype: str, slope: float = 1, intercept: float = 0, *, channel: int = 0
    ) -> None:
        image = nib.Nifti1Image(np.arange(720).reshape(8, 9, 10).astype(dtype), oblique())
        path = dataset.image_path(case_id, channel)
        path.parent.mkdir(parents=True, exist_ok=True)
        image.header.set_slope_inter(slope, intercept)
        # `to_filename` keeps stored numbers only with a scaling of its own choice.
        nib.Nifti1Image(image.dataobj, oblique()).to_filename(path)
        _set_scaling(path, slope, intercept)
        if channel == 0:
            label = np.ones((8, 9, 10), np.uint8)
            dataset.write(dataset.label_path(case_id), label, oblique())

    return call


def _set_scaling(path: Path, slope: float, intercept: float) -> None:
    """Write the scaling into the header of a file; that of nibabel is for saved floats."""
    import gzip

    content = bytearray(gzip.decompress(path.read_bytes()))
    content[112:120] = np.array([slope, intercept], "<f4").tobytes()
    path.write_bytes(gzip.compress(bytes(content)))


@pytest.fixture
def plan(dataset, tmp_path):
    def call(output: str = "out", **settings: object) -> RunPlan:
        given = {"input_dir": dataset.root, "output_dir": tmp_path / output}
        return prepare_plan(build_config(given | SIXTEEN | settings))

    return call


def started(plan: RunPlan) -> Path:
    """Return an output with the first files of a run."""
    directory.start(plan.config, plan.splits, plan.structures)
    return plan.config.output_dir


def notes(plan: RunPlan) -> list[str]:
    return [note for note in plan.notes if note.startswith("images of 16 bit")]


@pytest.mark.parametrize(
    ("images", "offset"),
    [
        ([("uint8",), ("uint16",)], 0),
        ([("uint16",), ("int16",)], 32768),
        ([("int8",), ("uint8",)], 32768),
        ([("uint16", 1, -1024), ("uint16",)], 32768),
        ([("uint16", 2, 1024), ("uint8", 1, 7)], 0),
        ([("uint8", -1, 300), ("uint8",)], 32768),
        ([("int32",), ("uint32",)], 32768),
    ],
    ids=str,
)
def test_integers_get_one_offset(write, plan, images, offset) -> None:
    for number, image in enumerate(images):
        write(f"case{number}", *image)
    made = plan()
    assert (made.config.offset, made.config.is_exact, notes(made)) == (offset, True, [])


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (("float32",), "holds float32"),
        (("float64",), "holds float64"),
        (("int16", 0.5, 0), "has the slope 0.5 and the intercept 0"),
        (("uint8", 1, 0.25), "has the slope 1 and the intercept 0.25"),
        (("int16", 1, 2.0**40), "has the slope 1 and the intercept 1.09951e+12"),
    ],
    ids=str,
)
def test_one_image_of_other_numbers_scales_the_whole_output(write, plan, image, reason) -> None:
    write("a", "int16")
    write("b", *image)
    write("c", *image)
    made = plan()
    assert (made.config.offset, made.config.is_exact) == (None, False)
    path = f"imagesTr/b_0000.nii.gz {reason} (as 1 more image)"
    advice = "; with --clip_min and --clip_max, values mean the same in each case"
    assert notes(made) == [SCALED + path + advice]
    assert notes(plan(clip_min=0, clip_max=9)) == [SCALED + path]
    assert notes(plan(clip_min=0)) == [SCALED + path + advice]
    assert notes(plan(clip_min=0, clip_max=9, percentiles="1,99")) == [SCALED + path + advice]


def test_every_modality_counts(write, plan) -> None:
    for case_id in ("a", "b"):
        write(case_id, "uint8")
        write(case_id, "uint8", channel=1)
    write("b", "int16", channel=1)
    with pytest.raises(DatasetError, match="one modality"):
        plan()
    cases = plan(format="npz", bits=None).cases
    config = build_config({"input_dir": "scans", "output_dir": "slices"} | SIXTEEN)
    assert with_offset(config, cases, None, [])[0].offset == 32768


def test_a_case_that_cannot_be_read_decides_nothing(write, plan, dataset) -> None:
    write("a", "uint8")
    write("b", "float32")
    dataset.image_path("b").write_bytes(b"no image")
    made = plan()
    assert (made.config.offset, len(made.failures)) == (0, 1)
    dataset.image_path("a").write_bytes(b"no image")
    assert plan().config.offset == 32768  # which fits what may come


@pytest.mark.parametrize(
    "settings",
    [{"format": "npz", "bits": None}, {"bits": 8}, {"ct_windows": "lung"}, {"format": "zarr"}],
    ids=str,
)
def test_other_outputs_have_no_offset(write, plan, settings) -> None:
    write("a", "int16")
    write("b", "float32")
    settings = {"bits": None} | settings if settings.get("format") else settings
    made = plan(**settings)
    assert made.config.offset is None
    assert not notes(made)


def test_an_offset_that_is_given_is_kept(write, plan, tmp_path) -> None:
    write("a", "int16")
    made = plan(offset=1024)
    assert made.config.offset == 1024
    write("b", "float32")
    with pytest.raises(DatasetError, match="the offset 1024 need integers, but imagesTr/b_0000"):
        plan(offset=1024)
    with pytest.raises(ConfigError, match="ct_windows have their own limits; leave out offset"):
        plan(offset=0, ct_windows="lung")


def test_the_offset_is_in_the_digest_however_it_came_about(write, plan) -> None:
    write("a", "uint8")
    digests = {
        name: plan(**settings).cases[0].digest
        for name, settings in {
            "decided": {},
            "given": {"offset": 0},
            "other": {"offset": 1},
        }.items()
    }
    write("b", "float32")
    scaled = plan()
    assert digests["decided"] == digests["given"] != digests["other"]
    assert scaled.cases[0].digest not in digests.values()


def test_only_decides_from_the_whole_dataset(write, plan) -> None:
    write("a", "uint8")
    write("b", "int16")
    assert plan(only=["a"]).config.offset == 32768
    assert plan(shard="1/2").config.offset == 32768


def test_an_output_keeps_its_offset(write, plan, dataset) -> None:
    write("a", "uint8")
    write("b", "int16")
    output = started(plan())
    assert "offset: 32768" in (output / "config.yaml").read_text()
    assert plan().config.offset == 32768
    write("c", "uint16")
    assert plan().config.offset == 32768
    dataset.image_path("b").unlink()
    dataset.label_path("b").unlink()
    assert plan(prune=True).config.offset == 32768  # unsigned ones fit, too
    assert plan(overwrite=True).config.offset == 0
    write("d", "float32")
    with pytest.raises(OutputError, match=r"offset was 32768, is now none, because imagesTr/d_"):
        plan()


def test_a_run_that_needs_another_offset_is_refused(write, plan) -> None:
    write("a", "uint8")
    started(plan())
    write("b", "int16")
    with pytest.raises(OutputError) as caught:
        plan()
    assert str(caught.value).endswith(
        "was made with other settings: offset was 0, is now 32768, because "
        "imagesTr/b_0000.nii.gz may be negative; use another --output_dir, or --overwrite to "
        "replace it"
    )
    with pytest.raises(OutputError, match="offset was 0, is now 7"):
        plan(offset=7)


def test_an_output_that_is_scaled_stays_so(write, plan, dataset) -> None:
    write("a", "uint8")
    write("b", "float32")
    started(plan())
    dataset.image_path("b").unlink()
    dataset.label_path("b").unlink()
    made = plan(prune=True)
    assert made.config.offset is None
    assert notes(made)[0].startswith(SCALED + "so are those that the output has")


@pytest.mark.parametrize(("dtype", "offset"), [("int16", 32768), ("uint8", 0), ("float32", None)])
def test_like_takes_the_offset_along(write, plan, dataset, dtype, offset) -> None:
    write("a", dtype)
    output = started(plan())
    assert plan().config.offset == offset
    write("a", "uint8")
    made = plan("new", like=output)
    assert made.config.offset == offset
    write("a", "float32")
    if offset is None:
        assert plan("new", like=output).config.offset is None
    else:
        with pytest.raises(DatasetError, match=f"the offset {offset} need integers"):
            plan("new", like=output)


def test_partitions_agree(write, plan) -> None:
    write("a", "uint8")
    write("b", "uint8")
    first = plan(shard="1/2")
    second = plan(shard="2/2")
    first.config.output_dir.mkdir()
    record_plan(first)
    assert record_plan(second).config.offset == 0
    write("b", "int16")
    with pytest.raises(OutputError, match="other settings: offset was 0, is now 32768"):
        record_plan(plan(shard="2/2"))


def test_a_plan_from_the_cache_has_the_offset(write, plan, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv(CACHE_DIR, str(tmp_path / "cache"))
    monkeypatch.setattr(header_cache, "RACY_NS", -(10**12))
    write("a", "uint16", 2, -4)
    first = plan()
    monkeypatch.setattr("dask_slicer.planning.planner._make_plan", pytest.fail)
    second = plan()
    assert second == first
    assert (second.config.offset, second.cases[0].scaling) == (32768, ((2.0, -4.0),))


def test_headers_from_the_cache_have_the_scaling(write, plan, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv(CACHE_DIR, str(tmp_path / "cache"))
    monkeypatch.setattr(header_cache, "RACY_NS", -(10**12))
    write("a", "uint16", 2, -4)
    assert plan(format="npz", bits=None).config.offset is None
    monkeypatch.setattr("dask_slicer.planning.headers.read_header", pytest.fail)
    assert plan().config.offset == 32768


@pytest.mark.parametrize(
    ("dtype", "bits", "pixels", "normalized"),
    [
        ("int16", 16, {"bits": 16, "offset": 32768}, False),
        ("float32", 16, {"bits": 16}, True),
        ("int16", 8, {"bits": 8}, True),
    ],
)
def test_metadata_say_what_pixels_are(write, plan, dtype, bits, pixels, normalized) -> None:
    write("a", dtype)
    made = plan(bits=bits)
    image = np.arange(24, dtype=dtype).reshape(2, 3, 4)
    volume = Volume(image=(Voxels(stored=image),), label=None, affine=np.eye(4))
    stack = slice_volume(volume, normalize="none")
    metadata = case_metadata(stack, made.cases[0], made.config.slice_settings, NO_NAMES)
    assert {name: metadata[name] for name in ("bits", "offset") if name in metadata} == pixels
    assert metadata["normalized"] is normalized
    info = json.loads(json.dumps(dataset_info(made.config, DatasetTotals())))
    assert (info["bits"], info["offset"]) == (bits, pixels.get("offset"))
    assert info["exact"] is ("offset" in pixels)
    assert info["normalized"] is normalized


def test_other_formats_say_nothing_of_pixels(write, plan) -> None:
    write("a", "int16")
    made = plan(format="npz", bits=None)
    assert not {"bits", "offset", "exact"} & dataset_info(made.config, DatasetTotals()).keys()


def test_the_plan_says_what_pixels_are(write, plan, invoke, dataset) -> None:
    write("a", "int16")
    options = ("--input_dir", dataset.root, "--format", "png", "--bits", 16)
    assert "16 bit: the integers of the file plus 32768" in invoke("plan", *options).stdout
    write("b", "float32")
    text = " ".join(invoke("plan", *options).stdout.split())
    assert "the 0.5 and 99.5 percentiles become 0 and 65535" in text
    assert SCALED + "imagesTr/b_0000.nii.gz holds float32;" in text
    result = dask_slicer.plan(input_dir=dataset.root, **SIXTEEN)
    assert (result.config.offset, result.config.dtype) == (None, "uint16")


def test_a_slice_of_zeros_beside_the_volume_is_read_as_zeros(write, plan) -> None:
    write("a", "int16")
    config = plan(window_size=1, padding_mode="zero", num_workers=0).config
    dask_slicer.run(config)
    window = dask_slicer.SliceDataset(config.output_dir, None)[0]["image"]
    assert (window[0] == 0).all()
    assert (window[1:] != 0).any()
