"""Masks for the cases of one role: those that the models were trained without, and evaluated on."""

from dataclasses import asdict

import pytest
from models import small_network
from stores import make_store, tiny_preset
from typer.testing import CliRunner

from sdm_cli.cli import app
from sdm_cli.data.splits import load_split
from sdm_cli.method.checkpoint import save_model
from sdm_cli.runs.evaluate import evaluate_model
from sdm_cli.runs.run_folder import RunFolder

LISTS = "labeled: [l0]\nunlabeled: [u0, u1]\nvalidation: [l1]\ntest: [u2, l2, gone]\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("data"), n_labeled=3, shape=(32, 32, 2))


def make_run(folder, store, lists=LISTS):
    """A run that was trained with these lists, which its split file no longer says."""
    (folder.parent / "split.yaml").write_text(lists)
    split = str(folder.parent / "split.yaml")
    preset = tiny_preset(data={"split": split})
    run = RunFolder(folder)
    run.create(preset, store, {"split": asdict(load_split(split))})
    save_model(run.best, small_network(preset), preset)
    (folder.parent / "split.yaml").write_text("labeled: [l0]\nunlabeled: [l1, l2]\n")
    return folder


@pytest.fixture
def run(tmp_path, store):
    return make_run(tmp_path / "run", store)


def masks_of(store, folder, *words, code=0):
    command = ["predict", "-i", str(store), "-o", str(folder), "-d", "cpu", *(str(word) for word in words)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == code, result.output
    return sorted(path.name.removesuffix(".nii.gz") for path in folder.glob("*.nii.gz")), result.stderr


@pytest.mark.parametrize("role", ["unlabeled", "validation", "test"])
@pytest.mark.parametrize("of", ["run", "checkpoint"])
def test_the_cases_are_those_of_the_training(store, run, tmp_path, role, of):
    expected = {"unlabeled": ["u0", "u1"], "validation": ["l1"], "test": ["l2", "u2"]}[role]
    model = run if of == "run" else run / "checkpoints/best"
    found, said = masks_of(store, tmp_path / "masks", "--model", model, "--split", role)
    assert found == expected
    assert ("lacks 1 of the 3 test cases (gone)" in said) == (role == "test")
    if role == "validation":  # the others have no label, or are not there
        assert evaluate_model(run, store, role, device="cpu")["split"]["cases"] == expected


def test_without_it_all_cases_of_the_store_are_predicted(store, run, tmp_path):
    assert masks_of(store, tmp_path / "masks", "--model", run)[0] == ["l0", "l1", "l2", "u0", "u1", "u2"]


def test_models_of_one_split_share_its_roles(store, run, tmp_path):
    (tmp_path / "b").mkdir()
    same = make_run(tmp_path / "b" / "run", store)
    both = ["--model", run, "--model", same, "--split", "test"]
    assert masks_of(store, tmp_path / "masks", *both)[0] == ["l2", "u2"]
    (tmp_path / "c").mkdir()
    other = make_run(tmp_path / "c" / "run", store, LISTS.replace("[l0]", "[l2]").replace("u2, l2", "u2, l0"))
    _, said = masks_of(store, tmp_path / "others", "--model", run, "--model", other, "--split", "test", code=1)
    assert "c/run was trained with other test cases than" in said and "leave --split out" in said


def test_a_model_without_a_split_has_the_cases_without_a_label_for_unlabeled(store, tmp_path):
    preset = tiny_preset()
    save_model(tmp_path / "model", small_network(preset), preset)
    found, _ = masks_of(store, tmp_path / "masks", "--model", tmp_path / "model", "--split", "unlabeled")
    assert found == ["u0", "u1", "u2"]
    _, said = masks_of(store, tmp_path / "none", "--model", tmp_path / "model", "--split", "test", code=1)
    assert "model was trained without test cases: leave --split out, or give another role." in said


def test_a_store_of_other_cases_is_named(run, tmp_path):
    other = make_store(tmp_path / "other", n_labeled=1, n_unlabeled=1, shape=(32, 32, 2))
    _, said = masks_of(other, tmp_path / "masks", "--model", run, "--split", "test", code=1)
    assert "holds none of the 3 test cases of" in said and "give the store that has them" in said


def test_scans_have_no_roles(store, run, tmp_path):
    _, said = masks_of(store.parent / "images", tmp_path / "masks", "--model", run, "--split", "test", code=1)
    assert "--split names cases of a store: give the store with -i, or leave --split out." in said
    assert not (tmp_path / "masks").exists()
