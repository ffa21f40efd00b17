"""Outputs from others: every command reads them, or refuses them in one line, and stays inside.

How many are made of each kind, in the slow tests: DASK_SLICER_FUZZ.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import slice_formats

import dask_slicer
from dask_slicer.errors import DaskSlicerError
from dask_slicer.inputs.phantom import write_dataset
from dask_slicer.output.formats.npz_archive import archive, piece
from dask_slicer.output.lock_owner import lock_text

# A dataset warns of cases that are missing.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
N = int(os.environ.get("DASK_SLICER_FUZZ", "15"))
FORMATS = [*slice_formats.FORMATS]
# Files of any output; and of this one, those of a case.
TEXTS = [
    "config.yaml", "dataset_info.json", "splits.json", "slices.csv", "failures.csv",
    "journal.jsonl", "structures.json", ".dask_slicer.lock", ".dask_slicer.shares.json",
    "journal.1of2.jsonl", "cases.json", "splits_final.json",
]  # fmt: skip
NASTY = [
    b"\0", b"\xff\xfe", b"\r", b'"', b"../", b"/etc/passwd", b"..\\\\", b"C:\\\\x", b"{", b"[",
    b"NaN", b"Infinity", b"1e999", b"-1", b"9" * 30, b"9" * 5000, b"[" * 20_000, b'{"a":' * 20_000,
    b"null", b"true", b'"x"', b"[]", b"{}", b"-", b"<script>alert(1)</script>", b"\\u0000",
    b"\\ud800", b"\x1b[31m", b"$\\\\frac{", b",,,", b"\n", b"!!python/name:os.system ",
]  # fmt: skip
VALUES = [
    None, True, -1, 0, 3, 10**30, 2**40, 1e308, float("nan"), float("inf"), "", "x", "../../x",
    "/etc/passwd", [], {}, [[]], {"a": 1}, [1, 2, 3], ["../x"], "<script>alert(1)</script>",
    "\x1b[31m", "$\\frac{",
]  # fmt: skip


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("scans")
    write_dataset(root, n_cases=3, shape=(12, 11, 4), varied=False)
    return root


@pytest.fixture(scope="module")
def outputs(scans, tmp_path_factory) -> dict[str, Path]:
    made = {}
    for format_ in FORMATS:
        made[format_] = tmp_path_factory.mktemp(format_) / "out"
        config = dask_slicer.RunConfig(
            input_dir=scans, output_dir=made[format_], num_workers=0,
            train_ratio=0.4, val_ratio=0.3,
            **{"window_size": 1} | slice_formats.FORMATS[format_],
        )  # fmt: skip
        dask_slicer.run(config, progress=False)
        add_other_files(made[format_])
    return made


def add_other_files(output: Path) -> None:
    """Add the files of an output that only some runs write, valid and without effect."""
    (output / "failures.csv").write_text("case_id,step,kind,message\nphantom_009,load,Timeout,x\n")
    (output / "structures.json").write_text('{"liver": 1}\n')
    splits = json.loads((output / "splits.json").read_text())
    (output / "cases.json").write_text(json.dumps({"groups": {}, "columns": {"sex": {}}}))
    cases = [*splits["train"], *splits["val"]]
    folds = [{"train": cases[:1], "val": cases[1:]}, {"train": cases[1:], "val": cases[:1]}]
    (output / "splits_final.json").write_text(json.dumps(folds))
    info = json.loads((output / "dataset_info.json").read_text())
    info["folds"] = {"number": 2, "seed": 1, "stratify": "sex", "group_column": None}
    (output / "dataset_info.json").write_text(json.dumps(info))
    (output / ".dask_slicer.lock").write_text("elsewhere 1 2 tcp://127.0.0.1:1 3 4.5")


def slices_of(output: Path) -> Iterator[tuple[str, object]]:
    """Yield what training and analysis read of an output."""
    dataset = dask_slicer.SliceDataset(output, split=None)
    for number in (0, len(dataset) - 1):
        yield "sample", dataset[number]
    opened = dask_slicer.open_output(output)
    if opened.folds:
        yield "fold", len(dask_slicer.SliceDataset(output, fold=0))
    yield "volume", opened.volume(opened.cases[0])
    yield "label", opened.label(opened.cases[0])


def read_all(output: Path) -> None:
    for _ in slices_of(output):
        pass


# What reads an output, after the name; without its lock and partitions where those would stop it.
FREE = (".dask_slicer.lock", ".dask_slicer.shares.json", "journal.1of2.jsonl")
COMMANDS = {
    "verify": ("verify", "{}", "--num_workers", "0"),
    "repair": ("verify", "{}", "--num_workers", "0", "--repair"),
    "report": ("report", "{}"),
    "preview": ("preview", "{}", "--n_slices", "3"),
    "watch": ("watch", "{}", "--once"),
    "merge": ("merge", "{}"),
    "split": ("split", "{}", "--folds", "2", "--stratify", "label"),
}


def use(invoke, output: Path, command: str) -> str:
    """Use an output; return how that ended: a status, or an error by its class."""
    if command == "python":
        try:
            read_all(output)
        except (DaskSlicerError, OSError) as error:
            return type(error).__name__
        return "read"
    result = invoke(*(word.format(output) for word in COMMANDS[command]))
    assert "Traceback" not in result.output
    assert "\x1b" not in result.output
    for line in result.stderr.splitlines():
        assert line.isprintable(), line
    if result.exit_code == 2:
        assert result.stderr.startswith("Error: "), result.output
        assert result.stderr.count("\n") == 1, result.stderr
    else:
        assert result.exit_code in (0, 1), result.output
    page = output / "report.html"
    if command == "report" and page.exists():
        assert "<script" not in page.read_text(encoding="utf-8")
    return str(result.exit_code)


@pytest.fixture
def used(outputs, invoke, tmp_path) -> Callable[..., str]:
    """Return a function that damages a copy of an output, and uses it; nothing else changes."""
    outside = tmp_path / "outside"
    (outside / "train").mkdir(parents=True)
    (outside / "train" / "x_000.npz").write_bytes(b"mine")

    def call(format_: str, command: str, damage: Callable[[Path], object]) -> str:
        output = tmp_path / "out"
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(outputs[format_], output)
        if command != "watch":
            for name in FREE:
                (output / name).unlink(missing_ok=True)
        damage(output)
        before = [path for path in sorted(tmp_path.rglob("*")) if output not in path.parents]
        ending = use(invoke, output, command)
        after = [path for path in sorted(tmp_path.rglob("*")) if output not in path.parents]
        assert before == after
        assert (outside / "train" / "x_000.npz").read_bytes() == b"mine"
        return ending

    return call


def with_bytes(rng: random.Random, path: Path) -> None:
    """Damage some bytes of a file."""
    data = path.read_bytes()
    for _ in range(rng.choice([1, 1, 2])):
        begins, ends = sorted(rng.choices(range(len(data) + 1), k=2))
        ends = min(ends, begins + 20)
        piece = rng.choice([b"", rng.choice(NASTY), data[begins:ends] * 2, rng.randbytes(3)])
        data = data[:begins] + piece + data[ends:]
    path.write_bytes(data)


def with_value(rng: random.Random, thing: object) -> object:
    """Return a JSON value in which one value, anywhere, is another one."""
    if rng.random() < 0.15 or not thing or not isinstance(thing, dict | list):
        return rng.choice(VALUES)
    if isinstance(thing, list):
        place = rng.randrange(len(thing))
        return [*thing[:place], with_value(rng, thing[place]), *thing[place + 1 :]]
    key = rng.choice(list(thing))
    if rng.random() < 0.1:
        return {name: value for name, value in thing.items() if name != key}
    return thing | {key: with_value(rng, thing[key])}


def with_cell(rng: random.Random, path: Path) -> None:
    """Replace a cell of a table."""
    lines = path.read_text().splitlines()
    number = rng.randrange(1, len(lines))
    cells = lines[number].split(",")
    cells[rng.randrange(len(cells))] = str(rng.choice(VALUES)).replace("\n", " ")
    lines[number] = ",".join(cells)
    path.write_text("\n".join(lines) + "\n")


def with_values(rng: random.Random, path: Path) -> None:
    """Replace a value of a JSON file, of a line of a journal, of a table, or of YAML."""
    text = path.read_text()
    if path.suffix == ".csv":
        with_cell(rng, path)
    elif path.suffix == ".jsonl":
        lines = text.splitlines()
        place = rng.randrange(len(lines))
        lines[place] = json.dumps(with_value(rng, json.loads(lines[place])))
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".yaml":
        lines = text.splitlines()
        place = rng.randrange(1, len(lines))
        lines[place] = f"{lines[place].partition(':')[0]}: {json.dumps(rng.choice(VALUES))}"
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".json":
        path.write_text(json.dumps(with_value(rng, json.loads(text))))
    else:
        words = text.split(" ")
        words[rng.randrange(len(words))] = str(rng.choice(VALUES))
        path.write_text(" ".join(words))


def prepared(output: Path, name: str) -> Path:
    """Return a file of an output, made from others if it is one of partitions."""
    path = output / name
    if name == "journal.1of2.jsonl":
        shutil.copy(output / "journal.jsonl", path)
    elif name == ".dask_slicer.shares.json":
        splits = json.loads((output / "splits.json").read_text())
        cases = [case for ids in splits.values() for case in ids]
        config = json.loads((output / "dataset_info.json").read_text())["config"]
        config = {name: value for name, value in config.items() if value is not None}
        content = {"config": config, "cases": cases, "splits": splits, "n_modalities": 1}
        path.write_text(json.dumps(content))
    elif name == ".dask_slicer.lock":
        path.write_text(f"{lock_text()} - 3 4.5")
    return path


HOW_MANY = pytest.mark.parametrize(
    "n", [pytest.param(N, marks=[pytest.mark.slow, pytest.mark.fuzz])], ids=["many"]
)
ALL = [*COMMANDS, "python"]


def deep(name: str) -> bytes:
    return b'{"train": ' + b"[" * 900 + b"]" * 900 + f', "{name}": {{}}}}'.encode()


# What is wrong, the command, its exit status or error, and words of the message.
WRONG = {
    "path above": ("slices.csv", b"train/", b"../train/", "python", "OutputError"),
    "absolute path": ("slices.csv", b",train/", b",/etc/train/", "python", "OutputError"),
    "backslashes": ("slices.csv", b",train/", b",..\\train\\", "python", "OutputError"),
    "case id above": ("slices.csv", b"phantom_000", b"../phantom_000", "python", "OutputError"),
    "other split": ("slices.csv", b"train", b"outside", "python", "OutputError"),
    "index too large": ("slices.csv", b",0,", b",99999999999,", "python", "OutputError"),
    "negative index": ("slices.csv", b",3,", b",-3,", "python", "OutputError"),
    "deep splits": ("splits.json", None, deep("val"), "merge", "2"),
    "deeper splits": ("splits.json", None, b"[" * 100_000, "report", "2"),
    "deep summary": ("dataset_info.json", None, deep("versions"), "verify", "1"),
    "no time": ("dataset_info.json", b'_seconds": ', b'_seconds": NaN, "x": ', "report", "0"),
    "no number": ("dataset_info.json", b'"num_cases": 3', b'"num_cases": "x"', "python", "read"),
    "splits of numbers": ("splits.json", None, b'{"train": [1]}', "merge", "2"),
    "shares of lists": (".dask_slicer.shares.json", b'"cases": [', b'"cases": [[], ', "merge", "2"),
    "lock that is no text": (".dask_slicer.lock", None, b"\xff\xfe", "verify", "1"),
    "lock of a huge process": (".dask_slicer.lock", None, b"x " + b"9" * 40 + b" 1", "watch", "0"),
    "folds of text": ("dataset_info.json", b'"number": 2', b'"number": "2"', "merge", "0"),
    "escape": ("splits_final.json", None, b'[{"train": ["\\u001b[3m"], "val": []}]', "verify", "1"),
    "deep table": ("cases.json", None, b"[" * 900 + b"]" * 900, "split", "2"),
    "deep folds": ("splits_final.json", None, deep("val"), "python", "OutputError"),
    "no voxels": ("journal.jsonl", b'"n_foreground":', b'"n_foreground":0,"x":', "report", "0"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_could_lead_elsewhere_or_never_end_is_refused(used, wrong) -> None:
    name, old, new, command, ending = WRONG[wrong]

    def damage(output: Path) -> None:
        path = prepared(output, name)
        before = path.read_bytes()
        path.write_bytes(new if old is None else before.replace(old, new))
        assert path.read_bytes() != before
        if name == "slices.csv":
            os.utime(path)

    assert used("npz", command, damage) == ending


# The same of an output of PNG files and of one by templates.
WRONG_FILES = {
    "path above": ("png", "slices.csv", b"images/train/", b"images/../train/", "OutputError"),
    "mask as image": ("png", "slices.csv", b",images/", b",masks/", "OutputError"),
    "journal as image": ("png", "slices.csv", b"images/train/", b"journal.jsonl/", "OutputError"),
    "row of a file": ("png", "slices.csv", b"_000.png,,", b"_000.png,0,", "OutputError"),
    "no row": ("files", "slices.csv", b".h5,0,", b".h5,,", "OutputError"),
    "one-based": ("files", "slices.csv", b"slice000", b"slice004", "OutputError"),
    "short index": ("files", "slices.csv", b"slice000", b"slice0", "OutputError"),
    "list as image": ("files", "slices.csv", b",tr/", b",lists/", "OutputError"),
    "template above": ("files", "config.yaml", b"path: tr/", b"path: ../tr/", "OutputError"),
    "list above": ("files", "config.yaml", b"path: lists/", b"path: ../", "OutputError"),
    "template of the top": (
        "files",
        "config.yaml",
        b"path: tr/",
        b"path: splits.json/",
        "OutputError",
    ),
    "endless digits": ("files", "config.yaml", b":03d", b":0999999999d", "OutputError"),
    "record above": ("png", "journal.jsonl", b'"images/', b'"../images/', "read"),
    "record outside": ("png", "journal.jsonl", b'"images/', b'"/images/', "read"),
    "record of a drive": ("files", "journal.jsonl", b'"tr/', b'"C:/', "read"),
}


@pytest.mark.parametrize(
    "command",
    ["python", "repair", *(pytest.param(c, marks=pytest.mark.slow) for c in ("merge", "split"))],
)
@pytest.mark.parametrize("wrong", WRONG_FILES)
def test_files_by_templates_stay_inside_too(used, wrong, command) -> None:
    format_, name, old, new, ending = WRONG_FILES[wrong]

    def damage(output: Path) -> None:
        before = (output / name).read_bytes()
        (output / name).write_bytes(before.replace(old, new))
        assert (output / name).read_bytes() != before
        os.utime(output / "slices.csv")

    ended = used(format_, command, damage)
    if command == "python" and (format_, ending) != ("files", "read"):
        assert ended == ending
    elif name == "config.yaml":
        assert ended in ("2", "OutputError", "UsageError")


def hostile_png(rng: random.Random, content: bytes) -> bytes:
    """Return a PNG file with one thing that is wrong, its checksums sound."""
    data = content[41:-16]
    pixels = zlib.decompress(data)
    sizes = [(0, 1), (1, 0), (2**31 - 1, 2**31 - 1), (2**32 - 1, 1), (5, 5)]
    header = content[16:29]
    match rng.randrange(6):
        case 0:
            width, height = rng.choice(sizes)
            header = width.to_bytes(4) + height.to_bytes(4) + header[8:]
        case 1:
            place = rng.randrange(8, 13)
            header = header[:place] + bytes([rng.randrange(256)]) + header[place + 1 :]
        case 2:  # a filter that there is not
            data = zlib.compress(bytes([rng.randrange(256)]) + pixels[1:])
        case 3:  # a bomb
            data = zlib.compress(bytes(10**7))
        case 4:
            data = rng.choice([b"", data[:-3], zlib.compress(pixels[:-1]), rng.randbytes(50)])
        case _:
            return rng.choice([b"", content[:20], content[:-12], content + b"x", content[8:]])
    chunks = (b"IHDR" + header, b"IDAT" + data, b"IEND")
    return content[:8] + b"".join(
        (len(chunk) - 4).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4) for chunk in chunks
    )


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("n", [2, pytest.param(N, marks=[pytest.mark.slow, pytest.mark.fuzz])])
@pytest.mark.parametrize("command", ["verify", "report", "preview", "python"])
def test_a_hostile_png_file_is_read_or_refused(used, command, n) -> None:
    rng = random.Random(f"png {command} {n}")
    endings: Counter[str] = Counter()
    for _ in range(n):

        def damage(output: Path) -> None:
            for path in sorted(output.glob("*/*/*.png")):
                if rng.random() < 0.5 or "phantom_000" in path.name:
                    path.write_bytes(hostile_png(rng, path.read_bytes()))
                    record_bytes(output, path)

        endings[used("png", command, damage)] += 1
    print(f"png, {command}: {dict(endings)}")  # noqa: T201  # pytest -rP


@pytest.mark.parametrize(
    "value", [*VALUES[::3], {"image": [1, 10**9, 10**9], "label": None}], ids=str
)
def test_hostile_metadata_of_png_files_are_read_or_refused(used, value) -> None:
    def damage(output: Path) -> None:
        for path in output.glob("metadata/*/*.json"):
            content = json.loads(path.read_text())
            for key in ("shape", "offset", "window_size"):
                content[key] = value
            path.write_text(json.dumps(content))
            record_bytes(output, path)

    used("png", "python", damage)
    used("png", "verify", damage)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("command", ["verify", "repair", "merge", "watch", "split", "python"])
@pytest.mark.parametrize(
    "name",
    [
        *("config.yaml", "journal.jsonl", "slices.csv", "train/*_000.npz", "cases.json"),
        "splits_final.json",
    ],
)
def test_a_named_pipe_in_an_output_does_not_block(used, name, command) -> None:
    def damage(output: Path) -> None:
        for path in output.glob(name):
            path.unlink()
            os.mkfifo(path)

    assert used("npz", command, damage) != "130"


@HOW_MANY
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("command", ALL)
@pytest.mark.parametrize("name", TEXTS)
def test_a_damaged_text_of_an_output_is_read_or_refused(used, name, command, n) -> None:
    if name == ".dask_slicer.lock" and command not in ("watch", "report"):
        pytest.skip("it refuses outputs in use")
    rng = random.Random(f"{name} {command} {n}")
    endings: Counter[str] = Counter()
    for number in range(n):
        change = rng.choice([with_bytes, with_values, with_values])

        def damage(output: Path, change=change) -> None:
            change(rng, prepared(output, name))
            if name == "slices.csv":  # not older than the journal, or that is read instead
                os.utime(output / name)

        endings[used(FORMATS[number % len(FORMATS)], command, damage)] += 1
    print(f"{name}, {command}: {dict(endings)}")  # noqa: T201  # pytest -rP


def npz_with(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def npz_of_ours_with(members: dict[str, bytes], plane_bytes: int) -> bytes:
    """Return a file whose archive is as we write it, whatever is in it."""
    pieces = {}
    for name, content in members.items():
        n_bytes = max(plane_bytes if name == "image" else len(content), 1)
        parts = [content[:128]]
        parts += [content[at : at + n_bytes] for at in range(128, len(content), n_bytes)]
        pieces[f"{name}.npy"] = [piece(part, level=1) for part in parts]
    return b"".join(archive(pieces.items(), level=1)[0])


def npy(array: np.ndarray, shape: tuple[int, ...] | None = None, descr: str = "") -> bytes:
    """Return an .npy file; `shape` and `descr` are what its header claims."""
    file = io.BytesIO()
    header = {
        "descr": descr or np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": False,
        "shape": array.shape if shape is None else shape,
    }
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + array.tobytes()


def members_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as archive:
        return dict(archive)


HEADERS = [
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"(" * 5000, b"\x93NUMPY", b"",
    b"\x93NUMPY\x01\x00\xff\xff", b"\x93NUMPY\x09\x00v\x00", b"\x80\x04.",
]  # fmt: skip


def hostile_npz(rng: random.Random, path: Path) -> bytes:
    """Return an .npz file with one thing that is wrong."""
    members = members_of(path)
    made = {name: npy(array) for name, array in members.items()}
    name = rng.choice(list(members))
    array = members[name]
    match rng.randrange(8):
        case 0:  # a shape that the file does not hold
            shape = rng.choice(
                [(10**6, 10**6, 10), (2**62, 4), (0, 11, 12), (-1, -132), (1,) * 40, ()]
            )
            made[name] = npy(array, shape=shape)
        case 1:
            made[name] = npy(array, descr=rng.choice(["<c16", "|O", "<M8[s]", "<U1", "|V4", ">f8"]))
        case 2:
            made[name] = rng.choice(HEADERS)
        case 3:
            del made[name]
        case 4:  # a bomb
            made[name] = npy(np.zeros(0, np.float32), shape=(1, 5000, 5000)) + bytes(10**8)
            return npz_with(made, rng.choice([zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, 8]))
        case 5:
            values = json.loads(members["metadata"].item())
            made["metadata"] = npy(np.array(json.dumps(with_value(rng, values))))
        case 6:
            content = rng.choice(["[" * 50_000, "1", "null", "NaN", '"', "{}"])
            made["metadata"] = npy(np.array(content))
        case _:
            values = np.full_like(members["image"], rng.choice([np.nan, np.inf, 3e38, 0, 1e30]))
            made["image"] = npy(values)
    if rng.random() < 0.5:
        return npz_of_ours_with(made, members["image"][0].nbytes)
    return npz_with(made)


def record_bytes(output: Path, changed: Path) -> None:
    """Journal the size and checksum of a changed file as if it were written so."""
    name = changed.relative_to(output).as_posix()
    lines = []
    for line in (output / "journal.jsonl").read_text().splitlines():
        record = json.loads(line)
        content = changed.read_bytes()
        for written in record["slices"]:
            if changed.name == f"{record['case_id']}_{written[0]:03d}.npz":
                written[1:3] = len(content), zlib.crc32(content)
        for file in record.get("output_files", []):
            if name == file[0]:
                file[1:3] = len(content), zlib.crc32(content)
        for file in record["files"]:
            if name == f"slices.zarr/{record['split']}/{record['case_id']}/{file[0]}":
                file[1:3] = len(content), zlib.crc32(content)
        lines.append(json.dumps(record))
    (output / "journal.jsonl").write_text("\n".join(lines) + "\n")
    os.utime(output / "slices.csv")


@HOW_MANY
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("command", ["verify", "report", "preview", "python"])
def test_a_hostile_npz_file_is_read_or_refused(used, command, n) -> None:
    rng = random.Random(f"npz {command} {n}")
    endings: Counter[str] = Counter()
    for _ in range(4 * n):

        def damage(output: Path) -> None:
            for path in sorted(output.glob("*/*.npz")):
                if rng.random() < 0.5 or path.name.startswith("phantom_000"):
                    path.write_bytes(hostile_npz(rng, path))
                    record_bytes(output, path)

        endings[used("npz", command, damage)] += 1
    print(f"npz, {command}: {dict(endings)}")  # noqa: T201  # pytest -rP


@HOW_MANY
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("command", ["verify", "report", "preview", "python"])
def test_hostile_metadata_of_a_zarr_store_is_read_or_refused(used, command, n) -> None:
    rng = random.Random(f"zarr {command} {n}")
    endings: Counter[str] = Counter()
    for _ in range(2 * n):

        def damage(output: Path) -> None:
            paths = sorted(output.glob("slices.zarr/*/*/**/zarr.json"))
            for path in rng.sample(paths, rng.choice([1, 1, len(paths)])):
                rng.choice([with_bytes, with_values, with_values])(rng, path)
                record_bytes(output, path)

        endings[used("zarr", command, damage)] += 1
    print(f"zarr, {command}: {dict(endings)}")  # noqa: T201  # pytest -rP
