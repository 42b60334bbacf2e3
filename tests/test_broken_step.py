"""A step that is not finite: it stops the run before it harms anything, and can be replayed."""

import itertools
import json
import math

import pytest
import torch
from accelerate import Accelerator
from stores import make_store, tiny_preset
from typer.testing import CliRunner

from sdm_cli.cli import app
from sdm_cli.errors import CheckpointError, SdmError
from sdm_cli.method.checkpoint import load_model, load_resume
from sdm_cli.method.head import SegFormerHead
from sdm_cli.runs import loop as loop_module
from sdm_cli.runs import train as train_module
from sdm_cli.runs.broken_step import replay
from sdm_cli.runs.train import train


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("broken"), tiny_preset())


def break_step(monkeypatch, step, harm):
    """Do something to the weights before that step (1-based)."""
    real, steps = loop_module.semi_supervised_step, []

    def broken(model, *arguments, **options):
        steps.append(1)
        if len(steps) == step:
            harm(model)
        return real(model, *arguments, **options)

    monkeypatch.setattr(loop_module, "semi_supervised_step", broken)


def spoil_weight(model):
    with torch.no_grad():
        model.backbone.block2[0].mlp.fc1.weight[0, 0] = math.inf


@pytest.mark.parametrize(("average", "step"), [(0.9, 3), (0.0, 4)])
def test_a_loss_that_is_not_finite_is_kept_and_replayed(store, tmp_path, monkeypatch, capsys, average, step):
    break_step(monkeypatch, step, spoil_weight)
    preset = tiny_preset(train={"average": average, "steps": 6})
    with pytest.raises(SdmError, match=rf"The loss of step {step} is not finite .* slice \d") as caught:
        train(preset, store, tmp_path / "run", "cpu")
    monkeypatch.undo()
    kept = tmp_path / "run" / "broken" / f"step-{step}"
    assert f"--replay {kept}" in str(caught.value) and "\n" not in str(caught.value)
    state = load_resume(kept)[1]
    assert len(state["slices"]) == 2 and state["slices"][0]["unlabeled"][0].startswith("u")
    # The statistics are those from before the step, so that its pseudo-label can be made again.
    assert torch.isfinite(load_model(kept)[0].framework.decoder.linear_fuse.bn.running_mean).all()
    assert torch.isfinite(load_model(tmp_path / "run/checkpoints/last")[0].backbone.block2[0].mlp.fc1.weight).all()
    result = CliRunner().invoke(app, ["train", "--replay", str(kept), "-d", "cpu"])
    assert result.exit_code == 0, result.stderr
    assert "not finite in the weights before the step: backbone.block2.0.mlp.fc1.weight" in result.stdout
    assert "first module whose output is not finite: backbone.block2.0.mlp.fc1" in result.stdout
    assert "loss total: nan" in result.stdout and "the step is not finite in float32" in result.stdout
    assert state["slices"][1]["labeled"][0] in result.stdout


WARM_UP_WITHOUT_U2L = {"model": {"messenger_stages": []}, "method": {"patch": 8, "labeled_only_fraction": 1.0}}


@pytest.mark.parametrize("changes", [{}, WARM_UP_WITHOUT_U2L])
def test_a_replayed_step_has_the_losses_of_the_run(store, tmp_path, monkeypatch, capsys, changes):
    """A gradient alone breaks, so the loss is that which a healthy run records for the step."""
    real, steps = torch.nn.utils.get_total_norm, []

    def overflow(gradients):
        steps.append(1)
        return real(gradients) * (math.inf if len(steps) == 2 else 1)

    preset = tiny_preset(train={"steps": 2}, **changes)
    whole = train(preset, store, tmp_path / "whole", "cpu")
    expected = json.loads((whole / "metrics.jsonl").read_text().splitlines()[0])
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", overflow)
    with pytest.raises(SdmError, match="The gradient of step 2 is not finite"):
        train(preset, store, tmp_path / "run", "cpu")
    capsys.readouterr()
    replay(tmp_path / "run/broken/step-2", "cpu")
    said = capsys.readouterr().out
    for term in ("labeled", "unlabeled", "consistency"):
        loss = expected[f"loss_{term}"]
        assert f"loss {term}: {'none in this step' if loss is None else f'{loss:.6g}'}\n" in said
    assert "first module whose output is not finite: none" in said and "the step is finite in float32" in said
    assert "gradient of backbone.block1: " in said and "gradient of framework.decoder: " in said


def test_a_step_that_breaks_in_half_precision_alone_is_told_apart(store, tmp_path, monkeypatch, capsys):
    decode = SegFormerHead.forward

    def overflowing(self, maps):
        logits = decode(self, maps)
        return logits * math.inf if torch.is_autocast_enabled("cpu") else logits

    monkeypatch.setattr(SegFormerHead, "forward", overflowing)
    with pytest.raises(SdmError, match="The loss of step 1 is not finite"):
        train(tiny_preset(train={"mixed_precision": "bf16"}), store, tmp_path / "run", "cpu")
    capsys.readouterr()
    replay(tmp_path / "run/broken/step-1", "cpu")
    said = capsys.readouterr().out
    assert "the step is not finite in bfloat16" in said and "the step is finite in float32" in said


def test_what_is_no_kept_step_is_refused(store, tmp_path):
    run = train(tiny_preset(train={"steps": 1}), store, tmp_path / "run", "cpu")
    with pytest.raises(CheckpointError, match="not a step that a run kept"):
        replay(run / "checkpoints/last", "cpu")
    with pytest.raises(CheckpointError, match=r"is not a step that a run kept: give RUN/broken/step"):
        replay(tmp_path / "nothing", "cpu")
    result = CliRunner().invoke(app, ["train", "--replay", str(tmp_path / "nothing"), "--resume", "--seed", "0"])
    assert result.exit_code == 2 and "leave out --seed, --resume." in " ".join(result.stderr.split())


def test_bfloat16_has_finite_float32_losses(store, tmp_path, monkeypatch):
    kinds = []
    real = loop_module.semi_supervised_step

    def step(*arguments, **options):
        terms = real(*arguments, **options)
        kinds.extend(term.dtype for term in terms if term is not None)
        return terms

    monkeypatch.setattr(loop_module, "semi_supervised_step", step)
    preset = tiny_preset(train={"mixed_precision": "bf16", "steps": 2})
    run = train(preset, store, tmp_path / "run", "cpu")
    entry = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    losses = [value for name, value in entry.items() if name.startswith("loss")]
    assert len(losses) == 4 and all(map(math.isfinite, losses))
    assert set(kinds) == {torch.float32} and len(kinds) == 2 + 4
    assert all(torch.isfinite(tensor).all() for tensor in load_model(run / "checkpoints/last")[0].state_dict().values())
    difficulty = load_resume(run / "checkpoints/last")[0]
    assert all(value.dtype == torch.float64 for name, value in difficulty.items() if name.startswith("difficulty."))


def test_fp16_on_a_cpu_is_refused(store, tmp_path):
    with pytest.raises(SdmError, match=r"train\.mixed_precision: fp16 needs a GPU"):
        train(tiny_preset(train={"mixed_precision": "fp16"}), store, tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()


def with_scaler(config, device):
    """As fp16 has it, with the same scaler on a CPU."""
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    return accelerator


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_a_skipped_step_is_counted_and_changes_nothing(store, tmp_path, monkeypatch, optimizer):
    """A gradient that overflows, once."""
    monkeypatch.setattr(train_module, "make_accelerator", with_scaler)
    seen, real = [], Accelerator.backward

    def backward(self, loss):
        real(self, loss)
        weights = {name: value.clone() for name, value in network[0].state_dict().items() if "running" not in name}
        seen.append(weights)
        if len(seen) == 2:
            network[0].backbone.patch_embed1.proj.weight.grad[0, 0, 0, 0] = math.inf

    network = []
    build = train_module.build_network
    monkeypatch.setattr(train_module, "build_network", lambda *a: network.append(build(*a)) or network[0])
    monkeypatch.setattr(Accelerator, "backward", backward)
    preset = tiny_preset(train={"optimizer": optimizer, "average": 0.9})
    run = train(preset, store, tmp_path / "run", "cpu")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped_steps"] for line in lines if "loss" in line] == [1, 1]
    same = [
        all(torch.equal(before[name], after[name]) for name in before if "num_batches" not in name)
        for before, after in itertools.pairwise(seen)
    ]
    assert same == [False, True, False]  # the second step left the weights as they were
    values = load_resume(run / "checkpoints/last")[1]
    assert values["skipped"] == 1 and values["scaler"]["scale"] == 512.0 and values["step"] == 4


def test_steps_that_fp16_skips_for_ever_end_the_run(store, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "make_accelerator", with_scaler)
    monkeypatch.setattr(loop_module, "_MOST_SKIPPED", 3)
    real, calls = Accelerator.backward, []

    def backward(self, loss):
        real(self, loss)
        calls.append(1)
        if len(calls) not in (1, 4):  # two are skipped, which is forgiven, and then all
            network[0].backbone.patch_embed1.proj.weight.grad[0, 0, 0, 0] = math.inf

    network = []
    build = train_module.build_network
    monkeypatch.setattr(train_module, "build_network", lambda *a: network.append(build(*a)) or network[0])
    monkeypatch.setattr(Accelerator, "backward", backward)
    with pytest.raises(SdmError, match=r"skipped 3 steps in a row, up to step 7.*a lower train\.lr"):
        train(tiny_preset(train={"steps": 20, "validate_every_steps": 2}), store, tmp_path / "run", "cpu")
