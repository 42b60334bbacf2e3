"""`sdm train`: from a store and a preset to a run folder, begun or resumed; the loop itself is `loop`."""

import dataclasses
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from sdm_cli.config import Preset
from sdm_cli.console import say, warn
from sdm_cli.data.manifest import settings_differences
from sdm_cli.data.pairs import PairedSlices
from sdm_cli.data.splits import Split, load_split, resolve_split
from sdm_cli.data.store import SliceStore, open_store
from sdm_cli.errors import CheckpointError, NewerVersion, PresetError
from sdm_cli.method.difficulty import ClassDifficulty
from sdm_cli.method.network import build_network
from sdm_cli.method.pretrained import load_encoder_weights
from sdm_cli.runs.hardware import make_accelerator
from sdm_cli.runs.loop import TrainingLoop
from sdm_cli.runs.optimizer import make_optimizer
from sdm_cli.runs.processes import Processes
from sdm_cli.runs.report import draw_progress
from sdm_cli.runs.run_folder import RUNS, RunFolder
from sdm_cli.runs.seeds import seeded
from sdm_cli.runs.training_state import TrainingState
from sdm_cli.runs.validate import selection_cases
from sdm_cli.runs.workload import plan_workload


def train(
    preset: Preset,
    store: Path | None = None,
    output: Path | None = None,
    device: str | None = None,
    resume: bool = False,
    allow_missing: bool = False,
) -> Path:
    """Train a preset on a store.

    Args:
        preset: resolved.
        store: folder made by `sdm preprocess`; none: `stores/<dataset>`.
        output: run folder; none: `runs/<preset>`.
        device: as `sdm train -d`; none: the best there is.
        resume: continue from `checkpoints/last`.
        allow_missing: go on without the cases of the split that the store lacks.

    Returns:
        The run folder.

    Raises:
        SdmError: of the kind that tells what is wrong with preset, store, split, checkpoint or output.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM, with a checkpoint.
    """
    accelerator = make_accelerator(preset.train, device)
    processes = Processes(accelerator)
    run = RunFolder(output or RUNS / preset.name)
    with processes.together():
        slices = _open_matching(store or Path("stores") / preset.data.dataset, preset)
        split = resolve_split(preset.data, slices.cases, allow_missing)
        if slices.failed and accelerator.is_main_process:
            warn(f"{slices.path} lacks {len(slices.failed)} scans that could not be read: {', '.join(slices.failed)}")
        if not resume:
            run.require_free()
        training = _Training(preset, slices, split, run, accelerator)
    with processes.together():
        if resume:
            training.resume()
        else:
            training.start()
    with processes.together():
        training.take_folder(resume)
    try:
        with processes.noticing_losses():
            training.make_loop(processes).run()
    except KeyboardInterrupt:
        if accelerator.is_main_process:
            saved = training.state.saved
            where = f"goes on from step {saved}" if saved else "starts over (no checkpoint yet)"
            say(f"Stopped after step {training.state.done}: the same command with --resume {where}.")
        raise
    if accelerator.is_main_process:
        draw_progress(run.picture, run.metrics, preset.name)
        say(f"Models, record and curves: {run.path}")
    return run.path


def _open_matching(path: Path, preset: Preset) -> SliceStore:
    """The store of the preset; PresetError if it was made with other settings."""
    store = open_store(path)
    differences = settings_differences(store.data, preset.data)
    if differences:
        raise PresetError(
            f"{store.path} was made with other settings than preset {preset.name} has ({differences}): make it "
            "anew (sdm preprocess with this --preset and --overwrite), or give the store that belongs to the preset."
        )
    return store


class _Training:
    """Everything that a run needs before its first step, new or resumed."""

    def __init__(
        self, preset: Preset, store: SliceStore, split: Split, run: RunFolder, accelerator: Accelerator
    ) -> None:
        self.preset, self.store, self.folder, self.accelerator = preset, store, run, accelerator
        self.pairs = PairedSlices(
            store.with_labels_of(split.labeled),
            split.labeled,
            split.unlabeled,
            preset.train.crop,
            preset.augment,
            preset.train.seed,
        )
        self.selection = selection_cases(preset, store, split)
        self.work = plan_workload(preset.train, len(self.pairs.unlabeled), accelerator.num_processes)
        self.facts = {
            "split": dataclasses.asdict(load_split(preset.data.split) if preset.data.split else split),
            "slices": {"labeled": len(self.pairs.labeled), "unlabeled": len(self.pairs.unlabeled)},
            "scans": store.digest([*split.labeled, *split.unlabeled, *self.selection]),
            "pairs_per_step": self.work.pairs_per_step,
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

    def make_loop(self, processes: Processes) -> TrainingLoop:
        """The loop from the state as it is; every process waits here for the others."""
        return TrainingLoop(
            self.preset,
            self.store,
            self.pairs,
            self.selection,
            self.work,
            self.folder,
            self.accelerator,
            self.accelerator.prepare_model(self.state.network),
            self.state,
            processes,
        )

    def start(self) -> None:
        """Begin a new run from pretrained weights."""
        report = load_encoder_weights(self.state.network.backbone, self.preset.model.pretrained)
        if self.preset.model.pretrained != "none" and self.accelerator.is_main_process:
            say(str(report))
        self.state.start_average(self.preset.train.average)

    def resume(self) -> None:
        """Continue the run of the folder, from its first step if it was stopped before its first checkpoint."""
        self.folder.require_same(self.preset, self.facts)
        is_saved = self.folder.has_checkpoint
        if not is_saved:
            self.folder.require_nothing_to_lose()
            load_encoder_weights(self.state.network.backbone, self.preset.model.pretrained)
        self.state.start_average(self.preset.train.average)
        if is_saved:
            self._restore()

    def take_folder(self, resumed: bool) -> None:
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
        say(f"Resuming {self.folder.path} after step {self.state.done} of {self.work.steps}.")

    def _restore(self) -> None:
        """From the last checkpoint; from the one before it if that is damaged or was never put in place."""
        last, previous = self.folder.last, self.folder.previous
        try:
            self.state.restore(last if last.is_dir() else previous)
        except NewerVersion:
            raise
        except CheckpointError as error:
            if not (last.is_dir() and previous.is_dir()):
                raise
            self.state.restore(previous)
            self._stepped_over = error
