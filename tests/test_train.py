import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import h5py
import pytest
import torch
import yaml
from models import SDM
from stores import make_store, tiny_preset
from typer.testing import CliRunner

from sdm_cli.cli import app
from sdm_cli.data.store import SliceStore
from sdm_cli.errors import (
    CheckpointError,
    ExitCode,
    OutputError,
    PresetError,
    SdmError,
    SomeCasesFailed,
    SplitError,
    StoreError,
)
from sdm_cli.method.checkpoint import load_model, load_resume, load_resume_values
from sdm_cli.method.difficulty import ClassDifficulty
from sdm_cli.method.network import MessengerNetwork
from sdm_cli.method.schedule import learning_rate
from sdm_cli.method.tensors import save_tensors
from sdm_cli.preset_files import preset_to_dict
from sdm_cli.runs import loop as loop_module
from sdm_cli.runs.evaluate import evaluate_model
from sdm_cli.runs.inference import predict_scan
from sdm_cli.runs.predictor import load_predictor
from sdm_cli.runs.preprocess import preprocess
from sdm_cli.runs.run_folder import RunFolder, newest_run
from sdm_cli.runs.train import train
from sdm_cli.runs.training_state import TrainingState
from sdm_cli.runs.validate import Validation


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("train"), tiny_preset())


def records(run):
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def without_speed(run):
    return [{key: value for key, value in line.items() if key != "pairs_per_second"} for line in records(run)]


def weights(run, name="last"):
    return load_model(run / "checkpoints" / name)[0].state_dict()


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_leaves_record_checkpoints_config_and_pictures(store, tmp_path, pictures):
    run = train(tiny_preset(), store, tmp_path / "run", "cpu")
    lines = records(run)
    assert [line["step"] for line in lines if "validation" in line] == [2, 4]
    step = next(line for line in lines if "loss" in line)
    assert {
        "step",
        "epoch",
        "loss",
        "loss_labeled",
        "loss_unlabeled",
        "loss_consistency",
        "lr",
        "labeled_share",
        "pseudo_share",
        "class_weights",
        "pairs_per_second",
    } == set(step)
    validation = next(line for line in lines if "validation" in line)["validation"]
    assert set(validation["per_class"]) == {"ball", "box"} and validation["n_cases"] == 2
    network, preset = load_model(run / "checkpoints" / "best")
    assert preset == tiny_preset() and not network.training
    assert yaml.safe_load((run / "config.yaml").read_text())["preset"] == preset_to_dict(tiny_preset())
    for picture in ("progress.png", "panels/last.png", "panels/best.png"):
        assert (run / picture).stat().st_size > 1000
    assert RunFolder(run).read_config()[1] == store.absolute()


def test_same_seed_same_weights_and_another_seed_others(store, tmp_path):
    runs = [
        train(tiny_preset(train={"seed": seed}), store, tmp_path / name, "cpu")
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert equal(weights(runs[0]), weights(runs[1]))
    assert not equal(weights(runs[0]), weights(runs[2]))


def signal_at_step(monkeypatch, step: int, number: int) -> None:
    """Signal this process while that step (1-based) is under way."""
    real, steps = loop_module.semi_supervised_step, []

    def signalled(*arguments, **options):
        steps.append(1)
        if len(steps) == step:
            os.kill(os.getpid(), number)
        return real(*arguments, **options)

    monkeypatch.setattr(loop_module, "semi_supervised_step", signalled)


# Step 4 is one to validate after: the signal comes first, and the validation is made up for.
@pytest.mark.parametrize(
    ("optimizer", "step", "number"),
    [("sgd", 3, signal.SIGTERM), ("adamw", 1, signal.SIGINT), ("sgd", 4, signal.SIGTERM), ("muon", 3, signal.SIGINT)],
)
def test_a_resumed_run_ends_as_one_that_never_stopped(store, tmp_path, monkeypatch, capsys, optimizer, step, number):
    preset = tiny_preset(train={"optimizer": optimizer, "average": 0.9, "steps": 6})
    whole = train(preset, store, tmp_path / "whole", "cpu")
    signal_at_step(monkeypatch, step, number)
    with pytest.raises(KeyboardInterrupt):
        train(preset, store, tmp_path / "stopped", "cpu")
    monkeypatch.undo()
    assert load_resume(tmp_path / "stopped/checkpoints/last")[1]["step"] == step
    assert f"--resume goes on from step {step}" in capsys.readouterr().err
    with (tmp_path / "stopped" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 1}\n{"ste')  # lines beyond the checkpoint, and half a one
    resumed = train(preset, store, tmp_path / "stopped", "cpu", resume=True)
    assert equal(weights(whole), weights(resumed))
    assert equal(weights(whole, "best"), weights(resumed, "best"))
    assert without_speed(whole) == without_speed(resumed)


@pytest.mark.parametrize(("stages", "left_out"), [([], [True, True, False, False]), ([4], [False] * 4)])
def test_only_the_warm_up_without_u2l_leaves_the_unlabeled_half_out(store, tmp_path, monkeypatch, stages, left_out):
    real, seen = MessengerNetwork.forward, []

    def forward(self, labeled, unlabeled):
        seen.append(unlabeled is None)
        return real(self, labeled, unlabeled)

    monkeypatch.setattr(MessengerNetwork, "forward", forward)
    preset = tiny_preset(model={"messenger_stages": stages}, method={"patch": 8, "labeled_only_fraction": 0.5})
    train(preset, store, tmp_path / "run", "cpu")
    assert seen == left_out


def test_records_tell_the_shares_and_the_weights_of_each_class(store, tmp_path, monkeypatch):
    targets, labels = [], []
    real_label, real_step = loop_module.pseudo_label, loop_module.semi_supervised_step
    monkeypatch.setattr(
        loop_module, "pseudo_label", lambda *arguments: labels.append(real_label(*arguments)) or labels[-1]
    )
    monkeypatch.setattr(loop_module, "semi_supervised_step", lambda *a, **k: targets.append(a[3]) or real_step(*a, **k))
    run = train(tiny_preset(), store, tmp_path / "run", "cpu")
    warm_up, mature = [line for line in records(run) if "loss" in line]
    for line, key, counted in (
        (warm_up, "labeled_share", targets[:2]),
        (mature, "labeled_share", targets[2:]),
        (mature, "pseudo_share", labels),
    ):
        pixels = torch.cat(counted)
        expected = {name: (pixels == k).float().mean().item() for k, name in enumerate(("background", "ball", "box"))}
        assert line[key] == pytest.approx(expected), key
    assert warm_up["pseudo_share"] is None
    difficulty = ClassDifficulty(3, 50)
    difficulty.load_state_dict(
        {
            name.removeprefix("difficulty."): tensor
            for name, tensor in load_resume(run / "checkpoints/last")[0].items()
            if name.startswith("difficulty.")
        }
    )
    assert list(mature["class_weights"].values()) == difficulty.weights.tolist()


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_the_pseudo_label_network_is_the_average_when_there_is_one(store, tmp_path, monkeypatch, average):
    asked, trained = [], []
    real_label, real_step = loop_module.pseudo_label, loop_module.semi_supervised_step
    monkeypatch.setattr(
        loop_module, "pseudo_label", lambda network, *rest: asked.append(network) or real_label(network, *rest)
    )
    monkeypatch.setattr(
        loop_module, "semi_supervised_step", lambda model, *a, **k: trained.append(model) or real_step(model, *a, **k)
    )
    run = train(tiny_preset(train={"average": average}), store, tmp_path / "run", "cpu")
    assert len({id(network) for network in asked}) == 1 and len(asked) == 2
    assert (asked[0] is trained[0]) == (average == 0)
    assert equal(asked[0].state_dict(), weights(run))  # what makes pseudo-labels is what is kept


def test_the_head_learns_faster_by_its_factor_and_the_rate_follows_the_schedule(store, tmp_path, monkeypatch):
    rates = []
    real = torch.optim.SGD.step

    def step(self, *arguments, **options):
        rates.append([group["lr"] for group in self.param_groups])
        return real(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    preset = tiny_preset(train={"lr": 0.01, "head_lr_factor": 5.0, "lr_warmup_steps": 2})
    run = train(preset, store, tmp_path / "run", "cpu")
    encoder = [learning_rate(done, 4, preset.train) for done in range(4)]
    assert rates == [[pytest.approx(rate), pytest.approx(5 * rate)] for rate in encoder]
    assert encoder[0] == 0.005
    assert [line["lr"] for line in records(run) if "loss" in line] == [encoder[1], encoder[3]]


def test_slices_are_augmented_and_patches_placed_by_the_draw(store, tmp_path, monkeypatch):
    seen = []
    real = loop_module.semi_supervised_step

    def step(model, make, image, target, unlabeled, paste, *rest, **options):
        seen.append((image, paste))
        return real(model, make, image, target, unlabeled, paste, *rest, **options)

    monkeypatch.setattr(loop_module, "semi_supervised_step", step)
    train(tiny_preset(), store, tmp_path / "a", "cpu")
    train(tiny_preset(augment={"transforms": 0}), store, tmp_path / "b", "cpu")
    augmented, plain = seen[:4], seen[4:]
    assert not all(torch.equal(one[0], other[0]) for one, other in zip(augmented, plain, strict=True))
    assert len({tuple(paste.flatten().tolist()) for _, paste in augmented}) == 4


@pytest.mark.parametrize("harm", ["broken", "gone"])
def test_a_run_that_lost_its_checkpoints_keeps_its_best(store, tmp_path, harm):
    run = train(tiny_preset(), store, tmp_path / "run", "cpu")
    shutil.rmtree(run / "checkpoints/previous")
    before, record = weights(run, "best"), (run / "metrics.jsonl").read_bytes()
    if harm == "broken":
        (run / "checkpoints/last/config.json").write_text("{")
    else:
        shutil.rmtree(run / "checkpoints/last")
    with pytest.raises(CheckpointError, match=r"last/config.json: cannot be read|last is missing.*best is untouched"):
        train(tiny_preset(), store, run, "cpu", resume=True)
    assert equal(before, weights(run, "best")) and (run / "metrics.jsonl").read_bytes() == record


def test_resume_tells_other_scans_from_a_store_that_moved(store, tmp_path, monkeypatch):
    run = train(tiny_preset(), store, tmp_path / "run", "cpu")
    moved = shutil.copytree(store, tmp_path / "moved")
    train(tiny_preset(), moved, run, "cpu", resume=True)
    assert RunFolder(run).read_config()[1] == moved
    other = make_store(tmp_path / "other", tiny_preset(), shape=(40, 36, 3), first_seed=50)
    grown = make_store(tmp_path / "grown", tiny_preset(), n_unlabeled=4)
    for changed in (other, grown):
        with pytest.raises(CheckpointError, match="run was started with other scans than the store has now"):
            train(tiny_preset(), changed, run, "cpu", resume=True)
    with pytest.raises(CheckpointError, match=r"other settings \(scans, slices.unlabeled, split.unlabeled, train.lr\)"):
        train(tiny_preset(train={"lr": 0.5}), grown, run, "cpu", resume=True)


def _stopped(store, tmp_path, monkeypatch):
    """A run stopped after two validations, of steps 2 and 4 of 6."""
    real = TrainingState.save

    def save(self, run, preset):
        real(self, run, preset)
        if self.done == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingState, "save", save)
    with pytest.raises(KeyboardInterrupt):
        train(LONGER, store, tmp_path / "run", "cpu")
    monkeypatch.setattr(TrainingState, "save", real)
    return tmp_path / "run"


LONGER = tiny_preset(train={"steps": 6})


def test_one_flipped_bit_of_the_optimiser_is_stepped_over(store, tmp_path, monkeypatch, capsys):
    run = _stopped(store, tmp_path, monkeypatch)
    tensors = run / "checkpoints/last/resume.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-3] ^= 1
    tensors.write_bytes(content)
    train(LONGER, store, run, "cpu", resume=True)
    said = capsys.readouterr().err
    assert "last/resume.safetensors or resume.json beside it is damaged" in said and "of step 2" in said
    assert equal(weights(run, "last"), weights(train(LONGER, store, tmp_path / "whole", "cpu"), "last"))


@pytest.mark.parametrize(
    "state",
    [{"step": 9999}, {"step": -3}, {"step": -3, "validated": -3}, {"validated": 5}, {"best": 9.0}, {"step": 1.0e300}],
)
def test_a_state_that_no_run_can_have_is_stepped_over(store, tmp_path, monkeypatch, capsys, state):
    run = _stopped(store, tmp_path, monkeypatch)
    values = run / "checkpoints/last/resume.json"
    earlier = {name: value for name, value in json.loads(values.read_text()).items() if name != "sha256"}
    values.write_text(json.dumps({**earlier, **state}))
    train(LONGER, store, run, "cpu", resume=True)
    assert "checkpoints/last" in (said := capsys.readouterr().err) and "which is of step 2" in said
    assert [entry["step"] for entry in RunFolder(run).entries() if "validation" in entry] == [2, 4, 6]


@pytest.mark.parametrize("step", [3, 5])
def test_one_digit_of_the_counters_is_noticed(store, tmp_path, monkeypatch, capsys, step):
    run = _stopped(store, tmp_path, monkeypatch)
    values = run / "checkpoints/last/resume.json"
    values.write_text(values.read_text().replace('"step": 4', f'"step": {step}'))
    train(LONGER, store, run, "cpu", resume=True)
    assert "resume.json beside it is damaged" in (said := capsys.readouterr().err) and "which is of step 2" in said


def test_a_checkpoint_from_before_the_hash_goes_on(store, tmp_path, monkeypatch, capsys):
    run = _stopped(store, tmp_path, monkeypatch)
    values = run / "checkpoints/last/resume.json"
    tree = json.loads(values.read_text())
    del tree["sha256"]
    values.write_text(json.dumps(tree))
    train(LONGER, store, run, "cpu", resume=True)
    assert f"Resuming {run} after step 4 of 6" in capsys.readouterr().err
    assert equal(weights(run, "last"), weights(train(LONGER, store, tmp_path / "whole", "cpu"), "last"))


def test_damaged_lines_of_the_record_are_left_out_by_a_run_that_goes_on(store, tmp_path, monkeypatch, capsys):
    run = _stopped(store, tmp_path, monkeypatch)
    metrics = run / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text('nonsense\n{"step": 1, "loss": "low"}\n' + whole + '{"st')
    train(LONGER, store, run, "cpu", resume=True)
    assert "metrics.jsonl: 2 damaged lines left out" in capsys.readouterr().err
    assert metrics.read_text().startswith(whole)


@pytest.mark.parametrize("lost", ["all", "losses", "validation"])
def test_a_record_that_was_lost_is_missed(store, tmp_path, monkeypatch, capsys, lost):
    monkeypatch.setattr(loop_module, "RECORD_EVERY", 1)
    monkeypatch.setattr("sdm_cli.runs.run_folder.RECORD_EVERY", 1)
    run = _stopped(store, tmp_path, monkeypatch)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    without_losses = [line for line in lines if "validation" in line or json.loads(line)["step"] <= 2]
    kept = lines[:-1] if lost == "validation" else without_losses
    assert "validation" in lines[-1]
    (run / "metrics.jsonl").write_text("" if lost == "all" else "".join(kept))
    train(LONGER, store, run, "cpu", resume=True)
    assert "metrics.jsonl lacks lines from before step 4" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_inside_a_case_is_one_sentence_from_any_process(tmp_path, workers):
    path = make_store(tmp_path) / "cases" / "l0.h5"
    with h5py.File(path) as file:
        chunk = file["label"].id.get_chunk_info(0)
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\xff" * chunk.size)
    preset = tiny_preset(train={"workers": workers, "steps": 20, "validate_every_steps": 20})
    with pytest.raises(StoreError, match=r"^Slice \d of case l0 cannot be read: \S+l0\.h5 is damaged") as caught:
        train(preset, tmp_path / "store", tmp_path / "run", "cpu")
    assert "Traceback" not in str(caught.value)


def test_ablation_switches_change_what_is_learnt(store, tmp_path):
    base = {"labeled_only_fraction": 0.0, "patch": 4}
    switches = {
        "both": {"method": base},
        "no-l2u": {"method": {**base, "l2u": False}},
        "no-u2l": {"method": base, "model": {"messenger_stages": []}},
        "no-weights": {"method": {**base, "class_weights": False}},
        "labeled-only": {"method": {**base, "use_unlabeled": False}, "model": {"messenger_stages": []}},
    }
    heads = {}
    for name, changes in switches.items():
        preset = tiny_preset(train={"steps": 2}, **changes)
        heads[name] = weights(train(preset, store, tmp_path / name, "cpu"))["framework.decoder.linear_pred.weight"]
    for name in switches:
        others = [head for other, head in heads.items() if other != name]
        assert not any(torch.equal(heads[name], head) for head in others), name


@pytest.mark.parametrize("exchange", ["batch", "image"])
def test_the_slices_of_a_pseudo_label_pass_exchange_as_the_preset_says(store, tmp_path, monkeypatch, exchange):
    real, passes = loop_module.pseudo_label, []

    def spied(network, images, how):
        with torch.no_grad():
            passes.append((how, torch.equal(network.predict(images, "batch"), network.predict(images, "image"))))
        return real(network, images, how)

    monkeypatch.setattr(loop_module, "pseudo_label", spied)
    preset = tiny_preset(method={"labeled_only_fraction": 0.0}, model={"exchange": exchange}, train={"steps": 2})
    train(preset, store, tmp_path / "run", "cpu")
    assert passes == [(exchange, False)] * 2


def test_the_labeled_only_twin_never_sees_an_unlabeled_slice(store, tmp_path, monkeypatch):
    twin = tiny_preset(method={"use_unlabeled": False}, model={"messenger_stages": []})
    expected = weights(train(twin, store, tmp_path / "as-is", "cpu"))
    read_image = SliceStore.read_image
    monkeypatch.setattr(
        SliceStore, "read_image", lambda self, case_id, z: read_image(self, case_id, z) * (not case_id.startswith("u"))
    )
    assert equal(expected, weights(train(twin, store, tmp_path / "blank", "cpu")))


def test_epochs_count_passes_over_the_unlabeled_slices(store, tmp_path):
    run = train(
        tiny_preset(train={"steps": None, "epochs": 1, "validate_every_steps": None}), store, tmp_path / "r", "cpu"
    )
    assert records(run)[-1]["step"] == 5  # 9 unlabeled slices, 2 a step


@pytest.mark.parametrize(("crop", "lower"), [([96, 64], "[64, 64]"), ([64, 64], None), ([32, 96], "[32, 64]")])
def test_a_crop_beyond_all_slices_is_told_with_their_size(store, tmp_path, capsys, crop, lower):
    train(tiny_preset(train={"crop": crop, "steps": 1, "validate_every_steps": 1}), store, tmp_path / "run", "cpu")
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: train.crop")]
    said = (
        f"warning: train.crop {crop} reaches beyond every slice (at most 40 x 36 pixels), where all is zeros: lower it"
    )
    assert warnings == ([] if lower is None else [f"{said} to {lower}"])


@pytest.mark.parametrize(("crop", "patch"), [((33, 47), 7), ((37, 39), 33)])
def test_odd_crops_and_patches_train(store, tmp_path, crop, patch):
    method = {"patch": patch, "labeled_only_fraction": 0.0}
    preset = tiny_preset(train={"crop": crop, "steps": 2}, method=method, model={"messenger_stages": [1, 2, 3, 4]})
    assert records(train(preset, store, tmp_path / "run", "cpu"))[-1]["step"] == 2


def test_refusals_name_what_to_do(store, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(OutputError, match="is no run"):
        train(tiny_preset(), store, tmp_path / "taken", "cpu")
    with pytest.raises(PresetError, match="scale"):
        train(tiny_preset(data={"normalize": {"scale": "volume"}}), store, tmp_path / "a", "cpu")
    with pytest.raises(PresetError, match=r"train\.pairs: .* there are \d+ unlabeled ones: lower it"):
        train(tiny_preset(train={"pairs": 1000}), store, tmp_path / "c", "cpu")
    with pytest.raises(PresetError, match="select_on"):
        train(tiny_preset(train={"select_on": "validation"}), store, tmp_path / "b", "cpu")
    with pytest.raises(CheckpointError, match="missing"):
        train(tiny_preset(model={"pretrained": str(tmp_path / "missing.pth")}), store, tmp_path / "e", "cpu")
    with pytest.raises(CheckpointError, match="does not exist: start"):
        train(tiny_preset(), store, tmp_path / "c", "cpu", resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]  # no folder of a run that did not start


def test_a_run_that_knows_its_preset_takes_what_may_change(store, tmp_path):
    run = train(tiny_preset(), store, tmp_path / "run", "cpu")
    words = ["train", "-o", str(run), "--resume", "-d", "cpu", "--set"]
    assert CliRunner().invoke(app, [*words, "train.workers=1"]).exit_code == 0
    refused = CliRunner().invoke(app, [*words, "train.lr=0.5"])
    assert refused.exit_code == 1 and "was started with other settings (train.lr)" in refused.stderr


def test_a_run_of_other_settings_is_not_one_to_resume(store, tmp_path):
    RunFolder(tmp_path / "run").create(tiny_preset(), store, {"split": {}})
    with pytest.raises(OutputError, match=r"run exists: add --resume to continue it, or"):
        train(tiny_preset(description="of other words"), store, tmp_path / "run", "cpu")
    others = tiny_preset(train={"steps": 8, "lr": 0.5})
    with pytest.raises(
        OutputError, match=r"run holds a run of other settings \(train\.lr, train\.steps\): choose another"
    ):
        train(others, store, tmp_path / "run", "cpu")
    run = train(tiny_preset(), store, tmp_path / "d", "cpu")
    with pytest.raises(CheckpointError, match=r"train\.lr"):
        train(tiny_preset(train={"lr": 0.5}), store, run, "cpu", resume=True)


def test_a_run_stopped_before_its_first_checkpoint_starts_over(store, tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop_module, "validate", stop)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_preset(), store, tmp_path / "run", "cpu")
    monkeypatch.undo()
    resumed = train(tiny_preset(), store, tmp_path / "run", "cpu", resume=True)
    assert equal(weights(resumed), weights(train(tiny_preset(), store, tmp_path / "whole", "cpu")))


def test_resume_refuses_other_cases_and_names_the_difference(store, tmp_path):
    run = train(tiny_preset(), store, tmp_path / "run", "cpu")
    smaller = make_store(tmp_path / "smaller", n_labeled=1, n_unlabeled=1)
    with pytest.raises(CheckpointError, match=r"split\.labeled"):
        train(tiny_preset(), smaller, run, "cpu", resume=True)
    with pytest.raises(CheckpointError, match="pairs_per_step"):
        train(tiny_preset(train={"pairs": 1}), store, run, "cpu", resume=True)
    assert RunFolder(run).read_split().labeled == ("l0", "l1")
    train(tiny_preset(description="other words"), store, run, "cpu", resume=True)  # of no effect on training


def test_weights_that_are_not_finite_never_replace_a_checkpoint(store, tmp_path, monkeypatch):
    rate = loop_module.learning_rate
    monkeypatch.setattr(loop_module, "learning_rate", lambda step, *rest: 1e30 if step >= 2 else rate(step, *rest))
    with pytest.raises(SdmError, match="not finite"):
        train(tiny_preset(train={"steps": 6}), store, tmp_path / "run", "cpu")
    for name in ("best", "last"):
        assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "run", name).values())


def test_a_truncated_store_is_named_and_starts_nothing(tmp_path):
    broken = make_store(tmp_path / "broken")
    path = broken / "cases" / "u0.h5"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(StoreError, match=r"u0\.h5"):
        train(tiny_preset(train={"workers": 1}), broken, tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()


def test_scans_that_are_not_in_the_store_are_named_again(tmp_path, capsys):
    make_store(tmp_path)
    broken = tmp_path / "images" / "u2.nii.gz"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(SomeCasesFailed):
        preprocess(tmp_path / "images", tmp_path / "labels", tiny_preset(), tmp_path / "store", overwrite=True)
    train(tiny_preset(train={"steps": 1}), tmp_path / "store", tmp_path / "run", "cpu")
    assert "lacks 1 scan that could not be stored: u2" in capsys.readouterr().err


def test_ctrl_c_in_a_validation_does_not_wait_for_its_end(store, tmp_path, monkeypatch, capsys):
    predicted = []

    def press(*arguments):
        predicted.append(arguments)
        os.kill(os.getpid(), signal.SIGINT)
        return predict_scan(*arguments)

    monkeypatch.setattr("sdm_cli.runs.validate.predict_scan", press)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_preset(), store, tmp_path / "run", "cpu")
    assert len(predicted) == 1  # of two cases
    assert "Stopped after step 2" in (said := capsys.readouterr().err) and "--resume goes on from step 2" in said
    monkeypatch.undo()
    whole, resumed = (train(tiny_preset(), store, tmp_path / name, "cpu", name == "run") for name in ("whole", "run"))
    assert equal(weights(whole), weights(resumed)) and without_speed(whole) == without_speed(resumed)


def test_a_second_ctrl_c_stops_at_once_and_a_sigterm_does_not(store, tmp_path, monkeypatch):
    real = loop_module.semi_supervised_step

    def press(*arguments, **options):
        for number in (signal.SIGINT, signal.SIGTERM):  # as a launcher passes it on
            os.kill(os.getpid(), number)
        real(*arguments, **options)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("still here")

    monkeypatch.setattr(loop_module, "semi_supervised_step", press)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_preset(), store, tmp_path / "run", "cpu")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_a_run_killed_at_20_random_moments_ends_as_one_that_never_stopped(store, tmp_path):
    preset = tiny_preset(train={"steps": 300, "workers": 1, "optimizer": "adamw", "average": 0.9})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(preset_to_dict(preset)))
    command = [sys.executable, SDM, "train", "--preset", "tiny.yaml", "--store", str(store), "-d", "cpu"]
    subprocess.run([*command, "-o", "whole"], cwd=tmp_path, check=True, capture_output=True)
    moments, run = random.Random(0), tmp_path / "run"
    steps = set()
    for kill in range(20):
        resume = ["--resume"] if (run / "config.yaml").exists() else []
        process = subprocess.Popen(
            [*command, "-o", "run", *resume], cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True
        )
        wait_for(lambda: (run / "metrics.jsonl").exists() and moves(run / "metrics.jsonl"), process)
        time.sleep(moments.uniform(0, 0.5))
        number = moments.choice((signal.SIGKILL, signal.SIGTERM))
        os.killpg(process.pid, number)
        process.wait()
        if number == signal.SIGTERM and process.returncode == ExitCode.INTERRUPTED:
            saved = load_resume(run / "checkpoints" / "last")[1]["step"]
            assert saved >= records(run)[-1]["step"], f"kill {kill} lost a step"
        steps.add(records(run)[-1]["step"] if (run / "metrics.jsonl").exists() else 0)
    assert len(steps) > 5, "the kills must fall on different moments"
    subprocess.run([*command, "-o", "run", "--resume"], cwd=tmp_path, check=True, capture_output=True)
    assert equal(weights(tmp_path / "whole"), weights(run))
    assert equal(weights(tmp_path / "whole", "best"), weights(run, "best"))
    assert without_speed(tmp_path / "whole") == without_speed(run)


def wait_for(is_so, process, seconds=120):
    """Until something is so, or a process has ended."""
    end = time.monotonic() + seconds
    while not is_so() and process.poll() is None:
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)


def moves(file) -> bool:
    """Whether a file grows within a moment."""
    before = file.stat().st_size
    time.sleep(0.05)
    return file.stat().st_size > before


def test_the_last_two_checkpoints_are_kept_and_a_damaged_one_is_stepped_over(store, tmp_path, capsys):
    preset = tiny_preset(train={"steps": 6})
    whole, run = (train(preset, store, tmp_path / name, "cpu") for name in ("whole", "run"))
    steps = [load_resume(run / "checkpoints" / name)[1]["step"] for name in ("last", "previous")]
    assert steps == [6, 4]
    (run / "checkpoints/last/resume.safetensors").write_bytes(b"half")
    train(preset, store, run, "cpu", resume=True)
    assert "Going on from" in (said := capsys.readouterr().err) and "which is of step 4" in said
    assert equal(weights(whole), weights(run)) and without_speed(whole) == without_speed(run)
    assert len(list((run / "checkpoints").glob("damaged-*"))) == 1  # nothing of a person's is deleted


def test_where_no_checkpoint_can_be_read_each_is_named(store, tmp_path):
    run = train(tiny_preset(), store, tmp_path / "run", "cpu")
    for name in ("last", "previous"):
        (run / "checkpoints" / name / "resume.safetensors").write_bytes(b"half")
    said = r"last/resume.*previous/resume.* another run by -o\. \S+best is a model of its own"
    with pytest.raises(CheckpointError, match=said):
        train(tiny_preset(), store, run, "cpu", resume=True)
    assert not list((run / "checkpoints").glob("damaged-*"))


@pytest.mark.parametrize("harm", ["a value of the state is gone", "a weight is gone"])
def test_a_checkpoint_without_its_whole_state_is_stepped_over(store, tmp_path, capsys, harm):
    preset = tiny_preset(train={"average": 0.9})
    whole, run = (train(preset, store, tmp_path / name, "cpu") for name in ("whole", "run"))
    last = run / "checkpoints" / "last"
    if harm == "a weight is gone":
        tensors = load_resume(last)[0]
        del tensors["network.framework.decoder.linear_pred.bias"]
        save_tensors(tensors, last / "resume.safetensors")
    values = load_resume_values(last) if harm == "a weight is gone" else {"step": 4, "best": 0.5}
    (last / "resume.json").write_text(json.dumps({name: values[name] for name in values if name != "sha256"}))
    train(preset, store, run, "cpu", resume=True)
    assert "training state is incomplete" in (said := capsys.readouterr().err) and "which is of step 2" in said
    assert equal(weights(whole), weights(run))


def test_a_checkpoint_of_a_newer_program_stays_where_it_is(store, tmp_path):
    run = train(tiny_preset(), store, tmp_path / "run", "cpu")
    config = run / "checkpoints/last/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "version": 99}))
    with pytest.raises(CheckpointError, match="newer sdm"):
        train(tiny_preset(), store, run, "cpu", resume=True)
    assert config.is_file() and not list((run / "checkpoints").glob("damaged-*"))


def test_a_run_killed_between_two_names_goes_on_and_can_be_used(store, tmp_path, monkeypatch):
    run = train(tiny_preset(), store, tmp_path / "run", "cpu")
    for name in ("last", "best"):
        shutil.rmtree(run / "checkpoints" / name)
    monkeypatch.chdir(tmp_path)
    assert load_predictor(newest_run(tmp_path), "cpu").preset.name == "tiny"
    train(tiny_preset(), store, run, "cpu", resume=True)
    assert load_resume(run / "checkpoints/last")[1]["step"] == 4


def test_a_run_is_continued_by_its_name_alone(store, tmp_path, monkeypatch):
    signal_at_step(monkeypatch, 3, signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_preset(), store, tmp_path / "run", "cpu")
    monkeypatch.undo()
    result = CliRunner().invoke(app, ["train", "-o", str(tmp_path / "run"), "--resume", "-d", "cpu"])
    assert result.exit_code == 0 and "after step 3 of 4" in result.stderr
    assert equal(weights(tmp_path / "run"), weights(train(tiny_preset(), store, tmp_path / "whole", "cpu")))


def test_a_warm_up_longer_than_the_run_is_told(store, tmp_path, capsys):
    train(tiny_preset(train={"lr_warmup_steps": 4}), store, tmp_path / "run", "cpu")
    assert "lr_warmup_steps: 4 is no less than the 4 steps" in " ".join(capsys.readouterr().err.split())


def test_a_class_may_get_another_name_without_new_slices(tmp_path):
    split = tmp_path / "split.yaml"
    split.write_text("labeled: [l0]\nunlabeled: [l1, u0]\n")
    store = make_store(tmp_path)
    names = {f"new {name}": value for name, value in tiny_preset().data.classes.items()}
    run = train(tiny_preset(data={"classes": names, "split": str(split)}), store, tmp_path / "run", "cpu")
    summary = evaluate_model(run, role="unlabeled", device="cpu", allow_missing=True)
    assert list(summary["classes"].values()) == list(names)


@pytest.mark.skipif(os.name != "posix", reason="signals to a group")
def test_a_signal_to_the_whole_group_and_a_reader_that_is_gone_cost_no_step(store, tmp_path):
    """As a launcher or a cluster sends it, loader workers included, while `| tee` died first."""
    preset = tiny_preset(train={"steps": 100_000, "workers": 2, "validate_every_steps": 100_000})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(preset_to_dict(preset)))
    command = [sys.executable, SDM, "train", "--preset", "tiny.yaml", "--store", str(store), "-d", "cpu"]
    process = subprocess.Popen(
        [*command, "-o", "run"], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists(), process)
    process.stderr.close()
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) != 0
    step = load_resume(tmp_path / "run/checkpoints/last")[1]["step"]
    assert step >= records(tmp_path / "run")[-1]["step"] > 0


def test_the_paper_protocol_chooses_by_pooled_iou(store, tmp_path, monkeypatch):
    scores = iter([Validation(0.2, {}, None, 0.9, 2), Validation(0.8, {}, None, 0.1, 2)] * 2)
    monkeypatch.setattr(loop_module, "validate", lambda *args: next(scores))
    best = {
        protocol: weights(train(tiny_preset(protocol=protocol), store, tmp_path / protocol, "cpu"), "best")
        for protocol in ("paper", "clean")
    }
    assert not equal(best["paper"], best["clean"])
    assert equal(best["clean"], weights(tmp_path / "clean", "last"))


def test_no_labeled_and_no_unlabeled_case(tmp_path):
    only_labeled = make_store(tmp_path / "l", n_labeled=1, n_unlabeled=0)
    only_unlabeled = make_store(tmp_path / "u", n_labeled=0, n_unlabeled=1)
    for folder in (only_labeled, only_unlabeled):
        with pytest.raises(SplitError):
            train(tiny_preset(), folder, tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()


def test_command_line_trains_with_overrides_and_evaluate_finds_the_newest_run(store, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(preset_to_dict(tiny_preset())))
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "--preset", "mine.yaml", "--store", str(store), "-d", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "--set", "train.steps=2", "--seed", "3"])
    assert result.exit_code == 0, result.output
    (tmp_path / "runs" / "stopped").mkdir()
    (tmp_path / "runs" / "stopped" / "config.yaml").write_text("preset: {}\n")  # it has no checkpoint to take
    assert newest_run().name == "tiny" and "The newest run: runs/tiny" in capsys.readouterr().err
    assert load_model(newest_run() / "checkpoints" / "last")[1].train.seed == 3
    assert CliRunner().invoke(app, arguments).exit_code == 1
