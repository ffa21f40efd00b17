"""Templates of files: which are refused, and that their names say case and slice again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_slicer.config.changes import changed_settings
from dask_slicer.config.file_settings import NPZ, PNG, FileTemplate, format_template, stem_digits
from dask_slicer.config.loader import build_config, json_schema, to_yaml
from dask_slicer.config.schema import RunConfig
from dask_slicer.errors import ConfigError
from dask_slicer.inputs.case import case_id_problem

BOTH = {"input_dir": "/scans", "output_dir": "/slices", "format": "files", "window_size": 0}
IMAGE = {"image": "image"}
WHOLE = {"path": "vol/{case_id}.h5", "holds": IMAGE}


def config_of(*files: dict[str, Any], lists: tuple[Any, ...] = (), **settings: Any) -> RunConfig:
    return build_config(BOTH | {"files": files, "file_lists": lists} | settings)


def message_of(*files: Any, lists: tuple[Any, ...] = (), **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config_of(*files, lists=lists, **settings)
    return str(caught.value)


ACCEPTED = [
    "{case_id}.npz",
    "{stem}.npz",
    "a/{case_id}.npy.h5",
    "{split}/{stem}.h5",
    "{split}/a b/c-d_e/{case_id}_slice_{slice_index}.h5",
    "a/{slice_index}_{case_id}.h5",
    "a/{case_id} - {slice_number:04d}.h5",
    "a/{case_id}_{slice_index:010d}.h5",
    "a/{split}_{stem}.h5",
    "a/{case_id}{split}.h5",
    "a/{case_id}_{split}_{slice_index}.h5",
    "a/{stem}_7.h5",
]
PLACE = "must be a path below the output, of letters, digits, and . _ -"
FIELDS = "must have fields {case_id}, {slice_index}, {slice_number}, {stem}, {split} only"
ONCE = "must name case and slice once"
APART = "must have a separator, which is no digit, around the slice's number"
NO_DOT = "must have no dot in the name of a folder: files of the output have one"
REFUSED = {
    "../{case_id}.h5": PLACE,
    "/a/{case_id}.h5": PLACE,
    "a//{case_id}.h5": PLACE,
    "a/./{case_id}.h5": PLACE,
    "a/../{case_id}.h5": PLACE,
    ".hidden/{case_id}.h5": PLACE,
    "a /{case_id}.h5": PLACE,
    "a./{case_id}.h5": PLACE,
    "é/{case_id}.h5": PLACE,
    "a\\{case_id}.h5": PLACE,
    "C:/{case_id}.h5": PLACE,
    "a/{case_id}\n.h5": PLACE,
    "journal.jsonl/{case_id}.h5": NO_DOT,
    "Slices.Zarr/train/{case_id}.h5": NO_DOT,
    "a/{}.h5": FIELDS,
    "a/{{case_id}}.h5": FIELDS,
    "a/{case_id.__class__}.h5": FIELDS,
    "a/{case_id!r}.h5": FIELDS,
    "a/{patient}.h5": FIELDS,
    "a/{case_id}_{slice_index:3d}.h5": FIELDS,
    "a/{case_id}_{slice_index:00d}.h5": FIELDS,
    "a/{case_id}_{slice_index:011d}.h5": FIELDS,
    "a/{case_id}_{slice_index:099d}.h5": FIELDS,
    "{case_id}/{case_id}.h5": ONCE,
    "a/{stem}_{slice_number}.h5": ONCE,
    "a/{case_id}_{slice_index}_{slice_number}.h5": ONCE,
    "a/{case_id}{slice_index}.h5": APART,
    "a/{case_id}_0{slice_index}.h5": APART,
    "a/{slice_index}0_{case_id}.h5": APART,
    "a/{slice_index:03d}{case_id}.h5": APART,
    "a/{split}{case_id}.h5": APART,
    "a/{split}{stem}.h5": APART,
    "a/all.h5": "must have {case_id} or {stem} in the name of the file",
    "a/{slice_index}.h5": "must have {case_id} or {stem} in the name of the file",
    "{case_id}/{slice_index}.h5": "must have {case_id} or {stem} in the name of the file",
    "{slice_index}/{case_id}.h5": "must name case and slice in the name of the file",
    "{case_id}.png": "must have a folder",
    "{case_id}.json": "must have a folder",
    "a/{case_id}.H5": "must end with .npz, .h5, .npy, .png, .json",
    "a/{case_id}.nii.gz": "must end with .npz, .h5, .npy, .png, .json",
    "a/{case_id}": "must end with .npz, .h5, .npy, .png, .json",
}


@pytest.mark.parametrize("path", ACCEPTED)
def test_a_template_is_accepted(path) -> None:
    assert config_of({"path": path, "holds": IMAGE}).files[0].path == path


@pytest.mark.parametrize(("path", "rule"), REFUSED.items(), ids=ascii)
def test_a_template_is_refused_with_entry_rule_and_path(path, rule) -> None:
    message = message_of(WHOLE, {"path": path, "holds": IMAGE})
    assert message.startswith("files, entry 2: path ")
    assert rule in message
    assert f"got {path}" in message


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"holds": IMAGE}, "files, entry 1: path is required"),
        ({"path": "a/{case_id}.h5"}, "files, entry 1: holds is required"),
        (WHOLE | {"hold": "image"}, "files, entry 1: there is no setting hold"),
        (WHOLE | {"holds": {}}, "files, entry 1: holds must name a content of vol/{case_id}.h5"),
        (WHOLE | {"holds": "image"}, "holds must give each content a name in .h5"),
        (WHOLE | {"holds": {"a/b": "image"}}, "holds must have names of letters, digits and _"),
        (WHOLE | {"holds": {"x": "images"}}, "holds must be one of image, label, metadata"),
        (WHOLE | {"holds": {"x": "metadata"}}, "metadata must be in .json or .npz"),
        (WHOLE | {"path": "a/{case_id}.npy"}, "holds must be one content in .npy"),
        ({"path": "a/{stem}.png", "holds": "spacing"}, "can hold only image or label"),
        ({"path": "a/{case_id}.png", "holds": "image"}, "a .png file holds a slice, so its path"),
        ({"path": "a/{stem}.json", "holds": "label"}, "can hold only metadata"),
        (WHOLE | {"channels": "middle"}, "channels must be one of first, last, none"),
        (WHOLE | {"channels": "none", "copies": 3}, "copies of a channel need channels first"),
        (WHOLE | {"copies": 0}, "files, entry 1: copies must be 1 or more, got 0"),
        (WHOLE | {"splits": "training"}, "splits must be one of train, val, test, got training"),
        ("a/{case_id}.h5", "files, entry 1"),
    ],
    ids=str,
)
def test_an_entry_is_refused_with_what_is_wrong(entry, words) -> None:
    assert words in message_of(entry)


def test_entries_that_are_no_list_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^files must be a list, got vol/{case_id}\.h5$"):
        build_config(BOTH | {"files": "vol/{case_id}.h5"})
    with pytest.raises(ConfigError, match=r"^file_lists must be a list, got a dict$"):
        build_config(BOTH | {"files": [WHOLE], "file_lists": {"path": "a.txt"}})
    message = message_of(WHOLE, lists=({"path": "a.txt"},))
    assert message == "file_lists, entry 1: line is required"


def test_a_file_of_a_case_holds_no_windows() -> None:
    words = "vol/{case_id}.h5 holds every slice once, so window_size must be 0, got 1"
    assert words in message_of(WHOLE, window_size=1)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ((), "format files needs the setting files"),
        (({"path": "a/{stem}.png", "holds": "label"},), "files of train must hold the image"),
        ((WHOLE, WHOLE), "folders of their own, got vol/{case_id}.h5 and vol/{case_id}.h5"),
        # The slices of case a would be files of cases a_slice_0, a_slice_1 …
        (
            (
                {"path": "a/{case_id}_slice_{slice_index}.h5", "holds": IMAGE, "splits": "train"},
                {"path": "a/{case_id}.h5", "holds": IMAGE, "splits": "val,test"},
            ),
            "folders of their own",
        ),
        (
            (
                {"path": "{split}/{stem}.h5", "holds": IMAGE, "splits": "train"},
                {"path": "Train/{case_id}.h5", "holds": IMAGE, "splits": "test"},
            ),
            "folders of their own",
        ),
    ],
)
def test_files_that_may_meet_are_refused(files, words) -> None:
    assert words in message_of(*files)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({}, "a/{stem}.png has images of dtype uint8, got float32"),
        ({"dtype": "uint8", "window_size": 2}, "a/{stem}.png has one channel, or three"),
        ({"dtype": "uint8", "ct_windows": "lung,bone"}, "a/{stem}.png has one channel, or three"),
        ({"dtype": "uint8", "label_dtype": "int32"}, "b/{stem}.png has masks of label_dtype uint8"),
        ({"dtype": "uint16"}, "dtype uint16 is that of format png with bits 16"),
    ],
)
def test_what_no_png_file_can_hold_is_refused(chosen, words) -> None:
    files = [{"path": "a/{stem}.png", "holds": "image"}, {"path": "b/{stem}.png", "holds": "label"}]
    assert words in message_of(*files, **chosen)
    assert config_of(*files, dtype="uint8", window_size=1).normalize == "none"


@pytest.mark.parametrize(
    ("n_channels", "problem"), [(1, ""), (3, ""), (2, "place for one"), (4, "place")]
)
def test_a_png_file_of_several_modalities_is_refused_by_the_plan(n_channels, problem) -> None:
    config = config_of({"path": "a/{stem}.png", "holds": "image"}, dtype="uint8")
    said = config.problem_of_files(n_channels, n_channels, {"train"})
    assert problem in said
    assert bool(said) == bool(problem)


def test_files_of_different_splits_may_differ_in_their_contents_alone() -> None:
    train = {"path": "a/{stem}.h5", "holds": IMAGE | {"label": "label"}, "splits": "train"}
    other = {"path": "a/{stem}.h5", "holds": IMAGE, "splits": ["val", "test"]}
    assert len(config_of(train, other).templates_of("train")) == 1


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("{split}.txt", "must be the path of one file"),
        ("all.csv", "must be the path of one file that ends with .txt or .list"),
        ("../all.txt", "must be a path below the output"),
        ("slices.zarr/all.txt", "must have no dot in the name of a folder"),
        ("A/All.txt", "file_lists must have another path each"),
    ],
)
def test_a_list_is_refused_with_its_rule(path, words) -> None:
    lists = ({"path": "a/all.txt", "line": "{case_id}"}, {"path": path, "line": "{case_id}"})
    assert words in message_of(WHOLE, lists=lists)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a{split:02d}/{stem}.npz", FIELDS),
        ("{case}", FIELDS),
        ("{case_id}\n{split}", "must be one line"),
        ("{case_id}\r", "must be one line"),
        ("{case_id} {case_id}", ONCE),
    ],
)
def test_a_line_is_refused_with_its_rule(line, words) -> None:
    message = message_of(WHOLE, lists=({"path": "a.txt", "line": line},))
    assert message.startswith("file_lists, entry 1: line must")
    assert words in message


@pytest.mark.parametrize(
    "path", ["a/{stem}.npz", "{stem}.npz", "a/{split}_{stem}.npz", "{split}/{split}_{stem}.npz"]
)
def test_files_of_several_planes_need_a_folder_for_each(path) -> None:
    words = "files of several planes need {split} in the folder of their path"
    assert words in message_of({"path": path, "holds": IMAGE}, plane="axial,coronal")
    with_split = {"path": "a/{split}/{stem}.npz", "holds": IMAGE}
    assert config_of(with_split, plane="axial,coronal").plane_folders == ("axial", "coronal")


# -- names -----------------------------------------------------------------------------------------

CASE_IDS = st.one_of(
    st.text(min_size=1, max_size=12),
    # Ids that look like parts of a name.
    st.lists(
        st.sampled_from(
            ["a", "7", "_", "_slice_", "003", "train", "_val_", ".", " ", "é", "slice"]
        ),
        min_size=1,
        max_size=6,
    ).map("".join),
).filter(lambda case_id: case_id_problem(case_id) is None)


@pytest.mark.parametrize(
    "template",
    [
        NPZ,
        *PNG,
        *(FileTemplate(path=path, holds=IMAGE) for path in ACCEPTED),
    ],
    ids=lambda template: template.path,
)
@settings(max_examples=40)
@given(
    case_id=CASE_IDS,
    split=st.sampled_from(["train", "val", "test"]),
    slice_index=st.integers(0, 2000),
    digits=st.integers(3, 5),
)
def test_the_name_of_a_file_says_its_case_and_slice(
    template, case_id, split, slice_index, digits
) -> None:
    path = template.file(case_id, split, slice_index, digits=max(digits, len(str(slice_index))))
    folder, _, name = path.rpartition("/")
    assert folder == template.folder(split)
    parsed = template.parse(name)
    expected = slice_index if template.is_per_slice else None
    assert (parsed.case_id, parsed.slice_index) == (case_id, expected)
    assert template.file(case_id, split, slice_index, digits=parsed.digits) == path


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/{stem}.npz", "liver_12.npz"),
        ("a/{stem}.npz", "_012.npz"),
        ("a/{stem}.npz", "liver_012.npz.tmp"),
        ("a/{stem}.npz", "liver_01234567890.npz"),
        ("a/{case_id}_{slice_index}.npz", "liver_012.npz"),
        ("a/{case_id}_{slice_index}.npz", "liver_-1.npz"),
        ("a/{case_id}_{slice_index}.npz", "liver_¹.npz"),
        ("a/{case_id}_{slice_index:03d}.npz", "liver_12.npz"),
        ("a/{split}_{case_id}.npz", "liver_7.npz"),
        ("a/{case_id}.npy.h5", ".npy.h5"),
        ("a/{case_id}.npy.h5", "liver.h5"),
    ],
)
def test_other_names_are_of_no_case(path, name) -> None:
    assert FileTemplate(path=path, holds=IMAGE).parse(name) is None


def test_a_number_counts_from_one() -> None:
    template = FileTemplate(path="a/{case_id}-{slice_number:03d}.h5", holds=IMAGE)
    assert template.file("x", "train", 0, digits=3) == "a/x-001.h5"
    assert template.parse("x-001.h5").slice_index == 0


@pytest.mark.parametrize(("n_slices", "digits"), [(1, 3), (1000, 3), (1001, 4), (10_001, 5)])
def test_a_stem_has_as_many_digits_as_the_last_slice_needs(n_slices, digits) -> None:
    assert stem_digits(n_slices) == digits
    stem = format_template("{stem}", case_id="x", split="val", slice_index=7, digits=digits)
    assert stem == "x_" + "7".rjust(digits, "0")


# -- in a file -------------------------------------------------------------------------------------


def test_templates_come_back_from_the_file_of_an_output(tmp_path) -> None:
    files = (
        {"path": "npy/{split}/{stem}.npy", "holds": "image", "channels": "last", "copies": 3},
        {"path": "gts/{split}/{stem}.png", "holds": "label", "transpose": True, "splits": "train"},
        {"path": "vol/{case_id}.npz", "holds": {"s": "spacing", "d": "direction", "o": "origin"}},
    )
    config = config_of(*files, lists=({"path": "a/b.txt", "line": "{case_id}: {split}"},))
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    again = build_config({}, base=tmp_path / "config.yaml")
    assert again == config
    assert not changed_settings(config, again)
    other = config_of(*files[:2], lists=({"path": "a/b.txt", "line": "{case_id}"},))
    assert len(changed_settings(config, other)) == 2


def test_the_schema_describes_the_entries() -> None:
    definitions = json.loads(json_schema())["$defs"]
    for name in ("FileTemplate", "ListTemplate"):
        entry = definitions[name]
        assert entry["additionalProperties"] is False
        assert all(field["description"] for field in entry["properties"].values())
