"""Groups, stratification and folds through the command line."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dask_slicer import RunConfig, SliceDataset, open_output
from dask_slicer.errors import UsageError
from dask_slicer.planning.planner import make_plan

SUBJECTS = {f"sub-{number:02d}": "FM"[number % 2] for number in range(12)}
PARTICIPANTS = "".join(
    f"{subject}\t{sex}\t{20 + 5 * number}\t{'n/a' if number == 3 else 'AB'[number % 3 > 0]}\n"
    for number, (subject, sex) in enumerate(SUBJECTS.items())
)


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)


def add_subject(root: Path, subject: str, *, sessions: int = 1) -> None:
    """Add scans with labels; a third of the subjects have the label value 2, too."""
    rng = np.random.default_rng(sum(subject.encode()))
    for session in range(1, sessions + 1):
        stem = f"{subject}/ses-{session}/anat/{subject}_ses-{session}"
        image = rng.integers(0, 1000, (6, 7, 4)).astype(np.int16)
        label = np.zeros(image.shape, np.uint8)
        label[2:4] = 1
        if int(subject[-2:]) % 3 == 0:
            label[5] = 2
        write(root / f"{stem}_T1w.nii", image)
        write(root / "derivatives" / "m" / f"{stem}_dseg.nii", label)


@pytest.fixture
def bids(tmp_path) -> Path:
    """Return a BIDS dataset of 12 subjects, two of them with two sessions."""
    root = tmp_path / "scans"
    for number, subject in enumerate(SUBJECTS):
        add_subject(root, subject, sessions=2 if number in (1, 6) else 1)
    (root / "participants.tsv").write_text(f"participant_id\tsex\tage\tsite\n{PARTICIPANTS}")
    return root


@pytest.fixture
def run(invoke, bids, tmp_path) -> Callable[..., str]:
    """Return a function that runs with options into an output, and returns what it printed."""

    def call(*options: object, status: int = 0, output: str = "slices") -> str:
        result = invoke(
            *("run", "-i", bids, "-o", tmp_path / output, "--num_workers", 0, *options),
        )
        assert result.exit_code == status, result.output
        return " ".join(result.output.split())

    return call


def columns_of(input_dir: Path) -> dict[str, dict[str, str]]:
    config = RunConfig(input_dir=input_dir, output_dir=input_dir.parent / "none")
    return make_plan(config).table.columns


def folds_in(output: Path) -> list[dict[str, list[str]]]:
    return json.loads((output / "splits_final.json").read_text())


def subject_of(case_id: str) -> str:
    return case_id.partition("_")[0]


def check(output: Path, n_folds: int) -> list[dict[str, list[str]]]:
    """Check folds against splits.json and the subjects; return them."""
    splits = json.loads((output / "splits.json").read_text())
    folds = folds_in(output)
    assert len(folds) == n_folds
    others = sorted(splits["train"] + splits["val"])
    assert sorted(case for fold in folds for case in fold["val"]) == others
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == others
        assert fold["train"] == sorted(fold["train"])
        assert fold["val"]
        assert not set(map(subject_of, fold["train"])) & set(map(subject_of, fold["val"]))
    return folds


def files_of(output: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(output)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(output.rglob("*.npz"))
    }


# -- a run -----------------------------------------------------------------------------------------


def test_folds_by_a_column_of_participants(run, invoke, tmp_path) -> None:
    output = run("--folds", 4, "--stratify", "sex")
    for words in ("Stratified by sex: train F: ", "Folds: 4 of ", "stratified by sex Fold 0: "):
        assert words in output
    folds = check(tmp_path / "slices", 4)
    for fold in folds:
        sexes = Counter(SUBJECTS[subject_of(case)] for case in fold["val"])
        assert abs(sexes["F"] - sexes["M"]) <= 2
    shown = invoke("plan", "-i", tmp_path / "scans", "--folds", 4, "--stratify", "sex", "--json")
    assert json.loads(shown.stdout)["folds"] == folds
    assert invoke("verify", tmp_path / "slices", "--num_workers", 0).exit_code == 0
    info = json.loads((tmp_path / "slices" / "dataset_info.json").read_text())
    assert info["folds"] == {"number": 4, "seed": 42, "stratify": "sex", "group_column": None}


def test_folds_by_label_are_made_when_all_cases_have_been_run(run, tmp_path) -> None:
    output = run("--folds", 3, "--stratify", "label", "--only", "sub-03_ses-1_T1w")
    assert "Folds: 3, stratified by label, made when all cases have been run" in output
    assert "splits_final.json needs the labels of " in output
    assert not (tmp_path / "slices" / "splits_final.json").exists()
    run("--folds", 3, "--stratify", "label")
    for fold in check(tmp_path / "slices", 3):
        with_two = [case for case in fold["val"] if int(case[4:6]) % 3 == 0]
        assert 1 <= len(with_two) <= 2


def test_without_these_options_an_output_has_no_folds(run, tmp_path) -> None:
    run()
    names = {path.name for path in (tmp_path / "slices").iterdir()}
    assert "splits_final.json" not in names
    assert "folds" not in json.loads((tmp_path / "slices" / "dataset_info.json").read_text())


def test_groups_and_the_columns_that_are_used_are_kept(run, tmp_path) -> None:
    run("--stratify", "site", "--folds", 3)
    table = json.loads((tmp_path / "slices" / "cases.json").read_text())
    assert table["groups"]["sub-01_ses-2_T1w"] == "sub-01"
    assert list(table["columns"]) == ["site"]
    assert table["columns"]["site"]["sub-02_ses-1_T1w"] == "B"
    assert "sub-03_ses-1_T1w" not in table["columns"]["site"]
    run("--folds", 3)
    assert json.loads((tmp_path / "slices" / "cases.json").read_text())["columns"] == {}


def test_cases_without_groups_and_columns_have_no_table(dataset, slice_dataset) -> None:
    dataset.add("a")
    assert not (slice_dataset() / "cases.json").exists()


def test_columns_decide_no_digest(run, bids, tmp_path) -> None:
    run("--stratify", "sex")
    before = files_of(tmp_path / "slices")
    table = bids / "participants.tsv"
    table.write_text(table.read_text().replace("\tF\t", "\tX\t"))
    assert "Nothing to do" in run("--stratify", "sex")
    assert files_of(tmp_path / "slices") == before
    kept = json.loads((tmp_path / "slices" / "cases.json").read_text())
    assert set(kept["columns"]["sex"].values()) == {"X", "M"}


def test_ratios_are_stratified_only_if_asked(run, tmp_path) -> None:
    run(output="plain")
    run("--folds", 3, output="folds")
    run("--stratify", "age", output="age")
    plain, folds, age = (
        json.loads((tmp_path / name / "splits.json").read_text())
        for name in ("plain", "folds", "age")
    )
    assert plain == folds != age
    assert sorted(case for split in age.values() for case in split) == sorted(
        case for split in plain.values() for case in split
    )


def test_a_group_column_wins_over_subjects(run, tmp_path) -> None:
    output = run("--group_column", "site", "--train_ratio", 0.5, "--val_ratio", 0.5)
    assert "1 case without a value in the column site, each in the group of its own" in output
    splits = json.loads((tmp_path / "slices" / "splits.json").read_text())
    split_of = {subject_of(case): split for split, cases in splits.items() for case in cases}
    of_site = {
        site: {split_of[f"sub-{n:02d}"] for n in range(12) if n != 3 and "AB"[n % 3 > 0] == site}
        for site in "AB"
    }
    assert all(len(splits) == 1 for splits in of_site.values())
    table = json.loads((tmp_path / "slices" / "cases.json").read_text())
    assert table["groups"]["sub-03_ses-1_T1w"] == "sub-03"
    assert table["groups"]["sub-00_ses-1_T1w"] == "A"


REFUSED = {
    "an unknown column": (["--stratify", "sx"], "--stratify sx: no case has a value in such a"),
    "its neighbours": (["--stratify", "sx"], "did you mean sex?; there are sex, age, site"),
    "an unknown group": (["--group_column", "scanner"], "there are sex, age, site"),
    "one fold": (["--folds", 1], "folds must be 2 or more, got 1"),
    "more folds than subjects": (["--folds", 12], "12 folds need 12 groups of cases (patients)"),
    "label alone": (["--stratify", "label"], "stratify label needs folds"),
    "no name": (["--stratify", ""], "stratify: string should have at least 1 character"),
}


@pytest.mark.parametrize(("options", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    run, tmp_path, options, words
) -> None:
    assert words in run(*options, status=2)
    assert not (tmp_path / "slices").exists()


def test_a_session_has_columns_of_its_own(bids, run) -> None:
    table = "session_id\tscanner\tage\nses-1\tX\t1\nses-2\tY\tn/a\n"
    (bids / "sub-01" / "sub-01_sessions.tsv").write_text(table)
    assert "puts cases of one patient into different groups" in run("--group_column", "scanner")
    columns = columns_of(bids)
    assert columns["scanner"] == {"sub-01_ses-1_T1w": "X", "sub-01_ses-2_T1w": "Y"}
    ages = columns["age"]
    assert (ages["sub-01_ses-1_T1w"], ages["sub-01_ses-2_T1w"]) == ("1", "25")


@pytest.mark.parametrize(
    "table", ["participant_id,sex\nsub-01,F\n", "id\tsex\n", "participant_id\tsex\nsub-01\t\xfc\n"]
)
def test_a_table_of_participants_that_cannot_be_read_is_noted(bids, run, table) -> None:
    (bids / "participants.tsv").write_text(table, encoding="latin-1")
    assert "participants.tsv lists no participant: it must be UTF-8 text with tabs" in run()


def test_the_nearest_table_of_participants_counts(bids) -> None:
    add_subject(bids / "rawdata" / "R1", "sub-77")
    rows = "participant_id\tsex\nsub-77\tX\nsub-01\tX\n"
    (bids / "rawdata" / "participants.tsv").write_text(rows)
    columns = columns_of(bids)
    assert columns["sex"]["sub-77_ses-1_T1w"] == "X"
    assert columns["sex"]["sub-01_ses-2_T1w"] == "M"


def test_rows_that_contradict_each_other_give_no_value(bids, run) -> None:
    with (bids / "participants.tsv").open("a") as table:
        table.write("05\tF\t45\tB\n")
    assert "participants.tsv has several rows for sub-05" in run()
    columns = columns_of(bids)
    assert "sub-05_ses-1_T1w" not in columns["sex"]
    assert columns["age"]["sub-05_ses-1_T1w"] == "45"


def test_cases_of_patterns_have_the_columns_of_their_subjects(run, tmp_path) -> None:
    labels = ("--labels", "derivatives/m/sub-*/ses-*/anat/*_dseg.nii")
    patterns = ("--images", "sub-*/ses-*/anat/*_T1w.nii", *labels, "--train_ratio", 1)
    run(*patterns, "--group_column", "participant_id", "--folds", 3, "--stratify", "sex")
    table = json.loads((tmp_path / "slices" / "cases.json").read_text())
    assert set(table["groups"].values()) == set(SUBJECTS)
    for case, sex in table["columns"]["sex"].items():
        assert SUBJECTS[table["groups"][case]] == sex
    for fold in folds_in(tmp_path / "slices"):
        groups = [{table["groups"][case] for case in fold[part]} for part in fold]
        assert not set.intersection(*groups)


# -- continuing ------------------------------------------------------------------------------------


def test_folds_are_added_to_a_finished_output_without_writing_slices(run, tmp_path) -> None:
    run()
    before = files_of(tmp_path / "slices")
    assert "Nothing to do" in run("--folds", 3, "--stratify", "sex")
    assert files_of(tmp_path / "slices") == before
    folds = check(tmp_path / "slices", 3)
    run("--folds", 3, "--stratify", "sex")
    assert folds_in(tmp_path / "slices") == folds
    assert "was made with other settings, and is made again" in run("--folds", 4)
    check(tmp_path / "slices", 4)


def test_cases_that_are_added_join_the_folds(run, bids, tmp_path) -> None:
    run("--folds", 3, "--stratify", "label")
    before = check(tmp_path / "slices", 3)
    add_subject(bids, "sub-06", sessions=3)
    for number in range(12, 18):
        add_subject(bids, f"sub-{number}")
    run()  # as the folds of the output were made
    after = check(tmp_path / "slices", 3)
    for old, new in zip(before, after, strict=True):
        assert set(old["val"]) <= set(new["val"])
    assert sum(len(fold["val"]) for fold in after) > sum(len(fold["val"]) for fold in before)


@pytest.mark.parametrize("stratify", ["label", "sex"])
def test_a_run_in_two_parts_gives_the_folds_of_one(run, tmp_path, stratify) -> None:
    options = ("--folds", 3, "--stratify", stratify)
    assert "val (" in run(*options, output="once")
    run(*options, "--only", "sub-01_ses-1_T1w", "sub-02_ses-1_T1w", output="twice")
    run(*options, output="twice")
    assert folds_in(tmp_path / "once") == folds_in(tmp_path / "twice")


def test_folds_that_the_user_removed_stay_away(run, tmp_path) -> None:
    run("--folds", 3)
    (tmp_path / "slices" / "splits_final.json").unlink()
    run()
    assert not (tmp_path / "slices" / "splits_final.json").exists()
    assert "folds" not in json.loads((tmp_path / "slices" / "dataset_info.json").read_text())
    run("--folds", 3)
    check(tmp_path / "slices", 3)


def test_cases_that_are_pruned_leave_the_folds(run, bids, tmp_path) -> None:
    run("--folds", 3)
    gone = folds_in(tmp_path / "slices")[0]["val"][0]
    for path in bids.rglob(f"{gone.removesuffix('_T1w')}_*"):
        path.unlink()
    run("--folds", 3, "--prune")
    assert gone not in json.dumps(check(tmp_path / "slices", 3))


def test_overwrite_removes_folds_and_table(run, bids, tmp_path) -> None:
    run("--folds", 3)
    (bids / "participants.tsv").unlink()
    (tmp_path / "slices" / "cases.json").write_text("{damaged")
    assert "cases.json is damaged" in run(status=2)
    run("--overwrite")
    assert not (tmp_path / "slices" / "splits_final.json").exists()
    assert json.loads((tmp_path / "slices" / "cases.json").read_text())["columns"] == {}


def test_a_case_that_failed_is_in_a_fold_and_stays_there(run, bids, tmp_path) -> None:
    scan = bids / "sub-04" / "ses-1" / "anat" / "sub-04_ses-1_T1w.nii"
    content = scan.read_bytes()
    scan.write_bytes(content[:-9])
    run("--folds", 3, "--stratify", "label", "--train_ratio", 1, status=1)
    folds = check(tmp_path / "slices", 3)
    scan.write_bytes(content)
    run("--folds", 3, "--stratify", "label", "--train_ratio", 1)
    assert check(tmp_path / "slices", 3) == folds


def test_partitions_get_the_folds_of_one_run(run, invoke, tmp_path) -> None:
    options = ("--folds", 3, "--stratify", "label")
    run(*options, output="whole")
    for shard in ("1/2", "2/2"):
        run(*options, "--shard", shard, output="parts")
        assert not (tmp_path / "parts" / "splits_final.json").exists()
    assert "other partitions" in run("--folds", 4, "--shard", "2/2", output="parts", status=2)
    assert invoke("merge", tmp_path / "parts").exit_code == 0
    for name in ("splits_final.json", "cases.json", "splits.json"):
        whole, parts = tmp_path / "whole" / name, tmp_path / "parts" / name
        assert whole.read_bytes() == parts.read_bytes()


# -- dask-slicer split -----------------------------------------------------------------------------


def test_split_makes_the_folds_of_a_run(run, invoke, tmp_path) -> None:
    for stratify in ("label", "sex"):
        run("--folds", 3, "--stratify", stratify, output="run")
        run(output="split")
        result = invoke("split", tmp_path / "split", "--folds", 3, "--stratify", stratify)
        assert result.exit_code == 0
        assert f"stratified by {stratify}" in result.output
        assert folds_in(tmp_path / "split") == folds_in(tmp_path / "run")
        assert invoke("verify", tmp_path / "split", "--num_workers", 0).exit_code == 0


def test_split_by_another_column_and_seed(run, invoke, tmp_path) -> None:
    run("--train_ratio", 1)
    output = tmp_path / "slices"
    again = "splits_final.json was made with other settings, and is made again"
    result = invoke("split", output)
    assert result.exit_code == 0
    assert again not in result.output
    first = check(output, 5)
    assert invoke("split", output, "--seed", 7, "-q").output == ""
    assert check(output, 5) != first
    assert again in invoke("split", output, "--seed", 8).output
    run("--train_ratio", 1)  # keeps them
    assert invoke("split", output, "--folds", 2, "--group_column", "site").exit_code == 0
    sites = json.loads((output / "cases.json").read_text())["columns"]["site"]
    for fold in check(output, 2):
        parts = [{sites.get(case, case) for case in fold[part]} for part in fold]
        assert not set.intersection(*parts)


SPLIT_REFUSED = {
    "a column": (["--stratify", "weight"], "there are sex, age, site"),
    "folds": (["--folds", 1], "folds must be 2 or more"),
    "too many folds": (["--folds", 40], "40 folds need 40 groups"),
    "a group in test": (["--group_column", "sex"], "folds would train on patients of test"),
}


@pytest.mark.parametrize(("options", "words"), SPLIT_REFUSED.values(), ids=SPLIT_REFUSED)
def test_split_refuses(run, invoke, tmp_path, options, words) -> None:
    run()
    result = invoke("split", tmp_path / "slices", *options)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())
    assert not (tmp_path / "slices" / "splits_final.json").exists()


def test_split_reads_columns_that_the_output_lacks_from_the_dataset(
    run, invoke, bids, tmp_path
) -> None:
    run("--train_ratio", 1)
    output = tmp_path / "slices"
    (output / "cases.json").unlink()  # as in an output of an earlier version
    bids.rename(tmp_path / "away")
    split = ("split", output, "--folds", 3, "--stratify")
    result = invoke(*split, "sex")
    assert result.exit_code == 2
    words = "--stratify sex: cases.json has no such column, and the dataset of the run cannot be"
    assert words in " ".join(result.output.split())
    assert invoke(*split, "label").exit_code == 0
    check(output, 3)  # with the patients in the journal
    (tmp_path / "away").rename(bids)
    assert invoke(*split, "sex").exit_code == 0
    assert list(json.loads((output / "cases.json").read_text())["columns"]) == ["sex"]
    add_subject(bids, "sub-12")
    with (bids / "participants.tsv").open("a") as table:
        table.write("sub-12\tM\t9\tA\n")
    run("--train_ratio", 1)  # as the folds of the output were made
    check(output, 3)
    columns = json.loads((output / "cases.json").read_text())["columns"]
    assert (list(columns), columns["sex"]["sub-12_ses-1_T1w"]) == (["sex"], "M")
    assert invoke("split", output, "--group_column", "site", "--folds", 2).exit_code == 0
    assert list(json.loads((output / "cases.json").read_text())["columns"]) == ["site"]


def test_split_needs_an_output(invoke, tmp_path) -> None:
    result = invoke("split", tmp_path)
    assert (result.exit_code, "is not an output of dask-slicer" in result.output) == (2, True)


def test_folds_of_the_user_are_not_replaced(run, invoke, tmp_path) -> None:
    run()
    own = tmp_path / "slices" / "splits_final.json"
    own.write_text('[{"train": [], "val": []}]')
    assert "was not made for this output" in run("--folds", 3, status=2)
    assert invoke("split", tmp_path / "slices").exit_code == 2
    run()
    assert own.read_text() == '[{"train": [], "val": []}]'


def test_damaged_folds_are_named(run, tmp_path) -> None:
    run("--folds", 3)
    (tmp_path / "slices" / "splits_final.json").write_text('[{"train": 3}]')
    assert "splits_final.json is damaged (fold 0 has no lists" in run("--folds", 3, status=2)


# -- verify ----------------------------------------------------------------------------------------

LEAKS: dict[str, Callable[[list[dict[str, list[str]]]], object]] = {
    "cases in train and in val": lambda folds: folds[1]["train"].append(folds[1]["val"][0]),
    "groups in train and in val": lambda folds: (
        folds[1]["val"].remove("sub-06_ses-2_T1w") or folds[1]["train"].append("sub-06_ses-2_T1w")
    ),
    "cases that are not in splits.json": lambda folds: folds[0]["val"].append("gone"),
}


@pytest.mark.parametrize(("words", "change"), LEAKS.items(), ids=LEAKS)
def test_verify_finds_leaks_in_folds(run, invoke, tmp_path, words, change) -> None:
    run("--folds", 2, "--train_ratio", 1)
    folds = folds_in(tmp_path / "slices")
    if "sub-06_ses-2_T1w" in folds[0]["val"]:
        folds.reverse()
    change(folds)
    (tmp_path / "slices" / "splits_final.json").write_text(json.dumps(folds))
    result = invoke("verify", tmp_path / "slices", "--num_workers", 0)
    assert (result.exit_code, words in " ".join(result.output.split())) == (1, True), result.output


def test_verify_finds_cases_of_test_in_folds(run, invoke, tmp_path) -> None:
    run("--folds", 2)
    folds = folds_in(tmp_path / "slices")
    (tested, *_) = json.loads((tmp_path / "slices" / "splits.json").read_text())["test"]
    folds[0]["val"].append(tested)
    (tmp_path / "slices" / "splits_final.json").write_text(json.dumps(folds))
    result = invoke("verify", tmp_path / "slices", "--num_workers", 0)
    assert result.exit_code == 1
    assert f"fold 0 has cases that are for test: {tested}" in " ".join(result.output.split())


def test_verify_finds_a_group_in_two_splits_by_the_table(run, invoke, tmp_path) -> None:
    run("--train_ratio", 0.5, "--val_ratio", 0.5)
    table = tmp_path / "slices" / "cases.json"
    content = json.loads(table.read_text())
    content["groups"] = dict.fromkeys(content["groups"], "one")
    table.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    result = invoke("verify", tmp_path / "slices", "--num_workers", 0)
    assert result.exit_code == 1
    assert "has the cases of group one in train and val" in " ".join(result.output.split())


# -- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("slice_format", ["npz", "zarr"])
def test_a_dataset_of_a_fold_has_its_cases_of_any_split(run, tmp_path, slice_format) -> None:
    run("--folds", 3, "--format", slice_format)
    output = tmp_path / "slices"
    for number, fold in enumerate(folds_in(output)):
        for part, cases in fold.items():
            dataset = SliceDataset(output, fold=number, part=part)
            assert sorted(case.case_id for case in dataset.index.cases) == cases
            assert len(dataset) == 4 * len(cases)
            assert dataset[0]["image"].shape == (5, 7, 6)
        assert len(SliceDataset(output, fold=number)) == 4 * len(fold["train"])
    assert open_output(output).folds == folds_in(output)


WRONG_FOLDS = {
    "too large": ({"fold": 3}, "fold must be one of 0 to 2"),
    "negative": ({"fold": -1}, "fold must be one of 0 to 2"),
    "no number": ({"fold": True}, "fold must be one of 0 to 2"),
    "with split": ({"fold": 0, "split": "train"}, "fold and split both choose cases.*part='val'"),
    "with all splits": ({"fold": 0, "split": None}, "fold and split both choose cases"),
    "part": ({"fold": 0, "part": "test"}, "part must be one of train, val, got test"),
    "part alone": ({"part": "val"}, "part needs fold"),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG_FOLDS.values(), ids=WRONG_FOLDS)
def test_a_wrong_fold_is_an_error(run, tmp_path, arguments, words) -> None:
    run("--folds", 3)
    with pytest.raises(UsageError, match=words):
        SliceDataset(tmp_path / "slices", **arguments)


def test_a_fold_of_an_output_without_folds_is_an_error(run, tmp_path) -> None:
    run()
    with pytest.raises(UsageError, match=r"has no splits_final.json: dask-slicer split .* writes"):
        SliceDataset(tmp_path / "slices", fold=0)


def test_cases_of_a_fold_may_be_chosen(run, tmp_path) -> None:
    run("--folds", 3)
    output = tmp_path / "slices"
    chosen, other = (folds_in(output)[0][part][0] for part in ("val", "train"))
    assert len(SliceDataset(output, fold=0, part="val", cases=[chosen])) == 4
    with pytest.raises(UsageError, match="is not in val of fold 0"):
        SliceDataset(output, fold=0, part="val", cases=[other])


# -- manifests and datalists -----------------------------------------------------------------------


def manifest_of(root: Path, suffix: str) -> Path:
    """Write the columns of a manifest or datalist: 6 scans with sex and age."""
    rows = []
    for number in range(6):
        write(root / f"{number}.nii", np.full((4, 4, 4), number, np.int16) + np.eye(4, dtype="i2"))
        row = {"case_id": f"c{number}", "image": f"{number}.nii"}
        rows.append(row | {"sex": "FM"[number % 2], "age": 20 + number})
    path = root / f"cases.{suffix}"
    if suffix in ("csv", "tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=",;\t"[2 * (suffix == "tsv")])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text(json.dumps({"cases" if suffix == "json" else "training": rows}))
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "list.json"])
def test_columns_of_a_manifest_stratify(invoke, tmp_path, suffix) -> None:
    path = manifest_of(tmp_path, suffix)
    options = ("--train_ratio", 1, "--folds", 3, "--stratify", "sex", "--num_workers", 0)
    result = invoke("run", "-i", path, "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    assert "Fold 0: 4 train, 2 val (sex F: 1, M: 1)" in result.output
    columns = columns_of(path)
    assert list(columns)[-2:] == ["sex", "age"]
    assert sorted(columns["age"].values()) == ["20", "21", "22", "23", "24", "25"]


def test_a_written_manifest_has_the_columns_of_participants(invoke, bids, tmp_path) -> None:
    table = bids / "participants.tsv"
    table.write_text(table.read_text().replace("\tsite", "\tgroup"))
    options = ("--train_ratio", 1, "--folds", 3, "--json")
    manifest = tmp_path / "cases.csv"
    first = invoke(
        "plan", "-i", bids, "--stratify", "group", "--write_manifest", manifest, *options
    )
    assert manifest.read_text().splitlines()[0] == (
        "case_id,image:T1w,label,group,split,sex,age,group_"
    )
    second = invoke("plan", "-i", manifest, "--stratify", "group_", *options)
    assert json.loads(first.stdout)["folds"] == json.loads(second.stdout)["folds"] is not None
