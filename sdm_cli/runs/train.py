"""`sdm train`: the loop, from a store and a preset to a run folder.

Source: method.md section 3. The step itself is `method.step`; processes, precision and devices are
Accelerate's. Everything random is drawn from (seed, step) or (seed, draw), never from what came
before, so a resumed run goes on exactly.
"""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from sdm_cli.config import Preset
from sdm_cli.console import say, warn
from sdm_cli.data.manifest import settings_differences
from sdm_cli.data.pairs import Pair, PairedSlices, augment_pairs
from sdm_cli.data.splits import Split, load_split, resolve_split
from sdm_cli.data.store import SliceStore, open_store
from sdm_cli.errors import CheckpointError, NewerVersion, PresetError, SdmError
from sdm_cli.method.checkpoint import save_model
from sdm_cli.method.difficulty import ClassDifficulty
from sdm_cli.method.losses import LossTerms
from sdm_cli.method.network import build_network
from sdm_cli.method.pretrained import load_encoder_weights
from sdm_cli.method.schedule import first_semi_supervised_step, learning_rate, update_average
from sdm_cli.method.step import pseudo_label, semi_supervised_step
from sdm_cli.runs.hardware import make_accelerator
from sdm_cli.runs.live import TrainingView, describe_training
from sdm_cli.runs.loader import load_pairs
from sdm_cli.runs.optimizer import make_optimizer
from sdm_cli.runs.report import draw_progress
from sdm_cli.runs.run_folder import RUNS, RunFolder
from sdm_cli.runs.seeds import seed_step, seeded
from sdm_cli.runs.stop import StopWish
from sdm_cli.runs.training_state import TrainingState
from sdm_cli.runs.validate import selection_cases, validate

_RECORD_EVERY = 10
"""Steps between two lines of losses; reading a loss makes the device wait."""


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
    slices = open_store(store or Path("stores") / preset.data.dataset)
    differences = settings_differences(slices.data, preset.data)
    if differences:
        raise PresetError(
            f"{slices.path} was made with other settings than preset {preset.name} has ({differences}): make it "
            "anew (sdm preprocess with this --preset and --overwrite), or give the store that belongs to the preset."
        )
    split = resolve_split(preset.data, slices.cases, allow_missing)
    if slices.failed:
        warn(f"{slices.path} lacks {len(slices.failed)} scans that could not be read: {', '.join(slices.failed)}")
    run = RunFolder(output or RUNS / preset.name)
    if not resume:
        run.require_free()
    accelerator = make_accelerator(preset.train, device)
    training = _Training(preset, slices, split, run, accelerator)
    if resume:
        training.resume()
    else:
        training.start()
    try:
        training.run()
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


class _Training:
    """The loop of a run, over its state."""

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
        self.pairs_per_step = preset.train.pairs * accelerator.num_processes
        if self.pairs_per_step > len(self.pairs.unlabeled):
            raise PresetError(
                f"train.pairs: a step of {self.pairs_per_step} pairs would hold slices twice, since there are "
                f"{len(self.pairs.unlabeled)} unlabeled ones: lower it."
            )
        self.steps_per_epoch = len(self.pairs.unlabeled) / self.pairs_per_step
        self.total = preset.train.steps or math.ceil((preset.train.epochs or 1) * self.steps_per_epoch)
        self.validate_every = preset.train.validate_every_steps or math.ceil(self.steps_per_epoch)
        self.facts = {
            "split": dataclasses.asdict(load_split(preset.data.split) if preset.data.split else split),
            "slices": {"labeled": len(self.pairs.labeled), "unlabeled": len(self.pairs.unlabeled)},
            "scans": store.digest([*split.labeled, *split.unlabeled, *self.selection]),
            "pairs_per_step": self.pairs_per_step,
        }
        with seeded(preset.train.seed):
            network = build_network(preset.model, preset.data.n_classes)
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        network = network.to(accelerator.device)
        self.model, optimizer = accelerator.prepare(network, make_optimizer(network, preset.train))
        difficulty = ClassDifficulty(preset.data.n_classes, preset.method.difficulty_steps, accelerator.device)
        self.state = TrainingState(network, optimizer, difficulty, accelerator.scaler)
        self.stop = StopWish()

    def start(self) -> None:
        """Begin a new run: pretrained weights, then the run folder."""
        report = load_encoder_weights(self.state.network.backbone, self.preset.model.pretrained)
        if self.accelerator.is_main_process:
            if self.preset.model.pretrained != "none":
                say(str(report))
            self.folder.create(self.preset, self.store.path, self.facts)
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
        if self.accelerator.is_main_process:
            self.folder.continue_on(self.store.path, self.state.done, self.state.validated)
            say(f"Resuming {self.folder.path} after step {self.state.done} of {self.total}.")

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
            if self.accelerator.is_main_process:
                self.folder.set_aside_last()
                warn(f"{error} Going on from {previous}, which is of step {self.state.done}.")

    def run(self) -> None:
        """Train to the last step; validates and saves on the way.

        SIGTERM and Ctrl-C end it after a step, with a checkpoint (KeyboardInterrupt).
        """
        state = self.state
        title = f"{self.preset.name} on {self.store.path} ({self.accelerator.device})"
        if self.accelerator.is_main_process:
            say(describe_training(self.preset, self.pairs, self.total, self.accelerator.num_processes))
            if (warmup := self.preset.train.lr_warmup_steps) >= self.total:
                warn(
                    f"train.lr_warmup_steps: {warmup} is no less than the {self.total} steps of the run, so the "
                    "learning rate never reaches train.lr: lower it"
                )
        seconds, started_at = 0.0, state.done
        with self.stop, TrainingView(title, self.total, self.pairs_per_step, self.accelerator.is_main_process) as view:
            if state.done and self._is_due() and state.validated < state.done:  # stopped before it was validated
                self._validate_and_save(view)
            since = time.monotonic()
            draws = range(state.done * self.pairs_per_step, self.total * self.pairs_per_step)
            for pairs in load_pairs(self.pairs, draws, self.preset.train, self.accelerator):
                terms, lr = self._step(pairs)
                is_recorded = self._is_due() or state.done % _RECORD_EVERY == 0
                if is_recorded:
                    self._require_finite(terms)
                    speed = (state.done - started_at) * self.pairs_per_step / (seconds + time.monotonic() - since)
                    entry = self._record(terms, lr, speed)
                # To ask other processes makes the devices wait, as a record does.
                if (is_recorded or self.accelerator.num_processes == 1) and self.stop.of_any(self.accelerator):
                    self._require_finite(terms)
                    self._save_and_stop()
                if is_recorded:
                    view.show_step(entry)
                if self._is_due():
                    seconds += time.monotonic() - since
                    self._validate_and_save(view)
                    since = time.monotonic()

    def _is_due(self) -> bool:
        """Whether a validation follows the steps that are done."""
        return self.state.done % self.validate_every == 0 or self.state.done == self.total

    def _step(self, pairs: Pair) -> tuple[LossTerms, float]:
        """One step on a batch; losses, and the learning rate of the encoder."""
        preset, state = self.preset, self.state
        seed_step(preset.train.seed, state.done, self.accelerator.process_index)
        lr = learning_rate(state.done, self.total, preset.train)
        for group in self.state.optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        terms = semi_supervised_step(
            self.model,
            self._pseudo_label,
            *augment_pairs(pairs),
            state.difficulty,
            preset.method,
            labeled_only=state.done < first_semi_supervised_step(self.total, preset.method.labeled_only_fraction),
            sum_over_processes=lambda counts: self.accelerator.reduce(counts, "sum"),
        )
        self.accelerator.backward(terms.total)
        self.state.optimizer.step()
        self.state.optimizer.zero_grad()
        self._share_running_statistics()
        if state.average is not None:
            update_average(state.average, state.network, state.done, preset.train.average)
        state.done += 1
        return terms, lr

    def _pseudo_label(self, image: Tensor) -> Tensor:
        with self.accelerator.autocast():
            return pseudo_label(self.state.kept, image, self.preset.model.exchange)

    def _share_running_statistics(self) -> None:
        """Every process keeps those of the first; where batch normalisation is not synchronised they differ."""
        if self.accelerator.num_processes > 1:
            for buffer in self.state.network.buffers():
                buffer.copy_(broadcast(buffer))

    def _require_finite(self, terms: LossTerms) -> None:
        """Stop before a broken network replaces a good one; raises SdmError."""
        finite = [torch.isfinite(tensor).all() for tensor in (terms.total, *self.state.kept.parameters())]
        if not torch.stack(finite).all():
            raise SdmError(
                f"{self.folder.path}: the loss or a weight is not finite after step {self.state.done}: train again "
                "with a lower train.lr or with --set train.mixed_precision=no; the last checkpoints are from before."
            )

    def _record(self, terms: LossTerms, lr: float, pairs_per_second: float) -> dict[str, Any]:
        entry = {
            "step": self.state.done,
            "epoch": self.state.done / self.steps_per_epoch,
            "loss": terms.total.item(),
            "loss_labeled": terms.labeled.item(),
            "loss_unlabeled": None if terms.unlabeled is None else terms.unlabeled.item(),
            "loss_consistency": None if terms.consistency is None else terms.consistency.item(),
            "lr": lr,
            "pairs_per_second": pairs_per_second,
        }
        if self.accelerator.is_main_process:
            self.folder.record(entry)
        return entry

    def _validate_and_save(self, view: TrainingView) -> None:
        state = self.state
        result = validate(state.kept, self.preset, self.store, self.selection, self.accelerator, self._may_stop)
        # The published choice is by pooled IoU (method.md section 3); ours is by whole volumes.
        score = result.pooled_iou if self.preset.protocol == "paper" else result.dice
        is_best = score is None or score >= state.best
        state.best = state.best if score is None else max(state.best, score)
        state.validated = state.done
        if self.accelerator.is_main_process:
            self.folder.record({"step": state.done, "validation": result.to_json()})
            if is_best:
                save_model(self.folder.best, state.kept, self.preset, chosen_on=self.preset.train.select_on)
            state.save(self.folder, self.preset)
        self.accelerator.wait_for_everyone()
        view.show_validation(state.done, result.dice, is_best)

    def _may_stop(self) -> None:
        """Between two cases of a validation, which may take longer than a cluster waits; several processes go on."""
        if self.stop.wanted and self.accelerator.num_processes == 1:
            self._save_and_stop()

    def _save_and_stop(self) -> None:
        if self.accelerator.is_main_process:
            self.state.save(self.folder, self.preset)
        self.accelerator.wait_for_everyone()
        raise KeyboardInterrupt
