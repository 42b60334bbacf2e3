"""`sdm train`: the loop, from a store and a preset to a run folder.

Source: method.md section 3. The step itself is `method.step`; processes, precision and devices are
Accelerate's. Everything random is drawn from (seed, step) or (seed, draw), never from what came
before, so a resumed run goes on exactly.
"""

import dataclasses
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sdm_cli.config import Preset
from sdm_cli.console import say, warn
from sdm_cli.data.manifest import settings_differences
from sdm_cli.data.pairs import PairedSlices, augment_pairs
from sdm_cli.data.splits import Split, load_split, resolve_split
from sdm_cli.data.store import SliceStore, open_store
from sdm_cli.errors import PresetError, SdmError, StoreError
from sdm_cli.method.checkpoint import has_model, load_model, load_resume, save_model
from sdm_cli.method.difficulty import ClassDifficulty
from sdm_cli.method.losses import LossTerms
from sdm_cli.method.network import MessengerNetwork, build_network
from sdm_cli.method.pretrained import load_encoder_weights
from sdm_cli.method.schedule import first_semi_supervised_step, learning_rate, start_average, update_average
from sdm_cli.method.step import pseudo_label, semi_supervised_step
from sdm_cli.runs.hardware import make_accelerator
from sdm_cli.runs.live import TrainingView, describe_training
from sdm_cli.runs.optimizer import make_optimizer, optimizer_tensors, restore_optimizer
from sdm_cli.runs.report import draw_progress
from sdm_cli.runs.run_folder import RUNS, RunFolder
from sdm_cli.runs.seeds import seed_step, seeded
from sdm_cli.runs.validate import Validation, selection_cases, validate

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
    """
    slices = open_store(store or Path("stores") / preset.data.dataset)
    differences = settings_differences(slices.data, preset.data)
    if differences:
        raise PresetError(
            f"{slices.path} was made with other settings than preset {preset.name} has ({differences}): preprocess the "
            "scans with this preset, or give the store that belongs to it."
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
            where = f"goes on from step {training.saved}" if training.saved else "starts over (no checkpoint yet)"
            say(f"Stopped after step {training.done}: the same command with --resume {where}.")
        raise
    if accelerator.is_main_process:
        draw_progress(run.picture, run.metrics, preset.name)
        say(f"Models, record and curves: {run.path}")
    return run.path


class _Training:
    """State of a run, and the loop over it."""

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
        steps_per_epoch = len(self.pairs.unlabeled) / self.pairs_per_step
        self.total = preset.train.steps or math.ceil((preset.train.epochs or 1) * steps_per_epoch)
        self.steps_per_epoch = steps_per_epoch
        self.validate_every = preset.train.validate_every_steps or math.ceil(steps_per_epoch)
        self.done, self.saved, self.best = 0, 0, -1.0
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
        self.network: MessengerNetwork = network.to(accelerator.device)
        self.average: MessengerNetwork | None = None
        self.difficulty = ClassDifficulty(preset.data.n_classes, preset.method.difficulty_steps, accelerator.device)
        self.optimizer = make_optimizer(self.network, preset.train)
        self.model, self.optimizer = accelerator.prepare(self.network, self.optimizer)

    def start(self) -> None:
        """Begin a new run: pretrained weights, then the run folder."""
        report = load_encoder_weights(self.network.backbone, self.preset.model.pretrained)
        if self.accelerator.is_main_process:
            if self.preset.model.pretrained != "none":
                say(str(report))
            self.folder.create(self.preset, self.store.path, self.facts)
        self._start_average()

    def resume(self) -> None:
        """Continue the run of the folder, from its first step if it was stopped before its first checkpoint."""
        self.folder.require_same(self.preset, self.facts)
        if has_model(self.folder.last):
            self._start_average()
            self._restore()
        else:
            self.folder.require_nothing_to_lose()
            load_encoder_weights(self.network.backbone, self.preset.model.pretrained)
            self._start_average()
        if self.accelerator.is_main_process:
            self.folder.continue_on(self.store.path, self.done)
            say(f"Resuming {self.folder.path} after step {self.done} of {self.total}.")

    def run(self) -> None:
        """Train to the last step; validates and saves on the way."""
        preset = self.preset
        semi_supervised = first_semi_supervised_step(self.total, preset.method.labeled_only_fraction)
        title = f"{preset.name} on {self.store.path} ({self.accelerator.device})"
        if self.accelerator.is_main_process:
            say(describe_training(preset, self.pairs, self.total, self.accelerator.num_processes))
        seconds, started_at = 0.0, self.done
        with TrainingView(title, self.total, self.pairs_per_step, self.accelerator.is_main_process) as view:
            since = time.monotonic()
            for pairs in self._batches():
                seed_step(preset.train.seed, self.done, self.accelerator.process_index)
                lr = learning_rate(self.done, self.total, preset.train)
                for group in self.optimizer.param_groups:
                    group["lr"] = lr * group["lr_factor"]
                batch = augment_pairs(pairs)
                terms = semi_supervised_step(
                    self.model,
                    self._pseudo_label,
                    *batch,
                    self.difficulty,
                    preset.method,
                    labeled_only=self.done < semi_supervised,
                    sum_over_processes=lambda counts: self.accelerator.reduce(counts, "sum"),
                )
                self.accelerator.backward(terms.total)
                self.optimizer.step()
                self.optimizer.zero_grad()
                self._share_running_statistics()
                if self.average is not None:
                    update_average(self.average, self.network, self.done, preset.train.average)
                self.done += 1
                is_due = self.done % self.validate_every == 0 or self.done == self.total
                if is_due or self.done % _RECORD_EVERY == 0:
                    self._require_finite(terms)
                    speed = (self.done - started_at) * self.pairs_per_step / (seconds + time.monotonic() - since)
                    view.show_step(self._record(terms, lr, speed))
                if is_due:
                    seconds += time.monotonic() - since
                    result, is_best = self._validate_and_save()
                    view.show_validation(self.done, result.dice, is_best)
                    since = time.monotonic()

    @property
    def kept(self) -> MessengerNetwork:
        """The network that makes pseudo-labels, is validated and is kept."""
        return self.average if self.average is not None else self.network

    def _batches(self) -> Iterator[Any]:
        """Batches of the draws still to come; Accelerate gives every n-th batch to each of n processes."""
        draws = range(self.done * self.pairs_per_step, self.total * self.pairs_per_step)
        loader = DataLoader(
            self.pairs,
            batch_size=self.preset.train.pairs,
            sampler=draws,
            num_workers=min(self.preset.train.workers, os.cpu_count() or 1),
            pin_memory=self.accelerator.device.type == "cuda",
        )
        try:
            yield from self.accelerator.prepare_data_loader(loader)
        except StoreError as error:
            # A loader process wraps the sentence in its traceback.
            raise StoreError(str(error).rpartition("StoreError: ")[2].strip()) from None

    def _pseudo_label(self, image: Tensor) -> Tensor:
        with self.accelerator.autocast():
            return pseudo_label(self.kept, image, self.preset.model.exchange)

    def _start_average(self) -> None:
        if self.preset.train.average:
            self.average = start_average(self.network)

    def _share_running_statistics(self) -> None:
        """Every process keeps those of the first; where batch normalisation is not synchronised they differ."""
        if self.accelerator.num_processes > 1:
            for buffer in self.network.buffers():
                buffer.copy_(broadcast(buffer))

    def _require_finite(self, terms: LossTerms) -> None:
        """Stop before a broken network replaces a good one; raises SdmError."""
        finite = [torch.isfinite(tensor).all() for tensor in (terms.total, *self.kept.parameters())]
        if not torch.stack(finite).all():
            raise SdmError(
                f"{self.folder.path}: the loss or a weight is not finite after step {self.done}: train again with a "
                "lower train.lr or with --set train.mixed_precision=no; the last checkpoints are from before."
            )

    def _record(self, terms: LossTerms, lr: float, pairs_per_second: float) -> dict[str, Any]:
        entry = {
            "step": self.done,
            "epoch": self.done / self.steps_per_epoch,
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

    def _validate_and_save(self) -> tuple[Validation, bool]:
        result = validate(self.kept, self.preset, self.store, self.selection, self.accelerator)
        # The published choice is by pooled IoU (method.md section 3); ours is by whole volumes.
        score = result.pooled_iou if self.preset.protocol == "paper" else result.dice
        is_best = score is None or score >= self.best
        self.best = self.best if score is None else max(self.best, score)
        if self.accelerator.is_main_process:
            self.folder.record({"step": self.done, "validation": result.to_json()})
            if is_best:
                save_model(self.folder.best, self.kept, self.preset, chosen_on=self.preset.train.select_on)
            save_model(self.folder.last, self.kept, self.preset, self._resume_state(), chosen_on="last step")
        self.saved = self.done
        self.accelerator.wait_for_everyone()
        return result, is_best

    def _resume_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"difficulty.{name}": value for name, value in self.difficulty.state_dict().items()}
        if self.average is not None:  # the model folder then holds the average
            tensors |= {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        values: dict[str, Any] = {"step": self.done, "best": self.best}
        if self.accelerator.scaler is not None:
            values["scaler"] = self.accelerator.scaler.state_dict()
        return tensors, values

    def _restore(self) -> None:
        kept, _ = load_model(self.folder.last)
        tensors, values = load_resume(self.folder.last)
        self.kept.load_state_dict(kept.state_dict())
        if self.average is not None:
            self.network.load_state_dict(_below(tensors, "network."))
        self.difficulty.load_state_dict(_below(tensors, "difficulty."))
        restore_optimizer(self.optimizer, _below(tensors, "optimizer."))
        if self.accelerator.scaler is not None and "scaler" in values:
            self.accelerator.scaler.load_state_dict(values["scaler"])
        self.done, self.best = values["step"], values["best"]
        self.saved = self.done


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
