"""Damaged Zarr stores: the right values, or an error that names the file, and no other values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest

from dask_slicer.errors import CorruptFile
from dask_slicer.output.checks import check_case
from dask_slicer.output.directory import output_config
from dask_slicer.output.formats import zarr_planes
from dask_slicer.output.formats.zarr_reader import ZarrReader
from dask_slicer.output.journal import last_records

FILES = ("zarr.json", "image/zarr.json", "label/zarr.json")
SHARDS = ("image/c/0/0/0/0", "label/c/0/0/0")
STORES = {
    "float32": {},
    "float16_raw": {"dtype": "float16", "compression": "none"},
    "source": {"dtype": "source", "clip_min": -100, "clip_max": 600},
    "source_zstd": {"dtype": "source", "compression": "zstd", "normalize": "minmax"},
}
each_store = pytest.mark.parametrize("settings", STORES.values(), ids=STORES)


@pytest.fixture
def store(dataset, slice_dataset, settings) -> Path:
    """Return the group of a case with two modalities and a label."""
    rng = np.random.default_rng(2)
    for channel in (0, 1):
        image = rng.integers(-200, 800, (5, 4, 3)).astype(np.int16)
        dataset.add("a", image, channel == 0 or None, channel=channel)
    output = slice_dataset(format="zarr", window_size=1, padding_mode="zero", **settings)
    return output / "slices.zarr" / "train" / "a"


def values_of(group: Path) -> list[np.ndarray]:
    """Return what is read of a case: windows, labels and the whole volume."""
    reader = ZarrReader(group)
    arrays = [array for index in range(3) for array in reader.read(index, None)]
    return [*arrays, reader.planes(list(range(reader.shape[0])))]


def check_read(group: Path, expected: list[np.ndarray]) -> None:
    """Check that a damaged case is read as before, or is refused by the name of a file."""
    try:
        found = values_of(group)
    except CorruptFile as error:
        named, found = str(error), None
    except FileNotFoundError as error:
        named, found = error.filename, None
    if found is None:
        assert str(group) in named
        assert "\n" not in named
        return
    for array, before in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, before)


def verified(group: Path) -> list[object]:
    """Return what verify finds."""
    output = group.parents[2]
    (record,) = last_records(output / "journal.jsonl")
    return check_case(output, record, output_config(output).slice_settings)


def numbers_in(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], float]]:
    """Yield the place and the value of every number in a JSON document."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from numbers_in(item, (*place, key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield place, value


@each_store
@pytest.mark.parametrize("name", FILES)
def test_a_changed_number_in_the_metadata_gives_no_other_values(store, name) -> None:
    expected = values_of(store)
    path = store / name
    text = path.read_text()
    for place, number in numbers_in(json.loads(text)):
        for changed in (number + 1, -1, 0, 10**12, number / 2, 1e308, None):
            document = json.loads(text)
            inner = document
            for key in place[:-1]:
                inner = inner[key]
            if inner[place[-1]] == changed:
                continue
            inner[place[-1]] = changed
            path.write_text(json.dumps(document))
            check_read(store, expected)
    assert verified(store)
    path.write_text(text)
    assert not verified(store)


@each_store
@pytest.mark.parametrize("name", [*FILES, *SHARDS])
def test_changed_bytes_give_no_other_values(store, name) -> None:
    expected = values_of(store)
    path = store / name
    content = path.read_bytes()
    rng = np.random.default_rng(len(name))
    for _ in range(40):
        damaged = bytearray(content)
        start = int(rng.integers(len(content)))
        damaged[start : start + int(rng.integers(1, 4))] = rng.bytes(int(rng.integers(4)))
        path.write_bytes(damaged)
        check_read(store, expected)
        assert bytes(damaged) == content or verified(store)


@each_store
@pytest.mark.parametrize(
    "content", [b"", b"7", b"[]", b"{}", b"\xff", b"[" * 200_000, b'{"attributes": 3}']
)
@pytest.mark.parametrize("name", FILES)
def test_metadata_that_are_something_else_are_refused(store, name, content) -> None:
    (store / name).write_bytes(content)
    with pytest.raises(CorruptFile, match=f"{name} (is damaged|has)"):
        values_of(store)


def rewritten(store: Path, change) -> None:
    """Change all metadata of a case in the same way."""
    for name in FILES:
        document = json.loads((store / name).read_text())
        change(document)
        (store / name).write_text(json.dumps(document))


@each_store
@pytest.mark.parametrize("width", [3, 6, 10**9, 10**15])
def test_sizes_on_which_all_metadata_agree_are_checked_against_the_chunks(store, width) -> None:
    """The plane has 4 × 5; where all metadata say more, nothing has written the rest."""

    def change(document: dict[str, Any]) -> None:
        if document["node_type"] == "group":
            document["attributes"]["shape"] |= {"label": [4, width]}
            document["attributes"]["shape"]["image"][2] = width
            return
        chunk = document["chunk_grid"]["configuration"]["chunk_shape"]
        inner = document["codecs"][0]["configuration"]["chunk_shape"]
        document["shape"][-1] = chunk[-1] = inner[-1] = width

    rewritten(store, change)
    reader = ZarrReader(store)
    with pytest.raises(CorruptFile, match=r"/image: slice 0 is damaged \(it holds \d+ bytes"):
        reader.read(1, None)
    with pytest.raises(CorruptFile, match=r"/label: slice 0 is damaged \(it holds \d+ bytes"):
        reader.stored(0)


@pytest.mark.parametrize("n_bytes", [0, 1, 255, 256, 257, 65_791, 65_792, 200_000])
def test_chunks_declare_the_size_of_their_planes(n_bytes) -> None:
    plane = np.random.default_rng(0).integers(0, 9, n_bytes).astype(np.uint8)
    for encode, size in (
        (numcodecs.Zstd(level=3).encode, zarr_planes._zstd_size),
        (lambda content: numcodecs.blosc.compress(content, b"lz4", 5, 1), zarr_planes._blosc_size),
    ):
        chunk = np.frombuffer(encode(plane), np.uint8)
        assert size(chunk) == n_bytes
        for n_kept in range(8):  # what is cut may have any size, but is no error
            assert size(chunk[:n_kept]) >= 0
    assert zarr_planes._blosc_size(chunk[:-1]) == 0  # more would be read than there is


@pytest.mark.parametrize("settings", [STORES["float32"]], ids=["float32"])
@pytest.mark.parametrize(
    ("key", "value"), [("affine", 7.5), ("spacing", 7.5), ("shape", 9), ("padding_mode", "x")]
)
def test_attributes_that_contradict_each_other_are_refused(store, key, value) -> None:
    document = json.loads((store / "zarr.json").read_text())
    attributes = document["attributes"]
    if key == "padding_mode":
        attributes[key] = value
    else:
        numbers = {"affine": attributes["affine"][0], "shape": attributes["shape"]["label"]}
        numbers.get(key, attributes["spacing"])[0] = value
    (store / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(CorruptFile, match=r"zarr\.json is damaged .*contradict"):
        ZarrReader(store)


@each_store
def test_a_case_whose_metadata_lost_the_label_is_refused(store) -> None:
    document = json.loads((store / "zarr.json").read_text())
    document["attributes"]["shape"]["label"] = None
    (store / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(CorruptFile, match=r"zarr\.json has no label, but its case has one"):
        ZarrReader(store)


@pytest.mark.parametrize("settings", [STORES["source"]], ids=["source"])
def test_a_store_of_an_earlier_version_is_read(store) -> None:
    expected = values_of(store)
    path = store / "zarr.json"
    document = json.loads(path.read_text())
    assert document["attributes"].pop("stored_dtype") == ["int16", "int16"]
    for how in document["attributes"]["normalization"]:
        # Steps that a store does not have leave its bytes as they were.
        ends = {"slope", "intercept", "low", "high", "center", "scale"}
        assert set(how) == ends | {"to_unit_range", "zero_nonfinite"}
        del how["to_unit_range"], how["zero_nonfinite"]
    path.write_text(json.dumps(document))
    check_read(store, expected)
