"""Statistics of a dataset: the first pass, a file of them, and what an output keeps."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import dask_slicer
from dask_slicer.core.foreground import IntensityProperties
from dask_slicer.errors import OutputError, UsageError
from dask_slicer.execution import dataset_statistics, tasks
from dask_slicer.execution.partitions import record_plan
from dask_slicer.execution.verify import verify
from dask_slicer.inputs.phantom import write_dataset
from dask_slicer.monitoring.observer import Observer
from dask_slicer.output import directory

KEY = "foreground_intensity_properties_per_channel"
PLACE = {"num_workers": 0, "dashboard_address": "none", "normalize": "dataset"}


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    write_dataset(folder, n_cases=4, shape=(24, 20, 8), seed=5)
    return folder


class Notes(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def slice_scans(scans: Path, output: Path, **settings):
    return dask_slicer.run(
        {"input_dir": scans, "output_dir": output} | PLACE | settings, progress=False
    )


def bytes_of(output: Path) -> dict[str, bytes]:
    names = ("slices.csv", "splits.json", "statistics.json")
    paths = [*output.glob("*/*.npz"), *(output / name for name in names)]
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in paths}


def add_cases(dataset, names) -> None:
    rng = np.random.default_rng(1)
    for name in names:
        image = rng.integers(-100, 200, (8, 9, 10)).astype(np.float32)
        dataset.add(name, image, (image > 100).astype(np.uint8))


@pytest.mark.slow
def test_one_pass_gives_the_same_on_any_number_of_workers(scans, tmp_path) -> None:
    settings = {"crop": "label", "label_map": "1:1 *:0", "train_ratio": 0.75}
    config = dask_slicer.RunConfig(
        **{"input_dir": scans, "output_dir": tmp_path / "none"} | PLACE | settings
    )
    alone = dataset_statistics.statistics(config, Notes())
    for n in (0, 1, 2, 4):
        slice_scans(scans, tmp_path / f"{n}", num_workers=n, **settings)
        assert directory.existing_properties(tmp_path / f"{n}") == alone
    assert bytes_of(tmp_path / "0") == bytes_of(tmp_path / "4")
    assert not (tmp_path / "none").exists()


def test_the_order_of_the_cases_does_not_matter(scans, tmp_path, monkeypatch) -> None:
    slice_scans(scans, tmp_path / "one")
    planned = dataset_statistics.training_cases
    monkeypatch.setattr(dataset_statistics, "training_cases", lambda plan: planned(plan)[::-1])
    slice_scans(scans, tmp_path / "other")
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "other")


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_case_that_fails_in_the_pass_is_left_out(dataset, tmp_path, num_workers) -> None:
    add_cases(dataset, "abcd")
    label = np.zeros((8, 9, 10), np.uint8)
    label[3] = 77  # which the label map does not list
    dataset.add("e", label=label)
    settings = {"train_ratio": 1.0, "label_map": "1:1", "num_workers": num_workers}
    report = slice_scans(dataset.root, tmp_path / "out", **settings)
    assert [(failure.case_id, failure.kind) for failure in report.failures] == [
        ("e", "LabelValues")
    ]
    assert report.n_committed == 4
    frozen = directory.existing_properties(tmp_path / "out")
    dataset.image_path("e").unlink()
    dataset.label_path("e").unlink()
    slice_scans(dataset.root, tmp_path / "others", **settings)
    assert directory.existing_properties(tmp_path / "others") == frozen


@pytest.mark.parametrize("retries", [2, 1])
def test_a_case_that_cannot_be_read_at_once_is_tried_again(
    dataset, tmp_path, monkeypatch, retries
) -> None:
    """As a run does, also in its own process: a network disk may work at the next try."""
    add_cases(dataset, "ab")
    settings = {"train_ratio": 1.0, "retries": retries}
    load_volume, failures = tasks.load_volume, iter(range(2))

    def load(case, plane, **_):
        if case.case_id == "a" and next(failures, None) is not None:
            raise OSError(errno.EIO, "Input/output error")
        return load_volume(case, plane)

    monkeypatch.setattr(tasks, "load_volume", load)
    if retries == 1:
        with pytest.raises(UsageError, match=r"case a: OSError: .*Input/output error"):
            slice_scans(dataset.root, tmp_path / "out", **settings)
        assert not (tmp_path / "out").exists()
        return
    slice_scans(dataset.root, tmp_path / "out", **settings)
    slice_scans(dataset.root, tmp_path / "other", **settings)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "other")


def test_intensities_that_count_as_0_are_sampled_as_0(dataset, tmp_path) -> None:
    for name in "ab":
        image = np.full((4, 5, 6), 100, np.float32)
        image[:, 0] = np.nan
        dataset.add(name, image, np.ones((4, 5, 6)))
    settings = {"train_ratio": 1.0, "nonfinite": "zero"}
    report = slice_scans(dataset.root, tmp_path / "out", **settings)
    assert (report.n_committed, report.failures) == (2, ())
    (properties,) = directory.existing_properties(tmp_path / "out")
    assert (properties.min, properties.max) == (0, 100)
    with pytest.raises(UsageError, match="no case has a labelled voxel"):
        slice_scans(dataset.root, tmp_path / "strict", train_ratio=1.0)


def test_new_cases_are_normalised_as_the_first_ones(dataset, tmp_path) -> None:
    add_cases(dataset, "abcd")
    output = tmp_path / "out"
    slice_scans(dataset.root, output, train_ratio=1.0)
    before = bytes_of(output)
    dataset.add("e", np.full((8, 9, 10), 900, np.int16))
    report = slice_scans(dataset.root, output, train_ratio=1.0)
    assert (report.n_committed, report.n_skipped) == (1, 4)
    after = bytes_of(output)
    assert {name: after[name] for name in before if name.endswith(".npz")} == {
        name: content for name, content in before.items() if name.endswith(".npz")
    }
    assert after["statistics.json"] == before["statistics.json"]
    assert not verify(output, deep=50, num_workers=0).issues


def test_only_some_cases_are_normalised_as_all_are(scans, tmp_path) -> None:
    slice_scans(scans, tmp_path / "all")
    slice_scans(scans, tmp_path / "some", only=("phantom_001",))
    slice_scans(scans, tmp_path / "some")
    assert bytes_of(tmp_path / "some") == bytes_of(tmp_path / "all")


def test_training_cases_without_a_label_are_refused(dataset, tmp_path, invoke) -> None:
    for name in "abc":
        dataset.add(name, label=None)
    command = ("--input_dir", dataset.root, "--normalize", "dataset", "--num_workers", 0)
    for result, words in (
        (invoke("run", *command, "--output_dir", tmp_path / "out"), "there are none"),
        (invoke("statistics", *command, "--file", tmp_path / "new.json"), "no training case has"),
    ):
        assert result.exit_code == 2
        (line,) = [line for line in result.output.splitlines() if line.startswith("Error")]
        assert words in line
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "new.json").exists()


def test_cases_that_cannot_be_run_are_named(dataset, tmp_path, invoke) -> None:
    add_cases(dataset, "abcd")
    dataset.image_path("b").write_bytes(b"no scan")
    dataset.label_path("c").unlink()
    file = tmp_path / "new.json"
    command = ("statistics", "-i", dataset.root, "--train_ratio", 1, "--num_workers", 0)
    result = invoke(*command, "--file", file)
    assert result.exit_code == 0
    assert "leave out 2 cases that cannot be run: b, c; `dask-slicer plan` says" in result.output
    assert file.exists()


def test_a_file_that_cannot_be_written_is_refused_in_one_line(scans, tmp_path, invoke) -> None:
    command = ("statistics", "-i", scans, "--num_workers", 0, "--file")
    result = invoke(*command, tmp_path)
    assert (result.exit_code, result.stderr.splitlines()) == (
        2,
        [f"Error: --file {tmp_path} is a directory; name a file in it"],
    )
    name = "x" * 250  # that of a temporary file is longer
    result = invoke(*command, tmp_path / name)
    assert result.exit_code == 2
    *_, line = result.stderr.splitlines()
    assert line.startswith(f"Error: cannot write {tmp_path / name}: ")
    assert "name another place with --file" in line


def test_a_partition_is_refused_before_anything_starts(scans, tmp_path) -> None:
    settings = {"input_dir": scans, "output_dir": tmp_path / "out", "shard": "1/2"} | PLACE
    for refused in (dask_slicer.plan, dask_slicer.run):
        with pytest.raises(UsageError, match="needs --statistics with --shard"):
            refused(settings)
    assert not (tmp_path / "out").exists()
    # Not where the output has its statistics.
    slice_scans(scans, tmp_path / "out", only=("phantom_001",))
    report = dask_slicer.run(settings, progress=False)
    assert not report.failures


def test_partitions_that_start_together_have_the_same_statistics(scans, tmp_path) -> None:
    """None of them has written statistics.json when the others are planned."""
    values = dict.fromkeys(IntensityProperties.__dataclass_fields__, 1.0)
    files = [tmp_path / f"{name}.json" for name in ("one", "copy", "other")]
    for file, mean in zip(files, (1.0, 1.0, 2.0), strict=True):
        file.write_text(json.dumps({KEY: {"0": values | {"mean": mean}}}))
    settings = {"input_dir": scans, "output_dir": tmp_path / "out"} | PLACE
    plans = [
        dask_slicer.plan(settings, statistics=file, shard=f"{number}/3")
        for number, file in enumerate(files, 1)
    ]
    (tmp_path / "out").mkdir()
    first = record_plan(plans[0])
    assert first.properties == plans[0].properties != ()
    assert record_plan(plans[1]) == first  # from a file with the same contents
    with pytest.raises(OutputError, match=r"differs from .*: other statistics; run "):
        record_plan(plans[2])


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "3", "null", "{}", f'{{"{KEY}": []}}', f'{{"{KEY}": {{}}}}'),
        *(f'{{"{KEY}": null}}', f'{{"{KEY}": {{"1": {{}}}}}}', f'{{"{KEY}": {{"0": []}}}}'),
        *(f'{{"{KEY}": {{"0": {{"mean": "x"}}}}}}', "[" * 60 + "]" * 60, "\x00\udcff"),
    ],
)
def test_a_file_that_holds_no_statistics_is_refused(scans, tmp_path, invoke, content) -> None:
    file = tmp_path / "other.json"
    file.write_bytes(content.encode(errors="surrogateescape"))
    result = invoke(
        *("run", "-i", scans, "-o", tmp_path / "out", "--num_workers", 0),
        *("--normalize", "dataset", "--statistics", file),
    )
    assert result.exit_code == 2
    (line,) = result.output.splitlines()
    assert f"{file} " in line
    assert "holds no statistics" in line
    assert not (tmp_path / "out").exists()


def test_a_file_of_other_channels_or_none_is_refused(scans, tmp_path) -> None:
    values = dict.fromkeys(IntensityProperties.__dataclass_fields__, 1.0)
    file = tmp_path / "two.json"
    file.write_text(json.dumps({KEY: {"0": values, "1": values}}))
    with pytest.raises(UsageError, match="holds statistics of 2 channels, a case has 1"):
        slice_scans(scans, tmp_path / "out", statistics=file)
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UsageError, match="cannot read the statistics"):
            slice_scans(scans, tmp_path / "out", statistics=path)
    assert not (tmp_path / "out").exists()


def test_an_output_whose_cases_got_another_channel_is_refused_by_its_file(
    scans, tmp_path, invoke
) -> None:
    folder = Path(shutil.copytree(scans, tmp_path / "scans"))
    slice_scans(folder, tmp_path / "out")
    for path in (folder / "imagesTr").iterdir():
        shutil.copy(path, path.with_name(path.name.replace("_0000", "_0001")))
    result = invoke(
        *("run", "-i", folder, "-o", tmp_path / "out", "--normalize", "dataset"),
        *("--num_workers", 0),
    )
    assert result.exit_code == 2
    file = tmp_path / "out" / "statistics.json"
    assert result.stderr.splitlines() == [
        f"Error: {file} holds statistics of 1 channel, a case has 2"
    ]


def test_an_output_keeps_its_statistics_when_the_file_has_gone(scans, tmp_path) -> None:
    slice_scans(scans, tmp_path / "first")
    file, other = tmp_path / "ct.json", tmp_path / "copy.json"
    text = (tmp_path / "first" / "statistics.json").read_text()
    file.write_text(text)
    output = tmp_path / "out"
    slice_scans(scans, output, statistics=file)
    file.rename(other)
    assert slice_scans(scans, output, statistics=file).n_skipped == 4
    assert slice_scans(scans, output, statistics=other).n_skipped == 4
    assert slice_scans(scans, output).n_skipped == 4
    assert slice_scans(scans, tmp_path / "first", statistics=other).n_skipped == 4
    assert not verify(output, deep=10, num_workers=0).issues
    assert bytes_of(output) == bytes_of(tmp_path / "first")


@pytest.mark.parametrize("text", ["{", "other"])
def test_an_output_is_checked_by_its_own_statistics(scans, tmp_path, text) -> None:
    slice_scans(scans, tmp_path / "first")
    own = (tmp_path / "first" / "statistics.json").read_text()
    file, output = tmp_path / "ct.json", tmp_path / "out"
    file.write_text(own)
    slice_scans(scans, output, statistics=file)
    content = json.loads(own)
    content[KEY]["0"]["mean"] += 1
    file.write_text(text if text == "{" else json.dumps(content))
    assert not verify(output, deep=10, num_workers=0).issues


def change_statistics(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "damaged":
        path.write_text("{")
    else:
        (old,) = directory.existing_properties(path.parent)
        path.write_text(json.dumps({KEY: {"0": replace(old, mean=old.mean + 1).as_json()}}))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", "is missing"),
        ("damaged", "holds no statistics"),
        ("changed", "differs from dataset_info.json"),
    ],
)
def test_statistics_that_changed_are_found_and_written_again(scans, tmp_path, how, words) -> None:
    output = tmp_path / "out"
    slice_scans(scans, output)
    before = bytes_of(output)
    path = output / "statistics.json"
    change_statistics(path, how)
    report = verify(output, num_workers=0)
    assert [issue.path for issue in report.issues] == ["statistics.json"]
    assert words in report.issues[0].message
    for refused in (slice_scans, lambda _, output: verify(output, deep=3, num_workers=0)):
        with pytest.raises(UsageError, match=words) as caught:
            refused(scans, output)
        assert "verify --repair" in str(caught.value)
    assert not verify(output, repair=True, num_workers=0).to_rewrite
    assert slice_scans(scans, output).n_skipped == 4
    assert bytes_of(output) == before
    assert not verify(output, deep=10, num_workers=0).issues


@pytest.mark.parametrize("text", ["{", "statistics"])
def test_a_file_of_that_name_is_nothing_to_other_normalisations(scans, tmp_path, text) -> None:
    slice_scans(scans, tmp_path / "first")
    output = tmp_path / "out"
    slice_scans(scans, output, normalize="zscore")
    file = output / "statistics.json"
    file.write_text((tmp_path / "first" / file.name).read_text() if text != "{" else text)
    assert slice_scans(scans, output, normalize="zscore").n_skipped == 4
    assert KEY not in json.loads((output / "dataset_info.json").read_text())
    assert not verify(output, num_workers=0, deep=3).issues


def test_sizes_are_trusted_where_digests_hold_statistics(scans, tmp_path) -> None:
    output = tmp_path / "out"
    folder = tmp_path / "scans"
    write_dataset(folder, n_cases=3, shape=(24, 20, 8), seed=5)
    slice_scans(folder, output)
    for path in folder.rglob("*.nii.gz"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    report = slice_scans(folder, output, trust_size=True)
    assert (report.n_committed, report.n_skipped) == (0, 3)


@pytest.mark.slow
def test_two_runs_on_one_scheduler_do_not_share_samples(scans, tmp_path, started_scheduler) -> None:
    from distributed import Client

    def sampled(crop: str | None, client: Client | None):
        settings = {"input_dir": scans, "output_dir": tmp_path / "out", "crop": crop} | PLACE
        plan = dask_slicer.plan(settings)
        return dataset_statistics._samples(plan, plan.runnable, 100, client)

    crops = (None, "0:12,0:20,0:8")
    with started_scheduler(tmp_path, n_workers=1) as scheduler, Client(scheduler.address) as client:
        running = [sampled(crop, client) for crop in crops]
        first = [next(samples) for samples in running]  # of each, graphs are on the scheduler
        for crop, one, others in zip(crops, first, running, strict=True):
            here = {case.case_id: sample for case, sample in sampled(crop, None)}
            for case, sample in (one, *others):
                np.testing.assert_array_equal(sample, here[case.case_id])


def test_graphs_need_the_statistics(scans, tmp_path) -> None:
    settings = {"input_dir": scans, "output_dir": tmp_path / "out", "normalize": "dataset"}
    with pytest.raises(UsageError, match="needs statistics"):
        dask_slicer.build_graphs(dask_slicer.plan(settings))
    slice_scans(scans, tmp_path / "first")
    file = tmp_path / "first" / "statistics.json"
    assert len(dask_slicer.build_graphs(dask_slicer.plan(settings, statistics=file))) == 4
