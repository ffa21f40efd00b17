"""Hostile texts: manifests, dataset.json, splits and configurations are understood or refused.

How many are made of each kind, in the slow tests: DASK_SLICER_FUZZ.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dask_slicer import RunConfig

N = int(os.environ.get("DASK_SLICER_FUZZ", "300"))
CASES = ("ct_a", "ct_b", "ct_c")


def csv_manifest() -> str:
    rows = [
        f"{name},imagesTr/{name}_0000.nii.gz,labelsTr/{name}.nii.gz,p{number},train"
        for number, name in enumerate(CASES)
    ]
    return "\n".join(["case_id,image,label,group,split", *rows, ""])


def json_manifest() -> str:
    return json.dumps(
        [
            {
                "case_id": name,
                "image": f"imagesTr/{name}_0000.nii.gz",
                "label": f"labelsTr/{name}.nii.gz",
            }
            for name in CASES
        ]
    )


def decathlon() -> str:
    pairs = [
        {"image": f"./imagesTr/{name}_0000.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
        for name in CASES
    ]
    return json.dumps({"name": "ct", "numTraining": 3, "training": pairs, "test": []}, indent=1)


def datalist() -> str:
    entries = [
        {"image": [f"imagesTr/{name}_0000.nii.gz"], "label": f"labelsTr/{name}.nii.gz", "fold": n}
        for n, name in enumerate(CASES)
    ]
    return json.dumps({"training": entries[:2], "validation": entries[2:], "testing": [],
                       "modality": {"0": "CT"}, "labels": {"0": "air", "1": "liver"}})  # fmt: skip


def nnunet_cases() -> str:
    cases = {
        name: {"images": [f"imagesTr/{name}_0000.nii.gz"], "label": f"labelsTr/{name}.nii.gz"}
        for name in CASES
    }
    return json.dumps({"channel_names": {"0": "CT"}, "labels": {"a": 1, "b": [1, 2]},
                       "dataset": cases}, indent=1)  # fmt: skip


def masks_manifest() -> str:
    rows = [
        f"{name};imagesTr\\{name}_0000.nii.gz;labelsTr\\{name}.nii.gz;image;qform" for name in CASES
    ]
    header = "case_id;image:CT;label:liver;label_grid;orientation_from"
    return "\n".join([header, *rows, ""])


def nnunet() -> str:
    return json.dumps({"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1},
                       "numTraining": 3, "file_ending": ".nii.gz"}, indent=1)  # fmt: skip


def splits() -> str:
    return json.dumps({"train": ["ct_a", "ct_b"], "val": ["ct_c"], "test": []})


def folds() -> str:
    return json.dumps([{"train": ["ct_a", "ct_b"], "val": ["ct_c"]}, {"train": ["ct_a"]}])


def configuration() -> str:
    return "window_size: 1\nclip_min: -100\nclip_max: 300.5\nplane: axial\nseed: 7\n"


# Where a text stands, and the options that read it; {} is the folder.
TEXTS = {
    csv_manifest: ("cases.csv", ["--input_dir", "{}/cases.csv"]),
    json_manifest: ("cases.json", ["--input_dir", "{}/cases.json"]),
    decathlon: ("dataset.json", ["--input_dir", "{}"]),
    nnunet: ("dataset.json", ["--input_dir", "{}"]),
    nnunet_cases: ("dataset.json", ["--input_dir", "{}", "--include_test"]),
    datalist: ("fold.json", ["--input_dir", "{}/fold.json"]),
    masks_manifest: ("cases.csv", ["--input_dir", "{}"]),
    splits: ("splits.json", ["--input_dir", "{}", "--splits", "{}/splits.json"]),
    folds: ("folds.json", ["--input_dir", "{}", "--splits", "{}/folds.json", "--fold", "0"]),
    configuration: ("a.yaml", ["--input_dir", "{}", "--config", "{}/a.yaml"]),
}
NASTY = [
    b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\r", b'"', b"'", b"../", b"/etc/passwd", b"{", b"[",
    b"]}", b"NaN", b"1e999", b"-" * 50, b"9" * 5000, b"[" * 3000, b"&a [*a]",
    b"!!python/name:os.system ", b"<<: *x",
    b"? ", b": ", b",,,,", b"null", b"true", b"~", b"CON", b"\t", "\u202e\u2028".encode(),
]  # fmt: skip


def damaged(text: str, rng: random.Random) -> bytes:
    data = text.encode()
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        begins, ends = sorted(rng.choices(range(len(data) + 1), k=2))
        ends = min(ends, begins + 20)
        digit = str(rng.randrange(10)).encode()
        piece = rng.choice([b"", digit, rng.choice(NASTY), data[begins:ends] * 2, rng.randbytes(2)])
        data = data[:begins] + piece + data[ends:]
    return data


@pytest.fixture
def scans(dataset) -> Path:
    for name in CASES:
        dataset.add(name)
    return dataset.root


def plan(invoke, folder: Path, name: str, content: bytes, options: list[str]) -> int:
    """Plan with a hostile text; return the exit status, which came with one line if it is 2."""
    path = folder / name
    path.write_bytes(content)
    before = sorted(folder.parent.rglob("*"))
    result = invoke(
        "plan", *(option.format(folder) for option in options), "--output_dir", folder / "out"
    )
    assert sorted(folder.parent.rglob("*")) == before
    path.unlink()
    assert "Traceback" not in result.output
    if result.exit_code == 2:
        assert result.stderr.startswith("Error: "), result.stderr
        assert result.stderr.removesuffix("\n").isprintable(), result.stderr
        assert len(result.stderr) < 2500
    else:
        assert result.exit_code in (0, 1), result.output
    return result.exit_code


HOW_MANY = pytest.mark.parametrize(
    "n", [10, pytest.param(N, marks=[pytest.mark.slow, pytest.mark.fuzz])], ids=["few", "many"]
)


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.__name__)
def test_the_text_is_sound_before_it_is_damaged(invoke, scans, text) -> None:
    name, options = TEXTS[text]
    assert plan(invoke, scans, name, text().encode(), options) == 0


@HOW_MANY
@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.__name__)
def test_a_damaged_text_is_understood_or_refused_in_one_line(invoke, scans, text, n) -> None:
    rng = random.Random(f"{text.__name__} {n}")
    name, options = TEXTS[text]
    said = Counter(plan(invoke, scans, name, damaged(text(), rng), options) for _ in range(n))
    print(f"{text.__name__}: {n} inputs, exit status {dict(said)}")  # noqa: T201  # pytest -rP


WORDS = ["training", "test", "image", "images", "dataset", "validation", "testing", "fold",
         "modality", "background", "0", "label", "labels", "channel_names", "file_ending",
         "case_id", "train", "val", "split", "group", "image_2", "numTraining"]  # fmt: skip
KEYS = st.sampled_from(WORDS) | st.text(max_size=5)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([*CASES, "imagesTr/ct_a_0000.nii.gz", "labelsTr/ct_a.nii.gz", "../x.nii"])
)  # fmt: skip
THINGS = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4)
)
OPTIONS = st.dictionaries(
    st.sampled_from(sorted(RunConfig.model_fields)) | st.text(max_size=5), THINGS, max_size=4
)
ENTRIES = LEAVES | st.dictionaries(
    st.sampled_from(["image", "images", "label", "fold", "mask"]),
    LEAVES | st.lists(LEAVES, max_size=2),
)
DATALISTS = st.dictionaries(
    st.sampled_from([*WORDS[:9], "labels", "channel_names", "train", "val"]),
    st.lists(ENTRIES, max_size=3) | st.dictionaries(KEYS, ENTRIES, max_size=3) | LEAVES,
)
SHAPED = {
    **{
        text: THINGS.map(json.dumps) for text in TEXTS if text not in (csv_manifest, masks_manifest)
    },
    datalist: DATALISTS.map(json.dumps),
    nnunet_cases: DATALISTS.map(json.dumps),
    configuration: OPTIONS.map(yaml.safe_dump),
}


@HOW_MANY
@pytest.mark.parametrize("text", SHAPED, ids=lambda text: text.__name__)
def test_a_text_of_any_shape_is_understood_or_refused_in_one_line(invoke, scans, text, n) -> None:
    name, options = TEXTS[text]

    @settings(max_examples=n, suppress_health_check=list(HealthCheck))
    @given(content=SHAPED[text])
    def holds(content: str) -> None:
        plan(invoke, scans, name, content.encode("utf-8", "surrogatepass"), options)

    holds()


LAUGHS = "\n".join(
    ["a0: &a0 [ha, ha]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]
)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "content",
    [
        LAUGHS, f"only: {'[' * 5000}", "seed: " + "9" * 5000, "seed: 0x" + "f" * 5000,
        "only: !!python/object/apply:os.system [touch hacked]", "only: &a [*a]", "- 1", "7", "",
        "a: b: c", "clip_min: .nan", "clip_min: -.inf", "plane: [axial]", "? [1, 2]\n: 3",
        "seed: 2026-11-01", "only: !!binary aGk=", "%YAML 3.0\n---\nseed: 1",
        "seed: 1\n---\nseed: 2",
    ],
    ids=lambda content: content[:24],
)  # fmt: skip
def test_a_configuration_that_is_meant_to_harm_does_none(invoke, scans, content) -> None:
    name, options = TEXTS[configuration]
    plan(invoke, scans, name, content.encode(), options)
