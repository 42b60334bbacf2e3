"""Roles of cases: shipped lists, own files, and what is refused."""

from pathlib import Path

import pytest

from sdm_cli.config import DataConfig
from sdm_cli.data.manifest import StoredCase
from sdm_cli.data.splits import ROLES, Split, load_split, resolve_split
from sdm_cli.errors import SplitError
from sdm_cli.resources import split_names


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


def test_every_shipped_split_is_read():
    assert len(split_names()) >= 3
    for name in split_names():
        split = load_split(name)
        listed = [case_id for role in ROLES for case_id in getattr(split, role)]
        assert split.labeled
        assert split.unlabeled
        assert len(set(listed)) == len(listed)


def test_the_published_lists_have_their_sizes():
    laseg, synapse = load_split("laseg-5"), load_split("synapse-20")
    assert [len(getattr(laseg, role)) for role in ROLES] == [4, 76, 0, 20]
    assert [len(getattr(synapse, role)) for role in ROLES] == [4, 16, 4, 6]
    assert synapse.labeled == ("0009", "0021", "0025", "0034")
    assert set(load_split("laseg-10").labeled) > set(laseg.labeled)


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
    with pytest.raises(SplitError, match="cannot be read as a split"):
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


def test_nothing_left_is_refused(tmp_path):
    data = DataConfig(split=write(tmp_path, "labeled: [x]\nunlabeled: [b]"))
    with pytest.raises(SplitError, match=r"split\.yaml has no labeled case"):
        resolve_split(data, stored({"a": True, "b": False}), allow_missing=True)
