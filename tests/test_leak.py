"""Labels of unlabeled, target and unseen cases: ways in which they could reach training, each one tried."""

import csv
import json
import shutil

import h5py
import numpy as np
import pytest
import torch
from scans import write_nifti
from stores import scan, tiny_preset

from sdm_cli.data.pairs import PairedSlices
from sdm_cli.data.store import SliceStore, open_store
from sdm_cli.errors import PresetError, SplitError, StoreError
from sdm_cli.method.checkpoint import load_model
from sdm_cli.runs.preprocess import preprocess
from sdm_cli.runs.train import train

DOMAINS = {"s0": "ct", "s1": "ct", "t0": "mr", "t1": "mr", "x0": "us"}
RULES = {"labeled_domains": ["ct"], "unlabeled_domains": ["mr"], "unseen_domains": ["us"]}


def preset(tmp_path, **changes):
    data = {**RULES, **changes.pop("data", {})}
    return tiny_preset(data=data, **changes)


@pytest.fixture
def store(tmp_path):
    """Every case has a label in the store; the rules say which of them training may read."""
    for i, case_id in enumerate(DOMAINS):
        image, label = scan(i)
        write_nifti(tmp_path / "images" / f"{case_id}.nii.gz", image, np.diag([1.0, 1, 3, 1]))
        write_nifti(tmp_path / "labels" / f"{case_id}.nii.gz", label, np.diag([1.0, 1, 3, 1]))
    with (tmp_path / "domains.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("case", "domain"), *DOMAINS.items()])
    return preprocess(
        tmp_path / "images",
        tmp_path / "labels",
        preset(tmp_path),
        tmp_path / "store",
        domains=tmp_path / "domains.csv",
    )


def split(tmp_path, **roles):
    path = tmp_path / "split.yaml"
    path.write_text("".join(f"{role}: [{', '.join(ids)}]\n" for role, ids in roles.items()))
    return {"split": str(path)}


def test_rules_give_each_case_the_role_it_may_have(store, tmp_path):
    run = train(preset(tmp_path), store, tmp_path / "run", "cpu")
    text = (run / "config.yaml").read_text()
    assert "labeled:\n  - s0\n  - s1" in text and "unlabeled:\n  - t0\n  - t1" in text and "test:\n  - x0" in text


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (
            {"labeled": ["s0", "t0"], "unlabeled": ["t1"]},
            r"labeled case t0 is of domain mr, but .* may be ct",
        ),
        ({"labeled": ["s0"], "unlabeled": ["t0", "s1"]}, r"unlabeled case s1 is of domain ct.*may be mr"),
        ({"labeled": ["s0"], "unlabeled": ["t0", "x0"]}, r"unlabeled case x0 is of domain us"),
        ({"labeled": ["s0", "x0"], "unlabeled": ["t0"]}, r"labeled case x0 is of domain us"),
    ],
)
def test_a_split_cannot_lead_a_domain_into_training(store, tmp_path, roles, message):
    with pytest.raises(SplitError, match=message):
        train(preset(tmp_path, data=split(tmp_path, **roles)), store, tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()


def test_a_rule_means_the_domain_whatever_its_case(store, tmp_path):
    rules = {name: [domain.upper() for domain in domains] for name, domains in RULES.items()}
    run = train(preset(tmp_path, data=rules), store, tmp_path / "run", "cpu")
    text = (run / "config.yaml").read_text()
    assert "labeled:\n  - s0\n  - s1" in text and "unlabeled:\n  - t0\n  - t1" in text and "test:\n  - x0" in text
    data = {**rules, **split(tmp_path, labeled=["s0", "s1"], unlabeled=["t0", "x0"])}
    with pytest.raises(SplitError, match="unlabeled case x0 is of domain us"):
        train(preset(tmp_path, data=data), store, tmp_path / "other", "cpu")


@pytest.mark.parametrize("with_split", [False, True])
@pytest.mark.parametrize("rule", list(RULES))
def test_a_rule_on_a_domain_that_is_not_there_protects_nothing_and_is_refused(store, tmp_path, rule, with_split):
    roles = split(tmp_path, labeled=["s0", "s1"], unlabeled=["t0", "x0"]) if with_split else {}
    rules = {"labeled_domains": [], "unlabeled_domains": [], "unseen_domains": [], rule: ["ct", "mr", "us", "zz"]}
    if rule == "unseen_domains":
        rules[rule] = ["zz"]
    data = {**rules, **roles}
    with pytest.raises(SplitError, match=rf"data\.{rule} names zz, .* of domain ct, mr, us: correct .*--allow-missing"):
        train(preset(tmp_path, data=data), store, tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()


def test_a_domain_that_a_partial_download_lacks_is_gone_without(store, tmp_path, capsys):
    data = {**RULES, "unseen_domains": ["us", "zz"], **split(tmp_path, labeled=["s0"], unlabeled=["t0"])}
    assert train(preset(tmp_path, data=data), store, tmp_path / "run", "cpu", allow_missing=True)
    assert "warning: going on although data.unseen_domains names zz, " in capsys.readouterr().err


def test_labels_of_the_target_choose_no_checkpoint_under_clean(store, tmp_path):
    data = split(tmp_path, labeled=["s0", "s1"], unlabeled=["t0"], validation=["t1"])
    with pytest.raises(PresetError, match="t1 is of domain mr, whose labels protocol clean does not touch"):
        train(preset(tmp_path, data=data, train={"select_on": "validation"}), store, tmp_path / "run", "cpu")
    published = preset(tmp_path, data=data, train={"select_on": "validation"}, protocol="paper")
    assert train(published, store, tmp_path / "run", "cpu")


def test_a_case_of_no_known_domain_is_not_let_in(store, tmp_path):
    bare = preprocess(tmp_path / "images", tmp_path / "labels", preset(tmp_path), tmp_path / "bare")
    with pytest.raises(SplitError, match=r"domain of s0 is not known.*--domains"):
        data = split(tmp_path, labeled=["s0"], unlabeled=["t0"])
        train(preset(tmp_path, data=data), bare, tmp_path / "run", "cpu")
    with pytest.raises(SplitError, match=r"domain of s0 is not known.*--domains"):
        train(preset(tmp_path), bare, tmp_path / "run", "cpu")


@pytest.mark.parametrize(("fact", "value"), [("domain", "ct"), ("domain", None), ("patient", "p")])
def test_an_index_that_differs_from_its_files_is_refused_and_made_anew(store, tmp_path, fact, value):
    copy = shutil.copytree(store, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["cases"]["t0"][fact] = value
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=r"manifest\.json gives t0 another domain or patient than .*t0\.h5 has: run"):
        train(preset(tmp_path), copy, tmp_path / "run", "cpu")
    preprocess(tmp_path / "images", tmp_path / "labels", preset(tmp_path), copy, domains=tmp_path / "domains.csv")
    assert train(preset(tmp_path), copy, tmp_path / "run", "cpu")


def test_what_training_holds_gives_no_other_label(store):
    limited = open_store(store).with_labels_of(["s0"])
    assert limited.read_label("s0", 0).shape == limited.read_image("t0", 0).shape
    for read, place in ((limited.read_label, (0,)), (limited.label_volume, ()), (limited.reference_volume, ())):
        with pytest.raises(StoreError, match="must not read the label of t0"):
            read("t0", *place)
    pairs = PairedSlices(limited, ["t0"], ["t1"], (32, 32), tiny_preset().augment, 0)
    with pytest.raises(StoreError, match="must not read the label of t0"):
        pairs[0]


def test_training_reads_no_label_but_those_of_labeled_cases(store, tmp_path, monkeypatch):
    read = set()
    real = SliceStore._read

    def spy(self, case_id, name, selection):
        if name != "image":
            read.add(case_id)
        return real(self, case_id, name, selection)

    monkeypatch.setattr(SliceStore, "_read", spy)
    train(preset(tmp_path), store, tmp_path / "run", "cpu")
    assert read == {"s0", "s1"}


def test_other_labels_change_no_weight(store, tmp_path):
    """The last word: with the labels of all other cases turned to noise, training ends in the same weights."""
    noisy = shutil.copytree(store, tmp_path / "noisy")
    for case_id in ("t0", "t1", "x0"):
        with h5py.File(noisy / "cases" / f"{case_id}.h5", "r+") as file:
            file["label"][...] = np.random.default_rng(0).integers(0, 3, file["label"].shape)
    runs = [train(preset(tmp_path), path, tmp_path / f"run-{path.name}", "cpu") for path in (store, noisy)]
    first, second = (load_model(run / "checkpoints" / "last")[0].state_dict() for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)
