"""The training loop: step after step over a run's state, with records, validations and checkpoints.

Source: method.md section 3. The step itself is `method.step`; processes, precision and devices are
Accelerate's. Everything random is drawn from (seed, step) or (seed, draw), never from what came
before, so a resumed run goes on exactly.
"""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NoReturn, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from sdm_cli.console import warn
from sdm_cli.data.pairs import Pair, augment_pairs
from sdm_cli.errors import SdmError
from sdm_cli.method.checkpoint import save_model
from sdm_cli.method.losses import LossTerms, mean_terms
from sdm_cli.method.schedule import first_semi_supervised_step, learning_rate, update_average
from sdm_cli.method.step import pseudo_label, semi_supervised_step
from sdm_cli.runs.broken_step import StepWatch
from sdm_cli.runs.collapse import CollapseWatch, describe_collapse
from sdm_cli.runs.live import TrainingView, announce
from sdm_cli.runs.loader import load_pairs
from sdm_cli.runs.pictures import Pictures
from sdm_cli.runs.processes import Processes
from sdm_cli.runs.record import RECORD_EVERY, score_of
from sdm_cli.runs.run_folder import RunFolder
from sdm_cli.runs.seeds import seed_micro_batch
from sdm_cli.runs.shares import BACKGROUND
from sdm_cli.runs.stop import StopWish
from sdm_cli.runs.trackers import tell
from sdm_cli.runs.training_state import TrainingState
from sdm_cli.runs.validate import validate
from sdm_cli.runs.workload import RunPlan

_MOST_SKIPPED = 50
"""Steps in a row that fp16 may leave out. Each halves the scale of the loss, and half as many make it harmless."""


class TrainingLoop:
    """Trains `state` to the last step of a plan.

    Args:
        plan: whose store gives the labels of the selection cases.
        folder: of the run.
        accelerator: processes, precision and device.
        model: the network of `state`, as Accelerate wraps it.
        state: what a checkpoint holds.
        processes: what they agree on.
    """

    def __init__(
        self,
        plan: RunPlan,
        folder: RunFolder,
        accelerator: Accelerator,
        model: nn.Module,
        state: TrainingState,
        processes: Processes,
    ) -> None:
        self.plan, self.preset, self.pairs, self.work = plan, plan.preset, plan.pairs, plan.work
        self.folder, self.accelerator, self.model, self.state = folder, accelerator, model, state
        self.processes = processes
        self.stop, self.collapse = StopWish(), CollapseWatch()
        self.watch = StepWatch(self.preset, self.pairs, self.work, folder, accelerator, state)
        self.pictures = Pictures(folder, self.preset, self.pairs, accelerator.device)

    def run(self) -> None:
        """Train to the last step; validates and saves on the way.

        SIGTERM and Ctrl-C end it after a step, with a checkpoint (KeyboardInterrupt).
        """
        state = self.state
        with self.processes.together():
            if self.accelerator.is_main_process:
                for entry in self.folder.entries():
                    self.collapse.take(entry)
        title = f"{self.preset.name} on {self.plan.store.path} ({self.accelerator.device})"
        if self.accelerator.is_main_process:
            announce(self.preset, self.pairs, self.work, self.accelerator.num_processes)
        seconds, started_at = 0.0, state.done
        with self.stop, TrainingView(title, self.work, self.accelerator.is_main_process) as view:
            if state.done and self._is_due() and state.validated < state.done:  # stopped before it was validated
                self._validate_and_save(view)
            since = time.monotonic()
            draws = range(state.done * self.work.pairs_per_step, self.work.steps * self.work.pairs_per_step)
            batches = load_pairs(self.pairs, draws, self.preset.train, self.accelerator)
            while state.done < self.work.steps:
                terms, lr = self.step(batches)
                is_recorded = self._is_due() or state.done % RECORD_EVERY == 0
                if is_recorded:
                    self._require_finite_weights()
                    speed = (state.done - started_at) * self.work.pairs_per_step / (seconds + time.monotonic() - since)
                    entry = self._record(terms, lr, speed)
                if self.processes.any(self.stop.wanted):
                    self._require_finite_weights()
                    self._save_and_stop()
                if is_recorded:
                    view.show_step(entry, self.collapse.vanished)
                    if self.collapse.alarm is not None:
                        warn(describe_collapse(self.collapse.alarm))
                if self._is_due():
                    seconds += time.monotonic() - since
                    self._validate_and_save(view)
                    since = time.monotonic()
        if self.accelerator.is_main_process:
            self.pictures.at_end(state.kept, state.done)

    def _is_due(self) -> bool:
        """Whether a validation follows the steps that are done."""
        return self.state.done % self.work.validate_every == 0 or self.state.done == self.work.steps

    def step(self, batches: Iterator[Pair]) -> tuple[LossTerms, float]:
        """One step of the optimiser; losses, and the learning rate of the encoder."""
        preset, state = self.preset, self.state
        lr = learning_rate(state.done, self.work.steps, preset.train)
        for group in self.state.optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        terms = mean_terms([self._add_gradients(batches, index) for index in range(preset.train.accumulate)])
        is_taken = state.take_step()
        if state.average is not None and is_taken:
            update_average(state.average, state.network, state.done, preset.train.average)
        state.done += 1
        with self.processes.together():
            if state.skipped_in_row == _MOST_SKIPPED:
                raise SdmError(
                    f"{self.folder.path}: fp16 skipped {_MOST_SKIPPED} steps in a row, up to step {state.done}, since "
                    "their gradients are never finite, so the run learns nothing: train again with a lower train.lr, "
                    "or with --set train.mixed_precision=bf16 or no; the last checkpoints are from before."
                )
        return terms, lr

    def _add_gradients(self, batches: Iterator[Pair], index: int) -> LossTerms:
        """Losses of a micro-batch of the step, its share of the gradients added; the last one adds up the processes."""
        accumulate = self.preset.train.accumulate
        with self.processes.together():
            pairs = next(batches)
        number = self.state.done * accumulate + index
        seed_micro_batch(self.preset.train.seed, number, self.accelerator.process_index)
        with nullcontext() if index == accumulate - 1 else self.accelerator.no_sync(self.model):
            terms = self._losses(pairs, number)
            self.accelerator.backward(terms.total)  # divides by the number of micro-batches
        self.watch.require_finite(terms, self.processes)
        self._share_running_statistics()
        return terms

    def _losses(self, pairs: Pair, number: int) -> LossTerms:
        preset, state = self.preset, self.state
        batch = augment_pairs(pairs)
        self.watch.begin(batch, pairs.number, number)
        state.shares.add_labeled(batch.labeled_target, self._sum_over_processes)
        return semi_supervised_step(
            self.model,
            self._pseudo_label,
            *batch,
            state.difficulty,
            preset.method,
            labeled_only=state.done < first_semi_supervised_step(self.work.steps, preset.method.labeled_only_fraction),
            has_messenger=bool(preset.model.messenger_stages),
            sum_over_processes=self._sum_over_processes,
        )

    def _pseudo_label(self, image: Tensor) -> Tensor:
        with self.accelerator.autocast():
            label = pseudo_label(self.state.kept, image, self.preset.model.exchange)
        self.state.shares.add_pseudo(label, self._sum_over_processes)
        return label

    def _sum_over_processes(self, counts: Tensor) -> Tensor:
        return cast(Tensor, self.accelerator.reduce(counts, "sum"))

    def _share_running_statistics(self) -> None:
        """Every process keeps those of the first; where batch normalisation is not synchronised they differ."""
        if self.accelerator.num_processes > 1:
            for buffer in self.state.network.buffers():
                buffer.copy_(broadcast(buffer))

    def _require_finite_weights(self) -> None:
        """Stop before a broken network replaces a good one; raises SdmError."""
        finite = [torch.isfinite(tensor).all() for tensor in self.state.kept.parameters()]
        with self.processes.together():
            if not torch.stack(finite).all():
                raise SdmError(
                    f"{self.folder.path}: a weight is not finite after step {self.state.done}: train again with a "
                    "lower train.lr or with --set train.mixed_precision=no; the last checkpoints are from before."
                )

    def _record(self, terms: LossTerms, lr: float, pairs_per_second: float) -> dict[str, Any]:
        shares = self.state.shares.take()
        losses = self._mean_over_processes(terms)
        weights = self.state.difficulty.weights.tolist() if self.preset.method.class_weights else None
        entry = {
            "step": self.state.done,
            "epoch": self.state.done / self.work.steps_per_epoch,
            "loss": losses["total"],
            "loss_labeled": losses["labeled"],
            "loss_unlabeled": losses.get("unlabeled"),
            "loss_consistency": losses.get("consistency"),
            "lr": lr,
            "labeled_share": self._by_class(shares.labeled),
            "pseudo_share": self._by_class(shares.pseudo),
            "class_weights": self._by_class(weights),
            "pairs_per_second": pairs_per_second,
        }
        if self.accelerator.scaler is not None:
            entry["skipped_steps"] = self.state.skipped
        with self.processes.together():
            if self.accelerator.is_main_process:
                self.folder.record(entry)
                tell(self.accelerator, entry)
                if alarm := self.collapse.take(entry):
                    self.folder.record(alarm)
        return entry

    def _mean_over_processes(self, terms: LossTerms) -> dict[str, float]:
        """The losses that there are, by name."""
        present = {name: term for name, term in terms._asdict().items() if term is not None}
        means = self.accelerator.reduce(torch.stack(list(present.values())), "mean")
        return dict(zip(present, means.tolist(), strict=True))

    def _by_class(self, values: list[float] | None) -> dict[str, float] | None:
        names = (BACKGROUND, *self.preset.data.class_names)
        return None if values is None else dict(zip(names, values, strict=True))

    def _validate_and_save(self, view: TrainingView) -> None:
        state = self.state
        result = validate(
            state.kept,
            self.preset,
            self.plan.store,
            self.plan.selection,
            self.accelerator,
            self.processes,
            lambda: self.stop.wanted,
        )
        if result is None:
            self._save_and_stop()
        score = score_of(result.to_json(), self.preset.protocol)
        is_best = score is None or score >= state.best
        state.best = state.best if score is None else max(state.best, score)
        state.validated = state.done
        with self.processes.together():
            if self.accelerator.is_main_process:
                entry = {"step": state.done, "validation": result.to_json()}
                self.folder.record(entry)
                tell(self.accelerator, entry)
                if is_best:
                    save_model(self.folder.best, state.kept, self.preset, chosen_on=self.preset.train.select_on)
                state.save(self.folder, self.preset)
        view.show_validation(state.done, result.dice, is_best)
        if self.accelerator.is_main_process and state.done < self.work.steps:
            self.pictures.at_validation(state.kept, state.done, is_best)

    def _save_and_stop(self) -> NoReturn:
        with self.processes.together():
            if self.accelerator.is_main_process:
                self.state.save(self.folder, self.preset)
                self.pictures.at_stop()
        raise KeyboardInterrupt
