"""Roles of cases: shipped lists, own files, and what is refused."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from sdm_cli.data.manifest import StoredCase
from sdm_cli.data.splits import ROLES, Split, load_split, resolve_split
from sdm_cli.data_config import DataConfig
from sdm_cli.errors import SplitError
from sdm_cli.preset_files import load_preset
from sdm_cli.resources import split_names, split_text


def stored(labeled, domains=None, patients=None):
    """Cases of a store, from case id -> whether it has a label."""
    domains, patients = domains or {}, patients or {}
    return {
        case_id: StoredCase(case_id, 3, 8, 8, (1.0, 1.0, 1.0), flag, domains.get(case_id), patients.get(case_id))
        for case_id, flag in labeled.items()
    }


def write(tmp_path: Path, text: str) -> str:
    (tmp_path / "split.yaml").write_text(text)
    return str(tmp_path / "split.yaml")


VENDORS = yaml.safe_load((Path(__file__).parent / "mnms_vendors.yaml").read_text(encoding="utf-8"))
# Labeled, unlabeled, validation and test cases of every shipped split; of ACDC patients.
SIZES = {
    "acdc-3": (3, 67, 10, 20),
    "acdc-7": (7, 63, 10, 20),
    "amos-2": (4, 212, 24, 120),
    "amos-5": (10, 206, 24, 120),
    "amos-10": (21, 195, 24, 120),
    "laseg-5": (4, 76, 0, 20),
    "laseg-10": (8, 72, 0, 20),
    "mmwhs-ct2mr": (16, 13, 3, 4),
    "mmwhs-mr2ct": (16, 13, 3, 4),
    "mnms-to-a-2": (10, 440, 0, 190),
    "mnms-to-a-5": (26, 424, 0, 190),
    "mnms-to-b-2": (8, 382, 0, 250),
    "mnms-to-b-5": (22, 368, 0, 250),
    "mnms-to-c-2": (12, 528, 0, 100),
    "mnms-to-c-5": (30, 510, 0, 100),
    "mnms-to-d-2": (12, 528, 0, 100),
    "mnms-to-d-5": (30, 510, 0, 100),
    "synapse-20": (4, 16, 4, 6),
    "synapse-40": (8, 12, 4, 6),
}
ID_FORMS = {
    "acdc": r"patient\d{3}",
    "amos": r"amos_\d{4}",
    "laseg": r"[A-Z0-9]{20}",
    "mmwhs": r"(ct|mr)_train_10\d\d",
    "mnms": r"[A-Z]\d[A-Z]\d[A-Z]\d_sa_\d+",
    "synapse": r"00\d\d",
}


def by_role(split: Split) -> dict[str, tuple[str, ...]]:
    return {role: getattr(split, role) for role in ROLES}


def test_every_shipped_split_is_known():
    assert set(split_names()) == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_a_shipped_split_has_its_cases(name):
    split = load_split(name)
    assert tuple(map(len, by_role(split).values())) == SIZES[name]
    listed = [case_id for case_ids in by_role(split).values() for case_id in case_ids]
    assert len(set(listed)) == len(listed)
    assert all(re.fullmatch(ID_FORMS[name.split("-")[0]], case_id) for case_id in listed)
    assert yaml.safe_load(split_text(name))["source"]
    assert split_text(name).startswith("# ")


@pytest.mark.parametrize("family", sorted(ID_FORMS))
def test_splits_of_one_set_share_their_test_cases(family):
    names = [name for name in SIZES if name.startswith(f"{family}-")]
    for first, second in itertools.pairwise(names):
        a, b = load_split(first), load_split(second)
        if a.test == b.test:
            assert set(a.labeled + a.unlabeled) == set(b.labeled + b.unlabeled)
            assert a.validation == b.validation
        else:  # other targets
            assert family in ("mmwhs", "mnms")


def test_counts_that_the_comments_state():
    for name in SIZES:
        n_labeled, n_unlabeled, _, n_test = SIZES[name]
        comment = " ".join(line.removeprefix("# ") for line in split_text(name).splitlines() if line.startswith("#"))
        if name.startswith("amos"):
            n_mr = {
                role: sum(int(case_id[-4:]) >= 500 for case_id in ids)
                for role, ids in by_role(load_split(name)).items()
            }
            assert f"labeled ({n_labeled}, of which {n_mr['labeled']} are MR)" in comment
            assert (
                f"{n_unlabeled} unlabeled ({n_mr['unlabeled']} MR), 24 validation ({n_mr['validation']} MR)" in comment
            )
            assert f"the 120 of labelsVa ({n_mr['test']} MR)" in comment
        if name.startswith("mnms"):
            assert f"its {n_test // 2} subjects are the test cases" in comment
            assert f"Of the {(n_labeled + n_unlabeled) // 2} subjects" in comment
            assert f"{n_labeled // 2} are labeled" in comment
            assert f"{n_unlabeled // 2} unlabeled" in comment


@pytest.mark.parametrize("name", [name for name in SIZES if name.startswith("mnms")])
def test_mnms_keeps_subjects_whole_and_the_target_vendor_unseen(name):
    vendor_of = {subject: vendor for vendor, subjects in VENDORS.items() for subject in subjects}
    assert {vendor: len(subjects) for vendor, subjects in VENDORS.items()} == {"a": 95, "b": 125, "c": 50, "d": 50}
    target = name.split("-")[2]
    subjects = {role: [case_id.split("_")[0] for case_id in ids] for role, ids in by_role(load_split(name)).items()}
    for role, ids in subjects.items():
        assert all(ids.count(subject) == 2 for subject in set(ids))  # two frames each
        assert all((vendor_of[subject] == target) == (role == "test") for subject in ids)
    assert set(subjects["test"]) == set(VENDORS[target])
    # Two frames a subject, all in one role: no subject is counted twice.
    assert len(set().union(*subjects.values())) == 320
    rules = load_preset(name).data
    training = tuple(sorted({*VENDORS} - {target}))
    assert (rules.labeled_domains, rules.unlabeled_domains, rules.unseen_domains) == (training, training, (target,))


@pytest.mark.parametrize("name", ["mmwhs-ct2mr", "mmwhs-mr2ct"])
def test_mmwhs_takes_labels_of_the_source_alone(name):
    source, target = name.removeprefix("mmwhs-").split("2")
    roles = by_role(load_split(name))
    assert {case_id[:2] for case_id in roles["labeled"]} == {source}
    assert {case_id[:2] for role in ("unlabeled", "validation", "test") for case_id in roles[role]} == {target}
    for preset in (name, f"{name}-clean"):
        rules = load_preset(preset).data
        assert (rules.labeled_domains, rules.unlabeled_domains) == ((source,), (target,))
        assert rules.split == name


def test_fewer_labels_are_among_the_more():
    assert set(load_split("laseg-5").labeled) < set(load_split("laseg-10").labeled)
    assert set(load_split("acdc-3").labeled) < set(load_split("acdc-7").labeled)
    assert load_split("synapse-20").labeled == ("0009", "0021", "0025", "0034")


def test_the_four_cases_of_synapse_40_are_drawn_as_its_file_says():
    few, many = load_split("synapse-20"), load_split("synapse-40")
    drawn = np.random.default_rng(0).choice(sorted(few.unlabeled), 4, replace=False)
    assert many.labeled == (*few.labeled, *sorted(drawn.tolist()))
    said = " ".join(line.removeprefix("# ") for line in split_text("synapse-40").splitlines())
    assert "numpy.random.default_rng(0).choice(sorted(unlabeled), 4, replace=False)" in said


def test_patients_of_acdc_become_their_frames():
    split = load_split("acdc-3")
    patients = [patient for ids in by_role(split).values() for patient in ids]
    cases = [f"{patient}_frame{frame}" for patient in patients for frame in ("01", "12")]
    store = stored(dict.fromkeys(cases, True), patients={case_id: case_id[:10] for case_id in cases})
    resolved = resolve_split(load_preset("acdc-3").data, store, allow_missing=False)
    assert [len(ids) for ids in by_role(resolved).values()] == [6, 134, 20, 40]


def test_a_file_of_ones_own(tmp_path):
    path = write(tmp_path, "source: me\nlabeled: [a]\nunlabeled: [b, 'c 1']\n")
    assert load_split(path) == Split(labeled=("a",), unlabeled=("b", "c 1"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("labelled: [a]", "unknown key labelled"),
        ("[a, b]", "a split is a mapping"),
        ("labeled: [a", "not valid YAML"),
        ("labeled: a", "must be a list"),
        ("labeled: [0021]", "reads a case id as 17; put the ids in quotes"),
        ("labeled: [1.5]", "put the ids in quotes"),
        ("labeled: [a, a]", "case a is twice in labeled"),
        ("labeled: [a]\nunlabeled: [a]", "case a is both labeled and unlabeled"),
        ("unlabeled: [a]\ntest: [a]", "case a is both unlabeled and test"),
        ("unlabeled: [a]\nvalidation: [a]", "case a is both unlabeled and validation"),
    ],
)
def test_a_split_that_cannot_be_used(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(SplitError, match=message) as caught:
        load_split(path)
    assert path in str(caught.value)


def test_an_unknown_split_is_named_with_the_shipped_ones(tmp_path):
    with pytest.raises(SplitError, match=r"no split 'laseg-6'; the shipped ones are .*laseg-5"):
        load_split("laseg-6")
    with pytest.raises(SplitError, match=r"cannot be read as a split \(No such file or directory\)"):
        load_split(str(tmp_path / "none.yaml"))


def test_without_a_split_labels_decide():
    split = resolve_split(DataConfig(), stored({"a": True, "b": False, "c": True}), allow_missing=False)
    assert split == Split(labeled=("a", "c"), unlabeled=("b",))


def test_a_split_decides_over_labels_that_exist(tmp_path):
    path = write(tmp_path, "labeled: [a]\nunlabeled: [b]\ntest: [c]")
    split = resolve_split(
        DataConfig(split=path), stored({"a": True, "b": True, "c": True, "extra": True}), allow_missing=False
    )
    assert split == Split(labeled=("a",), unlabeled=("b",), test=("c",))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "the store has no labeled case"),
        ({"a": False, "b": False}, "the store has no labeled case"),
        ({"a": True}, "the store has no unlabeled case"),
    ],
)
def test_both_sides_are_needed(flags, message):
    with pytest.raises(SplitError, match=message):
        resolve_split(DataConfig(), stored(flags), allow_missing=True)


def test_a_labeled_case_needs_its_label(tmp_path):
    path = write(tmp_path, "labeled: [a, b]\nunlabeled: [c]")
    with pytest.raises(SplitError, match="calls b labeled, but there is no label"):
        resolve_split(DataConfig(split=path), stored({"a": True, "b": False, "c": True}), allow_missing=True)


def test_missing_cases_are_named_and_can_be_left_out(tmp_path, capsys):
    data = DataConfig(split=write(tmp_path, "labeled: [a, x]\nunlabeled: [b, y]\ntest: [z]"))
    flags = {"a": True, "b": False}
    with pytest.raises(SplitError, match=r"lists 3 cases that the store does not hold \(x, y, z\).*--allow-missing"):
        resolve_split(data, stored(flags), allow_missing=False)
    assert resolve_split(data, stored(flags), allow_missing=True) == Split(labeled=("a",), unlabeled=("b",))
    assert "3 listed cases that the store does not hold: x, y, z" in capsys.readouterr().err


def test_hundreds_of_missing_cases_are_counted_and_twenty_named(capsys):
    data = load_preset("mnms-to-a-2").data
    cases = {"A5D0G0_sa_0": "b", "J9L6N9_sa_9": "b", "A1D0Q7_sa_9": "b", "A0S9V9_sa_0": "a"}
    resolve_split(data, stored(dict.fromkeys(cases, True), cases), allow_missing=True)
    assert re.search(r"without 636 listed cases .*: A5D0G0_sa_10, .* and 616 more\n", capsys.readouterr().err)


def test_nothing_left_is_refused(tmp_path):
    data = DataConfig(split=write(tmp_path, "labeled: [x]\nunlabeled: [b]"))
    with pytest.raises(SplitError, match=r"split\.yaml has no labeled case"):
        resolve_split(data, stored({"a": True, "b": False}), allow_missing=True)


def test_a_patient_and_one_of_its_scans_are_one_case_twice(tmp_path):
    path = write(tmp_path, "labeled: [p1, a]\nunlabeled: [c]")
    cases = stored({"a": True, "b": True, "c": True}, patients={"a": "p1", "b": "p1", "c": "p2"})
    with pytest.raises(SplitError, match="case a is twice in labeled"):
        resolve_split(DataConfig(split=path), cases, allow_missing=False)


def test_an_empty_list_is_no_role(tmp_path):
    with pytest.raises(SplitError, match="test is an empty list"):
        load_split(write(tmp_path, "labeled: [a]\nunlabeled: [b]\ntest: []"))
