"""What each of two processes does for `test_processes`, in one launch; leaves what it saw as files for the test.

python -m torch.distributed.run --nproc-per-node 2 tests/ranks.py FOLDER
"""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import tracking
from models import use_least_encoder
from safetensors.torch import load_file, save_file
from test_network import TINY, tiny_config
from torch.nn.parallel import DistributedDataParallel

from sdm_cli.config import ModelConfig
from sdm_cli.data.pairs import PairedSlices
from sdm_cli.data.store import SliceStore
from sdm_cli.errors import SdmError, StoreError
from sdm_cli.method import step as step_module
from sdm_cli.method.difficulty import ClassDifficulty
from sdm_cli.method.network import MessengerNetwork
from sdm_cli.preset_files import load_preset
from sdm_cli.runs import loop as loop_module
from sdm_cli.runs import validate as validate_module
from sdm_cli.runs.pictures import Pictures
from sdm_cli.runs.shares import ClassShares
from sdm_cli.runs.train import train

FOLDER, RANK = Path(sys.argv[1]), int(os.environ["RANK"])


def spied(owner, name, see):
    """Let `see` have the arguments and the result of a function; gives back how to undo it."""
    real = getattr(owner, name)

    def spy(*arguments, **options):
        result = real(*arguments, **options)
        see(arguments, result)
        return result

    setattr(owner, name, spy)
    return lambda: setattr(owner, name, real)


class Gone(tracking.GeneralTracker):
    """A tracker whose service goes away once the run has begun."""

    name = "tensorboard"
    requires_logging_directory = True
    tracker = None

    def __init__(self, run_name, logging_dir):
        super().__init__()

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None):
        raise OSError("the service is gone")


def whole_run(preset):
    """A run, with all that this process read, weighed, validated and wrote."""
    seen = {
        "draws": [],
        "picks": [],
        "weights": [],
        "counts": [],
        "validated": [],
        "written": [],
        "seeds": [],
        "shares": [],
    }
    run = FOLDER / "whole"

    def audit(event, arguments):
        if (event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")) or event in (
            "os.mkdir",
            "os.rename",
        ):
            path = Path(os.fsdecode(arguments[0])) if not isinstance(arguments[0], int) else Path()
            if run in (path, *path.parents):
                seen["written"].append(f"{event} {path.name}")

    sys.addaudithook(audit)
    for moment in ("at_validation", "at_stop", "at_end"):  # panels read pairs once more
        setattr(Pictures, moment, lambda *arguments: None)
    undo = [
        spied(PairedSlices, "__getitem__", lambda arguments, _: seen["draws"].append(arguments[1])),
        spied(
            PairedSlices,
            "_pick",
            lambda arguments, slice_: seen["picks"].append([arguments[3], arguments[1], *slice_]),
        ),
        spied(ClassDifficulty, "update", lambda _, weights: seen["weights"].append(weights.tolist())),
        spied(step_module, "count_classes", lambda _, counts: seen["counts"].append(counts.tolist())),
        spied(SliceStore, "label_volume", lambda arguments, _: seen["validated"].append(arguments[1])),
        spied(loop_module, "seed_micro_batch", lambda _, __: seen["seeds"].append(torch.initial_seed())),
        spied(ClassShares, "_count", lambda _, counts: seen["shares"].append(counts.tolist())),
        spied(loop_module.TrainingLoop, "run", lambda arguments, _: seen.update(state=arguments[0].state)),
    ]
    tracking.LOGGER_TYPE_TO_CLASS["tensorboard"] = Gone
    tracking._available_trackers = [tracking.LoggerType.TENSORBOARD]
    train(preset, FOLDER / "store", run, "cpu", tracker="tensorboard")
    for each in undo:
        each()
    state = seen.pop("state")
    difficulty = {f"difficulty.{name}": value for name, value in state.difficulty.state_dict().items()}
    save_file(state.network.state_dict() | difficulty, FOLDER / f"state{RANK}.safetensors")
    return seen


def stopped_and_resumed_run(preset):
    """A signal reaches the second process alone: within step 8, then within the validation after step 10.

    Gives the calls that this process had made when it stopped.
    """
    done = []
    for owner, name, at in ((loop_module, "semi_supervised_step", 15), (validate_module, "network_predictor", 1)):
        calls = []

        def terminate(_arguments, _result, calls=calls, at=at):
            calls.append(1)
            if RANK == 1 and len(calls) == at:
                os.kill(os.getpid(), signal.SIGTERM)

        undo = spied(owner, name, terminate)
        try:
            train(preset, FOLDER / "store", FOLDER / "stopped", "cpu", resume=bool(done))
        except KeyboardInterrupt:
            done.append(len(calls))
        undo()
    train(preset, FOLDER / "store", FOLDER / "stopped", "cpu", resume=True)
    return done


def failures(preset):
    """What each process raises when one of them cannot read: before the first step, in a step, in a validation."""
    raised = []
    for owner, name, at in (
        (SliceStore, "digest", 1),
        (PairedSlices, "__getitem__", 5),
        (SliceStore, "label_volume", 1),
    ):
        calls = []

        def fail(_arguments, _result, calls=calls, name=name, at=at):
            calls.append(1)
            if RANK == 1 and len(calls) == at:
                raise StoreError(f"{name} failed")

        undo = spied(owner, name, fail)
        try:
            train(preset, FOLDER / "store", FOLDER / f"failed-{name}", "cpu")
        except SdmError as error:
            raised.append(f"{type(error).__name__}: {error}")
        undo()
    return raised


def broken_loss(preset):
    """What each process raises when the loss of the second is not finite in step 2."""
    calls = []

    def spoil(real):
        def step(*arguments, **options):
            calls.append(1)
            terms = real(*arguments, **options)
            harm = float("nan") if RANK == 1 and len(calls) == 3 else 1.0
            return terms._replace(total=terms.total * harm)

        return step

    real = loop_module.semi_supervised_step
    loop_module.semi_supervised_step = spoil(real)
    try:
        train(preset, FOLDER / "store", FOLDER / "broken", "cpu")
    except SdmError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        loop_module.semi_supervised_step = real


def exchange_over_all():
    """Logits and averaged gradients of the half of a batch that this process has."""
    config = ModelConfig(**{**vars(tiny_config(1, 4)), "exchange_over": "all"})
    network = MessengerNetwork(TINY, config, 3).double().train()
    network.load_state_dict(load_file(FOLDER / "weights.safetensors"))
    network.framework.decoder.linear_fuse.bn.eval()
    batch = {name: value.chunk(2)[RANK] for name, value in load_file(FOLDER / "batch.safetensors").items()}
    wrapped = DistributedDataParallel(network)  # which adds up gradients as long as it lives
    labeled, unlabeled = wrapped(batch["labeled"], batch["unlabeled"])
    ((labeled * batch["weight_l"]).mean() + (unlabeled * batch["weight_u"]).mean()).backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    logits = {"logits_l": labeled.detach().contiguous(), "logits_u": unlabeled.detach().contiguous()}
    save_file(logits | gradients, FOLDER / f"exchange{RANK}.safetensors")


def main():
    use_least_encoder()
    preset = load_preset(str(FOLDER / "tiny.yaml"), [])
    facts = whole_run(preset)
    facts["stopped_after"] = stopped_and_resumed_run(preset)
    facts["raised"] = failures(replace(preset, train=replace(preset.train, validate_every_steps=2)))
    facts["broken"] = broken_loss(preset)
    exchange_over_all()
    (FOLDER / f"facts{RANK}.json").write_text(json.dumps(facts))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
