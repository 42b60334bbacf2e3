"""Runs of two processes on a CPU, started by torchrun and by `accelerate launch` with the documented configurations."""

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import h5py
import pytest
import torch
import yaml
from models import SDM
from safetensors.torch import load_file, save_file
from stores import make_store, tiny_preset
from test_network import TINY, tiny_config
from test_train import equal, records, wait_for, weights, without_speed
from torch import nn
from typer.testing import CliRunner

from sdm_cli.cli import app, main
from sdm_cli.data.splits import resolve_split
from sdm_cli.data.store import open_store
from sdm_cli.errors import CheckpointError, ExitCode
from sdm_cli.method.checkpoint import load_resume
from sdm_cli.method.network import MessengerNetwork, build_network
from sdm_cli.preset_files import preset_to_dict
from sdm_cli.runs import loop as loop_module
from sdm_cli.runs.processes import leave
from sdm_cli.runs.run_folder import RunFolder
from sdm_cli.runs.seeds import seeded
from sdm_cli.runs.train import _Training, train
from sdm_cli.runs.workload import plan_run

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "docs" / "accelerate"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]


def write_preset(folder, **train_section):
    preset = tiny_preset(train=train_section)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(preset_to_dict(preset)))
    return preset


@contextmanager
def launched(launcher, folder):
    """`sdm train` of the preset of a folder, in several processes, in a group of their own that ends with the block."""
    command = [SDM, "train", "--preset", "tiny.yaml", "--store", "store", "-o", "run", "-d", "cpu"]
    with subprocess.Popen(
        [*launcher, *command], cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()  # its processes are in groups of their own; it ends them, by force if need be


def errors(said):
    """The sentences of ours in what a launcher and its processes said."""
    return [line for line in said.splitlines() if line.startswith("Error: ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes left that did everything in `ranks.py`: 20 steps of 2 micro-batches, and more."""
    folder = tmp_path_factory.mktemp("ranks")
    make_store(folder)
    write_preset(folder, pairs=1, accumulate=2, steps=20, validate_every_steps=10)
    save_file(one_network().state_dict(), folder / "weights.safetensors")
    save_file(one_batch(), folder / "batch.safetensors")
    result = subprocess.run(
        [*TORCHRUN, str(HERE / "ranks.py"), str(folder)], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    (folder / "stderr").write_text(result.stderr)
    return folder


def facts(folder):
    return [json.loads((folder / f"facts{rank}.json").read_text()) for rank in (0, 1)]


def test_every_draw_is_made_once_and_every_unlabeled_slice_once_a_pass(folder):
    ranks = facts(folder)
    assert sorted(draw for rank in ranks for draw in rank["draws"]) == list(range(20 * 4))
    assert len(ranks[0]["draws"]) == len(ranks[1]["draws"])
    picked = {draw: (case_id, z) for rank in ranks for draw, role, case_id, z in rank["picks"] if role == "unlabeled"}
    for start in range(0, 72, 9):
        assert len({picked[draw] for draw in range(start, start + 9)}) == 9


def test_processes_share_class_weights_though_they_count_different_pixels(folder):
    ranks = facts(folder)
    assert ranks[0]["weights"] == ranks[1]["weights"] and len(ranks[0]["weights"]) == 40
    assert ranks[0]["counts"] != ranks[1]["counts"]


def test_parameters_and_statistics_are_identical_after_20_steps(folder):
    first, second = (load_file(folder / f"state{rank}.safetensors") for rank in (0, 1))
    assert equal(first, second)
    kept = weights(folder / "whole")
    assert equal(kept, {name: first[name] for name in kept})


def test_a_validation_counts_each_case_once(folder):
    ranks = facts(folder)
    assert sorted(case_id for rank in ranks for case_id in rank["validated"]) == ["l0", "l0", "l1", "l1"]
    assert all(rank["validated"] for rank in ranks)
    validations = [line["validation"] for line in records(folder / "whole") if "validation" in line]
    assert [validation["n_cases"] for validation in validations] == [2, 2]


def test_processes_drop_differently_and_record_the_pixels_of_both(folder):
    first, second = facts(folder)
    assert len(first["seeds"]) == 40 and not set(first["seeds"]) & set(second["seeds"])
    counts = torch.tensor([first["shares"][:20], second["shares"][:20]]).sum((0, 1))  # 10 steps of the labels alone
    (line,) = [line for line in records(folder / "whole") if line["step"] == 10 and "loss" in line]
    assert line["pseudo_share"] is None
    assert list(line["labeled_share"].values()) == pytest.approx((counts / counts.sum()).tolist())


def test_a_loss_that_is_not_finite_is_told_and_kept_by_its_own_process(folder):
    first, second = (rank["broken"] for rank in facts(folder))
    assert first == "PeerFailed: "
    assert second.startswith("SdmError: The loss of step 2 is not finite (its batch of process 1: ")
    assert [path.name for path in (folder / "broken" / "broken").iterdir()] == ["step-2-process-1"]


def test_one_process_writes(folder):
    first, second = facts(folder)
    assert second["written"] == [] and any("open" in each for each in first["written"])
    said = (folder / "stderr").read_text()
    assert said.count("20 steps of 4 pairs (1 pair x 2 processes x 2 micro-batches)") == 7  # runs, once each


def test_a_signal_to_one_process_stops_both_and_the_resumed_run_is_exact(folder):
    assert [rank["stopped_after"] for rank in facts(folder)] == [[16, 1]] * 2  # 16 micro-batches: step 8 was finished
    said = (folder / "stderr").read_text()
    for step in (8, 10):
        assert said.count(f"Stopped after step {step}: the same command with --resume goes on from step {step}.") == 1
    assert equal(weights(folder / "whole"), weights(folder / "stopped"))
    assert equal(weights(folder / "whole", "best"), weights(folder / "stopped", "best"))
    assert without_speed(folder / "whole") == without_speed(folder / "stopped")


def test_an_error_of_one_process_ends_the_other_wherever_it_happens(folder):
    first, second = (rank["raised"] for rank in facts(folder))
    assert first == ["PeerFailed: "] * 3
    assert second == [f"StoreError: {name} failed" for name in ("digest", "__getitem__", "label_volume")]
    assert not (folder / "failed-digest").exists()


def test_a_tracker_that_fails_in_mid_run_is_one_warning_and_no_process_waits(folder):
    assert (folder / "stderr").read_text().count("warning: --tracker tensorboard failed (the service is gone)") == 1
    assert records(folder / "whole")[-1]["step"] == 20


def one_network():
    torch.manual_seed(0)
    return MessengerNetwork(TINY, tiny_config(1, 4), 3).double().train()


def one_batch():
    generator = torch.Generator().manual_seed(1)

    def numbers(channels):
        return torch.rand(4, channels, 64, 64, dtype=torch.float64, generator=generator)

    return {"labeled": numbers(1), "unlabeled": numbers(1), "weight_l": numbers(3), "weight_u": numbers(3)}


def test_exchange_over_all_processes_is_that_of_one_process_with_the_whole_batch(folder):
    network, batch = one_network(), one_batch()
    network.framework.decoder.linear_fuse.bn.eval()
    labeled, unlabeled = network(batch["labeled"], batch["unlabeled"])
    ((labeled * batch["weight_l"]).mean() + (unlabeled * batch["weight_u"]).mean()).backward()
    ranks = [load_file(folder / f"exchange{rank}.safetensors") for rank in (0, 1)]
    for name, whole in (("logits_l", labeled), ("logits_u", unlabeled)):
        torch.testing.assert_close(torch.cat([rank[name] for rank in ranks]), whole, rtol=0, atol=1e-10)
    for name, parameter in network.named_parameters():
        for rank in ranks:
            torch.testing.assert_close(rank[name], parameter.grad, rtol=1e-9, atol=1e-12, msg=name)
    with torch.no_grad():  # and it is not what each process gets from its own unlabeled slices
        alone, _ = network(batch["labeled"][:2], batch["unlabeled"][:2])
    assert (alone - labeled[:2]).abs().max() > 1e-4


class Device(str):
    """The CPU, which says that it is another kind of device."""

    def __new__(cls, kind):
        device = super().__new__(cls, "cpu")
        device.type = kind
        return device


@pytest.mark.parametrize(("kind", "count", "is_shared"), [("cuda", 2, True), ("cuda", 1, False), ("cpu", 2, False)])
def test_batch_normalisation_is_over_all_gpus_under_the_same_names(folder, kind, count, is_shared):
    accelerator = SimpleNamespace(
        device=Device(kind), num_processes=count, prepare_optimizer=lambda optimizer: optimizer, scaler=None
    )
    preset, store = tiny_preset(), open_store(folder / "store")
    split = resolve_split(preset.data, store.cases, False)
    training = _Training(plan_run(preset, store, split, count), RunFolder(folder / "none"), accelerator)
    with seeded(preset.train.seed):
        plain = build_network(preset.model, preset.data.n_classes)
    network = training.state.network
    names = [name for name, module in plain.named_modules() if isinstance(module, nn.BatchNorm2d)]
    kinds = {type(network.get_submodule(name)) for name in names}
    assert names and kinds == {nn.SyncBatchNorm if is_shared else nn.BatchNorm2d}
    assert equal(network.state_dict(), plain.state_dict())
    trained = {id(weight) for group in training.state.optimizer.param_groups for weight in group["params"]}
    assert trained == {id(weight) for weight in network.parameters()}
    assert [name for name, _ in network.named_parameters()] == [name for name, _ in plain.named_parameters()]


@pytest.mark.slow
def test_sigterm_to_the_group_of_the_launcher_leaves_a_checkpoint(tmp_path):
    make_store(tmp_path)
    write_preset(tmp_path, steps=100_000, validate_every_steps=100_000, workers=1)
    with launched(TORCHRUN, tmp_path) as process:
        wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists(), process)
        os.killpg(process.pid, signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert "2 processes" in said and "--resume goes on from step" in said
    assert said.count("Interrupted.") == 1  # both came to their end; the first speaks
    assert load_resume(tmp_path / "run/checkpoints/last")[1]["step"] >= records(tmp_path / "run")[-1]["step"] > 0


def test_a_damaged_case_that_one_process_meets_is_one_sentence(tmp_path):
    path = make_store(tmp_path) / "cases" / "l0.h5"
    with h5py.File(path) as file:
        chunk = file["label"].id.get_chunk_info(0)
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\xff" * chunk.size)
    write_preset(tmp_path, steps=1000)
    with launched([*ACCELERATE, str(CONFIGS / "cpu.yaml")], tmp_path) as process:
        said = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    assert "2 processes" in said
    assert len(errors(said)) == 1 and "l0.h5 is damaged" in errors(said)[0]


def test_gradients_of_micro_batches_are_averaged(folder, tmp_path, monkeypatch):
    preset = tiny_preset(train={"steps": 1, "accumulate": 3}, method={"class_weights": False})
    real_step, real_update = loop_module.semi_supervised_step, torch.optim.SGD.step
    networks, losses, each, summed = [], [], [], []

    def step(model, *arguments, **options):
        networks.append(model)
        random = torch.get_rng_state()
        twin = copy.deepcopy(model)
        total = real_step(twin, *arguments, **options).total
        losses.append(total.item())
        each.append(torch.autograd.grad(total, list(twin.parameters())))
        torch.set_rng_state(random)
        return real_step(model, *arguments, **options)

    def update(self, *arguments, **options):
        summed.extend(parameter.grad.clone() for parameter in networks[0].parameters())
        return real_update(self, *arguments, **options)

    monkeypatch.setattr(loop_module, "semi_supervised_step", step)
    monkeypatch.setattr(torch.optim.SGD, "step", update)
    run = train(preset, folder / "store", tmp_path / "run", "cpu")
    assert len(each) == 3
    assert records(run)[0]["loss"] == pytest.approx(sum(losses) / 3)
    for found, parts in zip(summed, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(found, sum(parts) / 3, rtol=1e-4, atol=1e-7)


def test_a_step_of_micro_batches_is_counted_whole(folder, tmp_path, monkeypatch, capsys):
    numbers = []
    monkeypatch.setattr(loop_module, "seed_micro_batch", lambda seed, number, process: numbers.append(number))
    preset = tiny_preset(train={"steps": None, "epochs": 2, "pairs": 1, "accumulate": 3, "lr_warmup_steps": 2})
    run = train(preset, folder / "store", tmp_path / "run", "cpu")
    assert records(run)[-1]["step"] == 6  # 9 unlabeled slices, 3 a step
    assert [line for line in records(run) if "epoch" in line][-1]["epoch"] == 2
    assert numbers == list(range(18))  # each micro-batch has random numbers of its own
    said = capsys.readouterr().err
    assert "6 steps of 3 pairs (1 pair x 1 process x 3 micro-batches)" in said
    assert "not scaled with the batch, rises for 2 steps and falls as (1 - step / 6)^0.9" in said


@pytest.mark.parametrize("way", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_ways_that_split_the_network_are_refused(folder, tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    write_preset(tmp_path)
    monkeypatch.setenv(f"ACCELERATE_USE_{way}", "true")
    result = CliRunner().invoke(app, ["train", "--preset", "tiny.yaml", "--store", str(folder / "store"), "-d", "cpu"])
    assert result.exit_code == ExitCode.ERROR
    assert f"told to use {way}" in result.stderr and "launch without it" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_accumulation_of_the_launcher_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_preset(tmp_path)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    result = CliRunner().invoke(app, ["train", "--preset", "tiny.yaml", "--store", str(folder / "store"), "-d", "cpu"])
    assert result.exit_code == ExitCode.ERROR and "give train.accumulate" in result.stderr


def test_every_documented_configuration_is_one_of_accelerate():
    from accelerate.commands.config.config_args import load_config_from_file

    files = sorted(CONFIGS.glob("*.yaml"))
    assert [file.name for file in files] == ["cpu.yaml", "gpus.yaml", "nodes.yaml"]
    for file in files:
        assert load_config_from_file(str(file)).num_processes == 2  # an unknown key is an error


@pytest.mark.slow
def test_a_killed_process_ends_the_other_with_a_sentence(tmp_path):
    make_store(tmp_path)
    write_preset(tmp_path, steps=100_000, validate_every_steps=100_000)
    with launched(TORCHRUN, tmp_path) as process:
        wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists(), process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        said = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert len(errors(said)) == 1 and "another one of the run ended" in errors(said)[0]


@pytest.mark.slow
def test_two_launchers_as_on_two_machines_make_one_run(tmp_path):
    make_store(tmp_path)
    write_preset(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    launchers = [[*ACCELERATE, str(CONFIGS / "nodes.yaml"), "--machine_rank", str(rank), *where] for rank in (0, 1)]
    with (
        launched(launchers[0], tmp_path) as first,
        launched(launchers[1], tmp_path) as second,
    ):
        machines = (first, second)
        said = [machine.communicate(timeout=120)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert "4 steps of 4 pairs" in said[0] and records(tmp_path / "run")[-1]["step"] == 4


@pytest.fixture
def group(tmp_path):
    """This process as the only one of a group."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "group"), 1), rank=0, world_size=1
    )
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def gloo_threads():
    return [task for task in Path("/proc/self/task").glob("*/comm") if "gloo_runloop" in task.read_text()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the names of threads are Linux's")
@pytest.mark.parametrize("fails", [False, True])
def test_the_program_leaves_its_groups_before_the_interpreter_ends(group, monkeypatch, fails):
    """A thread of gloo that outlives it ends a run that is done with SIGABRT, now and then."""

    def describe(_path):
        own = torch.distributed.new_group(backend="gloo")
        torch.distributed.all_reduce(torch.ones(1), group=own)
        assert gloo_threads()
        if fails:
            raise CheckpointError(f"{own} is no run")
        return {"study": "", "runs": []}

    monkeypatch.setattr("sdm_cli.runs.info.describe", describe)
    monkeypatch.setattr(sys, "argv", ["sdm", "info", "run"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == (ExitCode.ERROR if fails else 0)
    assert not torch.distributed.is_initialized() and not gloo_threads()


def test_a_group_that_cannot_be_left_holds_the_end_up_for_seconds_only(group, monkeypatch):
    for_ever = threading.Event()
    monkeypatch.setattr(torch.distributed, "destroy_process_group", for_ever.wait)
    leave(patience=0.05)
    assert torch.distributed.is_initialized()
    for_ever.set()
