"""`sdm train`: from a store and a preset to a run folder, begun or resumed; the loop itself is `loop`."""

import dataclasses
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from sdm_cli.config import Preset
from sdm_cli.console import say, warn, warn_once
from sdm_cli.data.cases import counted
from sdm_cli.data.manifest import settings_differences
from sdm_cli.data.splits import Split, load_split, resolve_split
from sdm_cli.data.store import SliceStore, open_store
from sdm_cli.errors import CheckpointError, NewerVersion, PresetError
from sdm_cli.method.difficulty import ClassDifficulty
from sdm_cli.method.network import build_network
from sdm_cli.method.pretrained import load_encoder_weights
from sdm_cli.runs.dry_run import fitting_pairs, print_dry_run, with_train
from sdm_cli.runs.failures import explained
from sdm_cli.runs.hardware import determinism, keep_freed_memory, make_accelerator
from sdm_cli.runs.html_page import REPORT
from sdm_cli.runs.loop import TrainingLoop
from sdm_cli.runs.optimizer import make_optimizer
from sdm_cli.runs.processes import Processes
from sdm_cli.runs.run_folder import RUNS, RunFolder
from sdm_cli.runs.seeds import seeded
from sdm_cli.runs.trackers import Tracker, require_tracker, tracked
from sdm_cli.runs.training_state import TrainingState
from sdm_cli.runs.workload import RunPlan, plan_run


def train(
    preset: Preset,
    store: Path | None = None,
    output: Path | None = None,
    device: str | None = None,
    resume: bool = False,
    allow_missing: bool = False,
    auto_pairs: bool = False,
    dry_run: bool = False,
    tracker: Tracker | None = None,
) -> Path:
    """Train a preset on a store.

    Args:
        preset: resolved.
        store: folder made by `sdm preprocess`; none: `stores/<dataset>`.
        output: run folder; none: `runs/<preset>`.
        device: as `sdm train -d`; none: the best there is.
        resume: continue from `checkpoints/last`.
        allow_missing: go on without the cases of the split that the store lacks.
        auto_pairs: `train.pairs` becomes the largest number whose steps fit into memory, found by trying; that of the
            run where one is resumed.
        dry_run: print what the run would be, with what some steps of it cost, and write nothing.
        tracker: also told what the run records; none: nothing leaves the run folder.

    Returns:
        The run folder.

    Raises:
        SdmError: of the kind that tells what is wrong with preset, store, split, checkpoint, output or tracker.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM, with a checkpoint.
    """
    if tracker is not None:
        require_tracker(tracker)
    store = store or Path("stores") / preset.data.dataset
    accelerator = make_accelerator(preset.train, device)
    processes = Processes(accelerator)
    run = RunFolder(output or RUNS / preset.name)
    with processes.together():
        slices, split = _open(preset, store, allow_missing)
        if slices.failed and accelerator.is_main_process:
            unread = counted(len(slices.failed), "scan")
            warn_once(f"{slices.path} lacks {unread} that could not be stored: {', '.join(slices.failed)}")
        if not (resume or dry_run):
            run.require_free(preset)
    kind = accelerator.device.type
    tried_on = str(accelerator.device) if kind == "cuda" else kind  # several processes call theirs cpu:0, cpu:1
    start = partial(start_loop, preset, store, tried_on, allow_missing)
    if auto_pairs and resume:
        with processes.together():
            preset = with_train(preset, pairs=run.read_config()[0].train.pairs)
    elif auto_pairs:
        preset = with_train(preset, pairs=fitting_pairs(start, preset, slices, split, accelerator, processes))
    with processes.together():
        plan = plan_run(preset, slices, split, accelerator.num_processes)
        if dry_run and accelerator.is_main_process:
            print_dry_run(plan, accelerator.device, accelerator.num_processes, start)
    if not dry_run:
        with processes.together(), explained(preset.train, accelerator.device):
            training = _Training(plan, run, accelerator)
        training.begin(resume, processes)
        training.finish(processes, tracker)
    return run.path


def start_loop(preset: Preset, store: Path, device: str, allow_missing: bool, pairs: int, folder: Path) -> TrainingLoop:
    """The loop of a run that is only tried: so many pairs a step, random weights, no loader processes."""
    slices, split = _open(preset, store, allow_missing)
    preset = with_train(preset, pairs=pairs, workers=0)
    accelerator = make_accelerator(preset.train, device)
    training = _Training(plan_run(preset, slices, split, 1), RunFolder(folder), accelerator)
    training.state.start_average(preset.train.average)
    return training.make_loop(Processes(accelerator))


def _open(preset: Preset, store: Path, allow_missing: bool) -> tuple[SliceStore, Split]:
    """The store, which must belong to the preset, and who plays which role in it."""
    slices = open_store(store)
    differences = settings_differences(slices.data, preset.data)
    if differences:
        raise PresetError(
            f"{slices.path} was made with other settings than preset {preset.name} has ({differences}): make it "
            "anew (sdm preprocess with this --preset and --overwrite), or give the store that belongs to the preset."
        )
    return slices, resolve_split(preset.data, slices.cases, allow_missing)


class _Training:
    """Everything that a run needs before its first step, new or resumed."""

    def __init__(self, plan: RunPlan, run: RunFolder, accelerator: Accelerator) -> None:
        preset, store, split = plan.preset, plan.store, plan.split
        self.plan, self.preset, self.store, self.folder, self.accelerator = plan, preset, store, run, accelerator
        self.facts = {
            "split": dataclasses.asdict(load_split(preset.data.split) if preset.data.split else split),
            "slices": {"labeled": len(plan.pairs.labeled), "unlabeled": len(plan.pairs.unlabeled)},
            "scans": store.digest([*split.labeled, *split.unlabeled, *plan.selection]),
            "pairs_per_step": plan.work.pairs_per_step,
        }
        with seeded(preset.train.seed):
            network = build_network(preset.model, preset.data.n_classes)
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        network = network.to(accelerator.device)
        optimizer = accelerator.prepare_optimizer(make_optimizer(network, preset.train))
        difficulty = ClassDifficulty(preset.data.n_classes, preset.method.difficulty_steps, accelerator.device)
        self.state = TrainingState(network, optimizer, difficulty, accelerator.scaler)
        self._stepped_over: CheckpointError | None = None
        self.keeps_memory = accelerator.device.type == "cpu" and keep_freed_memory()

    def make_loop(self, processes: Processes) -> TrainingLoop:
        """The loop from the state as it is; every process waits here for the others."""
        return TrainingLoop(
            self.plan,
            self.folder,
            self.accelerator,
            self.accelerator.prepare_model(self.state.network),
            self.state,
            processes,
        )

    def begin(self, resume: bool, processes: Processes) -> None:
        """All processes take up the same state, and the first makes the run folder or readies it."""
        with processes.together():
            if resume:
                self._resume()
            else:
                self._start()
        processes.require_same(self.state.done, "checkpoints of the run")
        with processes.together():
            self._take_folder(resume)

    def finish(self, processes: Processes, tracker: Tracker | None) -> None:
        """Train to the last step, and say where the results are, or how to go on after a stop."""
        speaks = self.accelerator.is_main_process
        if self.keeps_memory and speaks:
            say("The C library keeps freed memory for the next step (faster on a CPU).")
        try:
            with (
                processes.noticing_losses(),
                tracked(self.accelerator, tracker, self.folder, self.preset),
                explained(self.preset.train, self.accelerator.device),
                determinism(self.preset.train.deterministic),
            ):
                self.make_loop(processes).run()
        except KeyboardInterrupt:
            if speaks:
                saved = self.state.saved
                where = f"goes on from step {saved}" if saved else "starts over (no checkpoint yet)"
                say(f"Stopped after step {self.state.done}: the same command with --resume {where}.")
            raise
        if speaks:
            path = self.folder.path
            say(f"Models, record and pictures: {path}, all in one page: {path / REPORT}")

    def _start(self) -> None:
        """Begin a new run from pretrained weights."""
        report = load_encoder_weights(self.state.network.backbone, self.preset.model.pretrained)
        if self.preset.model.pretrained != "none" and self.accelerator.is_main_process:
            say(str(report))
        self.state.start_average(self.preset.train.average)

    def _resume(self) -> None:
        """Continue the run of the folder, from its first step if it was stopped before its first checkpoint."""
        self.folder.require_same(self.preset, self.facts)
        is_saved = self.folder.has_checkpoint
        if not is_saved:
            self.folder.require_nothing_to_lose()
            load_encoder_weights(self.state.network.backbone, self.preset.model.pretrained)
        self.state.start_average(self.preset.train.average)
        if is_saved:
            self._restore()

    def _take_folder(self, resumed: bool) -> None:
        """The main process makes the run folder, or readies it for what follows the state that all have read."""
        if not self.accelerator.is_main_process:
            return
        if not resumed:
            self.folder.create(self.preset, self.store.path, self.facts)
            return
        if self._stepped_over is not None:
            self.folder.set_aside_last()
            warn(f"{self._stepped_over} Going on from {self.folder.previous}, which is of step {self.state.done}.")
        self.folder.continue_on(self.store.path, self.state.done, self.state.validated)
        say(f"Resuming {self.folder.path} after step {self.state.done} of {self.plan.work.steps}.")

    def _restore(self) -> None:
        """From the last checkpoint; from the one before it if that is damaged or was never put in place.

        Raises:
            CheckpointError: none of them can be read.
        """
        faults: list[CheckpointError] = []
        for checkpoint in (self.folder.last, self.folder.previous):
            if not checkpoint.is_dir():
                continue
            try:
                self.state.restore(checkpoint, self.plan.work.steps)
            except NewerVersion:
                raise
            except CheckpointError as error:
                faults.append(error)
            else:
                self._stepped_over = next(iter(faults), None)
                return
        best = f" {self.folder.best} is a model of its own." if self.folder.best.is_dir() else ""
        raise CheckpointError(
            f"{' '.join(map(str, faults))} So the run cannot go on: put an intact copy of a checkpoint back, or start "
            f"another run by -o.{best}"
        )
