"""Pictures of a run while it trains: the same slices each time, drawn when there is time, and never worth a run."""

import os
import signal

import pytest
import torch
from stores import make_store, tiny_preset

from sdm_cli.data.pairs import PairedSlices, augment_pairs
from sdm_cli.data.store import open_store
from sdm_cli.method.checkpoint import load_model
from sdm_cli.method.network import build_network
from sdm_cli.runs import loop as loop_module
from sdm_cli.runs import panels as panels_module
from sdm_cli.runs import pictures as pictures_module
from sdm_cli.runs.loop import TrainingLoop
from sdm_cli.runs.panels import choose_pairs, draw_panels
from sdm_cli.runs.run_folder import RunFolder
from sdm_cli.runs.train import train
from sdm_cli.runs.validate import Validation


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def drawn(monkeypatch):
    """Name, title and weights of all panels that a run would draw."""
    calls = []

    def draw(path, network, pairs, slices_of, preset, device, title):
        calls.append((path.name, title, {name: tensor.clone() for name, tensor in network.state_dict().items()}))
        path.parent.mkdir(exist_ok=True)
        path.touch()

    monkeypatch.setattr(pictures_module, "draw_panels", draw)
    monkeypatch.setattr(pictures_module, "draw_progress", lambda *arguments: None)
    return calls


def scores(monkeypatch, *dice):
    given = iter(dice)
    monkeypatch.setattr(
        loop_module, "validate", lambda *arguments: Validation(score := next(given), {"ball": score}, score, score, 2)
    )


def test_without_time_panels_are_drawn_once_and_at_the_end_of_the_best_and_the_last_network(
    store, tmp_path, monkeypatch, drawn, pictures
):
    monkeypatch.setattr(pictures_module, "_LEAST_PAUSE", 1e9)
    scores(monkeypatch, 0.5, 0.9, 0.7)
    run = train(tiny_preset(train={"steps": 6}), store, tmp_path / "run", "cpu")
    titles = [("last.png", "tiny, step 2"), ("last.png", "tiny, step 6"), ("best.png", "tiny, step 4")]
    assert [(name, title) for name, title, _ in drawn] == titles
    for name, _, weights in drawn[1:]:
        kept = load_model(run / "checkpoints" / name.removesuffix(".png"))[0].state_dict()
        assert all(torch.equal(weights[key], tensor) for key, tensor in kept.items())


def test_a_run_that_is_stopped_leaves_its_curves(store, tmp_path, monkeypatch, pictures):
    monkeypatch.setattr(pictures_module, "_LEAST_PAUSE", 1e9)
    real, run = TrainingLoop.step, tmp_path / "run"

    def step(self, batches):
        if self.state.done == 4:  # after two validations
            (run / "progress.png").unlink()
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batches)

    monkeypatch.setattr(TrainingLoop, "step", step)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_preset(train={"steps": 6}), store, run, "cpu")
    assert (run / "progress.png").stat().st_size > 1000


def test_with_time_panels_are_drawn_at_each_validation_and_the_best_ones_kept(
    store, tmp_path, monkeypatch, drawn, pictures
):
    monkeypatch.setattr(pictures_module, "_LEAST_PAUSE", 0.0)
    scores(monkeypatch, 0.5, 0.9, 0.7)
    run = train(tiny_preset(train={"steps": 6}), store, tmp_path / "run", "cpu")
    assert [(name, title[-6:]) for name, title, _ in drawn] == [("last.png", f"step {step}") for step in (2, 4, 6)]
    assert sorted(path.name for path in (run / "panels").iterdir()) == ["best.png", "last.png"]


def test_a_picture_that_cannot_be_drawn_is_a_warning(store, tmp_path, monkeypatch, capsys, pictures):
    def fail(*arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(pictures_module, "_LEAST_PAUSE", 0.0)
    monkeypatch.setattr(pictures_module, "draw_progress", fail)
    run = train(tiny_preset(), store, tmp_path / "run", "cpu")
    assert (run / "checkpoints" / "last").is_dir()
    assert "could not be drawn (out of memory)" in capsys.readouterr().err


def test_a_record_that_cannot_be_read_costs_pictures_alone(store, tmp_path, monkeypatch, capsys, drawn, pictures):
    def fail(*arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(RunFolder, "best_validation", fail)
    run = train(tiny_preset(), store, tmp_path / "run", "cpu")
    assert (run / "checkpoints" / "last").is_dir()
    assert "could not be drawn ([Errno 5] Input/output error)" in capsys.readouterr().err


@pytest.mark.parametrize("is_twin", [False, True])
def test_panels_show_labels_the_pasted_patch_and_predictions_of_fixed_pairs(store, tmp_path, monkeypatch, is_twin):
    changes = {"method": {"use_unlabeled": False}, "model": {"messenger_stages": []}} if is_twin else {}
    preset = tiny_preset(**changes)
    slices = open_store(store)
    source = PairedSlices(slices, ("l0", "l1"), ("u0", "u1"), (32, 32), preset.augment, 0)
    first, pairs = choose_pairs(source), choose_pairs(source)
    assert torch.equal(first.labeled_image, pairs.labeled_image)
    shown, panels = [], []

    def draw_slice(panel, image, mask):
        shown.append((image, mask))
        panels.append(panel)

    monkeypatch.setattr(panels_module, "draw_slice", draw_slice)
    network = build_network(preset.model, preset.data.n_classes).train()
    draw_panels(tmp_path / "panels.png", network, pairs, source.slices_of, preset, torch.device("cpu"), "pairs")
    assert network.training
    sides = [source.slices_of(int(draw)) for draw in pairs.number]
    names = [[f"{case_id}, slice {z}" for case_id, z in side] for side in zip(*sides, strict=True)]
    assert [panel.get_xlabel() for panel in panels] == names[0] * 2 + ([] if is_twin else names[1] * 2)
    batch = augment_pairs(pairs)
    # Column by column, a row a pair.
    assert len(shown) == (6 if is_twin else 12)
    for row in range(3):
        assert (shown[row][1] == batch.labeled_target[row].numpy()).all()
        assert {1, 2} <= set(shown[row][1].ravel())
        assert (shown[3 + row][0] == batch.labeled_image[row, 0].numpy()).all()
    if not is_twin:
        pasted = [(image != batch.unlabeled_image[row, 0].numpy()) for row, (image, _) in enumerate(shown[6:9])]
        assert any(area.any() for area in pasted)
        for row, area in enumerate(pasted):
            assert area.sum() <= preset.method.patch**2
            assert (shown[6 + row][1][area] == batch.labeled_target[row].numpy()[area]).all()


def test_drawing_changes_nothing_in_the_run(store, tmp_path, monkeypatch, pictures):
    preset = tiny_preset(train={"average": 0.9})
    monkeypatch.setattr(pictures_module, "_LEAST_PAUSE", 0.0)
    looked_at = train(preset, store, tmp_path / "looked-at", "cpu")
    for moment in ("at_validation", "at_end"):
        monkeypatch.setattr(pictures_module.Pictures, moment, lambda *arguments: None)
    plain = train(preset, store, tmp_path / "plain", "cpu")
    assert (looked_at / "panels" / "last.png").is_file() and not (plain / "panels").exists()
    first, second = (load_model(run / "checkpoints" / "last")[0].state_dict() for run in (plain, looked_at))
    assert all(torch.equal(first[name], second[name]) for name in first)
